//! The units of a pool of workers.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::app::{App, answered, assert_lost_only_what_was_in_flight, assert_no_failure};
use crate::machine::{Machine, eventually};
use crate::on_each_systemd;
use crate::root::Release;

on_each_systemd! {
    a_reload_replaces_every_worker_under_load_and_the_main_process_stays
    a_supervisor_that_becomes_its_next_release_stays_the_main_process
    a_supervisor_that_is_killed_comes_back_and_nobody_is_refused
}

async fn a_reload_replaces_every_worker_under_load_and_the_main_process_stays(machine: &Machine) {
    let app = started(machine).await;
    let load = app.load().await;
    let main = app.state().await.main_pid;
    for _ in 0..3 {
        let before = workers(&app).await;
        app.systemctl("reload").await;
        // Type=notify comes back as soon as the reload has begun, on some versions.
        let all_others = async || workers(&app).await.is_disjoint(&before);
        eventually("other workers", all_others, true).await;
        let rests = async || app.state().await.active;
        eventually("the end of the reload", rests, "active".to_owned()).await;
        assert_eq!(app.state().await.main_pid, main);
    }
    assert_no_failure(&load.stop().await);
    app.systemctl("stop").await;
    let state = app.state().await;
    assert_eq!((&*state.active, &*state.result), ("inactive", "success"));
}

async fn a_supervisor_that_becomes_its_next_release_stays_the_main_process(machine: &Machine) {
    let app = started(machine).await;
    let load = app.load().await;
    let (before, all) = (app.state().await, workers(&app).await);
    for number in 2..5 {
        app.kill("USR2", before.main_pid).await;
        until_supervisor(&app, number).await;
    }
    answered(&load).await;
    let now = app.state().await;
    assert_eq!(
        (now.main_pid, now.restarts, now.left),
        (before.main_pid, 0, before.left)
    );
    assert_eq!(workers(&app).await, all);
    // And systemd hears it still.
    app.systemctl("reload").await;
    let all_others = async || workers(&app).await.is_disjoint(&all);
    eventually("other workers", all_others, true).await;
    assert_no_failure(&load.stop().await);
}

async fn a_supervisor_that_is_killed_comes_back_and_nobody_is_refused(machine: &Machine) {
    let app = installed(machine).await;
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/systemd/pool.socket");
    let unit = fs::read_to_string(unit).unwrap();
    machine.write("/run/systemd/system/app.socket", &unit);
    machine.run("systemctl", ["daemon-reload"]).await;
    machine.run("systemctl", ["start", "app.socket"]).await;
    app.systemctl("start").await;
    let socket = machine.listening(8080);
    for times in 1..3 {
        let load = app.load().await;
        let main = app.state().await.main_pid;
        app.kill("KILL", main).await;
        app.restarted(times).await;
        answered(&load).await;
        assert_lost_only_what_was_in_flight(&load.stop().await);
        assert_eq!(machine.listening(8080), socket, "it was bound again");
    }
}

async fn started(machine: &Machine) -> App<'_> {
    let app = installed(machine).await;
    app.systemctl("start").await;
    app
}

/// The unit of a pool under the name `app`, with testd for its workers.
async fn installed(machine: &Machine) -> App<'_> {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/systemd");
    let unit = match machine.release {
        Release::Trixie => "pool.service",
        Release::Bookworm => "pool-252.service",
    };
    let unit = fs::read_to_string(units.join(unit)).unwrap();
    machine.write("/run/systemd/system/app.service", &unit);
    // As in the unit, but for where the program is and how long an update takes.
    let command =
        "/srv/handover run --control /run/pool/control.sock --listen web=0.0.0.0:8080 --workers 4";
    let drop_in = format!(
        "[Service]\nEnvironment=TESTD_LISTEN=0.0.0.0:8080 TESTD_QUIET=all TESTD_IDLE_GRACE_MS=1000\nExecStart=\n\
         ExecStart={command} --min-healthy 50ms --backoff-max 100ms -- /srv/app/current/app\nRestartSec=100ms\n"
    );
    machine.write("/run/systemd/system/app.service.d/test.conf", &drop_in);
    fs::copy(
        env!("CARGO_BIN_EXE_handover"),
        machine.path("/srv/handover"),
    )
    .unwrap();
    fs::create_dir_all(machine.path("/srv/app/releases/1")).unwrap();
    let program = machine.path("/srv/app/releases/1/app");
    symlink("/opt/handover/testd", program).unwrap();
    symlink("releases/1", machine.path("/srv/app/current")).unwrap();
    machine.run("systemctl", ["daemon-reload"]).await;
    App { machine }
}

async fn status(app: &App<'_>) -> serde_json::Value {
    let arguments = ["--control", "/run/pool/control.sock", "--json", "status"];
    let said = app.machine.output("/srv/handover", arguments).await;
    serde_json::from_slice(&said.stdout).unwrap_or_default()
}

/// Those that are not on their way out.
async fn workers(app: &App<'_>) -> BTreeSet<u64> {
    let status = status(app).await;
    let workers = status["pool"]["workers"].as_array().cloned();
    let staying = workers.unwrap_or_default().into_iter();
    let staying = staying.filter(|it| it["stage"] == "serving" || it["stage"] == "settling");
    staying.filter_map(|it| it["pid"].as_u64()).collect()
}

async fn until_supervisor(app: &App<'_>, number: u64) {
    let seen = async || status(app).await["pool"]["supervisor"].as_u64();
    eventually("the next supervisor", seen, Some(number)).await;
}
