//! The other generations that are alive and drain: how many, until when, and that they are gone.

use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::sys::process::{Pidfd, Reaped};

/// The list, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Elders(Vec<Elder>);

/// One of them.
#[derive(Debug)]
pub(crate) struct Elder {
    pub(crate) generation: u64,
    pub(crate) pid: u32,
    pub(crate) process: Pidfd,
    /// When it has outstayed even its own hard stop and is killed.
    pub(crate) kill_at: Instant,
}

/// The end of a life of which another process has said how long it may be.
pub(crate) fn kill_at(now: Instant, millis: u64) -> Instant {
    now + Duration::from_millis(millis).min(LIFE_MAX)
}

impl Elders {
    pub(crate) fn add(&mut self, elder: Elder) {
        self.0.push(elder);
        self.0.sort_by_key(|elder| elder.generation);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Elder> {
        self.0.iter()
    }

    /// The next one that is gone, collected if it was our child.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: an elder is taken off the list only when it is returned.
    pub(crate) async fn next_gone(&mut self) -> Elder {
        let index = poll_fn(|context| {
            let gone = self
                .0
                .iter()
                .position(|elder| elder.process.poll_exited(context).is_ready());
            gone.map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        let elder = self.0.remove(index);
        collect(&elder.process);
        elder
    }

    pub(crate) fn next_kill(&self) -> Option<Instant> {
        self.0.iter().map(|elder| elder.kill_at).min()
    }

    /// Kills those that have outstayed their hard stop, and returns their numbers.
    pub(crate) fn kill_overdue(&mut self, now: Instant, again_at: Instant) -> Vec<u64> {
        let overdue = self.0.iter_mut().filter(|elder| elder.kill_at <= now);
        overdue
            .map(|elder| {
                // It may be gone already; its exit is what takes it off the list.
                let _ = elder.process.kill();
                elder.kill_at = again_at;
                elder.generation
            })
            .collect()
    }

    /// A descriptor of each process, for the successor.
    pub(crate) fn descriptors(&self) -> std::io::Result<Vec<OwnedFd>> {
        self.0
            .iter()
            .map(|elder| elder.process.as_fd().try_clone_to_owned())
            .collect()
    }

    /// In words, for a refusal.
    pub(crate) fn describe(&self) -> String {
        let each = self
            .0
            .iter()
            .map(|elder| format!("{} (pid {})", elder.generation, elder.pid));
        each.collect::<Vec<_>>().join(", ")
    }
}

/// Frees a dead child's entry in the process table.
pub(crate) fn collect(process: &Pidfd) -> Option<String> {
    match process.reap() {
        Ok(Reaped::Exited(how)) => Some(how.to_string()),
        Ok(Reaped::Running | Reaped::NotOurs) | Err(_) => None,
    }
}

/// Near enough to be added to any instant, and longer than any deadline that can be set.
const LIFE_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_that_another_process_calls_endless_can_still_be_counted() {
        let now = Instant::now();
        assert_eq!(kill_at(now, u64::MAX), now + LIFE_MAX);
        assert_eq!(kill_at(now, 1_500), now + Duration::from_millis(1_500));
    }
}
