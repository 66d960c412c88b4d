//! What came of a drill.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::verification::Verification;
use crate::rollout::guard::Reading;
use crate::rollout::{Cause, Outcome};

/// What a drill's candidate is to do wrong, in a service that was built with the feature `inject`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Fault {
    /// It dies soon after the flip.
    Crash,
    /// It accepts nobody after the flip.
    Hang,
    /// It answers a part of its requests with 500.
    Errors,
    /// It takes longer for each of its requests.
    Slow,
    /// It never says that it is ready.
    NeverReady,
}

/// A rehearsal of flip and rollback on the real listeners: the release that serves took over from itself, and went back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Drill {
    /// The number of the generation that it was flipped to.
    pub generation: u64,
    /// When it was asked for, in milliseconds since 1970.
    pub at_ms: u64,
    /// Whether all was as it should be.
    pub passed: bool,
    /// What was not as it should be, or what has undone the fault.
    pub reason: String,
    /// What the candidate was to do wrong, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// From the gates of the generation that serves being shut until the candidate's were open, in microseconds.
    #[serde(default)]
    pub flip_took_us: Option<u64>,
    /// From the rollback's begin, or the candidate's end, until the gates of the generation that serves were open again, in
    /// microseconds.
    #[serde(default)]
    pub rollback_took_us: Option<u64>,
    /// From the request to the verdict, in milliseconds.
    #[serde(default)]
    pub took_ms: u64,
    /// Requests that the candidate has answered.
    #[serde(default)]
    pub requests: u64,
    /// Those of them that failed, one for each client and window.
    #[serde(default)]
    pub errors: u64,
    /// What is known to have been lost.
    #[serde(default)]
    pub losses: Losses,
    /// Who was asked before the flip, behind it and behind the rollback, as far as it came.
    #[serde(default)]
    pub verifications: Vec<Verification>,
    /// What the guards had last read: of a drill without a fault, their noise.
    #[serde(default)]
    pub guards: Vec<Reading>,
}

/// What is known to have been lost in a drill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Losses {
    /// Connections of the verifications that were not answered, or by another generation.
    pub missed: u32,
    /// Connections that were passed to the candidate, and served by the other one after all.
    pub taken_back: u64,
    /// Connections that were taken back when nobody accepted any more.
    pub lost: u64,
}

impl Drill {
    /// How long the flip took, if there was one.
    pub fn flip_took(&self) -> Option<Duration> {
        self.flip_took_us.map(Duration::from_micros)
    }

    /// How long the rollback took, if there was one.
    pub fn rollback_took(&self) -> Option<Duration> {
        self.rollback_took_us.map(Duration::from_micros)
    }

    /// Says by how it ended, and by what else is known of it, whether it has passed.
    pub(crate) fn judge(&mut self, outcome: Outcome, cause: &Cause) {
        let unverified = self
            .verifications
            .iter()
            .find(|verification| !verification.passed);
        let problem = match (outcome, self.fault) {
            (Outcome::Degraded | Outcome::Promoted, _) => Some(format!(
                "it was not found to serve after the drill: {cause}"
            )),
            (_, None) if *cause != Cause::Rehearsed => Some(cause.to_string()),
            (_, None) => unverified.map(|verification| verification.reason.clone()),
            (_, Some(fault)) if *cause == Cause::Rehearsed => {
                Some(format!("the fault ({fault}) was not found in time"))
            }
            (_, Some(fault)) if !fault.is_undone_by(cause) => Some(format!(
                "it was not the fault ({fault}) that ended it: {cause}"
            )),
            (_, Some(_)) => None,
        };
        self.passed = problem.is_none();
        self.reason = problem.unwrap_or_else(|| cause.to_string());
    }
}

impl Fault {
    fn is_undone_by(self, cause: &Cause) -> bool {
        match self {
            Self::Crash => matches!(cause, Cause::Exited { .. }),
            Self::Hang => matches!(cause, Cause::Stalled { .. } | Cause::VerifyFailed { .. }),
            Self::Errors | Self::Slow => matches!(cause, Cause::GuardFailed { .. }),
            Self::NeverReady => {
                matches!(cause, Cause::HandoverFailed { .. } | Cause::Exited { .. })
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Crash => "crash",
            Self::Hang => "hang",
            Self::Errors => "errors",
            Self::Slow => "slow",
            Self::NeverReady => "never-ready",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drill(fault: Option<Fault>) -> Drill {
        let mut drill: Drill =
            serde_json::from_str(r#"{"generation":2,"at_ms":1,"passed":false,"reason":""}"#)
                .unwrap();
        drill.fault = fault;
        drill
    }

    fn judged(fault: Option<Fault>, outcome: Outcome, cause: Cause) -> Drill {
        let mut drill = drill(fault);
        drill.judge(outcome, &cause);
        drill
    }

    fn exited() -> Cause {
        Cause::Exited {
            how: "signal: 9".to_owned(),
        }
    }

    #[test]
    fn a_drill_without_a_fault_passes_if_nothing_but_its_end_ends_it() {
        assert!(judged(None, Outcome::RolledBack, Cause::Rehearsed).passed);
        let ended = judged(None, Outcome::RolledBack, exited());
        assert_eq!(
            (ended.passed, &*ended.reason),
            (false, "the candidate ended (signal: 9)")
        );
        assert!(!judged(None, Outcome::Degraded, Cause::Rehearsed).passed);
        let mut unverified = drill(None);
        unverified.verifications.push(Verification {
            reason: "generation 1 answered".to_owned(),
            ..Verification::default()
        });
        unverified.judge(Outcome::RolledBack, &Cause::Rehearsed);
        assert_eq!(
            (unverified.passed, &*unverified.reason),
            (false, "generation 1 answered")
        );
    }

    #[test]
    fn a_drill_with_a_fault_passes_if_that_very_fault_has_undone_it() {
        let crash = Some(Fault::Crash);
        assert!(judged(crash, Outcome::RolledBack, exited()).passed);
        let late = judged(crash, Outcome::RolledBack, Cause::Rehearsed);
        assert_eq!(
            (late.passed, &*late.reason),
            (false, "the fault (crash) was not found in time")
        );
        let other = judged(Some(Fault::Slow), Outcome::RolledBack, exited());
        assert!(!other.passed && other.reason.contains("not the fault (slow)"));
        assert!(!judged(crash, Outcome::Degraded, exited()).passed);
    }
}
