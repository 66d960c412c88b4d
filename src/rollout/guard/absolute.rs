//! The guard for a candidate that serves alone: Wald's sequential probability ratio test against a known rate.
//!
//! Each error adds ln(p₁/p₀) to a sum, each other request ln((1−p₁)/(1−p₀)), where p₀ is the rate that stable had and p₁
//! the worst that is tolerated. At ln((1−β)/α) the candidate has failed, at ln(β/(1−α)) this round is passed.
//!
//! A release may break later than in its first hundred requests, so after a round comes another one. Round k may abort
//! with α·6/(π²k²): together that is α.

use super::{Counts, Figure, Finding, Guard, Reading, SAMPLES_MIN, Sides, Signal};
use crate::rollout::share::Share;

/// Judges how often requests fail (or are slow) by a rate that is known beforehand.
#[derive(Clone, Debug)]
pub struct Absolute {
    signal: Signal,
    expected: f64,
    worst: f64,
    alpha: f64,
    seen: Counts,
    sum: f64,
    /// From 1.
    round: u32,
    failed: bool,
}

impl Absolute {
    /// For errors. `history` is what stable has answered before; little or none of it counts as if one request in 200 had
    /// failed. `worst` is the rate that is still tolerated, or twice stable's if that is more. `alpha`, above 0 and below
    /// 1, is the part of the rollouts without a regression that it may abort.
    pub fn errors(history: Counts, worst: Share, alpha: f64) -> Self {
        let rate = (history.errors as f64 + 1.0) / (history.requests as f64 + HISTORY_MIN);
        Self::new(
            Signal::Errors,
            rate.clamp(EXPECTED_MIN, EXPECTED_MAX),
            worst.fraction(),
            alpha,
        )
    }

    /// For slow requests, of which stable's 99th percentile lets one in 100 be. Of how many requests in `history` that was
    /// told decides how far it can be trusted: of few it may well be a threshold that one in 30 exceeds. `worst` is the
    /// rate that is still tolerated, or five times the expected one if that is more.
    pub fn slow(history: Counts, worst: Share, alpha: f64) -> Self {
        let requests = history.requests.max(SAMPLES_MIN as u64) as f64;
        let beyond = SLOW_EXPECTED * requests;
        let expected = (beyond + DEVIATIONS * beyond.sqrt() + 1.0) / requests;
        let worst = worst.fraction().max(SLOW_RATIO * expected);
        Self::new(Signal::Slow, expected, worst, alpha)
    }

    fn new(signal: Signal, expected: f64, worst: f64, alpha: f64) -> Self {
        Self {
            signal,
            expected,
            // Twice as much of what is nearly everything is more than everything.
            worst: worst.max(2.0 * expected).min((1.0 + expected) / 2.0),
            alpha,
            seen: Counts::default(),
            sum: 0.0,
            round: 1,
            failed: false,
        }
    }

    /// Takes in what was counted since the last time, without the words of [`Guard::look`].
    pub fn observe(&mut self, candidate: Counts) -> Finding {
        let fresh = candidate.since(self.seen);
        self.seen = candidate;
        let bad = fresh.of(self.signal);
        let good = fresh.requests.saturating_sub(bad);
        self.sum += bad as f64 * (self.worst / self.expected).ln();
        self.sum += good as f64 * ((1.0 - self.worst) / (1.0 - self.expected)).ln();
        if self.sum >= self.limit() {
            self.failed = true;
        } else if self.sum <= self.pass() {
            self.sum = 0.0;
            self.round = self.round.saturating_add(1);
        }
        self.finding()
    }

    /// How many rounds the candidate has passed.
    pub fn rounds_passed(&self) -> u32 {
        self.round - 1
    }

    fn finding(&self) -> Finding {
        match (self.failed, self.rounds_passed()) {
            (true, _) => Finding::Failed,
            (false, 0) => Finding::Inconclusive,
            (false, _) => Finding::Fine,
        }
    }

    fn limit(&self) -> f64 {
        ((1.0 - BETA) / self.alpha_of_round()).ln()
    }

    fn pass(&self) -> f64 {
        (BETA / (1.0 - self.alpha_of_round())).ln()
    }

    fn alpha_of_round(&self) -> f64 {
        let rounds_all = std::f64::consts::PI.powi(2) / 6.0;
        self.alpha / (rounds_all * f64::from(self.round).powi(2))
    }
}

impl Guard for Absolute {
    fn name(&self) -> &str {
        self.signal.name()
    }

