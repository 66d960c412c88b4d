//! What an application runs in one generation only is never run in two, and never in none for good.

use handover_load::Signal;

use crate::support::{DEADLINE, Service, Setup, gone, number_at_the_end, signal};

const LONG_MS: u32 = 60_000;

fn setup() -> Setup {
    let setup = Setup::new();
    let lock = setup.room.path().join("lock");
    setup
        .with("TESTD_SINGLETON", lock.display())
        .with("TESTD_FAILURES_MAX", 1_000)
}

async fn active(service: &Service, pid: u32, times: usize) {
    let line = format!("active {pid}");
    let count = service.server.wait_for_lines(&line, times, DEADLINE).await;
    count.unwrap();
}

fn assert_alternates(service: &Service) {
    let log = service.server.log();
    assert!(!log.contains("overlap"), "{log}");
}

#[tokio::test]
async fn no_two_generations_are_active_at_once_over_rollbacks_and_kills() {
    let service = setup().with("TESTD_BAKE_MS", LONG_MS).start().await;
    let stable = service.pid();
    // Each flip there says `inactive` and each way back `active`, of which the first contains the second.
    active(&service, stable, 1).await;
    // Long enough for an incumbent that does not wait for it to be active first.
    service.plan("deactivate=30");
    for round in 0..34 {
        let generation = round + 2;
        signal(stable, Signal::HUP);
        let successor = service.ready(generation).await;
        if round % 4 < 2 {
            active(&service, successor, 1).await;
        }
        match round % 2 {
            0 => signal(stable, Signal::USR2),
            _ => signal(successor, Signal::KILL),
        }
        let ended = format!("event 1 rolled-back {generation} ");
        service.line(&ended).await;
        gone(successor).await;
        let both = 1 + 2 * (usize::try_from(round).unwrap() + 1);
        active(&service, stable, both).await;
    }
    assert_alternates(&service);
}

#[tokio::test]
async fn each_of_many_generations_is_active_in_turn() {
    let service = setup().start().await;
    active(&service, service.pid(), 1).await;
    for from in 1..=16 {
        let successor = service.upgrade(from, from + 1).await;
        active(&service, successor, 1).await;
    }
    assert_alternates(&service);
}

#[tokio::test]
async fn an_incumbent_that_dies_is_followed_by_an_active_successor() {
    let service = setup()
        .with("TESTD_BAKE_MS", LONG_MS)
        .standby()
        .start()
        .await;
    signal(service.pid(), Signal::HUP);
    service.line("phase 2 standby").await;
    signal(service.pid(), Signal::KILL);
    let successor = service.ready(2).await;
    active(&service, successor, 1).await;
    assert_alternates(&service);
}

#[tokio::test]
async fn a_deactivation_that_hangs_leaves_everything_as_it_was() {
    let setup = setup().with("TESTD_FLIP_MS", 300);
    std::fs::write(setup.room.path().join("plan"), "deactivate=hang").unwrap();
    let service = setup.start().await;
    let before = service.load(1).await;
    signal(service.pid(), Signal::HUP);
    let verdict = service.line("event 1 aborted 2 ").await;
    assert!(verdict.contains("did not"), "{verdict}");
    service.assert_serving(1).await;
    crate::support::assert_no_failure(&before.stop().await);
    assert_alternates(&service);
}

#[tokio::test]
async fn a_successor_whose_deactivation_hangs_is_killed_and_the_incumbent_active() {
    let service = setup()
        .with("TESTD_BAKE_MS", LONG_MS)
        .with("TESTD_FLIP_MS", 300)
        .start()
        .await;
    let stable = service.pid();
    service.plan("deactivate=hang");
    signal(stable, Signal::HUP);
    let successor = service.ready(2).await;
    active(&service, successor, 1).await;
    signal(stable, Signal::USR2);
    service.line("event 1 rolled-back 2 ").await;
    gone(successor).await;
    active(&service, stable, 3).await;
    let deactivates = service.line("deactivates").await;
    assert_eq!(number_at_the_end(&deactivates), stable);
    assert_alternates(&service);
}
