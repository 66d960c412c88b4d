//! The places of workers that have crashed: how long each of them waits for the next one, and whether workers crash again
//! and again.

use std::time::{Duration, Instant};

use super::update::Phase;
use super::{Controller, Output, State};

/// The place of a worker that has crashed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Vacancy {
    pub(super) crashes: u32,
    /// `None` once it has waited for long enough.
    pub(super) fill_at: Option<Instant>,
}

impl Controller {
    /// Starts so many stable workers, but for the places that have to wait because they have crashed.
    pub(super) fn fill(&mut self, missing: usize, now: Instant) {
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

    pub(super) fn vacate(&mut self, crashes: u32, delay: Duration, now: Instant) {
        let fill_at = Some(now + delay);
        self.vacancies.push(Vacancy { crashes, fill_at });
    }

    pub(super) fn watch_for_loops(&mut self) {
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

    /// How many crashes in a row make the crash loop that there is.
    pub(crate) fn looping(&self) -> Option<u32> {
        self.is_looping.then(|| self.crashes_max())
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

    fn crashes_max(&self) -> u32 {
        let vacancies = self.vacancies.iter().map(|vacancy| vacancy.crashes);
        let workers = self.live().map(|(_, worker)| worker.crashes);
        vacancies.chain(workers).max().unwrap_or(0)
    }
}
