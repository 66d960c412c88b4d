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
//! # The supervisor's own upgrade
//!
//! On SIGUSR2, or by `handover upgrade --supervisor`, its process becomes the program that its own name leads to by then:
//! same process number, same sockets, same workers, which notice nothing. That program is tried before, in a process of
//! its own that gets all of the state and has to show that it can go on with it; if it cannot, nothing has changed. One
//! that fails after that all the same becomes the image again that ran before. While an update is under way, or the pool
//! stops, it is refused. Plan, deadlines and sockets are what the new program says; the number of workers is what
//! operators have made of it, unless the program itself says another number than before.
//!
//! Run a pool in a runtime with a single thread (`#[tokio::main(flavor = "current_thread")]`), as `handover run` does: with
//! more of them a signal that comes in the very moment of the upgrade can be lost.
//!
//! # Logs
//!
//! Workers have the supervisor's standard output and standard error. With [`Logs::Prefixed`] each line says which worker of
//! which release has written it, and a candidate's last words explain why an update was undone. A process of its own reads
//! and writes the lines, so that a slow log never stops the supervisor and workers of a killed one are heard on.
//!
//! # If the supervisor is killed
//!
//! Its workers serve on, since each of them holds the sockets, and leave when they are told to (SIGTERM). One that is
//! started again with the same sockets takes these back from them, if the kernel lets it trace them (ptrace(2)): its own
//! workers start, and those of before leave. Nobody is refused meanwhile. Where it may not, [`Builder::start`] says which
//! processes they are and who may. Only its own user's and root's workers and sockets are believed to be those: workers that
//! have become another user (sudo(8), setpriv(1)) have to be stopped first. If the pool was being stopped, its sockets
//! refuse everybody already: what workers are left leave first, and new sockets are bound.

mod controller;
mod counted;
mod desk;
mod ears;
mod inheritance;
mod judge;
mod kept;
mod logs;
#[cfg(test)]
mod model;
mod operator;
mod orphans;
mod plan;
mod readiness;
mod reaper;
mod release;
mod service;
mod signals;
mod slots;
mod sockets;
mod supervisor;
mod takeover;
mod worker;

use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, mpsc, watch};

pub use self::logs::{LOGS_WITHIN, Logs};
pub use self::plan::{
    BACKOFF, BACKOFF_ALONE, BACKOFF_MAX, Care, FORGIVEN_AFTER, HALT_ON_FAILURES, HEALTHY_DEADLINE,
    LOOP_AFTER, MIN_HEALTHY, OnFailure, PROGRESS_DEADLINE, Plan, SURGE, UNAVAILABLE, WORKER_STOP,
};
pub use self::readiness::Readiness;
pub use self::sockets::Listen;

