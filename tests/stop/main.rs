//! The end of a service in the middle of a flood of connections: nobody who has connected is reset.
//!
//! The same flood against a server that closes its listener shows that these tests can fail.

#![expect(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

mod flood;

use std::fmt::Display;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use handover_load::{Server, Signal};
use socket2::SockAddr;
use tempfile::TempDir;
use tokio::sync::Mutex;

use self::flood::{Ack, CLIENTS, DEADLINE, Flood, Outcome};

/// Stops of each kind; four kinds of TCP make 40.
const STOPS: usize = 10;
/// Answers before the stop, so that every client is at work.
const WARM: u64 = 5 * CLIENTS as u64;
/// A user without any right.
const NOBODY: u32 = 65_534;

const KINDS: [(&str, Ack); 4] = [
    ("127.0.0.1:0", Ack::AtOnce),
    ("127.0.0.1:0", Ack::Late),
    ("[::1]:0", Ack::AtOnce),
    ("[::1]:0", Ack::Late),
];

/// A flood takes the whole machine.
static ALONE: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn a_final_stop_resets_no_tcp_connection_where_a_plain_close_does() {
    let _alone = ALONE.lock().await;
    for (address, ack) in KINDS.into_iter().filter(|(address, _)| exists(address)) {
        let stopped = stops(STOPS, || testd(&program()), address, ack).await;
        println!("final stop, {address}, last ACK {ack:?}: {stopped:?}");
        assert_none_lost(stopped);
        let closed = stops(1, || bare(&program()), address, ack).await;
        println!("plain close, {address}, last ACK {ack:?}: {closed:?}");
        assert!(closed.lost > 0, "the flood loses nothing by a plain close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_final_stop_resets_no_tcp_connection_as_an_unprivileged_user() {
    let _alone = ALONE.lock().await;
    if !rustix::process::geteuid().is_root() {
        println!("skipped: not root, so the other test is unprivileged already");
        return;
    }
    let room = room_for_everybody();
    let program = room.path().join("testd");
    fs::copy(self::program(), &program).unwrap();
    let unprivileged = || {
        let mut command = testd(&program);
        command.uid(NOBODY).gid(NOBODY);
        command
    };
    for (address, ack) in KINDS.into_iter().filter(|(address, _)| exists(address)) {
        let stopped = stops(STOPS / 2, unprivileged, address, ack).await;
        println!("final stop as nobody, {address}, last ACK {ack:?}: {stopped:?}");
        assert_none_lost(stopped);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_final_stop_resets_no_unix_connection_where_a_plain_close_does() {
    let _alone = ALONE.lock().await;
    let (mut stopped, mut closed) = (Outcome::default(), Outcome::default());
    for stop in 0..40 {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("socket").display().to_string();
        // A path can be unlinked, an abstract name cannot.
        let (name, target) = match stop % 2 {
            0 => (path.clone(), SockAddr::unix(&path).unwrap()),
            _ => (
                format!("@{path}"),
                SockAddr::unix(format!("\0{path}")).unwrap(),
            ),
        };
        let mut command = testd(&program());
        command.env("TESTD_UNIX", name);
        add(
            &mut stopped,
            stop_under_flood(command, Some(target), Ack::AtOnce).await,
        );
    }
    println!("final stop, Unix: {stopped:?}");
    assert_none_lost(stopped);
    for _ in 0..3 {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("socket");
        let mut command = bare(&program());
        command.env("TESTD_UNIX", &path);
        let target = SockAddr::unix(&path).unwrap();
        add(
            &mut closed,
            stop_under_flood(command, Some(target), Ack::AtOnce).await,
        );
    }
    println!("plain close, Unix: {closed:?}");
    assert!(closed.lost > 0, "the flood loses nothing by a plain close");
}

async fn stops(count: usize, server: impl Fn() -> Command, address: &str, ack: Ack) -> Outcome {
    let mut sum = Outcome::default();
    for _ in 0..count {
        let mut command = server();
        command.env("TESTD_LISTEN", address);
        add(&mut sum, stop_under_flood(command, None, ack).await);
    }
    sum
}

/// One server's end, seen by all of its clients. Without a target they connect to its TCP socket.
async fn stop_under_flood(command: Command, target: Option<SockAddr>, ack: Ack) -> Outcome {
    let mut server = Server::spawn(command).unwrap();
    server.wait_for_line("ready 1 ", DEADLINE).await.unwrap();
    let web = server.address("web", DEADLINE).await.unwrap();
    let flood = Flood::begin(&target.unwrap_or_else(|| web.into()), ack);
    flood.answered(WARM).await;
    server.signal(Signal::TERM).unwrap();
    let outcome = tokio::task::spawn_blocking(|| flood.end()).await.unwrap();
    let status = server.exit_status(DEADLINE).await.unwrap();
    assert!(status.success(), "{status}");
    outcome
}

fn assert_none_lost(outcome: Outcome) {
    assert_eq!((outcome.lost, outcome.other), (0, 0), "{outcome:?}");
}

fn add(sum: &mut Outcome, one: Outcome) {
    sum.answered += one.answered;
    sum.lost += one.lost;
    sum.other += one.other;
}

/// Whether this machine has such an address.
fn exists(address: impl std::net::ToSocketAddrs + Display) -> bool {
    let found = std::net::TcpListener::bind(&address).is_ok();
    if !found {
        println!("skipped: {address} cannot be bound here");
    }
    found
}

fn testd(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("TESTD_QUIET", "1");
    command
}

fn bare(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("TESTD_BARE", "1");
    command
}

fn room_for_everybody() -> TempDir {
    let room = tempfile::tempdir().unwrap();
    fs::set_permissions(room.path(), fs::Permissions::from_mode(0o755)).unwrap();
    room
}

/// The example, which cargo builds beside the tests.
fn program() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let profile = here.parent().and_then(Path::parent).unwrap();
    let testd = profile.join("examples/testd");
    let build = "build it first: cargo build --features axum --example testd";
    assert!(testd.exists(), "{build}");
    testd
}
