//! Two hosts as two network namespaces, which reach one PostgreSQL server by its Unix socket and nothing else of each other.
//! That needs root, unshare(1) and ip(8); without them the test says that it is skipped.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use crate::fleet::across_two_hosts;
use crate::operated::Operated;
use crate::postgres::Server;
use crate::rig::on;
use crate::support::{Setup, free_address};

/// A namespace whose loopback is up, for the program that follows.
const APART: [&str; 6] = [
    "unshare",
    "--net",
    "--",
    "sh",
    "-c",
    "ip link set lo up && exec \"$0\" \"$@\"",
];

fn can_be_apart() -> bool {
    let tried = Command::new(APART[0])
        .args(&APART[1..])
        .arg("true")
        .output();
    let can = tried.is_ok_and(|output| output.status.success());
    if !can {
        eprintln!("skipped: no network namespace without root, unshare and ip");
    }
    can
}

/// Both listen on the same address, which they could not on one host.
fn apart(setup: Setup, address: SocketAddr) -> Setup {
    let mut command = Command::new(APART[0]);
    command.args(&APART[1..]).arg(setup.command.get_program());
    for (name, value) in setup.command.get_envs() {
        command.env(name, value.unwrap());
    }
    let setup = Setup { command, ..setup };
    setup.with("TESTD_LISTEN", address)
}

fn network(of: &Operated) -> PathBuf {
    fs::read_link(format!("/proc/{}/ns/net", of.service.pid())).unwrap()
}

#[tokio::test]
async fn the_gate_holds_across_two_network_namespaces_with_one_postgresql_server() {
    if !can_be_apart() {
        return;
    }
    let Some(server) = Server::start().await else {
        return;
    };
    let (store, address) = (server.database("app").await, free_address());
    let start = async |host| Operated::start(apart(on(&store, host), address)).await;
    let hosts = [start("web1").await, start("web2").await];
    let [one, other] = [network(&hosts[0]), network(&hosts[1])];
    assert_ne!(one, other);
    assert_eq!(hosts[0].service.web, hosts[1].service.web);
    across_two_hosts(&hosts).await;
}
