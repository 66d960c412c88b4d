//! The guard for a candidate that serves beside a stable generation: a mixture sequential probability ratio test on where
//! errors land.
//!
//! If the candidate is no worse, an error lands on it with probability θ, its part of the requests. If it errs r times
//! as often, with π = θr/(1−θ+θr). Each error multiplies the evidence for r by π/θ on the candidate, and by (1−π)/(1−θ)
//! on stable; the mean over eight ratios is the evidence against the candidate. Under "no worse" that is a non-negative
//! supermartingale that starts at 1, and reaches 1/α with probability α at most, however often one looks (Ville). How
//! often requests fail does not enter, so a failing database behind both sides says nothing.
//!
//! θ is not known but estimated. Too high an estimate is harmless, it only hides some of the evidence; too low a one is
//! not. So it is never taken to be below the share that the candidate is given, which also covers the moments after the
//! share has grown, and the few requests that a rollout begins with.

use super::{Counts, Figure, Finding, Guard, Reading, Sides, Signal};

/// Compares where errors (or slow requests) land with where requests do.
#[derive(Clone, Debug)]
pub struct Relative {
    signal: Signal,
    /// In how much of all rollouts without a regression it may abort.
    alpha: f64,
    seen: Sides,
    window: Window,
    /// Of the evidence for each of [`RATIOS`].
    logarithms: [f64; RATIOS.len()],
    theta: f64,
    evidence: f64,
    /// Once is enough: evidence that fell again would not take it back.
    failed: bool,
}

impl Relative {
    /// For errors. `alpha`, above 0 and below 1, is the part of the rollouts without a regression that it may abort.
    pub fn errors(alpha: f64) -> Self {
        Self::new(Signal::Errors, alpha)
    }

    /// For slow requests.
    pub fn slow(alpha: f64) -> Self {
        Self::new(Signal::Slow, alpha)
    }

    fn new(signal: Signal, alpha: f64) -> Self {
        Self {
            signal,
            alpha,
            seen: Sides::default(),
            window: Window::default(),
            logarithms: [0.0; RATIOS.len()],
            theta: 0.0,
            evidence: 1.0,
            failed: false,
        }
    }

    /// Takes in what was counted since the last time, without the words of [`Guard::look`].
    pub fn observe(&mut self, sides: &Sides) -> Finding {
        let candidate = sides.candidate.since(self.seen.candidate);
        let stable = sides.stable.since(self.seen.stable);
        self.seen = *sides;
        self.window.slide(candidate, stable);
        self.theta = self.window.theta(sides.share.fraction());
        let landed = [candidate, stable].map(|counts| counts.of(self.signal));
        if landed != [0, 0] && !self.lacks_baseline() {
            self.weigh(landed);
        }
        self.finding()
    }

    /// How much more likely what was seen is if the candidate is worse; 1/α undoes the rollout.
    pub fn evidence(&self) -> f64 {
        self.evidence
    }

    fn weigh(&mut self, [on_candidate, on_stable]: [u64; 2]) {
        for (ratio, logarithm) in RATIOS.iter().zip(&mut self.logarithms) {
            let total = 1.0 - self.theta + self.theta * ratio;
            *logarithm += on_candidate as f64 * (ratio / total).ln();
            *logarithm -= on_stable as f64 * total.ln();
        }
        let sum: f64 = self
            .logarithms
            .iter()
            .map(|logarithm| logarithm.exp())
            .sum();
        self.evidence = sum / RATIOS.len() as f64;
        self.failed |= self.evidence >= self.limit();
    }

    fn finding(&self) -> Finding {
        if self.failed {
            Finding::Failed
        } else if self.lacks_baseline() {
            Finding::Inconclusive
        } else {
            Finding::Fine
        }
    }

    /// Next to nothing reaches stable: an error on the candidate would be no news.
    fn lacks_baseline(&self) -> bool {
        self.theta > THETA_MAX
    }

    fn limit(&self) -> f64 {
        1.0 / self.alpha
    }
}

impl Guard for Relative {
    fn name(&self) -> &str {
        self.signal.name()
    }

    fn look(&mut self, sides: &Sides) -> Reading {
        let finding = self.observe(sides);
        let [candidate, stable] = [sides.candidate, sides.stable];
        let [landed, landed_on_stable] = [candidate, stable].map(|counts| counts.of(self.signal));
        let (theta, evidence, limit) = (self.theta, self.evidence, self.limit());
        let text = if self.lacks_baseline() {
            format!(
                "no requests on stable to compare with, candidate {landed}/{}",
                candidate.requests
            )
        } else {
            format!(
                "candidate {landed}/{}, stable {landed_on_stable}/{}, expected part {theta:.3}, evidence {evidence:.1} \
                 (undone at {limit:.0})",
                candidate.requests, stable.requests,
            )
        };
        Reading {
            guard: self.name().to_owned(),
            finding,
            text,
            figures: vec![
                Figure::new("candidate", landed as f64),
                Figure::new("candidate_requests", candidate.requests as f64),
                Figure::new("stable", landed_on_stable as f64),
                Figure::new("stable_requests", stable.requests as f64),
                Figure::new("expected_part", theta),
                Figure::new("evidence", evidence),
                Figure::new("evidence_limit", limit),
            ],
        }
    }
}

