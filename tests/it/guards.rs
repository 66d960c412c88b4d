//! What undoes an upgrade by itself, or holds it, once the successor is ready: nobody accepts, its answers are failures, or
//! it says itself that it is not well.

use std::pin::pin;

use handover_load::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{Asked, DEADLINE, Service, Setup, Tether, answer, freeze, get, gone, signal};

/// A bake in which each connection is judged by itself, from the first one on.
const GUARDED: &str = r#"{
    "guards": true, "by": "connection", "warm_up": {"secs": 0, "nanos": 0}, "warm_up_units": 0, "units_min": 0
}"#;
const LONG_MS: u32 = 60_000;

async fn baking(setup: Setup, plan: &str) -> Service {
    let service = setup.with("TESTD_BAKE_MS", LONG_MS).start().await;
    service.plan(plan);
    signal(service.pid(), Signal::HUP);
    service.ready(2).await;
    // Verified: nobody but clients waits from now on.
    service.line("Stage { successor: 2, stage: Baking").await;
    service
}

#[tokio::test]
async fn a_successor_that_is_frozen_in_its_bake_is_found_by_who_waits_and_undone() {
    let service = baking(Setup::new(), "").await;
    let successor = service.ready(2).await;
    let _tether = Tether::of(service.pid());
    service.assert_serving(2).await;
    freeze(successor).await;
    let waiting = Asked::begin(service.web).await;
    let verdict = service.line("event 1 rolled-back 2 ").await;
    let found = "1 connections wait and nobody has accepted one for 2";
    assert!(verdict.contains(found), "{verdict}");
    assert_eq!(waiting.answer().await.unwrap(), answer(1, "hello\n"));
    gone(successor).await;
    service.assert_serving(1).await;
}

#[tokio::test]
async fn a_successor_whose_answers_are_failures_is_undone_by_the_numbers() {
    let service = baking(Setup::new().with("TESTD_ROLLOUT", GUARDED), "ill=yes").await;
    let mut undone = pin!(service.line("event 1 rolled-back 2 "));
    let verdict = loop {
        tokio::select! {
            verdict = &mut undone => break verdict,
            _ = get(service.web, "/work") => {}
        }
    };
    let found = "the guard \"errors\" found the candidate worse";
    assert!(verdict.contains(found), "{verdict}");
    assert_eq!(service.get("/work").await, answer(1, "done"));
}

#[tokio::test]
async fn a_successor_that_does_well_is_not_undone_by_its_guards() {
    let service = baking(Setup::new().with("TESTD_ROLLOUT", GUARDED), "").await;
    for _ in 0..200 {
        assert_eq!(service.get("/work").await, answer(2, "done"));
    }
    // An operator has to.
    signal(service.pid(), Signal::USR2);
    let verdict = service.line("event 1 rolled-back 2 ").await;
    assert!(verdict.contains("an operator asked for it"), "{verdict}");
}

#[tokio::test]
async fn a_successor_that_becomes_degraded_in_its_bake_is_not_promoted_until_it_has_recovered() {
    let service = Setup::new().with("TESTD_BAKE_MS", 3_000).start().await;
    signal(service.pid(), Signal::HUP);
    service.ready(2).await;
    assert_eq!(service.get("/degraded").await, answer(2, "degraded"));
    service
        .line("event 1 Paused { successor: 2, pause: Pause { reason: CandidateDegraded")
        .await;
    service.get("/restored").await;
    service.line("event 1 committed 2 ").await;
    service.assert_serving(2).await;
}

#[tokio::test]
async fn a_successor_that_is_degraded_when_it_is_ready_is_not_flipped_to() {
    let service = Setup::new().start().await;
    service.plan("degraded=the cache is cold");
    signal(service.pid(), Signal::HUP);
    service
        .line("event 1 Paused { successor: 2, pause: Pause { reason: CandidateDegraded")
        .await;
    service.assert_serving(1).await;
    signal(service.pid(), Signal::USR2);
    service.line("event 1 aborted 2 ").await;
    service.assert_serving(1).await;
}

#[tokio::test]
async fn who_asks_is_told_which_generation_has_answered() {
    let service = Setup::new().start().await;
    service.upgrade(1, 2).await;
    for (header, expected) in [("x-handover: 1\r\n", true), ("", false)] {
        let mut stream = TcpStream::connect(service.web).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nhost: it\r\nconnection: close\r\n{header}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        let reading = timeout(DEADLINE, stream.read_to_string(&mut text));
        reading.await.unwrap().unwrap();
        let told = text.contains("\r\nx-handover-generation: 2\r\n");
        assert_eq!(told, expected, "{text}");
    }
}
