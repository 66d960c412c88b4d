//! What becomes known of an update that has ended.

use std::time::SystemTime;

use super::super::controller::{Ended, ReleaseId};
use super::{Reply, Supervisor, Upgrade, Verdict, What, unix_ms};
use crate::protocol::message::millis;

impl Supervisor {
    pub(super) fn conclude(&mut self, release: ReleaseId, ended: Ended, reason: String) {
        let Some(underwent) = self.update.take() else {
            return;
        };
        self.judge = None;
        let text = match ended {
            Ended::Committed => format!("release {release} serves"),
            _ => format!("release {release} was undone: {reason}"),
        };
        let service = &mut self.parts.service;
        service.reloaded(&text, ended == Ended::Committed);
        let after_ms = millis(underwent.since.elapsed());
        let (successor, pid) = (release, std::process::id());
        let (verdict, what) = match ended {
            Ended::Committed => (
                Verdict::Committed,
                What::Committed {
                    successor,
                    pid,
                    after_ms,
                },
            ),
            Ended::Aborted => (
                Verdict::Aborted,
                What::Aborted {
                    successor,
                    reason: reason.clone(),
                    after_ms,
                },
            ),
            Ended::RolledBack => (
                Verdict::RolledBack,
                What::RolledBack {
                    successor,
                    reason: reason.clone(),
                    after_ms,
                },
            ),
            Ended::Degraded => (
                Verdict::Degraded,
                What::RolledBack {
                    successor,
                    reason: reason.clone(),
                    after_ms,
                },
            ),
        };
        if ended == Ended::Committed {
            self.before = Some(underwent.from);
            self.stable_since = SystemTime::now();
        }
        let kept = [Some(self.parts.machine.stable()), self.before];
        self.releases
            .retain(|number, _| kept.contains(&Some(*number)));
        self.tell(what);
        let upgrade = Upgrade {
            generation: release,
            from: underwent.from,
            verdict,
            reason,
            rollback_to: None,
            phase: None,
            pid: Some(pid),
            incumbent_serves: ended != Ended::Committed && self.parts.machine.ready() > 0,
            exit: None,
            last_words: String::new(),
            asked_at_ms: unix_ms(underwent.at),
            ready_after_ms: None,
            flip_took_us: None,
            rollback_took_us: None,
            took_ms: after_ms,
            explanation: None,
            candidate: None,
            stable: None,
            forwarding: None,
            drill: None,
        };
        self.history.add(upgrade.clone());
        let upgrade = Box::new(upgrade);
        self.resolve(&Reply::Verdict { upgrade });
    }

    /// Everybody who waits for the update has an answer.
    pub(super) fn resolve(&mut self, reply: &Reply) {
        for waiting in self.waiting.drain(..) {
            // Who has gone needs none.
            let _ = waiting.send(reply.clone());
        }
    }
}
