//! The one task that joins the machine and the processes: await one input, `handle_*`, perform every `poll_output`.
//!
//! The supervisor holds the sockets and never accepts from them: it is an incumbent whose gates are shut for ever.

mod saved;
mod succession;

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
use super::controller::{Controller, Ended, Output, ReleaseId, Stage, WorkerId};
use super::judge::{Counted, Judge};
use super::kept::Kept;
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
use crate::config::{STOP_EMPTY, STOP_SETTLE};
use crate::control::{Asked, History, Reply, Request, Upgrade, Verdict, What, unix_ms};
use crate::error::Result;
use crate::protocol::message::{Slot, Tally, millis};
use crate::sys::environment::{Snapshot, WORKER};
use crate::systemd::notify::COUNTS;
use crate::trigger::Trigger;

/// What a pool is, beside the machine's numbers.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) command: Command,
    pub(super) readiness: Readiness,
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
    pub(super) probed: (mpsc::Sender<WorkerId>, mpsc::Receiver<WorkerId>),
    pub(super) update: Option<Underwent>,
    pub(super) counted: Counted,
    pub(super) kept: Kept,
    pub(super) judge: Option<Judge>,
    pub(super) history: History,
    pub(super) waiting: Vec<oneshot::Sender<Reply>>,
    pub(super) giving_up: Option<Pin<Box<dyn Future<Output = Vec<String>> + Send>>>,
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
    Said(Notification),
    Probed(WorkerId),
    Asked(Ask),
    Heard(Heard),
    Tried(Result<(), String>),
    Emptied(WorkerId),
    GivenUp(Vec<String>),
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
            probed: mpsc::channel(PROBED_MAX),
            update: None,
            counted: Counted::default(),
            kept: Kept::default(),
            judge: None,
            history: History::default(),
            waiting: Vec::new(),
            giving_up: None,
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
        // The process of a trial is not left behind.
        while !self.is_stopped || self.trial.is_some() {
            match self.next().await {
                Input::Exited(worker) => self.collect(worker),
                Input::Said(word) => self.hear(word),
                Input::Probed(worker) => self.is_ready(worker),
                Input::Asked(ask) => self.answer(ask),
                Input::Heard(heard) => self.heed(heard),
                Input::Tried(outcome) => self.tried(outcome).await,
                Input::Emptied(worker) => self.nobody_waits(worker),
                Input::GivenUp(cut_off) => self.given_up(&cut_off),
                Input::TimedOut => self.time_passed(),
            }
            self.perform();
            self.report();
        }
        self.notify.remove();
        let took = self
            .stopping_since
            .map_or(Duration::ZERO, |since| since.elapsed());
        self.tell(What::Drained {
            stragglers: Vec::new(),
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
            .min();
        let until = deadline.unwrap_or_else(Instant::now);
        let workers = &self.workers;
        let exited = poll_fn(|context| {
            let mut gone = workers.iter();
            let gone = gone.find(|(_, worker)| worker.poll_exited(context).is_ready());
            gone.map_or(Poll::Pending, |(id, _)| Poll::Ready(*id))
        });
        let giving_up = &mut self.giving_up;
        let given_up = async {
            match giving_up {
                Some(giving_up) => giving_up.await,
                None => pending().await,
            }
        };
        let trial = &mut self.trial;
        let tried = async {
            match trial {
                Some(trial) => trial.outcome.as_mut().await,
                None => pending().await,
            }
        };
        let is_worker = |pid| workers.values().any(|worker| worker.pid == pid);
        // Whoever can come as often as he likes comes last.
        tokio::select! {
            biased;
            worker = exited => Input::Exited(worker),
            heard = self.parts.signals.next() => Input::Heard(heard),
            () = sleep_until(until.into()), if deadline.is_some() => Input::TimedOut,
            Some(worker) = self.probed.1.recv() => Input::Probed(worker),
            Some(worker) = self.emptied.1.recv() => Input::Emptied(worker),
            outcome = tried => Input::Tried(outcome),
            cut_off = given_up => Input::GivenUp(cut_off),
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
        self.parts.machine.handle_timeout(random_part(), now);
        let found = self
            .judge
            .as_mut()
            .and_then(|judge| judge.look(&self.counted, now));
        if let Some(reason) = found {
            self.parts.machine.handle_unfit(reason, now);
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
                Output::Resumed { release } => self.tell(What::Resumed { successor: release }),
                Output::Reverting { release, reason } => self.tell(What::Reverting {
                    successor: release,
                    reason,
                }),
                Output::Verdict {
                    release,
                    ended,
                    reason,
                } => self.conclude(release, ended, reason),
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
        let pid = image.start(&self.parts.command, &extra, &sockets)?;
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
        let tally = word.value(COUNTS).map(serde_json::from_str::<Tally>);
        // What cannot be understood is no count.
        if let Some(Ok(tally)) = tally {
            let (release, before) = (worker.release, worker.tally.as_ref());
            self.counted.add(release, before, &tally);
            worker.tally = Some(tally);
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
        if machine.ready() >= machine.wanted() && !self.parts.orphans.is_empty() {
            let orphans = std::mem::take(&mut self.parts.orphans);
            let message = format!("relieves {:?}, whose supervisor was killed", orphans.pids());
            self.tell(What::Warning { message });
            orphans.relieve(self.parts.stop_within);
        }
    }

    fn tell_to_stop(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let (release, pid, slot) = (worker.release, worker.pid, worker.slot);
        match &self.slots {
            Some(_) if self.stopping_since.is_none() => self.leave_slot(id, slot),
            // One that is gone is about to be collected.
            _ => drop(worker.stop()),
        }
        self.tell_of(id, release, Some(pid), "stopping", String::new());
    }

    fn kill(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        kill(worker);
        let (release, pid) = (worker.release, worker.pid);
        let why = "it had not left in time".to_owned();
        self.tell_of(id, release, Some(pid), "killed", why);
    }

    fn collect(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.remove(&id) {
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
            let tried = self.trial.as_ref().map(|trial| trial.pid);
            let is_worker = |pid| self.workers.values().any(|worker| worker.pid == pid);
            reaper::reap_orphans(|pid| tried == Some(pid) || is_worker(pid));
        }
    }

    fn forward(&self, signal: i32) {
        for worker in self.workers.values() {
            // One that is gone is about to be collected.
            let _ = worker.signal(signal);
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
            // One that is gone is about to be collected.
            let _ = worker.stop();
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
        let number = release.number;
        let plan = plan.unwrap_or_else(|| self.parts.machine.plan().clone());
        let (from, now) = (self.parts.machine.stable(), Instant::now());
        let is_guarded = plan.guards;
        let begun = self.parts.machine.update(number, plan, now);
        begun.map_err(|refusal| Reply::refused(refusal.to_string()))?;
        self.parts.service.reloading(number);
        self.last_release = number;
        self.releases.insert(number, release);
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

    fn conclude(&mut self, release: ReleaseId, ended: Ended, reason: String) {
        let Some(underwent) = self.update.take() else {
            return;
        };
        self.judge = None;
        let text = match ended {
            Ended::Committed => format!("release {release} serves"),
            _ => format!("release {release} was undone: {reason}"),
        };
        let service = &mut self.parts.service;
        service.reloaded(&text, ended == Ended::Committed);
        let after_ms = millis(underwent.since.elapsed());
        let (successor, pid) = (release, std::process::id());
        let (verdict, what) = match ended {
            Ended::Committed => (
                Verdict::Committed,
                What::Committed {
                    successor,
                    pid,
                    after_ms,
                },
            ),
            Ended::Aborted => (
                Verdict::Aborted,
                What::Aborted {
                    successor,
                    reason: reason.clone(),
                    after_ms,
                },
            ),
            Ended::RolledBack => (
                Verdict::RolledBack,
                What::RolledBack {
                    successor,
                    reason: reason.clone(),
                    after_ms,
                },
            ),
            Ended::Degraded => (
                Verdict::Degraded,
                What::RolledBack {
                    successor,
                    reason: reason.clone(),
                    after_ms,
                },
            ),
        };
        if ended == Ended::Committed {
            self.before = Some(underwent.from);
            self.stable_since = SystemTime::now();
        }
        let kept = [Some(self.parts.machine.stable()), self.before];
        self.releases
            .retain(|number, _| kept.contains(&Some(*number)));
        self.counted.retain(|release| {
            let mut workers = self.workers.values();
            kept.contains(&Some(release)) || workers.any(|worker| worker.release == release)
        });
        self.tell(what);
        let upgrade = Upgrade {
            generation: release,
            from: underwent.from,
            verdict,
            reason,
            rollback_to: None,
            phase: None,
            pid: Some(pid),
            incumbent_serves: ended != Ended::Committed && self.parts.machine.ready() > 0,
            exit: None,
            last_words: String::new(),
            asked_at_ms: unix_ms(underwent.at),
            ready_after_ms: None,
            flip_took_us: None,
            rollback_took_us: None,
            took_ms: after_ms,
            explanation: None,
            candidate: None,
            stable: None,
            forwarding: None,
            drill: None,
        };
        self.history.add(upgrade.clone());
        let upgrade = Box::new(upgrade);
        self.resolve(&Reply::Verdict { upgrade });
    }

    /// Everybody who waits for the update has an answer.
    fn resolve(&mut self, reply: &Reply) {
        for waiting in self.waiting.drain(..) {
            // Who has gone needs none.
            let _ = waiting.send(reply.clone());
        }
    }
}

/// The stop of the pool: new connections are refused, the queues emptied, and only then do workers leave.
impl Supervisor {
    /// The second time nobody is waited for.
    pub(super) fn stop(&mut self) {
        if self.stopping_since.is_none() {
            self.stopping_since = Some(Instant::now());
            self.parts.service.stopping();
            self.judge = None;
            self.update = None;
            self.trial.iter().for_each(Trial::kill);
            self.parts.machine.stand_still();
            self.resolve(&Reply::refused("the pool is stopping"));
            self.giving_up = Some(Box::pin(self.parts.sockets.give_up()));
            self.tell(What::Draining {
                in_flight: self.workers.len(),
                reason: "stopping".to_owned(),
            });
        } else {
            self.giving_up = None;
            let now = Instant::now();
            if !self.parts.machine.is_stopping() {
                self.parts.machine.stop(now);
            }
            self.parts.machine.stop(now);
        }
    }

    fn given_up(&mut self, cut_off: &[String]) {
        self.giving_up = None;
        if !cut_off.is_empty() {
            let message = format!("connections waited until the end at {}", cut_off.join(", "));
            self.tell(What::Warning { message });
        }
        self.parts.machine.stop(Instant::now());
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

fn kill(worker: &Worker) {
    // One that is gone is about to be collected.
    let _ = worker.kill();
}

fn reason_of(refusal: &Reply) -> String {
    match refusal {
        Reply::Error(refusal) => refusal.message.clone(),
        other => format!("{other:?}"),
    }
}

/// Probes that have succeeded and not been looked at.
const PROBED_MAX: usize = 16;
