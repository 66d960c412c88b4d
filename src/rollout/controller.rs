//! The machine that takes a candidate through a rollout; runs beside the incumbent's half of the handover.
//!
//! Inputs are `handle_*`, what to do about them is `poll_output`, the next deadline is `poll_timeout`. One input, then
//! all its outputs, then the next input. Immediate, blue/green and canary differ in the plan's steps alone. The machine
//! upholds:
//!
//! 1. There is one verdict, and nothing but silence after it.
//! 2. Missing data neither promotes nor undoes: it pauses.
//! 3. Until the flip the operator can abort, from the flip to the commit they can roll back.
//! 4. A pause has a deadline, or says that it waits for the operator; so has every wait but for the handover itself,
//!    whose machine has deadlines of its own.
//! 5. When a candidate is given up its share is taken from it first.
//! 6. A rehearsal never commits, and waits for nobody but an operator who has paused it.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use super::guard::{Finding, Reading};
use super::plan::{Promotion, Rollout};
use super::share::Share;
use super::side::Side;
use super::verdict::{Cause, Explanation, Outcome, Pause, PauseReason, Stage, Until, Verdict};

/// The machine.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(test, derive(Hash))]
pub(crate) struct Controller {
    plan: Rollout,
    purpose: Purpose,
    state: State,
    paused: Option<Paused>,
    pace: Pace,
    share: Share,
    units: u64,
    readings: Vec<Reading>,
    /// Looks in a row that could not measure.
    errors: u32,
    trouble: bool,
    degraded: bool,
    /// Whether stable could serve again after a flip.
    has_way_back: bool,
    outputs: VecDeque<Output>,
}

#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(test, derive(Hash))]
enum State {
    AwaitReady,
    AwaitChecks {
        deadline: Instant,
    },
    /// Checked, and without a share.
    Preview,
    Shifting(Window),
    /// Bounded by the handover's own deadlines, as are the other waits for it.
    AwaitFlipped,
    AwaitVerified {
        deadline: Instant,
    },
    Baking(Window),
    AwaitCommitted {
        why: Explanation,
    },
    AwaitReverted {
        why: Explanation,
    },
    /// Stable has its gates open again and is to prove it.
    AwaitStableVerified {
        why: Explanation,
        deadline: Instant,
    },
    Over,
}

/// The time of one step, or of the bake, and the traffic in it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(test, derive(Hash))]
struct Window {
    units_before: u64,
    /// Until the clock was started for the last time.
    elapsed: Duration,
    /// Not while the rollout is paused.
    started: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(test, derive(Hash))]
struct Paused {
    reason: PauseReason,
    /// When a pause that may pass by itself becomes the operator's, or a candidate that nobody promotes is given up.
    deadline: Option<Instant>,
}

/// What the rollout is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
enum Purpose {
    /// The candidate is to be stable.
    Release,
    /// The way there is to be gone, and the way back.
    Rehearsal,
}

/// How much of the plan there is still to be done.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(test, derive(Hash))]
enum Pace {
    Planned,
    /// The operator wants no further step and no bake.
    Full,
}

/// What the driver has to do, in order.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(test, derive(Hash))]
pub(crate) enum Output {
    /// Run the checks of the candidate in preview, then `handle_checked`.
    RunChecks,
    /// Give the candidate this share of what comes from now on.
    SetShare(Share),
    /// All of it: the flip, then `handle_flipped` or `handle_reverted`.
    Flip,
    /// Fresh connections to each public address have to be answered by this side, then `handle_verified`.
    Verify(Side),
    /// Make the candidate stable, then `handle_committed` or `handle_reverted`.
    Commit,
    /// Discard a candidate that was not flipped to, then `handle_reverted`.
    Abort {
        /// Why.
        reason: String,
    },
    /// Flip back, then `handle_reverted`.
    RollBack {
        /// Why.
        reason: String,
    },
    /// A stage begins.
    Stage(Stage),
    /// The rollout does not go on by itself.
    Paused(Pause, Explanation),
    /// It does again.
    Resumed,
    /// It has ended.
    Verdict(Verdict),
}

/// What needs no statistics to undo a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// The candidate's process has ended.
    Exited {
        /// How.
        how: String,
    },
    /// Connections wait and nobody accepts them.
    Stalled {
        /// How many.
        waiting: u64,
        /// For how long.
        silent: Duration,
    },
    /// A check of the candidate has failed for good.
    CheckFailed {
        /// Which, and what it said.
        reason: String,
    },
}

/// How a handover was undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(crate) enum Reverted {
    /// Stable has had its gates open all the time.
    BeforeFlip,
    /// Stable has opened its gates again.
    AfterFlip,
}

/// How far the operator promotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promote {
    /// To the next step, whatever holds this one.
    Next,
    /// All the way: no further steps, and no bake. The checks and the verification stay.
    Full,
}

/// Why the operator's command was refused; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The rollout is at something that ends by itself, or has ended.
    NotNow(Stage),
    /// It has not been flipped; abort.
    NotFlipped,
    /// It has been flipped; roll back.
    Flipped,
    /// It is paused already, for this reason.
    Paused(PauseReason),
    /// It is not paused.
    NotPaused,
    /// It waits to be promoted.
    AwaitsPromotion,
    /// All of the traffic is no share; promote.
    ShareIsFlip,
}

/// In words for the operator.
impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotNow(Stage::Committing) => {
                out.write_str("it is being committed: upgrade to the release before")
            }
            Self::NotNow(Stage::Reverting) => out.write_str("it is being undone already"),
            Self::NotNow(stage) => write!(out, "the rollout is {stage}: that ends by itself"),
            Self::NotFlipped => out.write_str("the successor has not taken over: abort it"),
            Self::Flipped => {
                out.write_str("the successor has taken over: only a rollback undoes that")
            }
            Self::Paused(reason) => write!(out, "it is paused already: {reason}"),
            Self::NotPaused => out.write_str("it is not paused"),
            Self::AwaitsPromotion => out.write_str("it waits to be promoted or aborted"),
            Self::ShareIsFlip => out.write_str("all of the traffic is no share: promote it"),
        }
    }
}

impl Controller {
    pub(crate) fn new(plan: Rollout) -> Self {
        Self {
            plan,
            purpose: Purpose::Release,
            state: State::AwaitReady,
            paused: None,
            pace: Pace::Planned,
            share: Share::NONE,
            units: 0,
            readings: Vec::new(),
            errors: 0,
            trouble: false,
            degraded: false,
            has_way_back: true,
            outputs: VecDeque::from([Output::Stage(Stage::Starting)]),
        }
    }

