//! The one task that joins the machine and the processes: await one input, `handle_*`, perform every `poll_output`.
//!
//! The supervisor holds the sockets and never accepts from them: it is an incumbent whose gates are shut for ever.

mod saved;
mod succession;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::future::{pending, poll_fn};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::geteuid;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{sleep_until, timeout_at};

pub(super) use self::saved::Saved;
use self::succession::Trial;
use self::verdict::{Decided, Failed};
use super::controller::{Controller, Output, ReleaseId, Stage, WorkerId};
use super::counted::{Counted, slow_threshold};
use super::ears::Ears;
use super::judge::{Judge, Standing};
use super::kept::Kept;
use super::logs::{Logs, Outlets, Relayed};
use super::orphans::Orphans;
use super::plan::Plan;
use super::readiness::{self, Notification, NotifySocket, PROBE, Readiness};
use super::reaper;
use super::release::{Command, Release};
use super::service::Service;
use super::signals::{Heard, Signals};
use super::slots::{Holder, SlotIndex, Slots};
use super::sockets::{self, Sockets};
use super::worker::Worker;
use crate::config::{EXIT_DEADLINE, STOP_EMPTY, STOP_SETTLE};
use crate::control::{Asked, History, Reply, Request, Upgrade, Verdict, What, unix_ms};
use crate::error::Result;
use crate::protocol::message::{Slot, millis};
use crate::sys::environment::{Snapshot, WORKER};
use crate::systemd::notify::WATCH;
use crate::trigger::Trigger;

/// What a pool is, beside the machine's numbers.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) command: Command,
    pub(super) readiness: Readiness,
    pub(super) logs: Logs,
    /// How long the last lines of those who are gone are waited for.
    pub(super) logs_within: Duration,
    pub(super) build: String,
    pub(super) sockets: Sockets,
    pub(super) machine: Controller,
    pub(super) signals: Signals,
    pub(super) inbox: mpsc::Receiver<Ask>,
    pub(super) events: broadcast::Sender<What>,
    pub(super) asked: watch::Sender<Asked>,
    pub(super) orphans: Orphans,
    pub(super) stop_within: Duration,
    /// What the process is to end with.
    pub(super) exit_code: Arc<AtomicU8>,
    pub(super) service: Service,
    /// Which supervisor this is in its process.
    pub(super) number: u64,
    /// How many slots there are, each with sockets of its own if it is more than one.
    pub(super) slots: usize,
    /// How many workers the program wants, whatever operators make of it.
    pub(super) workers_at_start: usize,
    /// What the first supervisor of this process was started as, whatever a script has made of that: what it leads to is the
    /// next one.
    pub(super) called: Vec<OsString>,
    /// How this process was started, which the next supervisor is too.
    pub(super) snapshot: &'static Snapshot,
    /// How long that one may take in its trial.
    pub(super) trial_within: Duration,
}

impl Parts {
    fn by_slot(&self) -> Vec<Vec<(String, Arc<OwnedFd>)>> {
        (0..self.slots)
            .map(|slot| self.sockets.of_slot(slot))
            .collect()
    }

    fn own_slots(&self) -> Option<Slots> {
        let groups = self.sockets.groups(self.slots);
        (self.slots > 1).then(|| Slots::new(groups, self.slots))
    }
}

/// A request of an operator, and where its answer goes.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Reply>,
}

