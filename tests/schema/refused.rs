//! What does not fit is refused, with the sentence that an operator needs, before anything has changed.

use std::pin::pin;
use std::time::{Duration, Instant};

use handover_load::Signal;

use crate::operated::Operated;
use crate::releases;
use crate::rig::{Database, aborts, assert_refused, contract, release, replaced, until_alone};
use crate::support::{get, signal};

#[tokio::test]
async fn a_release_that_needs_a_newer_schema_than_there_is_never_serves_and_changes_nothing() {
    let database = Database::new();
    let of = database.start("web1").await;
    aborts(&of, "schema=9:9", "needs schema 9, and the store has 3").await;
    assert_eq!(database.record(), (1, 0, None, None));
    of.service.assert_serving(1).await;
}

#[tokio::test]
async fn a_release_that_does_not_know_the_floor_never_serves_and_a_rollback_to_one_is_blocked() {
    let database = Database::new();
    // The releases differ in their files too, so that there is one before.
    let of = releases::start(database.setup("web1")).await;
    releases::replace(of.service.room.path(), "two");
    replaced(&of, 1, "2:2").await;
    let status = of.run(&["status"]).await;
    assert!(
        status
            .stdout
            .contains("cold, to the release of generation 1"),
        "{status:?}"
    );

    let dry = of.run(&["schema", "contract", "2"]).await;
    let lost = "the cold rollback to the release of generation 1, which knows schema 1, is blocked";
    assert!(dry.stdout.contains(lost), "{dry:?}");
    assert_eq!(contract(&of, 2).await.code, 0);
    let sentence = "knows schema 1, and the store has been contracted to 2";
    let status = of.run(&["status"]).await;
    assert!(status.stdout.contains("blocked(schema)"), "{status:?}");
    assert!(status.stdout.contains(sentence), "{status:?}");
    let (_, json) = of.json(&["status"]).await;
    assert_eq!(json["rollback"]["kind"], "blocked");
    let refused = of.run(&["rollback", "--cold"]).await;
    assert_refused(&refused, &["the release of generation 1", sentence]);
    // Nothing was begun: the number is the next one's.
    aborts(&of, "schema=1:1", sentence).await;
    let told = of.run(&["explain"]).await;
    assert!(told.stdout.contains("2 -> 3 aborted"), "{told:?}");
    of.service.assert_serving(2).await;
}

#[tokio::test]
async fn a_candidate_that_declares_nothing_is_not_flipped_to_once_something_was_contracted() {
    let database = Database::new();
    let of = database.start("web1").await;
    release(&of, 1, "none").await;
    of.service.assert_serving(2).await;

    let database = Database::new();
    let of = database.start("web1").await;
    replaced(&of, 1, "2:2").await;
    assert_eq!(contract(&of, 2).await.code, 0);
    aborts(
        &of,
        "schema=none",
        "generation 3 has declared no schema, so it knows schema 0",
    )
    .await;
    of.service.assert_serving(2).await;
}

#[tokio::test]
async fn what_an_operator_has_contracted_in_spite_of_a_candidate_in_standby_is_found_before_the_flip()
 {
    let database = Database::new();
    let of = database.start("web1").await;
    let stands_by = of.run(&["upgrade", "--strategy", "blue-green"]).await;
    assert_eq!(stands_by.code, 6, "{stands_by:?}");
    let by_hand = "UPDATE handover_schema SET version = 7, floor = 7";
    database.connection().execute_batch(by_hand).unwrap();
    let promoted = of.run(&["promote"]).await;
    assert_eq!(promoted.code, 3, "{promoted:?}");
    let told = of.run(&["explain"]).await;
    assert!(
        told.stdout.contains("generation 2 knows schema 1"),
        "{told:?}"
    );
    of.service.assert_serving(1).await;
}

/// Generation 2 has come to schema 2 and serves, and generation 1 stays warm.
async fn baking(database: &Database) -> Operated {
    let setup = database.setup("web1").with("TESTD_BAKE_MS", 60_000);
    let of = Operated::start(setup).await;
    of.service.plan("schema=2:2");
    assert_eq!(of.run(&["upgrade", "--no-wait"]).await.code, 0);
    of.service.line("event 1 phase 2 baking").await;
    of
}

