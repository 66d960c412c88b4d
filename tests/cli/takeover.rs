//! Generations that somebody else has started.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use handover_load::{Server, Signal};

use crate::operated::{Operated, program, run};
use crate::support::{
    DEADLINE, Setup, answer, assert_no_failure, free_address, get, gone, more_answers, signal,
    testd,
};

/// How somebody starts a generation that takes over.
#[derive(Clone, Copy, Debug)]
enum By {
    /// With `handover takeover -- testd`.
    Program,
    /// By the builder's option.
    Builder,
}

/// The command line of somebody who starts another generation of a service, and its room.
fn taker(operated: &Operated, by: By) -> Setup {
    let mut setup = Setup::new()
        .with("TESTD_CONTROL", operated.path.display())
        .with("TESTD_LISTEN", operated.service.web);
    match by {
        By::Builder => setup.with("TESTD_TAKEOVER", 1),
        By::Program => {
            setup.command = through_the_program(&setup, &[testd().to_str().unwrap()]);
            setup
        }
    }
}

fn through_the_program(setup: &Setup, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handover"));
    command.args(["takeover", "--"]).args(arguments);
    for (name, value) in setup.command.get_envs() {
        command.env(name, value.unwrap());
        if name == "TESTD_CONTROL" {
            command.env("HANDOVER_CONTROL", value.unwrap());
        }
    }
    command
}