use self::controller::{Controller, Refusal as Refused};
use self::desk::{Desk, SUPERVISOR};
use self::inheritance::{Heir, Inheritance};
use self::orphans::Orphans;
use self::release::{Command, Release};
use self::service::Service;
use self::signals::Signals;
use self::sockets::Sockets;
use self::supervisor::{Parts, Saved, Supervisor};
use crate::config::{CONTROL_DEADLINE, SUPERVISOR_TRIAL};
use crate::control::{self, Asked, Happened, Refusal, Reply, Request, Upgrade, What};
use crate::drain::Drain;
use crate::error::{Error, ErrorKind, Result};
use crate::listen::Table;
use crate::sys::environment::Snapshot;
use crate::sys::process::set_name;
use crate::systemd::activation;

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
        forwarded: Vec::new(),
        reuseport: false,
        trial_within: SUPERVISOR_TRIAL,
        logs: Logs::default(),
        logs_within: LOGS_WITHIN,
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
    forwarded: Vec<i32>,
    reuseport: bool,
    trial_within: Duration,
    logs: Logs,
    logs_within: Duration,
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

    /// A variable that workers have beside this process's own, or in the place of one of the same name.
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

    /// How long a worker that was told to stop may take until it is killed, with its process group. Where the pool itself
    /// stops, that counts from when the stop began: emptying the queues first takes [`STOP_EMPTY`](crate::config::STOP_EMPTY)
    /// or half of it at most. Default: [`WORKER_STOP`], 28 s.
    pub fn stop_within(mut self, limit: Duration) -> Self {
        self.stop_within = limit;
        self
    }

    /// The path of a Unix socket by which operators ask the pool: see [`control`]. Default: none.
    pub fn control(mut self, path: impl Into<PathBuf>) -> Self {
        self.control = Some(path.into());
        self
    }

    /// Whether each worker has a TCP socket of its own on the shared port (`SO_REUSEPORT`, socket(7)), for an even balance
    /// of connections. Default: `false`, one socket for all.
    ///
    /// Nobody who waits is lost: the supervisor holds all of the sockets, as many as workers and surge from the start. The
    /// kernel fills those of ready workers only; one that leaves has emptied its queue before, and the queue of one that
    /// has crashed is its successor's. What differs: connections in the queue of a worker that has crashed wait for that
    /// successor, since no other worker sees them, and beyond that number of workers sockets are shared. Sockets of a
    /// service manager have to be made with `ReusePort=yes`. A [next supervisor](self#the-supervisors-own-upgrade) cannot
    /// have fewer of them.
    pub fn reuseport(mut self, reuseport: bool) -> Self {
        self.reuseport = reuseport;
        self
    }

    /// Passes a signal to every worker, by its number: `SIGUSR1`, `SIGWINCH`, and `SIGUSR2` or `SIGHUP` in the place of what
    /// they mean here. Default: none.
    pub fn forward(mut self, signal: i32) -> Self {
        self.forwarded.push(signal);
        self
    }

    /// How long the next supervisor may take to show, in a trial, that it can take over from this one. Default:
    /// [`SUPERVISOR_TRIAL`], 10 s.
    pub fn trial_within(mut self, limit: Duration) -> Self {
        self.trial_within = limit;
        self
    }

    /// Where the lines go that workers write. Default: [`Logs::Plain`].
    pub fn logs(mut self, logs: Logs) -> Self {
        self.logs = logs;
        self
    }

    /// How long the last lines of those who are gone are waited for, with [`Logs::Prefixed`]: of a candidate that has failed,
    /// before the verdict is told, and of all workers, before a stop is over. Default: [`LOGS_WITHIN`], 2 s.
    pub fn logs_within(mut self, limit: Duration) -> Self {
        self.logs_within = limit;
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
    /// From now on SIGHUP begins a rolling update, SIGTERM and SIGINT stop the pool, and SIGUSR2 upgrades the supervisor.
    ///
    /// In a [trial of the next supervisor](self#the-supervisors-own-upgrade), and where it relays [logs](Logs::Prefixed), it
    /// does not return before that is over, and returns an error then, by which the program is to end.
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
        if let Some(over) = logs::relay_if_asked(snapshot) {
            return Err(over);
        }
        match Inheritance::take(snapshot) {
            None => Ok(self.begin(snapshot).await?.open()),
            Some(inheritance) => self.inherit(snapshot, inheritance?).await,
        }
    }

    async fn inherit(
        self,
        snapshot: &'static Snapshot,
        inheritance: Inheritance<Saved>,
    ) -> Result<Pool> {
        let resumed = self.resume(snapshot, &inheritance).await;
        match (&inheritance.heir, resumed) {
            (Heir::OnTrial, Ok(_)) => Err(inheritance.tried().await),
            (Heir::Next, Err(error)) => Err(inheritance.go_back(&error)),
            (Heir::Back(why), Ok(standing)) => {
                let reason = format!("the supervisor is the one before again: {why}");
                standing.tell(What::Refused { reason });
                Ok(standing.open())
            }
            (_, resumed) => Ok(resumed?.open()),
        }
    }

    async fn begin(self, snapshot: &'static Snapshot) -> Result<Standing> {
        let now = Instant::now();
        let (plan, care) = (self.plan.clone(), self.care.clone());
        let machine = Controller::new(self.workers, FIRST, plan, care, self.stop_within, now);
        let machine = machine.map_err(unplanned)?;
        let table = Table::default();
        let passed = activation::take(snapshot).sockets;
        let is_passed = !passed.is_empty();
        for problem in table.adopt_activated(passed) {
            tracing::warn!(?problem, "a socket of the service manager");
        }
        let (sockets, orphans) = takeover::claim(
            table,
            &self.listen,
            self.slots(),
            is_passed,
            self.stop_within,
        )
        .await?;
        let door = self.door(&sockets).await?;
        let command = self.command(snapshot);
        let starting = |error| self.starting(error);
        let first = Release::find(FIRST, &command).map_err(starting)?;
        let (parts, wires) =
            self.parts(snapshot, sockets, machine, Before::none(snapshot, orphans))?;
        let supervisor = Supervisor::begin(parts, first).map_err(starting)?;
        Ok(Standing {
            supervisor,
            door,
            wires,
        })
    }

    /// Goes on where the supervisor before this one was, in the same process. Nothing is taken out of the inheritance.
    async fn resume(
        &self,
        snapshot: &'static Snapshot,
        inheritance: &Inheritance<Saved>,
    ) -> Result<Standing> {
        let saved = inheritance.state.clone();
        let mut files = inheritance.files();
        let starting = |error| self.starting(error);
        let slots = saved.sockets.iter().cloned();
        let slots: io::Result<Vec<_>> = slots.map(|slot| Ok((slot, files.take()?))).collect();
        let table = Table::default();
        self.check_slots(sockets::slots_of(&saved.sockets))?;
        table.adopt(slots.map_err(starting)?)?;
        let sockets = Sockets::claim(table, &self.listen, self.slots()).await?;
        let door = self.door(&sockets).await?;
        sockets.table().close_unclaimed();
        let wanted = (self.workers != saved.workers_at_start).then_some(self.workers);
        let (plan, care, now) = (self.plan.clone(), self.care.clone(), Instant::now());
        let machine = saved.machine.clone();
        let machine = Controller::restore(machine, wanted, plan, care, self.stop_within, now);
        let number = match inheritance.heir {
            Heir::Back(_) => saved.supervisor.saturating_sub(1),
            Heir::OnTrial | Heir::Next => saved.supervisor,
        };
        let before = Before {
            number,
            called: saved.called.clone(),
            has_told_ready: saved.has_told_ready,
            orphans: Orphans::default(),
        };
        let machine = machine.map_err(unplanned)?;
        let (parts, wires) = self.parts(snapshot, sockets, machine, before)?;
        let supervisor = Supervisor::resume(parts, saved, &mut files).map_err(starting)?;
        if let Some(name) = snapshot
            .argv
            .first()
            .and_then(|it| Path::new(it).file_name())
        {
            // Its name is a number where it was executed by a descriptor; that is all that is lost.
            let _ = set_name(name);
        }
        Ok(Standing {
            supervisor,
            door,
            wires,
        })
    }

    fn slots(&self) -> usize {
        match self.reuseport {
            true => self.workers + self.plan.surge,
            false => 1,
        }
    }

    /// Workers serve on sockets that would be nobody's with fewer slots.
    fn check_slots(&self, before: usize) -> Result<()> {
        let slots = self.slots();
        if slots < before {
            let doing = "keeping workers that have sockets of their own";
            let reason = format!("there are {before} for each address, and would be {slots}");
            return Err(Error::new(ErrorKind::Launch, doing).because(reason));
        }
        Ok(())
    }

    fn command(&self, snapshot: &Snapshot) -> Command {
        Command {
            argv: self.argv.clone(),
            env: self.variables(&snapshot.env),
            cwd: snapshot.cwd.clone(),
        }
    }

    /// Each name once: of two of a name getenv(3) would find the first.
    fn variables(&self, inherited: &[(OsString, OsString)]) -> Vec<(OsString, OsString)> {
        let mut variables = inherited.to_vec();
        for (name, value) in &self.env {
            variables.retain(|(other, _)| other != name);
            variables.push((name.clone(), value.clone()));
        }
        variables
    }

    async fn door(&self, sockets: &Sockets) -> Result<Option<UnixListener>> {
        match &self.control {
            Some(path) => sockets.table().control(path).await.map(Some),
            None => Ok(None),
        }
    }

    fn parts(
        &self,
        snapshot: &'static Snapshot,
        sockets: Sockets,
        machine: Controller,
        before: Before,
    ) -> Result<(Parts, Wires)> {
        let listening =
            |error: io::Error| Error::new(ErrorKind::Io, "listening for signals").because(error);
        let (asks, inbox) = mpsc::channel(ASKS_MAX);
        let (events, beginning) = broadcast::channel(EVENTS_KEPT);
        let (asked, _) = watch::channel(Asked::Yes);
        let exit_code = Arc::new(AtomicU8::new(0));
        let parts = Parts {
            command: self.command(snapshot),
            readiness: self.readiness,
            logs: self.logs,
            logs_within: self.logs_within,
            build: self.build.clone(),
            sockets,
            machine,
            signals: Signals::listen(&self.forwarded).map_err(listening)?,
            inbox,
            events: events.clone(),
            asked: asked.clone(),
            exit_code: Arc::clone(&exit_code),
            service: Service::of(snapshot, before.has_told_ready, &events),
            number: before.number,
            called: before.called,
            slots: self.slots(),
            workers_at_start: self.workers,
            snapshot,
            trial_within: self.trial_within,
            orphans: before.orphans,
            stop_within: self.stop_within,
        };
        let desk = Desk {
            asks,
            events,
            asked,
            answers: Drain::new(CONTROL_DEADLINE, CONTROL_DEADLINE),
        };
        let wires = Wires {
            desk,
            beginning,
            exit_code,
        };
        Ok((parts, wires))
    }

    fn starting(&self, error: io::Error) -> Error {
        let doing = format!("starting {:?}", self.argv.first());
        Error::new(ErrorKind::Launch, doing).because(error)
    }
}

