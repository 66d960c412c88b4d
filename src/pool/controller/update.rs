//! The course of an update: begun, held, resumed, undone and concluded, by operators, failures and deadlines.

use std::time::{Duration, Instant};

use super::super::plan::OnFailure;
use super::{
    Controller, Ended, Output, Plan, Progress, Refusal, ReleaseId, State, UpdateStage, WorkerId,
};

/// One under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Update {
    pub(super) candidate: ReleaseId,
    pub(super) plan: Plan,
    pub(super) phase: Phase,
    pub(super) failures: usize,
    /// A stable worker has left for a candidate.
    pub(super) has_replaced: bool,
}

/// Where it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    Rolling {
        deadline: Instant,
    },
    /// By an operator; what is left of the progress deadline.
    Paused {
        left: Duration,
    },
    /// By a failure, with the mix as it is.
    Halted {
        reason: String,
    },
    Reverting {
        reason: String,
        deadline: Instant,
    },
}

impl Update {
    /// Whether so many candidates have failed that it halts, in a pool of this size.
    fn has_failed(&self, wanted: usize) -> bool {
        self.failures >= self.plan.halt_on_failures.clamp(1, wanted)
    }
}

/// What happens to it, and what operators want.
impl Controller {
    /// What candidates answer is worse than what stable workers do.
    pub(crate) fn handle_unfit(&mut self, reason: String, now: Instant) {
        if let Some(update) = &self.update
            && self.is_tried(update.candidate)
        {
            self.halt(reason, now);
            self.reconcile(now);
        }
    }

    /// Replaces all workers by those of another release, or by fresh ones of the same bytes under a new number.
    pub(crate) fn update(
        &mut self,
        candidate: ReleaseId,
        plan: Plan,
        now: Instant,
    ) -> Result<(), Refusal> {
        self.check_running()?;
        if let Some(update) = &self.update {
            return Err(Refusal::UnderWay(update.candidate));
        }
        plan.check().map_err(Refusal::Plan)?;
        let deadline = now + plan.progress_deadline;
        self.update = Some(Update {
            candidate,
            plan,
            phase: Phase::Rolling { deadline },
            failures: 0,
            has_replaced: false,
        });
        self.reconcile(now);
        Ok(())
    }

    /// Lets the update stay where it is. Stable workers that crash are replaced, by stable ones.
    pub(crate) fn pause(&mut self, now: Instant) -> Result<(), Refusal> {
        let update = self.check_update()?;
        match update.phase {
            Phase::Rolling { deadline } => {
                let left = deadline.saturating_duration_since(now);
                update.phase = Phase::Paused { left };
                let (release, reason) = (update.candidate, "paused by an operator".to_owned());
                self.outputs.push_back(Output::Held { release, reason });
                self.reconcile(now);
                Ok(())
            }
            Phase::Paused { .. } | Phase::Halted { .. } => Err(Refusal::Held),
            Phase::Reverting { .. } => Err(Refusal::Reverting),
        }
    }

    /// Lets a paused or halted update go on. The failures that have halted it are forgiven.
    pub(crate) fn resume(&mut self, now: Instant) -> Result<(), Refusal> {
        let update = self.check_update()?;
        let left = match update.phase {
            Phase::Paused { left } => left,
            Phase::Halted { .. } => update.plan.progress_deadline,
            Phase::Rolling { .. } => return Err(Refusal::NotHeld),
            Phase::Reverting { .. } => return Err(Refusal::Reverting),
        };
        update.phase = Phase::Rolling {
            deadline: now + left,
        };
        update.failures = 0;
        let release = update.candidate;
        self.outputs.push_back(Output::Resumed { release });
        self.reconcile(now);
        Ok(())
    }

    /// Undoes the update.
    pub(crate) fn abort(&mut self, reason: String, now: Instant) -> Result<(), Refusal> {
        if let Phase::Reverting { .. } = self.check_update()?.phase {
            return Err(Refusal::Reverting);
        }
        self.revert(reason, now);
        self.reconcile(now);
        Ok(())
    }

    /// Lets an update stay where it is for good, since the pool is about to stop. Nobody is told.
    pub(crate) fn stand_still(&mut self) {
        if let Some(update) = &mut self.update {
            let left = update.plan.progress_deadline;
            update.phase = Phase::Paused { left };
        }
    }

    pub(crate) fn progress(&self) -> Option<Progress> {
        let update = self.update.as_ref()?;
        Some(Progress {
            candidate: update.candidate,
            stage: match &update.phase {
                Phase::Rolling { .. } => UpdateStage::Rolling,
                Phase::Paused { .. } => UpdateStage::Paused,
                Phase::Halted { reason } => UpdateStage::Halted(reason.clone()),
                Phase::Reverting { reason, .. } => UpdateStage::Reverting(reason.clone()),
            },
            replaced: self.count(update.candidate, |state| state == State::Serving),
            ready: self.count(update.candidate, State::is_ready),
            failures: update.failures,
        })
    }
}

