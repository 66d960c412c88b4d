//! Judging candidates by what workers say that they have answered, by the guards of rollouts.
//!
//! Only errors are compared. What is slow nobody here could tell: workers count by themselves and are told nothing.

use std::collections::BTreeMap;
use std::time::Instant;

use super::controller::ReleaseId;
use crate::config::LOOK_INTERVAL;
use crate::protocol::message::Tally;
use crate::rollout::guard::{Counts, Finding, Guards, Sides};
use crate::rollout::{Rollout, Share};

/// What all workers of each release have counted, those included that are gone.
#[derive(Debug, Default)]
pub(super) struct Counted(BTreeMap<ReleaseId, Counts>);

/// The guards of one update.
#[derive(Debug)]
pub(super) struct Judge {
    guards: Guards,
    candidate: ReleaseId,
    stable: ReleaseId,
    /// What both had counted when it began to look.
    base: Base,
    begun: Instant,
    next: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Base {
    candidate: Counts,
    stable: Counts,
}

impl Counted {
    /// A worker of this release has said how much it has counted, after what it had said before.
    pub(super) fn add(&mut self, release: ReleaseId, before: Option<&Tally>, now: &Tally) {
        let counts = |tally: &Tally| Counts {
            requests: tally.requests,
            errors: tally.errors,
            slow: 0,
        };
        let more = counts(now).since(before.map_or_else(Counts::default, counts));
        let all = self.0.entry(release).or_default();
        all.requests = all.requests.saturating_add(more.requests);
        all.errors = all.errors.saturating_add(more.errors);
    }

    /// Forgets releases that nobody will ask about any more, and whose workers are gone.
    pub(super) fn retain(&mut self, is_needed: impl Fn(ReleaseId) -> bool) {
        self.0.retain(|release, _| is_needed(*release));
    }

    fn of(&self, release: ReleaseId) -> Counts {
        self.0.get(&release).copied().unwrap_or_default()
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
            guards: Guards::new(&Rollout::blue_green()),
            candidate,
            stable,
            base: Base {
                candidate: counted.of(candidate),
                stable: counted.of(stable),
            },
            begun: now,
            next: now + LOOK_INTERVAL,
        }
    }

    /// Judges by what is counted from now on: what has been found before is forgiven.
    pub(super) fn begin_again(&mut self, counted: &Counted, now: Instant) {
        *self = Self::begin(self.candidate, self.stable, counted, now);
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.next
    }

    /// What speaks against the candidate, if it is time to look and something does.
    pub(super) fn look(&mut self, counted: &Counted, now: Instant) -> Option<String> {
        if now < self.next {
            return None;
        }
        self.next = now + LOOK_INTERVAL;
        let sides = Sides {
            candidate: counted.of(self.candidate).since(self.base.candidate),
            stable: counted.of(self.stable).since(self.base.stable),
            share: Share::NONE,
        };
        let readings = self
            .guards
            .look(now.saturating_duration_since(self.begun), &sides);
        let failed = readings
            .into_iter()
            .find(|reading| reading.finding == Finding::Failed)?;
        Some(format!("{}: {}", failed.guard, failed.text))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn tally(requests: u64, errors: u64) -> Tally {
        Tally {
            requests,
            errors,
            ..Tally::default()
        }
    }

    #[test]
    fn counts_of_a_release_outlive_its_workers() {
        let mut counted = Counted::default();
        counted.add(1, None, &tally(10, 1));
        counted.add(1, Some(&tally(10, 1)), &tally(15, 2));
        counted.add(1, None, &tally(5, 0));
        let all = counted.of(1);
        assert_eq!((all.requests, all.errors), (20, 2));
        assert_eq!(counted.of(2), Counts::default());
    }

    #[test]
    fn a_release_that_nobody_needs_takes_no_room() {
        let mut counted = Counted::default();
        for release in 1..100 {
            counted.add(release, None, &tally(10, 1));
            counted.retain(|it| it + 1 >= release);
        }
        assert_eq!(counted.0.len(), 2);
    }

    /// Ten seconds of clients, whom the candidate answers errors only if it `errs`, and what the judge finds.
    fn watched(
        judge: &mut Judge,
        counted: &mut Counted,
        begun: Instant,
        errs: bool,
    ) -> Option<String> {
        let mut found = None;
        for look in 1..=200 {
            counted.add(1, None, &tally(40, 0));
            counted.add(2, None, &tally(10, u64::from(errs) * 10));
            let at = begun + look * Duration::from_millis(50);
            found = found.or_else(|| judge.look(counted, at));
        }
        found
    }

    #[test]
    fn a_candidate_that_errs_is_found_out_and_one_that_does_not_is_left_alone() {
        for errs in [true, false] {
            let (mut counted, now) = (Counted::default(), Instant::now());
            let mut judge = Judge::begin(2, 1, &counted, now);
            let found = watched(&mut judge, &mut counted, now, errs);
            assert_eq!(found.is_some(), errs, "{found:?}");
        }
    }

    #[test]
    fn what_was_found_before_a_resume_is_forgiven_and_what_comes_after_it_is_found_again() {
        let (mut counted, mut now) = (Counted::default(), Instant::now());
        let mut judge = Judge::begin(2, 1, &counted, now);
        for errs in [true, false, true] {
            judge.begin_again(&counted, now);
            let found = watched(&mut judge, &mut counted, now, errs);
            assert_eq!(found.is_some(), errs, "{found:?}");
            now += Duration::from_secs(20);
        }
    }
}
