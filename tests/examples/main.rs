//! Every example does what it says: as a process of its own, under clients that count every failure, through two
//! upgrades by SIGHUP and a stop by SIGTERM; those of rollouts through what an operator asks of them.

mod example;
mod grpc;
mod http;
mod lines;
mod load;
mod migrations;
#[allow(dead_code, reason = "the tests of schema gates need more of it")]
#[path = "../schema/postgres.rs"]
mod postgres;
mod rollout;
mod trust;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use handover_load::{Kind, Load as StandardLoad, Mix};
use tokio::net::UdpSocket;
use tonic_health::pb::health_check_response::ServingStatus;

use self::example::Example;
use self::grpc::Grpc;
use self::http::{Connections, Events, Http};
use self::lines::{Buyer, Echo};
use self::load::{Client, DEADLINE, Load};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn axum_app_loses_no_request_in_two_upgrades() {
    let (example, web) = Example::start("axum_app").await;
    let load = Load::new()
        .with(2, || Http::new(web, Connections::Fresh))
        .with(2, || Http::new(web, Connections::Kept))
        .with(2, || Http::new(web, Connections::Http2));
    example
        .upgrade_twice_under(load, |_, pid| pid.to_string())
        .await;
    example.stop().await;
}

/// axum closes idle connections under requests that are on their way, so none is kept here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn axum_serve_loses_no_request_on_a_new_connection_in_two_upgrades() {
    let (example, web) = Example::start("axum_serve").await;
    let load = Load::new().with(4, || Http::new(web, Connections::Fresh));
    example.upgrade_twice_under(load, by_number).await;
    example.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hyper_server_loses_no_request_in_two_upgrades() {
    let (example, web) = Example::start("hyper_server").await;
    // HTTP/2 stays until the drain, and of so many some are in the middle of a request then.
    let load = Load::new()
        .with(2, || Http::new(web, Connections::Fresh))
        .with(2, || Http::new(web, Connections::Kept))
        .with(16, || Http::new(web, Connections::Http2));
    example.upgrade_twice_under(load, by_number).await;
    example.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_shows_one_certificate_through_two_upgrades_and_loses_no_request() {
    let (example, web) = Example::start("tls").await;
    let trust = trust::at_first_sight();
    let load = Load::new()
        .with(2, || Http::new(web, Connections::Fresh).over_tls(&trust))
        .with(2, || Http::new(web, Connections::Kept).over_tls(&trust))
        .with(2, || Http::new(web, Connections::Http2).over_tls(&trust));
    example.upgrade_twice_under(load, by_number).await;
    example.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn echo_asks_its_connections_to_leave_and_breaks_none() {
    let (example, address) = Example::start("echo").await;
    let farewells = Arc::new(AtomicUsize::new(0));
    let load = Load::new().with(3, || Echo::new(address, &farewells));
    example.upgrade_twice_under(load, by_number).await;
    assert_eq!(farewells.load(Ordering::SeqCst), 3 * 2);
    example.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websocket_sse_says_goodbye_on_each_connection_that_lasts() {
    let (example, web) = Example::start("websocket_sse").await;
    let sockets = StandardLoad::start(web, Mix::none().websockets(3));
    sockets.until_answers(1, 10, DEADLINE).await.unwrap();
    let streams = Load::new().with(3, || Events::new(web));
    example.upgrade_twice_under(streams, by_number).await;
    sockets.until_answers(3, 10, DEADLINE).await.unwrap();
    let report = sockets.stop().await;
    assert_eq!(report.failures(), 0, "{report}");
    let goodbyes = report.kind(Kind::WebSocket).map(|kind| kind.reconnects);
    assert_eq!(goodbyes, Some(3 * 2), "{report}");

    let mut last = Events::new(web);
    last.ask().await.unwrap();
    let (ended, _) = tokio::join!(last.ends(), example.stop());
    assert!(ended, "the stop cut the stream");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_loses_no_call_and_tells_its_watchers() {
    let (example, web) = Example::start("grpc").await;
    let mut watch = Grpc::new(web).watch().await;
    let load = Load::new().with(3, || Grpc::new(web));
    example.upgrade_twice_under(load, by_number).await;
    let mut heard = Vec::new();
    while let Some(change) = watch.message().await.unwrap() {
        heard.push(change.status());
    }
    assert_eq!(heard, [ServingStatus::Serving, ServingStatus::NotServing]);
    example.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_sells_each_ticket_once_and_keeps_its_cache() {
    let (example, address) = Example::start("state").await;
    let load = Load::new().with(4, || Buyer(address));
    let seen = example.upgrade_twice_under(load, by_number).await;
    let tickets: BTreeSet<usize> = seen.answers.iter().map(|line| ticket(line)).collect();
    assert_eq!(tickets.len(), seen.answers.len(), "one was sold twice");
    assert_eq!(tickets.last(), Some(&tickets.len()), "one was left out");
    let is_first = |line: &String| line.contains("cached by generation 1,");
    assert!(seen.answers.iter().all(is_first));
    example.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn circuit_breaker_does_not_ask_a_backend_again_that_generation_1_has_given_up() {
    let (example, address) = Example::start("circuit_breaker").await;
    let load = Load::new().with(4, || Buyer(address));
    let seen = example.upgrade_twice_under(load, by_number).await;
    let asked = |line: &&String| !line.contains("was not asked, the circuit is open");
    let asked: Vec<_> = seen.answers.iter().filter(asked).collect();
    assert!(!asked.is_empty(), "the circuit was open from the start");
    assert!(
        asked.iter().all(|line| line.ends_with("generation 1")),
        "{asked:?}"
    );
    // Nothing was spent on retries since, and nobody was given new ones.
    let after = seen
        .answers
        .iter()
        .filter(|line| !line.ends_with("generation 1"));
    let retries: BTreeSet<_> = after.map(|line| line.rsplit(", ").nth(1)).collect();
    assert_eq!(retries.len(), 1, "{retries:?}");
    assert_ne!(retries.first(), Some(&Some("5 retries left")));
    example.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_finish_in_time_or_leave_the_rest_to_the_successor() {
    let (example, queue) = Example::start("jobs").await;
    let sender = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let line = async |of: &str| example.0.wait_for_line(of, DEADLINE).await.unwrap();
    // The incumbent bakes for 10 of these steps, and its class has time for 30 more.
    for job in ["short 20", "long 90"] {
        sender.send_to(job.as_bytes(), queue).await.unwrap();
    }
    line("long: begun by generation 1").await;
    line("short: begun by generation 1").await;
    example.upgrade().await;
    line("short: done by generation 1").await;
    line("long: begun by generation 2").await;
    example.upgrade().await;
    line("long: done by generation").await;
    sender.send_to(b"late 5", queue).await.unwrap();
    line("late: begun by generation 3").await;
    let log = example.stop().await;
    assert!(log.contains("late: done by generation 3"), "{log}");
    assert_eq!(log.matches(": done by").count(), 3, "{log}");
}

fn by_number(number: u64, _: u32) -> String {
    number.to_string()
}

fn ticket(line: &str) -> usize {
    let number = line
        .strip_prefix("ticket ")
        .and_then(|rest| rest.split(',').next());
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{line:?}"))
}
