//! What systemd keeps for the service while no process of it lives, and a stop that keeps nothing.

use handover_load::{Failure, Kind, Load, Mix};

use crate::app::{
    App, Setup, WEB, Waiting, answered, assert_lost_only_what_was_in_flight, assert_no_failure,
};
use crate::machine::{Machine, eventually};
use crate::on_each_systemd;
use crate::root::Release;

on_each_systemd! {
    a_restart_loses_nothing
    a_killed_main_process_loses_only_what_it_had_accepted
    a_restart_after_an_upgrade_loses_nothing
    a_main_process_that_hangs_is_replaced_and_its_queue_is_served
    a_service_that_is_well_is_not_killed_by_its_watchdog
    a_main_process_that_systemd_has_not_started_is_missed_when_it_is_killed
    a_stop_resets_nobody
    a_stop_in_the_bake_resets_nobody
    a_stop_waits_for_the_last_requests_of_an_older_generation
    a_stop_may_take_longer_than_systemd_waits
    a_restart_in_the_bake_loses_nothing
    a_stop_that_systemd_was_not_asked_for_leaves_sockets_that_serve
    a_stop_and_a_start_find_sockets_that_serve_though_the_store_is_preserved
    state_that_is_kept_comes_back_after_a_crash
    more_sockets_than_the_store_takes_are_told_and_served
}

async fn a_restart_loses_nothing(machine: &Machine) {
    let app = Setup::new(machine).start().await;
    let (load, main, socket) = (
        app.load().await,
        app.serving_main().await,
        machine.listening(8080),
    );
    for _ in 0..3 {
        app.systemctl("restart").await;
        answered(&load).await;
    }
    assert_ne!(app.serving_main().await, main);
    assert_eq!(machine.listening(8080), socket, "it is another socket");
    assert_no_failure(&load.stop().await);
}

/// The generation that restarts is not the one that systemd started.
async fn a_restart_after_an_upgrade_loses_nothing(machine: &Machine) {
    let app = Setup::new(machine).start().await;
    let (load, socket) = (app.load().await, machine.listening(8080));
    app.systemctl("reload").await;
    assert_eq!(app.serving().await.0, 2);
    app.systemctl("restart").await;
    assert_eq!(app.serving().await.0, 1);
    assert_eq!(machine.listening(8080), socket, "it is another socket");
    assert_no_failure(&load.stop().await);
}

async fn a_killed_main_process_loses_only_what_it_had_accepted(machine: &Machine) {
    let app = Setup::new(machine)
        .env("TESTD_UNIX", "/run/app/app.sock")
        .start()
        .await;
    let (load, socket) = (app.load().await, machine.listening(8080));
    let main = app.serving_main().await;
    let queued = queue_behind(&app, main).await;
    app.kill("KILL", main).await;
    for waiting in queued {
        assert_eq!(waiting.answer().await, "1 hello\n");
    }
    app.restarted(1).await;
    assert_eq!(machine.listening(8080), socket, "it is another socket");
    assert_lost_only_what_was_in_flight(&load.stop().await);
    let by_path = machine.path("/run/app/app.sock");
    tokio::net::UnixStream::connect(by_path)
        .await
        .expect("nobody listens on the path");
}

async fn a_main_process_that_hangs_is_replaced_and_its_queue_is_served(machine: &Machine) {
    let app = Setup::new(machine).line("WatchdogSec=1").start().await;
    // After an upgrade it is the successor that has to be watched.
    app.systemctl("reload").await;
    let main = app.serving_main().await;
    let queued = queue_behind(&app, main).await;
    for waiting in queued {
        assert_eq!(waiting.answer().await, "1 hello\n");
    }
    app.restarted(1).await;
    app.says(&["watchdog"]).await;
}

/// Through upgrades and a bake that are each longer than its patience.
async fn a_service_that_is_well_is_not_killed_by_its_watchdog(machine: &Machine) {
    let setup = Setup::new(machine).line("WatchdogSec=500ms");
    let app = setup.env("TESTD_BAKE_MS", 1500).start().await;
    app.plan("before-ready=wait:1500");
    for generation in 2..4 {
        app.systemctl("reload").await;
        assert_eq!(app.serving().await.0, generation);
    }
    app.serving_main().await;
    assert_eq!(app.state().await.restarts, 0);
}

/// Its predecessor is gone, and it is systemd's child by then.
async fn a_main_process_that_systemd_has_not_started_is_missed_when_it_is_killed(
    machine: &Machine,
) {
    let app = Setup::new(machine).start().await;
    app.systemctl("reload").await;
    app.says(&["event 2 ElderGone"]).await;
    let main = app.serving_main().await;
    app.kill("KILL", main).await;
    app.restarted(1).await;
    assert_eq!(app.serving().await.0, 1);
}

async fn a_stop_resets_nobody(machine: &Machine) {
    let app = Setup::new(machine).start().await;
    stopped_without_a_reset(&app).await;
}

async fn a_stop_in_the_bake_resets_nobody(machine: &Machine) {
    let setup = Setup::new(machine).env("TESTD_BAKE_MS", 60_000);
    let app = setup.start().await;
    let main = app.serving_main().await;
    app.kill("HUP", main).await;
    app.says(&["event 1 phase 2 baking"]).await;
    stopped_without_a_reset(&app).await;
}

