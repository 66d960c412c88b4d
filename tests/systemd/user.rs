//! A service of `systemd --user`.

use std::fs;
use std::os::unix::fs::symlink;

use crate::app::{WEB, get};
use crate::machine::{Machine, eventually};
use crate::on_each_systemd;
use crate::root::Release;

on_each_systemd! {
    a_service_of_a_user_is_upgraded_and_keeps_its_sockets
}

/// Without a sandbox, most of which a user's manager cannot give.
async fn a_service_of_a_user_is_upgraded_and_keeps_its_sockets(machine: &Machine) {
    let kind = match machine.release {
        Release::Trixie => "Type=notify-reload",
        Release::Bookworm => {
            "Type=notify\nExecReload=/bin/sh -c 'kill -HUP $MAINPID'\nExecReload=/bin/sleep 0.2\n\
             Environment=TESTD_FD_STORE=1"
        }
    };
    let unit = format!(
        "[Service]\n{kind}\nExecStart=/srv/app/app\nRestart=on-failure\nFileDescriptorStoreMax=4\n\
         Environment=TESTD_LISTEN={WEB} TESTD_BAKE_MS=0\n"
    );
    machine.write("/run/systemd/user/app.service", &unit);
    fs::create_dir_all(machine.path("/srv/app")).unwrap();
    symlink("/opt/handover/testd", machine.path("/srv/app/app")).unwrap();
    machine
        .run("systemctl", ["start", "user@1000.service"])
        .await;

    systemctl(machine, "start").await;
    let socket = machine.listening(8080);
    systemctl(machine, "reload").await;
    let pid = get(WEB, "/pid").await.unwrap();
    let main = as_user(machine, "systemctl --user show -P MainPID app.service").await;
    assert_eq!(pid.trim(), format!("2 {main}"));
    systemctl(machine, "restart").await;
    assert_eq!(get(WEB, "/").await.unwrap(), "1 hello\n");
    as_user(
        machine,
        "kill -9 $(systemctl --user show -P MainPID app.service)",
    )
    .await;
    let restarts =
        async || as_user(machine, "systemctl --user show -P NRestarts app.service").await;
    eventually("restarts", restarts, "1".to_owned()).await;
    assert_eq!(get(WEB, "/").await.unwrap(), "1 hello\n");
    assert_eq!(machine.listening(8080), socket, "it is another socket");
}

async fn systemctl(machine: &Machine, verb: &str) {
    let said = as_user(
        machine,
        &format!("systemctl --user {verb} app.service 2>&1 && echo done"),
    )
    .await;
    assert_eq!(said, "done");
}

/// What a shell command of the user says.
async fn as_user(machine: &Machine, command: &str) -> String {
    let user = [
        "--user",
        "app",
        "--",
        "env",
        "XDG_RUNTIME_DIR=/run/user/1000",
    ];
    machine
        .says("runuser", user.into_iter().chain(["sh", "-c", command]))
        .await
}