#[tokio::test]
async fn a_rollback_to_a_warm_incumbent_that_does_not_fit_any_more_is_refused_and_a_death_brings_it_back()
 {
    let database = Database::new();
    let of = baking(&database).await;
    let successor = of.service.ready(2).await;
    let by_hand = "UPDATE handover_schema SET floor = 2";
    database.connection().execute_batch(by_hand).unwrap();
    let refused = of.run(&["rollback"]).await;
    assert_refused(
        &refused,
        &["generation 1 knows schema 1", "contracted to 2"],
    );
    of.service.assert_serving(2).await;
    let status = of.run(&["status"]).await;
    assert!(status.stdout.contains("blocked(schema)"), "{status:?}");

    // Somebody has to answer; and somebody has to look.
    signal(successor, Signal::KILL);
    of.service.line("event 1 rolled-back 2 ").await;
    of.service.assert_serving(1).await;
    let status = of.status().await;
    let degraded = status.degraded.unwrap();
    assert!(
        degraded.contains("generation 1 serves again, and knows schema 1"),
        "{degraded}"
    );
}

#[tokio::test]
async fn an_instant_rollback_does_not_wait_for_a_store_that_cannot_be_asked() {
    let database = Database::new();
    let of = baking(&database).await;
    let locked = database.connection();
    locked.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let begun = Instant::now();
    let back = of.run(&["rollback"]).await;
    let took = begun.elapsed();
    assert_eq!(back.code, 0, "{back:?}");
    // Others wait so long for an answer of the store.
    assert!(took < Duration::from_secs(2), "{took:?}");
    of.service.assert_serving(1).await;
    locked.execute_batch("ROLLBACK").unwrap();
}

/// A bake in which each connection is judged by itself, from the first one on.
const GUARDED: &str = r#"{
    "guards": true, "by": "connection", "warm_up": {"secs": 0, "nanos": 0}, "warm_up_units": 0, "units_min": 0
}"#;

#[tokio::test]
async fn a_guard_that_fails_where_there_is_no_way_back_pauses_and_a_death_goes_back_all_the_same() {
    let database = Database::new();
    let setup = database.setup("web1").with("TESTD_BAKE_MS", 60_000);
    let of = Operated::start(setup.with("TESTD_ROLLOUT", GUARDED)).await;
    of.service.plan("schema=2:2\nill=yes");
    assert_eq!(of.run(&["upgrade", "--no-wait"]).await.code, 0);
    of.service.line("Stage { successor: 2, stage: Baking").await;
    let successor = of.service.ready(2).await;
    let by_hand = "UPDATE handover_schema SET floor = 2";
    database.connection().execute_batch(by_hand).unwrap();
    let misfit = "no rollback goes back to this generation any more: it knows schema 1";
    of.service.line(misfit).await;

    let paused = "event 1 Paused { successor: 2, pause: Pause { reason: NoWayBack, until: Operator";
    let mut paused = pin!(of.service.line(paused));
    loop {
        tokio::select! {
            _ = &mut paused => break,
            _ = get(of.service.web, "/work") => {}
        }
    }
    let why = "the candidate is worse, and the schema does not fit stable any more";
    for told in ["status", "explain"] {
        of.run(&[told]).await.assert_says(&[why, "errors"]);
    }
    let (_, status) = of.json(&["status"]).await;
    assert_eq!(status["condition"], "paused", "{status}");
    assert_eq!(status["rollback"]["kind"], "blocked", "{status}");
    of.service.assert_serving(2).await;

    signal(successor, Signal::KILL);
    let undone = of.service.line("event 1 rolled-back 2 ").await;
    assert!(undone.contains("SIGKILL"), "{undone}");
    of.service.assert_serving(1).await;
    let degraded = "generation 1 serves again, and knows schema 1";
    of.run(&["status"])
        .await
        .assert_says(&["degraded", degraded]);
    of.run(&["explain"]).await.assert_says(&["SIGKILL"]);
}

#[tokio::test]
async fn a_release_that_stops_writing_what_the_one_before_reads_is_refused() {
    let database = Database::new();
    let setup = database.setup("web1");
    std::fs::write(setup.room.path().join("plan"), "schema=2:2\nforms=1:1-2").unwrap();
    let of = Operated::start(setup).await;
    aborts(
        &of,
        "schema=2:2\nforms=2:2-2",
        "does not write the form of schema 1, which web1 generation 1 ",
    )
    .await;
    of.service.plan("schema=2:2\nforms=2:1-2");
    of.service.upgrade(1, 3).await;
    until_alone(&of).await;
    of.service.plan("schema=2:2\nforms=2:2-2");
    of.service.upgrade(3, 4).await;
}
