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
#[cfg(test)]
mod testing;
mod update;
mod vacancies;
mod words;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

pub(crate) use self::saved::Saved;
use self::update::{Phase, Update};
use self::vacancies::Vacancy;
pub(crate) use self::words::{Ended, Output, Progress, Refusal, Stage, UpdateStage};
use super::plan::{Care, Plan};
use crate::config::EXIT_DEADLINE;

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
    /// Nobody waits any more for one that is still there then.
    Killed {
        lost_at: Instant,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stop {
    No,
    Asked,
    Told,
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
                    worker,
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

    /// A deadline has passed. Looks at all of them. `jitter` is a random number from 0 to 1.
    pub(crate) fn handle_timeout(&mut self, jitter: f64, now: Instant) {
        let (mut late, mut lost) = (Vec::new(), Vec::new());
        for (&id, worker) in &mut self.workers {
            match worker.state {
                State::Starting { deadline } if deadline <= now => late.push(id),
                State::Killed { lost_at } if lost_at <= now => lost.push(id),
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
                    worker.state = State::killed(now);
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
        for worker in lost {
            self.workers.remove(&worker);
            self.outputs.push_back(Output::Lost { worker });
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
                | State::Stopping { kill_at: at }
                | State::Killed { lost_at: at } => Some(at),
                State::Serving => None,
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

    /// Another number of workers is wanted from now on.
    pub(crate) fn scale(&mut self, wanted: usize, now: Instant) -> Result<(), Refusal> {
        self.check_running()?;
        check_size(wanted)?;
        self.wanted = wanted;
        self.halt_if_too_many_failed(now);
        self.reconcile(now);
        Ok(())
    }

    /// Stops all workers: the first time by telling them, the second time by killing them. Their time counts from `since`,
    /// when the stop of the pool began.
    pub(crate) fn stop(&mut self, since: Instant, now: Instant) {
        if self.stop == Stop::No {
            self.stop = Stop::Asked;
            self.update = None;
            self.vacancies.clear();
            let live: Vec<WorkerId> = self.live().map(|(id, _)| id).collect();
            live.into_iter().for_each(|id| self.tell_to_stop(id, since));
        } else {
            for (&id, worker) in &mut self.workers {
                if !matches!(worker.state, State::Killed { .. }) {
                    worker.state = State::killed(now);
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

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How far a worker is, and how often its place has crashed in a row.
    pub(crate) fn stage(&self, worker: WorkerId) -> Option<(Stage, u32)> {
        let worker = self.workers.get(&worker)?;
        let stage = match worker.state {
            State::Starting { .. } => Stage::Starting,
            State::Settling { .. } => Stage::Settling,
            State::Serving => Stage::Serving,
            State::Stopping { .. } => Stage::Stopping,
            State::Killed { .. } => Stage::Killed,
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

    /// How many workers there are too few of, whichever they are.
    fn missing(&self) -> usize {
        self.wanted.saturating_sub(self.live().count())
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
            self.fail(id, reason, now);
        } else if worker.release == self.stable {
            let crashes = worker.crashes.saturating_add(1);
            self.vacate(crashes, self.care.delay(crashes, jitter), now);
        }
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

    fn tell_to_stop(&mut self, worker: WorkerId, since: Instant) {
        if let Some(found) = self.workers.get_mut(&worker) {
            found.state = State::Stopping {
                kill_at: since + self.stop_within,
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
}

impl State {
    fn killed(now: Instant) -> Self {
        Self::Killed {
            lost_at: now + EXIT_DEADLINE,
        }
    }

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
