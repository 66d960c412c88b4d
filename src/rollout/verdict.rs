//! How a rollout stands and how it ended, with the numbers, as plain data for operators and their scripts.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::guard::Reading;
use super::share::Share;

/// How a rollout ended, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(Hash))]
pub struct Verdict {
    /// How.
    pub outcome: Outcome,
    /// Why, in words and numbers.
    pub explanation: Explanation,
}

/// How a rollout ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The candidate is stable now.
    Promoted,
    /// Before the flip; stable serves as if nothing had happened.
    Aborted,
    /// After the flip; stable serves again, and fresh connections prove it.
    RolledBack,
    /// After a rollback too, fresh connections were not answered by stable: somebody has to look.
    Degraded,
}

/// The state of things when something was decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(Hash))]
pub struct Explanation {
    /// What decided it.
    pub cause: Cause,
    /// How far the rollout had come.
    pub stage: Stage,
    /// Steps begun, and steps in all; the flip is not one of them.
    pub step: (usize, usize),
    /// The share that the candidate was given, in hundredths of a percent; 10,000 once it had been flipped to.
    pub share: Share,
    /// Requests that the candidate had answered since the step or the bake began.
    pub units: u64,
    /// How many it was to answer.
    pub units_min: u64,
    /// How long the step or the bake had lasted, pauses left out, in milliseconds.
    pub elapsed_ms: u64,
    /// What each guard had last read.
    pub guards: Vec<Reading>,
    /// Why it is not certain that stable serves again, if it is not.
    pub stable_unverified: Option<String>,
}

/// One line: the cause and what the guards had read.
impl fmt::Display for Explanation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cause,
            stage,
            share,
            units,
            units_min,
            ..
        } = self;
        write!(out, "{cause}; {stage} at {share} with {units}")?;
        if *units_min > 0 {
            write!(out, " of {units_min}")?;
        }
        out.write_str(" requests")?;
        self.guards
            .iter()
            .try_for_each(|reading| write!(out, "; {reading}"))?;
        match &self.stable_unverified {
            Some(reason) => write!(out, "; stable could not be verified: {reason}"),
            None => Ok(()),
        }
    }
}

/// What ended or paused a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// The bake is over and nothing spoke against the candidate.
    Baked,
    /// The operator said so.
    Operator {
        /// What they gave as the reason.
        reason: String,
    },
    /// The candidate's process has ended.
    Exited {
        /// How.
        how: String,
    },
    /// Connections wait and nobody accepts them.
    Stalled {
        /// How many.
        waiting: u64,
        /// For how many milliseconds nobody has.
        silent_ms: u64,
    },
    /// A check of the candidate has failed.
    CheckFailed {
        /// Which, and what it said.
        reason: String,
    },
    /// A guard found that the candidate is worse.
    GuardFailed {
        /// Its name.
        guard: String,
    },
    /// Fresh connections were not answered by the candidate after the flip.
    VerifyFailed {
        /// What was seen instead.
        reason: String,
    },
    /// The handover of the sockets itself came to an end.
    HandoverFailed {
        /// Why.
        reason: String,
    },
    /// Nothing yet: it goes on.
    Underway,
    /// It was a drill, and it is over: the way there has been gone, and the way back.
    Rehearsed,
    /// Nobody decided on the flip in time.
    NotPromoted,
    /// Something has to be waited for.
    Paused {
        /// What.
        reason: PauseReason,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Baked => out.write_str("the bake is over"),
            Self::Operator { reason } if reason.is_empty() => out.write_str("the operator said so"),
            Self::Operator { reason } => write!(out, "the operator said so: {reason}"),
            Self::Exited { how } => write!(out, "the candidate ended ({how})"),
            Self::Stalled { waiting, silent_ms } => write!(
                out,
                "{waiting} connections wait and nobody has accepted one for {silent_ms} ms"
            ),
            Self::CheckFailed { reason } => write!(out, "a check failed: {reason}"),
            Self::GuardFailed { guard } => {
                write!(out, "the guard {guard:?} found the candidate worse")
            }
            Self::VerifyFailed { reason } => {
                write!(out, "the candidate could not be verified: {reason}")
            }
            Self::HandoverFailed { reason } => write!(out, "the handover failed: {reason}"),
            Self::Underway => out.write_str("under way"),
            Self::Rehearsed => out.write_str("the drill is over"),
            Self::NotPromoted => out.write_str("nobody promoted it in time"),
            Self::Paused { reason } => write!(out, "paused: {reason}"),
        }
    }
}

