//! The machine's numbers on their way to the next supervisor in this process. Deadlines travel as what is left of them.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Care, Controller, Plan, Refusal, ReleaseId, State, Vacancy, Worker, WorkerId};

/// A machine at rest: no update is under way, and the pool does not stop.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    wanted: usize,
    stable: ReleaseId,
    is_looping: bool,
    last_worker: WorkerId,
    workers: Vec<SavedWorker>,
    vacancies: Vec<SavedVacancy>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedWorker {
    worker: WorkerId,
    release: ReleaseId,
    state: SavedState,
    crashes: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SavedState {
    Starting { left: Duration },
    Settling { left: Duration },
    Serving,
    Stopping { left: Duration },
    Killed,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedVacancy {
    crashes: u32,
    left: Option<Duration>,
}

impl Controller {
    /// What the next supervisor needs, or why there is none now.
    pub(crate) fn save(&self, now: Instant) -> Result<Saved, Refusal> {
        self.check_running()?;
        if let Some(update) = &self.update {
            return Err(Refusal::UnderWay(update.candidate));
        }
        let left = |at: Instant| at.saturating_duration_since(now);
        let workers = self.workers.iter().map(|(&worker, it)| SavedWorker {
            worker,
            release: it.release,
            state: match it.state {
                State::Starting { deadline } => SavedState::Starting {
                    left: left(deadline),
                },
                State::Settling { until } => SavedState::Settling { left: left(until) },
                State::Serving => SavedState::Serving,
                State::Stopping { kill_at } => SavedState::Stopping {
                    left: left(kill_at),
                },
                State::Killed { .. } => SavedState::Killed,
            },
            crashes: it.crashes,
        });
        let vacancies = self.vacancies.iter().map(|vacancy| SavedVacancy {
            crashes: vacancy.crashes,
            left: vacancy.fill_at.map(left),
        });
        Ok(Saved {
            wanted: self.wanted,
            stable: self.stable,
            is_looping: self.is_looping,
            last_worker: self.last_worker,
            workers: workers.collect(),
            vacancies: vacancies.collect(),
        })
    }

    /// Goes on where a saved machine was. How many workers are wanted is what operators have made of it, unless
    /// `wanted` says that the program itself wants another number by now.
    pub(crate) fn restore(
        saved: Saved,
        wanted: Option<usize>,
        plan: Plan,
        care: Care,
        stop_within: Duration,
        now: Instant,
    ) -> Result<Self, Refusal> {
        let wanted = wanted.unwrap_or(saved.wanted);
        let workers = saved.workers.into_iter().map(|it| {
            let state = match it.state {
                SavedState::Starting { left } => State::Starting {
                    deadline: now + left,
                },
                SavedState::Settling { left } => State::Settling { until: now + left },
                SavedState::Serving => State::Serving,
                SavedState::Stopping { left } => State::Stopping {
                    kill_at: now + left,
                },
                SavedState::Killed => State::killed(now),
            };
            let (release, crashes) = (it.release, it.crashes);
            let worker = Worker {
                release,
                state,
                crashes,
            };
            (it.worker, worker)
        });
        let vacancies = saved.vacancies.into_iter().map(|vacancy| Vacancy {
            crashes: vacancy.crashes,
            fill_at: vacancy.left.map(|left| now + left),
        });
        let mut this = Self {
            workers: workers.collect(),
            vacancies: vacancies.collect(),
            is_looping: saved.is_looping,
            last_worker: saved.last_worker,
            ..Self::empty(wanted, saved.stable, plan, care, stop_within)?
        };
        this.reconcile(now);
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Output;
    use super::*;

    const STOP: Duration = Duration::from_secs(28);

    fn pool(now: Instant) -> Controller {
        Controller::new(3, 1, Plan::default(), Care::default(), STOP, now).unwrap()
    }

    fn drained(machine: &mut Controller) -> Vec<Output> {
        std::iter::from_fn(|| machine.poll_output()).collect()
    }

    fn travelled(machine: &Controller, then: Instant, now: Instant) -> Controller {
        let bytes = serde_json::to_vec(&machine.save(then).unwrap()).unwrap();
        let saved = serde_json::from_slice(&bytes).unwrap();
        let (plan, care) = (Plan::default(), Care::default());
        Controller::restore(saved, None, plan, care, STOP, now).unwrap()
    }

    #[test]
    fn workers_crashes_and_what_is_left_of_every_wait_arrive_and_nothing_is_asked_for() {
        let then = Instant::now();
        let mut machine = pool(then);
        drained(&mut machine);
        machine.handle_ready(1, then);
        machine.handle_ready(2, then + Duration::from_secs(1));
        machine.handle_exited(1, "exit status: 1", 0.0, then);
        drained(&mut machine);
        machine.handle_exited(4, "exit status: 1", 0.0, then);
        machine.scale(2, then).unwrap();
        drained(&mut machine);
        let mut resumed = travelled(&machine, then, then);
        assert_eq!(drained(&mut resumed), []);
        assert_eq!(resumed, machine);
        let later = then + Duration::from_secs(5);
        let resumed = travelled(&machine, then, later);
        let shifted = machine.poll_timeout().map(|at| at + Duration::from_secs(5));
        assert_eq!(resumed.poll_timeout(), shifted);
    }

    #[test]
    fn a_machine_that_is_not_at_rest_is_not_saved() {
        let now = Instant::now();
        let mut machine = pool(now);
        drained(&mut machine);
        machine.update(2, Plan::default(), now).unwrap();
        assert_eq!(machine.save(now).unwrap_err(), Refusal::UnderWay(2));
        let mut machine = pool(now);
        machine.stop(now, now);
        assert_eq!(machine.save(now).unwrap_err(), Refusal::Stopping);
    }

    #[test]
    fn a_program_that_wants_another_number_by_now_gets_it() {
        let now = Instant::now();
        let mut machine = pool(now);
        drained(&mut machine);
        let saved = machine.save(now).unwrap();
        let (plan, care) = (Plan::default(), Care::default());
        let mut more = Controller::restore(saved, Some(4), plan, care, STOP, now).unwrap();
        let started = Output::Start {
            worker: 4,
            release: 1,
        };
        assert_eq!(drained(&mut more), [started]);
    }
}
