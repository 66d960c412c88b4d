//! The two sides of a rollout.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One of the two generations that a rollout is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// What a rollback returns to.
    Stable,
    /// What the rollout moves to.
    Candidate,
}

impl fmt::Display for Side {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Stable => "stable",
            Self::Candidate => "candidate",
        })
    }
}
