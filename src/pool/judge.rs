//! Judging candidates by what workers say that they have answered, by the guards of rollouts and with their defaults.
//!
//! Stable workers serve beside the candidates, so errors and slow requests are compared with theirs. Once no stable
//! worker is left there is nothing to compare with, and the update is as good as over.

use std::time::{Duration, Instant};

use super::controller::{Controller, ReleaseId};
use super::counted::Counted;
use crate::config::LOOK_INTERVAL;
use crate::control::SideState;
use crate::protocol::message::millis;
use crate::rollout::guard::{Finding, Guards, Sides};
use crate::rollout::{Cause, Explanation, Rollout, Share, Stage};

/// The guards of one update.
#[derive(Debug)]
pub(super) struct Judge {
    guards: Guards,
    candidate: ReleaseId,
    stable: ReleaseId,
    /// What had been counted when it began to judge.
    base: Sides,
    begun: Instant,
    next: Instant,
    /// Of the first guard that has failed, as it stood then.
    verdict: Option<Explanation>,
}

/// How far the update is at a look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// Workers that have been replaced, and how many are to be.
    pub(super) step: (usize, usize),
    /// The part of the ready workers that are candidates: about as much of the traffic is theirs.
    pub(super) share: Share,
}

impl Standing {
    /// None without an update.
    pub(super) fn of(machine: &Controller) -> Option<Self> {
        let update = machine.progress()?;
        let parts = update.ready * usize::from(Share::FULL.parts()) / machine.ready().max(1);
        Some(Self {
            step: (update.replaced, machine.wanted()),
            share: Share::per_10000(u16::try_from(parts).unwrap_or(u16::MAX)),
        })
    }
}

impl Judge {
    pub(super) fn begin(
        candidate: ReleaseId,
        stable: ReleaseId,
        counted: &Counted,
        now: Instant,
    ) -> Self {
        Self {
            // Of each worker by itself, where the counts are added up.
            guards: Guards::new(&Rollout::blue_green().warm_up(Duration::ZERO, 0)),
            candidate,
            stable,
            base: Sides {
                candidate: counted.of(candidate),
                stable: counted.of(stable),
                share: Share::NONE,
            },
            begun: now,
            next: now + LOOK_INTERVAL,
            verdict: None,
        }
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.next
    }

    /// What speaks against the candidate, if it is time to look and something does.
    pub(super) fn look(
        &mut self,
        counted: &Counted,
        standing: Standing,
        now: Instant,
    ) -> Option<String> {
        if now < self.next {
            return None;
        }
        self.next = now + LOOK_INTERVAL;
        let elapsed = now.saturating_duration_since(self.begun);
        let sides = self.sides(counted, standing.share);
        let readings = self.guards.look(elapsed, &sides);
        let mut failed = readings.iter();
        let failed = failed.find(|reading| reading.finding == Finding::Failed)?;
        let reason = format!("{}: {}", failed.guard, failed.text);
        let cause = Cause::GuardFailed {
            guard: failed.guard.clone(),
        };
        self.verdict.get_or_insert_with(|| Explanation {
            cause,
            stage: Stage::Shifting,
            step: standing.step,
            share: standing.share,
            units: sides.candidate.requests,
            units_min: 0,
            elapsed_ms: millis(elapsed),
            guards: readings,
            stable_unverified: None,
        });
        Some(reason)
    }

    /// An operator lets the update go on: a guard that has failed is to find new reasons.
    pub(super) fn forgive(&mut self, counted: &Counted, now: Instant) {
        if self.verdict.is_some() {
            *self = Self::begin(self.candidate, self.stable, counted, now);
        }
    }

    /// What has decided against the candidate, if a guard has.
    pub(super) fn verdict(&self) -> Option<Explanation> {
        self.verdict.clone()
    }

    /// What candidates and stable workers have answered since the update began.
    pub(super) fn counts(&self, counted: &Counted) -> [SideState; 2] {
        let Sides {
            candidate, stable, ..
        } = self.sides(counted, Share::NONE);
        [(self.candidate, candidate), (self.stable, stable)].map(|(generation, counts)| SideState {
            generation,
            requests: counts.requests,
            errors: counts.errors,
            slow: counts.slow,
            ..SideState::default()
        })
    }

    fn sides(&self, counted: &Counted, share: Share) -> Sides {
        Sides {
            candidate: counted.of(self.candidate).since(self.base.candidate),
            stable: counted.of(self.stable).since(self.base.stable),
            share,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::message::Tally;
    use crate::rollout::WARM_UP;

    const SLOW_US: Option<u64> = Some(7);

    /// What is found of a candidate of which so many requests in ten fail, and so many are slow.
    fn found(errs: u64, is_slow: u64) -> Option<(String, Explanation)> {
        let (mut counted, now) = (Counted::default(), Instant::now());
        counted.compare_by(SLOW_US);
        let mut judge = Judge::begin(2, 1, &counted, now);
        let told = Tally {
            slow_us: SLOW_US,
            ..Tally::default()
        };
        let (mut stable, mut candidate) = (told.clone(), told);
        let standing = Standing {
            step: (0, 4),
            share: Share::percent(20),
        };
        (1..200).find_map(|look| {
            let grown = |before: &Tally, by: u64, errors: u64, slow: u64| Tally {
                requests: before.requests + by,
                errors: before.errors + errors,
                slow: before.slow + slow,
                ..before.clone()
            };
            let one_in_a_hundred = u64::from(look % 3 == 0);
            let more = grown(&stable, 40, 0, one_in_a_hundred);
            let worse = grown(&candidate, 10, errs, is_slow);
            counted.hear((1, 1), WARM_UP, &stable, &more);
            counted.hear((2, 2), WARM_UP, &candidate, &worse);
            (stable, candidate) = (more, worse);
            let at = now + look * Duration::from_millis(50);
            let reason = judge.look(&counted, standing, at)?;
            Some((reason, judge.verdict().unwrap()))
        })
    }

    #[test]
    fn a_candidate_that_errs_or_is_slow_is_found_out_in_numbers_and_a_good_one_is_left_alone() {
        for (errs, slow, guard) in [(5, 0, "errors"), (0, 5, "slow")] {
            let (reason, verdict) = found(errs, slow).unwrap();
            assert!(
                reason.starts_with(&format!("{guard}: candidate ")),
                "{reason}"
            );
            let Cause::GuardFailed { guard: named } = &verdict.cause else {
                panic!("{verdict:?}");
            };
            assert_eq!(named, guard);
            let names: Vec<_> = verdict.guards.iter().map(|it| it.guard.as_str()).collect();
            assert_eq!(names, ["errors", "slow"]);
        }
        assert_eq!(found(0, 0), None);
    }
}