/// The task.
pub(super) struct Supervisor {
    pub(super) parts: Parts,
    /// The sockets once more, slot by slot, for workers that start while the pool gives its own up.
    pub(super) shared: Vec<Vec<(String, Arc<OwnedFd>)>>,
    /// If workers have sockets of their own.
    pub(super) slots: Option<Slots>,
    /// Workers that are to leave once nobody waits for them, and those of them for which that is so by now.
    pub(super) untold: BTreeSet<WorkerId>,
    pub(super) emptied: (mpsc::Sender<WorkerId>, mpsc::Receiver<WorkerId>),
    /// All that the table had, the control socket included, for the next supervisor.
    pub(super) held: Vec<(Slot, Arc<OwnedFd>)>,
    pub(super) notify: NotifySocket,
    pub(super) releases: BTreeMap<ReleaseId, Release>,
    /// The release before the stable one.
    pub(super) before: Option<ReleaseId>,
    pub(super) last_release: ReleaseId,
    pub(super) workers: BTreeMap<WorkerId, Worker>,
    pub(super) outlets: Outlets,
    pub(super) probed: (mpsc::Sender<WorkerId>, mpsc::Receiver<WorkerId>),
    pub(super) update: Option<Underwent>,
    /// The last candidate of it that has failed.
    failed: Option<Failed>,
    /// Its verdict, if last words are waited for.
    decided: Option<Decided>,
    pub(super) counted: Counted,
    pub(super) ears: Ears,
    pub(super) kept: Kept,
    pub(super) judge: Option<Judge>,
    pub(super) history: History,
    pub(super) waiting: Vec<oneshot::Sender<Reply>>,
    pub(super) giving_up: Option<Pin<Box<dyn Future<Output = Vec<String>> + Send>>>,
    /// Until those of a supervisor before this one have left, who were told to.
    pub(super) relieving: Option<Pin<Box<dyn Future<Output = Vec<String>> + Send>>>,
    trial: Option<Trial>,
    pub(super) began: Instant,
    pub(super) stable_since: SystemTime,
    pub(super) stopping_since: Option<Instant>,
    pub(super) is_stopped: bool,
}

/// When the update under way was asked for, and what it was from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Underwent {
    pub(super) from: ReleaseId,
    pub(super) since: Instant,
    pub(super) at: SystemTime,
}

enum Input {
    Exited(WorkerId),
    Relayed(Relayed),
    Said(Notification),
    Probed(WorkerId),
    Asked(Ask),
    Heard(Heard),
    Tried(Result<(), String>),
    Emptied(WorkerId),
    GivenUp(Vec<String>),
    Relieved(Vec<String>),
    TimedOut,
}

impl Supervisor {
    /// Starts the first workers.
    ///
    /// # Errors
    ///
    /// If one of them cannot be started at all. Whatever else becomes of them is for crash care.
    pub(super) fn begin(parts: Parts, first: Release) -> io::Result<Self> {
        let private = readiness::private_directory(parts.snapshot, geteuid().is_root());
        let mut this = Self {
            shared: parts.by_slot(),
            slots: parts.own_slots(),
            untold: BTreeSet::new(),
            emptied: mpsc::channel(PROBED_MAX),
            held: parts.sockets.table().offer(),
            notify: NotifySocket::open(private.as_deref())?,
            last_release: first.number,
            releases: BTreeMap::from([(first.number, first)]),
            before: None,
            workers: BTreeMap::new(),
            outlets: Outlets::new(parts.logs, parts.snapshot),
            probed: mpsc::channel(PROBED_MAX),
            update: None,
            failed: None,
            decided: None,
            counted: Counted::default(),
            ears: Ears::default(),
            kept: Kept::default(),
            judge: None,
            history: History::default(),
            waiting: Vec::new(),
            giving_up: None,
            relieving: None,
            trial: None,
            began: Instant::now(),
            stable_since: SystemTime::now(),
            stopping_since: None,
            is_stopped: false,
            parts,
        };
        while let Some(output) = this.parts.machine.poll_output() {
            if let Output::Start { worker, release } = output
                && let Err(error) = this.start(worker, release)
            {
                this.notify.remove();
                this.workers.into_values().for_each(Worker::discard);
                return Err(error);
            }
        }
        Ok(this)
    }

