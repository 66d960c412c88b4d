//! Where the clients put what they saw, in bounded memory.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::histogram::Histogram;
use crate::kind::{Failure, Kind};
use crate::report::{Generation, KindReport, Report, Sample};
use crate::timeline::{MarkKind, Timeline};

/// Why a request failed: what is counted, and what is shown of the first few.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) failure: Failure,
    pub(crate) detail: String,
}

impl Failed {
    pub(crate) fn new(failure: Failure, detail: impl ToString) -> Self {
        let detail = detail.to_string();
        Self { failure, detail }
    }
}

/// What became of one request: the generation that answered it, or a failure.
pub(crate) type Outcome = Result<u64, Failed>;

#[derive(Debug)]
pub(crate) struct Recorder {
    begun: Instant,
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
}

/// What a load has counted so far: cheap to look at, again and again.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Requests that were answered as they should be, by the generation that did.
    pub answers: BTreeMap<u64, u64>,
    /// Requests that failed, in whatever way.
    pub failures: u64,
    /// Connections that the server ended in a way that cost no request.
    pub reconnects: u64,
}

#[derive(Debug, Default)]
struct State {
    kinds: [Tally; Kind::ALL.len()],
    generations: BTreeMap<u64, Generation>,
    timeline: Timeline,
    gap: Gap,
    samples: Vec<Sample>,
    stopped: Option<Duration>,
}

