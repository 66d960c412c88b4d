//! N workers of one service under a supervisor whose process never changes.
//!
//! For service managers that do not follow a main process, for containers, and for servers that are not written with this
//! crate: the supervisor binds the sockets and never serves, and whoever knows LISTEN_FDS (sd_listen_fds(3)) can be a
//! worker. It replaces them one after another, goes back by itself when the new release is bad, and replaces those that
//! crash, while connections wait in the sockets' queues.
//!
//! ```no_run
//! # async fn example() -> handover::Result<()> {
//! let mut pool = handover::pool::builder("/srv/app/current/server")
//!     .arg("--quiet")
//!     .listen("web=0.0.0.0:8080".parse().expect("a name and an address"))
//!     .workers(4)
//!     .start()
//!     .await?;
//! // SIGHUP begins a rolling update, SIGTERM stops the pool.
//! pool.stopped().await;
//! # Ok(())
//! # }
//! ```
//!
//! The same as a program is `handover run --listen web=0.0.0.0:8080 --workers 4 -- ./server`.
//!
//! # A rolling update
//!
//! ```text
//! candidates  start ─ ready ─ min_healthy ┬─ start ─ ready ─ min_healthy ┬ ... all of them: committed
//!             the first one alone         │  then batches                │
//! stable      ──────────────────────────── one leaves ───────────────────── one more leaves ...
//!             a candidate that ends, is not ready in time or answers worse: halted, and stable ones come back
//! ```
//!
//! Workers share one accept queue, so a worker is a unit of capacity and no address: the part of the traffic that
//! candidates get is about their part of the workers, and no exact share. [`Plan`] says how fast, and what becomes of a
//! failure; [`Care`] what becomes of workers that crash.
//!
//! # What a worker has to do
//!
//! - Serve on the sockets that it is passed: `LISTEN_FDS`, `LISTEN_FDNAMES`, `LISTEN_PID`. Never `shutdown()` one of them:
//!   they are everybody's.
//! - Say `READY=1` on `NOTIFY_SOCKET`, unless the pool asks otherwise: see [`Readiness`].
//! - Finish what it has begun on SIGTERM, and leave. It is killed after [`Builder::stop_within`].
//!
//! A program that is written with this crate does all of it by itself: [`start`](crate::start) sees that it is a worker,
//! leaves the upgrade signal, the control socket and the PID file to the supervisor, and reports what it counts, by which
//! candidates are judged. What it keeps ([`keep_state`](crate::Serving::keep_state)) is found by the workers that are
//! started after it; hooks that pass state to a successor have none to pass it to.
//!
//! # If the supervisor is killed
//!
//! Its workers serve on, since each of them holds the sockets, and leave when they are told to (SIGTERM). One that is
//! started again with the same sockets takes these back from them, if the kernel lets it trace them (ptrace(2)): its own
//! workers start, and those of before leave. Nobody is refused meanwhile.

mod controller;
mod desk;
mod judge;
mod kept;
#[cfg(test)]
mod model;
mod operator;
mod orphans;
mod plan;
mod readiness;
mod release;
mod sockets;
mod supervisor;

mod worker;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, mpsc, watch};

pub use self::plan::{
    BACKOFF, BACKOFF_ALONE, BACKOFF_MAX, Care, FORGIVEN_AFTER, HALT_ON_FAILURES, HEALTHY_DEADLINE,
    LOOP_AFTER, MIN_HEALTHY, OnFailure, PROGRESS_DEADLINE, Plan, SURGE, UNAVAILABLE, WORKER_STOP,
};
pub use self::readiness::Readiness;
pub use self::sockets::Listen;

use self::controller::Controller;
use self::desk::{Desk, SUPERVISOR};
use self::orphans::Orphans;
use self::release::{Command, Release};
use self::sockets::Sockets;
use self::supervisor::{Parts, Supervisor};
use crate::config::CONTROL_DEADLINE;
use crate::control::{self, Asked, Happened, Refusal, Reply, Request, Upgrade, What};
use crate::drain::Drain;
use crate::error::{Error, ErrorKind, Result};
use crate::listen::Table;
use crate::sys::environment::Snapshot;
use crate::systemd::activation;
use crate::trigger::Signals;

/// How many workers a pool has unless it is told: 1.
pub const WORKERS: usize = 1;

/// A pool of workers of this program: a path, or a name that is looked for along `PATH`, anew by each update.
pub fn builder(program: impl Into<OsString>) -> Builder {
    Builder {
        argv: vec![program.into()],
        env: Vec::new(),
        listen: Vec::new(),
        workers: WORKERS,
        plan: Plan::default(),
        care: Care::default(),
        readiness: Readiness::default(),
        stop_within: WORKER_STOP,
        control: None,
        build: String::new(),
    }
}

