//! A circuit breaker for deploys: after repeated failed rollouts, automatic ones are refused until somebody says otherwise.

use std::fmt;

use super::plan::Rollout;
use super::verdict::Outcome;

/// What there is to remember between rollouts. A promotion forgets it, so that no successor needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attempts {
    /// In a row, and by themselves: an operator's abort says nothing about the release.
    failed: u32,
}

/// Who wants a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A person, who has seen what happened.
    Operator,
    /// A signal, a timer, a pipeline.
    Automatic,
}

impl Attempts {
    /// Whether a rollout may begin. The operator always may.
    pub(crate) fn permit(&self, origin: Origin, plan: &Rollout) -> Result<(), TooManyFailed> {
        match origin {
            Origin::Automatic if self.failed >= plan.failures_max => {
                Err(TooManyFailed(self.failed))
            }
            Origin::Automatic | Origin::Operator => Ok(()),
        }
    }

    /// A rollout has ended by itself, or by the operator's word.
    pub(crate) fn record(&mut self, outcome: Outcome, origin: Origin) {
        match (outcome, origin) {
            (Outcome::Promoted, _) => self.failed = 0,
            // A person ended it, for reasons of their own; but what would not come back is nobody's wish.
            (Outcome::Aborted | Outcome::RolledBack, Origin::Operator) => {}
            (Outcome::Aborted | Outcome::RolledBack, Origin::Automatic)
            | (Outcome::Degraded, _) => {
                self.failed = self.failed.saturating_add(1);
            }
        }
    }

    /// Whether the last rollout has.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed > 0
    }

    /// Somebody says that automatic rollouts may begin again.
    pub(crate) fn reset(&mut self) {
        self.failed = 0;
    }
}

/// So many rollouts in a row have failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooManyFailed(u32);

impl fmt::Display for TooManyFailed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(failed) = self;
        write!(
            out,
            "{failed} rollouts in a row have failed; an operator has to begin the next one"
        )
    }
}

impl std::error::Error for TooManyFailed {}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTOMATIC: Origin = Origin::Automatic;

    fn plan() -> Rollout {
        Rollout::blue_green().failures_max(3)
    }

    fn failed(times: u32) -> Attempts {
        let mut attempts = Attempts::default();
        for _ in 0..times {
            attempts.record(Outcome::RolledBack, AUTOMATIC);
        }
        attempts
    }

    #[test]
    fn after_three_failed_rollouts_only_the_operator_begins_one() {
        assert_eq!(failed(2).permit(AUTOMATIC, &plan()), Ok(()));
        assert_eq!(failed(3).permit(AUTOMATIC, &plan()), Err(TooManyFailed(3)));
        assert_eq!(failed(3).permit(Origin::Operator, &plan()), Ok(()));
    }

    #[test]
    fn a_promotion_or_somebodys_word_closes_it_again() {
        let mut attempts = failed(3);
        attempts.record(Outcome::Promoted, Origin::Operator);
        assert_eq!(attempts.permit(AUTOMATIC, &plan()), Ok(()));
        let mut attempts = failed(3);
        attempts.reset();
        assert_eq!(attempts.permit(AUTOMATIC, &plan()), Ok(()));
    }

    #[test]
    fn an_operators_abort_does_not_count_and_a_degraded_service_always_does() {
        let mut attempts = failed(2);
        attempts.record(Outcome::Aborted, Origin::Operator);
        attempts.record(Outcome::RolledBack, Origin::Operator);
        assert_eq!(attempts.permit(AUTOMATIC, &plan()), Ok(()));
        attempts.record(Outcome::Degraded, Origin::Operator);
        assert!(attempts.permit(AUTOMATIC, &plan()).is_err());
    }

    #[test]
    fn an_immediate_rollout_is_never_refused() {
        assert_eq!(failed(99).permit(AUTOMATIC, &Rollout::immediate()), Ok(()));
    }
}
