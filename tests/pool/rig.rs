//! A pool of testds under `handover run`, whose releases are scripts that become a testd with a plan.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use handover::control::{Client, PoolState, Reply, Request, Status};
use handover_load::{Mix, Server, Signal};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::operated::{Ran, program, run};
use crate::support::{DEADLINE, free_address, testd};

/// Every kind of client, none of them for long.
pub(crate) fn mix() -> Mix {
    Mix {
        slow_for: Duration::from_millis(300),
        stream_for: Duration::from_millis(500),
        upload_for: Duration::from_millis(300),
        ..Mix::standard()
    }
}

pub(crate) struct Pool {
    pub(crate) server: Server,
    pub(crate) web: SocketAddr,
    pub(crate) room: TempDir,
    workers: usize,
}

impl Pool {
    /// Of good testds, once all of them are ready.
    pub(crate) async fn start(workers: usize, flags: &[&str]) -> Self {
        let (room, web) = (tempfile::tempdir().unwrap(), free_address());
        release(room.path(), "");
        let program = room.path().join(PROGRAM);
        let pool = Self::of(room, web, workers, flags, &[program.to_str().unwrap()]);
        pool.until_ready(workers).await;
        pool
    }

    /// Of whatever it is, ready or not.
    pub(crate) fn of(
        room: TempDir,
        web: SocketAddr,
        workers: usize,
        flags: &[&str],
        program: &[&str],
    ) -> Self {
        Self::under(&[], room, web, workers, flags, program)
    }

    /// Under a program that starts the supervisor.
    pub(crate) fn under(
        prefix: &[&str],
        room: TempDir,
        web: SocketAddr,
        workers: usize,
        flags: &[&str],
        program: &[&str],
    ) -> Self {
        symlink(env!("CARGO_BIN_EXE_handover"), room.path().join(SUPERVISOR)).unwrap();
        let command = supervisor(prefix, &room, web, workers, flags, program);
        let server = Server::spawn(command).unwrap();
        Self {
            server,
            web,
            room,
            workers,
        }
    }

    /// Once more, at the same place. Returns the one before, whose end ends its processes.
    pub(crate) fn restart(&mut self, workers: usize, flags: &[&str]) -> Server {
        let program = self.file(PROGRAM);
        let program = [program.to_str().unwrap()];
        let command = supervisor(&[], &self.room, self.web, workers, flags, &program);
        std::mem::replace(&mut self.server, Server::spawn(command).unwrap())
    }

    /// What the next workers are started from: a testd, after this part of a script.
    pub(crate) fn release(&self, script: &str) {
        release(self.room.path(), script);
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }

    pub(crate) async fn run(&self, arguments: &[&str]) -> Ran {
        let mut command = program(arguments);
        command.env("HANDOVER_CONTROL", self.file(CONTROL));
        run(command).await
    }

    /// In JSON, and its exit code.
    pub(crate) async fn json(&self, arguments: &[&str]) -> (i32, Value) {
        let ran = self.run(&[arguments, &["--json"]].concat()).await;
        (ran.code, ran.json())
    }

    pub(crate) async fn ask(&self, request: &Request) -> Reply {
        let client = Client::new(self.file(CONTROL)).deadline(DEADLINE);
        client.ask(request).await.unwrap()
    }

    pub(crate) async fn status(&self) -> Status {
        match self.ask(&Request::Status).await {
            Reply::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn pool(&self) -> PoolState {
        self.status().await.pool.unwrap()
    }

    /// The processes of all workers that are not on their way out.
    pub(crate) async fn pids(&self) -> Vec<u32> {
        let workers = self.pool().await.workers.into_iter();
        let live = workers.filter(|worker| !["stopping", "killed"].contains(&&*worker.stage));
        live.map(|worker| worker.pid).collect()
    }

    pub(crate) async fn until_ready(&self, workers: usize) {
        self.line(&format!("; {workers} of {workers} ready")).await;
    }

    /// Nothing is under way, and as many are ready as are wanted, all of this release.
    pub(crate) async fn until_rests_on(&self, release: u64, workers: usize) {
        let rests = async {
            loop {
                let pool = self.pool().await;
                let mut all = pool.workers.iter();
                let is_one = pool.workers.len() == workers && all.all(|it| it.release == release);
                if is_one && pool.ready == workers && pool.update.is_none() {
                    return;
                }
            }
        };
        if timeout(DEADLINE, rests).await.is_err() {
            panic!("{:?}\n{}", self.pool().await, self.server.log());
        }
    }

    pub(crate) async fn line(&self, pattern: &str) -> String {
        self.server.wait_for_line(pattern, DEADLINE).await.unwrap()
    }

    /// The fewest that were ready since all of them were for the first time, and until the pool was told to stop.
    pub(crate) fn fewest_ready(&self) -> usize {
        let log = self.server.log();
        let ready = log.lines().filter_map(|line| {
            let (rest, _) = line.split_once(" ready")?;
            let (_, counts) = rest.rsplit_once("; ")?;
            counts.split_once(" of ")?.0.parse().ok()
        });
        let up = ready.skip_while(|ready: &usize| *ready < self.workers);
        up.min().unwrap()
    }

    pub(crate) fn signal(&self, with: Signal) {
        self.server.signal(with).unwrap();
    }
}

fn supervisor(
    prefix: &[&str],
    room: &TempDir,
    web: SocketAddr,
    workers: usize,
    flags: &[&str],
    program: &[&str],
) -> Command {
    let supervisor = room.path().join(SUPERVISOR);
    let words = prefix.iter().map(Path::new).chain([supervisor.as_path()]);
    let words: Vec<&Path> = words.collect();
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .arg("run")
        .arg("--control")
        .arg(room.path().join(CONTROL))
        .args(["--listen", &format!("web={web}")])
        .args(["--workers", &workers.to_string()])
        .args(flags)
        .arg("--")
        .args(program)
        .env("TESTD_LISTEN", web.to_string())
        .env("TESTD_QUIET", "all");
    command
}

/// A script that becomes a testd, put in its place by a rename as releases are.
fn release(room: &Path, script: &str) {
    let draft = room.join("draft");
    let testd = testd();
    let text = format!(
        "#!/bin/sh\ncd {}\nexport TESTD_PLAN=plan\n{script}\nexec {}\n",
        room.display(),
        testd.display()
    );
    fs::write(&draft, text).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(draft, room.join(PROGRAM)).unwrap();
}

const PROGRAM: &str = "app";
/// What the supervisor is started as.
pub(crate) const SUPERVISOR: &str = "supervisor";
const CONTROL: &str = "control.sock";

/// Updates that do not take longer than a test may.
pub(crate) const QUICK: [&str; 4] = ["--min-healthy", "50ms", "--draining-max", "64"];

/// For python3: accepts from all that it is passed, once the file is there that its argument names.
pub(crate) const ACCEPTS: &str = "
import os, select, socket, sys
sockets = [socket.socket(fileno=3 + n) for n in range(int(os.environ['LISTEN_FDS']))]
while not os.path.exists(sys.argv[1]):
    select.select([], [], [], 0.01)
while True:
    for found in select.select(sockets, [], [])[0]:
        found.accept()[0].close()
";
