//! One worker that has been started: a process that is watched, told to stop, and killed.

use std::io;
use std::task::{Context, Poll};
use std::time::Instant;

use super::controller::ReleaseId;
use crate::protocol::message::Tally;
use crate::sys::activated::{Group, signal_group};
use crate::sys::process::{Pidfd, Reaped, discard};

/// The process of a worker, from its start to its end.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) pid: u32,
    pub(crate) release: ReleaseId,
    pub(crate) started: Instant,
    /// What it has counted, as it last said.
    pub(crate) tally: Option<Tally>,
    process: Pidfd,
}

impl Worker {
    /// Takes hold of a process that has just been started.
    pub(crate) fn watch(pid: u32, release: ReleaseId, now: Instant) -> io::Result<Self> {
        let process = Pidfd::open(pid).inspect_err(|_| discard(pid))?;
        Ok(Self {
            pid,
            release,
            started: now,
            tally: None,
            process,
        })
    }

    /// Tells it to finish what it has begun and to leave.
    pub(crate) fn stop(&self) -> io::Result<()> {
        self.process.signal(libc::SIGTERM)
    }

    /// Ends it and what it has started.
    pub(crate) fn kill(&self) -> io::Result<()> {
        signal_group(self.pid, Group::Kill).or_else(|_| self.process.kill())
    }

    pub(crate) fn poll_exited(&self, context: &mut Context<'_>) -> Poll<()> {
        // Only a runtime that shuts down fails here, and then nobody polls again.
        self.process.poll_exited(context).map(drop)
    }

    /// How it has ended, in words. What it had started and left behind is told to leave: it may hold the sockets, and
    /// take connections that nobody answers.
    pub(crate) fn reap(&self) -> String {
        // Before its number is free for somebody else. Nobody may be left, which is as good.
        let _ = signal_group(self.pid, Group::Terminate);
        match self.process.reap() {
            Ok(Reaped::Exited(how)) => how,
            Ok(Reaped::Running) => "it cannot be told how".to_owned(),
            Ok(Reaped::NotOurs) => "somebody else has collected its end".to_owned(),
            Err(error) => error.to_string(),
        }
    }
}
