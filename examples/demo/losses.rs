//! Which failures the death of a release explains, and which nothing does.

use std::time::Duration;

use handover_load::{Failure, Kind, Report, Timeline};

use crate::upgrade::Crash;

/// The failures of a load, told apart.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    /// On connections that the crashed release held, kind by kind.
    pub(crate) in_crash: Vec<(Kind, Failure, u64)>,
    /// From the crash to the last of them.
    pub(crate) last_after: Duration,
    /// What the death of a process does not look like, kind by kind.
    pub(crate) unlike_a_crash: Vec<(Kind, Failure, u64)>,
    /// Before the crash, or too long after it.
    pub(crate) at_other_times: u64,
    /// Requests that the crashed release can have had in flight, at most.
    pub(crate) explained_max: u64,
}

impl Losses {
    pub(crate) fn of(report: &Report, crash: Option<&Crash>, http2_streams: usize) -> Self {
        let mut losses = Self::default();
        for kind in &report.kinds {
            for (failure, count) in &kind.failures {
                let list = match (crash, is_death(*failure)) {
                    (Some(_), true) => &mut losses.in_crash,
                    _ => &mut losses.unlike_a_crash,
                };
                list.push((kind.kind, *failure, *count));
            }
        }
        if let Some(crash) = crash {
            losses.explained_max = crash.requests_max(http2_streams) as u64;
        }
        losses.look_at_times(&report.timeline, crash);
        losses
    }

    /// How many requests the crash cost.
    pub(crate) fn crashed(&self) -> u64 {
        sum(&self.in_crash)
    }

    /// How many requests of this kind the crash cost.
    pub(crate) fn crashed_of(&self, kind: Kind) -> u64 {
        let of_kind = self.in_crash.iter().filter(|(of, ..)| *of == kind);
        of_kind.map(|(.., count)| count).sum()
    }

    /// Whether every failure there was is explained.
    pub(crate) fn are_explained(&self) -> bool {
        self.unexplained() == 0 && self.crashed() <= self.explained_max
    }

    /// Failures that are none of the crash; one that is wrong in both ways counts once.
    pub(crate) fn unexplained(&self) -> u64 {
        sum(&self.unlike_a_crash).max(self.at_other_times)
    }

    fn look_at_times(&mut self, timeline: &Timeline, crash: Option<&Crash>) {
        for (index, bin) in timeline
            .bins
            .iter()
            .enumerate()
            .filter(|(_, bin)| bin.failures > 0)
        {
            let begin = Timeline::BIN * index as u32;
            let end = begin + Timeline::BIN;
            match crash {
                Some(crash) if end > crash.at && begin < crash.at + NOTICED_WITHIN => {
                    self.last_after = end - crash.at;
                }
                _ => self.at_other_times += bin.failures,
            }
        }
    }
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

fn sum(counts: &[(Kind, Failure, u64)]) -> u64 {
    counts.iter().map(|(.., count)| count).sum()
}

/// The longest pause of a client, after which it finds its idle connection dead.
const NOTICED_WITHIN: Duration = Duration::from_secs(1);