    /// Until the pool has stopped.
    pub(super) async fn run(mut self) {
        self.await_those_before();
        // Of those that ended while there was no handler nobody tells.
        self.reap_orphans();
        self.perform();
        self.report();
        // Neither those whose sockets were taken over nor the process of a trial are left behind.
        while !self.is_stopped || self.relieving.is_some() || self.trial.is_some() {
            match self.next().await {
                Input::Exited(worker) => self.collect(worker),
                Input::Relayed(relayed) => self.relayed(relayed),
                Input::Said(word) => self.hear(word),
                Input::Probed(worker) => self.is_ready(worker),
                Input::Asked(ask) => self.answer(ask),
                Input::Heard(heard) => self.heed(heard),
                Input::Tried(outcome) => self.tried(outcome).await,
                Input::Emptied(worker) => self.nobody_waits(worker),
                Input::GivenUp(cut_off) => self.given_up(&cut_off),
                Input::Relieved(left) => self.relieved(&left),
                Input::TimedOut => self.time_passed(),
            }
            self.perform();
            self.tell_decided();
            self.report();
        }
        self.outlets.finish(self.parts.logs_within).await;
        self.notify.remove();
        let took = self
            .stopping_since
            .map_or(Duration::ZERO, |since| since.elapsed());
        // Who could not be killed.
        let left = self.workers.iter();
        let left = left.map(|(id, worker)| format!("worker {id}, process {}", worker.pid));
        self.tell(What::Drained {
            stragglers: left.collect(),
            took_ms: millis(took),
        });
        // Nobody waits for it who has not gone.
        let _ = self.parts.asked.send(Asked::NeverAgain);
    }

    fn report(&mut self) {
        self.fill_slots();
        let machine = &self.parts.machine;
        self.parts.service.stands(machine.ready(), machine.wanted());
    }

    async fn next(&mut self) -> Input {
        let looks = self.judge.as_ref().map(Judge::poll_timeout);
        let deadline = self
            .parts
            .machine
            .poll_timeout()
            .into_iter()
            .chain(looks)
            .chain(self.decided.as_ref().map(|decided| decided.until))
            .min();
        let until = deadline.unwrap_or_else(Instant::now);
        let workers = &self.workers;
        let exited = poll_fn(|context| {
            let mut gone = workers.iter();
            let gone = gone.find(|(_, worker)| worker.poll_exited(context).is_ready());
            gone.map_or(Poll::Pending, |(id, _)| Poll::Ready(*id))
        });
        let given_up = if_any(self.giving_up.as_mut());
        let relieved = if_any(self.relieving.as_mut());
        let tried = if_any(self.trial.as_mut().map(|trial| &mut trial.outcome));
        let is_worker = |pid| workers.values().any(|worker| worker.pid == pid);
        // Whoever can come as often as he likes comes last.
        tokio::select! {
            biased;
            worker = exited => Input::Exited(worker),
            heard = self.parts.signals.next() => Input::Heard(heard),
            () = sleep_until(until.into()), if deadline.is_some() => Input::TimedOut,
            relayed = self.outlets.next() => Input::Relayed(relayed),
            Some(worker) = self.probed.1.recv() => Input::Probed(worker),
            Some(worker) = self.emptied.1.recv() => Input::Emptied(worker),
            outcome = tried => Input::Tried(outcome),
            cut_off = given_up => Input::GivenUp(cut_off),
            left = relieved => Input::Relieved(left),
            Some(ask) = self.parts.inbox.recv() => Input::Asked(ask),
            Ok(word) = self.notify.next(is_worker) => Input::Said(word),
        }
    }

    fn heed(&mut self, heard: Heard) {
        match heard {
            Heard::Trigger(Trigger::Upgrade) => self.roll_by_signal(),
            Heard::Trigger(Trigger::Stop) => self.stop(),
            Heard::Supervisor => self.upgrade_supervisor(None),
            Heard::Ended => self.reap_orphans(),
            Heard::Forward(signal) => self.forward(signal),
        }
    }

    fn time_passed(&mut self) {
        let now = Instant::now();
        let machine = &mut self.parts.machine;
        machine.handle_timeout(random_part(), now);
        let judging = self.judge.as_mut().zip(Standing::of(machine));
        let found = judging.and_then(|(judge, update)| judge.look(&self.counted, update, now));
        if let Some(reason) = found {
            machine.handle_unfit(reason, now);
        }
    }

