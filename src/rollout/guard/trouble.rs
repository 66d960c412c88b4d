//! Trouble that both sides share: a database that fails, a network that is gone. It is nobody's release.

use super::{Counts, Sides};
use crate::rollout::share::Share;

/// Sees both sides fail at the same time.
#[derive(Clone, Debug)]
pub struct Trouble {
    worst: f64,
    seen: Sides,
    candidate: Recent,
    stable: Recent,
    shared: bool,
}

impl Trouble {
    /// Both sides are in trouble above this rate of errors, and no longer once stable's is below half of it.
    pub fn new(worst: Share) -> Self {
        Self {
            worst: worst.fraction(),
            seen: Sides::default(),
            candidate: Recent::default(),
            stable: Recent::default(),
            shared: false,
        }
    }

    /// Takes in what was counted since the last time. Whether both sides fail.
    pub fn observe(&mut self, sides: &Sides) -> bool {
        self.candidate
            .add(sides.candidate.since(self.seen.candidate));
        self.stable.add(sides.stable.since(self.seen.stable));
        self.seen = *sides;
        let both = [&self.candidate, &self.stable];
        if both.iter().all(|side| side.is_above(self.worst)) {
            self.shared = true;
        } else if !self.stable.is_above(self.worst / 2.0) {
            self.shared = false;
        }
        self.shared
    }
}

/// The last requests of one side, older ones fading.
#[derive(Clone, Debug, Default)]
struct Recent {
    requests: f64,
    errors: f64,
}

impl Recent {
    fn add(&mut self, fresh: Counts) {
        let kept = (-(fresh.requests as f64) / HORIZON).exp();
        self.requests = self.requests * kept + fresh.requests as f64;
        self.errors = self.errors * kept + fresh.errors as f64;
    }

    fn is_above(&self, rate: f64) -> bool {
        self.requests >= REQUESTS_MIN && self.errors > rate * self.requests
    }
}

/// After how many requests of a side an older one counts e times less.
const HORIZON: f64 = 200.0;
/// Of how many requests a rate of 5 % can be told at all.
const REQUESTS_MIN: f64 = 20.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Traffic(Sides);

    impl Traffic {
        fn answer(&mut self, requests: u64, candidate: u64, stable: u64) -> Sides {
            self.0.candidate.requests += requests;
            self.0.candidate.errors += candidate;
            self.0.stable.requests += requests;
            self.0.stable.errors += stable;
            self.0
        }
    }

    #[test]
    fn trouble_is_shared_while_both_sides_fail_and_over_when_stable_has_recovered() {
        let (mut traffic, mut trouble) = (Traffic::default(), Trouble::new(Share::percent(5)));
        assert!(!trouble.observe(&traffic.answer(1_000, 1, 1)));
        assert!(trouble.observe(&traffic.answer(100, 50, 50)));
        assert!(trouble.observe(&traffic.answer(100, 0, 50)));
        assert!(!trouble.observe(&traffic.answer(1_000, 0, 0)));
    }

    #[test]
    fn one_side_failing_is_not_shared_and_a_few_requests_are_no_trouble() {
        let (mut traffic, mut trouble) = (Traffic::default(), Trouble::new(Share::percent(5)));
        assert!(!trouble.observe(&traffic.answer(10, 10, 10)));
        let (mut traffic, mut trouble) = (Traffic::default(), Trouble::new(Share::percent(5)));
        assert!(!trouble.observe(&traffic.answer(100, 50, 0)));
        assert!(!trouble.observe(&traffic.answer(10_000, 0, 5_000)));
    }
}
