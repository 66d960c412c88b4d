//! Everyone who waits at one gate, behind a single waker.
//!
//! A registration in tokio remembers one waker only; this one passes the news to all. Each waiter has a seat, so what
//! is remembered is bounded by who waits: a seat is left when its future is dropped.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

/// The waiters of one gate.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<Seats>);

#[derive(Debug, Default)]
struct Seats {
    last: u64,
    taken: Vec<(Seat, Waker)>,
}

/// A waiter's place, until it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat(u64);

impl Seat {
    /// The place of those who poll without a future that could leave: the last of them is woken.
    pub(super) const SHARED: Self = Self(0);
}

impl Waiting {
    /// Remembers `waker` under the waiter's seat, which it is given now if it has none.
    pub(super) fn enter(&self, seat: &mut Option<Seat>, waker: &Waker) {
        let mut seats = self.lock();
        let seat = *seat.get_or_insert_with(|| seats.assign());
        match seats.taken.iter_mut().find(|(taken, _)| *taken == seat) {
            Some((_, known)) => known.clone_from(waker),
            None => seats.taken.push((seat, waker.clone())),
        }
    }

    pub(super) fn leave(&self, seat: Seat) {
        self.lock().taken.retain(|(taken, _)| *taken != seat);
    }

    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Wakers are foreign code, which may come back here: none runs under the lock.
        let mut woken = mem::take(&mut self.lock().taken);
        woken.drain(..).for_each(|(_, waker)| waker.wake());
        let mut seats = self.lock();
        if seats.taken.capacity() == 0 {
            seats.taken = woken; // its memory, so that waiting again allocates nothing
        }
    }
}

impl Seats {
    fn assign(&mut self) -> Seat {
        self.last += 1;
        Seat(self.last)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn everyone_who_waits_is_woken_once() {
        let (waiting, count) = (Arc::new(Waiting::default()), Arc::new(Count::default()));
        let waker = Waker::from(count.clone());
        let (mut one, mut two) = (None, None);
        waiting.enter(&mut one, &waker);
        waiting.enter(&mut two, &waker);
        waiting.enter(&mut two, &waker);
        waiting.wake_by_ref();
        waiting.wake_by_ref();
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_seat_that_is_left_is_forgotten() {
        let waiting = Waiting::default();
        for _ in 0..100 {
            let mut seat = None;
            waiting.enter(&mut seat, Waker::noop());
            seat.into_iter().for_each(|seat| waiting.leave(seat));
        }
        assert!(waiting.lock().taken.is_empty());
    }
}
