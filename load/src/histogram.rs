//! Latencies in bounded memory.

use std::time::Duration;

use serde::{Serialize, Serializer, ser::SerializeStruct};

/// Counts durations in buckets that are at most a sixteenth of their value wide, from 1 µs on.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Vec<u64>,
    max: Duration,
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, value: Duration) {
        self.buckets[bucket(micros(value))] += 1;
        self.max = self.max.max(value);
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// What the share `q` (0 to 1) of all durations do not exceed, at most a sixteenth too long; zero if there are none.
    pub fn quantile(&self, q: f64) -> Duration {
        let rank = (q * self.count() as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let found = self.buckets.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        found.map_or(Duration::ZERO, |index| {
            Duration::from_micros(last_of(index)).min(self.max)
        })
    }

    /// The longest duration, exactly; zero if there are none.
    pub fn max(&self) -> Duration {
        self.max
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: vec![0; bucket(u64::MAX) + 1],
            max: Duration::ZERO,
        }
    }
}

impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Histogram", 3)?;
        fields.serialize_field("p50_ms", &millis(self.quantile(0.5)))?;
        fields.serialize_field("p99_ms", &millis(self.quantile(0.99)))?;
        fields.serialize_field("max_ms", &millis(self.max))?;
        fields.end()
    }
}

/// Serializes as milliseconds with a fraction.
pub(crate) fn serialize_millis<S: Serializer>(
    value: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(millis(*value))
}

pub(crate) fn millis(value: Duration) -> f64 {
    micros(value) as f64 / 1000.0
}

fn micros(value: Duration) -> u64 {
    u64::try_from(value.as_micros()).unwrap_or(u64::MAX)
}

/// Values below 16 have a bucket each; above, each power of two has 16 of them.
fn bucket(value: u64) -> usize {
    let shift = (64 - value.leading_zeros()).saturating_sub(5);
    (shift as usize) * 16 + (value >> shift) as usize
}

fn last_of(bucket: usize) -> u64 {
    let shift = (bucket / 16).saturating_sub(1);
    let mantissa = (bucket - shift * 16) as u64;
    (mantissa << shift) + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_value_and_is_a_sixteenth_wide() {
        for value in [0, 1, 15, 16, 31, 32, 33, 1000, 123_456_789, u64::MAX] {
            let last = last_of(bucket(value));
            assert!(
                last >= value && last - value <= value / 16,
                "{value}: {last}"
            );
        }
    }

    #[test]
    fn buckets_are_adjacent() {
        assert!((0..100_000).all(|value| matches!(bucket(value + 1) - bucket(value), 0 | 1)));
    }

    #[test]
    fn quantiles_are_at_most_a_sixteenth_too_long() {
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|ms| histogram.record(Duration::from_millis(ms)));
        let p99 = histogram.quantile(0.99);
        assert!(p99 >= Duration::from_millis(990) && p99 <= Duration::from_millis(1000));
        assert_eq!(histogram.quantile(1.0), Duration::from_secs(1));
        assert_eq!(Histogram::default().quantile(0.5), Duration::ZERO);
    }
}
