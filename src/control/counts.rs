//! What one generation has counted, for operators.

use serde::{Deserialize, Serialize};

/// What one side of a service has counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SideState {
    /// The generation.
    pub generation: u64,
    /// Requests that were answered.
    pub requests: u64,
    /// Those of them that failed. During a rollout, one for each client and window.
    pub errors: u64,
    /// Those of them that took longer than nearly all of the stable generation's did before; counted during a rollout, one
    /// for each client and window.
    pub slow: u64,
    /// Those that were turned away because there were too many.
    pub shed: u64,
    /// Those under way.
    pub in_flight: u64,
    /// Requests in a second, over the last second of looks. Only during a rollout.
    pub rate: Option<f64>,
    /// What half of them took at most, in microseconds, lately. Where it is known.
    pub p50_us: Option<u64>,
    /// What 99 of 100 of them took at most, in microseconds, lately. Where it is known.
    pub p99_us: Option<u64>,
}
