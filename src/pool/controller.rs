//! The machine that keeps a pool at its size and takes it from one release to the next.
//!
//! Inputs are `handle_*`, what to do about them is `poll_output`, the next deadline is `poll_timeout`. One input, then
//! all its outputs, then the next input. After each input the machine compares what there is with what there should be,
//! and asks for the difference; so the order of events does not matter to it. It upholds:
//!
//! 1. As long as nothing crashes, an update never has fewer workers ready than wanted, less those that may be missing.
//! 2. Workers that are not on their way out are never more than wanted and the surge; those on their way out never more
//!    than the plan says, but for a stop of the pool.
//! 3. A candidate that has failed is not started again in the same update, neither itself nor by way of crash care: a
//!    stable worker takes its place.
//! 4. A worker that dies has no effect on any other but the candidates of its own update.
//! 5. Every worker that was told to stop is killed at its deadline, and every wait has a deadline but an operator's.
//! 6. An update has one verdict, and nothing but the stable release after a revert.

mod saved;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

pub(crate) use self::saved::Saved;
use super::plan::{Care, OnFailure, Plan};

/// A worker's number, never used again.
pub(crate) type WorkerId = u64;
/// A release's number: workers of one were started from the same image.
pub(crate) type ReleaseId = u64;

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Controller {
    wanted: usize,
    stable: ReleaseId,
    plan: Plan,
    care: Care,
    stop_within: Duration,
    workers: BTreeMap<WorkerId, Worker>,
    vacancies: Vec<Vacancy>,
    update: Option<Update>,
    stop: Stop,
    is_looping: bool,
    last_worker: WorkerId,
    outputs: VecDeque<Output>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Worker {
    release: ReleaseId,
    state: State,
    /// Of it and of those whose places it has taken, in a row.
    crashes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    /// Not ready yet, which it must be by then.
    Starting {
        deadline: Instant,
    },
    /// Ready. For a candidate: it counts from then on. For any: its crashes are forgotten then.
    Settling {
        until: Instant,
    },
    Serving,
    Stopping {
        kill_at: Instant,
    },
    Killed,
}

/// The place of a worker that has crashed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Vacancy {
    crashes: u32,
    /// `None` once it has waited for long enough.
    fill_at: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Update {
    candidate: ReleaseId,
    plan: Plan,
    phase: Phase,
    failures: usize,
    /// A stable worker has left for a candidate.
    has_replaced: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Rolling {
        deadline: Instant,
    },
    /// By an operator; what is left of the progress deadline.
    Paused {
        left: Duration,
    },
    /// By a failure, with the mix as it is.
    Halted {
        reason: String,
    },
    Reverting {
        reason: String,
        deadline: Instant,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stop {
    No,
    Asked,
    Told,
}

/// What the supervisor has to do, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Output {
    /// Start a worker; then `handle_ready` or `handle_exited`.
    Start {
        /// Its number.
        worker: WorkerId,
        /// From which image.
        release: ReleaseId,
    },
    /// Tell a worker to finish and leave; then `handle_exited`.
    Stop {
        /// Which.
        worker: WorkerId,
    },
    /// End a worker that has not left in time; then `handle_exited`.
    Kill {
        /// Which.
        worker: WorkerId,
    },
    /// The update does not go on by itself.
    Held {
        /// The candidate.
        release: ReleaseId,
        /// Why.
        reason: String,
    },
    /// It does again.
    Resumed {
        /// The candidate.
        release: ReleaseId,
    },
    /// The update is being undone.
    Reverting {
        /// The candidate.
        release: ReleaseId,
        /// Why.
        reason: String,
    },
    /// The update has ended. After [`Ended::Committed`] the candidate is the stable release.
    Verdict {
        /// The candidate.
        release: ReleaseId,
        /// How.
        ended: Ended,
        /// Why it did not end otherwise.
        reason: String,
    },
    /// Workers crash again and again.
    Looping {
        /// How often in a row.
        crashes: u32,
    },
    /// They do no longer.
    LoopOver,
    /// The pool was to stop, and nobody is left.
    Stopped,
}

/// How an update ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ended {
    /// All workers are the candidate's.
    Committed,
    /// All are stable, and no stable one had left for it.
    Aborted,
    /// All are stable again.
    RolledBack,
    /// It could not be undone in time; the pool still tries to.
    Degraded,
}

/// How far a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// Not ready yet.
    Starting,
    /// Ready, and on trial.
    Settling,
    /// Ready.
    Serving,
    /// Told to stop.
    Stopping,
    /// Killed for not having stopped.
    Killed,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Settling => "settling",
            Self::Serving => "serving",
            Self::Stopping => "stopping",
            Self::Killed => "killed",
        })
    }
}

