//! What a task observes of its generation's way out.

use std::fmt;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// How far a generation is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// It is not.
    Serving,
    /// It accepts nothing new and clients should move over; it may be called back.
    Quiesced {
        /// Since when.
        since: Instant,
    },
    /// It finishes what is in flight, and leaves.
    Draining {
        /// Since when.
        since: Instant,
        /// When whatever is left is cut, whatever its class may take.
        until: Instant,
    },
    /// It leaves now, whatever is in flight.
    Cut {
        /// Since when it has been draining.
        since: Instant,
    },
}

/// One class's view of its generation's way out. Cheap to clone.
#[derive(Clone)]
pub struct Signal {
    stage: watch::Receiver<Stage>,
    limit: Duration,
}

impl Signal {
    pub(super) fn new(stage: watch::Receiver<Stage>, limit: Duration) -> Self {
        Self { stage, limit }
    }

    /// How far the generation is on its way out.
    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Whether the accept right is gone, for good or not.
    pub fn is_quiesced(&self) -> bool {
        self.stage() != Stage::Serving
    }

    /// Whether the generation leaves for good.
    pub fn is_draining(&self) -> bool {
        self.cut_at().is_some()
    }

    /// How long this class may still take; `None` while the generation is not draining.
    pub fn time_left(&self) -> Option<Duration> {
        self.cut_at()
            .map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Waits for the next change, and returns the stage then. Pends for ever after the last one.
    ///
    /// # Cancel safety
    ///
    /// A change that happens between two calls is seen by the second.
    pub async fn changed(&mut self) -> Stage {
        if self.stage.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        *self.stage.borrow_and_update()
    }

    /// Waits until the accept right is gone; returns at once if it is.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn quiesced(&self) {
        self.reached(|stage| stage != Stage::Serving).await;
    }

    /// Waits until the generation leaves for good; returns at once if it does.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn draining(&self) {
        self.reached(|stage| matches!(stage, Stage::Draining { .. } | Stage::Cut { .. }))
            .await;
    }

    /// Waits until this class is out of time: whoever is still at work must end now.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn cut(&self) {
        self.draining().await;
        let Some(at) = self.cut_at() else { return };
        tokio::select! {
            () = sleep_until(at) => {}
            () = self.reached(|stage| matches!(stage, Stage::Cut { .. })) => {}
        }
    }

    fn cut_at(&self) -> Option<Instant> {
        match self.stage() {
            Stage::Serving | Stage::Quiesced { .. } => None,
            Stage::Draining { since, until } => Some((since + self.limit).min(until)),
            Stage::Cut { .. } => Some(Instant::now()),
        }
    }

    async fn reached(&self, wanted: impl Fn(Stage) -> bool) {
        let mut stage = self.stage.clone();
        if stage.wait_for(|stage| wanted(*stage)).await.is_err() {
            // The generation's drain is gone, and with it whoever could move it on.
            std::future::pending::<()>().await;
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signal")
            .field("stage", &self.stage())
            .field("limit", &self.limit)
            .finish()
    }
}