#[derive(Debug, Default)]
struct Tally {
    requests: u64,
    reconnects: u64,
    failures: BTreeMap<Failure, u64>,
    latency: Histogram,
    gap: Gap,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self {
            begun: Instant::now(),
            state: Mutex::default(),
            progress: watch::Sender::default(),
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Counts a request that ends now.
    pub(crate) fn record(&self, kind: Kind, start: Instant, outcome: Outcome) {
        let (now, latency) = (self.elapsed(), start.elapsed());
        let answered = outcome.as_ref().ok().copied();
        self.state().record(kind, now, latency, outcome);
        self.progress
            .send_modify(|progress| progress.record(answered));
    }

    pub(crate) fn record_reconnect(&self, kind: Kind) {
        self.state().kinds[kind as usize].reconnects += 1;
        self.progress
            .send_modify(|progress| progress.reconnects += 1);
    }

    pub(crate) fn mark(&self, kind: MarkKind, label: String) {
        let now = self.elapsed();
        self.state().timeline.mark(now, kind, label);
    }

    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(crate) fn requests(&self) -> u64 {
        let state = self.state();
        state.kinds.iter().map(|tally| tally.requests).sum()
    }

    /// From now on a time without answers is no gap, because nobody asks any more.
    pub(crate) fn stop(&self) {
        let now = self.elapsed();
        self.state().stopped.get_or_insert(now);
    }

    pub(crate) fn report(&self) -> Report {
        let now = self.elapsed();
        let state = self.state();
        let end = state.stopped.unwrap_or(now);
        let (gap, gap_at) = state.gap.longest_until(end);
        Report {
            duration: end,
            gap,
            gap_at,
            kinds: Kind::ALL
                .into_iter()
                .zip(&state.kinds)
                .filter(|(_, tally)| tally.requests + tally.reconnects > 0)
                .map(|(kind, tally)| tally.report(kind, end))
                .collect(),
            generations: state.generations.values().cloned().collect(),
            samples: state.samples.clone(),
            timeline: state.timeline.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    fn record(&mut self, answered: Option<u64>) {
        match answered {
            Some(generation) => *self.answers.entry(generation).or_default() += 1,
            None => self.failures += 1,
        }
    }
}

impl State {
    fn record(&mut self, kind: Kind, now: Duration, latency: Duration, outcome: Outcome) {
        self.kinds[kind as usize].requests += 1;
        match outcome {
            Ok(generation) => self.record_answer(kind, now, latency, generation),
            Err(failed) => self.record_failure(kind, now, failed),
        }
    }

    fn record_answer(&mut self, kind: Kind, now: Duration, latency: Duration, generation: u64) {
        let tally = &mut self.kinds[kind as usize];
        let asked_until = self.stopped.unwrap_or(now).min(now);
        tally.latency.record(latency);
        tally.gap.end(asked_until);
        self.gap.end(asked_until);
        self.timeline.answer(now, generation);
        self.generations
            .entry(generation)
            .or_insert_with(|| Generation::first_seen(generation, now))
            .answered(now);
    }

    fn record_failure(&mut self, kind: Kind, now: Duration, failed: Failed) {
        let failures = &mut self.kinds[kind as usize].failures;
        *failures.entry(failed.failure).or_default() += 1;
        self.timeline.failure(now);
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push(Sample {
                at: now,
                kind,
                failure: failed.failure,
                detail: failed.detail,
            });
        }
    }
}

impl Tally {
    fn report(&self, kind: Kind, end: Duration) -> KindReport {
        KindReport {
            kind,
            requests: self.requests,
            answers: self.latency.count(),
            reconnects: self.reconnects,
            failures: self.failures.clone(),
            latency: self.latency.clone(),
            gap: self.gap.longest_until(end).0,
        }
    }
}

/// The longest time without any answer, and when it began.
#[derive(Debug, Default)]
struct Gap {
    last: Duration,
    longest: Duration,
    longest_at: Duration,
}

impl Gap {
    fn end(&mut self, now: Duration) {
        (self.longest, self.longest_at) = self.longest_until(now);
        self.last = self.last.max(now);
    }

    fn longest_until(&self, now: Duration) -> (Duration, Duration) {
        (self.longest, self.longest_at).max((now.saturating_sub(self.last), self.last))
    }
}

const SAMPLES_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_longest_gap_may_be_the_one_that_no_answer_ended() {
        let mut gap = Gap::default();
        [3 * MS, 10 * MS, 12 * MS]
            .into_iter()
            .for_each(|now| gap.end(now));
        assert_eq!(gap.longest_until(13 * MS), (7 * MS, 3 * MS));
        assert_eq!(gap.longest_until(30 * MS), (18 * MS, 12 * MS));
    }

    #[test]
    fn every_request_is_an_answer_or_a_failure() {
        let recorder = Recorder::new();
        let now = Instant::now();
        recorder.record(Kind::Fresh, now, Ok(1));
        recorder.record(Kind::Fresh, now, Err(Failed::new(Failure::Reset, "")));
        recorder.record(Kind::Http2, now, Err(Failed::new(Failure::H2, "")));
        let report = recorder.report();
        assert_eq!((report.requests(), report.answers()), (3, 1));
        assert_eq!(report.failures(), 2);
        assert_eq!(report.failed(Kind::Fresh, Failure::Reset), 1);
        assert_eq!(report.failed(Kind::Http2, Failure::Reset), 0);
    }

    #[test]
    fn no_gap_grows_once_the_load_has_stopped() {
        let recorder = Recorder::new();
        recorder.stop();
        let stopped = recorder.report().duration;
        let late = stopped + Duration::from_secs(9);
        recorder.state().record(Kind::Slow, late, MS, Ok(1));
        let report = recorder.report();
        assert_eq!((report.duration, report.gap), (stopped, stopped));
        assert_eq!(report.generations[0].last, late);
    }

    #[test]
    fn samples_are_bounded_and_counts_are_not() {
        let recorder = Recorder::new();
        for _ in 0..2 * SAMPLES_MAX {
            recorder.record(
                Kind::Fresh,
                Instant::now(),
                Err(Failed::new(Failure::Reset, "")),
            );
        }
        let report = recorder.report();
        assert_eq!(report.samples.len(), SAMPLES_MAX);
        assert_eq!(report.failures(), 2 * SAMPLES_MAX as u64);
    }
}
