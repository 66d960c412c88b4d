//! One error per client and window, for errors of one client are one piece of evidence.
//!
//! A client that is retried, or that retries, lands on one side with all of its errors: forty bursts of ten abort every
//! third rollout that has no regression at all. So what is judged is the number of clients that met an error.

use std::collections::BTreeSet;
use std::time::Duration;

/// How many clients are told apart in one window: 10,000. Further ones are not counted; the guards have long decided.
pub const CLIENTS_MAX: usize = 10_000;

/// Whose error was counted already. Each side has one of its own for each signal.
///
/// A client is whatever the traffic is split by: where each connection is picked by itself, it is the connection, for
/// then its errors land together and those of another one do not.
#[derive(Clone, Debug)]
pub struct Clients {
    window: Duration,
    begun: Duration,
    counted: BTreeSet<u64>,
}

impl Clients {
    /// For windows of this length. The first begins at time zero.
    pub fn new(window: Duration) -> Self {
        Self {
            window,
            begun: Duration::ZERO,
            counted: BTreeSet::new(),
        }
    }

    /// Whether an error of this client counts. `now` is the time since any moment that stays the same.
    pub fn count(&mut self, client: u64, now: Duration) -> bool {
        if now.saturating_sub(self.begun) >= self.window {
            self.begun = now;
            self.counted.clear();
        }
        self.counted.len() < CLIENTS_MAX && self.counted.insert(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_client_counts_once_in_a_window_and_again_in_the_next() {
        let mut clients = Clients::new(60 * SECOND);
        let counted = [0, 1, 59, 60, 61].map(|second| clients.count(1, second * SECOND));
        assert_eq!(counted, [true, false, false, true, false]);
        assert!(clients.count(2, 61 * SECOND));
    }

    #[test]
    fn memory_is_bounded() {
        let mut clients = Clients::new(60 * SECOND);
        let counted = (0..50_000).filter(|client| clients.count(*client, SECOND));
        assert_eq!(counted.count(), CLIENTS_MAX);
        assert!(clients.count(1, 120 * SECOND));
    }
}
