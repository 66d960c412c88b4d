//! A pool of testds under `handover run`, whose releases are scripts that become a testd with a plan.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use handover::control::{Client, PoolState, Reply, Request, Status};
use handover_load::process::children;
use handover_load::{Mix, Server, Signal};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;
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
    program: Vec<String>,
}

impl Pool {
    /// Of good testds, once all of them are ready.
    pub(crate) async fn start(workers: usize, flags: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), "", workers, flags).await
    }

    /// Of testds that come after this part of a script.
    pub(crate) async fn start_in(
        room: TempDir,
        script: &str,
        workers: usize,
        flags: &[&str],
    ) -> Self {
        let web = free_address();
        release(room.path(), script);
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
            program: program.iter().map(ToString::to_string).collect(),
        }
    }

    /// Once more, at the same place. Returns the one before, whose end ends its processes.
    pub(crate) fn restart(&mut self, workers: usize, flags: &[&str]) -> Server {
        let program: Vec<&str> = self.program.iter().map(String::as_str).collect();
        let command = supervisor(&[], &self.room, self.web, workers, flags, &program);
        std::mem::replace(&mut self.server, Server::spawn(command).unwrap())
    }

    /// Another supervisor at the same place, under a program that starts it, which ends by itself.
    pub(crate) async fn run_again(&self, prefix: &[&str]) -> Ran {
        let program = self.file(PROGRAM);
        let program = [program.to_str().unwrap()];
        let mut command = supervisor(prefix, &self.room, self.web, self.workers, &QUICK, &program);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        run(command.into()).await
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

    /// Every worker has said that it has answered so many requests.
    pub(crate) async fn until_all_answered(&self, requests: u64) {
        let answered = async {
            loop {
                let workers = self.pool().await.workers;
                if workers
                    .iter()
                    .all(|worker| worker.requests >= Some(requests))
                {
                    return;
                }
            }
        };
        timeout(DEADLINE, answered).await.unwrap();
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

    /// Looks from outside from now on, how many accept.
    pub(crate) async fn lookout(&self) -> Lookout {
        let worker = self.pids().await[0];
        let socket = fs::read_link(format!("/proc/{worker}/fd/3")).unwrap();
        let socket = socket.to_str().unwrap().trim_start_matches("socket:[");
        let inode: u64 = socket.trim_end_matches(']').parse().unwrap();
        Lookout::begin(self.server.pid(), inode)
    }

    pub(crate) fn signal(&self, with: Signal) {
        self.server.signal(with).unwrap();
    }
}

/// Root may; others where nothing restricts it (ptrace(2)).
pub(crate) fn may_trace() -> bool {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    rustix::process::geteuid().is_root() || scope.is_ok_and(|scope| scope.trim() == "0")
}

/// Looks again and again how many workers have the kernel tell them of new connections, which is what no supervisor says of
/// itself.
pub(crate) struct Lookout {
    seen: Arc<Mutex<Vec<usize>>>,
    looking: JoinHandle<()>,
}

impl Lookout {
    fn begin(supervisor: u32, inode: u64) -> Self {
        let seen = Arc::<Mutex<Vec<usize>>>::default();
        let counts = Arc::clone(&seen);
        let looking = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(LOOK_EVERY);
            loop {
                ticks.tick().await;
                let began = Instant::now();
                let workers = children(supervisor).into_iter();
                let count = workers.filter(|pid| accepts(*pid, inode)).count();
                // One that takes longer may miss who comes and who goes.
                if began.elapsed() < LOOK_MAX {
                    counts.lock().unwrap().push(count);
                }
            }
        });
        Self { seen, looking }
    }

    /// How often it has looked, and the fewest that it has seen.
    pub(crate) fn fewest(self) -> (usize, usize) {
        self.looking.abort();
        let seen = self.seen.lock().unwrap();
        (seen.len(), seen.iter().copied().min().unwrap_or(0))
    }
}

/// Whether a process watches a socket by epoll(7), as proc_pid_fdinfo(5) has it.
fn accepts(pid: u32, inode: u64) -> bool {
    let wanted = format!("ino:{inode:x}");
    let table = fs::read_dir(format!("/proc/{pid}/fdinfo"));
    let mut texts = table
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok());
    texts.any(|text| {
        let mut watched = text.lines().filter(|line| line.starts_with("tfd:"));
        watched.any(|line| line.split_whitespace().any(|word| word == wanted))
    })
}

/// Root alone can become somebody else.
pub(crate) const NOBODY: [&str; 4] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
];
/// How often a lookout looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Less than [`QUICK`]'s workers are ready before others leave.
const LOOK_MAX: Duration = Duration::from_millis(40);

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

pub(crate) const PROGRAM: &str = "app";
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
