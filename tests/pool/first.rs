//! A supervisor as the first process of a container, which is one of a PID namespace. That needs root and unshare(1); without
//! them the test says that it was skipped. And what a supervisor passes on: signals, and the way its workers end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use handover_load::process::{children, eventually, signal};
use handover_load::{Kind, Load, Mix, Signal};
use tempfile::TempDir;

use crate::rig::{Pool, QUICK, SUPERVISOR};
use crate::support::{DEADLINE, assert_no_failure, free_address, more_answers, testd};

/// Another PID namespace, whose first process ends with whoever made it.
pub(crate) const FIRST: [&str; 5] = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];

pub(crate) fn can_unshare() -> bool {
    let tried = Command::new(FIRST[0])
        .args(&FIRST[1..])
        .arg("true")
        .output();
    let can = tried.is_ok_and(|output| output.status.success());
    if !can {
        println!("skipped: no PID namespace without root");
    }
    can
}

fn under(prefix: &[&str], room: TempDir, flags: &[&str], program: &[&str]) -> Pool {
    Pool::under(prefix, room, free_address(), 2, flags, program)
}

#[tokio::test]
async fn the_first_process_of_a_namespace_collects_orphans_and_ends_with_0_after_a_clean_stop() {
    if !can_unshare() {
        return;
    }
    let room = tempfile::tempdir().unwrap();
    // Each worker leaves two behind that end when it is told to stop waiting for them.
    let script = format!(
        "(sleep 0.2 & sleep 0.1 & echo two >>{}/left) & wait; exec {}",
        room.path().display(),
        testd().display()
    );
    let mut pool = under(&FIRST, room, &QUICK, &["/bin/sh", "-c", &script]);
    pool.until_ready(2).await;
    let [first] = children(pool.server.pid())[..] else {
        panic!("{:?}", children(pool.server.pid()));
    };
    assert_eq!(pool.status().await.pid, 1);
    let load = Load::start(
        pool.web,
        Mix::none().with(Kind::KeepAlive, 4).with(Kind::Slow, 4),
    );
    load.until_answers(1, 50, DEADLINE).await.unwrap();
    for _ in 0..3 {
        let (code, reply) = pool.json(&["upgrade"]).await;
        assert_eq!(code, 0, "{reply}");
        pool.run(&["upgrade", "--supervisor"]).await.assert_code(0);
    }
    let left = fs::read_to_string(pool.file("left")).unwrap();
    assert!(left.lines().count() >= 8, "{left}");
    eventually(
        "nobody but two workers",
        || children(first).len(),
        2,
        DEADLINE,
    )
    .await
    .unwrap();
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
    signal(first, Signal::TERM).unwrap();
    let ended = pool.server.exit_status(DEADLINE).await.unwrap();
    assert_eq!(ended.code(), Some(0), "{}", pool.server.log());
}

#[tokio::test]
async fn an_orphan_that_ends_while_the_supervisor_changes_is_collected_all_the_same() {
    if !can_unshare() {
        return;
    }
    let room = tempfile::tempdir().unwrap();
    // Whoever is started by a shell that ends becomes the first process's.
    let script = format!(
        "cd {}; (sleep 1000 & echo $! >orphan-$$); exec {}",
        room.path().display(),
        testd().display()
    );
    let pool = under(&FIRST, room, &QUICK, &["/bin/sh", "-c", &script]);
    pool.until_ready(2).await;
    let [first] = children(pool.server.pid())[..] else {
        panic!("{:?}", children(pool.server.pid()));
    };
    assert_eq!(children(first).len(), 4);
    // In the process itself, before it is a supervisor again, and without a child of its own that it would wait for.
    let end = format!(
        "#!/bin/sh\ncase $HANDOVER_SUPERVISOR in next:*) for it in {0}/orphan-*; do read pid <$it; kill -KILL $pid; done ;; esac\nexec {1} \"$@\"\n",
        pool.room.path().display(),
        env!("CARGO_BIN_EXE_handover"),
    );
    let draft = pool.file("draft-supervisor");
    fs::write(&draft, end).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(draft, pool.file(SUPERVISOR)).unwrap();
    pool.run(&["upgrade", "--supervisor"]).await.assert_code(0);
    assert_eq!(pool.pool().await.supervisor, 2);
    let left = || children(first).len();
    eventually("nobody but two workers", left, 2, DEADLINE)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_supervisor_ends_with_the_code_of_a_worker_that_did_not_stop_well() {
    let is_first = can_unshare();
    for (on_stop, flags, code) in [
        ("exit 0", &["--ready", "50ms"][..], 0),
        ("exit 7", &["--ready", "50ms"], 7),
        (":", &["--ready", "50ms", "--stop-within", "200ms"], 137),
    ] {
        let prefixes = [&[][..], &FIRST]
            .into_iter()
            .take(1 + usize::from(is_first));
        for prefix in prefixes {
            let script = format!("trap '{on_stop}' TERM; while :; do sleep 0.05; done");
            let room = tempfile::tempdir().unwrap();
            let program = ["/bin/sh", "-c", &script];
            let mut pool = under(prefix, room, &[&QUICK[..], flags].concat(), &program);
            pool.until_ready(2).await;
            pool.run(&["stop"]).await.assert_code(0);
            let ended = pool.server.exit_status(DEADLINE).await.unwrap();
            assert_eq!(ended.code(), Some(code), "{on_stop}\n{}", pool.server.log());
        }
    }
}

#[tokio::test]
async fn a_signal_that_is_forwarded_reaches_every_worker_and_no_other_does() {
    let room = tempfile::tempdir().unwrap();
    let script = format!(
        "trap 'echo usr1 >>{0}/got' USR1; trap 'echo winch >>{0}/got' WINCH; while :; do sleep 0.02; done",
        room.path().display()
    );
    let flags = [
        "--ready",
        "50ms",
        "--forward",
        "USR1,WINCH",
        "--stop-within",
        "1s",
    ];
    let program = ["/bin/sh", "-c", &script];
    let pool = under(&[], room, &[&QUICK[..], &flags].concat(), &program);
    pool.until_ready(2).await;
    // The next supervisor passes them on too.
    pool.run(&["upgrade", "--supervisor"]).await.assert_code(0);
    let got = || {
        let mut got: Vec<String> = fs::read_to_string(pool.file("got"))
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect();
        got.sort();
        got
    };
    pool.signal(Signal::USR1);
    eventually("USR1 twice", got, vec!["usr1".to_owned(); 2], DEADLINE)
        .await
        .unwrap();
    signal(pool.server.pid(), Signal::WINCH).unwrap();
    let all = ["usr1", "usr1", "winch", "winch"].map(str::to_owned);
    eventually("WINCH as well", got, all.to_vec(), DEADLINE)
        .await
        .unwrap();
}
