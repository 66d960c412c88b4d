//! No faults: this build has none to inject.

use crate::inject::Injected;

/// Leaves every service as it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Injecting;

impl Injecting {
    pub(super) fn of(_: &Injected) -> Self {
        Self
    }

    pub(super) fn around<S>(&self, service: S) -> S {
        service
    }
}
