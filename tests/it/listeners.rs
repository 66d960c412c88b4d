//! Sockets of every kind over upgrades: kept, moved, given up.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use handover_load::Signal;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::support::{
    DEADLINE, Setup, answer, assert_no_failure, free_address, get, get_unix, gone, more_answers,
    signal,
};

const LONG_MS: u32 = 60_000;

async fn refused(address: SocketAddr) -> bool {
    let error = get(address, "/").await.unwrap_err();
    error.kind() == ErrorKind::ConnectionRefused
}

#[tokio::test]
async fn a_port_that_the_kernel_chose_is_inherited_by_name() {
    let setup = Setup::new().with("TESTD_LISTEN", "127.0.0.1:0");
    let service = setup.with("TESTD_SIDE", "127.0.0.1:0").start().await;
    let side = service.server.address("side", DEADLINE).await.unwrap();
    service.upgrade(1, 2).await;
    for (name, address) in [("web", service.web), ("side", side)] {
        let pattern = format!("listening {name} {address}");
        let lines = service.server.wait_for_lines(&pattern, 2, DEADLINE).await;
        assert_eq!(lines.unwrap().len(), 2);
        assert_eq!(get(address, "/").await.unwrap(), answer(2, "hello\n"));
    }
}

#[tokio::test]
async fn an_address_that_changed_is_bound_anew_and_the_former_one_closed_at_the_commit() {
    let service = Setup::new().with("TESTD_BAKE_MS", 1000).start().await;
    let (former, changed) = (service.web, free_address());
    service.plan(&format!("listen={changed}"));
    let load = service.load(1).await;
    signal(service.pid(), Signal::HUP);
    service.line("event 1 phase 2 baking").await;
    assert_eq!(get(changed, "/").await.unwrap(), answer(2, "hello\n"));
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
    service.line("event 1 committed 2 ").await;
    gone(service.pid()).await;
    assert!(refused(former).await);
    assert_eq!(get(changed, "/").await.unwrap(), answer(2, "hello\n"));
}

#[tokio::test]
async fn a_socket_that_nobody_claims_is_served_until_the_commit_and_refused_after_it() {
    let side = free_address();
    let setup = Setup::new().with("TESTD_SIDE", side).standby();
    let service = setup.with("TESTD_BAKE_MS", 1000).start().await;
    service.plan("side=none");
    signal(service.pid(), Signal::HUP);
    service.line("event 1 phase 2 standby").await;
    assert_eq!(get(side, "/").await.unwrap(), answer(1, "hello\n"));
    service.get("/flip").await;
    service.line("event 1 phase 2 baking").await;
    service.assert_serving(2).await;
    assert_eq!(get(side, "/").await.unwrap(), answer(1, "hello\n"));
    service.line("event 1 committed 2 ").await;
    gone(service.pid()).await;
    assert!(refused(side).await);
    service.assert_serving(2).await;
}

#[tokio::test]
async fn a_socket_that_nobody_claimed_serves_on_after_a_rollback() {
    let side = free_address();
    let setup = Setup::new().with("TESTD_SIDE", side);
    let service = setup.with("TESTD_BAKE_MS", LONG_MS).start().await;
    service.plan("side=none");
    signal(service.pid(), Signal::HUP);
    service.line("event 1 phase 2 baking").await;
    signal(service.ready(2).await, Signal::KILL);
    service.line("event 1 rolled-back 2 ").await;
    assert_eq!(get(side, "/").await.unwrap(), answer(1, "hello\n"));
    service.assert_serving(1).await;
}

#[tokio::test]
async fn a_socket_that_a_successor_adds_is_served_by_it_and_passed_on() {
    let side = free_address();
    let service = Setup::new().with("TESTD_SIDE", side);
    let room = service.room.path().join("plan");
    std::fs::write(room, "side=none").unwrap();
    let service = service.start().await;
    assert!(refused(side).await);
    service.heal();
    service.upgrade(1, 2).await;
    assert_eq!(get(side, "/").await.unwrap(), answer(2, "hello\n"));
    service.upgrade(2, 3).await;
    assert_eq!(get(side, "/").await.unwrap(), answer(3, "hello\n"));
}

#[tokio::test]
async fn unix_sockets_are_served_over_upgrades_and_their_path_goes_at_the_stop() {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("socket").display().to_string();
    let hidden = format!("@{path}");
    let setup = Setup::new().with("TESTD_UNIX", format!("{path},{hidden}"));
    let service = setup.start().await;
    for generation in [1, 2, 3] {
        if generation > 1 {
            let before = service.ready(generation - 1).await;
            service.upgrade(generation - 1, generation).await;
            gone(before).await;
        }
        for name in [&path, &hidden] {
            let answered = get_unix(name).await.unwrap();
            assert_eq!(answered, answer(generation, "hello\n"), "{name}");
        }
    }
    signal(service.ready(3).await, Signal::TERM);
    service.server.wait_all_gone(DEADLINE).await.unwrap();
    assert!(!Path::new(&path).exists());
    assert!(get_unix(&hidden).await.is_err());
}

#[tokio::test]
async fn a_path_stays_when_a_successor_fails_or_is_rolled_back() {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("socket").display().to_string();
    let setup = Setup::new().with("TESTD_UNIX", &path);
    let service = setup.with("TESTD_BAKE_MS", LONG_MS).start().await;
    service.plan("before-ready=exit:1");
    signal(service.pid(), Signal::HUP);
    service.line("event 1 aborted 2 ").await;
    assert_eq!(get_unix(&path).await.unwrap(), answer(1, "hello\n"));
    service.heal();
    signal(service.pid(), Signal::HUP);
    service.line("event 1 phase 3 baking").await;
    assert_eq!(get_unix(&path).await.unwrap(), answer(3, "hello\n"));
    signal(service.ready(3).await, Signal::TERM);
    service.line("event 1 rolled-back 3 ").await;
    gone(service.ready(3).await).await;
    assert_eq!(get_unix(&path).await.unwrap(), answer(1, "hello\n"));
}

#[tokio::test]
async fn every_datagram_is_answered_over_an_upgrade() {
    let setup = Setup::new().with("TESTD_UDP", free_address());
    let service = setup.start().await;
    let udp = service.server.address("udp", DEADLINE).await.unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(udp).await.unwrap();
    assert_eq!(ask(&client, 0).await, (1, 0));

    signal(service.pid(), Signal::HUP);
    let (mut number, mut answered) = (0, 1);
    while answered < 2 {
        number += 1;
        let (generation, echoed) = ask(&client, number).await;
        assert_eq!(echoed, number);
        assert!(generation >= answered, "{generation} after {answered}");
        answered = generation;
    }
    service.line("event 1 committed 2 ").await;
    gone(service.pid()).await;
    assert_eq!(ask(&client, 0).await, (2, 0));
}

/// Sends one datagram, once, and waits for its echo: the generation and the number.
async fn ask(client: &UdpSocket, number: u64) -> (u64, u64) {
    client.send(number.to_string().as_bytes()).await.unwrap();
    let mut echo = [0; 64];
    let length = timeout(Duration::from_secs(10), client.recv(&mut echo)).await;
    let text = String::from_utf8(echo[..length.unwrap().unwrap()].to_vec()).unwrap();
    let (generation, number) = text.split_once(' ').unwrap();
    (generation.parse().unwrap(), number.parse().unwrap())
}