/// What goes on from one supervisor to the next.
struct Before {
    number: u64,
    called: Vec<OsString>,
    has_told_ready: bool,
    orphans: Orphans,
}

impl Before {
    fn none(snapshot: &Snapshot, orphans: Orphans) -> Self {
        Self {
            number: 1,
            called: snapshot.argv.clone(),
            has_told_ready: false,
            orphans,
        }
    }
}

/// A supervisor that nobody runs yet.
struct Standing {
    supervisor: Supervisor,
    door: Option<UnixListener>,
    wires: Wires,
}

/// The ends that are the pool's.
struct Wires {
    desk: Desk,
    beginning: broadcast::Receiver<What>,
    exit_code: Arc<AtomicU8>,
}

impl Standing {
    fn tell(&self, what: What) {
        // The receiver is in the wires.
        let _ = self.wires.desk.events.send(what);
    }

    fn open(self) -> Pool {
        let Wires {
            desk,
            beginning,
            exit_code,
        } = self.wires;
        if let Some(door) = self.door {
            tokio::spawn(control::serve(door, desk.clone()));
        }
        tokio::spawn(self.supervisor.run());
        Pool {
            asked: desk.asked.subscribe(),
            desk,
            events: Some(Events(beginning)),
            exit_code,
        }
    }
}