    fn perform(&mut self) {
        while let Some(output) = self.parts.machine.poll_output() {
            match output {
                Output::Start { worker, release } => {
                    if let Err(error) = self.start(worker, release) {
                        let how = format!("it could not be started: {error}");
                        self.end(worker, release, None, &how);
                    }
                }
                Output::Stop { worker } => self.tell_to_stop(worker),
                Output::Kill { worker } => self.kill(worker),
                Output::Failed { worker } => self.has_failed(worker),
                Output::Lost { worker } => self.lose(worker),
                Output::Held { release, reason } => {
                    self.parts
                        .service
                        .reloaded(&format!("held: {reason}"), false);
                    self.tell(What::Held {
                        successor: release,
                        reason: reason.clone(),
                    });
                    self.resolve(&Reply::Held {
                        generation: release,
                        reason,
                    });
                }
                Output::Resumed { release } => {
                    if let Some(judge) = &mut self.judge {
                        judge.forgive(&self.counted, Instant::now());
                    }
                    self.tell(What::Resumed { successor: release });
                }
                Output::Reverting { release, reason } => self.tell(What::Reverting {
                    successor: release,
                    reason,
                }),
                Output::Verdict {
                    release,
                    ended,
                    reason,
                } => self.decide(release, ended, reason),
                Output::Looping { crashes } => {
                    let message =
                        format!("a crash loop: workers have crashed {crashes} times in a row");
                    self.tell(What::Warning { message });
                }
                Output::LoopOver => {
                    let message = "the crash loop is over".to_owned();
                    self.tell(What::Warning { message });
                }
                Output::Stopped => self.is_stopped = true,
            }
        }
    }
}

