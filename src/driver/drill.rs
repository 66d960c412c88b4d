//! Drills: the release that serves takes over from itself on the real listeners, and goes back.

use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::Driver;
use super::downward::Downward;
use super::operator::Done;
use super::release::Release;
use super::shared::{Shared, lock};
use crate::config::{DRILL_BAKE, DRILL_FAULT_BAKE, DRILL_VERIFY, DRILL_WARM_UP};
use crate::control::{Drill, Fault, Losses, Verification};
use crate::protocol::message::{Slot, micros, millis};
use crate::rollout::attempts::Origin;
use crate::rollout::{Explanation, Outcome, Rollout, WARM_UP_UNITS};
use crate::state::{State, own_blob};

/// What is special about a drill.
#[derive(Clone, Debug)]
pub(crate) struct Rehearsal {
    /// What the candidate is to do wrong.
    pub(crate) fault: Option<Fault>,
    /// Who answered before it began.
    pub(crate) before: Verification,
}

/// What its candidate is told: that it is one.
#[derive(Debug, Serialize, Deserialize)]
struct Part {
    #[serde(default)]
    fault: Option<Fault>,
}

impl Driver {
    /// The candidate is started from the held image: what is on disk may be another release by now.
    pub(super) fn drill(&mut self, rehearsal: Rehearsal) -> Done {
        let plan = plan(&self.config.rollout, rehearsal.fault);
        self.may_upgrade(&plan, Origin::Operator)?;
        let image = lock(&self.shared.images).own().cloned()?;
        let release = Release::Same(Box::new(image), rehearsal);
        self.upgrade(None, plan, Origin::Operator, release)
    }
}

impl Downward {
    /// What came of it, if it was a drill. `reason` is the handover's.
    pub(super) fn drilled(
        &self,
        outcome: Outcome,
        explanation: &Explanation,
        reason: &str,
    ) -> Option<Drill> {
        let rehearsal = self.rehearsal()?;
        let since = lock(&self.verifications).clone();
        let verifications: Vec<_> = [rehearsal.before.clone()]
            .into_iter()
            .chain(since)
            .collect();
        let forwarded = self.forwarded().unwrap_or_default().total;
        let (candidate, _) = self.sides();
        let candidate = candidate.unwrap_or_default();
        let mut drill = Drill {
            generation: self.generation,
            at_ms: self.asked_at_ms,
            passed: false,
            reason: String::new(),
            fault: rehearsal.fault,
            flip_took_us: (!self.flip_took.is_zero()).then(|| micros(self.flip_took)),
            rollback_took_us: self.rollback_took.map(micros),
            took_ms: millis(self.asked_at.elapsed()),
            requests: candidate.requests,
            errors: candidate.errors,
            losses: Losses {
                missed: verifications.iter().map(Verification::missed).sum(),
                taken_back: forwarded.taken_back,
                lost: forwarded.lost,
            },
            verifications,
            guards: explanation.guards.clone(),
        };
        drill.judge(outcome, &explanation.cause);
        if drill.passed && outcome == Outcome::Aborted {
            // It says more than that the candidate was ended.
            drill.reason = reason.to_owned();
        }
        Some(drill)
    }
}

/// All at once, and judged by the service's own measure, but not for long.
fn plan(built: &Rollout, fault: Option<Fault>) -> Rollout {
    let bake = match fault {
        None => DRILL_BAKE,
        Some(_) => DRILL_FAULT_BAKE,
    };
    Rollout::blue_green()
        .for_clients_of(built)
        .stall_after(built.stall_after)
        .verify_deadline(DRILL_VERIFY)
        .warm_up(DRILL_WARM_UP, WARM_UP_UNITS)
        .bake(bake)
}

/// What a successor is offered: the last drill, and what it has to know if it is the candidate of one.
pub(super) fn slots(
    shared: &Shared,
    rehearsal: Option<&Rehearsal>,
) -> io::Result<Vec<(Slot, OwnedFd)>> {
    let mut slots = Vec::new();
    if let Some(drill) = &*shared.drill.borrow() {
        slots.push(own_blob(LAST, &serde_json::to_vec(drill)?)?);
    }
    if let Some(Rehearsal { fault, .. }) = rehearsal {
        let part = Part { fault: *fault };
        slots.push(own_blob(PART, &serde_json::to_vec(&part)?)?);
    }
    Ok(slots)
}

/// As a successor. Says whether it is the candidate of a drill.
pub(super) fn take(offered: &mut State, shared: &Shared) -> bool {
    let last = offered.take_blob(LAST);
    // What cannot be understood is worth less than a handover.
    let last = last.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    shared.drill.send_replace(last);
    let part = offered.take_blob(PART);
    let part: Option<Part> = part.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if let Some(fault) = part.as_ref().and_then(|part| part.fault) {
        shared.injected.inject(fault);
    }
    part.is_some()
}

/// The slot of the last drill.
const LAST: &str = "handover.drill";
/// The slot of what makes a successor the candidate of one.
const PART: &str = "handover.rehearsal";
