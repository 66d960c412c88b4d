//! A candidate that serves alone and does not accept: its process lives, connections complete, and nobody comes for them.
//!
//! No death says so, and checks of a load balancer that only connect stay green, for the kernel does that by itself.

use std::time::{Duration, Instant};

/// Sees that connections wait and nobody accepts them. Begins to look when the candidate has been flipped to.
#[derive(Clone, Debug)]
pub struct Stall {
    after: Duration,
    seen: Option<Seen>,
}

/// What is known of whoever should accept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// Connections that wait, over all sockets.
    pub waiting: u64,
    /// A count that moves when somebody accepts, as far as it was heard: of connections accepted or, where nobody counts
    /// these, of requests answered.
    pub accepted: u64,
}

/// Nobody accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stalled {
    /// Connections that wait.
    pub waiting: u64,
    /// For how long nobody has accepted any.
    pub silent: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    queue: Queue,
    at: Instant,
    silent: Duration,
}

impl Stall {
    /// Finds a stall when nothing was accepted for so long.
    pub fn new(after: Duration) -> Self {
        Self { after, seen: None }
    }

    /// Takes in how things stand. A stall is found again at each look for as long as it lasts.
    ///
    /// Whoever looks may have been stopped itself, together with the candidate: time in which nobody looked counts no
    /// more than a quarter of what makes a stall, so that this needs four looks at least.
    pub fn look(&mut self, now: Instant, queue: Queue) -> Option<Stalled> {
        let seen = self.seen.filter(|seen| !seen.has_moved(queue));
        let silent = seen.map_or(Duration::ZERO, |seen| {
            let elapsed = now.saturating_duration_since(seen.at);
            seen.silent + elapsed.min(self.after / LOOKS_MIN)
        });
        let (at, waiting) = (now, queue.waiting);
        self.seen = (waiting > 0).then_some(Seen { queue, at, silent });
        (waiting > 0 && seen.is_some() && silent >= self.after)
            .then_some(Stalled { waiting, silent })
    }
}

impl Seen {
    /// A queue gets shorter only when somebody accepts. One that does not may be refilled as fast as it is emptied.
    fn has_moved(&self, queue: Queue) -> bool {
        queue.waiting < self.queue.waiting || queue.accepted != self.queue.accepted
    }
}

/// How many looks it takes at least after the first one.
const LOOKS_MIN: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(2);
    const LOOK: Duration = Duration::from_millis(50);

    /// Looks every 50 ms, and says at which one a stall was found first.
    fn found(queues: impl IntoIterator<Item = (u64, u64)>) -> Option<(usize, Stalled)> {
        let (mut stall, mut now) = (Stall::new(AFTER), Instant::now());
        let mut looks = queues.into_iter().enumerate();
        looks.find_map(|(look, (waiting, accepted))| {
            now += LOOK;
            let found = stall.look(now, Queue { waiting, accepted });
            found.map(|stalled| (look, stalled))
        })
    }

    #[test]
    fn connections_that_nobody_accepts_for_two_seconds_are_a_stall() {
        let silent = AFTER;
        assert_eq!(
            found([(3, 7); 100]),
            Some((40, Stalled { waiting: 3, silent }))
        );
        // It grows: 5, 6, 7, ...
        let growing = (5..).map(|waiting| (waiting, 7)).take(100);
        assert_eq!(
            found(growing),
            Some((
                40,
                Stalled {
                    waiting: 45,
                    silent
                }
            ))
        );
    }

    #[test]
    fn an_empty_queue_is_none_however_long() {
        assert_eq!(found([(0, 7); 1_000]), None);
    }

    #[test]
    fn a_queue_that_gets_shorter_now_and_then_is_none() {
        let accepting = (0..1_000).map(|look| (10 + 39 - look % 39, 7));
        assert_eq!(found(accepting), None);
    }

    #[test]
    fn a_queue_that_is_refilled_as_fast_as_it_is_emptied_is_none() {
        let busy = (0..1_000).map(|look| (128, look / 39));
        assert_eq!(found(busy), None);
    }

    #[test]
    fn a_stall_counts_from_the_last_one_that_was_accepted() {
        let queues = [(0, 7); 100]
            .into_iter()
            .chain([(1, 7); 30])
            .chain([(1, 8); 100]);
        assert_eq!(found(queues).map(|(look, _)| look), Some(130 + 40));
        let shorter = [(2, 7); 30].into_iter().chain([(1, 7); 100]);
        assert_eq!(found(shorter).map(|(look, _)| look), Some(30 + 40));
        let emptied = [(2, 7); 40]
            .into_iter()
            .chain([(0, 7)])
            .chain([(2, 7); 100]);
        assert_eq!(found(emptied).map(|(look, _)| look), Some(41 + 40));
    }

    #[test]
    fn a_stall_lasts_until_somebody_accepts() {
        let (mut stall, mut now) = (Stall::new(AFTER), Instant::now());
        let mut look = |waiting, accepted| {
            now += LOOK;
            stall.look(now, Queue { waiting, accepted }).is_some()
        };
        assert_eq!((0..60).filter(|_| look(1, 0)).count(), 20);
        assert!(!look(1, 1));
    }

    #[test]
    fn time_in_which_nobody_looked_is_not_held_against_the_candidate() {
        let (mut stall, now) = (Stall::new(AFTER), Instant::now());
        let hour = Duration::from_secs(3_600);
        let queue = Queue {
            waiting: 1,
            accepted: 0,
        };
        let found = (0..6).position(|look| stall.look(now + look * hour, queue).is_some());
        assert_eq!(found, Some(4));
        let mut early = Stall::new(AFTER);
        early.look(now, queue);
        assert_eq!(early.look(now - LOOK, queue), None);
    }
}
