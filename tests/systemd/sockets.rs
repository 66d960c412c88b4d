//! Sockets that a socket unit made.

use crate::app::{App, Setup, WEB, assert_no_failure, get};
use crate::machine::{Machine, eventually};
use crate::on_each_systemd;

on_each_systemd! {
    the_first_connection_starts_the_service_and_is_served
    a_socket_of_the_unit_stays_the_same_through_reload_and_restart
    a_socket_that_systemd_does_not_know_is_bound
    a_socket_is_told_from_another_of_its_name_by_its_address
    a_socket_that_is_added_to_the_unit_is_taken_at_the_restart
    a_socket_that_the_service_does_not_know_is_told
}

async fn the_first_connection_starts_the_service_and_is_served(machine: &Machine) {
    let app = with_socket(Setup::new(machine)).await;
    assert_eq!(app.state().await.active, "inactive");
    assert_eq!(get(WEB, "/").await.unwrap(), "1 hello\n");
    app.serving_main().await;
}

async fn a_socket_of_the_unit_stays_the_same_through_reload_and_restart(machine: &Machine) {
    let app = with_socket(Setup::new(machine)).await;
    let socket = machine.listening(8080);
    app.systemctl("start").await;
    let load = app.load().await;
    for verb in ["reload", "restart", "reload"] {
        app.systemctl(verb).await;
        app.serving_main().await;
        assert_eq!(
            machine.listening(8080),
            socket,
            "another socket after {verb}"
        );
    }
    assert_no_failure(&load.stop().await);
}

async fn a_socket_that_systemd_does_not_know_is_bound(machine: &Machine) {
    let app = with_socket(Setup::new(machine).env("TESTD_SIDE", SIDE)).await;
    app.systemctl("start").await;
    app.systemctl("reload").await;
    let side = machine.listening(8081);
    app.systemctl("restart").await;
    assert_eq!(machine.listening(8081), side, "its own socket was not kept");
    for address in [WEB, SIDE.parse().unwrap()] {
        assert_eq!(get(address, "/").await.unwrap(), "1 hello\n");
    }
}

async fn a_socket_is_told_from_another_of_its_name_by_its_address(machine: &Machine) {
    let two = format!("[Socket]\nListenStream=\nListenStream={SIDE}\nListenStream=0.0.0.0:8080\n");
    machine.write("/run/systemd/system/app.socket.d/two.conf", &two);
    let app = with_socket(Setup::new(machine)).await;
    let socket = machine.listening(8080);
    app.systemctl("start").await;
    app.serving_main().await;
    assert_eq!(machine.listening(8080), socket, "it was bound again");
}

async fn a_socket_that_is_added_to_the_unit_is_taken_at_the_restart(machine: &Machine) {
    let setup = Setup::new(machine);
    let app = with_socket(setup).await;
    app.systemctl("start").await;
    add_side(&app, "side").await;
    let side = machine.listening(8081);
    machine.write(
        "/run/systemd/system/app.service.d/side.conf",
        &format!("[Service]\nEnvironment=TESTD_SIDE={SIDE}\nSockets=app.socket side.socket\n"),
    );
    machine.run("systemctl", ["daemon-reload"]).await;
    app.systemctl("restart").await;
    assert_eq!(get(SIDE.parse().unwrap(), "/").await.unwrap(), "1 hello\n");
    assert_eq!(machine.listening(8081), side, "it was bound again");
}

/// Its clients would wait for ever: nobody accepts what nobody has claimed.
async fn a_socket_that_the_service_does_not_know_is_told(machine: &Machine) {
    let setup = Setup::new(machine).line("Sockets=app.socket side.socket");
    let app = with_socket(setup).await;
    add_side(&app, "stranger").await;
    app.systemctl("start").await;
    app.says(&["stranger"]).await;
    app.serving_main().await;
}

/// The socket is there, and the service is not started.
async fn with_socket(setup: Setup<'_>) -> App<'_> {
    let app = setup.unit("app.socket", "app.socket").install().await;
    app.machine.run("systemctl", ["start", "app.socket"]).await;
    let listening = async || app.machine.listening(8080).is_some();
    eventually("the unit's socket", listening, true).await;
    app
}

/// A socket of another unit for the same service.
async fn add_side(app: &App<'_>, name: &str) {
    let unit =
        format!("[Socket]\nListenStream={SIDE}\nFileDescriptorName={name}\nService=app.service\n");
    app.machine.write("/run/systemd/system/side.socket", &unit);
    app.machine.run("systemctl", ["daemon-reload"]).await;
    // A socket unit of a service that runs cannot be started; it is as if it had been there at the boot.
    app.systemctl("stop").await;
    app.machine.run("systemctl", ["start", "side.socket"]).await;
    app.systemctl("start").await;
}

const SIDE: &str = "127.0.0.1:8081";
