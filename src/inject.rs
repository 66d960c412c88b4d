//! Faults of a drill's candidate, so that it is seen that a rollout undoes itself.
//!
//! The incumbent tells its candidate which one; from the flip on it acts, at this crate's own layers.

use std::future::pending;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::config::{FAULT_CRASH_AFTER, FAULT_ERROR_EVERY, FAULT_SLOW_BY};
use crate::control::Fault;
use crate::sys::process::Pidfd;

/// Whether a drill may ask for a fault.
pub(crate) const IS_POSSIBLE: bool = true;

/// What this generation does wrong. Nothing, unless it is told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Injected(Arc<State>);

#[derive(Debug, Default)]
struct State {
    fault: OnceLock<Fault>,
    is_armed: AtomicBool,
    requests: AtomicU64,
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "http"),
    expect(dead_code, reason = "only HTTP has requests")
)]
pub(crate) struct Injury {
    pub(crate) delay: Option<Duration>,
    pub(crate) fails: bool,
}

impl Injected {
    /// From the flip on.
    pub(crate) fn inject(&self, fault: Fault) {
        // A candidate is told once.
        let _ = self.0.fault.set(fault);
    }

    /// Returns when this generation may say that it is ready.
    pub(crate) async fn until_ready(&self) {
        if self.fault() == Some(Fault::NeverReady) {
            pending().await
        }
    }

    /// Whether its gates stay shut, whatever it says of them.
    pub(crate) fn accepts_nobody(&self) -> bool {
        self.fault() == Some(Fault::Hang)
    }

    /// The flip has been done.
    pub(crate) fn arm(&self) {
        self.0.is_armed.store(true, Ordering::Relaxed);
        if self.fault() == Some(Fault::Crash) {
            tokio::spawn(async {
                tokio::time::sleep(FAULT_CRASH_AFTER).await;
                let own = Pidfd::open(std::process::id());
                if let Err(error) = own.and_then(|own| own.kill()) {
                    tracing::warn!(%error, "handover: cannot crash as asked");
                }
            });
        }
    }

    #[cfg_attr(
        not(feature = "http"),
        expect(dead_code, reason = "only HTTP has requests")
    )]
    pub(crate) fn injury(&self) -> Injury {
        let fault = self.fault();
        if !self.0.is_armed.load(Ordering::Relaxed) {
            return Injury::default();
        }
        let before = match fault {
            Some(Fault::Errors) => self.0.requests.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        Injury {
            delay: (fault == Some(Fault::Slow)).then_some(FAULT_SLOW_BY),
            fails: fault == Some(Fault::Errors) && before % FAULT_ERROR_EVERY == 0,
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.0.fault.get().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_fault_acts_from_the_flip_on_and_nothing_does_without_one() {
        let none = Injected::default();
        none.until_ready().await;
        none.arm();
        assert_eq!(none.injury(), Injury::default());
        assert!(!none.accepts_nobody());

        let errs = Injected::default();
        errs.inject(Fault::Errors);
        assert!(!errs.injury().fails);
        errs.arm();
        let failed = (0..20).filter(|_| errs.injury().fails).count();
        assert_eq!(failed as u64, 20 / FAULT_ERROR_EVERY);

        let slow = Injected::default();
        slow.inject(Fault::Slow);
        assert_eq!(slow.injury().delay, None);
        slow.arm();
        assert_eq!(slow.injury().delay, Some(FAULT_SLOW_BY));
    }
}
