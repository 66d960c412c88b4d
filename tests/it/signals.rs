//! What signals do, in whatever phase they come.

use handover_load::Signal;
use handover_load::process::is_alive;

use crate::support::{
    DEADLINE, Service, Setup, Upload, answer, assert_no_failure, get, gone, more_answers, signal,
};

const LONG_MS: u32 = 60_000;

/// The incumbent finishes what it has begun, whatever becomes of its successor, and nobody is left.
async fn stops_cleanly(mut service: Service) {
    let request = Upload::begin(service.web).await;
    let serving = request_generation(&service).await;
    service.server.signal(Signal::TERM).unwrap();
    service.line("event 1 Draining").await;
    assert_eq!(
        request.finish().await.unwrap(),
        answer(serving, "upload 4\n")
    );
    let status = service.server.exit_status(DEADLINE).await.unwrap();
    assert!(status.success(), "{status}");
    service.server.wait_all_gone(DEADLINE).await.unwrap();
    assert!(get(service.web, "/").await.is_err());
}

async fn request_generation(service: &Service) -> u64 {
    service.get("/").await.generation
}

async fn holding(point: &str) -> Service {
    let service = Setup::new().start().await;
    service.plan(&format!("{point}=hold"));
    signal(service.pid(), Signal::HUP);
    service.held(point).await;
    service
}

#[tokio::test]
async fn a_stop_without_an_upgrade_is_clean() {
    stops_cleanly(Setup::new().start().await).await;
}

#[tokio::test]
async fn a_stop_while_a_successor_is_launched_ends_both() {
    stops_cleanly(holding("before-start").await).await;
}

#[tokio::test]
async fn a_stop_while_a_successor_claims_ends_both() {
    stops_cleanly(holding("after-start").await).await;
}

#[tokio::test]
async fn a_stop_while_a_successor_warms_up_ends_both() {
    stops_cleanly(holding("before-ready").await).await;
}

#[tokio::test]
async fn a_stop_while_a_successor_is_in_standby_ends_both() {
    let setup = Setup::new().standby();
    let service = setup.start().await;
    signal(service.pid(), Signal::HUP);
    service.line("phase 2 standby").await;
    stops_cleanly(service).await;
}

#[tokio::test]
async fn a_stop_in_the_middle_of_a_flip_ends_both() {
    let setup = Setup::new()
        .with("TESTD_FLIP_MS", LONG_MS)
        .with("TESTD_FLIP_HOLD_MS", 1000);
    let mut service = setup.start().await;
    signal(service.pid(), Signal::HUP);
    service.line("phase 2 flipping").await;
    let waiting = tokio::spawn(get(service.web, "/"));
    service.server.signal(Signal::TERM).unwrap();
    let status = service.server.exit_status(DEADLINE).await.unwrap();
    assert!(status.success(), "{status}");
    service.server.wait_all_gone(DEADLINE).await.unwrap();
    // It came before or after the stop: answered or refused, but never left waiting.
    if let Ok(answered) = waiting.await.unwrap() {
        assert_eq!(answered, answer(1, "hello\n"));
    }
}

#[tokio::test]
async fn a_stop_in_the_bake_ends_both() {
    let setup = Setup::new().with("TESTD_BAKE_MS", LONG_MS);
    let service = setup.start().await;
    signal(service.pid(), Signal::HUP);
    service.line("phase 2 baking").await;
    service.ready(2).await;
    stops_cleanly(service).await;
}

#[tokio::test]
async fn a_stop_of_the_successor_in_the_bake_leaves_the_incumbent_serving() {
    let setup = Setup::new().with("TESTD_BAKE_MS", LONG_MS);
    let service = setup.start().await;
    let load = service.load(1).await;
    signal(service.pid(), Signal::HUP);
    service.line("phase 2 baking").await;
    let successor = service.ready(2).await;
    more_answers(&load, 2).await;
    let request = Upload::begin(service.web).await;
    signal(successor, Signal::TERM);
    let verdict = service.line("event 1 rolled-back 2 ").await;
    assert!(verdict.contains("it was told to stop"), "{verdict}");
    more_answers(&load, 1).await;
    assert_eq!(request.finish().await.unwrap(), answer(2, "upload 4\n"));
    assert_no_failure(&load.stop().await);
    gone(successor).await;
    service.assert_alone(service.pid()).await;
}

