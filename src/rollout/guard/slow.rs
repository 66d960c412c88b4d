//! The tail of the latency as a rate: a request is slow if it takes longer than 99 of 100 did on stable.
//!
//! The rate of slow requests is then judged like the rate of errors. That sees what makes releases bad, a few requests
//! that take much longer; a median that moves by a tenth it does not see.

use std::time::Duration;

/// Of how many requests the 99th percentile can be told at all: 100.
pub const SAMPLES_MIN: usize = 100;

/// How long a request may take before it counts as slow: the 99th percentile of what stable's requests took before the
/// rollout. None if there are fewer than [`SAMPLES_MIN`]. Leaves what it is given in another order.
pub fn slow_threshold(latencies: &mut [Duration]) -> Option<Duration> {
    if latencies.len() < SAMPLES_MIN {
        return None;
    }
    let rank = (latencies.len() * 99).div_ceil(100);
    let (_, threshold, _) = latencies.select_nth_unstable(rank - 1);
    Some(*threshold)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_in_a_hundred_is_slower_than_the_threshold() {
        let mut latencies: Vec<_> = (0..1_000).rev().map(Duration::from_millis).collect();
        let threshold = slow_threshold(&mut latencies).unwrap();
        let slower = latencies.iter().filter(|latency| **latency > threshold);
        assert_eq!(slower.count(), 10);
    }

    #[test]
    fn a_percentile_of_too_few_requests_is_none() {
        let mut latencies = [Duration::from_millis(1); SAMPLES_MIN];
        assert_eq!(slow_threshold(&mut latencies[1..]), None);
        assert_eq!(
            slow_threshold(&mut latencies),
            Some(Duration::from_millis(1))
        );
    }
}
