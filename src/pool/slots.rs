//! Sockets of their own for workers, on one port: which worker gets which, and which of them the kernel fills.
//!
//! 1. The supervisor holds all of them from the start to the end, so that none of them is ever closed with somebody in its
//!    queue, and the kernel counts them as they are counted here.
//! 2. The kernel fills only those that a ready worker serves. One that is to leave is left out first, and told to leave when
//!    its queue has been empty for as long as a handshake takes.
//! 3. Who has crashed leaves a queue to whoever comes to its slot, and the one with the longest queue is filled first.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::config::STOP_LOOK;
use crate::sys::queue::accept_queue;
use crate::sys::steering::steer;

/// A worker's place: one socket of each group.
pub(super) type SlotIndex = usize;

/// All groups, each with one socket for each slot.
#[derive(Debug)]
pub(super) struct Slots {
    groups: Vec<Vec<Arc<OwnedFd>>>,
    count: usize,
    filled: Vec<SlotIndex>,
}

/// Who is in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    Serving,
    Starting,
    Leaving,
}

impl Slots {
    pub(super) fn new(groups: Vec<Vec<Arc<OwnedFd>>>, count: usize) -> Self {
        Self {
            groups,
            count,
            filled: Vec::new(),
        }
    }

    /// Where the next worker goes: to nobody's slot, or to one whose holders leave, or else to the one with the fewest; of
    /// those to the one where most wait.
    pub(super) fn vacant(&self, holders: &[(SlotIndex, Holder)]) -> SlotIndex {
        let rank = |slot: &SlotIndex| {
            let here = holders.iter().filter(|(index, _)| index == slot);
            let leaving = here
                .clone()
                .filter(|(_, it)| *it == Holder::Leaving)
                .count();
            let staying = here.count() - leaving;
            let waiting = self.waiting(*slot);
            (staying, leaving, std::cmp::Reverse(waiting))
        };
        (0..self.count).min_by_key(rank).unwrap_or_default()
    }

    /// Has the kernel fill the slots that are served. While there is none it goes on as before: who comes waits.
    pub(super) fn fill(&mut self, holders: &[(SlotIndex, Holder)]) -> io::Result<()> {
        let is_served = |slot: &SlotIndex| holders.contains(&(*slot, Holder::Serving));
        let served: Vec<SlotIndex> = (0..self.count).filter(is_served).collect();
        if served.is_empty() || served == self.filled {
            return Ok(());
        }
        let members = served.iter().map(|slot| u32::try_from(*slot));
        let members: Vec<u32> = members
            .collect::<Result<_, _>>()
            .map_err(io::Error::other)?;
        for group in &self.groups {
            if let Some(first) = group.first() {
                steer(first.as_fd(), &members)?;
            }
        }
        self.filled = served;
        Ok(())
    }

    /// Waits until the queues of a slot that is no longer filled have been empty for `settle`, or `deadline` is over.
    pub(super) fn emptied(
        &self,
        slot: SlotIndex,
        settle: Duration,
        deadline: Duration,
    ) -> impl Future<Output = ()> + Send + use<> {
        let sockets = self.groups.iter().filter_map(|group| group.get(slot));
        let sockets: Vec<_> = sockets.map(Arc::clone).collect();
        async move {
            let begun = Instant::now();
            let mut last_seen = begun;
            while last_seen.elapsed() < settle && begun.elapsed() < deadline {
                if sockets
                    .iter()
                    .any(|it| accept_queue(it.as_fd()).is_ok_and(|count| count > 0))
                {
                    last_seen = Instant::now();
                }
                // A queue tells nobody when it is emptied.
                sleep(STOP_LOOK).await;
            }
        }
    }

    fn waiting(&self, slot: SlotIndex) -> u64 {
        let sockets = self.groups.iter().filter_map(|group| group.get(slot));
        let waiting = sockets.map(|it| accept_queue(it.as_fd()).map_or(0, u64::from));
        waiting.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_goes_where_nobody_is_then_where_somebody_leaves_then_where_fewest_are() {
        use Holder::{Leaving, Serving, Starting};
        let slots = Slots::new(Vec::new(), 3);
        assert_eq!(slots.vacant(&[(0, Serving), (2, Starting)]), 1);
        assert_eq!(
            slots.vacant(&[(0, Serving), (1, Leaving), (2, Starting)]),
            1
        );
        assert_eq!(slots.vacant(&[(0, Serving), (1, Leaving)]), 2);
        let full = [
            (0, Serving),
            (0, Serving),
            (1, Serving),
            (2, Serving),
            (2, Starting),
        ];
        assert_eq!(slots.vacant(&full), 1);
    }

    #[test]
    fn where_somebody_waits_a_worker_comes_first() {
        let room: Vec<std::net::TcpListener> = (0..3)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let _client = std::net::TcpStream::connect(room[2].local_addr().unwrap()).unwrap();
        let sockets = room.into_iter().map(|it| Arc::new(it.into())).collect();
        let slots = Slots::new(vec![sockets], 3);
        assert_eq!(slots.vacant(&[]), 2);
    }
}
