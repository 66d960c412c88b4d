//! A server that knows nothing of this crate: gunicorn, from PyPI. Without pip or the network the test says that it was
//! skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use handover_load::process::wait_gone;
use handover_load::{Kind, Load, Mix, Signal};

use crate::rig::{Pool, QUICK, may_trace};
use crate::support::{DEADLINE, assert_no_failure, free_address, get, more_answers};

const VERSION: &str = "27.0.1";
const ROUNDS: usize = 10;

#[tokio::test]
async fn gunicorn_is_rolled_ten_times_under_load_and_nobody_is_refused_or_cut_off() {
    let Some(library) = gunicorn() else {
        println!("skipped: gunicorn cannot be installed");
        return;
    };
    for readiness in ["notify", "accepts"] {
        let flags = [&QUICK[..], &["--ready", readiness]].concat();
        let pool = pool(&library, &flags);
        let load = load(&pool).await;
        for _ in 0..ROUNDS {
            let (code, reply) = pool.json(&["upgrade"]).await;
            assert_eq!(code, 0, "{reply}");
        }
        assert!(pool.fewest_ready() >= 2);
        let report = load.stop().await;
        println!("{readiness}\n{report}");
        assert_no_failure(&report);
    }
}

#[tokio::test]
async fn gunicorn_gives_its_sockets_back_wherever_it_has_put_them_and_nobody_is_refused_or_cut_off()
{
    let Some(library) = gunicorn() else {
        println!("skipped: gunicorn cannot be installed");
        return;
    };
    if !may_trace() {
        println!("skipped: this user may not trace its own processes (kernel.yama.ptrace_scope)");
        return;
    }
    let mut pool = pool(&library, &QUICK);
    let load = load(&pool).await;
    let before = pool.pids().await;
    // It has closed what it was passed, and goes on with a duplicate.
    let passed = format!("/proc/{}/fd/3", before[0]);
    assert!(!fs::read_link(passed).is_ok_and(|link| link.to_string_lossy().starts_with("socket:")));
    pool.signal(Signal::KILL);
    wait_gone(pool.server.pid(), DEADLINE).await.unwrap();
    more_answers(&load, 1).await;
    let _killed = pool.restart(2, &QUICK);
    pool.until_ready(2).await;
    for pid in before {
        wait_gone(pid, DEADLINE).await.unwrap();
    }
    pool.until_rests_on(1, 2).await;
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
}

async fn load(pool: &Pool) -> Load {
    pool.until_ready(2).await;
    assert_eq!(get(pool.web, "/").await.unwrap().text, "hello\n");
    let mix = Mix::none().with(Kind::Fresh, 8).with(Kind::Slow, 4);
    let load = Load::start(pool.web, mix);
    load.until_answers(1, 50, DEADLINE).await.unwrap();
    load
}

fn pool(library: &Path, flags: &[&str]) -> Pool {
    let (room, web) = (tempfile::tempdir().unwrap(), free_address());
    fs::write(room.path().join("app.py"), APP).unwrap();
    let program = room.path().join("server");
    let (library, app) = (library.display(), room.path().display());
    // What a virtual environment would do.
    let script = format!(
        "#!/bin/sh\nexport PYTHONPATH={library}:{app} PYTHONDONTWRITEBYTECODE=1\nexec python3 -m gunicorn \"$@\"\n"
    );
    fs::write(&program, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&program, mode).unwrap();
    let command = [
        program.to_str().unwrap(),
        "--log-level",
        "warning",
        "--no-control-socket",
        "--worker-class",
        "gthread",
        "app:app",
    ];
    Pool::of(room, web, 2, flags, &command)
}

/// Where it is installed, once for all runs of the tests.
fn gunicorn() -> Option<PathBuf> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("gunicorn-{VERSION}"));
    if place.is_dir() {
        return Some(place);
    }
    let draft = place.with_extension("draft");
    let installed = Command::new("python3")
        .args(["-m", "pip", "install", "-qq", "--disable-pip-version-check"])
        .args(["--root-user-action=ignore", "--target"])
        .arg(&draft)
        .arg(format!("gunicorn=={VERSION}"))
        .status();
    installed.ok().filter(|status| status.success())?;
    fs::rename(draft, &place).ok()?;
    Some(place)
}

/// As the load wants its answers: who has answered, and how slowly.
const APP: &str = r#"
import time

def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.3)
        body = b"1 slow\n"
    else:
        body = b"1 hello\n"
    head = [("content-type", "text/plain"), ("content-length", str(len(body))), ("x-generation", "1")]
    start_response("200 OK", head)
    return [body]
"#;
