//! The named limits of every wait in the two machines.

use std::time::Duration;

/// How long each wait of an upgrade may take. Defaults and meanings are in [`crate::config`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Deadlines {
    /// Launch to ready; the successor may ask for more, up to `start_max` in all.
    pub(crate) start: Duration,
    /// The most that extensions can add up to, from the launch.
    pub(crate) start_max: Duration,
    /// Each half of a flip.
    pub(crate) flip: Duration,
    /// A killed process to its end; a closed channel, or silence after a rollback, to its explanation.
    pub(crate) exit: Duration,
    /// A drain's begin to the moment in which it leaves whatever is in flight.
    pub(crate) hard_stop: Duration,
}

impl Deadlines {
    /// How long this generation may live once its gates are shut: a little longer than it gives itself.
    pub(crate) fn life(&self) -> Duration {
        self.hard_stop + self.exit
    }
}
