//! What can be wrong with what a service manager says: told clearly, and the service serves.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::app::Setup;
use crate::machine::{DEADLINE, Machine, eventually};
use crate::on_each_systemd;

on_each_systemd! {
    sockets_for_another_process_are_left_alone
    a_notify_socket_that_is_gone_is_told
    a_notify_socket_that_is_full_delays_nobody
    a_notify_socket_may_be_abstract
    names_with_any_character_come_back_from_the_store
}

async fn sockets_for_another_process_are_left_alone(machine: &Machine) {
    let exec = "/usr/bin/env LISTEN_PID=1 LISTEN_FDS=2 LISTEN_FDNAMES=web:web /srv/app/current/app";
    let app = Setup::new(machine).exec(exec).start().await;
    app.serving_main().await;
    app.says(&["LISTEN_PID", "left alone"]).await;
    app.systemctl("reload").await;
    app.serving_main().await;
}

async fn a_notify_socket_that_is_gone_is_told(machine: &Machine) {
    let app = notifying(Setup::new(machine), "/run/app/nobody")
        .start()
        .await;
    serves_and_upgrades(&app).await;
    app.says(&["telling the service manager", "/run/app/nobody"])
        .await;
}

async fn a_notify_socket_that_is_full_delays_nobody(machine: &Machine) {
    let path = machine.path("/run/full.sock");
    let setup = notifying(Setup::new(machine), "/run/full.sock");
    let full = UnixDatagram::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"X=1", &path).is_ok() {}
    let app = setup.start().await;
    serves_and_upgrades(&app).await;
    drop(full);
}

async fn a_notify_socket_may_be_abstract(machine: &Machine) {
    let address = SocketAddr::from_abstract_name("handover-notify").unwrap();
    let socket = UnixDatagram::bind_addr(&address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let app = notifying(Setup::new(machine), "@handover-notify")
        .start()
        .await;
    let mut datagram = [0; 4096];
    let length = socket.recv(&mut datagram).unwrap();
    let text = String::from_utf8_lossy(&datagram[..length]);
    assert!(text.lines().any(|line| line == "READY=1"), "{text}");
    app.serving().await;
}

/// systemd allows neither colons nor control characters in names, and separates them by colons.
async fn names_with_any_character_come_back_from_the_store(machine: &Machine) {
    let name = "wé b:%25=;\"\\\n 1";
    let app = Setup::new(machine)
        .env("TESTD_WEB_NAME", name)
        .start()
        .await;
    let socket = machine.listening(8080);
    let main = app.serving_main().await;
    app.kill("KILL", main).await;
    app.restarted(1).await;
    app.serving_main().await;
    assert_eq!(machine.listening(8080), socket, "it is another socket");
}

/// A service for which systemd does not wait, told of another notify socket than systemd's.
fn notifying<'a>(setup: Setup<'a>, socket: &str) -> Setup<'a> {
    let exec = format!("/usr/bin/env NOTIFY_SOCKET={socket} /srv/app/current/app");
    // systemd will not learn who the main process is, either.
    let setup = setup.line("Type=exec").line("ExitType=cgroup");
    setup.line("WatchdogSec=0").exec(&exec)
}

async fn serves_and_upgrades(app: &crate::app::App<'_>) {
    let serving = async || {
        tokio::net::TcpStream::connect(crate::app::WEB)
            .await
            .is_ok()
    };
    eventually("a listener", serving, true).await;
    let (first, main) = app.serving().await;
    assert_eq!(first, 1);
    let begun = std::time::Instant::now();
    app.kill("HUP", main).await;
    let generation = async || app.serving().await.0;
    eventually("the serving generation", generation, 2).await;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}
