//! How what one side has counted changes from look to look.

use std::collections::VecDeque;

use handover::control::SideState;

/// Looks that are remembered: more than fit on any screen.
const LOOKS_KEPT: usize = 600;

/// One side's curves, newest last. They begin anew with another generation.
#[derive(Debug, Default)]
pub(crate) struct Curves {
    last: Option<(u64, SideState)>,
    /// Requests in a second.
    pub(crate) requests: VecDeque<u64>,
    /// Errors in a second, in hundredths: they are rare.
    pub(crate) errors: VecDeque<u64>,
    /// The 99th percentile of what requests took, in microseconds.
    pub(crate) latency: VecDeque<u64>,
}

impl Curves {
    /// What was counted until `at_ms`, by a clock that only goes on.
    pub(crate) fn add(&mut self, at_ms: u64, side: &SideState) {
        let last = self.last.replace((at_ms, side.clone()));
        let Some((then_ms, then)) = last.filter(|(_, then)| is_continued(then, side)) else {
            let last = self.last.take();
            *self = Self {
                last,
                ..Self::default()
            };
            return;
        };
        let Some(elapsed_ms) = at_ms.checked_sub(then_ms).filter(|elapsed| *elapsed > 0) else {
            return;
        };
        let per_second = |count: u64, times: u64| count.saturating_mul(times * 1_000) / elapsed_ms;
        let requests = side.requests.saturating_sub(then.requests);
        let errors = side.errors.saturating_sub(then.errors);
        push(&mut self.requests, per_second(requests, 1));
        push(&mut self.errors, per_second(errors, 100));
        push(&mut self.latency, side.p99_us.unwrap_or(0));
    }

    /// What was counted last.
    pub(crate) fn side(&self) -> Option<&SideState> {
        self.last.as_ref().map(|(_, side)| side)
    }
}

/// A generation's counts only grow.
fn is_continued(then: &SideState, now: &SideState) -> bool {
    then.generation == now.generation && then.requests <= now.requests
}

fn push(curve: &mut VecDeque<u64>, value: u64) {
    if curve.len() == LOOKS_KEPT {
        curve.pop_front();
    }
    curve.push_back(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(generation: u64, requests: u64, errors: u64) -> SideState {
        let text = format!(
            r#"{{"generation":{generation},"requests":{requests},"errors":{errors},"p99_us":900}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_curve_is_what_came_between_two_looks_in_a_second() {
        let mut curves = Curves::default();
        curves.add(1_000, &side(1, 100, 0));
        curves.add(1_500, &side(1, 150, 1));
        curves.add(2_500, &side(1, 150, 1));
        assert_eq!(curves.requests, [100, 0]);
        assert_eq!(curves.errors, [200, 0]);
        assert_eq!(curves.latency, [900, 900]);
    }

    #[test]
    fn another_generation_and_a_clock_that_stands_still_make_no_curve() {
        let mut curves = Curves::default();
        curves.add(1_000, &side(1, 100, 0));
        curves.add(1_000, &side(1, 200, 0));
        assert!(curves.requests.is_empty());
        curves.add(2_000, &side(1, 300, 0));
        curves.add(3_000, &side(2, 400, 0));
        assert!(curves.requests.is_empty());
        assert_eq!(curves.side().unwrap().generation, 2);
    }

    #[test]
    fn the_oldest_look_is_forgotten() {
        let mut curves = Curves::default();
        (0..2_000).for_each(|look| curves.add(look * 500, &side(1, look, 0)));
        assert_eq!(curves.requests.len(), LOOKS_KEPT);
    }
}
