//! What happens to a generation, as plain data for operators: phases and events.

use std::fmt;
use std::time::Duration;

use crate::rollout::{Pause, Stage};

/// How far an upgrade has come. Each phase is named for what is going on in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// The successor's process is being started and has not spoken yet.
    #[default]
    Launching,
    /// The sockets are on their way to the successor.
    Offering,
    /// The successor claims sockets and warms up; the incumbent serves.
    Warming,
    /// The successor is ready with its gates shut; the incumbent serves.
    Standby,
    /// The accept right moves from the incumbent to the successor.
    Flipping,
    /// The successor serves; the incumbent is warm and takes over again at the first sign of trouble.
    Baking,
    /// The incumbent has given up its role and waits for the successor to confirm that it has it.
    Committing,
    /// The accept right goes back to the incumbent, or the successor is being ended.
    Reverting,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Launching => "launching",
            Self::Offering => "offering",
            Self::Warming => "warming",
            Self::Standby => "standby",
            Self::Flipping => "flipping",
            Self::Baking => "baking",
            Self::Committing => "committing",
            Self::Reverting => "reverting",
        })
    }
}

/// Something that happened to this generation, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// An upgrade entered a phase.
    Phase {
        /// The successor's generation number.
        successor: u64,
        /// The phase that begins.
        phase: Phase,
        /// Time since the upgrade was asked for.
        after: Duration,
    },
    /// A rollout entered a stage.
    Stage {
        /// The successor's generation number.
        successor: u64,
        /// The stage that begins.
        stage: Stage,
        /// Time since the upgrade was asked for.
        after: Duration,
    },
    /// A rollout does not go on by itself.
    Paused {
        /// The successor's generation number.
        successor: u64,
        /// Why, and what it waits for.
        pause: Pause,
        /// How things stand, in words and numbers.
        explanation: String,
    },
    /// It does again.
    Resumed {
        /// The successor's generation number.
        successor: u64,
    },
    /// An upgrade was asked for and not begun.
    Refused {
        /// Why.
        reason: String,
    },
    /// An upgrade ended before the flip; this generation never stopped serving.
    Aborted {
        /// The successor's generation number.
        successor: u64,
        /// Why, with the successor's exit status and last words where it had any.
        reason: String,
        /// Time since the upgrade was asked for.
        after: Duration,
    },
    /// The successor had taken over; this generation serves again.
    RolledBack {
        /// The successor's generation number.
        successor: u64,
        /// Why, with the successor's exit status and last words where it had any.
        reason: String,
        /// Time since the upgrade was asked for.
        after: Duration,
    },
    /// The upgrade is final: the successor is the incumbent now, this generation drains.
    Committed {
        /// The successor's generation number.
        successor: u64,
        /// Its process.
        pid: u32,
        /// Time since the upgrade was asked for.
        after: Duration,
    },
    /// This generation accepts connections.
    Serving {
        /// This generation's number.
        generation: u64,
    },
    /// This generation has become the one that upgrades and rollbacks start from.
    Incumbent {
        /// This generation's number.
        generation: u64,
    },
    /// An older generation that was still draining is gone.
    ElderGone {
        /// Its generation number.
        generation: u64,
        /// Its process.
        pid: u32,
    },
    /// The service stops soon: readiness says no, so that clients go elsewhere, and everything is still served.
    LameDuck {
        /// How long, unless it is told to stop again.
        lasts: Duration,
    },
    /// This generation accepts nothing more and finishes what it has begun.
    Draining {
        /// Units of work still in flight.
        in_flight: usize,
        /// Why it leaves.
        reason: String,
    },
    /// The drain is over.
    Drained {
        /// Units of work that were cut off at their deadline, described one by one.
        stragglers: Vec<String>,
        /// How long the drain took.
        took: Duration,
    },
    /// Something went wrong that does not change who serves, such as a PID file that could not be written.
    Warning {
        /// What.
        message: String,
    },
}
