//! Successors that are not what the unit's path leads to: another unit's, and the release before.

use std::os::unix::fs::PermissionsExt;

use handover::control::{Client, Reply, Request, Verdict};

use crate::app::{App, Setup, WEB, Waiting, answered, assert_no_failure, get};
use crate::machine::{DEADLINE, Machine, eventually};
use crate::on_each_systemd;

on_each_systemd! {
    another_unit_takes_over_and_this_one_ends
    a_cold_rollback_moves_the_main_process
}

/// In a directory that belongs to no unit: systemd removes a unit's own when it ends.
async fn operated<'a>(machine: &'a Machine, setup: Setup<'a>) -> App<'a> {
    let directory = machine.path("/srv/control");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o777)).unwrap();
    let setup = setup.env("TESTD_CONTROL", CONTROL);
    let setup = setup.line("ReadWritePaths=/srv/control").line("User=app");
    setup.start().await
}

async fn another_unit_takes_over_and_this_one_ends(machine: &Machine) {
    let app = operated(machine, Setup::new(machine)).await;
    machine.write("/run/systemd/system/other.service", OTHER);
    machine.run("systemctl", ["daemon-reload"]).await;
    let load = app.load().await;
    let slow = Waiting::ask("/slow?ms=3000").await;
    // Comes back when it says that it is ready: once it is the incumbent.
    machine.run("systemctl", ["start", "other.service"]).await;
    let (generation, pid) = app.serving().await;
    let other = machine.show("other.service").await;
    assert_eq!(generation, 2);
    assert_eq!(other["ActiveState"], "active", "{other:?}");
    assert_eq!(other["MainPID"], pid.to_string(), "{other:?}");
    let before = app.state().await;
    assert_eq!(before.active, "deactivating", "{before:?}");
    assert!(before.status.contains("outside of this unit"), "{before:?}");
    assert_eq!(slow.answer().await, "1 slow\n");
    let ended = async || {
        let state = app.state().await;
        (state.active, state.result, state.restarts)
    };
    let wanted = ("inactive".to_owned(), "success".to_owned(), 0);
    eventually("the unit before", ended, wanted).await;
    answered(&load).await;
    assert_no_failure(&load.stop().await);
}

async fn a_cold_rollback_moves_the_main_process(machine: &Machine) {
    let setup = Setup::new(machine).env("TESTD_IMAGE", "copy");
    let app = operated(machine, setup).await;
    let script = "mkdir /srv/app/releases/2 && cd /srv/app/releases/2 && cp /opt/handover/testd app && \
                  printf TESTD-RELEASE=two >> app && ln -sfn releases/2 /srv/app/current";
    machine.run("sh", ["-c", script]).await;
    app.systemctl("reload").await;
    app.serving_main().await;
    assert_eq!(get(WEB, "/release").await.unwrap(), "2 two");

    let load = app.load().await;
    let client = Client::new(machine.path(CONTROL)).deadline(DEADLINE);
    let request = serde_json::from_str::<Request>(r#"{"request":"rollback","cold":true}"#);
    let reply = client.ask(&request.unwrap()).await.unwrap();
    let Reply::Verdict { upgrade } = reply else {
        panic!("{reply:?}")
    };
    assert_eq!(
        (upgrade.verdict, upgrade.rollback_to),
        (Verdict::Committed, Some(1))
    );
    assert_eq!(get(WEB, "/release").await.unwrap(), "3 ");
    let named = async || app.state().await.main_pid == app.serving().await.1;
    eventually("the main process", named, true).await;
    app.serving_main().await;
    answered(&load).await;
    assert_no_failure(&load.stop().await);
    assert_eq!(app.state().await.restarts, 0);
}

const CONTROL: &str = "/srv/control/control.sock";

const OTHER: &str = "[Service]\n\
    Type=notify\n\
    ExecStart=/srv/app/current/app\n\
    Environment=TESTD_LISTEN=0.0.0.0:8080 TESTD_BAKE_MS=500 TESTD_IDLE_GRACE_MS=1000\n\
    Environment=TESTD_TAKEOVER=1 TESTD_CONTROL=/srv/control/control.sock\n\
    DynamicUser=yes\n\
    User=app\n\
    ReadWritePaths=/srv/control\n";
