//! The rollout that an upgrade is. The controller decides; what it decides is done here.

use std::time::Instant;

use tokio::sync::oneshot;

use super::Driver;
use super::operator::Done;
use crate::config::STANDBY;
use crate::control::Strategy;
use crate::event::{Event, Phase};
use crate::protocol::incumbent;
use crate::rollout::attempts::Origin;
use crate::rollout::controller::{Output, Promote, Reverted, Trigger};
use crate::rollout::{Cause, Outcome, Promotion, Rollout, STEPS, Share, Side, Stage, Verdict};

/// What comes of checks or of a verification: nothing, or what speaks against it.
pub(super) type Examined = Result<(), String>;

/// An examination under way.
#[derive(Debug)]
pub(super) struct Examining {
    of: Examination,
    result: oneshot::Receiver<Examined>,
}

/// What a rollout has examined before it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Examination {
    /// Of a candidate in preview.
    Checks,
    /// Whether the candidate fits what the store has, before it is flipped to.
    Schema,
    /// Whether fresh connections are answered by this side.
    Verification(Side),
}

impl Examining {
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub(super) async fn done(&mut self) -> (Examination, Examined) {
        let result = (&mut self.result).await;
        (
            self.of,
            result.unwrap_or_else(|_| Err("it was not finished".to_owned())),
        )
    }
}

impl Driver {
    /// How the operator or the builder wants the next upgrade.
    pub(super) fn plan(
        &self,
        strategy: Option<Strategy>,
        changes: Option<&serde_json::Map<String, serde_json::Value>>,
    ) -> Result<Rollout, String> {
        let built = &self.config.rollout;
        let plan = match strategy {
            None => built.clone(),
            Some(Strategy::Immediate) => Rollout::immediate().for_clients_of(built),
            Some(Strategy::BlueGreen) => Rollout::blue_green()
                .promotion(Promotion::ByHand)
                .for_clients_of(built)
                .promoted_within(STANDBY),
            Some(Strategy::Canary) => Rollout::canary(STEPS).for_clients_of(built),
        };
        match changes {
            None => Ok(plan),
            Some(changes) => plan.changed(changes),
        }
    }

    pub(super) fn rollout_deadline(&self) -> Option<Instant> {
        self.down.as_ref()?.controller.poll_timeout()
    }

    /// Everything that the machines want, the rollout's first: what it has concluded decides what becomes of the rest.
    pub(super) fn perform_downward(&mut self) {
        let _entered = self.down.as_ref().map(|down| down.span.clone().entered());
        loop {
            let decided = self
                .down
                .as_mut()
                .and_then(|down| down.controller.poll_output());
            if let Some(output) = decided {
                self.perform_rollout(output);
            } else if let Some(output) = self.incumbent.poll_output() {
                self.perform_incumbent(output);
            } else {
                break;
            }
        }
        self.activate_if_due();
        self.publish();
    }

    fn perform_rollout(&mut self, output: Output) {
        let now = Instant::now();
        match output {
            Output::RunChecks => self.examine(Examination::Checks),
            Output::SetShare(share) => self.set_share(share),
            Output::Flip => self.examine(Examination::Schema),
            Output::Verify(side) => self.examine(Examination::Verification(side)),
            Output::Commit => self.incumbent.handle_commit(now),
            Output::Abort { reason } | Output::RollBack { reason } => {
                if let Some(down) = &mut self.down {
                    down.rollback_at.get_or_insert(now);
                }
                self.take_share_back();
                self.incumbent.handle_rollback(now, reason);
            }
            Output::Stage(stage) => {
                let Some(down) = &self.down else { return };
                self.shared.emit(Event::Stage {
                    successor: down.generation,
                    stage,
                    after: now - down.asked_at,
                });
            }
            Output::Paused(pause, explanation) => {
                let Some(down) = &self.down else { return };
                self.shared.emit(Event::Paused {
                    successor: down.generation,
                    pause,
                    explanation: explanation.to_string(),
                });
            }
            Output::Resumed => {
                let Some(down) = &self.down else { return };
                let successor = down.generation;
                self.shared.emit(Event::Resumed { successor });
            }
            Output::Verdict(verdict) => self.conclude(verdict),
        }
    }

    /// The successor is ready; whether it stands by is for the rollout to say.
    pub(super) fn successor_ready(&mut self) {
        let now = Instant::now();
        self.begin_looks();
        let Some(down) = &mut self.down else { return };
        down.controller.handle_ready(now);
        while let Some(output) = self
            .down
            .as_mut()
            .and_then(|down| down.controller.poll_output())
        {
            self.perform_rollout(output);
        }
        if self.incumbent.phase() == Some(Phase::Standby) {
            self.enter(Phase::Standby);
        }
    }

    /// The handover has ended; what that means for the rollout is for the rollout to say.
    pub(super) fn handed_over(&mut self, verdict: incumbent::Verdict) {
        let now = Instant::now();
        let Some(down) = &mut self.down else { return };
        let (how, phase, reason) = match verdict {
            incumbent::Verdict::Committed => return down.controller.handle_committed(),
            incumbent::Verdict::Aborted { phase, reason } => (Reverted::BeforeFlip, phase, reason),
            incumbent::Verdict::RolledBack { phase, reason } => {
                (Reverted::AfterFlip, phase, reason)
            }
        };
        if let Some(how) = down.ended() {
            down.controller.handle_trigger(now, Trigger::Exited { how });
        }
        down.close_channel();
        down.director = None;
        down.controller.handle_reverted(now, how, reason.clone());
        down.failed = Some((phase, reason));
    }

