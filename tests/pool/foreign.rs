//! A server that knows nothing of this crate: gunicorn, from PyPI. Without pip or the network the test says that it was
//! skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use handover_load::{Kind, Load, Mix};

use crate::rig::{Pool, QUICK};
use crate::support::{DEADLINE, assert_no_failure, free_address, get};

const VERSION: &str = "27.0.1";
const ROUNDS: usize = 10;

#[tokio::test]
async fn gunicorn_is_rolled_ten_times_under_load_and_nobody_is_refused_or_cut_off() {
    let Some(library) = gunicorn() else {
        println!("skipped: gunicorn cannot be installed");
        return;
    };
    for readiness in ["notify", "accepts"] {
        roll(&library, readiness).await;
    }
}

async fn roll(library: &Path, readiness: &str) {
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
    let flags = [&QUICK[..], &["--ready", readiness]].concat();
    let pool = Pool::of(room, web, 2, &flags, &command);
    pool.until_ready(2).await;
    assert_eq!(get(web, "/").await.unwrap().text, "hello\n");
    let load = Load::start(web, Mix::none().with(Kind::Fresh, 8).with(Kind::Slow, 4));
    load.until_answers(1, 50, DEADLINE).await.unwrap();
    for _ in 0..ROUNDS {
        let (code, reply) = pool.json(&["upgrade"]).await;
        assert_eq!(code, 0, "{reply}");
    }
    assert!(pool.fewest_ready() >= 2);
    let report = load.stop().await;
    println!("{readiness}\n{report}");
    assert_no_failure(&report);
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