/// What becomes of it.
impl Controller {
    /// Ends an update that has come to its end.
    pub(super) fn conclude(&mut self, now: Instant) {
        let Some(update) = &self.update else { return };
        let candidate = update.candidate;
        match &update.phase {
            Phase::Rolling { .. } => {
                // As many as have failed are the stable release's until then.
                let others = self.others(candidate).count();
                if !self.is_all_there(update) || others > update.failures {
                    return;
                }
                self.stable = candidate;
                self.update = None;
                self.vacancies.clear();
                self.converge(now);
                self.verdict(candidate, Ended::Committed, String::new());
            }
            Phase::Reverting { reason, .. } => {
                let stable = self.count(self.stable, State::is_ready);
                if self.others(self.stable).next().is_some() || stable < self.wanted {
                    return;
                }
                let ended = match update.has_replaced {
                    false => Ended::Aborted,
                    true => Ended::RolledBack,
                };
                let reason = reason.clone();
                self.update = None;
                self.verdict(candidate, ended, reason);
            }
            Phase::Paused { .. } | Phase::Halted { .. } => {}
        }
    }

    pub(super) fn update_times_out(&mut self, now: Instant) {
        let Some(update) = &self.update else { return };
        match &update.phase {
            Phase::Rolling { deadline } if *deadline <= now => {
                let limit = update.plan.progress_deadline;
                if !self.is_all_there(update) {
                    self.halt(
                        format!("no further worker was healthy within {limit:?}"),
                        now,
                    );
                } else if let Some(update) = &mut self.update {
                    // Only stable workers that drain are waited for, which have deadlines of their own.
                    update.phase = Phase::Rolling {
                        deadline: now + limit,
                    };
                }
            }
            Phase::Reverting { reason, deadline } if *deadline <= now => {
                let (candidate, reason) = (update.candidate, reason.clone());
                self.update = None;
                self.verdict(
                    candidate,
                    Ended::Degraded,
                    format!("{reason}; it could not be undone in time"),
                );
            }
            _ => {}
        }
    }

    /// A candidate has failed.
    pub(super) fn fail(&mut self, worker: WorkerId, reason: String, now: Instant) {
        self.outputs.push_back(Output::Failed { worker });
        let wanted = self.wanted;
        let Some(update) = &mut self.update else {
            return;
        };
        update.failures += 1;
        if update.has_failed(wanted) {
            self.halt(reason, now);
        }
    }

    /// In a smaller pool fewer failures are too many: at least one candidate has to count for a commit.
    pub(super) fn halt_if_too_many_failed(&mut self, now: Instant) {
        if let Some(update) = &self.update
            && self.is_tried(update.candidate)
            && update.has_failed(self.wanted)
        {
            let (failed, release) = (update.failures, update.candidate);
            let reason = format!(
                "{failed} workers of release {release} have failed, and {} are wanted by now",
                self.wanted
            );
            self.halt(reason, now);
        }
    }

    /// Whether this release is a candidate whose failures count.
    pub(super) fn is_tried(&self, release: ReleaseId) -> bool {
        self.update.as_ref().is_some_and(|update| {
            let counts = matches!(update.phase, Phase::Rolling { .. } | Phase::Paused { .. });
            counts && update.candidate == release
        })
    }

    /// The update's plan while there is one, else the pool's.
    pub(super) fn plan_now(&self) -> &Plan {
        self.update
            .as_ref()
            .map_or(&self.plan, |update| &update.plan)
    }

    /// Whether every candidate that there is to be counts.
    fn is_all_there(&self, update: &Update) -> bool {
        let target = self.wanted.saturating_sub(update.failures);
        self.count(update.candidate, |state| state == State::Serving) >= target
    }

    fn verdict(&mut self, release: ReleaseId, ended: Ended, reason: String) {
        self.outputs.push_back(Output::Verdict {
            release,
            ended,
            reason,
        });
    }

    fn halt(&mut self, reason: String, now: Instant) {
        let Some(update) = &mut self.update else {
            return;
        };
        match update.plan.on_failure {
            OnFailure::Revert => self.revert(reason, now),
            OnFailure::Halt => {
                update.phase = Phase::Halted {
                    reason: reason.clone(),
                };
                let release = update.candidate;
                self.outputs.push_back(Output::Held { release, reason });
            }
        }
    }

    fn revert(&mut self, reason: String, now: Instant) {
        let Some(update) = &mut self.update else {
            return;
        };
        let deadline = now + update.plan.progress_deadline;
        update.phase = Phase::Reverting {
            reason: reason.clone(),
            deadline,
        };
        let release = update.candidate;
        self.outputs
            .push_back(Output::Reverting { release, reason });
    }

    fn check_update(&mut self) -> Result<&mut Update, Refusal> {
        self.check_running()?;
        self.update.as_mut().ok_or(Refusal::NoUpdate)
    }
}
