//! Guards: each watches one signal of the two sides and says whether the candidate is worse.
//!
//! - [`Relative`] compares with a stable generation that serves at the same time: on which side do errors land?
//! - [`Absolute`] judges a candidate that serves alone, by what stable's history promises.
//! - Slow requests are judged by the same two: the tail as a rate ([`slow_threshold`]).
//! - [`Stall`] needs no statistics: connections wait and nobody accepts them.
//!
//! All of them may be looked at after every single request without more false aborts than they were given. That holds
//! for errors that are independent, which the retries of one client are not: what they are fed is to be counted once per
//! client and window, by [`Clients`], on both sides.
//!
//! A guard of your own, which [`Builder::guard`](crate::Builder::guard) arms in each rollout:
//!
//! ```
//! use handover::rollout::guard::{Counts, Figure, Finding, Guard, Reading, Sides};
//!
//! #[derive(Debug)]
//! struct NoErrorAtAll;
//!
//! impl Guard for NoErrorAtAll {
//!     fn name(&self) -> &str {
//!         "no error at all"
//!     }
//!
//!     fn look(&mut self, sides: &Sides) -> Reading {
//!         let errors = sides.candidate.errors;
//!         Reading {
//!             guard: self.name().to_owned(),
//!             finding: if errors > 0 { Finding::Failed } else { Finding::Fine },
//!             text: format!("{errors} errors"),
//!             figures: vec![Figure::new("errors", errors as f64)],
//!         }
//!     }
//! }
//!
//! let candidate = Counts { requests: 10, errors: 1, slow: 0 };
//! let reading = NoErrorAtAll.look(&Sides { candidate, ..Sides::default() });
//! assert_eq!(reading.to_string(), "no error at all failed: 1 errors");
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use super::share::Share;

mod absolute;
mod accepts;
mod clients;
mod relative;
mod set;
mod slow;
mod stall;
mod trouble;

pub use absolute::Absolute;
pub(crate) use accepts::{Accepts, Expected, Fallen};
pub use clients::{CLIENTS_MAX, Clients};
pub use relative::Relative;
pub use set::Guards;
pub(crate) use set::OwnGuards;
pub use slow::{SAMPLES_MIN, slow_threshold};
pub use stall::{Queue, Stall, Stalled};
pub use trouble::Trouble;

/// Watches one signal of the two sides.
pub trait Guard: fmt::Debug + Send {
    /// What operators know it by.
    fn name(&self) -> &str;

    /// Looks at everything that was counted so far. Called as often as somebody likes: after each request, or each second.
    /// A panic is a look that could not measure.
    fn look(&mut self, sides: &Sides) -> Reading;
}

/// What one side has answered since its counting began. Counts only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Counts {
    /// Requests answered.
    pub requests: u64,
    /// Errors among them, one per client and window.
    pub errors: u64,
    /// Requests slower than stable's 99th percentile before the rollout, one per client and window.
    pub slow: u64,
}

impl Counts {
    /// What was counted after `earlier`. Counts that shrank began anew: all of them came after.
    pub fn since(self, earlier: Self) -> Self {
        let since = |now: u64, then: u64| now.checked_sub(then).unwrap_or(now);
        Self {
            requests: since(self.requests, earlier.requests),
            errors: since(self.errors, earlier.errors),
            slow: since(self.slow, earlier.slow),
        }
    }

    fn of(self, signal: Signal) -> u64 {
        match signal {
            Signal::Errors => self.errors,
            Signal::Slow => self.slow,
        }
    }
}

/// Both sides at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sides {
    /// What the candidate has answered.
    pub candidate: Counts,
    /// What stable has answered in the same time.
    pub stable: Counts,
    /// The share that the candidate is given now.
    pub share: Share,
}

/// What a guard makes of what it saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Nothing speaks against the candidate.
    Fine,
    /// It cannot be told yet: holds the rollout, and pauses it at the deadline.
    Inconclusive,
    /// The candidate is worse: undoes the rollout.
    Failed,
    /// It could not be measured: pauses the rollout when that happens several times in a row.
    Error,
}

/// What a guard has read, for machines and for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(Hash))]
pub struct Reading {
    /// The guard's name.
    pub guard: String,
    /// What follows from it.
    pub finding: Finding,
    /// Why, on a line.
    pub text: String,
    /// The numbers in it.
    pub figures: Vec<Figure>,
}

/// Name, finding and text.
impl fmt::Display for Reading {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let finding = match self.finding {
            Finding::Fine => "fine",
            Finding::Inconclusive => "inconclusive",
            Finding::Failed => "failed",
            Finding::Error => "not measured",
        };
        write!(out, "{} {finding}: {}", self.guard, self.text)
    }
}

/// One number of a reading.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// The number.
    pub value: f64,
}

impl Figure {
    /// A number and what it is.
    pub fn new(name: &str, value: f64) -> Self {
        let name = name.to_owned();
        Self { name, value }
    }
}

/// For the model test, which tells states apart by their hash.
#[cfg(test)]
impl std::hash::Hash for Figure {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
        self.value.to_bits().hash(state);
    }
}

/// What the guards of this crate can watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    Errors,
    Slow,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Errors => "errors",
            Self::Slow => "slow",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_that_shrank_began_anew() {
        let earlier = Counts {
            requests: 10,
            errors: 2,
            slow: 3,
        };
        let later = Counts {
            requests: 15,
            errors: 2,
            slow: 1,
        };
        let since = Counts {
            requests: 5,
            errors: 0,
            slow: 1,
        };
        assert_eq!(later.since(earlier), since);
    }
}
