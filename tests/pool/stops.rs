//! How pools end.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use handover_load::Signal;
use handover_load::process::{children, signal};

use crate::rig::{NOBODY, Pool, QUICK};
use crate::support::{DEADLINE, eventually, free_address, get_unix};

/// More than two workers answer in the time that a refused handshake has to settle, so that somebody always waits.
const CLIENTS: usize = 12;

#[tokio::test]
async fn a_stop_empties_the_queue_of_a_unix_socket_that_a_foreign_server_accepts_from() {
    let (room, web) = (tempfile::tempdir().unwrap(), free_address());
    let path = room.path().join("app.sock");
    let path = path.to_str().unwrap();
    let listen = format!("app=unix:{path}");
    let flags = ["--listen", &listen];
    let program = ["python3", "-c", HASTY];
    let mut pool = Pool::of(room, web, 2, &[&QUICK[..], &flags].concat(), &program);
    pool.until_ready(2).await;
    let answers = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| tokio::spawn(asking(path.to_owned(), Arc::clone(&answers))))
        .collect();
    let is_busy = || answers.load(Relaxed) >= 3 * CLIENTS;
    eventually("answers", is_busy, true).await;
    pool.signal(Signal::TERM);
    for client in clients {
        // Who comes too late finds nobody; who was let in is answered.
        client.await.unwrap().unwrap();
    }
    println!("{answers:?} answers");
    let ended = pool.server.exit_status(DEADLINE).await.unwrap();
    assert_eq!(ended.code(), Some(0), "{}", pool.server.log());
    assert!(!pool.server.log().contains("waited until the end"));
}

/// Until nobody is there any more.
async fn asking(path: String, answers: Arc<AtomicUsize>) -> io::Result<()> {
    loop {
        match get_unix(&path).await {
            Ok(_) => answers.fetch_add(1, Relaxed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
    }
}

/// Answers slowly, one after another, and leaves behind the one that it has when it is told to.
const HASTY: &str = "
import os, select, signal, socket, time
is_told = False
def tell(*_):
    global is_told
    is_told = True
signal.signal(signal.SIGTERM, tell)
listener = socket.socket(fileno=4)
notify = os.environ['NOTIFY_SOCKET'].replace('@', '\\0')
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', notify)
while not is_told:
    select.select([listener], [], [], 0.02)
    try:
        client = listener.accept()[0]
    except BlockingIOError:
        continue
    client.setblocking(True)
    client.recv(1000)
    time.sleep(0.05)
    client.sendall(b'HTTP/1.1 200 OK\\r\\ncontent-length: 8\\r\\n\\r\\n1 hello\\n')
    client.close()
";

#[tokio::test]
async fn a_worker_that_may_not_be_told_is_named_and_does_not_hold_up_the_stop() {
    let (room, web) = (tempfile::tempdir().unwrap(), free_address());
    // As sudo does it: what nobody has started is root's.
    let become_root = room.path().join("become-root");
    let setpriv = Command::new("sh")
        .args(["-c", "command -v setpriv"])
        .output();
    let setpriv = String::from_utf8(setpriv.unwrap().stdout).unwrap();
    fs::copy(setpriv.trim(), &become_root).unwrap();
    fs::set_permissions(&become_root, fs::Permissions::from_mode(0o4755)).unwrap();
    let handover = env!("CARGO_BIN_EXE_handover");
    let is_root = chown(room.path(), Some(65_534), Some(65_534)).is_ok();
    if !is_root || !succeeds(&[&NOBODY[..], &[handover, "--version"]].concat()) {
        println!("skipped: not root, or nobody may not execute what was built here");
        return;
    }
    let program = [
        become_root.to_str().unwrap(),
        "--reuid=0",
        "--regid=0",
        "--clear-groups",
        "sleep",
        "1000",
    ];
    if !succeeds(&[&NOBODY[..], &program[..4], &["true"]].concat()) {
        println!("skipped: nobody becomes root here");
        return;
    }
    let flags = [&QUICK[..], &["--ready", "300ms", "--stop-within", "300ms"]].concat();
    let mut pool = Pool::under(&NOBODY, room, web, 1, &flags, &program);
    pool.until_ready(1).await;
    let [worker] = children(pool.server.pid())[..] else {
        panic!("{:?}", children(pool.server.pid()));
    };
    pool.signal(Signal::TERM);
    let ended = pool.server.exit_status(DEADLINE).await.unwrap();
    assert_eq!(ended.code(), Some(137), "{}", pool.server.log());
    for said in [
        format!("telling to stop worker 1, process {worker}: Operation not permitted"),
        format!("killing worker 1, process {worker}: Operation not permitted"),
        format!("lives on 5s after it was killed: worker 1, process {worker}"),
    ] {
        pool.line(&said).await;
    }
    signal(worker, Signal::KILL).unwrap();
}

fn succeeds(words: &[&str]) -> bool {
    let ran = Command::new(words[0]).args(&words[1..]).output();
    ran.is_ok_and(|output| output.status.success())
}
