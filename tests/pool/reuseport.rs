//! Workers with sockets of their own on one port.

use std::collections::BTreeSet;
use std::fs;

use handover_load::process::{eventually, signal};
use handover_load::{Kind, Load, Mix, Signal};

use crate::rig::{Pool, QUICK};
use crate::support::{
    DEADLINE, assert_no_failure, assert_only_cut_off, free_address, freeze, get, more_answers,
};

fn mix() -> Mix {
    Mix::none()
        .with(Kind::Fresh, 12)
        .with(Kind::KeepAlive, 4)
        .with(Kind::Slow, 4)
}

#[tokio::test]
async fn ten_rolling_updates_of_workers_with_sockets_of_their_own_lose_nothing() {
    let pool = Pool::start(4, &[&QUICK[..], &["--reuseport"]].concat()).await;
    let load = Load::start(pool.web, mix());
    load.until_answers(1, 200, DEADLINE).await.unwrap();
    for to in 2..12 {
        let (code, reply) = pool.json(&["upgrade"]).await;
        assert_eq!(code, 0, "{reply}");
        pool.until_rests_on(to, 4).await;
        pool.run(&["upgrade", "--supervisor"]).await.assert_code(0);
    }
    assert_eq!(pool.fewest_ready(), 4);
    more_answers(&load, 1).await;
    let report = load.stop().await;
    println!("{report}");
    assert_no_failure(&report);
    let inodes = listening(&pool).await;
    assert_eq!(inodes.len(), 4, "{inodes:?}");
}

#[tokio::test]
async fn workers_with_sockets_of_their_own_that_are_killed_cost_what_they_had_in_flight() {
    let flags = ["--reuseport", "--backoff-max", "50ms"];
    let pool = Pool::start(4, &[&QUICK[..], &flags].concat()).await;
    let load = Load::start(pool.web, mix());
    load.until_answers(1, 200, DEADLINE).await.unwrap();
    for round in 0..12 {
        let pids = pool.pids().await;
        signal(pids[round % pids.len()], Signal::KILL).unwrap();
        pool.until_rests_on(1, 4).await;
        get(pool.web, "/").await.unwrap();
    }
    more_answers(&load, 1).await;
    let report = load.stop().await;
    println!("{report}");
    assert_only_cut_off(&report);
    assert!(report.failures() <= 20 * 12, "{report}");
}

#[tokio::test]
async fn who_waits_for_a_worker_that_is_killed_is_served_by_the_next_in_its_slot() {
    let flags = ["--reuseport", "--backoff-max", "50ms"];
    let pool = Pool::start(4, &[&QUICK[..], &flags].concat()).await;
    for _ in 0..4 {
        let frozen = pool.pids().await[0];
        let socket = listening_socket(frozen);
        freeze(frozen).await;
        let web = pool.web;
        // By the hash of its address each of them comes to one of the four.
        let asked: Vec<_> = (0..40).map(|_| tokio::spawn(get(web, "/"))).collect();
        eventually("somebody waits", || waits_at(&socket), true, DEADLINE)
            .await
            .unwrap();
        signal(frozen, Signal::KILL).unwrap();
        for answer in asked {
            assert_eq!(answer.await.unwrap().unwrap().text, "hello\n");
        }
        pool.until_rests_on(1, 4).await;
    }
}

#[tokio::test]
async fn who_waits_for_a_worker_that_is_one_too_many_is_served_before_it_is_told_to_leave() {
    let (room, web) = (tempfile::tempdir().unwrap(), free_address());
    let flags = [&QUICK[..], &["--reuseport", "--ready", "50ms"]].concat();
    let pool = Pool::of(room, web, 3, &flags, &["python3", "-c", SLOW_TO_ACCEPT]);
    pool.until_ready(3).await;
    // Twelve at a time for workers that take one at a time, so that some wait wherever one leaves.
    let load = Load::start(web, Mix::none().with(Kind::Fresh, 12));
    load.until_answers(1, 50, DEADLINE).await.unwrap();
    for wanted in [2, 1] {
        pool.run(&["scale", &wanted.to_string()])
            .await
            .assert_code(0);
        pool.until_rests_on(1, wanted).await;
    }
    more_answers(&load, 1).await;
    let report = load.stop().await;
    println!("{report}");
    assert_no_failure(&report);
}

/// Serves one connection after another, and leaves after the one that it has when it is told to.
const SLOW_TO_ACCEPT: &str = r#"
import signal, socket, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
listener = socket.socket(fileno=3)
listener.settimeout(0.05)
while not told:
    try:
        client, _ = listener.accept()
    except TimeoutError:
        continue
    client.settimeout(5)
    while b"\r\n\r\n" not in client.recv(4096):
        pass
    time.sleep(0.03)
    client.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 8\r\nx-generation: 1\r\nconnection: close\r\n\r\n1 hello\n")
    client.close()
"#;

/// The sockets of all workers.
async fn listening(pool: &Pool) -> BTreeSet<String> {
    let pids = pool.pids().await;
    pids.into_iter().map(listening_socket).collect()
}

/// What descriptor 3 leads to, as proc_pid_fd(5) has it.
fn listening_socket(pid: u32) -> String {
    let link = fs::read_link(format!("/proc/{pid}/fd/3")).unwrap();
    link.display().to_string()
}

/// Whether connections are in the queue of a listening socket (proc_net(5), tcp: the number of them is in `rx_queue`).
fn waits_at(socket: &str) -> bool {
    let inode = socket.trim_matches(|letter: char| !letter.is_ascii_digit());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().map(|row| row.split_whitespace().collect());
    let mut rows = rows.filter(|row: &Vec<&str>| row.get(9) == Some(&inode));
    let queues = rows.next().unwrap()[4];
    let (_, waiting) = queues.split_once(':').unwrap();
    u32::from_str_radix(waiting, 16).unwrap() > 0
}