    /// Goes all the way to the end of the bake, and back from there.
    pub(crate) fn rehearsing(plan: Rollout) -> Self {
        Self {
            purpose: Purpose::Rehearsal,
            ..Self::new(plan)
        }
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::AwaitChecks { deadline }
            | State::AwaitVerified { deadline }
            | State::AwaitStableVerified { deadline, .. } => Some(*deadline),
            State::Preview | State::Shifting(_) | State::Baking(_) => match self.paused {
                Some(paused) => paused.deadline,
                None => self.window_due(),
            },
            State::AwaitReady
            | State::AwaitFlipped
            | State::AwaitCommitted { .. }
            | State::AwaitReverted { .. }
            | State::Over => None,
        }
    }

    pub(crate) fn stage(&self) -> Stage {
        match &self.state {
            State::AwaitReady => Stage::Starting,
            State::AwaitChecks { .. } | State::Preview => Stage::Preview,
            State::Shifting(_) => Stage::Shifting,
            State::AwaitFlipped => Stage::Flipping,
            State::AwaitVerified { .. } => Stage::Verifying,
            State::Baking(_) => Stage::Baking,
            State::AwaitCommitted { .. } => Stage::Committing,
            State::AwaitReverted { .. } | State::AwaitStableVerified { .. } => Stage::Reverting,
            State::Over => Stage::Over,
        }
    }

    /// What the candidate is given now.
    pub(crate) fn share(&self) -> Share {
        self.share
    }

    /// How long the step or the bake takes at least.
    pub(crate) fn takes(&self) -> Option<Duration> {
        self.window().map(|_| self.time_min())
    }

    /// How many requests the candidate had answered in all at the last look.
    #[cfg(test)]
    pub(crate) fn units(&self) -> u64 {
        self.units
    }

    /// Why it does not go on by itself, if it does not.
    pub(crate) fn pause(&self) -> Option<Pause> {
        self.paused.map(|paused| Pause {
            reason: paused.reason,
            until: paused.until(),
        })
    }

    /// How things stand, for an operator who asks.
    pub(crate) fn standing(&self, now: Instant) -> Explanation {
        self.explain(
            now,
            match self.paused {
                Some(Paused { reason, .. }) => Cause::Paused { reason },
                None => Cause::Underway,
            },
        )
    }

    fn explain(&self, now: Instant, cause: Cause) -> Explanation {
        let window = self.window().copied();
        let window = window.unwrap_or_else(|| Window::at(self.units));
        Explanation {
            cause,
            stage: self.stage(),
            step: self.plan.step_number(self.share),
            share: self.share,
            units: window.units(self.units),
            units_min: self.plan.units_min,
            elapsed_ms: u64::try_from(window.elapsed(now).as_millis()).unwrap_or(u64::MAX),
            guards: self.readings.clone(),
            stable_unverified: None,
        }
    }

    /// The candidate is warmed up and holds every socket, with its gates shut.
    pub(crate) fn handle_ready(&mut self, now: Instant) {
        if self.state == State::AwaitReady {
            self.state = State::AwaitChecks {
                deadline: now + self.plan.checks_deadline,
            };
            self.enter(Stage::Preview);
            self.push(Output::RunChecks);
        }
    }

    /// The checks are over.
    pub(crate) fn handle_checked(&mut self, now: Instant, result: Result<(), String>) {
        if let State::AwaitChecks { .. } = self.state {
            match result {
                Ok(()) => {
                    self.state = State::Preview;
                    self.go_on(now);
                }
                Err(reason) => self.revert(now, Cause::CheckFailed { reason }),
            }
        }
    }

    /// What the guards have read. `units` is how many requests the candidate has answered in all.
    pub(crate) fn handle_look(&mut self, now: Instant, units: u64, readings: Vec<Reading>) {
        if !self.is_judged() {
            return;
        }
        self.units = self.units.max(units);
        self.readings = readings;
        if let Some(failed) = self.find(Finding::Failed) {
            let guard = failed.guard.clone();
            let is_flipped = matches!(self.stage(), Stage::Verifying | Stage::Baking);
            if is_flipped && !self.has_way_back {
                return self.hold_without_way_back(now);
            }
            return self.revert(now, Cause::GuardFailed { guard });
        }
        self.errors = match self.find(Finding::Error) {
            Some(_) => (self.errors + 1).min(self.error_limit()),
            None => 0,
        };
        self.go_on(now);
    }

    /// Whether stable could serve again after a flip. If not, it does so only where the candidate serves nobody: errors
    /// are better than another schema's data.
    pub(crate) fn handle_way_back(&mut self, is_open: bool) {
        self.has_way_back = is_open;
    }

    /// Something happened to the candidate that needs no statistics.
    pub(crate) fn handle_trigger(&mut self, now: Instant, trigger: Trigger) {
        let cause = match trigger {
            Trigger::Exited { how } => Cause::Exited { how },
            Trigger::Stalled { waiting, silent } => Cause::Stalled {
                waiting,
                silent_ms: u64::try_from(silent.as_millis()).unwrap_or(u64::MAX),
            },
            Trigger::CheckFailed { reason } => Cause::CheckFailed { reason },
        };
        self.revert(now, cause);
    }

    /// Both sides fail.
    pub(crate) fn handle_trouble(&mut self, now: Instant) {
        self.trouble = true;
        self.go_on(now);
    }

    /// They do no longer.
    pub(crate) fn handle_trouble_over(&mut self, now: Instant) {
        self.trouble = false;
        self.recover(now, PauseReason::SharedTrouble);
    }

    /// The candidate says that it serves, but not as it should.
    pub(crate) fn handle_degraded(&mut self, now: Instant) {
        self.degraded = true;
        self.go_on(now);
    }

    /// The candidate serves as it should again.
    pub(crate) fn handle_recovered(&mut self, now: Instant) {
        self.degraded = false;
        self.recover(now, PauseReason::CandidateDegraded);
    }

    /// The candidate's gates are open, and stable's are shut.
    pub(crate) fn handle_flipped(&mut self, now: Instant) {
        if self.state == State::AwaitFlipped {
            self.share = Share::FULL;
            // The guards of the bake have seen nothing yet.
            self.readings.clear();
            self.state = State::AwaitVerified {
                deadline: now + self.plan.verify_deadline,
            };
            self.enter(Stage::Verifying);
            self.push(Output::Verify(Side::Candidate));
        }
    }

    /// Whether fresh connections were answered by `side`.
    pub(crate) fn handle_verified(&mut self, now: Instant, side: Side, result: Result<(), String>) {
        match (&self.state, side) {
            (State::AwaitVerified { .. }, Side::Candidate) => match result {
                Ok(()) => {
                    self.state = State::Baking(self.begin_window(now));
                    self.enter(Stage::Baking);
                    self.go_on(now);
                }
                Err(reason) => self.revert(now, Cause::VerifyFailed { reason }),
            },
            (State::AwaitStableVerified { why, .. }, Side::Stable) => {
                let why = why.clone();
                self.conclude(why, result);
            }
            // Of a flip that was taken back in the meantime.
            _ => {}
        }
    }

    /// The candidate has the role.
    pub(crate) fn handle_committed(&mut self) {
        if let State::AwaitCommitted { why } = &self.state {
            let explanation = why.clone();
            self.end(Outcome::Promoted, explanation);
        }
    }

    /// The handover is undone, because it was to be, or by itself.
    pub(crate) fn handle_reverted(&mut self, now: Instant, how: Reverted, reason: String) {
        let why = match &self.state {
            State::Over | State::AwaitStableVerified { .. } => return,
            State::AwaitReverted { why } => why.clone(),
            _ => {
                let why = self.explain(now, Cause::HandoverFailed { reason });
                self.give_up();
                why
            }
        };
        match how {
            Reverted::BeforeFlip => self.end(Outcome::Aborted, why),
            Reverted::AfterFlip => {
                if self.stage() != Stage::Reverting {
                    self.enter(Stage::Reverting);
                }
                self.state = State::AwaitStableVerified {
                    why,
                    deadline: now + self.plan.verify_deadline,
                };
                self.push(Output::Verify(Side::Stable));
            }
        }
    }

    /// The operator wants to go on, whatever holds the rollout.
    pub(crate) fn handle_promote(&mut self, now: Instant, promote: Promote) -> Result<(), Refusal> {
        match (promote, self.stage()) {
            (_, stage @ (Stage::Committing | Stage::Reverting | Stage::Over)) => {
                return Err(Refusal::NotNow(stage));
            }
            (Promote::Full, _) => self.pace = Pace::Full,
            (Promote::Next, _) if self.has_a_say() => {}
            (Promote::Next, stage) => return Err(Refusal::NotNow(stage)),
        }
        self.errors = 0;
        self.unpause(now);
        if self.has_a_say() {
            let reason = "promoted".to_owned();
            self.pass(now, Promotion::Automatic, Cause::Operator { reason });
        }
        Ok(())
    }

    /// The operator wants the rollout to stay where it is. The guards stay armed.
    pub(crate) fn handle_pause(&mut self, now: Instant) -> Result<(), Refusal> {
        match (self.stage(), self.pause()) {
            (stage @ (Stage::Committing | Stage::Reverting | Stage::Over), _) => {
                Err(Refusal::NotNow(stage))
            }
            (
                _,
                Some(Pause {
                    reason,
                    until: Until::Operator,
                }),
            ) => Err(Refusal::Paused(reason)),
            _ => {
                self.hold(now, PauseReason::Manual);
                Ok(())
            }
        }
    }

    /// The operator lets a paused rollout go on: it gets the rest of its step once more to come by what it lacked.
    pub(crate) fn handle_resume(&mut self, now: Instant) -> Result<(), Refusal> {
        match self.paused {
            None => Err(Refusal::NotPaused),
            Some(Paused {
                reason: PauseReason::ByHand,
                ..
            }) => Err(Refusal::AwaitsPromotion),
            Some(_) => {
                let time_min = self.time_min();
                if let Some(window) = self.window_mut() {
                    window.elapsed = window.elapsed.min(time_min);
                }
                self.errors = 0;
                self.unpause(now);
                self.go_on(now);
                Ok(())
            }
        }
    }

    /// The operator sets the share by hand; the rollout is paused, and goes on from there with the next greater step.
    pub(crate) fn handle_share(&mut self, now: Instant, share: Share) -> Result<(), Refusal> {
        match self.stage() {
            Stage::Verifying | Stage::Baking => return Err(Refusal::Flipped),
            Stage::Preview | Stage::Shifting if self.has_a_say() => {}
            stage => return Err(Refusal::NotNow(stage)),
        }
        if share == Share::FULL {
            return Err(Refusal::ShareIsFlip);
        }
        self.hold(now, PauseReason::Manual);
        self.begin_step(now, share);
        Ok(())
    }

    /// The operator wants the candidate discarded before the flip.
    pub(crate) fn handle_abort(&mut self, now: Instant, reason: String) -> Result<(), Refusal> {
        match self.stage() {
            Stage::Starting | Stage::Preview | Stage::Shifting | Stage::Flipping => {
                self.revert(now, Cause::Operator { reason });
                Ok(())
            }
            Stage::Verifying | Stage::Baking => Err(Refusal::Flipped),
            stage => Err(Refusal::NotNow(stage)),
        }
    }

    /// The operator wants stable to take over again.
    pub(crate) fn handle_rollback(&mut self, now: Instant, reason: String) -> Result<(), Refusal> {
        match self.stage() {
            Stage::Flipping | Stage::Verifying | Stage::Baking => {
                self.revert(now, Cause::Operator { reason });
                Ok(())
            }
            Stage::Starting | Stage::Preview | Stage::Shifting => Err(Refusal::NotFlipped),
            stage => Err(Refusal::NotNow(stage)),
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|deadline| now < deadline) {
            return;
        }
        let late = || "it was not done in time".to_owned();
        match (&self.state, self.paused) {
            (State::AwaitChecks { .. }, _) => {
                self.revert(now, Cause::CheckFailed { reason: late() })
            }
            (State::AwaitVerified { .. }, _) => {
                self.revert(now, Cause::VerifyFailed { reason: late() });
            }
            (State::AwaitStableVerified { why, .. }, _) => {
                let why = why.clone();
                self.conclude(why, Err(late()));
            }
            (
                _,
                Some(Paused {
                    reason: PauseReason::ByHand,
                    ..
                }),
            ) => self.revert(now, Cause::NotPromoted),
            (_, Some(Paused { reason, .. })) => self.hold(now, reason),
            _ => self.go_on(now),
        }
    }

    /// Does what is due, if nothing holds the rollout.
    fn go_on(&mut self, now: Instant) {
        if self.paused.is_some() || !self.has_a_say() {
            return;
        }
        if self.pace == Pace::Full {
            let reason = "promoted all the way".to_owned();
            return self.pass(now, Promotion::Automatic, Cause::Operator { reason });
        }
        if self.is_rehearsed() {
            if self.elapsed(now) >= self.plan.bake {
                self.revert(now, Cause::Rehearsed);
            }
            return;
        }
        if self.trouble {
            return self.wait_for_recovery(now, PauseReason::SharedTrouble);
        }
        if self.errors >= self.error_limit() {
            return self.hold(now, PauseReason::CannotMeasure);
        }
        if self.find(Finding::Failed).is_some() {
            // What the guards have said stays so until they say something else.
            return self.hold_without_way_back(now);
        }
        let elapsed = self.window().map(|window| window.elapsed(now));
        if elapsed.is_some_and(|elapsed| elapsed < self.time_min()) {
            return;
        }
        if self.degraded {
            return self.wait_for_recovery(now, PauseReason::CandidateDegraded);
        }
        match self.lacks() {
            None => self.pass(now, self.plan.promotion, Cause::Baked),
            Some(reason) if elapsed.is_none_or(|elapsed| elapsed >= self.time_max()) => {
                self.hold(now, reason);
            }
            Some(_) => {
                // From here on it is the deadline that is waited for.
                if let Some(window) = self.window_mut() {
                    *window = window.wound(now);
                }
            }
        }
    }

    /// Nothing that a rehearsal lacks keeps it from going back.
    fn is_rehearsed(&self) -> bool {
        self.purpose == Purpose::Rehearsal && matches!(self.state, State::Baking(_))
    }

    fn elapsed(&self, now: Instant) -> Duration {
        let window = self.window();
        window.map_or(Duration::ZERO, |window| window.elapsed(now))
    }

    /// What there is too little of for this step or the bake to be over.
    fn lacks(&self) -> Option<PauseReason> {
        let window = self.window()?;
        let unclear = [Finding::Inconclusive, Finding::Error];
        if window.units(self.units) < self.plan.units_min {
            Some(PauseReason::NotEnoughData)
        } else if self.plan.guards && self.readings.is_empty() {
            Some(PauseReason::Inconclusive)
        } else {
            let found = unclear.iter().any(|finding| self.find(*finding).is_some());
            found.then_some(PauseReason::Inconclusive)
        }
    }

    /// This step, or the bake, is over. The flip may be somebody else's decision.
    fn pass(&mut self, now: Instant, promotion: Promotion, cause: Cause) {
        if self.is_rehearsed() {
            return self.revert(now, Cause::Rehearsed);
        }
        if let State::Baking(_) = self.state {
            let why = self.explain(now, cause);
            self.state = State::AwaitCommitted { why };
            self.enter(Stage::Committing);
            return self.push(Output::Commit);
        }
        let step = match self.pace {
            Pace::Planned => self.plan.step_after(self.share),
            Pace::Full => None,
        };
        match (step, promotion) {
            (Some(share), _) => self.begin_step(now, share),
            (None, Promotion::ByHand) => self.await_promotion(now),
            (None, Promotion::Automatic) => {
                self.state = State::AwaitFlipped;
                self.enter(Stage::Flipping);
                self.push(Output::Flip);
            }
        }
    }

    fn begin_step(&mut self, now: Instant, share: Share) {
        let before = self.stage();
        self.state = if share == Share::NONE {
            State::Preview
        } else {
            State::Shifting(self.begin_window(now))
        };
        if self.stage() != before {
            self.enter(self.stage());
        }
        self.share = share;
        self.push(Output::SetShare(share));
    }

    fn begin_window(&self, now: Instant) -> Window {
        let mut window = Window::at(self.units);
        if self.paused.is_none() {
            window.started = Some(now);
        }
        window
    }

    fn hold_without_way_back(&mut self, now: Instant) {
        let reason = PauseReason::NoWayBack;
        if self.paused.is_none_or(|paused| paused.reason != reason) {
            self.hold(now, reason);
        }
    }

    /// Pauses until the operator says something.
    fn hold(&mut self, now: Instant, reason: PauseReason) {
        self.set_pause(
            now,
            Paused {
                reason,
                deadline: None,
            },
        );
    }

    /// Pauses until the operator decides on the flip, who may have no end of time for that.
    fn await_promotion(&mut self, now: Instant) {
        let time = self.plan.promotion_deadline;
        self.set_pause(
            now,
            Paused {
                reason: PauseReason::ByHand,
                deadline: time.map(|time| now + time),
            },
        );
    }

    /// Pauses until the reason has passed, or for as long as a step may take.
    fn wait_for_recovery(&mut self, now: Instant, reason: PauseReason) {
        let deadline = Some(now + self.plan.step_deadline);
        self.set_pause(now, Paused { reason, deadline });
    }

    fn set_pause(&mut self, now: Instant, paused: Paused) {
        let is_operators = matches!(paused.reason, PauseReason::Manual | PauseReason::ByHand);
        if self.purpose == Purpose::Rehearsal && !is_operators {
            let reason = paused.reason;
            return self.revert(now, Cause::Paused { reason });
        }
        self.paused = Some(paused);
        if let Some(window) = self.window_mut() {
            window.elapsed = window.elapsed(now);
            window.started = None;
        }
        let Paused { reason, .. } = paused;
        let explanation = self.explain(now, Cause::Paused { reason });
        let until = paused.until();
        self.push(Output::Paused(Pause { reason, until }, explanation));
    }

    fn recover(&mut self, now: Instant, passed: PauseReason) {
        if self
            .paused
            .is_some_and(|paused| paused.reason == passed && paused.deadline.is_some())
        {
            self.unpause(now);
            self.go_on(now);
        }
    }

    fn unpause(&mut self, now: Instant) {
        if self.paused.take().is_some() {
            if let Some(window) = self.window_mut() {
                window.started = Some(now);
            }
            self.push(Output::Resumed);
        }
    }

    /// The candidate is no good, or not wanted.
    fn revert(&mut self, now: Instant, cause: Cause) {
        if let Stage::Committing | Stage::Reverting | Stage::Over = self.stage() {
            // Behind the commit there is no way back but the handover's own.
            return;
        }
        let was_flipped = matches!(self.stage(), Stage::Verifying | Stage::Baking);
        let reason = cause.to_string();
        let why = self.explain(now, cause);
        self.give_up();
        self.push(if was_flipped {
            Output::RollBack { reason }
        } else {
            Output::Abort { reason }
        });
        self.state = State::AwaitReverted { why };
        self.enter(Stage::Reverting);
    }

    fn give_up(&mut self) {
        self.paused = None;
        if self.share != Share::NONE {
            self.share = Share::NONE;
            self.push(Output::SetShare(Share::NONE));
        }
    }

    /// After a rollback, with what the verification of stable has come to.
    fn conclude(&mut self, why: Explanation, verified: Result<(), String>) {
        match verified {
            Ok(()) => self.end(Outcome::RolledBack, why),
            Err(reason) => {
                let stable_unverified = Some(reason);
                self.end(
                    Outcome::Degraded,
                    Explanation {
                        stable_unverified,
                        ..why
                    },
                );
            }
        }
    }

    fn end(&mut self, outcome: Outcome, explanation: Explanation) {
        self.state = State::Over;
        self.enter(Stage::Over);
        self.push(Output::Verdict(Verdict {
            outcome,
            explanation,
        }));
    }

    /// Whether it is for this machine to say what comes next, rather than for the checks or the handover.
    fn has_a_say(&self) -> bool {
        matches!(
            self.state,
            State::Preview | State::Shifting(_) | State::Baking(_)
        )
    }

    /// Whether the candidate has, or may have, traffic to be judged by.
    fn is_judged(&self) -> bool {
        let stages = [
            Stage::Shifting,
            Stage::Flipping,
            Stage::Verifying,
            Stage::Baking,
        ];
        stages.contains(&self.stage())
    }

    fn window(&self) -> Option<&Window> {
        match &self.state {
            State::Shifting(window) | State::Baking(window) => Some(window),
            _ => None,
        }
    }

    fn window_mut(&mut self) -> Option<&mut Window> {
        match &mut self.state {
            State::Shifting(window) | State::Baking(window) => Some(window),
            _ => None,
        }
    }

    fn time_min(&self) -> Duration {
        match self.state {
            State::Baking(_) => self.plan.bake,
            _ => self.plan.step_min,
        }
    }

    fn time_max(&self) -> Duration {
        self.plan.step_deadline.max(self.time_min())
    }

    /// When the step or the bake has taken its time; if it has, when it can wait no longer for what it lacks.
    fn window_due(&self) -> Option<Instant> {
        let window = self.window()?;
        let time = if window.elapsed < self.time_min() {
            self.time_min()
        } else {
            self.time_max()
        };
        Some(window.started? + time.saturating_sub(window.elapsed))
    }

    fn error_limit(&self) -> u32 {
        self.plan.error_limit.max(1)
    }

    fn find(&self, finding: Finding) -> Option<&Reading> {
        self.readings
            .iter()
            .find(|reading| reading.finding == finding)
    }

    fn enter(&mut self, stage: Stage) {
        self.push(Output::Stage(stage));
    }

    fn push(&mut self, output: Output) {
        self.outputs.push_back(output);
    }
}

