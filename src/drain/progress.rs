//! What is in flight and what was left, as plain data.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// What is in flight, class by class.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Every class that was ever used, in the order of first use.
    pub classes: Vec<ClassProgress>,
}

/// One class's work.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClassProgress {
    /// The class.
    pub name: &'static str,
    /// Units in flight.
    pub in_flight: usize,
    /// Age of the oldest one.
    pub oldest: Option<Duration>,
    /// How long they may still take; `None` while the generation is not draining.
    pub time_left: Option<Duration>,
}

/// How a drain ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// What was still in flight when the time was up.
    pub stragglers: Vec<Straggler>,
    /// From the drain's begin to its end.
    pub took: Duration,
}

/// A unit of work that was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Straggler {
    /// Its class.
    pub class: &'static str,
    /// Its label.
    pub label: Cow<'static, str>,
    /// How long it had been at work.
    pub age: Duration,
}

impl fmt::Display for Straggler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} after {:.1?}", self.class, self.label, self.age)
    }
}
