//! What workers say that they have answered, added up by release.
//!
//! A worker's first requests are left out, as those of a rollout's candidate are: each of an update's has cold caches.
//! Slow requests are compared only while all workers count them by the same threshold, which each of them hears at another
//! moment: until then none counts, on either side.

use std::collections::BTreeMap;
use std::time::Duration;

use super::controller::{ReleaseId, WorkerId};
use crate::protocol::message::Tally;
use crate::rollout::guard::{Counts, SAMPLES_MIN};
use crate::rollout::{WARM_UP, WARM_UP_UNITS};

/// What all workers of each release have counted, those included that are gone.
#[derive(Debug, Default)]
pub(super) struct Counted {
    releases: BTreeMap<ReleaseId, Counts>,
    /// What is slow, in microseconds. `None` is if nothing can be compared with.
    slow_us: Option<u64>,
    /// By what each worker counts that says anything.
    counted_by: BTreeMap<WorkerId, Option<u64>>,
}

impl Counted {
    /// A worker of this age has said how much it has counted, after what it had said before.
    pub(super) fn hear(
        &mut self,
        (worker, release): (WorkerId, ReleaseId),
        age: Duration,
        before: &Tally,
        now: &Tally,
    ) {
        self.counted_by.insert(worker, now.slow_us);
        // The requests of the report that ends it still belong to it.
        if before.requests < WARM_UP_UNITS && age < WARM_UP {
            return;
        }
        let counts = |tally: &Tally| Counts {
            requests: tally.requests,
            errors: tally.errors,
            slow: tally.slow,
        };
        let more = counts(now).since(counts(before));
        let is_slow_known = before.slow_us == now.slow_us && self.has_one_threshold();
        let all = self.releases.entry(release).or_default();
        all.requests = all.requests.saturating_add(more.requests);
        all.errors = all.errors.saturating_add(more.errors);
        if is_slow_known {
            all.slow = all.slow.saturating_add(more.slow);
        }
    }

    /// What this worker has counted stays, and it counts no more.
    pub(super) fn forget(&mut self, worker: WorkerId) {
        self.counted_by.remove(&worker);
    }

    /// Forgets releases that nobody will ask about any more, and whose workers are gone.
    pub(super) fn retain(&mut self, is_needed: impl Fn(ReleaseId) -> bool) {
        self.releases.retain(|release, _| is_needed(*release));
    }

    /// From now on this is what is slow.
    pub(super) fn compare_by(&mut self, slow_us: Option<u64>) {
        self.slow_us = slow_us;
    }

    pub(super) fn of(&self, release: ReleaseId) -> Counts {
        self.releases.get(&release).copied().unwrap_or_default()
    }

    fn has_one_threshold(&self) -> bool {
        let mut all = self.counted_by.values();
        self.slow_us.is_some() && all.all(|by| *by == self.slow_us)
    }
}