/// The candidate's part of the last requests, older ones fading.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    candidate: f64,
    all: f64,
}

impl Window {
    fn slide(&mut self, candidate: Counts, stable: Counts) {
        let all = (candidate.requests + stable.requests) as f64;
        let kept = (-all / HORIZON).exp();
        self.candidate = self.candidate * kept + candidate.requests as f64;
        self.all = self.all * kept + all;
    }

    fn theta(&self, share: f64) -> f64 {
        let prior = if share > 0.0 { PRIOR / share } else { 0.0 };
        let observed = (self.candidate + PRIOR) / (self.all + prior).max(PRIOR);
        observed.max(share).min(1.0)
    }
}

/// How many times as often a worse candidate may err: what the evidence is a mean over.
const RATIOS: [f64; 8] = [1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 200.0];
/// After how many requests an older one counts e times less.
const HORIZON: f64 = 10_000.0;
/// How many requests of the candidate the given share is worth against the observed one.
const PRIOR: f64 = 10.0;
/// Above this part of the requests on the candidate there is nothing to compare with.
const THETA_MAX: f64 = 0.99;

#[cfg(test)]
mod tests {
    use super::super::super::share::Share;
    use super::*;

    fn sides(percent: u8, candidate: (u64, u64), stable: (u64, u64)) -> Sides {
        let counts = |(requests, errors)| Counts {
            requests,
            errors,
            slow: errors,
        };
        Sides {
            candidate: counts(candidate),
            stable: counts(stable),
            share: Share::percent(percent),
        }
    }

    /// With nothing but errors on the candidate, at exactly the share.
    fn errors_to_abort(percent: u8, alpha: f64) -> u64 {
        let mut guard = Relative::errors(alpha);
        let requests = u64::from(percent) * 10_000;
        let stable = (1_000_000 - requests, 0);
        guard.observe(&sides(percent, (requests, 0), stable));
        (1..100)
            .find(|errors| {
                guard.observe(&sides(percent, (requests, *errors), stable)) == Finding::Failed
            })
            .unwrap()
    }

    #[test]
    fn so_many_errors_on_the_candidate_alone_abort() {
        let errors = [1, 5, 10, 25, 50]
            .map(|percent| [0.05, 0.01].map(|alpha| errors_to_abort(percent, alpha)));
        assert_eq!(errors, [[2, 2], [2, 3], [2, 3], [3, 5], [6, 8]]);
    }

    #[test]
    fn a_failing_database_behind_both_sides_is_no_evidence() {
        let mut guard = Relative::errors(0.01);
        for errors in 0..1_000 {
            let requests = 100 + errors;
            let seen = sides(50, (requests, errors), (requests, errors));
            assert_eq!(guard.observe(&seen), Finding::Fine);
        }
        assert!(guard.evidence() < 1.0);
    }

    #[test]
    fn errors_that_come_while_the_traffic_still_moves_are_expected_by_the_share() {
        let mut guard = Relative::errors(0.01);
        guard.observe(&sides(1, (100, 0), (9_900, 0)));
        // The share has grown to 50 %, and of the errors half are on the candidate, though few requests were so far.
        assert_eq!(
            guard.observe(&sides(50, (110, 5), (9_910, 5))),
            Finding::Fine
        );
    }

    #[test]
    fn without_a_baseline_it_cannot_tell() {
        let mut guard = Relative::errors(0.01);
        let reading = guard.look(&sides(5, (100_000, 50_000), (0, 0)));
        assert_eq!(reading.finding, Finding::Inconclusive, "{reading}");
    }

    #[test]
    fn a_failed_candidate_is_not_absolved_by_errors_of_stable() {
        let mut guard = Relative::errors(0.01);
        assert_eq!(guard.observe(&sides(5, (50, 9), (950, 0))), Finding::Failed);
        assert_eq!(
            guard.observe(&sides(5, (50, 9), (9_500, 900))),
            Finding::Failed
        );
        assert!(guard.evidence() < 100.0);
    }

    #[test]
    fn the_words_have_the_numbers() {
        let mut guard = Relative::slow(0.01);
        let reading = guard.look(&sides(5, (50, 4), (950, 1)));
        assert_eq!(reading.guard, "slow");
        assert!(
            reading
                .text
                .starts_with("candidate 4/50, stable 1/950, expected part 0.050, evidence ")
        );
        let evidence = reading
            .figures
            .iter()
            .find(|figure| figure.name == "evidence")
            .unwrap();
        assert_eq!(evidence.value, guard.evidence());
    }
}
