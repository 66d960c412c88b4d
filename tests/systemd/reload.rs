//! `systemctl reload` is an upgrade, and a bad release changes nothing.

use crate::app::{App, Setup, answered, assert_lost_only_what_was_in_flight, assert_no_failure};
use crate::machine::{Machine, eventually};
use crate::on_each_systemd;
use crate::root::Release;

on_each_systemd! {
    a_hundred_reloads_in_a_row_lose_nothing
    a_reload_comes_back_with_the_verdict
    a_reload_that_meets_an_upgrade_by_hand_is_the_next_upgrade
    a_reload_may_take_longer_than_systemd_waits_if_it_goes_on
    a_release_that_does_not_start_changes_nothing
    a_release_that_hangs_changes_nothing
    a_release_that_crashes_in_its_bake_is_rolled_back
    a_release_that_is_killed_for_memory_in_its_bake_is_rolled_back
}

async fn a_hundred_reloads_in_a_row_lose_nothing(machine: &Machine) {
    // More generations drain at once than usual, so that no reload waits for one of them.
    let app = Setup::new(machine)
        .env("TESTD_GENERATIONS", 16)
        .start()
        .await;
    let load = app.load().await;
    let mut main = app.serving_main().await;
    for _ in 0..100 {
        app.systemctl("reload").await;
        let next = app.serving_main().await;
        assert_ne!(next, main, "nothing was upgraded");
        main = next;
    }
    assert_eq!(app.serving().await.0, 101);
    assert_no_failure(&load.stop().await);
    assert_never_left(&app).await;
}

/// Neither before the successor serves nor while it bakes: then the main process would not be the one that serves.
async fn a_reload_comes_back_with_the_verdict(machine: &Machine) {
    let app = Setup::new(machine).env("TESTD_BAKE_MS", 1000).start().await;
    app.plan("before-ready=wait:500");
    app.systemctl("reload").await;
    app.serving_main().await;
    assert_eq!(app.serving().await.0, 2);
    assert_never_left(&app).await;
}

/// systemd lets it wait until the upgrade is over, and asks the new main process in that very moment.
async fn a_reload_that_meets_an_upgrade_by_hand_is_the_next_upgrade(machine: &Machine) {
    let setup = Setup::new(machine).env("TESTD_BAKE_MS", 500);
    let app = setup.env("TESTD_GENERATIONS", 16).start().await;
    for by_hand in [2, 4, 6] {
        let main = app.serving_main().await;
        app.kill("HUP", main).await;
        let baking = format!("event {} phase {by_hand} baking", by_hand - 1);
        app.says(&[&baking]).await;
        app.systemctl("reload").await;
        app.serving_main().await;
        assert_eq!(app.serving().await.0, by_hand + 1);
    }
    assert_never_left(&app).await;
}

async fn a_reload_may_take_longer_than_systemd_waits_if_it_goes_on(machine: &Machine) {
    // The older one begins to wait anew with each ExecReload=, until it is told again.
    let (patience, takes) = match machine.release {
        Release::Trixie => (1, 2000),
        Release::Bookworm => (6, 7000),
    };
    let setup = Setup::new(machine).line(&format!("TimeoutStartSec={patience}"));
    let app = setup.env("TESTD_BAKE_MS", 2000).start().await;
    app.plan(&format!("before-ready=wait:{takes}"));
    app.systemctl("reload").await;
    app.serving_main().await;
    assert_eq!(app.serving().await.0, 2);
    assert_never_left(&app).await;
}

async fn a_release_that_does_not_start_changes_nothing(machine: &Machine) {
    let app = Setup::new(machine).start().await;
    let report = bad_release(&app, "before-ready=exit:3", &["exit status: 3"]).await;
    assert_no_failure(&report);
}

async fn a_release_that_hangs_changes_nothing(machine: &Machine) {
    let app = Setup::new(machine).env("TESTD_START_MS", 700).start().await;
    let report = bad_release(&app, "before-ready=hang", &["in time"]).await;
    assert_no_failure(&report);
}

async fn a_release_that_crashes_in_its_bake_is_rolled_back(machine: &Machine) {
    let app = Setup::new(machine)
        .env("TESTD_BAKE_MS", 10_000)
        .start()
        .await;
    let report = bad_release(&app, "after-ready=abort-after:300", &["signal: 6"]).await;
    assert_lost_only_what_was_in_flight(&report);
}

/// The kernel's choice is a SIGKILL and a mark on the cgroup, upon which systemd acts; here it is the SIGKILL alone.
async fn a_release_that_is_killed_for_memory_in_its_bake_is_rolled_back(machine: &Machine) {
    let app = Setup::new(machine)
        .env("TESTD_BAKE_MS", 10_000)
        .start()
        .await;
    let (load, main) = (app.load().await, app.serving_main().await);
    let reload = async { app.systemctl("reload").await };
    let kill = async {
        let serving = async || app.serving().await.0;
        eventually("the serving generation", serving, 2).await;
        let (_, successor) = app.serving().await;
        app.kill("KILL", successor).await;
    };
    tokio::join!(reload, kill);
    assert_eq!(app.serving_main().await, main);
    assert_never_left(&app).await;
    assert_lost_only_what_was_in_flight(&load.stop().await);
}

/// Reloads to a release like this one under load: the service is as it was, its status says why, and the next release
/// takes over. What the clients saw of it.
async fn bad_release(app: &App<'_>, plan: &str, why: &[&str]) -> handover_load::Report {
    let load = app.load().await;
    let main = app.serving_main().await;
    app.plan(plan);
    // Its exit status says nothing: systemd has no way for a service to report a reload that it refused.
    app.machine
        .output("systemctl", ["reload", "app.service"])
        .await;
    assert_eq!(app.serving_main().await, main);
    let state = app.state().await;
    assert!(
        why.iter().all(|why| state.status.contains(why)),
        "{state:?}"
    );
    assert_eq!(state.sub, "running");
    answered(&load).await;

    let report = load.stop().await;
    app.plan("");
    assert_never_left(app).await;
    report
}

/// Active, or reloading, from its start until now.
async fn assert_never_left(app: &App<'_>) {
    let state = app.state().await;
    assert_eq!(
        (&*state.active, state.left, state.restarts),
        ("active", 0, 0),
        "{state:?}"
    );
}