impl Window {
    fn at(units_before: u64) -> Self {
        Self {
            units_before,
            elapsed: Duration::ZERO,
            started: None,
        }
    }

    fn units(&self, units: u64) -> u64 {
        units.saturating_sub(self.units_before)
    }

    /// The same, with the clock started anew.
    fn wound(self, now: Instant) -> Self {
        Self {
            elapsed: self.elapsed(now),
            started: Some(now),
            ..self
        }
    }

    fn elapsed(&self, now: Instant) -> Duration {
        let running = self
            .started
            .map(|started| now.saturating_duration_since(started));
        self.elapsed + running.unwrap_or_default()
    }
}

impl Paused {
    fn until(self) -> Until {
        match (self.reason, self.deadline) {
            (PauseReason::ByHand, _) | (_, None) => Until::Operator,
            (_, Some(_)) => Until::Recovery,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::guard::Figure;
    use super::super::plan::{BAKE, ERROR_LIMIT, STEP_DEADLINE, STEP_MIN, UNITS_MIN};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A controller, a clock that is set by hand, and traffic.
    struct Run {
        controller: Controller,
        now: Instant,
        units: u64,
    }

    impl Run {
        fn new(plan: Rollout) -> Self {
            let controller = Controller::new(plan);
            let now = Instant::now();
            let mut run = Self {
                controller,
                now,
                units: 0,
            };
            assert_eq!(run.outputs(), [Output::Stage(Stage::Starting)]);
            run
        }

        /// Ready and checked.
        fn checked(plan: Rollout) -> Self {
            let mut run = Self::new(plan);
            run.controller.handle_ready(run.now);
            assert_eq!(
                run.outputs(),
                [Output::Stage(Stage::Preview), Output::RunChecks]
            );
            run.controller.handle_checked(run.now, Ok(()));
            run
        }

        fn flipped(plan: Rollout) -> Self {
            let mut run = Self::checked(plan);
            run.outputs();
            run.controller.handle_flipped(run.now);
            let verified = (Side::Candidate, Ok(()));
            run.controller
                .handle_verified(run.now, verified.0, verified.1);
            run.outputs();
            assert_eq!(run.controller.stage(), Stage::Baking);
            run
        }

        fn outputs(&mut self) -> Vec<Output> {
            std::iter::from_fn(|| self.controller.poll_output()).collect()
        }

        /// Time passes, and what is due happens.
        fn wait(&mut self, time: Duration) -> Vec<Output> {
            self.now += time;
            self.controller.handle_timeout(self.now);
            self.outputs()
        }

        fn look(&mut self, requests: u64, finding: Finding) -> Vec<Output> {
            self.units += requests;
            let reading = Reading {
                guard: "errors".to_owned(),
                finding,
                text: "candidate 3/412".to_owned(),
                figures: vec![Figure::new("evidence", 103.0)],
            };
            self.controller
                .handle_look(self.now, self.units, vec![reading]);
            self.outputs()
        }

        fn paused(&self) -> Option<(PauseReason, Until)> {
            self.controller
                .pause()
                .map(|pause| (pause.reason, pause.until))
        }
    }

    fn share(percent: u8) -> Output {
        Output::SetShare(Share::percent(percent))
    }

    fn verdict(outputs: &[Output]) -> &Verdict {
        match outputs.last() {
            Some(Output::Verdict(verdict)) => verdict,
            other => panic!("{other:?} is no verdict"),
        }
    }

    #[test]
    fn a_good_canary_goes_through_its_steps_and_is_promoted() {
        let mut run = Run::checked(Rollout::canary([1, 5]));
        assert_eq!(run.outputs(), [Output::Stage(Stage::Shifting), share(1)]);
        assert_eq!(run.look(UNITS_MIN, Finding::Fine), []);
        assert_eq!(run.wait(STEP_MIN - SECOND), []);
        assert_eq!(run.wait(SECOND), [share(5)]);
        assert_eq!(run.wait(STEP_MIN), []);
        assert_eq!(run.look(UNITS_MIN - 1, Finding::Fine), []);
        assert_eq!(
            run.look(1, Finding::Fine),
            [Output::Stage(Stage::Flipping), Output::Flip]
        );
        run.controller.handle_flipped(run.now);
        let verify = [
            Output::Stage(Stage::Verifying),
            Output::Verify(Side::Candidate),
        ];
        assert_eq!(run.outputs(), verify);
        run.controller
            .handle_verified(run.now, Side::Candidate, Ok(()));
        assert_eq!(run.outputs(), [Output::Stage(Stage::Baking)]);
        run.look(UNITS_MIN, Finding::Fine);
        assert_eq!(
            run.wait(BAKE),
            [Output::Stage(Stage::Committing), Output::Commit]
        );
        run.controller.handle_committed();
        let end = run.outputs();
        let Verdict {
            outcome,
            explanation,
        } = verdict(&end);
        assert_eq!(
            (*outcome, &explanation.cause),
            (Outcome::Promoted, &Cause::Baked)
        );
        assert_eq!(explanation.units, UNITS_MIN);
        assert_eq!(explanation.elapsed_ms, 300_000);
    }

    #[test]
    fn an_immediate_rollout_waits_for_its_bake_alone() {
        let mut run = Run::checked(Rollout::immediate());
        assert_eq!(
            run.outputs(),
            [Output::Stage(Stage::Flipping), Output::Flip]
        );
        let mut run = Run::flipped(Rollout::immediate());
        assert_eq!(run.wait(9 * SECOND), []);
        assert_eq!(
            run.wait(SECOND),
            [Output::Stage(Stage::Committing), Output::Commit]
        );
    }

    impl Run {
        fn rehearsal() -> Self {
            let plan = Rollout::blue_green().bake(9 * SECOND);
            let mut run = Self::new(plan.clone());
            run.controller = Controller::rehearsing(plan);
            run.controller.handle_ready(run.now);
            run.outputs();
            run
        }

        fn rehearsal_in_its_bake() -> Self {
            let mut run = Self::rehearsal();
            run.controller.handle_checked(run.now, Ok(()));
            run.outputs();
            run.controller.handle_flipped(run.now);
            run.controller
                .handle_verified(run.now, Side::Candidate, Ok(()));
            run.outputs();
            assert_eq!(run.controller.stage(), Stage::Baking);
            run
        }
    }

    fn goes_back(cause: Cause) -> [Output; 3] {
        let reason = cause.to_string();
        [
            Output::SetShare(Share::NONE),
            Output::RollBack { reason },
            Output::Stage(Stage::Reverting),
        ]
    }

    #[test]
    fn a_rehearsal_goes_back_after_its_bake_whatever_it_lacks_and_proves_that_stable_serves() {
        let mut run = Run::rehearsal_in_its_bake();
        run.controller.handle_trouble(run.now);
        run.controller.handle_degraded(run.now);
        run.look(1, Finding::Inconclusive);
        assert_eq!(run.wait(8 * SECOND), []);
        assert_eq!(run.wait(SECOND), goes_back(Cause::Rehearsed));
        let (how, reason) = (Reverted::AfterFlip, "over".to_owned());
        run.controller.handle_reverted(run.now, how, reason);
        assert_eq!(run.outputs(), [Output::Verify(Side::Stable)]);
        run.controller
            .handle_verified(run.now, Side::Stable, Ok(()));
        let end = run.outputs();
        let Verdict {
            outcome,
            explanation,
        } = verdict(&end);
        assert_eq!(
            (*outcome, &explanation.cause),
            (Outcome::RolledBack, &Cause::Rehearsed)
        );
    }

    #[test]
    fn no_promotion_makes_a_rehearsal_commit() {
        for promote in [Promote::Next, Promote::Full] {
            let mut run = Run::rehearsal_in_its_bake();
            run.controller.handle_promote(run.now, promote).unwrap();
            assert_eq!(run.outputs(), goes_back(Cause::Rehearsed));
        }
        let mut run = Run::rehearsal();
        run.controller
            .handle_promote(run.now, Promote::Full)
            .unwrap();
        run.controller.handle_checked(run.now, Ok(()));
        assert_eq!(
            run.outputs(),
            [Output::Stage(Stage::Flipping), Output::Flip]
        );
        run.controller.handle_flipped(run.now);
        run.controller
            .handle_verified(run.now, Side::Candidate, Ok(()));
        assert!(run.outputs().ends_with(&goes_back(Cause::Rehearsed)));
    }

    #[test]
    fn what_would_pause_a_rollout_before_its_flip_ends_a_rehearsal() {
        let mut run = Run::rehearsal();
        run.controller.handle_degraded(run.now);
        run.controller.handle_checked(run.now, Ok(()));
        let reason = PauseReason::CandidateDegraded;
        let reason = Cause::Paused { reason }.to_string();
        let abort = [Output::Abort { reason }, Output::Stage(Stage::Reverting)];
        assert_eq!(run.outputs(), abort);
    }

    #[test]
    fn guards_undo_a_rehearsal_as_they_undo_a_release() {
        let mut run = Run::rehearsal_in_its_bake();
        let guard = "errors".to_owned();
        let undone = run.look(9, Finding::Failed);
        assert_eq!(undone, goes_back(Cause::GuardFailed { guard }));
    }

    #[test]
    fn silence_pauses_at_the_deadline_and_not_before() {
        let mut run = Run::checked(Rollout::canary([1]));
        run.outputs();
        assert_eq!(run.wait(STEP_MIN), []);
        assert_eq!(
            run.controller.poll_timeout(),
            Some(run.now + STEP_DEADLINE - STEP_MIN)
        );
        assert_eq!(run.wait(STEP_DEADLINE - STEP_MIN - SECOND), []);
        run.wait(SECOND);
        assert_eq!(
            run.paused(),
            Some((PauseReason::NotEnoughData, Until::Operator))
        );
        assert_eq!(run.controller.poll_timeout(), None);
        run.controller.handle_resume(run.now).unwrap();
        assert_eq!(run.outputs(), [Output::Resumed]);
        assert_eq!(
            run.controller.poll_timeout(),
            Some(run.now + STEP_DEADLINE - STEP_MIN)
        );
        let flip = run.look(UNITS_MIN, Finding::Fine);
        assert_eq!(flip, [Output::Stage(Stage::Flipping), Output::Flip]);
    }

    #[test]
    fn a_guarded_rollout_does_not_pass_a_step_on_which_the_guards_have_said_nothing() {
        let mut run = Run::checked(Rollout::canary([1]));
        run.outputs();
        run.now += STEP_MIN;
        run.controller.handle_look(run.now, UNITS_MIN, Vec::new());
        assert_eq!(run.outputs(), []);
        run.wait(STEP_DEADLINE);
        assert_eq!(
            run.paused(),
            Some((PauseReason::Inconclusive, Until::Operator))
        );
    }

    #[test]
    fn what_the_guards_said_before_the_flip_does_not_pass_the_bake() {
        let mut run = Run::checked(Rollout::canary([1]).units_min(0));
        run.look(1, Finding::Fine);
        run.wait(STEP_MIN);
        run.controller.handle_flipped(run.now);
        run.controller
            .handle_verified(run.now, Side::Candidate, Ok(()));
        run.outputs();
        assert_eq!(run.wait(BAKE), []);
        run.wait(STEP_DEADLINE - BAKE);
        assert_eq!(
            run.paused(),
            Some((PauseReason::Inconclusive, Until::Operator))
        );
    }

    #[test]
    fn a_bake_without_traffic_pauses_while_stable_is_warm() {
        let mut run = Run::flipped(Rollout::blue_green());
        assert_eq!(run.wait(BAKE), []);
        run.wait(STEP_DEADLINE - BAKE);
        assert_eq!(
            run.paused(),
            Some((PauseReason::NotEnoughData, Until::Operator))
        );
        assert!(
            run.controller
                .handle_rollback(run.now, String::new())
                .is_ok()
        );
    }

    #[test]
    fn a_guard_that_failed_takes_the_share_first_and_explains_itself() {
        let mut run = Run::checked(Rollout::canary([5, 25]));
        run.outputs();
        run.now += 72 * SECOND;
        let outputs = run.look(208, Finding::Failed);
        assert_eq!(outputs[0], share(0));
        assert!(matches!(&outputs[1], Output::Abort { reason } if reason.contains("errors")));
        run.controller
            .handle_reverted(run.now, Reverted::BeforeFlip, "killed".to_owned());
        let end = run.outputs();
        let Verdict {
            outcome,
            explanation,
        } = verdict(&end);
        assert_eq!(*outcome, Outcome::Aborted);
        assert_eq!(
            explanation.to_string(),
            "the guard \"errors\" found the candidate worse; shifting at 5 % with 208 of 300 requests; errors failed: \
             candidate 3/412"
        );
        assert_eq!((explanation.step, explanation.elapsed_ms), ((1, 2), 72_000));
    }

    #[test]
    fn every_hard_trigger_undoes_a_rollout_at_once_even_while_it_is_paused() {
        let triggers = [
            Trigger::Exited {
                how: "signal 9".to_owned(),
            },
            Trigger::Stalled {
                waiting: 4,
                silent: 2 * SECOND,
            },
            Trigger::CheckFailed {
                reason: "503".to_owned(),
            },
        ];
        let words = [
            "signal 9",
            "4 connections wait and nobody has accepted one for 2000 ms",
            "503",
        ];
        for (trigger, words) in triggers.into_iter().zip(words) {
            let mut run = Run::flipped(Rollout::blue_green());
            run.controller.handle_pause(run.now).unwrap();
            run.outputs();
            run.controller.handle_trigger(run.now, trigger);
            let outputs = run.outputs();
            assert_eq!(outputs[0], share(0));
            assert!(matches!(&outputs[1], Output::RollBack { reason } if reason.contains(words)));
        }
    }

    #[test]
    fn where_there_is_no_way_back_a_guard_pauses_and_a_death_undoes_it_all_the_same() {
        let mut run = Run::flipped(Rollout::blue_green());
        run.controller.handle_way_back(false);
        assert!(matches!(
            run.look(1, Finding::Failed)[..],
            [Output::Paused(..)]
        ));
        assert_eq!(
            run.paused(),
            Some((PauseReason::NoWayBack, Until::Operator))
        );
        assert_eq!(run.look(1, Finding::Failed), []);
        run.controller.handle_way_back(true);
        let outputs = run.look(1, Finding::Failed);
        assert!(matches!(outputs[1], Output::RollBack { .. }), "{outputs:?}");

        let mut run = Run::flipped(Rollout::blue_green());
        run.controller.handle_way_back(false);
        let how = "signal: 9 (SIGKILL)".to_owned();
        run.controller
            .handle_trigger(run.now, Trigger::Exited { how });
        let outputs = run.outputs();
        assert!(matches!(outputs[1], Output::RollBack { .. }), "{outputs:?}");
    }

    #[test]
    fn what_stable_is_asked_after_a_rollback_is_not_answered_by_what_the_candidate_was_asked() {
        let mut run = Run::checked(Rollout::immediate());
        run.controller.handle_flipped(run.now);
        run.controller
            .handle_rollback(run.now, "slow".to_owned())
            .unwrap();
        run.controller
            .handle_reverted(run.now, Reverted::AfterFlip, String::new());
        run.outputs();
        run.controller
            .handle_verified(run.now, Side::Candidate, Ok(()));
        assert_eq!(run.outputs(), []);
        run.controller
            .handle_verified(run.now, Side::Stable, Ok(()));
        let end = run.outputs();
        assert_eq!(verdict(&end).outcome, Outcome::RolledBack);
        let cause = Cause::Operator {
            reason: "slow".to_owned(),
        };
        assert_eq!(verdict(&end).explanation.cause, cause);
    }

    #[test]
    fn a_stable_generation_that_does_not_answer_after_a_rollback_is_a_degraded_service() {
        let mut run = Run::flipped(Rollout::immediate());
        run.controller
            .handle_reverted(run.now, Reverted::AfterFlip, "signal 11".to_owned());
        assert!(run.outputs().contains(&Output::Verify(Side::Stable)));
        let end = run.wait(Rollout::immediate().verify_deadline);
        assert_eq!(verdict(&end).outcome, Outcome::Degraded);
        let words = verdict(&end).explanation.to_string();
        assert!(
            words.contains("signal 11") && words.contains("stable could not be verified"),
            "{words}"
        );
    }

    #[test]
    fn a_pause_stops_the_clock() {
        let mut run = Run::checked(Rollout::canary([1]));
        run.outputs();
        run.look(UNITS_MIN, Finding::Fine);
        run.wait(STEP_MIN / 2);
        run.controller.handle_pause(run.now).unwrap();
        assert_eq!(run.controller.poll_timeout(), None);
        run.now += 100 * STEP_MIN;
        run.controller.handle_resume(run.now).unwrap();
        assert_eq!(run.controller.poll_timeout(), Some(run.now + STEP_MIN / 2));
        run.outputs();
        assert_eq!(
            run.wait(STEP_MIN / 2),
            [Output::Stage(Stage::Flipping), Output::Flip]
        );
    }

    #[test]
    fn a_flip_by_hand_that_nobody_decides_on_in_time_is_none() {
        let plan = Rollout::blue_green().promotion(Promotion::ByHand);
        let mut run = Run::checked(plan.promotion_deadline(SECOND));
        assert_eq!(run.paused(), Some((PauseReason::ByHand, Until::Operator)));
        run.outputs();
        let given_up = run.wait(SECOND);
        assert!(matches!(
            &given_up[..],
            [Output::Abort { .. }, Output::Stage(Stage::Reverting)]
        ));
        run.controller
            .handle_reverted(run.now, Reverted::BeforeFlip, String::new());
        let outputs = run.outputs();
        assert_eq!(verdict(&outputs).explanation.cause, Cause::NotPromoted);
    }

    #[test]
    fn a_flip_by_hand_waits_for_promote_and_not_for_resume() {
        let mut run = Run::checked(Rollout::blue_green().promotion(Promotion::ByHand));
        assert_eq!(run.paused(), Some((PauseReason::ByHand, Until::Operator)));
        assert_eq!(
            run.controller.handle_resume(run.now),
            Err(Refusal::AwaitsPromotion)
        );
        run.outputs();
        run.controller
            .handle_promote(run.now, Promote::Next)
            .unwrap();
        let flip = [
            Output::Resumed,
            Output::Stage(Stage::Flipping),
            Output::Flip,
        ];
        assert_eq!(run.outputs(), flip);
    }

    #[test]
    fn promoted_all_the_way_it_skips_steps_and_bake_but_not_the_verification() {
        let mut run = Run::checked(Rollout::canary([1, 5, 25]));
        run.outputs();
        run.controller
            .handle_promote(run.now, Promote::Full)
            .unwrap();
        assert_eq!(
            run.outputs(),
            [Output::Stage(Stage::Flipping), Output::Flip]
        );
        run.controller.handle_flipped(run.now);
        run.outputs();
        run.controller
            .handle_verified(run.now, Side::Candidate, Ok(()));
        assert_eq!(run.outputs().last(), Some(&Output::Commit));
    }

    #[test]
    fn trouble_on_both_sides_pauses_until_it_is_over_or_the_operators() {
        let mut run = Run::checked(Rollout::canary([1]));
        run.outputs();
        run.look(UNITS_MIN, Finding::Fine);
        run.controller.handle_trouble(run.now);
        assert_eq!(
            run.paused(),
            Some((PauseReason::SharedTrouble, Until::Recovery))
        );
        run.now += SECOND;
        run.controller.handle_trouble_over(run.now);
        assert_eq!(run.paused(), None);
        run.controller.handle_trouble(run.now);
        run.wait(STEP_DEADLINE);
        assert_eq!(
            run.paused(),
            Some((PauseReason::SharedTrouble, Until::Operator))
        );
        run.controller.handle_trouble_over(run.now);
        assert!(run.paused().is_some(), "it had become the operator's");
    }

    #[test]
    fn a_degraded_candidate_finishes_its_step_and_is_not_promoted() {
        let mut run = Run::checked(Rollout::canary([1]));
        run.outputs();
        run.look(UNITS_MIN, Finding::Fine);
        run.controller.handle_degraded(run.now);
        assert_eq!(run.paused(), None);
        run.wait(STEP_MIN);
        assert_eq!(
            run.paused(),
            Some((PauseReason::CandidateDegraded, Until::Recovery))
        );
        run.outputs();
        run.controller.handle_recovered(run.now);
        let flip = [
            Output::Resumed,
            Output::Stage(Stage::Flipping),
            Output::Flip,
        ];
        assert_eq!(run.outputs(), flip);
    }

    #[test]
    fn the_fourth_look_in_a_row_that_cannot_measure_pauses() {
        let mut run = Run::checked(Rollout::canary([1]));
        run.outputs();
        for _ in 0..2 {
            for _ in 1..ERROR_LIMIT {
                assert_eq!(run.look(1, Finding::Error), []);
            }
            run.look(1, Finding::Fine);
        }
        for _ in 0..ERROR_LIMIT {
            run.look(1, Finding::Error);
        }
        assert_eq!(
            run.paused(),
            Some((PauseReason::CannotMeasure, Until::Operator))
        );
    }

    #[test]
    fn a_share_set_by_hand_pauses_and_goes_on_with_the_next_greater_step() {
        let mut run = Run::checked(Rollout::canary([1, 5, 25]));
        run.outputs();
        let refused = run.controller.handle_share(run.now, Share::FULL);
        assert_eq!(refused, Err(Refusal::ShareIsFlip));
        run.controller
            .handle_share(run.now, Share::percent(10))
            .unwrap();
        assert_eq!(run.outputs().last(), Some(&share(10)));
        assert_eq!(run.paused(), Some((PauseReason::Manual, Until::Operator)));
        run.controller.handle_resume(run.now).unwrap();
        run.look(UNITS_MIN, Finding::Fine);
        assert_eq!(run.wait(STEP_MIN).last(), Some(&share(25)));
    }

    #[test]
    fn commands_that_come_at_the_wrong_time_are_refused_and_change_nothing() {
        let mut run = Run::checked(Rollout::canary([1]));
        run.outputs();
        let before = run.controller.clone();
        let now = run.now;
        let rolled_back = run.controller.handle_rollback(now, String::new());
        assert_eq!(rolled_back, Err(Refusal::NotFlipped));
        assert_eq!(run.controller.handle_resume(now), Err(Refusal::NotPaused));
        assert_eq!(run.controller, before);
        let mut run = Run::flipped(Rollout::immediate());
        let aborted = run.controller.handle_abort(run.now, String::new());
        assert_eq!(aborted, Err(Refusal::Flipped));
        run.wait(10 * SECOND);
        let late = Err(Refusal::NotNow(Stage::Committing));
        assert_eq!(run.controller.handle_rollback(run.now, String::new()), late);
        assert_eq!(run.controller.handle_pause(run.now), late);
    }
}