/// Workers.
impl Supervisor {
    fn start(&mut self, worker: WorkerId, release: ReleaseId) -> io::Result<()> {
        let image = self.releases.get(&release);
        let image = image.ok_or_else(|| io::Error::other("its image is not held any more"))?;
        let probe = match self.parts.readiness {
            Readiness::Accepts => Some(readiness::private_listener()?),
            _ => None,
        };
        let slot = self.vacant_slot();
        let shared = self.shared.get(slot).into_iter().flatten();
        let shared = shared.map(|(name, socket)| (name.as_str(), socket.as_fd()));
        let probing = probe.as_ref().map(|probe| (PROBE, probe.as_fd()));
        let passed = shared.chain(self.kept.state()).chain(probing);
        let (names, sockets): (Vec<&str>, Vec<BorrowedFd<'_>>) = passed.unzip();
        let names = sockets::names(&names);
        let extra: [(OsString, OsString); 3] = [
            ("LISTEN_FDNAMES".into(), names),
            ("NOTIFY_SOCKET".into(), self.notify.address()),
            (
                WORKER.into(),
                format!("{worker}:{}", std::process::id()).into(),
            ),
        ];
        let streams = self.outlets.open(worker, release)?;
        let streams = streams.as_ref();
        let streams = streams.map(|streams| streams.each_ref().map(AsFd::as_fd));
        let pid = image.start(&self.parts.command, &extra, &sockets, streams)?;
        let mut started = Worker::watch(pid, release, Instant::now())?;
        (started.probe, started.slot) = (probe, slot);
        self.await_ready(worker, &started);
        self.workers.insert(worker, started);
        self.tell_of(worker, release, Some(pid), "started", String::new());
        Ok(())
    }

    /// What a worker does not say itself.
    fn await_ready(&self, id: WorkerId, started: &Worker) {
        let (readiness, deadline) = (self.parts.readiness, self.parts.machine.ready_by(id));
        let Some(deadline) = deadline.filter(|_| readiness != Readiness::Notify) else {
            return;
        };
        let sender = self.probed.0.clone();
        let age = started.started.elapsed();
        // Without another descriptor it is not ready in time.
        let probe = started.probe.as_ref().and_then(|it| it.try_clone().ok());
        // Nobody hears of one that has gone in the meantime, and the machine does not listen.
        tokio::spawn(async move {
            let is_ready = match (readiness, probe) {
                (Readiness::Alive(time), _) => {
                    tokio::time::sleep(time.saturating_sub(age)).await;
                    true
                }
                (_, Some(probe)) => {
                    let accepted = timeout_at(deadline.into(), readiness::accepted(probe)).await;
                    accepted.is_ok_and(|accepted| accepted.is_ok())
                }
                _ => false,
            };
            if is_ready {
                let _ = sender.send(id).await;
            }
        });
    }

    fn hear(&mut self, mut word: Notification) {
        let mut workers = self.workers.iter_mut();
        // The word of anybody else is nobody's: a helper's, or a stranger's.
        let Some((&id, worker)) = workers.find(|(_, worker)| worker.pid == word.pid) else {
            return;
        };
        if let Some(tally) = word.tally() {
            let before = worker.tally.replace(tally.clone()).unwrap_or_default();
            let (who, age) = ((id, worker.release), worker.started.elapsed());
            self.counted.hear(who, age, &before, &tally);
        }
        if word.value(WATCH) == Some("1")
            && let Some(end) = word.descriptors.pop()
        {
            self.ears.listen(id, end);
        }
        self.kept.hear(&mut word);
        if word.value("READY") == Some("1") && self.parts.readiness == Readiness::Notify {
            self.is_ready(id);
        }
    }

    fn is_ready(&mut self, id: WorkerId) {
        let stage = self.parts.machine.stage(id);
        let is_news = matches!(stage, Some((Stage::Starting, _)));
        self.parts.machine.handle_ready(id, Instant::now());
        if let Some(worker) = self.workers.get_mut(&id).filter(|_| is_news) {
            worker.probe = None;
            let (release, pid) = (worker.release, worker.pid);
            self.tell_of(id, release, Some(pid), "ready", String::new());
            self.relieve_orphans();
        }
    }

    /// Those of a supervisor before this one serve until this one's workers do.
    fn relieve_orphans(&mut self) {
        let machine = &self.parts.machine;
        if machine.ready() >= machine.wanted() {
            self.relieve_orphans_by(Instant::now() + self.parts.stop_within);
        }
    }

    fn relieve_orphans_by(&mut self, kill_at: Instant) {
        let orphans = &self.parts.orphans;
        if !orphans.is_empty() && self.relieving.is_none() {
            let message = format!("relieves {:?}, whose supervisor was killed", orphans.pids());
            self.relieving = Some(Box::pin(orphans.relieve(kill_at.into())));
            self.tell(What::Warning { message });
        }
    }

    fn relieved(&mut self, left: &[String]) {
        self.relieving = None;
        self.parts.orphans = Orphans::default();
        if !left.is_empty() {
            self.outlived(&left.join(", "));
        }
    }

    fn tell_to_stop(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let (release, pid, slot) = (worker.release, worker.pid, worker.slot);
        match &self.slots {
            Some(_) if self.stopping_since.is_none() => self.leave_slot(id, slot),
            _ => self.warn_unless_gone("telling to stop", id, worker.stop()),
        }
        self.tell_of(id, release, Some(pid), "stopping", String::new());
    }

    fn kill(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        self.warn_unless_gone("killing", id, worker.kill());
        let (release, pid) = (worker.release, worker.pid);
        let why = "it had not left in time".to_owned();
        self.tell_of(id, release, Some(pid), "killed", why);
    }

    /// It is collected if it ends after all.
    fn lose(&self, id: WorkerId) {
        if let Some(worker) = self.workers.get(&id) {
            self.outlived(&format!("worker {id}, process {}", worker.pid));
        }
    }

    fn outlived(&self, who: &str) {
        let message = format!("lives on {EXIT_DEADLINE:?} after it was killed: {who}");
        self.tell(What::Warning { message });
        if self.stopping_since.is_some() {
            self.parts.exit_code.store(KILLED, Ordering::Relaxed);
        }
    }

    /// One that is gone is about to be collected. Of one that may not be told, as somebody else's, an operator has to know.
    fn warn_unless_gone(&self, doing: &str, id: WorkerId, done: io::Result<()>) {
        if let Err(error) = done
            && error.raw_os_error() != Some(libc::ESRCH)
        {
            let pid = self.workers.get(&id).map(|worker| worker.pid);
            let pid = pid.unwrap_or_default();
            let message = format!("{doing} worker {id}, process {pid}: {error}");
            self.tell(What::Warning { message });
        }
    }

    fn collect(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.remove(&id) {
            self.counted.forget(id);
            self.ears.forget(id);
            let end = worker.reap();
            if let Some(code) = end.failure().filter(|_| self.stopping_since.is_some()) {
                self.parts.exit_code.store(code, Ordering::Relaxed);
            }
            self.end(id, worker.release, Some(worker.pid), &end.to_string());
            // Others may have waited behind it.
            self.reap_orphans();
        }
    }

    pub(super) fn reap_orphans(&self) {
        if reaper::is_needed() {
            let others = [
                self.trial.as_ref().map(|trial| trial.pid),
                self.outlets.pid(),
            ];
            let is_worker = |pid| self.workers.values().any(|worker| worker.pid == pid);
            reaper::reap_orphans(|pid| others.contains(&Some(pid)) || is_worker(pid));
        }
    }

    fn relayed(&mut self, relayed: Relayed) {
        if let Relayed::Died(how) = relayed {
            let message =
                format!("the relay of the workers' lines has died ({how}), and is started again");
            self.tell(What::Warning { message });
            // Others may have waited behind it.
            self.reap_orphans();
        }
    }

    fn forward(&self, signal: i32) {
        for (id, worker) in &self.workers {
            self.warn_unless_gone("passing a signal to", *id, worker.signal(signal));
        }
    }

    fn end(&mut self, id: WorkerId, release: ReleaseId, pid: Option<u32>, how: &str) {
        let now = Instant::now();
        self.parts
            .machine
            .handle_exited(id, how, random_part(), now);
        self.tell_of(id, release, pid, "ended", how.to_owned());
    }
}

/// Slots, where workers have sockets of their own.
impl Supervisor {
    fn vacant_slot(&self) -> SlotIndex {
        let slots = self.slots.as_ref();
        slots.map_or(0, |slots| slots.vacant(&self.holders()))
    }

