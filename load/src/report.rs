//! What a load saw, for people and for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::histogram::{Histogram, millis, serialize_millis};
use crate::kind::{Failure, Kind};
use crate::timeline::Timeline;

/// Everything that a load saw. Its [`Display`](fmt::Display) is a table for a terminal.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How long the clients asked.
    #[serde(rename = "duration_ms", serialize_with = "serialize_millis")]
    pub duration: Duration,
    /// The longest time without any answer to any client.
    #[serde(rename = "gap_ms", serialize_with = "serialize_millis")]
    pub gap: Duration,
    /// When that gap began.
    #[serde(rename = "gap_at_ms", serialize_with = "serialize_millis")]
    pub gap_at: Duration,
    /// One entry for each kind of client that asked anything.
    pub kinds: Vec<KindReport>,
    /// One entry for each generation that answered, by number.
    pub generations: Vec<Generation>,
    /// The first failures in detail; the counts are in [`kinds`](Self::kinds).
    pub samples: Vec<Sample>,
    /// Which generation answered when.
    pub timeline: Timeline,
}

/// What the clients of one kind saw.
#[derive(Clone, Debug, Serialize)]
pub struct KindReport {
    /// Which clients.
    pub kind: Kind,
    /// Requests that ended, well or not.
    pub requests: u64,
    /// Requests that were answered as they should be.
    pub answers: u64,
    /// Connections that the server ended in a way that cost no request: `Connection: close`, GOAWAY, a close frame.
    pub reconnects: u64,
    /// Requests that failed, by the way in which they did.
    pub failures: BTreeMap<Failure, u64>,
    /// How long the answered requests took, connecting included.
    pub latency: Histogram,
    /// The longest time without an answer to any client of this kind.
    #[serde(rename = "gap_ms", serialize_with = "serialize_millis")]
    pub gap: Duration,
}

/// One generation, as the clients saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Generation {
    /// Its number, as it gave it in its answers.
    pub generation: u64,
    /// How many requests it answered.
    pub answers: u64,
    /// When its first answer was complete.
    #[serde(rename = "first_ms", serialize_with = "serialize_millis")]
    pub first: Duration,
    /// When its last answer was complete.
    #[serde(rename = "last_ms", serialize_with = "serialize_millis")]
    pub last: Duration,
}

/// One failure in detail.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// When the request failed.
    #[serde(rename = "at_ms", serialize_with = "serialize_millis")]
    pub at: Duration,
    /// Which client's it was.
    pub kind: Kind,
    /// How it is counted.
    pub failure: Failure,
    /// What was seen.
    pub detail: String,
}

impl Report {
    /// How many requests ended, well or not.
    pub fn requests(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.requests).sum()
    }

    /// How many requests were answered as they should be.
    pub fn answers(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.answers).sum()
    }

    /// How many requests failed, in whatever way.
    pub fn failures(&self) -> u64 {
        self.kinds.iter().map(KindReport::failed).sum()
    }

    /// How many requests of this kind failed in this way.
    pub fn failed(&self, kind: Kind, failure: Failure) -> u64 {
        self.kind(kind)
            .and_then(|kind| kind.failures.get(&failure).copied())
            .unwrap_or(0)
    }

    /// What the clients of this kind saw, if there were any and they asked anything.
    pub fn kind(&self, kind: Kind) -> Option<&KindReport> {
        self.kinds.iter().find(|report| report.kind == kind)
    }

    /// A generation, if it ever answered.
    pub fn generation(&self, generation: u64) -> Option<&Generation> {
        let mut all = self.generations.iter();
        all.find(|seen| seen.generation == generation)
    }

    /// Everything as JSON: durations in milliseconds, all times since the load's start.
    pub fn to_json(&self) -> String {
        // Strings, numbers and maps with string keys: nothing here can fail.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

impl KindReport {
    /// How many requests failed, in whatever way.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// How many of them their connection's end has cut off: what a process takes along that is killed.
    pub fn cut_off(&self) -> u64 {
        let ways = [
            Failure::Reset,
            Failure::EofBeforeResponse,
            Failure::IdleRace,
            Failure::EofInsideResponse,
        ];
        let counts = ways.iter().filter_map(|way| self.failures.get(way));
        counts.sum()
    }
}

impl Generation {
    pub(crate) fn first_seen(generation: u64, now: Duration) -> Self {
        Self {
            generation,
            answers: 0,
            first: now,
            last: now,
        }
    }

    pub(crate) fn answered(&mut self, now: Duration) {
        self.answers += 1;
        self.first = self.first.min(now);
        self.last = self.last.max(now);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_kinds(f)?;
        self.write_failures(f)?;
        self.write_generations(f)?;
        write!(
            f,
            "\n{} requests in {}, {} failed, longest time without an answer {} (at {})",
            grouped(self.requests()),
            seconds(self.duration),
            grouped(self.failures()),
            brief(self.gap),
            seconds(self.gap_at),
        )
    }
}

impl Report {
    fn write_kinds(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<16}{:>10}{:>9}{:>12}{:>11}{:>11}{:>11}{:>11}",
            "client", "requests", "failed", "reconnects", "p50", "p99", "max", "gap"
        )?;
        for kind in &self.kinds {
            writeln!(
                f,
                "{:<16}{:>10}{:>9}{:>12}{:>11}{:>11}{:>11}{:>11}",
                kind.kind,
                grouped(kind.requests),
                grouped(kind.failed()),
                grouped(kind.reconnects),
                brief(kind.latency.quantile(0.5)),
                brief(kind.latency.quantile(0.99)),
                brief(kind.latency.max()),
                brief(kind.gap),
            )?;
        }
        Ok(())
    }

    fn write_failures(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.failures() == 0 {
            return Ok(());
        }
        writeln!(f, "\n{:<16}{:<22}{:>9}", "failed", "how", "count")?;
        for kind in &self.kinds {
            for (failure, count) in &kind.failures {
                writeln!(f, "{:<16}{failure:<22}{:>9}", kind.kind, grouped(*count))?;
            }
        }
        writeln!(f)?;
        for sample in self.samples.iter().take(SAMPLES_SHOWN) {
            writeln!(
                f,
                "{:>10}  {}: {}: {}",
                seconds(sample.at),
                sample.kind,
                sample.failure,
                sample.detail
            )?;
        }
        Ok(())
    }

    fn write_generations(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:<16}{:>10}{:>14}{:>14}",
            "generation", "answers", "first", "last"
        )?;
        for seen in &self.generations {
            writeln!(
                f,
                "{:<16}{:>10}{:>14}{:>14}",
                seen.generation,
                grouped(seen.answers),
                seconds(seen.first),
                seconds(seen.last)
            )?;
        }
        Ok(())
    }
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    let groups: Vec<_> = groups.map(String::from_utf8_lossy).collect();
    groups.join(",")
}

/// Three or so significant digits, with the unit that keeps them short.
pub fn brief(duration: Duration) -> String {
    match millis(duration) {
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.2} s", ms / 1000.0),
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.3} s", duration.as_secs_f64())
}

const SAMPLES_SHOWN: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (12345, "12,345")];
        for (number, text) in cases {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn durations_keep_their_magnitude() {
        let cases = [(250, "0.25 ms"), (12_400, "12 ms"), (2_001_000, "2.00 s")];
        for (micros, text) in cases {
            assert_eq!(brief(Duration::from_micros(micros)), text);
        }
    }
}
