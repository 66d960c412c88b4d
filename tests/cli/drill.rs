//! Drills: flip and rollback on the real listeners, with and without a fault.

use handover::control::{Drill, RollbackKind};
use handover_load::Signal;

use crate::operated::{Operated, ended};
use crate::support::{Setup, assert_no_failure, gone, signal, successor};

/// Longer than any drill of these.
const PATIENTLY: [&str; 2] = ["--timeout", "2m"];

async fn drill(operated: &Operated) -> (i32, Drill) {
    let (code, drilled) = operated.json(&[&["drill"], &PATIENTLY[..]].concat()).await;
    assert_eq!(drilled["reply"], "drilled", "{drilled}");
    (
        code,
        serde_json::from_value(drilled["drill"].clone()).unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_goes_there_and_back_under_load_without_a_failure_and_ends_with_0() {
    let operated = Operated::start(Setup::new()).await;
    // What is on disk is another release by now, and no concern of a drill.
    operated.service.program(&successor("nobody_home.sh"));
    let load = operated.service.load(1).await;
    let (code, drill) = drill(&operated).await;
    let report = load.stop().await;
    println!("{drill:#?}\n{report}");
    assert_eq!(code, 0, "{drill:?}");
    assert_no_failure(&report);
    assert!(drill.passed);
    assert!(report.generation(2).is_some_and(|seen| seen.answers > 0));
    assert!(drill.requests > 0);
    assert!(drill.flip_took_us.unwrap() > 0 && drill.rollback_took_us.unwrap() > 0);
    let of: Vec<_> = drill.verifications.iter().map(|it| it.generation).collect();
    assert_eq!(of, [1, 2, 1]);
    assert!(drill.verifications.iter().all(|it| it.passed));
    let losses = drill.losses;
    assert_eq!((losses.missed, losses.taken_back, losses.lost), (0, 0, 0));
    operated.service.assert_serving(1).await;

    let status = operated.status().await;
    assert_eq!(status.drill, Some(drill));
    // It is no release before.
    assert_eq!(status.rollback.unwrap().kind, RollbackKind::None);
    let ran = operated.run(&["status"]).await;
    ran.assert_says(&["rehearsed   ", " ago, instant, ", ", 0 lost"]);
    let ran = operated.run(&["history"]).await;
    ran.assert_says(&["1 -> 2 drill passed"]);
}

#[tokio::test]
async fn the_last_drill_is_known_to_the_generations_that_follow() {
    let operated = Operated::start(Setup::new()).await;
    operated
        .run(&["drill", "--no-wait"])
        .await
        .assert_says(&["generation 2 goes on"]);
    let baking = "event 1 Stage { successor: 2, stage: Baking";
    operated.service.line(baking).await;
    // Whoever promotes a drill ends it; it is never committed.
    let candidate = operated.status().await.upgrade.unwrap();
    assert!(candidate.rollout.unwrap().is_drill);
    let ran = operated.run(&["promote"]).await;
    ran.assert_code(3);
    gone(candidate.pid.unwrap()).await;
    let drill = operated.status().await.drill.unwrap();
    assert!(drill.passed, "{drill:?}");
    for generation in 3..5 {
        operated.run(&["upgrade"]).await.assert_code(0);
        let status = operated.status().await;
        assert_eq!(status.generation, generation);
        assert_eq!(status.drill.as_ref(), Some(&drill));
    }
}

#[tokio::test]
async fn during_a_drill_everything_else_is_refused_with_2_and_a_drill_during_an_upgrade_too() {
    let operated = Operated::start_with_a_bake().await;
    let ran = operated.run(&["drill", "--timeout", "1ms"]).await;
    ran.assert_code(5);
    let baking = "event 1 Stage { successor: 2, stage: Baking";
    operated.service.line(baking).await;
    let ran = operated.run(&["status"]).await;
    ran.assert_says(&["a drill: it goes back by itself"]);
    for command in [&["drill"][..], &["upgrade"], &["rollback", "--cold"]] {
        let ran = operated.run(command).await;
        ran.assert_code(2);
        ran.assert_says(&["an upgrade is under way"]);
    }
    operated.run(&["rollback"]).await.assert_code(0);
    operated.run(&["upgrade", "--no-wait"]).await.assert_code(0);
    operated.phase(1, 3, "baking").await;
    operated.run(&["drill"]).await.assert_code(2);
}

#[tokio::test]
async fn a_drill_without_a_held_image_is_refused_with_2() {
    let operated = Operated::start(Setup::new().with("TESTD_IMAGE", "nothing")).await;
    let ran = operated.run(&["drill"]).await;
    ran.assert_code(2);
    ran.assert_says(&["configured to hold no image"]);
    operated.service.assert_serving(1).await;
}

#[tokio::test]
async fn a_drill_whose_candidate_dies_unasked_ends_with_4_and_says_why() {
    let operated = Operated::start(Setup::new()).await;
    let drill = operated.begin(&["drill"]);
    let baking = "event 1 Stage { successor: 2, stage: Baking";
    operated.service.line(baking).await;
    signal(operated.service.ready(2).await, Signal::KILL);
    let ran = ended(drill).await;
    ran.assert_code(4);
    ran.assert_says(&["drill failed", "the candidate ended (signal: 9"]);
    operated
        .run(&["status"])
        .await
        .assert_says(&["rehearsed   ", "failed: the candidate ended"]);
    operated.service.assert_serving(1).await;
}

#[tokio::test]
async fn failed_drills_do_not_hold_automatic_upgrades() {
    let operated = Operated::start(Setup::new().with("TESTD_FAILURES_MAX", 1)).await;
    operated.service.plan("before-ready=exit:7");
    operated.run(&["drill"]).await.assert_code(4);
    operated.service.heal();
    operated
        .run(&["upgrade", "--automatic"])
        .await
        .assert_code(0);
}

#[cfg(not(feature = "inject"))]
#[tokio::test]
async fn without_the_feature_a_fault_is_refused_with_2() {
    let operated = Operated::start(Setup::new()).await;
    let ran = operated.run(&["drill", "--inject", "crash"]).await;
    ran.assert_code(2);
    ran.assert_says(&["without the feature \"inject\""]);
    operated.service.assert_serving(1).await;
}

#[cfg(feature = "inject")]
mod injected {
    use std::time::Duration;

    use super::*;
    use crate::support::get;

    /// Each connection is judged by itself: all come from one address here.
    const BY_CONNECTION: &str = r#"{"by": "connection"}"#;

    async fn undone(setup: Setup, fault: &str) -> Drill {
        let operated = Operated::start(setup.with("TESTD_ROLLOUT", BY_CONNECTION)).await;
        let web = operated.service.web;
        // What is slow is known by what was not.
        for _ in 0..200 {
            operated.service.get("/work").await;
        }
        let clients: Vec<_> = (0..8)
            .map(|_| {
                tokio::spawn(async move {
                    loop {
                        if get(web, "/work").await.is_err() {
                            tokio::task::yield_now().await;
                        }
                    }
                })
            })
            .collect();
        let drilling = operated.begin(&["drill", "--inject", fault, "--json", "--timeout", "2m"]);
        let ran = tokio::time::timeout(Duration::from_secs(90), drilling.wait_with_output());
        let ran: crate::operated::Ran = ran.await.unwrap().unwrap().into();
        clients.iter().for_each(|client| client.abort());
        ran.assert_code(0);
        let drill: Drill = serde_json::from_value(ran.json()["drill"].clone()).unwrap();
        println!(
            "{fault}: {} after {} ms, rollback {:?} us, {} requests, {} errors",
            drill.reason, drill.took_ms, drill.rollback_took_us, drill.requests, drill.errors
        );
        assert!(drill.passed, "{drill:?}");
        let status = operated.run(&["status"]).await;
        status.assert_says(&[&format!("with a fault ({fault})")]);
        operated.service.assert_serving(1).await;
        drill
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_candidate_that_crashes_is_undone_by_its_end() {
        let drill = undone(Setup::new(), "crash").await;
        assert!(drill.reason.contains("the candidate ended"), "{drill:?}");
        assert!(drill.rollback_took_us.is_some());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_candidate_that_accepts_nobody_is_undone_by_who_waits() {
        let drill = undone(Setup::new(), "hang").await;
        assert_eq!(drill.requests, 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_candidate_that_errs_is_undone_by_the_guard_of_errors() {
        let drill = undone(Setup::new(), "errors").await;
        assert!(drill.reason.contains("\"errors\""), "{drill:?}");
        assert!(drill.errors > 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_candidate_that_is_slow_is_undone_by_the_guard_of_slow_requests() {
        let drill = undone(Setup::new(), "slow").await;
        assert!(drill.reason.contains("\"slow\""), "{drill:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_candidate_that_is_never_ready_is_undone_by_the_start_deadline() {
        let setup = Setup::new().with("TESTD_START_MS", 1_500);
        let drill = undone(setup, "never-ready").await;
        assert_eq!(drill.flip_took_us, None);
        assert!(drill.reason.contains("ready"), "{drill:?}");
    }

    #[tokio::test]
    async fn a_fault_is_no_other_generations() {
        let operated = Operated::start(Setup::new()).await;
        let ran = operated.run(&["drill", "--inject", "crash"]).await;
        ran.assert_code(0);
        operated.run(&["upgrade"]).await.assert_code(0);
        operated.service.assert_serving(2 + 1).await;
        let (code, drill) = drill(&operated).await;
        assert_eq!((code, drill.fault), (0, None));
    }
}