/// What a pool is to be.
#[derive(Clone, Debug)]
#[must_use = "a pool does nothing until it is started"]
pub struct Builder {
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    listen: Vec<Listen>,
    workers: usize,
    plan: Plan,
    care: Care,
    readiness: Readiness,
    stop_within: Duration,
    control: Option<PathBuf>,
    build: String,
}

impl Builder {
    /// One more argument of the program.
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.argv.push(argument.into());
        self
    }

    /// More arguments of the program.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.argv.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// A variable that workers have beside this process's own.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// One more socket for all workers. One that a service manager has passed to this process is taken if it has the name
    /// and the address.
    pub fn listen(mut self, listen: Listen) -> Self {
        self.listen.push(listen);
        self
    }

    /// How many workers there are to be. Default: [`WORKERS`], 1.
    pub fn workers(mut self, count: usize) -> Self {
        self.workers = count;
        self
    }

    /// How workers are replaced. Default: [`Plan::default`].
    pub fn plan(mut self, plan: Plan) -> Self {
        self.plan = plan;
        self
    }

    /// What becomes of workers that crash. Default: [`Care::default`].
    pub fn care(mut self, care: Care) -> Self {
        self.care = care;
        self
    }

    /// When a worker is ready. Default: [`Readiness::Notify`].
    pub fn readiness(mut self, readiness: Readiness) -> Self {
        self.readiness = readiness;
        self
    }

    /// How long a worker that was told to stop may take until it is killed, with its process group. Default:
    /// [`WORKER_STOP`], 28 s.
    pub fn stop_within(mut self, limit: Duration) -> Self {
        self.stop_within = limit;
        self
    }

    /// The path of a Unix socket by which operators ask the pool: see [`control`]. Default: none.
    pub fn control(mut self, path: impl Into<PathBuf>) -> Self {
        self.control = Some(path.into());
        self
    }

    /// What operators know this release of the service by. Default: empty.
    pub fn build_id(mut self, build: impl Into<String>) -> Self {
        self.build = build.into();
        self
    }

    /// Binds the sockets and starts the workers. Call it before other threads use the environment: the variables that the
    /// service manager meant for this process are removed from it.
    ///
    /// From now on SIGHUP begins a rolling update, and SIGTERM and SIGINT stop the pool.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Listen`] if a socket cannot be had, [`ErrorKind::Launch`] if the program cannot be started or the plan
    /// cannot be carried out, [`ErrorKind::Io`] for the rest. Nothing is left behind then.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind before it returns.
    pub async fn start(self) -> Result<Pool> {
        let snapshot = Snapshot::take();
        let now = Instant::now();
        let machine = Controller::new(
            self.workers,
            FIRST,
            self.plan,
            self.care,
            self.stop_within,
            now,
        );
        let machine = machine.map_err(|refusal| {
            Error::new(ErrorKind::Launch, "planning the pool").because(refusal.to_string())
        })?;
        let table = Table::default();
        let passed = activation::take(snapshot);
        for problem in table.adopt_activated(passed.sockets) {
            tracing::warn!(?problem, "a socket of the service manager");
        }
        let (sockets, orphans) = claim(table, &self.listen).await?;
        let door = match &self.control {
            Some(path) => Some(sockets.table().control(path).await?),
            None => None,
        };
        let env = [snapshot.env.clone(), self.env].concat();
        let command = Command {
            argv: self.argv,
            env,
            cwd: snapshot.cwd.clone(),
        };
        let starting = || {
            let doing = format!("starting {:?}", command.argv.first());
            Error::new(ErrorKind::Launch, doing)
        };
        let first = Release::find(FIRST, &command).map_err(|error| starting().because(error))?;
        let (asks, inbox) = mpsc::channel(ASKS_MAX);
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        let (asked, _) = watch::channel(Asked::Yes);
        let parts = Parts {
            command: command.clone(),
            readiness: self.readiness,
            build: self.build,
            sockets,
            machine,
            signals: signals()?,
            inbox,
            events: events.clone(),
            asked: asked.clone(),
            orphans,
            stop_within: self.stop_within,
        };
        let beginning = events.subscribe();
        let supervisor = Supervisor::begin(parts, first);
        let supervisor = supervisor.map_err(|error| starting().because(error))?;
        let answers = Drain::new(CONTROL_DEADLINE, CONTROL_DEADLINE);
        let desk = Desk {
            asks,
            events,
            asked: asked.clone(),
            answers,
        };
        if let Some(door) = door {
            tokio::spawn(control::serve(door, desk.clone()));
        }
        tokio::spawn(supervisor.run());
        Ok(Pool {
            desk,
            asked: asked.subscribe(),
            events: Some(Events(beginning)),
        })
    }
}

/// A pool that runs. Dropping it leaves the pool as it is, until its runtime ends.
#[derive(Debug)]
pub struct Pool {
    desk: Desk,
    asked: watch::Receiver<Asked>,
    events: Option<Events>,
}

