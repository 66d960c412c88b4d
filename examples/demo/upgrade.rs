//! One upgrade, as the demo saw it.

use std::collections::BTreeMap;
use std::time::Duration;

use handover_load::brief;

use crate::canary::Meeting;
use crate::release::{Ending, Release};

/// One upgrade. Times are the load's.
#[derive(Debug)]
pub(crate) struct Upgrade {
    pub(crate) release: Release,
    pub(crate) asked: Duration,
    /// Phases in order, each with its begin, counted from the demand.
    phases: Vec<(String, Duration)>,
    /// Counted from the demand.
    pub(crate) flip: Option<Duration>,
    baking: Option<Duration>,
    pub(crate) crash: Option<Crash>,
    /// What the clients saw for whom the canary was, if it was one.
    pub(crate) meeting: Option<Meeting>,
    pub(crate) ending: Option<(Ending, Duration)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Crash {
    pub(crate) at: Duration,
    /// Open connections of the release, by class.
    pub(crate) held: BTreeMap<String, usize>,
    /// The generation that answered next, and how long after the crash.
    pub(crate) next: (u64, Duration),
}

impl Crash {
    /// How many connections the release held.
    pub(crate) fn connections(&self) -> usize {
        self.held.values().sum()
    }

    /// How many requests can have been in flight on them: one on each, and a round of them with HTTP/2.
    pub(crate) fn requests_max(&self, http2_streams: usize) -> usize {
        let with_http2 = self.held.get("http2").copied().unwrap_or(0);
        self.connections() - with_http2 + with_http2 * http2_streams
    }
}

impl Upgrade {
    pub(crate) fn new(release: Release, asked: Duration) -> Self {
        Self {
            release,
            asked,
            phases: Vec::new(),
            flip: None,
            baking: None,
            crash: None,
            meeting: None,
            ending: None,
        }
    }

    pub(crate) fn is_to(&self, generation: u64) -> bool {
        self.release.version == generation
    }

    /// The phases so far, each with the time at which it began.
    pub(crate) fn course(&self) -> String {
        let phases = self.phases.iter().enumerate();
        let phases = phases.map(|(index, (name, after))| match index {
            0 => name.clone(),
            _ => format!("{name} {}", unbroken(*after)),
        });
        phases.collect::<Vec<_>>().join(" → ")
    }

    pub(crate) fn entered(&mut self, phase: String, after: Duration) {
        match phase.as_str() {
            "flipping" => self.flip = Some(after),
            "baking" => self.baking = Some(after),
            _ => {}
        }
        self.phases.push((phase, after));
    }

    pub(crate) fn flip_took(&self) -> Option<Duration> {
        Some(self.baking? - self.flip?)
    }

    pub(crate) fn has_ended(&self, with: Ending) -> bool {
        self.ending.is_some_and(|(ending, _)| ending == with)
    }
}

/// A duration that no line break parts from its unit.
fn unbroken(duration: Duration) -> String {
    brief(duration).replace(' ', "\u{a0}")
}