    fn holders(&self) -> Vec<(SlotIndex, Holder)> {
        let workers = self.workers.iter().map(|(id, worker)| {
            let stage = self.parts.machine.stage(*id).map(|(stage, _)| stage);
            let holder = match stage {
                Some(Stage::Starting) => Holder::Starting,
                Some(Stage::Settling | Stage::Serving) => Holder::Serving,
                Some(Stage::Stopping | Stage::Killed) | None => Holder::Leaving,
            };
            (worker.slot, holder)
        });
        workers.collect()
    }

    fn fill_slots(&mut self) {
        if self.slots.is_none() {
            return;
        }
        let holders = self.holders();
        let slots = self
            .slots
            .as_mut()
            .filter(|_| self.stopping_since.is_none());
        if let Some(Err(error)) = slots.map(|slots| slots.fill(&holders)) {
            let message = format!("connections go to every socket, served or not: {error}");
            self.tell(What::Warning { message });
        }
    }

    /// The kernel fills its sockets no longer; it is told when they are empty.
    fn leave_slot(&mut self, id: WorkerId, slot: SlotIndex) {
        self.fill_slots();
        let Some(slots) = &self.slots else { return };
        let (emptied, sender) = (
            slots.emptied(slot, STOP_SETTLE, STOP_EMPTY),
            self.emptied.0.clone(),
        );
        self.untold.insert(id);
        tokio::spawn(async move {
            emptied.await;
            // A supervisor that is gone tells nobody.
            let _ = sender.send(id).await;
        });
    }

    fn nobody_waits(&mut self, id: WorkerId) {
        if self.untold.remove(&id)
            && let Some(worker) = self.workers.get(&id)
        {
            self.warn_unless_gone("telling to stop", id, worker.stop());
        }
    }
}

/// Updates.
impl Supervisor {
    fn roll_by_signal(&mut self) {
        if let Err(refusal) = self.roll(None) {
            let reason = reason_of(&refusal);
            self.parts.service.refused(&reason);
            self.tell(What::Refused { reason });
        }
    }

    /// Begins an update to what the command means by now.
    pub(super) fn roll(&mut self, plan: Option<Plan>) -> Result<ReleaseId, Reply> {
        let number = self.last_release + 1;
        let found = Release::find(number, &self.parts.command).map_err(|error| {
            let program = self.parts.command.argv.first().cloned().unwrap_or_default();
            Reply::refused(format!("finding {program:?}: {error}"))
        })?;
        self.roll_to(found, plan)
    }