/// What happens to a pool.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<What>);

impl Pool {
    /// What has happened since the start; later calls get what happens from then on.
    pub fn events(&mut self) -> Events {
        let from_now = || Events(self.desk.events.subscribe());
        self.events.take().unwrap_or_else(from_now)
    }

    /// Asks what an operator could ask by the control socket; all of it but [`Request::Events`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] if the pool would not.
    ///
    /// # Cancel safety
    ///
    /// What was asked for goes on or not; nobody hears of it.
    pub async fn ask(&self, request: Request) -> Result<Reply> {
        match self.desk.ask(request).await {
            Reply::Error(Refusal { message, .. }) => {
                Err(Error::new(ErrorKind::Refused, "asking the pool").because(message))
            }
            reply => Ok(reply),
        }
    }

    /// Replaces all workers, by what the program is by now, and says how that ended.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] if it was not begun. A release that was undone is no error: see
    /// [`Upgrade::verdict`](control::Upgrade::verdict).
    ///
    /// # Cancel safety
    ///
    /// The update goes on.
    pub async fn upgrade(&self) -> Result<Upgrade> {
        let request = Request::Upgrade {
            wait: true,
            strategy: None,
            plan: None,
            automatic: false,
        };
        let refused = || Error::new(ErrorKind::Refused, "updating the pool");
        match self.ask(request).await? {
            Reply::Verdict { upgrade } => Ok(*upgrade),
            Reply::Held { reason, .. } => Err(refused().because(reason)),
            other => Err(refused().because(format!("it answered {other:?}"))),
        }
    }

    /// Have this many workers from now on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] if there is no pool of this size, or it stops.
    ///
    /// # Cancel safety
    ///
    /// It is done or not.
    pub async fn scale(&self, workers: usize) -> Result<()> {
        self.ask(Request::Scale { workers }).await.map(drop)
    }

    /// Stops the pool: new connections are refused, the queues are emptied, and the workers finish what they have begun.
    ///
    /// # Cancel safety
    ///
    /// It stops all the same.
    pub async fn stop(&mut self) {
        // One that stops already is what was wanted.
        let _ = self.desk.ask(Request::Stop { now: false }).await;
        self.stopped().await;
    }

    /// Waits until the pool has stopped, for whatever reason, and operators have their answers.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn stopped(&mut self) {
        // An error says that it is gone.
        let _ = self
            .asked
            .wait_for(|asked| *asked == Asked::NeverAgain)
            .await;
        self.desk.answers.begin_within(CONTROL_DEADLINE);
        self.desk.answers.drained().await;
    }
}

impl Events {
    /// The next one. `None` when the pool has stopped and all of them have been seen.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<Happened> {
        let what = match self.0.recv().await {
            Ok(what) => what,
            Err(broadcast::error::RecvError::Lagged(count)) => What::Missed { count },
            Err(broadcast::error::RecvError::Closed) => return None,
        };
        Some(Happened::now(SUPERVISOR, what))
    }
}

/// An address that is in use may be that of workers whose supervisor was killed: then it is taken back from them.
async fn claim(table: Table, listen: &[Listen]) -> Result<(Sockets, Orphans)> {
    let in_use = match Sockets::claim(table, listen).await {
        Ok(sockets) => return Ok((sockets, Orphans::default())),
        // The table is gone with what it had bound.
        Err(error) => error,
    };
    let orphans = Orphans::find(listen);
    if orphans.is_empty() {
        return Err(in_use);
    }
    let taking = || {
        let whose = orphans.pids();
        let doing =
            format!("taking the sockets of processes {whose:?}, whose supervisor was killed");
        Error::new(ErrorKind::Listen, doing)
    };
    let table = Table::default();
    let taken = orphans.sockets().map_err(|reason| {
        taking().because(format!("{reason}; they serve on, so stop them first"))
    })?;
    if let Some(problem) = table.adopt_activated(taken).pop() {
        return Err(taking().because(problem));
    }
    // If it is somebody else who has the address, it still is.
    let sockets = Sockets::claim(table, listen).await?;
    sockets.table().close_unclaimed_activated();
    let orphans = orphans.that_have(&sockets);
    Ok((sockets, orphans))
}

fn signals() -> Result<Signals> {
    let mut signals = Signals::default();
    let listening = signals
        .listen_upgrade(Some(libc::SIGHUP))
        .and_then(|()| signals.listen_stop(&[libc::SIGTERM, libc::SIGINT]));
    listening.map_err(|error| Error::new(ErrorKind::Io, "listening for signals").because(error))?;
    Ok(signals)
}

/// The first release's number.
const FIRST: u64 = 1;
/// Requests of operators that wait for the supervisor.
const ASKS_MAX: usize = 64;
/// Events that a slow reader may fall behind before it misses some.
const EVENTS_KEPT: usize = 256;
