//! Whether clients should be sent here, in one word and a reason.
//!
//! A handover is nothing that a load balancer should see: a generation that has handed over stays ready, because the
//! service is, and its successor answers whoever connects anew. Only the end of the service is announced.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a generation answers when it is asked how it is; the application may say that it is worse.
///
/// Cheap to clone, and usable from the very start: [`Starting::health`](crate::Starting::health). With the feature
/// `http` it is a tower service that answers `/livez` and `/readyz`, see [`http`](crate::http#health).
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<State>>);

/// Whether clients should be sent to a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Readiness {
    /// They should.
    Ready,
    /// Not yet: it has not opened its gates.
    Starting,
    /// It serves, but the application says that it should not be asked.
    Degraded {
        /// Why.
        reason: String,
    },
    /// It serves, and will stop soon: they should go elsewhere.
    LameDuck,
    /// It serves nobody new, and leaves.
    Stopping,
}

#[derive(Debug, Default)]
struct State {
    stage: Stage,
    degraded: Option<String>,
}

/// What the driver knows of it. They follow each other in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    #[default]
    Starting,
    Serving,
    /// What the application says of this generation is not true of its successor.
    HandedOver,
    LameDuck,
    Stopping,
}

impl Health {
    /// How it is now.
    pub fn readiness(&self) -> Readiness {
        let state = self.lock();
        match (state.stage, &state.degraded) {
            (Stage::Starting, _) => Readiness::Starting,
            (Stage::Serving, Some(reason)) => Readiness::Degraded {
                reason: reason.clone(),
            },
            (Stage::Serving, None) | (Stage::HandedOver, _) => Readiness::Ready,
            (Stage::LameDuck, _) => Readiness::LameDuck,
            (Stage::Stopping, _) => Readiness::Stopping,
        }
    }

    /// Clients should be sent elsewhere until [`restored`](Self::restored), for a reason that
    /// is shown to whoever asks. This generation accepts and serves as before. A candidate is promoted no further by
    /// itself; said before it is ready, it is not flipped to.
    pub fn degraded(&self, reason: impl Into<String>) {
        self.lock().degraded = Some(reason.into());
    }

    /// What [`degraded`](Self::degraded) said is over.
    pub fn restored(&self) {
        self.lock().degraded = None;
    }

    /// What the application has called it degraded for, whether it serves already or not.
    pub(crate) fn complaint(&self) -> Option<String> {
        self.lock().degraded.clone()
    }

    pub(crate) fn serving(&self) {
        self.advance(Stage::Serving);
    }

    pub(crate) fn handed_over(&self) {
        self.advance(Stage::HandedOver);
    }

    pub(crate) fn lame_duck(&self) {
        self.advance(Stage::LameDuck);
    }

    pub(crate) fn stopping(&self) {
        self.advance(Stage::Stopping);
    }

    fn advance(&self, stage: Stage) {
        let mut state = self.lock();
        state.stage = state.stage.max(stage);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment, so whoever panics leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Readiness {
    /// Whether clients should be sent there.
    pub fn is_ready(&self) -> bool {
        *self == Self::Ready
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::Starting => f.write_str("starting: this generation does not serve yet"),
            Self::Degraded { reason } => write!(f, "degraded: {reason}"),
            Self::LameDuck => f.write_str("lame duck: the service stops soon"),
            Self::Stopping => f.write_str("stopping: the service accepts nobody new"),
        }
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Health").field(&self.readiness()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_application_says_is_taken_back() {
        let health = Health::default();
        let clone = health.clone();
        assert_eq!(clone.readiness(), Readiness::Starting);
        health.serving();
        clone.degraded("the database is away");
        let degraded = health.readiness();
        assert!(!degraded.is_ready());
        assert_eq!(degraded.to_string(), "degraded: the database is away");
        clone.restored();
        assert_eq!(health.readiness(), Readiness::Ready);
        health.lame_duck();
        health.serving();
        assert_eq!(health.readiness(), Readiness::LameDuck);
        health.stopping();
        clone.restored();
        assert_eq!(health.readiness(), Readiness::Stopping);
    }

    #[test]
    fn degraded_before_it_serves_is_starting_and_degraded_afterwards() {
        let health = Health::default();
        health.degraded("cold");
        assert_eq!(health.readiness(), Readiness::Starting);
        health.serving();
        let reason = "cold".to_owned();
        assert_eq!(health.readiness(), Readiness::Degraded { reason });
    }

    #[test]
    fn a_generation_that_has_handed_over_is_ready_whatever_it_was() {
        let health = Health::default();
        health.serving();
        health.degraded("cold");
        health.handed_over();
        assert!(health.readiness().is_ready());
    }
}
