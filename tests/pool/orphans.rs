//! Workers whose supervisor was killed, and what the next start makes of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use handover_load::process::{is_alive, wait_gone};
use handover_load::{Kind, Load, Mix, Server, Signal};
use tempfile::TempDir;

use crate::operated::{program, run};
use crate::rig::{NOBODY, PROGRAM, Pool, QUICK, may_trace};
use crate::support::{
    DEADLINE, Upload, answer, assert_no_failure, free_address, get, more_answers,
};

fn can_trace() -> bool {
    let can = may_trace();
    if !can {
        println!("skipped: this user may not trace its own processes (kernel.yama.ptrace_scope)");
    }
    can
}

/// The supervisor is killed, and its workers are alone.
async fn orphaned(pool: &Pool) -> Vec<u32> {
    let workers = pool.pids().await;
    pool.signal(Signal::KILL);
    wait_gone(pool.server.pid(), DEADLINE).await.unwrap();
    workers
}

#[tokio::test]
async fn a_supervisor_that_is_started_again_takes_the_sockets_back_and_nobody_notices() {
    if !can_trace() {
        return;
    }
    let mut pool = Pool::start(3, &QUICK).await;
    let load = Load::start(
        pool.web,
        Mix::none().with(Kind::Fresh, 8).with(Kind::Slow, 4),
    );
    load.until_answers(1, 50, DEADLINE).await.unwrap();
    let before = orphaned(&pool).await;
    more_answers(&load, 1).await;
    let _killed = pool.restart(3, &QUICK);
    pool.until_ready(3).await;
    pool.line("whose supervisor was killed").await;
    for pid in before {
        wait_gone(pid, DEADLINE).await.unwrap();
    }
    pool.until_rests_on(1, 3).await;
    pool.run(&["upgrade"]).await.assert_code(0);
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
}

#[tokio::test]
async fn workers_of_a_pool_that_was_being_stopped_leave_first_and_the_next_start_is_reached() {
    if !can_trace() {
        return;
    }
    let (room, web) = (tempfile::tempdir().unwrap(), free_address());
    let stubborn = python(&room, STUBBORN);
    let mut pool = Pool::of(room, web, 2, &QUICK, &[&stubborn]);
    pool.until_ready(2).await;
    let workers = pool.pids().await;
    pool.signal(Signal::TERM);
    pool.server
        .wait_for_lines(") stopping; ", 2, DEADLINE)
        .await
        .unwrap();
    pool.signal(Signal::KILL);
    wait_gone(pool.server.pid(), DEADLINE).await.unwrap();
    // It still is theirs.
    let refused = get(web, "/").await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(workers.iter().all(|pid| is_alive(*pid)));
    let _killed = pool.restart(2, &QUICK);
    pool.until_ready(2).await;
    assert!(!workers.iter().any(|pid| is_alive(*pid)));
    assert_eq!(get(web, "/").await.unwrap(), answer(1, "hello\n"));
}

/// Answers all the time, and leaves when it is told to for the second time.
const STUBBORN: &str = "
import os, select, signal, socket
told = 0
def tell(*_):
    global told
    told += 1
    if told == 2:
        os._exit(0)
signal.signal(signal.SIGTERM, tell)
listener = socket.socket(fileno=3)
notify = os.environ['NOTIFY_SOCKET'].replace('@', '\\0')
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', notify)
while True:
    select.select([listener], [], [])
    try:
        client = listener.accept()[0]
    except BlockingIOError:
        continue
    client.setblocking(True)
    client.recv(1000)
    client.sendall(b'HTTP/1.1 200 OK\\r\\ncontent-length: 8\\r\\n\\r\\n1 hello\\n')
    client.close()
";

#[tokio::test]
async fn a_stop_takes_along_those_whom_nobody_has_relieved_yet_and_they_finish_what_they_have() {
    if !can_trace() {
        return;
    }
    let flags = [&QUICK[..], &["--stop-within", "10s"]].concat();
    let mut pool = Pool::start(2, &flags).await;
    let upload = Upload::begin(pool.web).await;
    let workers = orphaned(&pool).await;
    // Nobody comes who could take their places.
    fs::write(pool.file("plan"), "before-ready=hang").unwrap();
    let _killed = pool.restart(2, &flags);
    pool.line("started").await;
    assert!(workers.iter().all(|pid| is_alive(*pid)));
    pool.signal(Signal::TERM);
    pool.line("whose supervisor was killed").await;
    assert_eq!(upload.finish().await.unwrap().generation, 1);
    pool.server.exit_status(DEADLINE).await.unwrap();
    assert!(!workers.iter().any(|pid| is_alive(*pid)));
}

#[tokio::test]
async fn of_two_pools_with_the_same_names_each_gets_its_own_sockets_back() {
    if !can_trace() {
        return;
    }
    let mut pools = [Pool::start(1, &QUICK).await, Pool::start(1, &QUICK).await];
    let mut workers = Vec::new();
    for pool in &pools {
        workers.push(orphaned(pool).await[0]);
    }
    // The workers of the other are found first by one of them.
    for index in [1, 0] {
        let pool = &mut pools[index];
        let _killed = pool.restart(1, &QUICK);
        pool.until_ready(1).await;
        wait_gone(workers[index], DEADLINE).await.unwrap();
        assert!(index == 0 || is_alive(workers[0]));
        assert_eq!(get(pool.web, "/").await.unwrap().text, "hello\n");
    }
}

#[tokio::test]
async fn somebody_elses_process_is_not_believed_to_be_a_worker_whatever_it_says() {
    let (room, web) = (tempfile::tempdir().unwrap(), free_address());
    fs::set_permissions(room.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let script = python(&room, IMPOSTOR);
    let mut impostor = Command::new(NOBODY[0]);
    impostor.args(&NOBODY[1..]).args(["sh", "-c"]);
    impostor.arg("LISTEN_PID=$$ exec \"$0\" \"$@\"").arg(script);
    impostor.args([web.ip().to_string(), web.port().to_string()]);
    impostor
        .env("HANDOVER_WORKER", "1:1")
        .env("LISTEN_FDNAMES", "web");
    let impostor = Server::spawn(impostor).unwrap();
    if impostor.wait_for_line("listens", DEADLINE).await.is_err() {
        println!("skipped: only root can be two users\n{}", impostor.log());
        return;
    }
    let listen = format!("web={web}");
    let refused = run(program(&["run", "--listen", &listen, "--", "true"])).await;
    refused.assert_code(1);
    let pid = format!("[{}]", impostor.pid());
    refused.assert_says(&["in use", &pid, "are another user's", "stop them first"]);
    assert!(is_alive(impostor.pid()));
}

const IMPOSTOR: &str = "
import select, socket, sys
listener = socket.socket()
listener.bind((sys.argv[1], int(sys.argv[2])))
listener.listen()
print('listens', flush=True)
select.select([], [], [])
";

/// A program in the place of a testd.
fn python(room: &TempDir, text: &str) -> String {
    let path = room.path().join(PROGRAM);
    write(&path, &format!("#!/usr/bin/env python3\n{text}"));
    path.to_str().unwrap().to_owned()
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
