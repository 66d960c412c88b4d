//! States that a model can tell apart.

use std::collections::BTreeMap;
use std::time::Duration;

use super::update::Phase;
use super::{Controller, ReleaseId, Stage, State, WorkerId};

impl Controller {
    /// The same at another time: all that is awaited comes so much sooner. For a model that would else never see the same
    /// state twice.
    pub(in super::super) fn rebased(mut self, by: Duration) -> Self {
        for worker in self.workers.values_mut() {
            match &mut worker.state {
                State::Starting { deadline: at }
                | State::Settling { until: at }
                | State::Stopping { kill_at: at }
                | State::Killed { lost_at: at } => *at -= by,
                State::Serving => {}
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
    pub(in super::super) fn renumbered(mut self) -> (Self, BTreeMap<WorkerId, WorkerId>) {
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

    pub(in super::super) fn ids(&self) -> Vec<(WorkerId, ReleaseId, Stage)> {
        let ids = self.workers.iter();
        ids.filter_map(|(id, worker)| Some((*id, worker.release, self.stage(*id)?.0)))
            .collect()
    }
}
