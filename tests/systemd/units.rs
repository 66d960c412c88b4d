//! The files of `examples/systemd` themselves.

use std::collections::{BTreeSet, HashMap};

use crate::app::{App, Setup};
use crate::machine::{Machine, on};
use crate::on_each_systemd;
use crate::root::Release;

on_each_systemd! {
    systemd_finds_nothing_to_complain_of
}

/// They are written for the systemd that the unit beside them is written for.
#[test]
fn explanations_change_nothing() {
    on(Release::Trixie, explained);
}

async fn systemd_finds_nothing_to_complain_of(machine: &Machine) {
    let setup = Setup::new(machine).unit("app.socket", "app.socket");
    match machine.release {
        Release::Trixie => setup.unit(EXPLAINED, EXPLAINED).install().await,
        Release::Bookworm => setup.install().await,
    };
    let units = ["app.service", "app.socket"];
    let arguments = ["verify", "--man=no"].into_iter().chain(units);
    let verified = machine.output("systemd-analyze", arguments).await;
    let complaints = String::from_utf8_lossy(&verified.stderr);
    assert!(
        verified.status.success() && complaints.is_empty(),
        "{complaints}"
    );
}

async fn explained(machine: &Machine) {
    let app = Setup::new(machine).install().await;
    let plain = settings(&app).await;
    let _ = Setup::new(machine).unit(EXPLAINED, EXPLAINED);
    machine.run("systemctl", ["daemon-reload"]).await;
    let explained = settings(&app).await;
    for (name, value) in &plain {
        assert_eq!(explained.get(name), Some(value), "{name}");
    }
}

/// Each with its words, in whatever order; without what says where the settings come from.
async fn settings(app: &App<'_>) -> HashMap<String, BTreeSet<String>> {
    let mut shown = app.machine.show("app.service").await;
    shown.retain(|name, _| name != "DropInPaths" && !name.contains("Timestamp"));
    let words = |value: &str| value.split(' ').map(str::to_owned).collect();
    let pairs = shown
        .iter()
        .map(|(name, value)| (name.clone(), words(value)));
    pairs.collect()
}

const EXPLAINED: &str = "app.service.d/explained.conf";
