//! Which generation answered when, in bins of 10 ms.

mod plot;
mod svg;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use crate::histogram::serialize_millis;

/// Answers and failures over time, with marks for what happened meanwhile.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Timeline {
    /// One after the other from the start on, each 10 ms long.
    pub bins: Vec<Bin>,
    /// In the order of time.
    pub marks: Vec<Mark>,
}

/// What ended within one 10 ms.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Bin {
    /// Whole answers, by the generation that gave them.
    pub answers: BTreeMap<u64, u64>,
    /// Failures of any kind.
    pub failures: u64,
}

/// Something that happened during a load.
#[derive(Clone, Debug, Serialize)]
pub struct Mark {
    /// When, since the start.
    #[serde(rename = "at_ms", serialize_with = "serialize_millis")]
    pub at: Duration,
    /// How it is drawn.
    pub kind: MarkKind,
    /// What.
    pub label: String,
}

/// What a [`Mark`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MarkKind {
    /// A handover, or a part of one.
    Handover,
    /// The end of a process by force.
    Kill,
    /// Anything else.
    Note,
}

impl Timeline {
    /// How long a bin is.
    pub const BIN: Duration = Duration::from_millis(10);

    /// The generations that ever answered, by number.
    pub fn generations(&self) -> Vec<u64> {
        let all: BTreeSet<_> = self
            .bins
            .iter()
            .flat_map(|bin| bin.answers.keys())
            .collect();
        all.into_iter().copied().collect()
    }

    /// A picture of its own, 960 wide: rates on top, one lane per generation below.
    pub fn svg(&self) -> String {
        svg::draw(self)
    }

    /// The same for a terminal of `width` columns: one line of blocks per generation.
    pub fn plot(&self, width: usize) -> String {
        plot::draw(self, width)
    }

    pub(crate) fn answer(&mut self, at: Duration, generation: u64) {
        *self.bin(at).answers.entry(generation).or_default() += 1;
    }

    pub(crate) fn failure(&mut self, at: Duration) {
        self.bin(at).failures += 1;
    }

    pub(crate) fn mark(&mut self, at: Duration, kind: MarkKind, label: String) {
        self.marks.push(Mark { at, kind, label });
    }

    fn bin(&mut self, at: Duration) -> &mut Bin {
        let index = (at.as_millis() / Self::BIN.as_millis()) as usize;
        if index >= self.bins.len() {
            self.bins.resize_with(index + 1, Bin::default);
        }
        &mut self.bins[index]
    }

    /// At most `count` columns of as many bins each, which are drawn as one.
    fn columns(&self, count: usize) -> Columns {
        let per_column = self.bins.len().div_ceil(count.max(1)).max(1);
        Columns {
            width: Self::BIN * per_column as u32,
            sums: self.bins.chunks(per_column).map(sum).collect(),
        }
    }
}

struct Columns {
    width: Duration,
    sums: Vec<Bin>,
}

impl Columns {
    fn peak(&self) -> u64 {
        self.sums.iter().map(Bin::total).max().unwrap_or(0)
    }

    fn span(&self) -> Duration {
        self.width * self.sums.len() as u32
    }
}

impl Bin {
    fn total(&self) -> u64 {
        self.answers.values().sum()
    }

    fn of(&self, generation: u64) -> u64 {
        self.answers.get(&generation).copied().unwrap_or(0)
    }
}

fn sum(bins: &[Bin]) -> Bin {
    let mut total = Bin::default();
    for bin in bins {
        total.failures += bin.failures;
        for (generation, count) in &bin.answers {
            *total.answers.entry(*generation).or_default() += count;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn handover() -> Timeline {
        let mut timeline = Timeline::default();
        (0..100).for_each(|index| timeline.answer(Timeline::BIN * index, 1));
        (90..200).for_each(|index| timeline.answer(Timeline::BIN * index, 2));
        timeline.failure(Duration::from_millis(955));
        timeline.mark(
            Duration::from_millis(900),
            MarkKind::Handover,
            "1 < 2 & more".into(),
        );
        timeline
    }

    #[test]
    fn columns_lose_no_answer() {
        let timeline = handover();
        for count in [1, 7, 64, 1000] {
            let columns = timeline.columns(count);
            assert!(columns.sums.len() <= count);
            assert_eq!(columns.sums.iter().map(Bin::total).sum::<u64>(), 210);
            assert_eq!(columns.sums.iter().map(|bin| bin.failures).sum::<u64>(), 1);
        }
    }

    #[test]
    fn an_empty_timeline_can_be_drawn() {
        let timeline = Timeline::default();
        assert!(timeline.svg().ends_with("</svg>\n"));
        assert!(!timeline.plot(0).contains("generation"));
    }
}
