//! A server under test, what it says, and who answers.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use handover_load::process::{self, descriptors, eventually};
use handover_load::{Kind, KindReport, Load, Mix, Report, Server, Signal};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time;

pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// How a successor tells of the state that it has got, up to what is different each time.
const PASSED: &str = "passed offered Some(0) flipped Some(0) note Some(";
/// Clients of each of the two kinds.
const CLIENTS: usize = 2;

/// A server and the directory of what belongs to it.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) server: Server,
    pub(crate) address: SocketAddr,
    _directory: TempDir,
}

/// One of its generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation {
    pub(crate) number: u64,
    pub(crate) pid: u32,
}

/// How an upgrade ended, with the line that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Committed(String),
    Aborted(String),
    RolledBack(String),
}

impl Rig {
    /// Starts a server, after `prepare` has had its way with the command.
    pub(crate) async fn start<T>(
        prepare: impl FnOnce(&mut Command, &TempDir) -> T,
    ) -> (Self, Generation, T) {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(testd());
        command
            .env("TESTD_BAKE_MS", "60")
            .env("TESTD_START_MS", "3000")
            .env("TESTD_DRAIN_MS", "5000")
            // The calls that this takes can fail as well.
            .env("TESTD_STATE", "1");
        let prepared = prepare(&mut command, &directory);
        let server = Server::spawn(command).unwrap();
        let address = server.address("web", DEADLINE).await.unwrap();
        let rig = Self {
            server,
            address,
            _directory: directory,
        };
        let first = rig.ready(1).await;
        (rig, first, prepared)
    }

    /// A generation, as soon as it serves.
    pub(crate) async fn ready(&self, number: u64) -> Generation {
        let pattern = format!("ready {number} pid ");
        let line = self.server.wait_for_line(&pattern, DEADLINE).await.unwrap();
        let pid = line.rsplit(' ').next().unwrap().parse().unwrap();
        Generation { number, pid }
    }

    pub(crate) fn ask_for_upgrade(&self, from: Generation) {
        process::signal(from.pid, Signal::HUP).unwrap();
    }

    /// The first generation's verdict on the second, or any other's on its successor.
    pub(crate) async fn verdict(&self, from: Generation, successor: u64) -> Verdict {
        let line = async |what| {
            let pattern = format!("event {} {what} {successor} ", from.number);
            self.server.wait_for_line(&pattern, DEADLINE).await.unwrap()
        };
        tokio::select! {
            said = line("committed") => Verdict::Committed(said),
            said = line("aborted") => Verdict::Aborted(said),
            said = line("rolled-back") => Verdict::RolledBack(said),
        }
    }

    pub(crate) fn load(&self) -> Load {
        let mix = Mix::none()
            .with(Kind::Fresh, CLIENTS)
            .paced(Kind::Fresh, 100.0)
            .with(Kind::KeepAlive, CLIENTS)
            .paced(Kind::KeepAlive, 100.0);
        Load::start(self.address, mix)
    }

    /// An upgrade under load that nothing spoils.
    pub(crate) async fn upgrade_well(&self, from: Generation, successor: u64) -> Generation {
        let load = self.load();
        let passed = format!("{PASSED}\"a note from {}\"", from.number);
        let before = self.server.log().matches(&passed).count();
        self.ask_for_upgrade(from);
        let verdict = self.verdict(from, successor).await;
        assert!(matches!(verdict, Verdict::Committed(_)), "{verdict:?}");
        load.until_answers(successor, 5, DEADLINE).await.unwrap();
        assert_nothing_lost(&load.stop().await);
        let next = self.ready(successor).await;
        let passed = self.server.wait_for_lines(&passed, before + 1, DEADLINE);
        passed.await.unwrap();
        self.assert_served_by(next).await;
        next
    }

    /// Fresh connections are answered, every one, by this generation.
    pub(crate) async fn assert_served_by(&self, generation: Generation) {
        let mut seen = BTreeSet::new();
        for _ in 0..20 {
            seen.insert(ask(self.address).await);
        }
        assert_eq!(seen, BTreeSet::from([generation.number]));
    }

    /// Waits until this generation is all that is left, without a dead child that it has not collected.
    pub(crate) async fn assert_alone(&self, generation: Generation) {
        let alone = self.server.wait_alone(generation.pid, DEADLINE);
        alone.await.unwrap();
    }

    pub(crate) async fn stop(self, last: Generation) {
        process::signal(last.pid, Signal::TERM).unwrap();
        self.server.wait_all_gone(DEADLINE).await.unwrap();
    }
}

impl Verdict {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Committed(_) => "committed",
            Self::Aborted(_) => "aborted",
            Self::RolledBack(_) => "rolled back",
        }
    }

    pub(crate) fn line(&self) -> &str {
        match self {
            Self::Committed(line) | Self::Aborted(line) | Self::RolledBack(line) => line,
        }
    }
}

/// Nobody died, so nothing was lost.
pub(crate) fn assert_nothing_lost(report: &Report) {
    assert_eq!(report.failures(), 0, "{report}");
}

/// A successor that served has been killed: each client has lost at most what it was waiting for, and none was refused.
pub(crate) fn assert_only_its_own_lost(report: &Report) {
    let lost: u64 = report.kinds.iter().map(KindReport::cut_off).sum();
    assert_eq!(report.failures(), lost, "{report}");
    assert!(lost <= 2 * CLIENTS as u64, "{report}");
}

/// Waits until a process has exactly these descriptors.
pub(crate) async fn assert_descriptors(of: Generation, expected: &[String]) {
    assert_table(of, expected, <[String]>::to_vec).await;
}

/// Waits until a process has as many descriptors of each kind.
pub(crate) async fn assert_kinds(of: Generation, expected: &[String]) {
    assert_table(of, expected, kinds).await;
}

async fn assert_table(
    of: Generation,
    expected: &[String],
    view: impl Fn(&[String]) -> Vec<String>,
) {
    let look = || view(&descriptors(of.pid).unwrap());
    let shown = eventually("descriptors", look, expected.to_vec(), DEADLINE).await;
    shown.unwrap();
}

/// What a table of descriptors consists of, without what tells two of a kind apart.
pub(crate) fn kinds(table: &[String]) -> Vec<String> {
    let mut kinds: Vec<_> = table
        .iter()
        .map(|target| target.split(":[").next().unwrap_or_default().to_owned())
        .collect();
    kinds.sort();
    kinds
}

/// The generation that answers a fresh connection.
pub(crate) async fn ask(address: SocketAddr) -> u64 {
    let answer = time::timeout(DEADLINE, try_ask(address)).await;
    answer.unwrap().unwrap()
}

async fn try_ask(address: SocketAddr) -> std::io::Result<u64> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(b"GET /pid HTTP/1.1\r\nhost: faults\r\nconnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    let generation = body.split(' ').next().unwrap_or_default();
    generation.parse().map_err(std::io::Error::other)
}

pub(crate) fn testd() -> PathBuf {
    let mut directory = std::env::current_exe().unwrap();
    directory.pop();
    if directory.ends_with("deps") {
        directory.pop();
    }
    directory.join("examples/testd")
}
