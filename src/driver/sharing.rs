//! Connections that one generation accepts and another one serves before the flip: a canary's share.

use std::os::fd::OwnedFd;
use std::time::Instant;

use super::Driver;
use super::downward::Downward;
use crate::config::Config;
use crate::control::{ForwardedCounts, ForwardingState};
use crate::director::{Counts, Director, End, SLOT, Splitter, Standing, Watched, adopt};
use crate::error::{Error, ErrorKind, Result};
use crate::listen::Table;
use crate::protocol::message::{Slot, SlotKind};
use crate::rollout::Share;
use crate::rollout::controller::Trigger;
use crate::rollout::pick::Pick;
use crate::state::State;

/// Since which version of the protocol a successor knows what a director is.
const VERSION_MIN: u32 = 2;

/// The director of one upgrade.
#[derive(Debug)]
pub(super) struct Sharing {
    director: Director,
    /// Its end has been told.
    has_ended: bool,
}

impl Sharing {
    /// And what the successor is offered for it. One that does not know what a director is lets it lie.
    pub(super) fn begin(
        table: &Table,
        splitter: &Splitter,
        config: &Config,
        upgrade: &Downward,
    ) -> Result<(Self, (Slot, OwnedFd))> {
        // No other rollout of the service was asked for in the same millisecond.
        let pick = Pick::new(upgrade.asked_at_ms, &upgrade.plan);
        let (director, end) =
            Director::new(table, splitter, pick, config.forward).map_err(|error| {
                Error::new(ErrorKind::Io, "preparing to pass connections to it").because(error)
            })?;
        let slot = Slot {
            name: SLOT.to_owned(),
            kind: SlotKind::Descriptor,
            inode: None,
            keeper: None,
        };
        let sharing = Self {
            director,
            has_ended: false,
        };
        Ok((sharing, (slot, end)))
    }

    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub(super) async fn ended(&self) -> End {
        match self.has_ended {
            true => std::future::pending().await,
            false => self.director.ended().await,
        }
    }

    /// The successor has the role: what is on its way is its own.
    pub(super) fn release(self) {
        self.director.release();
    }

    pub(super) fn watched(&self) -> Watched {
        self.director.watched()
    }
}

// The stable generation's.
impl Driver {
    pub(super) fn set_share(&mut self, share: Share) {
        if share != Share::NONE {
            self.incumbent.handle_share();
        }
        let Some(down) = &self.down else { return };
        match &down.director {
            Some(sharing) if down.version >= VERSION_MIN => sharing.director.set_share(share),
            Some(_) if share != Share::NONE => {
                self.shared
                    .warn("the successor is too old to be given a share");
            }
            _ => {}
        }
    }

    /// The candidate is given up: what it has not begun is served here.
    pub(super) fn take_share_back(&mut self) {
        if let Some(down) = &mut self.down {
            down.director = None;
        }
    }

    pub(super) fn director_ended(&mut self, end: End) {
        let now = Instant::now();
        let Some(down) = &mut self.down else { return };
        if let Some(sharing) = &mut down.director {
            sharing.has_ended = true;
        }
        match end {
            End::Stalled { waiting, silent } => {
                let waiting = waiting as u64;
                down.controller
                    .handle_trigger(now, Trigger::Stalled { waiting, silent });
            }
            End::Broken(_) => self.incumbent.handle_broken(now, end.to_string()),
            // Its process tells why, if it has ended. If not, the rollout lacks data.
            End::Gone | End::Revoked | End::Released => {
                tracing::debug!(%end, "the director has ended");
            }
        }
        self.perform_downward();
    }
}

// The candidate's.
impl Driver {
    /// The application has something to accept, though the gates may be shut.
    pub(super) fn adopted(&mut self) {
        self.shared.health.serving();
        self.answer = Some(Ok(()));
    }
}

/// As operators see it.
pub(super) fn state_of(standing: &Standing) -> ForwardingState {
    let listeners = standing.listeners.iter();
    ForwardingState {
        desired: standing.share,
        assigned: part(standing.since.picked, standing.since.accepted),
        begun: part(standing.since.begun, standing.since.accepted),
        total: counts_of(standing.total),
        listeners: listeners
            .map(|(name, counts)| (name.clone(), counts_of(*counts)))
            .collect(),
        on_the_way: standing.on_the_way as u64,
    }
}

fn part(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn counts_of(counts: Counts) -> ForwardedCounts {
    let Counts {
        accepted,
        picked,
        kept,
        forwarded,
        begun,
        taken_back,
        lost,
    } = counts;
    ForwardedCounts {
        accepted,
        picked,
        kept,
        forwarded,
        begun,
        taken_back,
        lost,
    }
}

/// Adopts into the listeners of `table` what the incumbent passes on, if it has offered to.
pub(super) fn begin_adopting(offered: &mut State, table: &Table) -> Result<()> {
    let Some(end) = offered.take_descriptor(SLOT) else {
        return Ok(());
    };
    adopt(end, table).map_err(|error| {
        Error::new(ErrorKind::Io, "watching for connections of the incumbent's").because(error)
    })
}
