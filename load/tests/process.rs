//! What the process harness says about processes is so, and it leaves none behind.

#![expect(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

use std::io::ErrorKind;
use std::process::Command;
use std::time::Duration;

use handover_load::process::{descriptors, is_alive, signal, wait_gone};
use handover_load::{Failure, Kind, Load, Mix, Server, Signal};

const DEADLINE: Duration = Duration::from_secs(20);

fn plain() -> Server {
    Server::spawn(Command::new(env!("CARGO_BIN_EXE_plain"))).unwrap()
}

fn shell(script: &str) -> Server {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    Server::spawn(command).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_server_lets_its_requests_finish_and_refuses_the_next() {
    let mut server = plain();
    let address = server.address("web", DEADLINE).await.unwrap();
    let load = Load::start(address, Mix::none().with(Kind::Fresh, 2));
    load.until_answers(1, 10, DEADLINE).await.unwrap();
    server.signal(Signal::TERM).unwrap();
    assert!(server.exit_status(DEADLINE).await.unwrap().success());
    load.until_failures(3, DEADLINE).await.unwrap();
    let report = load.stop().await;
    assert!(report.failed(Kind::Fresh, Failure::ConnectRefused) >= 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_costs_every_kind_of_client_a_failure() {
    let server = plain();
    let address = server.address("web", DEADLINE).await.unwrap();
    let mix = Kind::ALL
        .into_iter()
        .fold(Mix::none(), |mix, kind| mix.with(kind, 1));
    let load = Load::start(address, mix);
    load.until_answers(1, 20, DEADLINE).await.unwrap();
    server.signal(Signal::KILL).unwrap();
    wait_gone(server.pid(), DEADLINE).await.unwrap();
    load.until_failures(50, DEADLINE).await.unwrap();
    let report = load.stop().await;
    assert!(
        report.kinds.iter().all(|kind| kind.failed() > 0),
        "{report}"
    );
    assert_eq!(report.kinds.len(), Kind::ALL.len(), "{report}");
}

#[tokio::test]
async fn descendants_are_found_and_none_outlives_the_guard() {
    let server = shell("sleep 1000 & (setsid sleep 1000 &) ; echo begun; wait");
    server.wait_for_line("begun", DEADLINE).await.unwrap();
    let live = server.live();
    assert!(live.len() >= 3, "{live:?}");
    assert!(live.contains(&server.pid()));
    drop(server);
    assert!(!live.into_iter().any(is_alive));
}

#[tokio::test]
async fn a_process_in_the_middle_of_its_exec_is_found() {
    let mut command = Command::new("/bin/sh");
    command.env("AGAIN", "exec /bin/sh -c \"$AGAIN\"");
    // The kernel notes where each of them is, and where the last one ends only then.
    command.envs((0..10_000).map(|number| (format!("v{number}"), "")));
    command.args(["-c", "echo begun; eval \"$AGAIN\""]);
    let server = Server::spawn(command).unwrap();
    server.wait_for_line("begun", DEADLINE).await.unwrap();
    for _ in 0..500 {
        assert_eq!(server.live(), [server.pid()]);
    }
}

#[tokio::test]
async fn two_servers_do_not_own_each_other() {
    let (one, other) = (
        shell("echo begun; sleep 1000"),
        shell("echo begun; sleep 1000"),
    );
    one.wait_for_line("begun", DEADLINE).await.unwrap();
    other.wait_for_line("begun", DEADLINE).await.unwrap();
    drop(one);
    assert!(is_alive(other.pid()));
    assert!(other.live().contains(&other.pid()));
}

#[tokio::test]
async fn output_and_errors_are_one_log() {
    let server = shell("echo one; echo two >&2; echo one more; printf last");
    let lines = server.wait_for_lines("one", 2, DEADLINE).await.unwrap();
    assert_eq!(lines, ["one", "one more"]);
    server.wait_all_gone(DEADLINE).await.unwrap();
    assert_eq!(server.log(), "one\ntwo\none more\nlast");
}

#[tokio::test]
async fn waiting_for_a_line_ends_when_nobody_can_write_it() {
    let server = shell("echo no such database");
    let error = server.wait_for_line("ready", DEADLINE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    assert!(error.to_string().contains("no such database"), "{error}");
}

#[tokio::test]
async fn waiting_for_a_line_ends_at_its_deadline() {
    let server = shell("echo warming; sleep 1000");
    server.wait_for_line("warming", DEADLINE).await.unwrap();
    let short = Duration::from_millis(50);
    let error = server.wait_for_line("ready", short).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().contains("warming"), "{error}");
    let error = wait_gone(server.pid(), short).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[tokio::test]
async fn the_exit_status_is_told_as_often_as_asked() {
    let mut server = shell("exit 3");
    for _ in 0..2 {
        let status = server.exit_status(DEADLINE).await.unwrap();
        assert_eq!(status.code(), Some(3));
    }
}

#[tokio::test]
async fn a_process_that_nobody_reaped_is_not_alive() {
    let server = shell("exec sleep 1000");
    assert!(is_alive(server.pid()));
    signal(server.pid(), Signal::KILL).unwrap();
    wait_gone(server.pid(), DEADLINE).await.unwrap();
    assert!(std::fs::exists(format!("/proc/{}", server.pid())).unwrap());
    assert!(!is_alive(server.pid()));
    assert!(server.live().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_descriptors_of_a_server_show_what_it_holds() {
    let server = plain();
    server.address("web", DEADLINE).await.unwrap();
    let table = descriptors(server.pid()).unwrap();
    assert_eq!(table[0], "/dev/null");
    assert!(table[1].starts_with("pipe:") && table[1] == table[2]);
    assert!(table.iter().any(|target| target.starts_with("socket:")));
    assert_eq!(table, descriptors(server.pid()).unwrap());
}
