//! The workers of a pool, as operators see them.

use serde::{Deserialize, Serialize};

/// A pool, as its supervisor sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PoolState {
    /// How many workers are wanted.
    pub wanted: usize,
    /// How many are ready.
    pub ready: usize,
    /// Which supervisor of the pool this is, in the same process: 1, 2, 3 …
    pub supervisor: u64,
    /// The release that the pool comes back to.
    pub stable: u64,
    /// How many crashes in a row there were, if workers crash again and again.
    pub looping: Option<u32>,
    /// The rolling update under way.
    pub update: Option<UpdateState>,
    /// Every worker, oldest first, those included that are on their way out.
    pub workers: Vec<WorkerState>,
}

/// A rolling update under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct UpdateState {
    /// The release that it is to.
    pub candidate: u64,
    /// `rolling`, `paused`, `halted` or `reverting`.
    pub stage: String,
    /// Why it is halted or reverting; empty otherwise.
    pub reason: String,
    /// How many workers have been replaced by ones that count.
    pub replaced: usize,
    /// How many candidates have failed.
    pub failures: usize,
}

/// One worker of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct WorkerState {
    /// Its number, which no other worker of the pool has had.
    pub worker: u64,
    /// Its process.
    pub pid: u32,
    /// The release that it runs.
    pub release: u64,
    /// `starting`, `settling` (ready and on trial), `serving`, `stopping` or `killed`.
    pub stage: String,
    /// How long its process has been running, in milliseconds.
    pub age_ms: u64,
    /// How often its place has crashed in a row before it.
    pub crashes: u32,
    /// How many requests it has answered, if it says so.
    pub requests: Option<u64>,
    /// How many of them have failed.
    pub errors: Option<u64>,
    /// How many of them took longer than nearly all of the stable workers' did before an update, if it counts them since.
    pub slow: Option<u64>,
}
