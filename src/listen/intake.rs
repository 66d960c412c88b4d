//! Connections that this generation has not accepted itself, on their way to its application.
//!
//! Another generation has accepted them, or a private endpoint of this one. Whoever passes a connection on may want it
//! back for as long as the application does not have it, so it is asked at the last moment, by its [`Permit`].

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::config::ADOPTED_MAX;

/// Whether a connection may still be served here.
///
/// Dropped without having been asked, it says that the connection will not be served here.
pub(crate) trait Permit: Send {
    /// The application is about to get the connection. Whether it may is for good.
    fn claim(self: Box<Self>) -> bool;
}

/// A connection that was accepted elsewhere.
pub(crate) struct Adopted {
    connection: OwnedFd,
    permit: Option<Box<dyn Permit>>,
}

impl Adopted {
    /// Nobody else has the connection.
    pub(crate) fn new(connection: OwnedFd) -> Self {
        Self {
            connection,
            permit: None,
        }
    }

    /// Whoever passed it on keeps it until the permit has been asked.
    pub(crate) fn with_permit(connection: OwnedFd, permit: Box<dyn Permit>) -> Self {
        Self {
            connection,
            permit: Some(permit),
        }
    }

    /// What `adopt` makes of the connection, or `None` if that is not to be served here. Whoever passed it on is asked
    /// only once it is known that it can be.
    pub(super) fn claim<T>(
        self,
        adopt: impl FnOnce(OwnedFd) -> io::Result<T>,
    ) -> io::Result<Option<T>> {
        let accepted = adopt(self.connection)?;
        let may = self.permit.is_none_or(|permit| permit.claim());
        Ok(may.then_some(accepted))
    }
}

impl fmt::Debug for Adopted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adopted")
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}

/// Where adopted connections of one listener wait for the application.
#[derive(Debug, Default)]
pub(super) struct Intake {
    waiting: Mutex<Queue>,
    /// How many there are: most often none, which is known without the lock.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Queue {
    adopted: VecDeque<Adopted>,
    is_closed: bool,
    count: watch::Sender<usize>,
}

impl Intake {
    /// Gives it back if nobody will accept, or too many wait already.
    pub(super) fn add(&self, adopted: Adopted) -> Result<(), Adopted> {
        let mut queue = self.lock();
        if queue.is_closed || queue.adopted.len() >= ADOPTED_MAX {
            return Err(adopted);
        }
        queue.adopted.push_back(adopted);
        self.tell(&queue);
        Ok(())
    }

    pub(super) fn next(&self) -> Option<Adopted> {
        if self.is_empty() {
            return None;
        }
        let mut queue = self.lock();
        let next = queue.adopted.pop_front();
        self.tell(&queue);
        next
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Nobody accepts any more: what waits is given up, and so is what comes.
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.is_closed = true;
        let rest = std::mem::take(&mut queue.adopted);
        self.tell(&queue);
        // A permit is foreign code, which may come back here: none is dropped under the lock.
        drop(queue);
        drop(rest);
    }

    pub(super) fn count(&self) -> watch::Receiver<usize> {
        self.lock().count.subscribe()
    }

    fn tell(&self, queue: &Queue) {
        self.count.store(queue.adopted.len(), Ordering::Release);
        queue.count.send_replace(queue.adopted.len());
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
