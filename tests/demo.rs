//! The demo, as its readers run it: it holds what it promises, and leaves nothing behind.

use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use handover_load::process::{self, Server, Signal};

const DEADLINE: Duration = Duration::from_secs(120);
const SHORT: Duration = Duration::from_secs(20);

/// What a reader of the demo is told, in this order.
const STORY: [&str; 29] = [
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
    "● a canary that begins to answer",
    "v7 gets 10 % of the clients",
    "v7 gets 25 % of the clients",
    "guard of errors: candidate ",
    "aborted after",
    "the guard \"errors\" found the candidate worse; shifting at ",
    "undone at 200",
    "● three good releases",
    "generation 10 serves",
    "● the final stop",
    "Which generation answered when",
    "9 of 9 upgrades ended as they should: 5 committed, 3 aborted, 1 rolled back",
];

#[tokio::test]
async fn the_demo_keeps_every_promise_it_makes() {
    let mut demo = start();
    let status = ended(&mut demo, DEADLINE).await;
    let log = demo.log();
    assert_eq!(status.code(), Some(0), "{log}");
    // Long lines are broken where the width asks for it.
    let words = log.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut rest = words.as_str();
    for line in STORY {
        let found = rest.split_once(line);
        rest = found
            .unwrap_or_else(|| panic!("no {line:?} in time:\n{log}"))
            .1;
    }
    assert!(rest.contains(" 0 failed outside the crash"), "{log}");
    assert!(rest.contains(" the canary v7 undid itself: "), "{log}");
    assert_eq!(rest.matches('✓').count(), 5, "{log}");
    assert!(!log.contains('\x1b'), "not plain lines: {log}");
    let picture = rest.trim_end().rsplit(": ").next().unwrap_or_default();
    let svg = std::fs::read_to_string(root().join(picture)).unwrap_or_default();
    assert!(svg.contains("v5 crashes") && svg.ends_with("</svg>\n"));
}

#[tokio::test]
async fn an_interrupted_demo_leaves_no_server_behind() {
    let mut demo = start();
    let server = first_server(&demo).await;
    demo.signal(Signal::INT).unwrap();
    assert_eq!(ended(&mut demo, SHORT).await.code(), Some(1));
    assert!(demo.log().contains("error: interrupted"));
    // The demo itself has waited for their end.
    assert!(!process::is_alive(server));
}

#[tokio::test]
async fn servers_of_a_killed_demo_end_by_themselves() {
    let mut demo = start();
    let server = first_server(&demo).await;
    demo.signal(Signal::KILL).unwrap();
    ended(&mut demo, SHORT).await;
    process::wait_gone(server, SHORT).await.unwrap();
}

/// The process of the first release, which serves.
async fn first_server(demo: &Server) -> u32 {
    let line = demo.wait_for_line(" serves on ", SHORT).await.unwrap();
    let pid = line.split("pid ").nth(1).unwrap_or_default();
    let pid = pid.trim_end_matches(')').parse().unwrap();
    assert!(process::is_alive(pid));
    pid
}

fn start() -> Server {
    let mut command = Command::new(program());
    command.env("DEMO_PAUSE_MS", "300").current_dir(root());
    Server::spawn(command).unwrap()
}

/// A demo that takes too long ends its own servers when it is asked to, which its guard cannot do for it.
async fn ended(demo: &mut Server, deadline: Duration) -> ExitStatus {
    match demo.exit_status(deadline).await {
        Ok(status) => {
            // Only then its last words have been read.
            demo.wait_all_gone(SHORT).await.unwrap();
            status
        }
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
