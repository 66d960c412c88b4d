//! What is refused changes nothing.

use handover::rollout::Rollout;
use handover_load::Signal;

use crate::loaded::{Loaded, canary_at};
use crate::support::{Setup, assert_no_failure, more_answers, signal};

#[tokio::test]
async fn a_third_release_in_the_middle_of_a_canary_is_refused_with_2_and_changes_nothing() {
    let loaded = Loaded::start(Setup::new()).await;
    let operated = &loaded.operated;
    let _canary = loaded.begin(&canary_at("50"));
    more_answers(&loaded.load, 2).await;
    let before = operated.status().await.upgrade.unwrap();
    for plan in [&[][..], &["--strategy", "immediate"], &["--automatic"]] {
        let ran = loaded.upgrade(plan).await;
        ran.assert_code(2);
        let refusal = ran.json();
        assert_eq!(refusal["kind"], "refused", "{refusal}");
        assert!(
            refusal["message"]
                .as_str()
                .unwrap()
                .contains("an upgrade is under way"),
            "{refusal}"
        );
    }
    signal(operated.service.pid(), Signal::HUP);
    operated.service.line("event 1 refused ").await;
    let after = operated.status().await.upgrade.unwrap();
    assert_eq!(
        (after.generation, after.pid),
        (before.generation, before.pid)
    );
    let shares = [&before, &after].map(|now| now.rollout.as_ref().unwrap().explanation.share);
    assert_eq!(shares[0], shares[1]);
    assert_eq!(operated.service.server.live().len(), 2);
    more_answers(&loaded.load, 1).await;
    more_answers(&loaded.load, 2).await;
    operated.run(&["promote", "--full"]).await.assert_code(0);
    assert_no_failure(&loaded.load.stop().await);
}

/// With as many failed rollouts as there may be.
async fn given_up() -> Loaded {
    let plan = Rollout::blue_green()
        .units_min(0)
        .bake(std::time::Duration::ZERO)
        .failures_max(3);
    let plan = serde_json::to_string(&plan.unguarded()).unwrap();
    let loaded = Loaded::start(Setup::new().with("TESTD_ROLLOUT", plan)).await;
    loaded.operated.service.plan("before-ready=exit:7");
    for _ in 0..3 {
        loaded.upgrade(&["--automatic"]).await.assert_code(3);
    }
    loaded.operated.service.heal();
    let ran = loaded.operated.run(&["upgrade", "--automatic"]).await;
    ran.assert_code(2);
    ran.assert_says(&["3 rollouts in a row have failed; an operator has to begin the next one"]);
    signal(loaded.operated.service.pid(), Signal::HUP);
    loaded
        .operated
        .service
        .line("event 1 refused 3 rollouts in a row have failed")
        .await;
    assert_eq!(loaded.operated.status().await.generation, 1);
    loaded
}

#[tokio::test]
async fn after_three_failed_rollouts_automatic_ones_are_refused_with_2_until_one_by_hand_succeeds()
{
    let loaded = given_up().await;
    loaded.upgrade(&[]).await.assert_code(0);
    loaded.upgrade(&["--automatic"]).await.assert_code(0);
    more_answers(&loaded.load, 6).await;
    assert_no_failure(&loaded.load.stop().await);
}

#[tokio::test]
async fn after_three_failed_rollouts_automatic_ones_are_refused_with_2_until_they_are_resumed() {
    let loaded = given_up().await;
    loaded.operated.run(&["resume"]).await.assert_code(0);
    signal(loaded.operated.service.pid(), Signal::HUP);
    loaded.operated.service.line("event 1 committed 5 ").await;
    more_answers(&loaded.load, 5).await;
    assert_no_failure(&loaded.load.stop().await);
}
