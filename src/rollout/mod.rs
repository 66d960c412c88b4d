//! How a new release takes over: at once, blue/green or as a canary, and what is concluded from how it does.
//!
//! A *rollout* moves a service from its `stable` generation to a `candidate`. [`Rollout`] says how; the three strategies
//! are one machine with other steps. While both serve, *guards* compare them ([`guard`]); every [`Verdict`] carries the
//! numbers it was reached by.
//!
//! ```text
//!             in private           a growing share        everybody, fresh connections prove it, stable is warm
//! Starting ── Preview ──────────── Shifting ──────────── Flipping ── Verifying ── Baking ── Committing ── promoted
//!     │          │ checks, or        │ guards compare        │           │          │ guards judge
//!     │          │ an operator       │ both sides            │           │          │ the candidate
//!     └──────────┴───────────────────┴── aborted             └───────────┴──────────┴── Reverting ── rolled back
//! ```
//!
//! These are the [`Stage`]s. A rollout [pauses](Pause) in any of them in which somebody or something has to be waited for:
//! an operator, more requests, a candidate that calls itself degraded, trouble that both sides have.
//!
//! | | [immediate](Rollout::immediate) | [blue/green](Rollout::blue_green) | [canary](Rollout::canary) |
//! |---|---|---|---|
//! | checks in private | yes | yes | yes |
//! | a share before the flip | no | no | [`STEPS`], or those given |
//! | guards | no | in the bake | from the first share on |
//! | bake | [`BAKE_IMMEDIATE`] | [`BAKE`] | [`BAKE`] |
//! | undone by a death, by connections that nobody accepts, by a failed check | yes | yes | yes |
//! | refused after [`FAILURES_MAX`] failures, if automatic | no | yes | yes |
//!
//! Who decides on the flip is [`Promotion`] in each of them: the rollout itself, or an operator.
//!
//! Give a plan to [`Builder::rollout`](crate::Builder::rollout), or for one upgrade to
//! [`Serving::upgrade_with`](crate::Serving::upgrade_with) and to [`control::Request::Upgrade`](crate::control::Request::Upgrade).
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
pub use verdict::{Cause, Explanation, Outcome, Pause, PauseReason, Stage, Until, Verdict};
