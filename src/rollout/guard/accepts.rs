//! Whether clients still arrive: accepts after the flip compared with those before it.
//!
//! It needs no connection of its own, and sees what those from this machine cannot: a firewall, a wrong network
//! namespace, a listener that is missing.

use std::collections::VecDeque;
use std::time::Instant;

use crate::rollout::plan::{ACCEPTS_SAMPLE, ACCEPTS_WINDOW};

/// Below this many accepts before a flip nothing can be said of those after it.
const ACCEPTS_MIN: u64 = 20;

/// What stable has accepted lately.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accepts(VecDeque<(Instant, u64)>);

/// What is to be expected after a flip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    flipped_at: Instant,
    before: u64,
}

/// Too few clients arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fallen {
    /// Accepts in the window before the flip.
    pub(crate) before: u64,
    /// Accepts in the window after it.
    pub(crate) after: u64,
}

impl Accepts {
    /// When the total is to be told next.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        Some(self.0.back()?.0 + ACCEPTS_SAMPLE)
    }

    /// So many connections have been accepted in all.
    pub(crate) fn handle_total(&mut self, now: Instant, total: u64) {
        if self.poll_timeout().is_some_and(|next| now < next) {
            return;
        }
        self.0.push_back((now, total));
        let is_old =
            |(at, _): &(Instant, u64)| now.saturating_duration_since(*at) >= ACCEPTS_WINDOW;
        while self.0.get(1).is_some_and(is_old) {
            self.0.pop_front();
        }
    }

    /// The flip is now. Nothing is expected if too few have come before it, or not for long enough.
    pub(crate) fn expect(&self, now: Instant, total: u64) -> Option<Expected> {
        let (at, earlier) = *self.0.front()?;
        let time = now.saturating_duration_since(at);
        if time < ACCEPTS_WINDOW {
            return None;
        }
        let counted = total.saturating_sub(earlier) as f64;
        let before = (counted * ACCEPTS_WINDOW.as_secs_f64() / time.as_secs_f64()) as u64;
        (before >= ACCEPTS_MIN).then_some(Expected {
            flipped_at: now,
            before,
        })
    }
}

impl Expected {
    /// What is to be said of so many accepts since the flip; nothing before the window is over.
    pub(crate) fn judge(self, now: Instant, after: u64) -> Option<Result<(), Fallen>> {
        let Self { flipped_at, before } = self;
        let is_over = now.saturating_duration_since(flipped_at) >= ACCEPTS_WINDOW;
        is_over.then(|| match after.saturating_mul(2) < before {
            true => Err(Fallen { before, after }),
            false => Ok(()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A total that grows by `rate` each second, told every ten.
    fn counted(seconds: u64, rate: u64) -> (Accepts, Instant, u64) {
        let (mut accepts, begin) = (Accepts::default(), Instant::now());
        for second in (0..=seconds).step_by(10) {
            accepts.handle_total(begin + Duration::from_secs(second), second * rate);
        }
        (
            accepts,
            begin + Duration::from_secs(seconds),
            seconds * rate,
        )
    }

    #[test]
    fn fewer_than_half_of_enough_have_fallen() {
        let (accepts, flip, total) = counted(60, 2);
        let expected = accepts.expect(flip, total).unwrap();
        let later = flip + ACCEPTS_WINDOW;
        let (before, after) = (60, 29);
        assert_eq!(
            expected.judge(later, 29),
            Some(Err(Fallen { before, after }))
        );
        assert_eq!(expected.judge(later, 30), Some(Ok(())));
        assert_eq!(expected.judge(later - Duration::from_secs(1), 0), None);
    }

    #[test]
    fn too_few_or_for_too_short_a_time_expect_nothing() {
        let (few, flip, total) = counted(60, 0);
        assert_eq!(few.expect(flip, total + 19), None);
        let (short, flip, total) = counted(20, 100);
        assert_eq!(short.expect(flip, total), None);
        assert_eq!(Accepts::default().expect(flip, total), None);
    }

    #[test]
    fn memory_is_bounded_and_what_is_told_too_early_is_not_kept() {
        let (mut accepts, end, total) = counted(10_000, 1);
        assert!(accepts.0.len() <= 5, "{accepts:?}");
        let kept = accepts.0.len();
        accepts.handle_total(end + Duration::from_secs(1), total);
        assert_eq!(accepts.0.len(), kept);
    }
}
