//! A share of the connections before the flip: whoever dies or gives up in the middle of it, and when.

use std::time::Duration;

use handover::control::{Client, ForwardingState, Reply, Request};
use handover::rollout::{By, Rollout, Share};
use handover_load::process::descriptors;
use handover_load::{Load, Signal};

use crate::support::{
    Service, Setup, Tether, Upload, assert_lost_only_what_was_in_flight, assert_no_failure, freeze,
    gone, more_answers, signal, until_descriptors,
};

/// Every other connection is the candidate's, until something happens.
struct Canary {
    service: Service,
    load: Load,
    stable: u32,
    candidate: u32,
    before: Vec<String>,
}

impl Canary {
    async fn begin() -> Self {
        Self::of(Setup::new()).await
    }

    async fn of(setup: Setup) -> Self {
        let service = setup.with("TESTD_ROLLOUT", plan()).start().await;
        let stable = service.pid();
        let before = descriptors(stable).unwrap();
        let load = service.load(1).await;
        signal(stable, Signal::HUP);
        let candidate = service.ready(2).await;
        more_answers(&load, 2).await;
        more_answers(&load, 1).await;
        Self {
            service,
            load,
            stable,
            candidate,
            before,
        }
    }

    /// Requests that both have begun: that all of so many fall to one side happens once in 30,000 times.
    async fn uploads(&self) -> Vec<Upload> {
        let mut uploads = Vec::new();
        for _ in 0..16 {
            uploads.push(Upload::begin(self.service.web).await);
        }
        uploads
    }

    /// Nothing is left of the candidate, and the next one gets its share as well.
    async fn stable_serves_alone(self) {
        drop(self.load.stop().await);
        self.service.assert_alone(self.stable).await;
        until_descriptors(self.stable, self.before).await;
        next_gets_a_share(&self.service, 1, self.stable, 3).await;
    }
}

/// One step that lasts until somebody promotes or undoes it, for `TESTD_ROLLOUT`.
fn plan() -> String {
    const LONG: Duration = Duration::from_secs(3_600);
    let plan = Rollout::canary([50])
        .by(By::Connection)
        .unguarded()
        .units_min(0)
        .step_min(LONG)
        .step_deadline(LONG);
    serde_json::to_string(&plan).unwrap()
}

async fn next_gets_a_share(service: &Service, number: u64, stable: u32, next: u64) {
    service.heal();
    let load = service.load(number).await;
    signal(stable, Signal::HUP);
    more_answers(&load, next).await;
    assert_no_failure(&load.stop().await);
}

async fn generations_that_finish(uploads: Vec<Upload>) -> Vec<u64> {
    let mut generations = Vec::new();
    for upload in uploads {
        generations.push(upload.finish().await.unwrap().generation);
    }
    generations.sort_unstable();
    generations.dedup();
    generations
}

#[tokio::test]
async fn a_promoted_canary_takes_over_and_nobody_notices() {
    let canary = Canary::of(Setup::new().with("TESTD_BAKE_MS", 0)).await;
    let uploads = canary.uploads().await;
    // Asked of the stable generation: with its kept connections it may be any of several times.
    while canary.service.get("/flip").await.generation != 1 {}
    canary.service.line("event 1 committed 2 ").await;
    more_answers(&canary.load, 2).await;
    assert_eq!(generations_that_finish(uploads).await, [1, 2]);
    assert_no_failure(&canary.load.stop().await);
    canary.service.assert_alone(canary.candidate).await;
}

#[tokio::test]
async fn a_canary_that_is_given_up_finishes_what_it_has_begun_and_nobody_notices() {
    let canary = Canary::begin().await;
    let uploads = canary.uploads().await;
    signal(canary.stable, Signal::USR2);
    canary.service.line("event 1 aborted 2 ").await;
    more_answers(&canary.load, 1).await;
    assert_eq!(generations_that_finish(uploads).await, [1, 2]);
    gone(canary.candidate).await;
    assert_no_failure(&canary.load.snapshot());
    canary.stable_serves_alone().await;
}

#[tokio::test]
async fn a_canary_that_is_killed_takes_along_only_what_it_had_begun() {
    let canary = Canary::begin().await;
    signal(canary.candidate, Signal::KILL);
    let verdict = canary.service.line("event 1 aborted 2 ").await;
    assert!(verdict.contains("signal: 9"), "{verdict}");
    more_answers(&canary.load, 1).await;
    assert_lost_only_what_was_in_flight(&canary.load.snapshot());
    canary.stable_serves_alone().await;
}

#[tokio::test]
async fn a_canary_that_stands_still_is_given_up_for_the_connections_that_wait() {
    let canary = Canary::of(Setup::new().with("TESTD_FORWARD_MS", 200)).await;
    let _tether = Tether::of(canary.stable);
    freeze(canary.candidate).await;
    let verdict = canary.service.line("event 1 aborted 2 ").await;
    assert!(verdict.contains("connections wait"), "{verdict}");
    more_answers(&canary.load, 1).await;
    gone(canary.candidate).await;
    assert_lost_only_what_was_in_flight(&canary.load.snapshot());
    canary.stable_serves_alone().await;
}

#[tokio::test]
async fn a_canary_whose_stable_generation_is_killed_serves_on() {
    let canary = Canary::begin().await;
    signal(canary.stable, Signal::KILL);
    gone(canary.stable).await;
    more_answers(&canary.load, 2).await;
    assert_lost_only_what_was_in_flight(&canary.load.stop().await);
    canary.service.assert_alone(canary.candidate).await;
    next_gets_a_share(&canary.service, 2, canary.candidate, 3).await;
}

#[tokio::test]
async fn a_service_that_is_stopped_in_the_middle_of_a_canary_answers_everybody_who_had_come() {
    let canary = Canary::begin().await;
    let uploads = canary.uploads().await;
    let report = canary.load.stop().await;
    assert_no_failure(&report);
    signal(canary.stable, Signal::TERM);
    canary.service.line("event 1 aborted 2 ").await;
    assert_eq!(generations_that_finish(uploads).await, [1, 2]);
    gone(canary.candidate).await;
    gone(canary.stable).await;
}

#[tokio::test]
async fn operators_see_what_was_forwarded_and_a_share_of_nothing_ends_it_at_once() {
    let setup = Setup::new();
    let path = setup.room.path().join("control");
    let canary = Canary::of(setup.with("TESTD_CONTROL", path.display())).await;
    let operator = Client::new(path);
    let forwarding = forwarding(&operator).await;
    let total = forwarding.total;
    assert_eq!(forwarding.desired, Share::percent(50));
    assert!(total.begun > 0, "{forwarding:?}");
    assert_eq!(total.picked, total.forwarded + total.kept);
    assert!(total.accepted > total.picked && total.forwarded >= total.begun);
    assert_eq!((total.taken_back, total.lost), (0, 0));
    assert_eq!(forwarding.listeners["web"], total);

    let share = Share::NONE;
    let reply = operator.ask(&Request::Share { share }).await.unwrap();
    assert!(matches!(reply, Reply::Done { .. }), "{reply:?}");
    for _ in 0..20 {
        canary.service.assert_serving(1).await;
    }
    assert_no_failure(&canary.load.stop().await);
}

async fn forwarding(operator: &Client) -> ForwardingState {
    let reply = operator.ask(&Request::Status).await.unwrap();
    let Reply::Status(status) = reply else {
        panic!("{reply:?}")
    };
    let rollout = status.upgrade.unwrap().rollout.unwrap();
    rollout.forwarding.unwrap()
}
