//! What becomes known of an update that has ended.

use std::time::{Instant, SystemTime};

use super::super::controller::{Ended, ReleaseId, WorkerId};
use super::super::judge::Judge;
use super::super::logs::LastWords;
use super::{Reply, Supervisor, Upgrade, Verdict, What, unix_ms};
use crate::protocol::message::millis;

/// A candidate that has failed.
#[derive(Debug)]
pub(super) struct Failed {
    worker: WorkerId,
    /// None where nobody reads what workers write.
    words: Option<LastWords>,
}

/// A verdict that is told when the last words of the candidate that has failed are known, or then.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) release: ReleaseId,
    ended: Ended,
    reason: String,
    pub(super) until: Instant,
}

impl Supervisor {
    pub(super) fn has_failed(&mut self, worker: WorkerId) {
        let words = self.outlets.last_words(worker);
        self.failed = Some(Failed { worker, words });
    }

    pub(super) fn decide(&mut self, release: ReleaseId, ended: Ended, reason: String) {
        self.decided = Some(Decided {
            release,
            ended,
            reason,
            until: Instant::now() + self.parts.logs_within,
        });
        self.tell_decided();
    }

    /// Tells a verdict that has waited for long enough. And forgets what nobody is going to ask for any more.
    pub(super) fn tell_decided(&mut self) {
        let until = self.decided.as_ref().map(|decided| decided.until);
        if until.is_some_and(|until| self.is_heard() || until <= Instant::now()) {
            self.conclude_decided();
        }
        self.outlets
            .forget_all_but(|worker| self.workers.contains_key(&worker));
    }

    /// Without any more words.
    pub(super) fn conclude_decided(&mut self) {
        if let Some(decided) = self.decided.take() {
            self.conclude(decided.release, decided.ended, decided.reason);
        }
    }

    /// Whether all is known that there is to know: one that is still there has said by now why it fails.
    fn is_heard(&self) -> bool {
        let is_heard = |failed: &Failed| {
            self.workers.contains_key(&failed.worker) || self.outlets.is_over(failed.worker)
        };
        self.failed.as_ref().is_none_or(is_heard)
    }

    fn conclude(&mut self, release: ReleaseId, ended: Ended, reason: String) {
        let Some(underwent) = self.update.take() else {
            return;
        };
        let failed = self.failed.take().filter(|_| ended != Ended::Committed);
        let last_words = failed.and_then(|failed| Some(failed.words?.text()));
        let judge = self.judge.take();
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
        let counts = judge.as_ref().map(|judge| judge.counts(&self.counted));
        self.counted.retain(|release| {
            let mut workers = self.workers.values();
            kept.contains(&Some(release)) || workers.any(|worker| worker.release == release)
        });
        self.tell(what);
        let [candidate, stable] = counts.map_or([None, None], |sides| sides.map(Some));
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
            last_words: last_words.unwrap_or_default(),
            asked_at_ms: unix_ms(underwent.at),
            ready_after_ms: None,
            flip_took_us: None,
            rollback_took_us: None,
            took_ms: after_ms,
            explanation: judge.as_ref().and_then(Judge::verdict),
            candidate,
            stable,
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