/// Neither process may be killed for the other's sake.
async fn a_stop_waits_for_the_last_requests_of_an_older_generation(machine: &Machine) {
    let app = Setup::new(machine).start().await;
    let slow = Waiting::ask("/slow?ms=3000").await;
    // It is accepted before another is answered.
    app.serving_main().await;
    app.systemctl("reload").await;
    assert_eq!(app.serving().await.0, 2);
    let (stopped, answer) = tokio::join!(app.systemctl("stop"), slow.answer());
    let () = stopped;
    assert!(answer.starts_with("1 "), "{answer}");
    assert_eq!(app.state().await.result, "success");
}

async fn a_stop_may_take_longer_than_systemd_waits(machine: &Machine) {
    let app = Setup::new(machine).line("TimeoutStopSec=1").start().await;
    app.systemctl("reload").await;
    let slow = Waiting::ask("/slow?ms=3000").await;
    app.serving_main().await;
    let ((), answer) = tokio::join!(app.systemctl("stop"), slow.answer());
    assert!(answer.starts_with("2 "), "{answer}");
    assert_eq!(app.state().await.result, "success");
}

async fn a_restart_in_the_bake_loses_nothing(machine: &Machine) {
    let setup = Setup::new(machine).env("TESTD_BAKE_MS", 60_000);
    let app = setup.start().await;
    let load = app.load().await;
    for _ in 0..2 {
        let main = app.serving_main().await;
        app.kill("HUP", main).await;
        eventually("generation", async || app.serving().await.0, 2).await;
        app.systemctl("restart").await;
        assert_eq!(app.serving().await.0, 1);
    }
    assert_no_failure(&load.stop().await);
}

/// There is no job that says whether the service starts again; it does.
async fn a_stop_that_systemd_was_not_asked_for_leaves_sockets_that_serve(machine: &Machine) {
    let setup = Setup::new(machine).line("Restart=always");
    let app = setup.start().await;
    for times in 1..3 {
        let main = app.serving_main().await;
        app.kill("TERM", main).await;
        app.restarted(times).await;
    }
    app.serving_main().await;
}

async fn state_that_is_kept_comes_back_after_a_crash(machine: &Machine) {
    let app = Setup::new(machine).env("TESTD_KEEP", 1).start().await;
    app.says(&["kept by 1: Ok(())"]).await;
    app.systemctl("reload").await;
    app.says(&["kept by 2: Ok(())"]).await;
    let main = app.serving_main().await;
    app.kill("KILL", main).await;
    app.restarted(1).await;
    app.says(&["found what 2 has kept"]).await;
}

/// Another unit refers to the service, so that it is remembered while it is stopped.
async fn a_stop_and_a_start_find_sockets_that_serve_though_the_store_is_preserved(
    machine: &Machine,
) {
    if machine.release == Release::Bookworm {
        return; // does not know the setting
    }
    let other = "[Unit]\nAfter=app.service\n[Service]\nExecStart=/bin/sleep infinity\n";
    machine.write("/run/systemd/system/other.service", other);
    let setup = Setup::new(machine).line("FileDescriptorStorePreserve=yes");
    let app = setup.start().await;
    machine.run("systemctl", ["start", "other.service"]).await;
    stopped_without_a_reset(&app).await;
    app.systemctl("start").await;
    app.serving_main().await;
}

/// Who comes later is refused; nobody who was let in is reset.
async fn stopped_without_a_reset(app: &App<'_>) {
    let mix = Mix::none()
        .with(Kind::Fresh, 32)
        .with(Kind::KeepAlive, 8)
        .with(Kind::Http2, 2);
    let load = Load::start(WEB, mix);
    answered(&load).await;
    app.systemctl("stop").await;
    let report = load.stop().await;
    for kind in &report.kinds {
        let refused = report.failed(kind.kind, Failure::ConnectRefused);
        assert_eq!(kind.failed(), refused, "{report}");
    }
    let state = app.state().await;
    assert_eq!(
        (&*state.active, &*state.result),
        ("inactive", "success"),
        "{state:?}"
    );
    assert_eq!(app.machine.listening(8080), None);
}

async fn more_sockets_than_the_store_takes_are_told_and_served(machine: &Machine) {
    let setup = Setup::new(machine).line("FileDescriptorStoreMax=2");
    let app = setup.env("TESTD_MORE", 4).start().await;
    app.says(&["FileDescriptorStoreMax"]).await;
    let main = app.serving_main().await;
    app.kill("KILL", main).await;
    app.restarted(1).await;
    app.serving_main().await;
}

/// Clients that have connected and asked while nobody accepts: the process is stopped and stays so.
async fn queue_behind(app: &App<'_>, main: u32) -> Vec<Waiting> {
    app.kill("STOP", main).await;
    let status = app.machine.path(&format!("/proc/{main}/status"));
    let is_stopped = async || {
        std::fs::read_to_string(&status)
            .unwrap()
            .contains("T (stopped)")
    };
    eventually("a stopped process", is_stopped, true).await;
    let mut queued = Vec::new();
    for _ in 0..20 {
        queued.push(Waiting::ask("/").await);
    }
    queued
}
