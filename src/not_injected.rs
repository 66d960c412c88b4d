//! No faults: this build has none to inject.

use crate::control::Fault;

/// Whether a drill may ask for a fault.
pub(crate) const IS_POSSIBLE: bool = false;

/// What this generation does wrong: nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Injected {}

impl Injected {
    /// An incumbent of another build has asked for it.
    pub(crate) fn inject(&self, fault: Fault) {
        tracing::warn!(%fault, "handover: this build has no faults to inject");
    }

    pub(crate) async fn until_ready(&self) {}

    pub(crate) fn accepts_nobody(&self) -> bool {
        false
    }

    pub(crate) fn arm(&self) {}
}
