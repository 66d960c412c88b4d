//! What the machine says: what is to be done, how an update stands and ends, and why a command was refused.

use std::fmt;

use super::{ReleaseId, WORKERS_MAX, WorkerId};

/// What the supervisor has to do, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Output {
    /// Start a worker; then `handle_ready` or `handle_exited`.
    Start {
        /// Its number.
        worker: WorkerId,
        /// From which image.
        release: ReleaseId,
    },
    /// Tell a worker to finish and leave; then `handle_exited`.
    Stop {
        /// Which.
        worker: WorkerId,
    },
    /// End a worker that has not left in time; then `handle_exited`.
    Kill {
        /// Which.
        worker: WorkerId,
    },
    /// A candidate has failed.
    Failed {
        /// Which.
        worker: WorkerId,
    },
    /// A worker lives on though it was killed, and is waited for no longer.
    Lost {
        /// Which.
        worker: WorkerId,
    },
    /// The update does not go on by itself.
    Held {
        /// The candidate.
        release: ReleaseId,
        /// Why.
        reason: String,
    },
    /// It does again.
    Resumed {
        /// The candidate.
        release: ReleaseId,
    },
    /// The update is being undone.
    Reverting {
        /// The candidate.
        release: ReleaseId,
        /// Why.
        reason: String,
    },
    /// The update has ended. After [`Ended::Committed`] the candidate is the stable release.
    Verdict {
        /// The candidate.
        release: ReleaseId,
        /// How.
        ended: Ended,
        /// Why it did not end otherwise.
        reason: String,
    },
    /// Workers crash again and again.
    Looping {
        /// How often in a row.
        crashes: u32,
    },
    /// They do no longer.
    LoopOver,
    /// The pool was to stop, and nobody is left.
    Stopped,
}

/// How an update ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ended {
    /// All workers are the candidate's.
    Committed,
    /// All are stable, and no stable one had left for it.
    Aborted,
    /// All are stable again.
    RolledBack,
    /// It could not be undone in time; the pool still tries to.
    Degraded,
}

/// How far a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// Not ready yet.
    Starting,
    /// Ready, and on trial.
    Settling,
    /// Ready.
    Serving,
    /// Told to stop.
    Stopping,
    /// Killed for not having stopped.
    Killed,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Settling => "settling",
            Self::Serving => "serving",
            Self::Stopping => "stopping",
            Self::Killed => "killed",
        })
    }
}

/// Where an update is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) candidate: ReleaseId,
    pub(crate) stage: UpdateStage,
    /// Candidates that count.
    pub(crate) replaced: usize,
    /// Those included that are on trial.
    pub(crate) ready: usize,
    pub(crate) failures: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UpdateStage {
    Rolling,
    Paused,
    Halted(String),
    Reverting(String),
}

/// Why an operator's command was refused; nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is an update already, to this release.
    UnderWay(ReleaseId),
    /// There is none.
    NoUpdate,
    /// It is paused or halted already.
    Held,
    /// It is neither paused nor halted.
    NotHeld,
    /// It is being undone.
    Reverting,
    /// The pool stops.
    Stopping,
    /// There is no such pool.
    Size,
    /// The plan cannot be carried out.
    Plan(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnderWay(release) => write!(f, "an update to release {release} is under way"),
            Self::NoUpdate => f.write_str("no update is under way"),
            Self::Held => f.write_str("the update is held already: resume it or abort"),
            Self::NotHeld => f.write_str("the update is not held"),
            Self::Reverting => f.write_str("the update is being undone already"),
            Self::Stopping => f.write_str("the pool is stopping"),
            Self::Size => write!(f, "a pool has 1 to {WORKERS_MAX} workers"),
            Self::Plan(why) => f.write_str(why),
        }
    }
}
