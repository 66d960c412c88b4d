//! Calls that the kernel refuses to a supervisor, most of them by a preloaded library.

use std::path::Path;
use std::process::Command;

use handover_load::Signal;
use handover_load::process::{children, eventually, signal};

use crate::rig::{Pool, QUICK};
use crate::shim::{Fault, Mode, Role, Switch};
use crate::support::{DEADLINE, free_address, testd};

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