/// How far a rollout has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stage {
    /// The candidate is not ready yet.
    Starting,
    /// The candidate is ready, and only its checks and its private endpoint reach it.
    Preview,
    /// It has a share of the traffic.
    Shifting,
    /// All of the traffic is on its way to it.
    Flipping,
    /// Fresh connections are to prove the flip.
    Verifying,
    /// It serves, and stable is warm.
    Baking,
    /// Its promotion is on its way.
    Committing,
    /// The traffic is on its way back to stable.
    Reverting,
    /// There is a verdict.
    Over,
}

impl fmt::Display for Stage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Starting => "starting",
            Self::Preview => "preview",
            Self::Shifting => "shifting",
            Self::Flipping => "flipping",
            Self::Verifying => "verifying",
            Self::Baking => "baking",
            Self::Committing => "committing",
            Self::Reverting => "reverting",
            Self::Over => "over",
        })
    }
}

/// Why a rollout does not go on, and what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pause {
    /// Why.
    pub reason: PauseReason,
    /// What it waits for.
    pub until: Until,
}

/// What ends a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// The reason passes, or a deadline does and then it is the operator's.
    Recovery,
    /// The operator decides; there is no deadline.
    Operator,
}

/// Why a rollout does not go on. None of these speaks for the candidate, and none against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PauseReason {
    /// The operator paused it, or set the share by hand.
    Manual,
    /// The flip is the operator's to decide.
    ByHand,
    /// The candidate got too few requests.
    NotEnoughData,
    /// There were enough requests, and a guard still cannot tell.
    Inconclusive,
    /// Guards could not measure, several times in a row.
    CannotMeasure,
    /// Both sides fail: whatever it is, it is not the candidate.
    SharedTrouble,
    /// The candidate says that it serves, but not as it should.
    CandidateDegraded,
    /// A guard found that the candidate is worse, and stable does not fit the schema any more.
    NoWayBack,
}

impl fmt::Display for PauseReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Manual => "by the operator",
            Self::ByHand => "the flip is the operator's to decide",
            Self::NotEnoughData => "not enough requests to decide by",
            Self::Inconclusive => "the guards cannot tell",
            Self::CannotMeasure => "the guards cannot measure",
            Self::SharedTrouble => "both sides fail",
            Self::CandidateDegraded => "the candidate is degraded",
            Self::NoWayBack => {
                "the candidate is worse, and the schema does not fit stable any more"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::guard::{Figure, Finding};
    use super::*;

    fn verdict() -> Verdict {
        Verdict {
            outcome: Outcome::Aborted,
            explanation: Explanation {
                cause: Cause::GuardFailed {
                    guard: "errors".to_owned(),
                },
                stage: Stage::Shifting,
                step: (2, 4),
                share: Share::percent(5),
                units: 208,
                units_min: 300,
                elapsed_ms: 72_000,
                guards: vec![Reading {
                    guard: "errors".to_owned(),
                    finding: Finding::Failed,
                    text: "candidate 3/412".to_owned(),
                    figures: vec![Figure::new("evidence", 103.5)],
                }],
                stable_unverified: None,
            },
        }
    }

    #[test]
    fn a_verdict_survives_json_and_reads_as_one_line() {
        let json = serde_json::to_string(&verdict()).unwrap();
        assert_eq!(serde_json::from_str::<Verdict>(&json).unwrap(), verdict());
        assert_eq!(
            verdict().explanation.to_string(),
            "the guard \"errors\" found the candidate worse; shifting at 5 % with 208 of 300 requests; errors failed: \
             candidate 3/412"
        );
    }
}