/// Where an update is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) candidate: ReleaseId,
    pub(crate) stage: UpdateStage,
    /// Candidates that count.
    pub(crate) replaced: usize,
    pub(crate) failures: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UpdateStage {
    Rolling,
    Paused,
    Halted(String),
    Reverting(String),
}

/// Why an operator's command was refused; nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is an update already, to this release.
    UnderWay(ReleaseId),
    /// There is none.
    NoUpdate,
    /// It is paused or halted already.
    Held,
    /// It is neither paused nor halted.
    NotHeld,
    /// It is being undone.
    Reverting,
    /// The pool stops.
    Stopping,
    /// There is no such pool.
    Size,
    /// The plan cannot be carried out.
    Plan(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnderWay(release) => write!(f, "an update to release {release} is under way"),
            Self::NoUpdate => f.write_str("no update is under way"),
            Self::Held => f.write_str("the update is held already: resume it or abort"),
            Self::NotHeld => f.write_str("the update is not held"),
            Self::Reverting => f.write_str("the update is being undone already"),
            Self::Stopping => f.write_str("the pool is stopping"),
            Self::Size => write!(f, "a pool has 1 to {WORKERS_MAX} workers"),
            Self::Plan(why) => f.write_str(why),
        }
    }
}

impl Controller {
    /// A pool of this size, of which nothing is there yet.
    pub(crate) fn new(
        wanted: usize,
        stable: ReleaseId,
        plan: Plan,
        care: Care,
        stop_within: Duration,
        now: Instant,
    ) -> Result<Self, Refusal> {
        let mut this = Self::empty(wanted, stable, plan, care, stop_within)?;
        this.reconcile(now);
        Ok(this)
    }

    fn empty(
        wanted: usize,
        stable: ReleaseId,
        plan: Plan,
        care: Care,
        stop_within: Duration,
    ) -> Result<Self, Refusal> {
        plan.check().map_err(Refusal::Plan)?;
        check_size(wanted)?;
        Ok(Self {
            wanted,
            stable,
            plan,
            care,
            stop_within,
            workers: BTreeMap::new(),
            vacancies: Vec::new(),
            update: None,
            stop: Stop::No,
            is_looping: false,
            last_worker: 0,
            outputs: VecDeque::new(),
        })
    }

    // What happens.

    /// A worker is ready to serve.
    pub(crate) fn handle_ready(&mut self, worker: WorkerId, now: Instant) {
        let trial = self.trial(worker);
        if let Some(found) = self.workers.get_mut(&worker)
            && let State::Starting { .. } = found.state
        {
            found.state = State::Settling { until: now + trial };
            self.reconcile(now);
        }
    }

    /// A worker is gone, or could not be started. `jitter` is a random number from 0 to 1.
    pub(crate) fn handle_exited(&mut self, worker: WorkerId, how: &str, jitter: f64, now: Instant) {
        let Some(gone) = self.workers.remove(&worker) else {
            return;
        };
        if gone.state.is_live() {
            if self.is_tried(gone.release) {
                self.fail(
                    format!(
                        "worker {worker} of release {} has ended: {how}",
                        gone.release
                    ),
                    now,
                );
            } else if gone.release == self.stable {
                let crashes = gone.crashes.saturating_add(1);
                self.vacate(crashes, self.care.delay(crashes, jitter), now);
            }
            // Others have their places taken by stable ones anyway.
        }
        self.reconcile(now);
    }

    /// What candidates answer is worse than what stable workers do.
    pub(crate) fn handle_unfit(&mut self, reason: String, now: Instant) {
        if let Some(update) = &self.update
            && self.is_tried(update.candidate)
        {
            self.halt(reason, now);
            self.reconcile(now);
        }
    }

