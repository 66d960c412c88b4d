//! Rollbacks to a release whose processes are gone and whose file was replaced.

use std::fs;

use handover::control::{RollbackKind, Status};
use handover_load::process::descriptors;

use crate::operated::Operated;
use crate::releases::{PROGRAM, replace, sh, start};
use crate::support::{
    Setup, answer, assert_no_failure, gone, more_answers, signal, successor, until_descriptors,
};

async fn upgrade_to(operated: &Operated, release: &str) {
    replace(operated.service.room.path(), release);
    operated.run(&["upgrade"]).await.assert_code(0);
}

async fn assert_release(operated: &Operated, generation: u64, release: &str) {
    let said = operated.service.get("/release").await;
    assert_eq!(said, answer(generation, release));
}

/// Which way back there is, to which generation, of which build.
fn back(status: &Status) -> (RollbackKind, Option<u64>, &str) {
    let back = status.rollback.as_ref().unwrap();
    (back.kind, back.generation, &back.build)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_release_before_is_started_again_though_its_file_was_replaced_and_its_process_is_gone()
{
    let operated = start(Setup::new()).await;
    upgrade_to(&operated, "two").await;
    gone(operated.service.pid()).await;
    operated.service.program(&successor("nobody_home.sh"));
    assert_eq!(
        back(&operated.status().await),
        (RollbackKind::Cold, Some(1), "one")
    );
    let said = "rollback    cold, to the release of generation 1 (build one)";
    operated.run(&["status"]).await.assert_says(&[said]);

    let load = operated.service.load(2).await;
    let ran = operated
        .run(&["rollback", "--cold", "--reason", "too slow"])
        .await;
    ran.assert_code(0);
    ran.assert_says(&[
        "2 -> 3 (cold rollback to the release of 1) committed",
        "too slow",
    ]);
    assert_release(&operated, 3, "one").await;
    more_answers(&load, 3).await;
    assert_no_failure(&load.stop().await);

    let three = operated.status().await;
    let name = fs::read_to_string(format!("/proc/{}/comm", three.pid)).unwrap();
    assert_eq!(name, format!("{PROGRAM}\n"));
    let last = three.last.as_ref().unwrap();
    assert_eq!((last.rollback_to, &*last.reason), (Some(1), "too slow"));
    assert_eq!(back(&three), (RollbackKind::Cold, Some(2), "two"));

    // What is on disk is not what was rolled back to.
    operated.run(&["upgrade"]).await.assert_code(3);
    assert_release(&operated, 3, "one").await;
}

#[tokio::test]
async fn a_cold_rollback_of_a_cold_rollback_goes_forward_again_and_holds_no_more_than_before() {
    let operated = start(Setup::new()).await;
    upgrade_to(&operated, "two").await;
    operated.service.program(&successor("nobody_home.sh"));
    let mut generation = 2;
    for release in ["one", "two", "one", "two"] {
        generation += 1;
        operated.run(&["rollback", "--cold"]).await.assert_code(0);
        assert_release(&operated, generation, release).await;
    }
    let pid = operated.status().await.pid;
    operated.service.assert_alone(pid).await;
    let before = descriptors(pid).unwrap();
    let held = before.iter().filter(|target| target.contains("program"));
    assert_eq!(
        held.count(),
        2,
        "its own image and the one before: {before:?}"
    );
    // A rollback that fails leaves nothing behind.
    operated.service.plan("before-ready=exit:7");
    operated.run(&["rollback", "--cold"]).await.assert_code(3);
    assert_release(&operated, generation, "two").await;
    until_descriptors(pid, before).await;
}

#[tokio::test]
async fn without_another_release_before_a_cold_rollback_is_refused_with_2() {
    let operated = start(Setup::new()).await;
    for generation in [1, 2] {
        let status = operated.status().await;
        assert_eq!(status.generation, generation);
        assert_eq!(back(&status), (RollbackKind::None, None, ""));
        let why = "no other release has been the incumbent before this one";
        operated
            .run(&["status"])
            .await
            .assert_says(&["rollback    none: ", why]);
        let (code, refusal) = operated.json(&["rollback", "--cold"]).await;
        assert_eq!(
            (code, &refusal["kind"]),
            (2, &"refused".into()),
            "{refusal}"
        );
        assert!(
            refusal["message"].as_str().unwrap().contains(why),
            "{refusal}"
        );
        // The same release once more is no other release.
        operated.run(&["upgrade"]).await.assert_code(0);
    }
}

#[tokio::test]
async fn a_generation_that_holds_no_image_leaves_none_to_go_back_to() {
    let operated = start(Setup::new().with("TESTD_IMAGE", "nothing")).await;
    upgrade_to(&operated, "two").await;
    let ran = operated.run(&["rollback", "--cold"]).await;
    ran.assert_code(2);
    ran.assert_says(&["has not passed its image"]);
}

/// An incumbent of release "two", the file of whose predecessor is overwritten in place.
async fn overwritten(image: &str) -> Operated {
    let operated = start(Setup::new().with("TESTD_IMAGE", image)).await;
    let room = operated.service.room.path();
    fs::hard_link(room.join(PROGRAM), room.join("first")).unwrap();
    upgrade_to(&operated, "two").await;
    gone(operated.service.pid()).await;
    sh(room, "cat /bin/false > first", "");
    operated
}

#[tokio::test]
async fn an_image_that_was_overwritten_in_place_is_not_started() {
    let operated = overwritten("descriptor").await;
    let why = "the image of generation 1 has been overwritten in place since";
    let (kind, ..) = back(&operated.status().await);
    assert_eq!(kind, RollbackKind::None);
    let ran = operated.run(&["rollback", "--cold"]).await;
    ran.assert_code(2);
    ran.assert_says(&[why]);
    assert_release(&operated, 2, "two").await;
}

#[tokio::test]
async fn a_copy_of_an_image_is_started_whatever_was_done_to_the_file() {
    let operated = overwritten("copy").await;
    operated.run(&["rollback", "--cold"]).await.assert_code(0);
    assert_release(&operated, 3, "one").await;
    // From a copy forward to a copy, and back to where it has been already.
    operated.run(&["rollback", "--cold"]).await.assert_code(0);
    assert_release(&operated, 4, "two").await;
}

#[tokio::test]
async fn in_the_bake_the_rollback_on_offer_is_instant_and_a_cold_one_is_refused_with_2() {
    let operated = start(Setup::new().with("TESTD_BAKE_MS", 60_000)).await;
    replace(operated.service.room.path(), "two");
    operated.run(&["upgrade", "--no-wait"]).await.assert_code(0);
    operated.phase(1, 2, "baking").await;
    assert_eq!(
        back(&operated.status().await),
        (RollbackKind::Instant, Some(1), "one")
    );
    let ran = operated.run(&["rollback", "--cold"]).await;
    ran.assert_code(2);
    ran.assert_says(&["an upgrade is under way (baking)"]);
    assert_release(&operated, 2, "two").await;
    operated.run(&["rollback"]).await.assert_code(0);
    assert_release(&operated, 1, "one").await;
}

#[tokio::test]
async fn a_cold_rollback_has_a_bake_and_an_instant_one_undoes_it() {
    let operated = start(Setup::new().with("TESTD_BAKE_MS", 2_000)).await;
    upgrade_to(&operated, "two").await;
    let ran = operated.run(&["rollback", "--cold", "--no-wait"]).await;
    ran.assert_code(0);
    ran.assert_says(&["upgrade to generation 3 goes on"]);
    operated.phase(2, 3, "baking").await;
    let three = operated.service.ready(3).await;
    signal(three, handover_load::Signal::KILL);
    operated.service.line("event 2 rolled-back 3 ").await;
    assert_release(&operated, 2, "two").await;
    // What could not be done once can be done again.
    operated.run(&["rollback", "--cold"]).await.assert_code(0);
    assert_release(&operated, 4, "one").await;
}
