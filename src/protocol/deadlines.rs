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
    /// Flip to commit.
    pub(crate) bake: Duration,
    /// A killed process to its end; a closed channel to its explanation.
    pub(crate) exit: Duration,
    /// How long a successor may be held in standby. `None` flips as soon as it is ready.
    pub(crate) standby: Option<Duration>,
}