#[tokio::test]
async fn a_stop_of_the_successor_before_it_is_ready_leaves_the_incumbent_serving() {
    for point in ["before-start", "after-start", "before-ready"] {
        let service = holding(point).await;
        let load = service.load(1).await;
        signal(service.held(point).await, Signal::TERM);
        let verdict = service.line("event 1 aborted 2 ").await;
        assert!(verdict.contains("signal: 15"), "{point}: {verdict}");
        more_answers(&load, 1).await;
        assert_no_failure(&load.stop().await);
        service.assert_alone(service.pid()).await;
    }
}

#[tokio::test]
async fn a_second_stop_leaves_at_once() {
    let mut service = Setup::new().start().await;
    let request = Upload::begin(service.web).await;
    service.server.signal(Signal::TERM).unwrap();
    service.line("event 1 Draining { in_flight: 1").await;
    service.server.signal(Signal::TERM).unwrap();
    let status = service.server.exit_status(DEADLINE).await.unwrap();
    assert!(status.success(), "{status}");
    assert!(request.finish().await.is_err());
    let drained = service.line("event 1 Drained").await;
    assert!(drained.contains("http1 127.0.0.1:"), "{drained}");
}

#[tokio::test]
async fn a_generation_that_has_handed_over_finishes_at_its_first_stop_and_leaves_at_its_second() {
    for stops in [1, 2] {
        let mut service = Setup::new().start().await;
        let request = Upload::begin(service.web).await;
        service.upgrade(1, 2).await;
        service.line("event 1 Draining { in_flight: 1").await;
        service.server.signal(Signal::TERM).unwrap();
        if stops == 1 {
            assert_eq!(request.finish().await.unwrap(), answer(1, "upload 4\n"));
        } else {
            // Two of them at once are one to the kernel, so the second follows when the first has been seen.
            while service.server.signal(Signal::TERM).is_ok() && service.server.live().len() > 1 {
                tokio::task::yield_now().await;
            }
            assert!(request.finish().await.is_err());
        }
        let status = service.server.exit_status(DEADLINE).await.unwrap();
        assert!(status.success(), "{status}");
        service.assert_serving(2).await;
    }
}

#[tokio::test]
async fn a_hundred_upgrade_signals_are_one_upgrade() {
    let service = Setup::new().with("TESTD_BAKE_MS", 300).start().await;
    let incumbent = service.pid();
    signal(incumbent, Signal::HUP);
    service.line("event 1 phase 2 launching").await;
    for _ in 1..100 {
        // The last of them may find it gone.
        let _ = handover_load::process::signal(incumbent, Signal::HUP);
    }
    service
        .line("event 1 refused an upgrade is under way")
        .await;
    service.line("event 1 committed 2 ").await;
    gone(incumbent).await;
    let second = service.ready(2).await;
    service.assert_alone(second).await;
    service.assert_serving(2).await;
    service.upgrade(2, 3).await;
    service.assert_serving(3).await;
}

#[tokio::test]
async fn an_upgrade_signal_before_the_handler_exists_does_not_kill_a_successor() {
    let service = holding("before-start").await;
    let successor = service.held("before-start").await;
    for _ in 0..3 {
        signal(successor, Signal::HUP);
    }
    // Delivered after those that came before it.
    signal(successor, Signal::USR1);
    assert_eq!(service.ready(2).await, successor);
    service.line("event 1 committed 2 ").await;
    assert!(is_alive(successor));
    service.assert_serving(2).await;
}
