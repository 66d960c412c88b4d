//! The end of a service, stage by stage.

use std::io::ErrorKind::ConnectionRefused;
use std::time::{Duration, Instant};

use handover_load::Signal;

use crate::support::{
    DEADLINE, Setup, Upload, answer, assert_no_failure, get, gone, more_answers, signal,
};

const LONG_MS: u32 = 60_000;
const SHORT: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_lame_duck_serves_everybody_for_as_long_as_it_was_told() {
    let setup = Setup::new().with("TESTD_LAME_DUCK_MS", SHORT.as_millis());
    let mut service = setup.start().await;
    let load = service.load(1).await;
    let begun = Instant::now();
    service.server.signal(Signal::TERM).unwrap();
    service.line("event 1 LameDuck { lasts: 1s }").await;
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
    service.line("event 1 Draining").await;
    assert!(begun.elapsed() >= SHORT);
    let status = service.server.exit_status(DEADLINE).await.unwrap();
    assert!(status.success(), "{status}");
    let refused = get(service.web, "/").await.unwrap_err();
    assert_eq!(refused.kind(), ConnectionRefused);
}

#[tokio::test]
async fn a_second_stop_ends_a_lame_duck_at_once() {
    let setup = Setup::new().with("TESTD_LAME_DUCK_MS", LONG_MS);
    let mut service = setup.start().await;
    let request = Upload::begin(service.web).await;
    service.server.signal(Signal::TERM).unwrap();
    service.line("event 1 LameDuck").await;
    service.server.signal(Signal::TERM).unwrap();
    let status = service.server.exit_status(DEADLINE).await.unwrap();
    assert!(status.success(), "{status}");
    assert!(request.finish().await.is_err());
    let drained = service.line("event 1 Drained").await;
    assert!(drained.contains("http1 127.0.0.1:"), "{drained}");
}

#[tokio::test]
async fn an_upgrade_of_a_lame_duck_is_refused_with_a_reason() {
    let setup = Setup::new().with("TESTD_LAME_DUCK_MS", LONG_MS);
    let service = setup.start().await;
    service.server.signal(Signal::TERM).unwrap();
    service.line("event 1 LameDuck").await;
    service.server.signal(Signal::HUP).unwrap();
    let refused = service.line("event 1 refused ").await;
    assert!(refused.contains("a lame duck"), "{refused}");
    service.assert_serving(1).await;
}

#[tokio::test]
async fn a_stop_in_the_bake_takes_the_accept_right_back_and_is_a_lame_duck() {
    let setup = Setup::new().with("TESTD_LAME_DUCK_MS", LONG_MS);
    let mut service = setup.with("TESTD_BAKE_MS", LONG_MS).start().await;
    signal(service.pid(), Signal::HUP);
    service.line("event 1 phase 2 baking").await;
    let successor = service.ready(2).await;
    service.server.signal(Signal::TERM).unwrap();
    service.line("event 1 LameDuck").await;
    gone(successor).await;
    service.assert_serving(1).await;
    service.server.signal(Signal::TERM).unwrap();
    let status = service.server.exit_status(DEADLINE).await.unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn what_is_in_flight_is_cut_when_the_stop_has_no_time_left() {
    let setup = Setup::new().with("TESTD_STOP_MS", SHORT.as_millis());
    let mut service = setup.start().await;
    let request = Upload::begin(service.web).await;
    let begun = Instant::now();
    service.server.signal(Signal::TERM).unwrap();
    let drained = service.line("event 1 Drained").await;
    assert!(begun.elapsed() >= SHORT);
    assert!(drained.contains("http1 127.0.0.1:"), "{drained}");
    let status = service.server.exit_status(DEADLINE).await.unwrap();
    assert!(status.success(), "{status}");
    assert!(request.finish().await.is_err());
}

#[tokio::test]
async fn a_stop_beside_an_elder_that_drains_refuses_at_once_and_lets_it_finish() {
    let mut service = Setup::new().start().await;
    let request = Upload::begin(service.web).await;
    service.upgrade(1, 2).await;
    service.line("event 1 Draining { in_flight: 1").await;
    let last = service.ready(2).await;
    signal(last, Signal::TERM);
    service.line("event 2 Drained").await;
    gone(last).await;
    let refused = get(service.web, "/").await.unwrap_err();
    assert_eq!(refused.kind(), ConnectionRefused);
    assert_eq!(request.finish().await.unwrap(), answer(1, "upload 4\n"));
    let status = service.server.exit_status(DEADLINE).await.unwrap();
    assert!(status.success(), "{status}");
}
