//! How long requests took, in buckets whose width grows with what they hold.
//!
//! A time is known to 1/16 of itself: that is enough for a percentile, and a bucket is found by two shifts.

use std::time::Duration;

/// Buckets for each doubling, as a power of two.
const SUB_BITS: u32 = 4;
const SUBS: u64 = 1 << SUB_BITS;
/// Times from 2³⁶ µs on, 19 hours, are in the last one.
const DOUBLINGS: usize = 33;
/// How many there are.
pub(super) const BUCKETS: usize = DOUBLINGS * SUBS as usize;

/// How many requests there were in each bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Histogram(Box<[u64]>);

/// Which bucket a time belongs to.
#[inline]
pub(super) fn bucket(micros: u64) -> usize {
    let doubling = micros.max(SUBS).ilog2() - SUB_BITS;
    // Below the first doubling that has one, the bucket is the time.
    let within = micros >> doubling;
    let index = u64::from(doubling) * SUBS + within;
    usize::try_from(index).map_or(BUCKETS - 1, |index| index.min(BUCKETS - 1))
}

/// The longest time of a bucket, in microseconds.
fn upper(bucket: usize) -> u64 {
    let (bucket, subs) = (bucket as u64, SUBS);
    let doubling = (bucket / subs).saturating_sub(1);
    let within = bucket - doubling * subs;
    ((within + 1) << doubling) - 1
}

impl Histogram {
    pub(super) fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// What came after `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let pairs = self.0.iter().zip(&earlier.0);
        Self(pairs.map(|(now, then)| now.saturating_sub(*then)).collect())
    }

    /// A time that `part` of the requests did not exceed, and hardly more than that. None without requests.
    pub(super) fn percentile(&self, part: f64) -> Option<Duration> {
        let total = self.total();
        let rank = ((total as f64 * part.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let sums = self.0.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        let found = sums.enumerate().find(|(_, sum)| *sum >= rank);
        found.map(|(bucket, _)| Duration::from_micros(upper(bucket)))
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self(vec![0; BUCKETS].into())
    }
}

/// One count for each bucket. Those that are missing are zero.
impl FromIterator<u64> for Histogram {
    fn from_iter<I: IntoIterator<Item = u64>>(counts: I) -> Self {
        let mut histogram = Self::default();
        let places = histogram.0.iter_mut();
        places.zip(counts).for_each(|(place, count)| *place = count);
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(micros: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::default();
        for micros in micros {
            histogram.0[bucket(micros)] += 1;
        }
        histogram
    }

    #[test]
    fn each_bucket_begins_where_the_one_before_has_ended() {
        assert_eq!(bucket(0), 0);
        for index in 0..BUCKETS - 1 {
            assert_eq!(bucket(upper(index)), index);
            assert_eq!(bucket(upper(index) + 1), index + 1);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_time_is_known_to_a_sixteenth_of_itself() {
        for micros in [1, 15, 16, 17, 100, 1_000, 12_345, 3_600_000_000] {
            let known = upper(bucket(micros));
            assert!(
                micros <= known && known <= micros + micros / 16,
                "{micros}: {known}"
            );
        }
    }

    #[test]
    fn no_more_than_the_rest_is_longer_than_a_percentile() {
        let histogram = of(1..=10_000);
        for part in [0.5, 0.9, 0.99] {
            let micros = histogram.percentile(part).unwrap().as_micros() as f64;
            let exact = 10_000.0 * part;
            assert!(
                exact <= micros && micros <= exact * 17.0 / 16.0,
                "{part}: {micros}"
            );
        }
        assert_eq!(of([]).percentile(0.99), None);
        assert_eq!(of([7]).percentile(0.0), Some(Duration::from_micros(7)));
    }

    #[test]
    fn what_came_before_is_left_out() {
        let (before, after) = (of([5, 5, 9]), of([5, 5, 9, 9, 9]));
        assert_eq!(after.since(&before), of([9, 9]));
    }
}
