//! How a new release takes over: at once, blue/green or as a canary, and what is concluded from how it does.
//!
//! A *rollout* moves a service from its `stable` generation to a `candidate`. [`Rollout`] says how; the three strategies
//! are one machine with other steps. While both serve, *guards* compare them ([`guard`]); every [`Verdict`] carries the
//! numbers it was reached by.
//!
//! Nothing in here knows sockets, clocks or processes: time and random bits are arguments. The machine runs in the
//! stable generation, never in the candidate: the judged does not judge.

pub mod guard;

pub(crate) mod attempts;
pub(crate) mod controller;
#[cfg(test)]
mod model;
pub(crate) mod pick;
mod plan;
mod share;
mod side;
mod verdict;

pub use plan::{
    ACCEPTS_SAMPLE, ACCEPTS_WINDOW, BAKE, BAKE_IMMEDIATE, By, CHECKS_DEADLINE, CLIENT_WINDOW,
    ERROR_LIMIT, FAILURES_MAX, FALSE_ABORTS, Network, NetworkError, Promotion, Rollout,
    STALL_AFTER, STEP_DEADLINE, STEP_MIN, STEPS, UNITS_MIN, VERIFY_DEADLINE, WARM_UP,
    WARM_UP_UNITS, WORST_RATE,
};
pub use share::{Share, ShareError};
pub use side::Side;
pub use verdict::{Cause, Exit, Explanation, Outcome, Pause, PauseReason, Stage, Until, Verdict};
