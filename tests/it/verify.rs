//! After a flip and a rollback it is found out who accepts.

use handover_load::Signal;

use crate::support::{Service, Setup, assert_no_failure, more_answers, signal};

const LONG_MS: u32 = 60_000;

#[tokio::test]
async fn a_successor_that_never_accepts_is_rolled_back_with_the_reason() {
    let service = Setup::new().with("TESTD_VERIFY_MS", 500).start().await;
    let load = service.load(1).await;
    service.plan("deaf=yes");
    signal(service.pid(), Signal::HUP);
    let verdict = service.line("event 1 rolled-back 2 ").await;
    assert!(
        verdict.contains("generation 2 did not answer 3 connections in a row to \"web\""),
        "{verdict}"
    );
    assert!(verdict.contains("nobody accepted"), "{verdict}");
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
    let incumbent = service.pid();
    service.assert_alone(incumbent).await;
    service.heal();
    service.upgrade(1, 3).await;
}

#[tokio::test]
async fn no_client_is_taken_for_one_that_asks_nor_the_other_way_round() {
    let room = tempfile::tempdir().unwrap();
    let unix = room.path().join("unix");
    let name = format!("@handover-it-verify-{}", std::process::id());
    let service = Setup::new()
        .with("TESTD_SIDE", "127.0.0.1:0")
        .with("TESTD_UDP", "127.0.0.1:0")
        .with("TESTD_UNIX", format!("{},{name}", unix.display()))
        .with("TESTD_BAKE_MS", LONG_MS)
        .start()
        .await;
    let load = service.load(1).await;
    for round in 2..12 {
        signal(service.pid(), Signal::HUP);
        service
            .line(&format!("Stage {{ successor: {round}, stage: Baking"))
            .await;
        signal(service.pid(), Signal::USR2);
        service.line(&format!("event 1 rolled-back {round} ")).await;
        more_answers(&load, 1).await;
    }
    assert_no_failure(&load.stop().await);
    let mut took: Vec<f64> = (2..12).map(|round| took_ms(&service, round)).collect();
    took.sort_unstable_by(f64::total_cmp);
    println!("verification of 4 addresses, in ms, of 10: {took:.2?}");
}

/// From the flip until its verification has passed.
fn took_ms(service: &Service, successor: u64) -> f64 {
    let log = service.server.log();
    let after = |stage: &str| {
        let begin = format!("Stage {{ successor: {successor}, stage: {stage}, after: ");
        let (_, rest) = log.split_once(&begin).unwrap();
        let text = rest.split(' ').next().unwrap();
        match text.strip_suffix("ms") {
            Some(ms) => ms.parse::<f64>().unwrap(),
            None => text.strip_suffix('s').unwrap().parse::<f64>().unwrap() * 1e3,
        }
    };
    after("Baking") - after("Verifying")
}
