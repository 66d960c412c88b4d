//! After a flip and a rollback it is found out who accepts.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use handover_load::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use crate::support::{DEADLINE, Service, Setup, assert_no_failure, more_answers, signal};

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

#[tokio::test]
async fn a_client_with_the_address_of_one_that_has_asked_is_the_applications() {
    let service = Setup::new().with("TESTD_BAKE_MS", LONG_MS).start().await;
    signal(service.pid(), Signal::HUP);
    service.line("Stage { successor: 2, stage: Baking").await;
    signal(service.pid(), Signal::USR2);
    service.line("event 1 rolled-back 2 ").await;
    let ports = ports_of_those_that_were_closed_by(service.web);
    assert!(!ports.is_empty(), "nobody has asked");
    for port in ports {
        match timeout(DEADLINE, ask_from(port, service.web))
            .await
            .unwrap()
        {
            Ok(answer) => assert!(answer.starts_with("HTTP/1.1 200 "), "{port}: {answer:?}"),
            // Somebody else on this machine has it by now.
            Err(error) => assert_eq!(error.kind(), ErrorKind::AddrInUse, "{port}: {error}"),
        }
    }
}

async fn ask_from(port: u16, server: SocketAddr) -> std::io::Result<String> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((server.ip(), port).into())?;
    let mut stream = socket.connect(server).await?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: it\r\nconnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Peers of this address whose connections the server has closed first: proc_net_tcp.txt of the kernel, where TIME_WAIT
/// is 06.
fn ports_of_those_that_were_closed_by(server: SocketAddr) -> Vec<u16> {
    let IpAddr::V4(ip) = server.ip() else {
        panic!("{server} is not in this table");
    };
    let ip = u32::from_ne_bytes(ip.octets());
    let own = format!("{ip:08X}:{:04X}", server.port());
    let connections = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_closed = fields[1] == own && fields[3] == "06";
        let (_, port) = fields[2].split_once(':').filter(|_| is_closed)?;
        u16::from_str_radix(port, 16).ok()
    };
    connections.lines().skip(1).filter_map(port).collect()
}
