//! What a worker of a pool does otherwise: it is upgraded and stopped by its supervisor, and tells it what it counts.

use std::time::Instant;

use super::Driver;
use crate::config::{COUNTS_REPORT, Config, Image};
use crate::observe::{Counted, Observed, Rules};
use crate::protocol::message::Tally;
use crate::rollout::CLIENT_WINDOW;
use crate::sys::environment::{Snapshot, WORKER};
use crate::systemd::notify::Notice;

/// A worker's word to its supervisor.
#[derive(Debug)]
pub(super) struct Membership {
    next: Instant,
    told: Tally,
}

impl Membership {
    /// Of this process, if it is a worker. It counts by connection then: which worker gets one is chance, whoever comes.
    pub(super) fn of(config: &Config, observed: &Observed) -> Option<Self> {
        if !config.is_worker {
            return None;
        }
        observed.apply(Rules {
            slow_above: None,
            window: CLIENT_WINDOW,
            by: Counted::Connection,
        });
        Some(Self {
            next: Instant::now() + COUNTS_REPORT,
            told: Tally::default(),
        })
    }
}

/// Whether this process is a worker of a pool. What the supervisor has for the service is not the worker's then.
pub(crate) fn join_pool(config: &mut Config, snapshot: &Snapshot) {
    if snapshot.service_manager(WORKER).is_none() {
        return;
    }
    config.is_worker = true;
    config.control = None;
    config.pid_file = None;
    config.preview = None;
    config.preview_ports.clear();
    config.fd_store = Some(false);
    config.takeover = false;
    config.image = Image::Nothing;
}

impl Driver {
    pub(super) fn next_report(&self) -> Option<Instant> {
        self.membership.as_ref().map(|member| member.next)
    }

    /// Tells the supervisor what has been counted, if that is more than it knows.
    pub(super) fn report_if_due(&mut self, now: Instant) {
        if self.next_report().is_none_or(|at| now < at) {
            return;
        }
        let tally = self.tally(&self.shared.observed);
        if let Some(member) = &mut self.membership {
            member.next = now + COUNTS_REPORT;
            let is_news = (tally.requests, tally.errors, tally.shed, &tally.degraded)
                != (
                    member.told.requests,
                    member.told.errors,
                    member.told.shed,
                    &member.told.degraded,
                );
            if is_news {
                member.told = tally.clone();
                self.manager.tell(Notice::new().counts(&tally));
            }
        }
    }
}