    /// A deadline has passed. Looks at all of them. `jitter` is a random number from 0 to 1.
    pub(crate) fn handle_timeout(&mut self, jitter: f64, now: Instant) {
        let mut late = Vec::new();
        for (&id, worker) in &mut self.workers {
            match worker.state {
                State::Starting { deadline } if deadline <= now => late.push(id),
                State::Settling { until } if until <= now => {
                    worker.state = State::Serving;
                    worker.crashes = 0;
                    if let Some(update) = &mut self.update
                        && worker.release == update.candidate
                        && let Phase::Rolling { deadline } = &mut update.phase
                    {
                        *deadline = now + update.plan.progress_deadline;
                    }
                }
                State::Stopping { kill_at } if kill_at <= now => {
                    worker.state = State::Killed;
                    self.outputs.push_back(Output::Kill { worker: id });
                }
                _ => {}
            }
        }
        let count = late.len();
        for (index, id) in late.into_iter().enumerate() {
            // Those that are late together are spread over all of the range.
            let jitter = (jitter + index as f64 / count as f64).fract();
            self.give_up(id, jitter, now);
        }
        self.update_times_out(now);
        self.reconcile(now);
    }

    /// When the next deadline passes.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let workers = self
            .workers
            .values()
            .filter_map(|worker| match worker.state {
                State::Starting { deadline: at }
                | State::Settling { until: at }
                | State::Stopping { kill_at: at } => Some(at),
                State::Serving | State::Killed => None,
            });
        let vacancies = self.vacancies.iter().filter_map(|vacancy| vacancy.fill_at);
        let update = self.update.as_ref().and_then(|update| match update.phase {
            Phase::Rolling { deadline } | Phase::Reverting { deadline, .. } => Some(deadline),
            Phase::Paused { .. } | Phase::Halted { .. } => None,
        });
        workers.chain(vacancies).chain(update).min()
    }

    /// What to do next.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    // What operators want.

    /// Replaces all workers by those of another release, or by fresh ones of the same bytes under a new number.
    pub(crate) fn update(
        &mut self,
        candidate: ReleaseId,
        plan: Plan,
        now: Instant,
    ) -> Result<(), Refusal> {
        self.check_running()?;
        if let Some(update) = &self.update {
            return Err(Refusal::UnderWay(update.candidate));
        }
        plan.check().map_err(Refusal::Plan)?;
        let deadline = now + plan.progress_deadline;
        self.update = Some(Update {
            candidate,
            plan,
            phase: Phase::Rolling { deadline },
            failures: 0,
            has_replaced: false,
        });
        self.reconcile(now);
        Ok(())
    }

    /// Lets the update stay where it is. Stable workers that crash are replaced, by stable ones.
    pub(crate) fn pause(&mut self, now: Instant) -> Result<(), Refusal> {
        let update = self.check_update()?;
        match update.phase {
            Phase::Rolling { deadline } => {
                let left = deadline.saturating_duration_since(now);
                update.phase = Phase::Paused { left };
                let (release, reason) = (update.candidate, "paused by an operator".to_owned());
                self.outputs.push_back(Output::Held { release, reason });
                self.reconcile(now);
                Ok(())
            }
            Phase::Paused { .. } | Phase::Halted { .. } => Err(Refusal::Held),
            Phase::Reverting { .. } => Err(Refusal::Reverting),
        }
    }

    /// Lets a paused or halted update go on. The failures that have halted it are forgiven.
    pub(crate) fn resume(&mut self, now: Instant) -> Result<(), Refusal> {
        let update = self.check_update()?;
        let left = match update.phase {
            Phase::Paused { left } => left,
            Phase::Halted { .. } => update.plan.progress_deadline,
            Phase::Rolling { .. } => return Err(Refusal::NotHeld),
            Phase::Reverting { .. } => return Err(Refusal::Reverting),
        };
        update.phase = Phase::Rolling {
            deadline: now + left,
        };
        update.failures = 0;
        let release = update.candidate;
        self.outputs.push_back(Output::Resumed { release });
        self.reconcile(now);
        Ok(())
    }

    /// Undoes the update.
    pub(crate) fn abort(&mut self, reason: String, now: Instant) -> Result<(), Refusal> {
        if let Phase::Reverting { .. } = self.check_update()?.phase {
            return Err(Refusal::Reverting);
        }
        self.revert(reason, now);
        self.reconcile(now);
        Ok(())
    }

    /// Another number of workers is wanted from now on.
    pub(crate) fn scale(&mut self, wanted: usize, now: Instant) -> Result<(), Refusal> {
        self.check_running()?;
        check_size(wanted)?;
        self.wanted = wanted;
        self.halt_if_too_many_failed(now);
        self.reconcile(now);
        Ok(())
    }

    /// Lets an update stay where it is for good, since the pool is about to stop. Nobody is told.
    pub(crate) fn stand_still(&mut self) {
        if let Some(update) = &mut self.update {
            let left = update.plan.progress_deadline;
            update.phase = Phase::Paused { left };
        }
    }

    /// Stops all workers: the first time by telling them, the second time by killing them.
    pub(crate) fn stop(&mut self, now: Instant) {
        if self.stop == Stop::No {
            self.stop = Stop::Asked;
            self.update = None;
            self.vacancies.clear();
            let live: Vec<WorkerId> = self.live().map(|(id, _)| id).collect();
            live.into_iter().for_each(|id| self.tell_to_stop(id, now));
        } else {
            for (&id, worker) in &mut self.workers {
                if worker.state != State::Killed {
                    worker.state = State::Killed;
                    self.outputs.push_back(Output::Kill { worker: id });
                }
            }
        }
        self.reconcile(now);
    }

    // How it stands.

    pub(crate) fn wanted(&self) -> usize {
        self.wanted
    }

    pub(crate) fn stable(&self) -> ReleaseId {
        self.stable
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop != Stop::No
    }

    /// How many workers are ready.
    pub(crate) fn ready(&self) -> usize {
        self.workers
            .values()
            .filter(|worker| worker.state.is_ready())
            .count()
    }

    /// How many crashes in a row make the crash loop that there is.
    pub(crate) fn looping(&self) -> Option<u32> {
        self.is_looping.then(|| self.crashes_max())
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(crate) fn progress(&self) -> Option<Progress> {
        let update = self.update.as_ref()?;
        Some(Progress {
            candidate: update.candidate,
            stage: match &update.phase {
                Phase::Rolling { .. } => UpdateStage::Rolling,
                Phase::Paused { .. } => UpdateStage::Paused,
                Phase::Halted { reason } => UpdateStage::Halted(reason.clone()),
                Phase::Reverting { reason, .. } => UpdateStage::Reverting(reason.clone()),
            },
            replaced: self.count(update.candidate, |state| state == State::Serving),
            failures: update.failures,
        })
    }

    /// How far a worker is, and how often its place has crashed in a row.
    pub(crate) fn stage(&self, worker: WorkerId) -> Option<(Stage, u32)> {
        let worker = self.workers.get(&worker)?;
        let stage = match worker.state {
            State::Starting { .. } => Stage::Starting,
            State::Settling { .. } => Stage::Settling,
            State::Serving => Stage::Serving,
            State::Stopping { .. } => Stage::Stopping,
            State::Killed => Stage::Killed,
        };
        Some((stage, worker.crashes))
    }

    /// When a worker must be ready, if it is not yet.
    pub(crate) fn ready_by(&self, worker: WorkerId) -> Option<Instant> {
        match self.workers.get(&worker)?.state {
            State::Starting { deadline } => Some(deadline),
            _ => None,
        }
    }

    // What is decided.

    /// Asks for what is missing, and for the end of what is too much.
    fn reconcile(&mut self, now: Instant) {
        if self.stop != Stop::No {
            if self.workers.is_empty() && self.stop == Stop::Asked {
                self.stop = Stop::Told;
                self.outputs.push_back(Output::Stopped);
            }
            return;
        }
        match self.update.as_ref().map(|update| &update.phase) {
            Some(Phase::Rolling { .. }) => self.roll(now),
            Some(Phase::Paused { .. } | Phase::Halted { .. }) => self.fill(self.missing(), now),
            Some(Phase::Reverting { .. }) => self.converge(now),
            None => self.converge(now),
        }
        self.conclude(now);
        self.watch_for_loops();
    }

    /// Towards the candidate: the first one alone, then batches.
    fn roll(&mut self, now: Instant) {
        let Some(Update {
            candidate,
            plan,
            failures,
            ..
        }) = self.update.clone()
        else {
            return;
        };
        let counting = self.count(candidate, |state| state == State::Serving);
        let batch = if counting == 0 { 1 } else { plan.batch() };
        let planned = (counting + batch).min(self.wanted.saturating_sub(failures));
        let others_max = self.wanted - planned;
        while self.others(candidate).count() > others_max {
            // Of a release that could not be undone in time, before those of the stable one.
            let left_over = self
                .others(candidate)
                .find(|release| *release != self.stable);
            if !self.retire_one(left_over.unwrap_or(self.stable), now) {
                break;
            }
            if let Some(update) = &mut self.update {
                update.has_replaced = true;
            }
        }
        let room = (self.wanted + plan.surge).saturating_sub(self.live().count());
        let tried = self.count(candidate, State::is_live);
        for _ in 0..room.min(planned.saturating_sub(tried)) {
            self.start(candidate, 0, now);
        }
        self.fill(self.missing(), now);
    }

    /// Towards nothing but stable workers, of which there are as many as wanted.
    fn converge(&mut self, now: Instant) {
        let stable = self.count(self.stable, State::is_live);
        let room = (self.wanted + self.plan_now().surge).saturating_sub(self.live().count());
        self.fill(self.wanted.saturating_sub(stable).min(room), now);
        let others: Vec<ReleaseId> = self.others(self.stable).collect();
        for release in others {
            if !self.retire_one(release, now) {
                break;
            }
        }
        while self.count(self.stable, State::is_live) > self.wanted
            && self.retire_one(self.stable, now)
        {}
        // Who has just been told to stop may have made room.
        let room = (self.wanted + self.plan_now().surge).saturating_sub(self.live().count());
        let stable = self.count(self.stable, State::is_live);
        self.fill(self.wanted.saturating_sub(stable).min(room), now);
    }

    /// Starts so many stable workers, but for the places that have to wait because they have crashed.
    fn fill(&mut self, missing: usize, now: Instant) {
        self.vacancies.sort_by_key(|vacancy| vacancy.fill_at);
        self.vacancies
            .truncate(missing.max(self.wanted_stable_missing()));
        let alone = self
            .live()
            .next()
            .is_none()
            .then_some(now + self.care.backoff_alone);
        for vacancy in &mut self.vacancies {
            let fill_at = vacancy
                .fill_at
                .map(|at| alone.map_or(at, |latest| at.min(latest)));
            vacancy.fill_at = fill_at.filter(|at| *at > now);
        }
        let waiting = self
            .vacancies
            .iter()
            .filter(|vacancy| vacancy.fill_at.is_some())
            .count();
        for _ in 0..missing.saturating_sub(waiting) {
            let due = self
                .vacancies
                .iter()
                .position(|vacancy| vacancy.fill_at.is_none());
            let crashes = due.map_or(0, |due| self.vacancies.remove(due).crashes);
            self.start(self.stable, crashes, now);
        }
    }

    fn vacate(&mut self, crashes: u32, delay: Duration, now: Instant) {
        let fill_at = Some(now + delay);
        self.vacancies.push(Vacancy { crashes, fill_at });
    }

    /// How many workers there are too few of, whichever they are.
    fn missing(&self) -> usize {
        self.wanted.saturating_sub(self.live().count())
    }

    /// A place is remembered as long as a stable worker could come to it.
    fn wanted_stable_missing(&self) -> usize {
        match self.update.as_ref().map(|update| &update.phase) {
            None | Some(Phase::Reverting { .. }) => self
                .wanted
                .saturating_sub(self.count(self.stable, State::is_live)),
            Some(_) => self.missing(),
        }
    }

    /// Whether one of this release could be told to stop: one that is not ready at once, the others as capacity allows.
    fn retire_one(&mut self, release: ReleaseId, now: Instant) -> bool {
        let stopping = self
            .workers
            .values()
            .filter(|worker| !worker.state.is_live())
            .count();
        if stopping >= self.plan_now().draining_max.unwrap_or(self.wanted).max(1) {
            return false;
        }
        let mut of_it: Vec<(WorkerId, State)> = self
            .live()
            .filter(|(_, worker)| worker.release == release)
            .map(|(id, worker)| (id, worker.state))
            .collect();
        // Those that serve nobody first, then the youngest, which has proven least.
        of_it.sort_by_key(|(id, state)| (state.is_ready(), std::cmp::Reverse(*id)));
        let Some((id, state)) = of_it.first().copied() else {
            return false;
        };
        let needed = self.wanted.saturating_sub(self.plan_now().unavailable);
        let may_leave = match state.is_ready() {
            true => self.counting() > needed,
            // A stable one that is not ready yet is still to be counted on, unless others are there in its stead.
            false if release == self.stable => {
                self.counting() >= needed || self.live_without_trial() > self.wanted
            }
            false => true,
        };
        if !may_leave {
            return false;
        }
        self.tell_to_stop(id, now);
        true
    }

    /// Workers that capacity can rely on: those that are ready, but for candidates on trial while they are tried.
    fn counting(&self) -> usize {
        let counts = |worker: &&Worker| match worker.state {
            State::Serving => true,
            State::Settling { .. } => !self.is_tried(worker.release),
            _ => false,
        };
        self.workers.values().filter(counts).count()
    }

    /// All but candidates on trial.
    fn live_without_trial(&self) -> usize {
        let live = self
            .live()
            .filter(|(_, worker)| !self.is_tried(worker.release) || worker.state == State::Serving);
        live.count()
    }

    /// Ends an update that has come to its end.
    fn conclude(&mut self, now: Instant) {
        let Some(update) = &self.update else { return };
        let candidate = update.candidate;
        match &update.phase {
            Phase::Rolling { .. } => {
                // As many as have failed are the stable release's until then.
                let others = self.others(candidate).count();
                if !self.is_all_there(update) || others > update.failures {
                    return;
                }
                self.stable = candidate;
                self.update = None;
                self.vacancies.clear();
                self.converge(now);
                self.verdict(candidate, Ended::Committed, String::new());
            }
            Phase::Reverting { reason, .. } => {
                let stable = self.count(self.stable, State::is_ready);
                if self.others(self.stable).next().is_some() || stable < self.wanted {
                    return;
                }
                let ended = match update.has_replaced {
                    false => Ended::Aborted,
                    true => Ended::RolledBack,
                };
                let reason = reason.clone();
                self.update = None;
                self.verdict(candidate, ended, reason);
            }
            Phase::Paused { .. } | Phase::Halted { .. } => {}
        }
    }

    /// Whether every candidate that there is to be counts.
    fn is_all_there(&self, update: &Update) -> bool {
        let target = self.wanted.saturating_sub(update.failures);
        self.count(update.candidate, |state| state == State::Serving) >= target
    }

    fn verdict(&mut self, release: ReleaseId, ended: Ended, reason: String) {
        self.outputs.push_back(Output::Verdict {
            release,
            ended,
            reason,
        });
    }

    fn watch_for_loops(&mut self) {
        let crashes = self.crashes_max();
        let is_looping = crashes >= self.care.loop_after;
        if is_looping && !self.is_looping {
            self.outputs.push_back(Output::Looping { crashes });
        }
        if !is_looping && self.is_looping {
            self.outputs.push_back(Output::LoopOver);
        }
        self.is_looping = is_looping;
    }

    fn crashes_max(&self) -> u32 {
        let vacancies = self.vacancies.iter().map(|vacancy| vacancy.crashes);
        let workers = self.live().map(|(_, worker)| worker.crashes);
        vacancies.chain(workers).max().unwrap_or(0)
    }

    /// A worker is not ready in time.
    fn give_up(&mut self, id: WorkerId, jitter: f64, now: Instant) {
        let Some(worker) = self.workers.get(&id).cloned() else {
            return;
        };
        self.tell_to_stop(id, now);
        let limit = self.plan_now().healthy_deadline;
        if self.is_tried(worker.release) {
            let reason = format!(
                "worker {id} of release {} was not ready within {limit:?}",
                worker.release
            );
            self.fail(reason, now);
        } else if worker.release == self.stable {
            let crashes = worker.crashes.saturating_add(1);
            self.vacate(crashes, self.care.delay(crashes, jitter), now);
        }
    }

    fn update_times_out(&mut self, now: Instant) {
        let Some(update) = &self.update else { return };
        match &update.phase {
            Phase::Rolling { deadline } if *deadline <= now => {
                let limit = update.plan.progress_deadline;
                if !self.is_all_there(update) {
                    self.halt(
                        format!("no further worker was healthy within {limit:?}"),
                        now,
                    );
                } else if let Some(update) = &mut self.update {
                    // Only stable workers that drain are waited for, which have deadlines of their own.
                    update.phase = Phase::Rolling {
                        deadline: now + limit,
                    };
                }
            }
            Phase::Reverting { reason, deadline } if *deadline <= now => {
                let (candidate, reason) = (update.candidate, reason.clone());
                self.update = None;
                self.verdict(
                    candidate,
                    Ended::Degraded,
                    format!("{reason}; it could not be undone in time"),
                );
            }
            _ => {}
        }
    }

    /// A candidate has failed.
    fn fail(&mut self, reason: String, now: Instant) {
        let Some(update) = &mut self.update else {
            return;
        };
        update.failures += 1;
        if update.failures >= update.failures_max(self.wanted) {
            self.halt(reason, now);
        }
    }

    /// In a smaller pool fewer failures are too many: at least one candidate has to count for a commit.
    fn halt_if_too_many_failed(&mut self, now: Instant) {
        if let Some(update) = &self.update
            && self.is_tried(update.candidate)
            && update.failures >= update.failures_max(self.wanted)
        {
            let (failed, release) = (update.failures, update.candidate);
            let reason = format!(
                "{failed} workers of release {release} have failed, and {} are wanted by now",
                self.wanted
            );
            self.halt(reason, now);
        }
    }

    fn halt(&mut self, reason: String, now: Instant) {
        let Some(update) = &mut self.update else {
            return;
        };
        match update.plan.on_failure {
            OnFailure::Revert => self.revert(reason, now),
            OnFailure::Halt => {
                update.phase = Phase::Halted {
                    reason: reason.clone(),
                };
                let release = update.candidate;
                self.outputs.push_back(Output::Held { release, reason });
            }
        }
    }

    fn revert(&mut self, reason: String, now: Instant) {
        let Some(update) = &mut self.update else {
            return;
        };
        let deadline = now + update.plan.progress_deadline;
        update.phase = Phase::Reverting {
            reason: reason.clone(),
            deadline,
        };
        let release = update.candidate;
        self.outputs
            .push_back(Output::Reverting { release, reason });
    }

    fn start(&mut self, release: ReleaseId, crashes: u32, now: Instant) {
        self.last_worker += 1;
        let worker = self.last_worker;
        let deadline = now + self.plan_now().healthy_deadline;
        let state = State::Starting { deadline };
        self.workers.insert(
            worker,
            Worker {
                release,
                state,
                crashes,
            },
        );
        self.outputs.push_back(Output::Start { worker, release });
    }

    fn tell_to_stop(&mut self, worker: WorkerId, now: Instant) {
        if let Some(found) = self.workers.get_mut(&worker) {
            found.state = State::Stopping {
                kill_at: now + self.stop_within,
            };
            self.outputs.push_back(Output::Stop { worker });
        }
    }

    /// How long this worker is on trial once it is ready.
    fn trial(&self, worker: WorkerId) -> Duration {
        let release = self.workers.get(&worker).map(|worker| worker.release);
        match &self.update {
            Some(update) if release == Some(update.candidate) => update.plan.min_healthy,
            _ => self.care.forgiven_after,
        }
    }

    /// Whether this release is a candidate whose failures count.
    fn is_tried(&self, release: ReleaseId) -> bool {
        self.update.as_ref().is_some_and(|update| {
            let counts = matches!(update.phase, Phase::Rolling { .. } | Phase::Paused { .. });
            counts && update.candidate == release
        })
    }

    /// The update's plan while there is one, else the pool's.
    fn plan_now(&self) -> &Plan {
        self.update
            .as_ref()
            .map_or(&self.plan, |update| &update.plan)
    }

    /// The releases of all live workers that are not of this one, one for each worker.
    fn others(&self, than: ReleaseId) -> impl Iterator<Item = ReleaseId> {
        let live = self.live().map(|(_, worker)| worker.release);
        live.filter(move |release| *release != than)
    }

    fn live(&self) -> impl Iterator<Item = (WorkerId, &Worker)> {
        let workers = self.workers.iter().map(|(id, worker)| (*id, worker));
        workers.filter(|(_, worker)| worker.state.is_live())
    }

    fn count(&self, release: ReleaseId, matches: impl Fn(State) -> bool) -> usize {
        let workers = self.workers.values();
        workers
            .filter(|worker| worker.release == release && matches(worker.state))
            .count()
    }

    fn check_running(&self) -> Result<(), Refusal> {
        match self.stop {
            Stop::No => Ok(()),
            _ => Err(Refusal::Stopping),
        }
    }

    fn check_update(&mut self) -> Result<&mut Update, Refusal> {
        self.check_running()?;
        self.update.as_mut().ok_or(Refusal::NoUpdate)
    }
}