    fn conclude(&mut self, verdict: Verdict) {
        let Verdict {
            outcome,
            explanation,
        } = verdict;
        let decided_by = match explanation.cause {
            Cause::Operator { .. } | Cause::NotPromoted => Origin::Operator,
            _ => Origin::Automatic,
        };
        // A drill says nothing of any other release.
        let is_drill = self
            .down
            .as_ref()
            .is_some_and(|down| down.rehearsal().is_some());
        if !is_drill {
            self.attempts.record(outcome, decided_by);
        }
        if let Some(unverified) = &explanation.stable_unverified {
            let reason = format!("after a rollback it was not found to serve: {unverified}");
            self.degraded = Some(reason);
        }
        if outcome == Outcome::RolledBack
            && let Some(misfit) = self.shared.schema.misfit()
        {
            // Somebody has to answer, and the candidate could not.
            let generation = self.generation;
            self.degraded = Some(format!(
                "generation {generation} serves again, and {misfit}"
            ));
        }
        match outcome {
            Outcome::Promoted => self.committed(explanation),
            Outcome::Aborted | Outcome::RolledBack | Outcome::Degraded => {
                self.failed(outcome, explanation);
            }
        }
    }

    fn examine(&mut self, what: Examination) {
        let result = match what {
            Examination::Checks => self.check_candidate(),
            Examination::Schema => self.check_schema(),
            // Nobody is to be found any more.
            Examination::Verification(_) if self.incumbent.is_leaving() => None,
            Examination::Verification(side) => self.verify(side),
        };
        match (result, &mut self.down) {
            (Some(result), Some(down)) => down.examining = Some(Examining { of: what, result }),
            (None, _) => self.examined(what, Ok(())),
            (Some(_), None) => {}
        }
    }

    pub(super) fn examined(&mut self, what: Examination, result: Examined) {
        let now = Instant::now();
        let Some(down) = &mut self.down else { return };
        down.examining = None;
        match what {
            Examination::Checks => down.controller.handle_checked(now, result),
            Examination::Schema if down.controller.stage() != Stage::Flipping => {}
            Examination::Schema => match result {
                Ok(()) => self.incumbent.handle_flip(now),
                Err(reason) => {
                    let trigger = Trigger::CheckFailed { reason };
                    down.controller.handle_trigger(now, trigger);
                }
            },
            Examination::Verification(side) => {
                down.controller.handle_verified(now, side, result);
            }
        }
    }

    /// A generation that leaves has nothing left to be verified.
    pub(super) fn stop_examining(&mut self) {
        let Some(down) = &mut self.down else { return };
        let examining = down.examining.take();
        if let Some(Examining {
            of: of @ Examination::Verification(_),
            ..
        }) = examining
        {
            self.examined(of, Ok(()));
        }
    }

    /// Without a rollout it is the generation that serves: somebody has looked, and it is good as it is.
    pub(super) fn promote_or_declare_good(&mut self, promote: Promote) -> Done {
        if self.down.is_none() && self.degraded.take().is_some() {
            self.publish();
            return Ok(self.generation);
        }
        self.promote_successor(promote)
    }

    pub(super) fn promote_successor(&mut self, promote: Promote) -> Done {
        self.decide(|controller, now| controller.handle_promote(now, promote))
    }

    pub(super) fn pause_rollout(&mut self) -> Done {
        self.decide(|controller, now| controller.handle_pause(now))
    }

    /// Without a rollout it is the next ones that may go on: those that nobody stands by are refused after too many
    /// failed.
    pub(super) fn resume_rollout(&mut self) -> Done {
        if self.down.is_none() && self.attempts.has_failed() {
            self.attempts.reset();
            return Ok(self.generation);
        }
        self.decide(|controller, now| controller.handle_resume(now))
    }

    pub(super) fn share_by_hand(&mut self, share: Share) -> Done {
        self.decide(|controller, now| controller.handle_share(now, share))
    }

    /// Whoever aborts has not seen the flip. What the successor serves by then is for a rollback to end.
    pub(super) fn abort(&mut self, reason: String) -> Done {
        match self.refuse_who_waits(&reason) {
            Some(generation) => Ok(generation),
            None => self.decide(|controller, now| controller.handle_abort(now, reason)),
        }
    }

    /// An abort before the flip, a rollback after it.
    pub(super) fn undo(&mut self, reason: String) -> Done {
        if let Some(blocked) = self.no_way_back() {
            return Err(blocked);
        }
        match self.refuse_who_waits(&reason) {
            Some(generation) => Ok(generation),
            None => self.decide(|controller, now| {
                controller
                    .handle_rollback(now, reason.clone())
                    .or_else(|_| controller.handle_abort(now, reason))
            }),
        }
    }

    fn decide<E: ToString>(
        &mut self,
        decision: impl FnOnce(&mut crate::rollout::controller::Controller, Instant) -> Result<(), E>,
    ) -> Done {
        let Some(down) = &mut self.down else {
            return Err("no upgrade is under way".to_owned());
        };
        let generation = down.generation;
        decision(&mut down.controller, Instant::now()).map_err(|refusal| refusal.to_string())?;
        self.perform_downward();
        Ok(generation)
    }
}