/// A pool that runs. Dropping it leaves the pool as it is, until its runtime ends.
#[derive(Debug)]
pub struct Pool {
    desk: Desk,
    asked: watch::Receiver<Asked>,
    events: Option<Events>,
    exit_code: Arc<AtomicU8>,
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

    /// What the process is to end with once the pool has [stopped](Self::stopped): 0 if every worker left as it was told to;
    /// else the exit code of the last one that did not, or 128 and the number of the signal that ended it, 137 for one that
    /// had to be killed. So it is if one could not even be killed, as somebody else's by now (sudo(8)): it is left behind
    /// [`EXIT_DEADLINE`](crate::config::EXIT_DEADLINE) later, and named.
    pub fn exit_code(&self) -> u8 {
        self.exit_code.load(Ordering::Relaxed)
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

fn unplanned(refusal: Refused) -> Error {
    Error::new(ErrorKind::Launch, "planning the pool").because(refusal.to_string())
}

/// The first release's number.
const FIRST: u64 = 1;
/// Requests of operators that wait for the supervisor.
const ASKS_MAX: usize = 64;
/// Events that a slow reader may fall behind before it misses some.
const EVENTS_KEPT: usize = 256;

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use nix::sys::wait::{WaitPidFlag, waitpid};

    use super::*;
    use crate::sys::testing::ran_in_its_own_process;

    #[test]
    fn a_variable_takes_the_place_of_the_one_that_this_process_has() {
        let variable = |(name, value): (&str, &str)| (name.into(), value.into());
        let inherited = [("PATH", "/bin"), ("MODE", "slow"), ("HOME", "/")].map(variable);
        let builder = builder("true").env("MODE", "fast").env("MODE", "faster");
        let wanted = [("PATH", "/bin"), ("HOME", "/"), ("MODE", "faster")].map(variable);
        assert_eq!(builder.variables(&inherited), wanted);
    }

    #[tokio::test]
    async fn a_pool_that_cannot_be_started_leaves_nobody_behind() {
        let name = "pool::tests::a_pool_that_cannot_be_started_leaves_nobody_behind";
        if ran_in_its_own_process(name, &[]) {
            return;
        }
        let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // Some of them can be watched, and not all.
        setrlimit(Resource::RLIMIT_NOFILE, open + 50, hard).unwrap();
        let builder = builder("/bin/sleep").arg("3600").workers(100);
        let error = builder.start().await.unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("Too many open files"), "{error:?}");
        assert_eq!(
            waitpid(None, Some(WaitPidFlag::WNOHANG)),
            Err(Errno::ECHILD)
        );
    }
}