impl Update {
    /// How many candidates have to fail to halt it, in a pool of this size.
    fn failures_max(&self, wanted: usize) -> usize {
        self.plan.halt_on_failures.clamp(1, wanted)
    }
}

impl State {
    /// Not on its way out.
    fn is_live(self) -> bool {
        self.is_ready() || matches!(self, Self::Starting { .. })
    }

    fn is_ready(self) -> bool {
        matches!(self, Self::Settling { .. } | Self::Serving)
    }
}

fn check_size(wanted: usize) -> Result<(), Refusal> {
    match wanted {
        1..=WORKERS_MAX => Ok(()),
        _ => Err(Refusal::Size),
    }
}

/// More than any machine has processors.
pub(crate) const WORKERS_MAX: usize = 4_096;

#[cfg(test)]
mod tests;

#[cfg(test)]
impl Controller {
    /// The same at another time: all that is awaited comes so much sooner. For a model that would else never see the same
    /// state twice.
    pub(super) fn rebased(mut self, by: Duration) -> Self {
        for worker in self.workers.values_mut() {
            match &mut worker.state {
                State::Starting { deadline: at }
                | State::Settling { until: at }
                | State::Stopping { kill_at: at } => *at -= by,
                State::Serving | State::Killed => {}
            }
        }
        for at in self
            .vacancies
            .iter_mut()
            .filter_map(|vacancy| vacancy.fill_at.as_mut())
        {
            *at -= by;
        }
        if let Some(update) = &mut self.update
            && let Phase::Rolling { deadline } | Phase::Reverting { deadline, .. } =
                &mut update.phase
        {
            *deadline -= by;
        }
        self
    }

    /// Whether the two could not be told apart but for the numbers of workers, which grow for ever.
    pub(super) fn renumbered(mut self) -> (Self, BTreeMap<WorkerId, WorkerId>) {
        let numbers: BTreeMap<WorkerId, WorkerId> = self.workers.keys().copied().zip(1..).collect();
        self.last_worker = numbers.len() as u64;
        // More of them make no difference any more where the backoff has reached its limit.
        let crashes_max = self.care.loop_after;
        for worker in self.workers.values_mut() {
            worker.crashes = worker.crashes.min(crashes_max);
        }
        for vacancy in &mut self.vacancies {
            vacancy.crashes = vacancy.crashes.min(crashes_max);
        }
        self.workers = self
            .workers
            .into_iter()
            .map(|(id, worker)| (numbers[&id], worker))
            .collect();
        (self, numbers)
    }

    pub(super) fn ids(&self) -> Vec<(WorkerId, ReleaseId, Stage)> {
        let ids = self.workers.iter();
        ids.filter_map(|(id, worker)| Some((*id, worker.release, self.stage(*id)?.0)))
            .collect()
    }
}
