//! Calls that the kernel refuses to a supervisor, most of them by a preloaded library.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use handover_load::process::{children, eventually, is_alive, signal, wait_gone};
use handover_load::{Kind, Load, Mix, Signal};

use crate::rig::{NOBODY, Pool, QUICK, SUPERVISOR};
use crate::shim::{Fault, Mode, Role, Switch};
use crate::support::{DEADLINE, assert_no_failure, free_address, get, more_answers, testd};

/// What a supervisor is started under whose calls of a function fail once the switch is armed, from the first one on.
fn failing(function: &'static str, mode: Mode, errno: i32, room: &Path) -> (Switch, Vec<String>) {
    let fault = Fault {
        function,
        nth: 1,
        mode,
        errno,
        role: Role::Incumbent,
    };
    let mut env = Command::new("env");
    let switch = Switch::install(&fault, room, &mut env);
    let set = env.get_envs().map(|(name, value)| {
        let (name, value) = (name.to_str().unwrap(), value.unwrap().to_str().unwrap());
        format!("{name}={value}")
    });
    let words = ["env".to_owned()].into_iter().chain(set).collect();
    (switch, words)
}

fn words(of: &[String]) -> Vec<&str> {
    of.iter().map(String::as_str).collect()
}

/// Three good workers whose supervisor is started under such a library.
async fn pool_with(function: &'static str, mode: Mode, errno: i32) -> (Pool, Switch) {
    let (room, web) = (tempfile::tempdir().unwrap(), free_address());
    let (switch, prefix) = failing(function, mode, errno, room.path());
    let flags = [&QUICK[..], &["--backoff-max", "50ms"]].concat();
    let (prefix, testd) = (words(&prefix), testd());
    let pool = Pool::under(&prefix, room, web, 3, &flags, &[testd.to_str().unwrap()]);
    pool.until_ready(3).await;
    (pool, switch)
}

/// Nobody else is there, neither alive nor as a zombie.
async fn only_workers(pool: &Pool) {
    let there = || children(pool.server.pid()).len();
    eventually("workers alone", there, 3, DEADLINE)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_worker_that_cannot_be_watched_is_ended_and_another_one_is_started() {
    let (pool, switch) = pool_with("pidfd_open", Mode::Once, libc::EMFILE).await;
    switch.arm();
    signal(pool.pids().await[0], Signal::KILL).unwrap();
    pool.line("it could not be started: Too many open files")
        .await;
    pool.until_rests_on(1, 3).await;
    only_workers(&pool).await;
}

#[tokio::test]
async fn a_next_supervisor_that_cannot_be_watched_in_its_trial_is_ended_and_refused() {
    let (pool, switch) = pool_with("pidfd_open", Mode::Ever, libc::EMFILE).await;
    switch.arm();
    let ran = pool.run(&["upgrade", "--supervisor"]).await;
    ran.assert_code(2);
    ran.assert_says(&["the supervisor stays as it is", "Too many open files"]);
    only_workers(&pool).await;
    switch.disarm();
    pool.run(&["upgrade", "--supervisor"]).await.assert_code(0);
}

#[tokio::test]
async fn sockets_that_may_not_be_taken_back_are_an_error_that_says_what_to_do_and_nobody_notices() {
    let mut pool = Pool::start(3, &QUICK).await;
    let load = Load::start(pool.web, Mix::none().with(Kind::Fresh, 4));
    load.until_answers(1, 50, DEADLINE).await.unwrap();
    let workers = pool.pids().await;
    pool.signal(Signal::KILL);
    wait_gone(pool.server.pid(), DEADLINE).await.unwrap();
    let room = tempfile::tempdir().unwrap();
    let (switch, prefix) = failing("pidfd_getfd", Mode::Ever, libc::EPERM, room.path());
    switch.arm();
    let refused = pool.run_again(&words(&prefix)).await;
    refused.assert_code(1);
    let pid = workers[0].to_string();
    refused.assert_says(&[
        "whose supervisor was killed",
        &pid,
        "Operation not permitted",
        "CAP_SYS_PTRACE",
        "kernel.yama.ptrace_scope",
        "they serve on",
    ]);
    assert!(workers.iter().all(|pid| is_alive(*pid)));
    // Once it may, it does.
    let _killed = pool.restart(3, &QUICK);
    pool.until_ready(3).await;
    for pid in workers {
        wait_gone(pid, DEADLINE).await.unwrap();
    }
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
}

#[tokio::test]
async fn a_user_who_may_not_look_at_the_workers_is_told_whose_they_may_be() {
    let pool = Pool::start(2, &QUICK).await;
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(pool.room.path(), open).unwrap();
    let tried = Command::new(NOBODY[0])
        .args(&NOBODY[1..])
        .arg(pool.file(SUPERVISOR))
        .arg("--version")
        .output();
    if !tried.is_ok_and(|output| output.status.success()) {
        println!("skipped: not root, or nobody may not execute what was built here");
        return;
    }
    let workers = pool.pids().await;
    pool.signal(Signal::KILL);
    wait_gone(pool.server.pid(), DEADLINE).await.unwrap();
    let refused = pool.run_again(&NOBODY).await;
    refused.assert_code(1);
    refused.assert_says(&[
        "in use",
        "processes may not be looked at",
        "workers of a killed supervisor",
        "as root",
    ]);
    assert_eq!(get(pool.web, "/").await.unwrap().text, "hello\n");
    assert!(workers.iter().all(|pid| is_alive(*pid)));
}
