//! What speaks neither for a candidate nor against it holds the rollout, and nobody is undone for it.

use std::fs;

use handover::control::{Condition, RolloutState};
use handover::rollout::{PauseReason, Share, Until};
use handover_load::Failure;

use crate::loaded::{LONG, Loaded, assert_failed_only_as};
use crate::operated::{Operated, ended};
use crate::support::{Setup, answer, ask_unix, assert_no_failure, gone, more_answers};

/// Two steps and a bake of which each is over at once if there is something to decide by.
const BRIEF: [&str; 10] = [
    "--strategy",
    "canary",
    "--by",
    "connection",
    "--steps",
    "25,50",
    "--step-min",
    "100ms",
    "--bake",
    "100ms",
];
const NOBODY: [&str; 4] = ["--exclude", "127.0.0.0/8", "--step-deadline", "200ms"];

async fn rollout(operated: &Operated) -> RolloutState {
    operated.status().await.upgrade.unwrap().rollout.unwrap()
}

/// The rollout waits for somebody to decide, at this share and for this reason.
async fn assert_paused(operated: &Operated, share: u8, reason: PauseReason) {
    assert_eq!(operated.status().await.condition, Condition::Paused);
    let rollout = rollout(operated).await;
    assert_eq!(rollout.explanation.share, Share::percent(share));
    let pause = rollout.pause.unwrap();
    assert_eq!((pause.reason, pause.until), (reason, Until::Operator));
}

/// With 6, at the first step.
async fn paused_for_want_of_traffic() -> Loaded {
    let loaded = Loaded::start(Setup::new()).await;
    let ran = loaded.upgrade(&[&BRIEF[..], &NOBODY].concat()).await;
    ran.assert_code(6);
    assert_eq!(ran.json()["reply"], "paused");
    assert_paused(&loaded.operated, 25, PauseReason::NotEnoughData).await;
    more_answers(&loaded.load, 1).await;
    assert_paused(&loaded.operated, 25, PauseReason::NotEnoughData).await;
    loaded
}

#[tokio::test]
async fn a_candidate_without_traffic_ends_with_6_and_stays_until_it_is_promoted_by_hand() {
    let loaded = paused_for_want_of_traffic().await;
    let said = [
        "paused      not enough requests to decide by",
        "shifting at 25 %, step 1 of 2, 0 of 300 requests",
    ];
    loaded.operated.run(&["explain"]).await.assert_says(&said);
    loaded.operated.run(&["promote"]).await.assert_code(6);
    assert_paused(&loaded.operated, 50, PauseReason::NotEnoughData).await;
    assert_eq!(loaded.load.snapshot().generation(2), None);
    // All of the traffic is enough of it.
    let (code, verdict) = loaded.operated.json(&["promote", "--full"]).await;
    assert_eq!(
        (code, &verdict["upgrade"]["verdict"]),
        (0, &"committed".into())
    );
    more_answers(&loaded.load, 2).await;
    assert_no_failure(&loaded.load.stop().await);
}

#[tokio::test]
async fn a_candidate_without_traffic_ends_with_6_and_stays_until_it_is_aborted_by_hand() {
    let loaded = paused_for_want_of_traffic().await;
    let candidate = loaded.operated.status().await.upgrade.unwrap().pid.unwrap();
    loaded.operated.run(&["abort"]).await.assert_code(0);
    gone(candidate).await;
    loaded.stable_serves_alone(assert_no_failure).await;
}

#[tokio::test]
async fn a_candidate_that_is_degraded_is_held_and_goes_on_by_itself_once_it_has_recovered() {
    let setup = Setup::new();
    let preview = setup.room.path().join("preview");
    fs::create_dir(&preview).unwrap();
    let loaded = Loaded::start(setup.with("TESTD_PREVIEW", preview.display())).await;
    let operated = &loaded.operated;
    operated.service.plan("degraded=the cache is cold");
    let upgrade = loaded.begin(&[&BRIEF[..], &["--units-min", "20"]].concat());
    let held =
        "event 1 Paused { successor: 2, pause: Pause { reason: CandidateDegraded, until: Recovery";
    operated.service.line(held).await;
    more_answers(&loaded.load, 1).await;
    assert_eq!(rollout(operated).await.explanation.share, Share::NONE);
    let candidate = preview.join("preview-2-web.sock");
    let restored = ask_unix(candidate.to_str().unwrap(), "/restored").await;
    assert_eq!(restored.unwrap(), answer(2, "restored"));
    let ran = ended(upgrade).await;
    ran.assert_code(0);
    assert_eq!(ran.json()["upgrade"]["verdict"], "committed");
    more_answers(&loaded.load, 2).await;
    assert_no_failure(&loaded.load.stop().await);
}

#[tokio::test]
async fn a_candidate_that_stays_degraded_ends_with_6_and_is_the_operators_to_decide() {
    let loaded = Loaded::start(Setup::new()).await;
    loaded.operated.service.plan("degraded=the cache is cold");
    let ran = loaded
        .upgrade(&[&BRIEF[..], &["--step-deadline", "200ms"]].concat())
        .await;
    ran.assert_code(6);
    assert_paused(&loaded.operated, 0, PauseReason::CandidateDegraded).await;
    loaded
        .operated
        .run(&["promote", "--full"])
        .await
        .assert_code(0);
    more_answers(&loaded.load, 2).await;
    assert_no_failure(&loaded.load.stop().await);
}

#[tokio::test]
async fn trouble_that_both_sides_share_pauses_the_rollout_and_goes_by_without_a_verdict() {
    let setup = Setup::new();
    let trouble = setup.room.path().join("trouble");
    let loaded = Loaded::start(setup.with("TESTD_TROUBLE", trouble.display())).await;
    let at_50 = ["--steps", "50", "--step-min", "3s", "--bake", "100ms"];
    let plan = [
        "--strategy",
        "canary",
        "--by",
        "connection",
        "--units-min",
        "20",
        "--step-deadline",
        LONG,
    ];
    let upgrade = loaded.begin(&[&plan[..], &at_50].concat());
    more_answers(&loaded.load, 2).await;
    fs::write(&trouble, "").unwrap();
    loaded
        .operated
        .service
        .line(
            "event 1 Paused { successor: 2, pause: Pause { reason: SharedTrouble, until: Recovery",
        )
        .await;
    assert_eq!(
        rollout(&loaded.operated).await.explanation.share,
        Share::percent(50)
    );
    fs::remove_file(&trouble).unwrap();
    let ran = ended(upgrade).await;
    ran.assert_code(0);
    assert_eq!(ran.json()["upgrade"]["verdict"], "committed");
    more_answers(&loaded.load, 2).await;
    assert_failed_only_as(&loaded.load.stop().await, Failure::Status5xx);
}
