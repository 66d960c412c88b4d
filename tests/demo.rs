//! The demo, as its readers run it: it holds what it promises, and leaves nothing behind.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use handover_load::process::{self, Server, Signal};

const DEADLINE: Duration = Duration::from_secs(120);
const SHORT: Duration = Duration::from_secs(20);

/// What a reader of the demo is told, in this order.
const STORY: [&str; 22] = [
    "v1 serves on 127.0.0.1",
    "● a good release",
    "committed after",
    "● a release that never gets ready",
    "aborted after",
    "did not get ready in time; the incumbent serves on",
    "waiting for the database",
    "● a good release",
    "committed after",
    "● a release that crashes",
    "generation 5 crashes and takes",
    "rolled back after",
    "signal: 6 (SIGABRT)",
    "● a release that does not even start",
    "aborted after",
    "exit status: 1",
    "unknown key `worker_treads`",
    "● three good releases",
    "generation 9 serves",
    "● the final stop",
    "Which generation answered when",
    "8 of 8 upgrades ended as they should: 5 committed, 2 aborted, 1 rolled back",
];

#[tokio::test]
async fn the_demo_keeps_every_promise_it_makes() {
    let mut demo = start();
    let status = ended(&mut demo, DEADLINE).await;
    let log = demo.log();
    assert_eq!(status.code(), Some(0), "{log}");
    let mut rest = log.as_str();
    for line in STORY {
        let found = rest.split_once(line);
        rest = found
            .unwrap_or_else(|| panic!("no {line:?} in time:\n{log}"))
            .1;
    }
    assert!(rest.contains(" 0 failed outside the crash"), "{log}");
    assert_eq!(rest.matches('✓').count(), 4, "{log}");
    assert!(!log.contains(['✗', '\x1b']) || !rest.contains('✗'), "{log}");
    let picture = rest.trim_end().rsplit(": ").next().unwrap_or_default();
    let svg = std::fs::read_to_string(root().join(picture)).unwrap_or_default();
    assert!(svg.contains("v5 crashes") && svg.ends_with("</svg>\n"));
}

#[tokio::test]
async fn an_interrupted_demo_leaves_no_server_behind() {
    ends_its_servers_with(Signal::INT).await;
}

#[tokio::test]
async fn servers_of_a_killed_demo_end_by_themselves() {
    ends_its_servers_with(Signal::KILL).await;
}

async fn ends_its_servers_with(signal: Signal) {
    let mut demo = start();
    let line = demo.wait_for_line(" serves on ", SHORT).await.unwrap();
    let words = line.split(' ');
    let address: SocketAddr = words.filter_map(|word| word.parse().ok()).next().unwrap();
    let pid = line.split("pid ").nth(1).unwrap().trim_end_matches(')');
    let pid: u32 = pid.parse().unwrap();
    assert!(process::is_alive(pid) && TcpStream::connect(address).is_ok());
    demo.signal(signal).unwrap();
    assert!(!ended(&mut demo, SHORT).await.success());
    process::wait_gone(pid, SHORT).await.unwrap();
    assert!(TcpStream::connect(address).is_err());
}

fn start() -> Server {
    let mut command = Command::new(program());
    command.env("DEMO_PAUSE_MS", "300").current_dir(root());
    Server::spawn(command).unwrap()
}

/// A demo that takes too long ends its own servers when it is asked to, which its guard cannot do for it.
async fn ended(demo: &mut Server, deadline: Duration) -> ExitStatus {
    match demo.exit_status(deadline).await {
        Ok(status) => status,
        Err(error) => {
            demo.signal(Signal::TERM).unwrap();
            demo.exit_status(SHORT).await.unwrap();
            panic!("{error}");
        }
    }
}

/// Cargo builds the examples beside the tests.
fn program() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let profile = here.ancestors().nth(2).unwrap();
    let program = profile.join("examples/demo");
    assert!(program.exists(), "cargo build --example demo comes first");
    program
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
