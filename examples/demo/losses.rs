//! Which failures the death of a release explains, and which nothing does.

use std::collections::BTreeMap;
use std::time::Duration;

use handover_load::{Failure, Kind, Report, Sample};

use crate::upgrade::Crash;

/// The failures of a load, told apart.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    /// On connections that the crashed release held: how many of each kind, and how they failed.
    pub(crate) in_crash: BTreeMap<(Kind, Failure), u64>,
    /// From the crash to the last of them.
    pub(crate) last_after: Duration,
    /// Those that the crash does not explain.
    pub(crate) unexplained: Vec<Sample>,
    /// Those of which there is no more than the count.
    pub(crate) unseen: u64,
    /// Requests that the crashed release can have had in flight, at most.
    pub(crate) explained_max: u64,
}

impl Losses {
    pub(crate) fn of(report: &Report, crash: Option<&Crash>, http2_streams: usize) -> Self {
        let mut losses = Self {
            unseen: report.failures() - report.samples.len() as u64,
            explained_max: crash.map_or(0, |crash| crash.requests_max(http2_streams) as u64),
            ..Self::default()
        };
        for sample in &report.samples {
            match crash.filter(|crash| explains(crash, sample)) {
                Some(crash) => losses.add(sample, crash),
                None => losses.unexplained.push(sample.clone()),
            }
        }
        losses
    }

    /// How many requests the crash cost.
    pub(crate) fn crashed(&self) -> u64 {
        self.in_crash.values().sum()
    }

    /// How many requests of this kind the crash cost.
    pub(crate) fn crashed_of(&self, kind: Kind) -> u64 {
        let of_kind = self.in_crash.iter().filter(|((of, _), _)| *of == kind);
        of_kind.map(|(_, count)| count).sum()
    }

    /// How many requests failed for any other reason.
    pub(crate) fn others(&self) -> u64 {
        self.unexplained.len() as u64 + self.unseen
    }

    fn add(&mut self, sample: &Sample, crash: &Crash) {
        let count = self.in_crash.entry((sample.kind, sample.failure));
        *count.or_default() += 1;
        self.last_after = self.last_after.max(sample.at.saturating_sub(crash.at));
    }
}

/// Whether a request can have failed because it was in flight on the crashed release: it failed as at the death of a
/// process, and when that was noticed.
fn explains(crash: &Crash, sample: &Sample) -> bool {
    is_death(sample.failure) && (crash.at..crash.at + NOTICED_WITHIN).contains(&sample.at)
}

/// Whether a process that dies can fail a request in this way. Not among them: refused and unanswered connections,
/// because the listening socket lives on in the incumbent.
fn is_death(failure: Failure) -> bool {
    matches!(
        failure,
        Failure::Reset
            | Failure::EofBeforeResponse
            | Failure::EofInsideResponse
            | Failure::IdleRace
            | Failure::H2
    )
}

/// How the crash met such a request, for the reader of a report.
pub(crate) fn meaning(failure: Failure) -> &'static str {
    match failure {
        Failure::Reset | Failure::EofBeforeResponse => "no answer yet when it died",
        Failure::EofInsideResponse => "half answered when it died",
        Failure::IdleRace => "idle when it died, asked after",
        Failure::H2 => "a stream on a connection that died",
        _ => "not the crash",
    }
}

/// The longest pause of a client, after which it finds its idle connection dead.
const NOTICED_WITHIN: Duration = Duration::from_secs(1);
