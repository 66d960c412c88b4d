//! What a successor runs, and how it comes to exist: the next release, the one before, or whatever somebody else has
//! started.

use super::Driver;
use super::drill::Rehearsal;
use super::operator::Done;
use super::shared::lock;
use crate::control::Strategy;
use crate::launch::{ColdRollback, Image, Launched};
use crate::rollout::attempts::Origin;

/// What a successor runs.
#[derive(Debug)]
pub(crate) enum Release {
    /// What its program's path leads to when it is launched.
    Next,
    /// The one before, which is held.
    Before(Box<Image>, ColdRollback),
    /// The one that serves, which is held, for a drill.
    Same(Box<Image>, Rehearsal),
    /// Whatever somebody else has started; it is taken out when it is launched.
    Theirs(Option<Box<Launched>>),
}

impl Driver {
    /// What the release before has served was judged then: it takes over as soon as it is ready.
    pub(super) fn roll_back_cold(&mut self, reason: String) -> Done {
        let plan = self.plan(Some(Strategy::Immediate), None)?;
        let plan = plan.baked_no_longer_than(&self.config.rollout);
        self.may_upgrade(&plan, Origin::Operator)?;
        let image = lock(&self.shared.images).before().cloned()?;
        let to = image.release().generation;
        let release = Release::Before(Box::new(image), ColdRollback { to, reason });
        self.upgrade(None, plan, Origin::Operator, release)
    }

    /// A process that somebody else has started asks for the role. That may be a supervisor that starts it again and
    /// again, so it is refused after too many failures like an upgrade by a signal.
    pub(super) fn hand_over_to(&mut self, successor: Launched) -> Done {
        let plan = self.config.rollout.clone();
        let pid = successor.pid;
        let is_ours = |elder: &super::elders::Elder| elder.pid == pid;
        let refusal = if let Err(reason) = self.may_upgrade(&plan, Origin::Automatic) {
            reason
        } else if pid == std::process::id() || self.elders.iter().any(is_ours) {
            format!("process {pid} is a generation of this service")
        } else if !self.has_capacity() {
            let elders = self.elders.describe();
            format!("too many generations are alive: {elders}")
        } else {
            let release = Release::Theirs(Some(Box::new(successor)));
            return self.upgrade(None, plan, Origin::Automatic, release);
        };
        let (generation, own) = (self.generation, std::process::id());
        Err(format!(
            "{refusal}; generation {generation} (pid {own}) serves"
        ))
    }
}