async fn takes_over_under_load(by: By) {
    let operated = Operated::start(Setup::new()).await;
    let load = operated.service.load(1).await;
    let setup = taker(&operated, by);
    let taker = Server::spawn(setup.command).unwrap();
    let ready = format!("ready 2 pid {}", taker.pid());
    taker.wait_for_line(&ready, DEADLINE).await.unwrap();
    more_answers(&load, 2).await;
    gone(operated.service.pid()).await;
    let status = operated.status().await;
    assert_eq!((status.generation, status.pid), (2, taker.pid()));

    // It is an incumbent like any other.
    operated.run(&["upgrade"]).await.assert_code(0);
    more_answers(&load, 3).await;
    assert_no_failure(&load.stop().await);
    assert_eq!(operated.status().await.generation, 3);
    gone(taker.pid()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_somebody_else_starts_takes_over_under_load_and_nothing_fails() {
    takes_over_under_load(By::Program).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_that_is_to_take_over_does_so_under_load_and_nothing_fails() {
    takes_over_under_load(By::Builder).await;
}

#[tokio::test]
async fn a_builder_that_is_to_take_over_starts_fresh_where_nobody_answers() {
    let setup = Setup::new().with("TESTD_TAKEOVER", 1);
    let operated = Operated::start(setup).await;
    assert_eq!(operated.status().await.generation, 1);
    signal(operated.service.pid(), Signal::KILL);
    gone(operated.service.pid()).await;
    // Nobody listens any more at a path that is still there.
    assert!(operated.path.exists());
    let setup = taker(&operated, By::Builder);
    let fresh = Server::spawn(setup.command).unwrap();
    fresh.wait_for_line("ready 1 pid ", DEADLINE).await.unwrap();
}

#[tokio::test]
async fn in_the_middle_of_an_upgrade_a_takeover_is_refused_with_2_and_told_who_serves() {
    let operated = Operated::start_with_a_bake().await;
    operated.run(&["upgrade", "--no-wait"]).await.assert_code(0);
    operated.phase(1, 2, "baking").await;
    let serves = format!("generation 1 (pid {}) serves", operated.service.pid());
    let ran = operated.run(&["takeover", "--", "/bin/true"]).await;
    ran.assert_code(2);
    ran.assert_says(&["an upgrade is under way (baking)", &serves]);
    // What follows the two hyphens is the program's.
    let ran = operated
        .run(&["--json", "takeover", "--", "/bin/true"])
        .await;
    assert_eq!((ran.code, &ran.json()["kind"]), (2, &"refused".into()));

    let mut refused = Server::spawn(taker(&operated, By::Builder).command).unwrap();
    refused.wait_for_line(&serves, DEADLINE).await.unwrap();
    assert!(!refused.exit_status(DEADLINE).await.unwrap().success());
    operated.service.assert_serving(2).await;
    operated.run(&["rollback"]).await.assert_code(0);
}

#[tokio::test]
async fn a_taker_that_dies_before_it_is_ready_leaves_the_incumbent_serving() {
    for by in [By::Program, By::Builder] {
        let operated = Operated::start(Setup::new()).await;
        let load = operated.service.load(1).await;
        let setup = taker(&operated, by);
        std::fs::write(setup.room.path().join("plan"), "before-ready=exit:7").unwrap();
        let mut taker = Server::spawn(setup.command).unwrap();
        let end = taker.exit_status(DEADLINE).await.unwrap();
        assert_eq!(end.code(), Some(7), "{by:?}");
        operated.service.line("event 1 aborted 2 ").await;
        let ran = operated.run(&["explain"]).await;
        ran.assert_says(&["1 -> 2 aborted (warming)", "generation 1, as before"]);
        more_answers(&load, 1).await;
        assert_no_failure(&load.stop().await);
        operated.run(&["upgrade"]).await.assert_code(0);
        operated.service.assert_serving(3).await;
    }
}

#[tokio::test]
async fn a_taker_that_is_killed_in_its_bake_is_rolled_back() {
    let operated = Operated::start_with_a_bake().await;
    let taker = Server::spawn(taker(&operated, By::Builder).command).unwrap();
    taker.wait_for_line("ready 2 pid ", DEADLINE).await.unwrap();
    operated.phase(1, 2, "baking").await;
    operated.service.assert_serving(2).await;
    signal(taker.pid(), Signal::KILL);
    operated.service.line("event 1 rolled-back 2 ").await;
    operated.service.assert_serving(1).await;
}

#[tokio::test]
async fn a_program_that_never_speaks_is_given_up_and_ended() {
    let operated = Operated::start(Setup::new().with("TESTD_START_MS", 300)).await;
    let setup = taker(&operated, By::Program);
    let command = through_the_program(&setup, &["sleep", "1000"]);
    let mute = Server::spawn(command).unwrap();
    operated.service.line("event 1 aborted 2 ").await;
    gone(mute.pid()).await;
    operated.service.assert_serving(1).await;
}

#[tokio::test]
async fn a_program_that_is_not_there_ends_with_1_and_the_incumbent_serves_on() {
    let operated = Operated::start(Setup::new()).await;
    let ran = operated.run(&["takeover", "--", "/no/such/app"]).await;
    ran.assert_code(1);
    ran.assert_says(&["/no/such/app", "the incumbent serves on"]);
    operated.service.line("event 1 aborted 2 ").await;
    operated.service.assert_serving(1).await;
    let nobody = operated.service.room.path().join("none");
    let mut command = program(&["takeover", "--", "/bin/true"]);
    command.env("HANDOVER_CONTROL", nobody);
    run(command).await.assert_code(1);
}

#[tokio::test]
async fn another_user_does_not_take_over() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can be another user");
        return;
    }
    let operated = Operated::start(Setup::new()).await;
    let room = operated.service.room.path();
    std::fs::set_permissions(room, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&operated.path, PermissionsExt::from_mode(0o666)).unwrap();
    // Copies: where they were built need not be open to everybody.
    let copy = |from: &str, name: &str| {
        let to = room.join(name);
        let mut cp = Command::new("cp");
        assert!(cp.arg(from).arg(&to).status().unwrap().success());
        to
    };
    let handover = copy(env!("CARGO_BIN_EXE_handover"), "handover");
    let mut command = tokio::process::Command::new(handover);
    command.args(["takeover", "--", "/bin/true"]);
    command.env("HANDOVER_CONTROL", &operated.path);
    command.uid(NOBODY).gid(NOBODY).current_dir("/");
    command.stdout(std::process::Stdio::piped());
    command.stderr(std::process::Stdio::piped());
    let ran = run(command).await;
    ran.assert_code(2);
    ran.assert_says(&["user 65534 is neither the service's nor root"]);

    let app = copy(testd().to_str().unwrap(), "testd");
    let setup = taker(&operated, By::Builder);
    let mut command = Command::new(app);
    for (name, value) in setup.command.get_envs() {
        command.env(name, value.unwrap());
    }
    command.uid(NOBODY).gid(NOBODY).current_dir("/");
    let mut refused = Server::spawn(command).unwrap();
    let reason = "user 65534 is neither the service's nor root";
    refused.wait_for_line(reason, DEADLINE).await.unwrap();
    assert!(!refused.exit_status(DEADLINE).await.unwrap().success());
    operated.service.assert_serving(1).await;
    assert_eq!(operated.status().await.upgrade, None);
}

#[tokio::test]
async fn a_process_that_the_service_could_not_end_does_not_take_over() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can be another user");
        return;
    }
    let room = tempfile::tempdir().unwrap();
    std::fs::set_permissions(room.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let (app, control) = (room.path().join("testd"), room.path().join("control"));
    let mut cp = Command::new("cp");
    assert!(cp.arg(testd()).arg(&app).status().unwrap().success());
    let web = free_address();
    let mut command = Command::new(&app);
    command
        .env("TESTD_CONTROL", &control)
        .env("TESTD_LISTEN", web.to_string());
    command.uid(NOBODY).gid(NOBODY).current_dir("/");
    let service = Server::spawn(command).unwrap();
    service
        .wait_for_line("ready 1 pid ", DEADLINE)
        .await
        .unwrap();
    let mut command = program(&["takeover", "--", "/bin/true"]);
    command.env("HANDOVER_CONTROL", &control);
    let ran = run(command).await;
    ran.assert_code(2);
    ran.assert_says(&["could not be ended if it failed"]);
    assert_eq!(get(web, "/").await.unwrap(), answer(1, "hello\n"));
}

/// A user without any right.
const NOBODY: u32 = 65_534;
