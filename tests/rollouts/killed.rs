//! Whoever is killed or stands still in a rollout, the other one serves.

use handover::control::{Condition, Verdict};
use handover::rollout::STALL_AFTER;
use handover_load::{Report, Signal};

use crate::loaded::{BAKE, Loaded, canary_at};
use crate::operated::ended;
use crate::support::{
    Asked, Setup, Tether, answer, assert_only_cut_off, freeze, gone, more_answers, signal,
};

/// Connections that nobody has begun to answer.
const WAITING: usize = 32;

/// Under way, with answers of the candidate, whose process it is, and of stable as far as that still has clients.
async fn begin(setup: Setup, plan: &[&str]) -> (Loaded, tokio::process::Child, u32) {
    let loaded = Loaded::start(setup).await;
    let upgrade = loaded.begin(plan);
    more_answers(&loaded.load, 2).await;
    let candidate = loaded.operated.service.ready(2).await;
    (loaded, upgrade, candidate)
}

async fn serves_degraded_until_somebody_says_that_it_is_good(plan: &[&str]) {
    let (loaded, upgrade, candidate) = begin(Setup::new(), plan).await;
    let operated = &loaded.operated;
    signal(operated.service.pid(), Signal::KILL);
    ended(upgrade).await.assert_code(4);
    operated.service.line("event 2 Incumbent").await;
    more_answers(&loaded.load, 2).await;
    let status = operated.status().await;
    assert_eq!((status.generation, status.pid), (2, candidate));
    assert_eq!(status.condition, Condition::Degraded);
    assert_eq!(status.last.unwrap().verdict, Verdict::Degraded);
    operated.run(&["promote"]).await.assert_code(0);
    assert_eq!(operated.status().await.condition, Condition::Healthy);
    operated.run(&["upgrade"]).await.assert_code(0);
    more_answers(&loaded.load, 3).await;
    // A client with an idle connection finds out when it asks again.
    assert_lost_to_a_kill(&loaded.load.stop().await);
}

#[tokio::test]
async fn a_candidate_whose_stable_is_killed_in_its_canary_serves_and_is_degraded_until_promoted() {
    serves_degraded_until_somebody_says_that_it_is_good(&canary_at("50")).await;
}

#[tokio::test]
async fn a_candidate_whose_stable_is_killed_in_its_bake_serves_and_is_degraded_until_promoted() {
    serves_degraded_until_somebody_says_that_it_is_good(&BAKE).await;
}

/// The process takes along what it was about to answer, one request of each client at most. Nobody was refused, and
/// nobody waited for nothing.
fn assert_lost_to_a_kill(report: &Report) {
    assert_only_cut_off(report);
    for kind in &report.kinds {
        assert!(kind.cut_off() <= CLIENTS, "{report}");
    }
}

async fn ask_many(loaded: &Loaded) -> Vec<Asked> {
    let mut asked = Vec::new();
    for _ in 0..WAITING {
        asked.push(Asked::begin(loaded.operated.service.web).await);
    }
    asked
}

async fn assert_stable_answers_all(asked: Vec<Asked>) {
    for asked in asked {
        assert_eq!(asked.answer().await.unwrap(), answer(1, "hello\n"));
    }
}

#[tokio::test]
async fn a_candidate_that_is_killed_in_its_canary_ends_with_3_and_none_is_lost_that_it_had_not_begun()
 {
    // It is for the kill to end it.
    let setup = Setup::new().with("TESTD_FORWARD_MS", 60_000);
    let (loaded, upgrade, candidate) = begin(setup, &canary_at("50")).await;
    let _tether = Tether::of(loaded.operated.service.pid());
    freeze(candidate).await;
    let asked = ask_many(&loaded).await;
    let on_the_way = async || {
        let rollout = loaded
            .operated
            .status()
            .await
            .upgrade
            .unwrap()
            .rollout
            .unwrap();
        rollout.forwarding.unwrap().on_the_way
    };
    while on_the_way().await < 5 {}
    signal(candidate, Signal::KILL);
    let ran = ended(upgrade).await;
    ran.assert_code(3);
    assert_eq!(ran.json()["upgrade"]["verdict"], "aborted");
    assert_stable_answers_all(asked).await;
    assert_killed(&loaded.explained().await);
    loaded.stable_serves_alone(assert_lost_to_a_kill).await;
}

#[tokio::test]
async fn a_candidate_that_is_killed_in_its_bake_ends_with_3_and_none_is_lost_that_waited_in_the_queue()
 {
    let (loaded, upgrade, candidate) = begin(Setup::new(), &BAKE).await;
    let _tether = Tether::of(loaded.operated.service.pid());
    freeze(candidate).await;
    let asked = ask_many(&loaded).await;
    signal(candidate, Signal::KILL);
    let ran = ended(upgrade).await;
    ran.assert_code(3);
    assert_eq!(ran.json()["upgrade"]["verdict"], "rolled_back");
    assert_stable_answers_all(asked).await;
    assert_killed(&loaded.explained().await);
    loaded.stable_serves_alone(assert_lost_to_a_kill).await;
}

#[tokio::test]
async fn a_candidate_that_stands_still_in_its_bake_is_found_by_who_waits_and_rolled_back_with_3() {
    let (loaded, upgrade, candidate) = begin(Setup::new(), &BAKE).await;
    let _tether = Tether::of(loaded.operated.service.pid());
    freeze(candidate).await;
    let asked = ask_many(&loaded).await;
    let ran = ended(upgrade).await;
    ran.assert_code(3);
    assert_eq!(ran.json()["upgrade"]["verdict"], "rolled_back");
    assert_stable_answers_all(asked).await;
    gone(candidate).await;
    let why = loaded.explained().await;
    let stalled = &why["cause"]["stalled"];
    assert!(stalled["waiting"].as_u64().unwrap() > 0, "{why}");
    assert!(
        stalled["silent_ms"].as_u64().unwrap() >= STALL_AFTER.as_millis() as u64,
        "{why}"
    );
    loaded.stable_serves_alone(assert_lost_to_a_kill).await;
}

#[tokio::test]
async fn a_candidate_that_stands_still_in_its_canary_is_given_up_with_3_and_none_is_lost_that_it_had_not_begun()
 {
    let (loaded, upgrade, candidate) = begin(Setup::new(), &canary_at("50")).await;
    let _tether = Tether::of(loaded.operated.service.pid());
    freeze(candidate).await;
    let asked = ask_many(&loaded).await;
    let ran = ended(upgrade).await;
    ran.assert_code(3);
    assert_eq!(ran.json()["upgrade"]["verdict"], "aborted");
    assert_stable_answers_all(asked).await;
    gone(candidate).await;
    let why = loaded.explained().await;
    assert!(
        why["cause"]["stalled"]["waiting"].as_u64().unwrap() > 0,
        "{why}"
    );
    loaded.stable_serves_alone(assert_lost_to_a_kill).await;
}

/// Of one kind at most.
const CLIENTS: u64 = 8;

fn assert_killed(why: &serde_json::Value) {
    let how = why["cause"]["exited"]["how"].as_str().unwrap();
    assert!(how.contains("signal: 9"), "{why}");
}