    fn look(&mut self, sides: &Sides) -> Reading {
        let finding = self.observe(sides.candidate);
        let Counts { requests, .. } = sides.candidate;
        let bad = sides.candidate.of(self.signal);
        let (sum, limit, passed) = (self.sum, self.limit(), self.rounds_passed());
        let [expected, worst] = [self.expected, self.worst].map(|rate| rate * 100.0);
        Reading {
            guard: self.name().to_owned(),
            finding,
            text: format!(
                "candidate {bad}/{requests}, expected {expected:.2} %, tolerated {worst:.2} %, sum {sum:.1} (undone at \
                 {limit:.1}), {passed} rounds passed"
            ),
            figures: vec![
                Figure::new("candidate", bad as f64),
                Figure::new("candidate_requests", requests as f64),
                Figure::new("expected_rate", self.expected),
                Figure::new("worst_rate", self.worst),
                Figure::new("sum", sum),
                Figure::new("sum_limit", limit),
                Figure::new("rounds_passed", f64::from(passed)),
            ],
        }
    }
}

/// In how much of all rollouts a candidate with the worst rate may pass a round.
const BETA: f64 = 0.05;
/// How many requests without an error, but one, stand for a history that is not there.
const HISTORY_MIN: f64 = 200.0;
/// A stable generation without any error will have one some day.
const EXPECTED_MIN: f64 = 0.001;
/// One where everything fails leaves nothing that could be worse.
const EXPECTED_MAX: f64 = 0.9;
/// The threshold of slow requests is stable's 99th percentile.
const SLOW_EXPECTED: f64 = 0.01;
/// How far the percentile of so many requests may be from that of all: one in 700 is further.
const DEVIATIONS: f64 = 3.0;
/// There is nothing to compare with at the same time, and machines have slow moments: only what is far slower is worse.
const SLOW_RATIO: f64 = 5.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn history(requests: u64, errors: u64) -> Counts {
        Counts {
            requests,
            errors,
            slow: 0,
        }
    }

    fn guard(history: Counts) -> Absolute {
        Absolute::errors(history, Share::percent(5), 0.01)
    }

    #[test]
    fn half_of_the_requests_failing_is_found_in_a_handful() {
        let mut guard = guard(history(100_000, 500));
        let failed = (1..100).find(|n| guard.observe(history(2 * n, *n)) == Finding::Failed);
        assert!(failed.is_some_and(|errors| errors <= 4), "{failed:?}");
    }

    #[test]
    fn a_good_candidate_passes_after_some_65_requests_and_not_on_silence() {
        let mut guard = guard(history(100_000, 500));
        assert_eq!(guard.observe(history(0, 0)), Finding::Inconclusive);
        let passed = (1..1_000).find(|n| guard.observe(history(*n, 0)) == Finding::Fine);
        assert_eq!(passed, Some(65));
    }

    #[test]
    fn a_release_that_breaks_after_an_hour_is_still_found() {
        let mut guard = guard(history(100_000, 500));
        let hour = 360_000;
        for second in 1..=3_600 {
            assert_ne!(
                guard.observe(history(second * 100, second / 2)),
                Finding::Failed
            );
        }
        let found =
            (1..500).find(|n| guard.observe(history(hour + 2 * n, 1_800 + n)) == Finding::Failed);
        assert!(found.is_some_and(|errors| errors <= 15), "{found:?}");
    }

    #[test]
    fn what_is_tolerated_is_twice_what_stable_has_if_that_is_more() {
        assert_eq!(guard(history(1_000_000, 0)).worst, 0.05);
        assert!((guard(history(1_000_000, 100_000)).worst - 0.2).abs() < 1e-3);
        let hopeless = guard(history(1_000_000, 1_000_000));
        assert!(hopeless.expected < hopeless.worst && hopeless.worst < 1.0);
    }

    #[test]
    fn no_history_counts_as_one_error_in_200() {
        assert_eq!(guard(history(0, 0)).expected, 0.005);
    }

    #[test]
    fn a_tail_is_judged_by_how_well_stables_is_known() {
        let slow = |known| Absolute::slow(history(known, 0), Share::percent(5), 0.005);
        let seen = Counts {
            slow: 40,
            ..history(1_000, 0)
        };
        assert_eq!(slow(100_000).observe(seen), Finding::Failed);
        assert_ne!(slow(200).observe(seen), Finding::Failed);
        let quarter = Counts {
            slow: 25,
            ..history(100, 0)
        };
        assert_eq!(slow(200).observe(quarter), Finding::Failed);
    }

    #[test]
    fn a_look_at_many_requests_judges_them_by_their_rate() {
        let mut guard = guard(history(100_000, 500));
        assert_eq!(guard.observe(history(3_000, 10)), Finding::Fine);
        assert_eq!(guard.observe(history(6_000, 310)), Finding::Failed);
    }
}