/// What is slow, in microseconds, by what stable's workers have said: the median of their 99th percentiles. None if none
/// of them has answered enough to know its own.
pub(super) fn slow_threshold<'a>(stable: impl Iterator<Item = &'a Tally>) -> Option<u64> {
    let known = stable.filter(|tally| tally.requests >= SAMPLES_MIN as u64);
    let mut tails: Vec<u64> = known.filter_map(|tally| tally.p99_us).collect();
    tails.sort_unstable();
    tails.get(tails.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(requests: u64, errors: u64, slow: u64, slow_us: Option<u64>) -> Tally {
        Tally {
            requests,
            errors,
            slow,
            slow_us,
            ..Tally::default()
        }
    }

    const WARM: Duration = WARM_UP;

    #[test]
    fn counts_of_a_release_outlive_its_workers() {
        let mut counted = Counted::default();
        let (early, late) = (tally(10, 1, 0, None), tally(15, 2, 0, None));
        counted.hear((1, 1), WARM, &Tally::default(), &early);
        counted.hear((1, 1), WARM, &early, &late);
        counted.forget(1);
        counted.hear((2, 1), WARM, &Tally::default(), &tally(5, 0, 0, None));
        let all = counted.of(1);
        assert_eq!((all.requests, all.errors), (20, 2));
        assert_eq!(counted.of(2), Counts::default());
    }

    #[test]
    fn a_release_that_nobody_needs_takes_no_room() {
        let mut counted = Counted::default();
        for release in 1..100 {
            let who = (release, release);
            counted.hear(who, WARM, &Tally::default(), &tally(10, 1, 0, None));
            counted.forget(release);
            counted.retain(|it| it + 1 >= release);
        }
        assert_eq!(counted.releases.len(), 2);
    }

    #[test]
    fn the_first_requests_of_each_worker_are_kept_from_the_guards() {
        let mut counted = Counted::default();
        let young = WARM_UP / 2;
        let (cold, warm) = (tally(49, 40, 0, None), tally(70, 50, 0, None));
        for worker in [1, 2] {
            counted.hear((worker, 1), young, &Tally::default(), &cold);
            counted.hear((worker, 1), young, &cold, &warm);
            assert_eq!(counted.of(1).errors, 3 * (worker - 1));
            counted.hear((worker, 1), young, &warm, &tally(80, 53, 0, None));
        }
        assert_eq!((counted.of(1).requests, counted.of(1).errors), (20, 6));
        // Where few come it ends by time.
        counted.hear((3, 1), WARM_UP, &Tally::default(), &tally(1, 1, 0, None));
        assert_eq!(counted.of(1).errors, 7);
    }

    #[test]
    fn slow_requests_count_once_all_workers_count_them_by_what_they_were_told() {
        let mut counted = Counted::default();
        counted.compare_by(Some(7));
        let (old, new) = (tally(10, 0, 3, None), tally(10, 0, 3, Some(7)));
        let (more, most) = (tally(20, 0, 8, Some(7)), tally(30, 0, 9, Some(7)));
        // The first worker has heard of it, the second has not.
        counted.hear((1, 1), WARM, &Tally::default(), &new);
        counted.hear((2, 2), WARM, &Tally::default(), &old);
        counted.hear((1, 1), WARM, &new, &more);
        assert_eq!((counted.of(1).slow, counted.of(2).slow), (0, 0));
        // What the second has counted by another threshold does not count, what follows does.
        counted.hear((2, 2), WARM, &old, &new);
        counted.hear((2, 2), WARM, &new, &more);
        assert_eq!((counted.of(1).slow, counted.of(2).slow), (0, 5));
        // With one that never says by what there is nothing to compare, for as long as it lives.
        counted.hear((3, 1), WARM, &Tally::default(), &tally(1, 0, 0, None));
        counted.hear((2, 2), WARM, &more, &most);
        assert_eq!(counted.of(2).slow, 5);
        counted.forget(3);
        counted.hear((2, 2), WARM, &more, &most);
        assert_eq!(counted.of(2).slow, 6);
    }

    #[test]
    fn nothing_is_slow_where_nobody_knows_what_it_is_compared_with() {
        let mut counted = Counted::default();
        let (none, some) = (tally(10, 0, 0, None), tally(20, 0, 9, None));
        counted.hear((1, 1), WARM, &Tally::default(), &none);
        counted.hear((1, 1), WARM, &none, &some);
        assert_eq!(counted.of(1).slow, 0);
    }

    #[test]
    fn what_is_slow_is_the_median_of_what_those_say_who_have_answered_enough() {
        let tally = |requests, p99_us| Tally {
            requests,
            p99_us: Some(p99_us),
            ..Tally::default()
        };
        let workers = [tally(100, 3), tally(100, 9), tally(99, 90), tally(500, 4)];
        assert_eq!(slow_threshold(workers.iter()), Some(4));
        assert_eq!(slow_threshold(workers[2..3].iter()), None);
    }
}
