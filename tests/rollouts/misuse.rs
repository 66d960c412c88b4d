//! Clients of the control socket that nobody wants, in the middle of a canary.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::loaded::{Loaded, canary_at};
use crate::operated::{Operated, ended, rest, run};
use crate::support::{Setup, assert_no_failure, more_answers};

/// A user without any right.
const NOBODY: u32 = 65_534;

#[tokio::test]
async fn in_the_middle_of_a_canary_nobody_at_the_control_socket_holds_it_up_or_changes_it() {
    let loaded = Loaded::start(Setup::new()).await;
    let operated = &loaded.operated;
    let canary = loaded.begin(&canary_at("50"));
    more_answers(&loaded.load, 2).await;
    let before = operated.status().await.upgrade.unwrap();

    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(operated.connect().await);
    }
    for garbage in [
        &b"\n"[..],
        b"GET / HTTP/1.1\r\n",
        b"\0\xff\xfe\n",
        b"{\"request\":\"share\",\"share\":70000}\n",
        b"{\"request\":\"share\",\"share\":-1}\n",
        b"{\"request\":\"upgrade\",\"plan\":7}\n",
    ] {
        let refusal = said(operated, garbage).await;
        assert_eq!(
            (&refusal["reply"], &refusal["kind"]),
            (&"error".into(), &"malformed".into()),
            "{refusal}"
        );
    }
    for command in ["promote", "abort", "rollback", "share", "stop"] {
        refused_as_another_user(operated, command).await;
    }
    let mut asking = JoinSet::new();
    for _ in 0..100 {
        let stream = operated.connect().await;
        asking.spawn(answered(stream, b"{\"request\":\"status\"}\n"));
    }
    let answers = asking.join_all().await;
    let underway = |answer: &&Value| {
        answer["upgrade"]["generation"] == 2 && answer["condition"] == "progressing"
    };
    assert_eq!(
        answers.iter().filter(underway).count(),
        100,
        "{:?}",
        answers[0]
    );

    let after = operated.status().await.upgrade.unwrap();
    assert_eq!(
        (after.generation, after.pid, &after.phase),
        (before.generation, before.pid, &before.phase)
    );
    let shares = [&before, &after].map(|now| now.rollout.as_ref().unwrap().explanation.share);
    assert_eq!(shares[0], shares[1]);
    more_answers(&loaded.load, 1).await;
    more_answers(&loaded.load, 2).await;
    operated.run(&["promote", "--full"]).await.assert_code(0);
    ended(canary).await.assert_code(0);
    drop(silent);
    assert_no_failure(&loaded.load.stop().await);
}

async fn said(operated: &Operated, line: &'static [u8]) -> Value {
    answered(operated.connect().await, line).await
}

/// The line that is answered.
async fn answered(mut stream: UnixStream, line: &'static [u8]) -> Value {
    stream.write_all(line).await.unwrap();
    rest(&mut stream).await
}

async fn refused_as_another_user(operated: &Operated, command: &str) {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can be another user");
        return;
    }
    let room = operated.path.parent().unwrap();
    let everybody =
        |path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    everybody(room, 0o755);
    everybody(&operated.path, 0o666);
    // A copy: where this was built need not be open to everybody.
    let copy = room.join("handover");
    if !copy.exists() {
        std::fs::copy(env!("CARGO_BIN_EXE_handover"), &copy).unwrap();
    }
    let mut as_nobody = tokio::process::Command::new(&copy);
    as_nobody
        .arg(command)
        .args((command == "share").then_some("5"));
    as_nobody.arg("--control").arg(&operated.path);
    as_nobody.uid(NOBODY).gid(NOBODY).current_dir("/");
    as_nobody.stdout(Stdio::piped()).stderr(Stdio::piped());
    let ran = run(as_nobody).await;
    ran.assert_code(2);
    ran.assert_says(&["user 65534 is neither the service's nor root"]);
}