    fn roll_to(&mut self, release: Release, plan: Option<Plan>) -> Result<ReleaseId, Reply> {
        if self.stopping_since.is_some() {
            return Err(Reply::refused("the pool is stopping"));
        }
        self.conclude_decided();
        let number = release.number;
        let plan = plan.unwrap_or_else(|| self.parts.machine.plan().clone());
        let (from, now) = (self.parts.machine.stable(), Instant::now());
        let is_guarded = plan.guards;
        let begun = self.parts.machine.update(number, plan, now);
        begun.map_err(|refusal| Reply::refused(refusal.to_string()))?;
        self.parts.service.reloading(number);
        self.last_release = number;
        self.failed = None;
        self.releases.insert(number, release);
        if is_guarded {
            let stable = self.workers.values().filter(|it| it.release == from);
            let slow_us = slow_threshold(stable.filter_map(|it| it.tally.as_ref()));
            self.counted.compare_by(slow_us);
            self.ears.tell(slow_us);
        }
        self.judge = is_guarded.then(|| Judge::begin(number, from, &self.counted, now));
        self.update = Some(Underwent {
            from,
            since: now,
            at: SystemTime::now(),
        });
        Ok(number)
    }

    /// Goes back to the release before the stable one, by an update of its own.
    pub(super) fn roll_back(&mut self) -> Result<ReleaseId, Reply> {
        let before = self.before.and_then(|before| self.releases.get(&before));
        let none = || Reply::refused("no other release has been stable before this one");
        let release = before.ok_or_else(none)?.again(self.last_release + 1);
        let release = release.map_err(|error| Reply::refused(error.to_string()))?;
        self.roll_to(release, None)
    }
}

/// The stop of the pool: new connections are refused, the queues emptied, and only then do workers leave.
impl Supervisor {
    /// The second time nobody is waited for.
    pub(super) fn stop(&mut self) {
        if self.stopping_since.is_none() {
            self.conclude_decided();
            self.stopping_since = Some(Instant::now());
            self.parts.service.stopping();
            self.judge = None;
            self.update = None;
            self.trial.iter().for_each(Trial::kill);
            self.parts.machine.stand_still();
            self.resolve(&Reply::refused("the pool is stopping"));
            let emptied = self.parts.sockets.give_up(self.parts.stop_within);
            self.giving_up = Some(Box::pin(emptied));
            self.tell(What::Draining {
                in_flight: self.workers.len(),
                reason: "stopping".to_owned(),
            });
        } else {
            self.giving_up = None;
            let now = Instant::now();
            if !self.parts.machine.is_stopping() {
                self.parts.machine.stop(now, now);
            }
            self.parts.machine.stop(now, now);
            self.relieve_orphans_by(now);
            self.parts.orphans.kill();
        }
    }

    fn given_up(&mut self, cut_off: &[String]) {
        self.giving_up = None;
        if !cut_off.is_empty() {
            let message = format!("connections waited until the end at {}", cut_off.join(", "));
            self.tell(What::Warning { message });
        }
        let now = Instant::now();
        let since = self.stopping_since.unwrap_or(now);
        self.parts.machine.stop(since, now);
        self.relieve_orphans_by(since + self.parts.stop_within);
    }
}

/// What is told.
impl Supervisor {
    fn tell_of(
        &self,
        worker: WorkerId,
        release: ReleaseId,
        pid: Option<u32>,
        now: &str,
        reason: String,
    ) {
        self.tell(What::Worker {
            worker,
            pid,
            release,
            now: now.to_owned(),
            reason,
            ready: self.parts.machine.ready(),
            wanted: self.parts.machine.wanted(),
        });
    }

    fn tell(&self, what: What) {
        tracing::debug!(?what, "pool");
        // Nobody has to listen.
        let _ = self.parts.events.send(what);
    }
}

/// From 0 to 1.
fn random_part() -> f64 {
    (readiness::random() >> 11) as f64 / (1_u64 << 53) as f64
}

fn reason_of(refusal: &Reply) -> String {
    match refusal {
        Reply::Error(refusal) => refusal.message.clone(),
        other => format!("{other:?}"),
    }
}

/// What the future comes to, if there is one.
async fn if_any<F: Future + Unpin>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

/// What shells say of a process that had to be killed (128 and SIGKILL).
const KILLED: u8 = 137;
/// Probes that have succeeded and not been looked at.
const PROBED_MAX: usize = 16;
