//! One worker that has been started: a process that is watched, told to stop, and killed.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::controller::ReleaseId;
use super::slots::SlotIndex;
use crate::protocol::message::{Tally, millis};
use crate::sys::activated::{Group, signal_group};
use crate::sys::process::{Pidfd, Reaped, discard};

/// What is left of a worker to the next supervisor in this process, beside its pidfd and its probe.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    pid: u32,
    release: ReleaseId,
    age_ms: u64,
    #[serde(default)]
    tally: Option<Tally>,
    #[serde(default)]
    slot: SlotIndex,
    #[serde(default)]
    pub(crate) has_probe: bool,
}

/// The process of a worker, from its start to its end.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) pid: u32,
    pub(crate) release: ReleaseId,
    pub(crate) started: Instant,
    /// What it has counted, as it last said.
    pub(crate) tally: Option<Tally>,
    /// Which sockets it has, if workers have some of their own.
    pub(crate) slot: SlotIndex,
    /// The private socket on which it is to accept a connection, until it has.
    pub(crate) probe: Option<TcpListener>,
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
            slot: 0,
            probe: None,
            process,
        })
    }

    pub(crate) fn save(&self) -> Saved {
        Saved {
            pid: self.pid,
            release: self.release,
            age_ms: millis(self.started.elapsed()),
            tally: self.tally.clone(),
            slot: self.slot,
            has_probe: self.probe.is_some(),
        }
    }

    /// The same process as it was saved, with the pidfd that came with it.
    pub(crate) fn resume(
        saved: Saved,
        process: OwnedFd,
        probe: Option<OwnedFd>,
        now: Instant,
    ) -> io::Result<Self> {
        let age = Duration::from_millis(saved.age_ms);
        Ok(Self {
            pid: saved.pid,
            release: saved.release,
            started: now.checked_sub(age).unwrap_or(now),
            tally: saved.tally,
            slot: saved.slot,
            probe: probe.map(TcpListener::from),
            process: Pidfd::adopt(process)?,
        })
    }

    pub(crate) fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    /// Tells it to finish what it has begun and to leave.
    pub(crate) fn stop(&self) -> io::Result<()> {
        self.process.signal(libc::SIGTERM)
    }

    /// Passes a signal on.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        self.process.signal(signal)
    }

    /// Ends it and what it has started.
    pub(crate) fn kill(&self) -> io::Result<()> {
        signal_group(self.pid, Group::Kill).or_else(|_| self.process.kill())
    }

    /// The same, and waits for its end, which comes for sure. For one that nobody is to hear of.
    pub(crate) fn discard(self) {
        // One that is gone is collected all the same.
        let _ = self.kill();
        discard(self.pid);
    }

    pub(crate) fn poll_exited(&self, context: &mut Context<'_>) -> Poll<()> {
        // Only a runtime that shuts down fails here, and then nobody polls again.
        self.process.poll_exited(context).map(drop)
    }

    /// How it has ended, in words. What it had started and left behind is told to leave: it may hold the sockets, and
    /// take connections that nobody answers.
    pub(crate) fn reap(&self) -> End {
        // Before its number is free for somebody else. Nobody may be left, which is as good.
        let _ = signal_group(self.pid, Group::Terminate);
        match self.process.reap() {
            Ok(Reaped::Exited(status)) => End::Known(status),
            Ok(Reaped::Running) => End::Unknown("it cannot be told how".to_owned()),
            Ok(Reaped::NotOurs) => End::Unknown("somebody else has collected its end".to_owned()),
            Err(error) => End::Unknown(error.to_string()),
        }
    }
}

/// How a worker has ended.
#[derive(Debug)]
pub(crate) enum End {
    Known(ExitStatus),
    /// Nobody can tell, for this reason.
    Unknown(String),
}

impl End {
    /// What the supervisor ends with because of it: nothing if it left as it was told to, by itself or by the default
    /// action of the signal; else its code, or 128 and the number of the signal, as shells have it.
    pub(crate) fn failure(&self) -> Option<u8> {
        let Self::Known(status) = self else {
            return None;
        };
        match (status.code(), status.signal()) {
            (Some(0), _) | (_, Some(libc::SIGTERM)) => None,
            (Some(code), _) => Some(u8::try_from(code).unwrap_or(u8::MAX)),
            (None, signal) => Some(u8::try_from(128 + signal.unwrap_or(0)).unwrap_or(u8::MAX)),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(status) => status.fmt(f),
            Self::Unknown(why) => f.write_str(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_was_asked_for_is_no_failure_and_others_are_told_as_shells_do() {
        let failure = |raw| End::Known(ExitStatus::from_raw(raw)).failure();
        assert_eq!(failure(0), None);
        assert_eq!(failure(libc::SIGTERM), None);
        assert_eq!(failure(7 << 8), Some(7));
        assert_eq!(failure(libc::SIGKILL), Some(137));
        assert_eq!(End::Unknown(String::new()).failure(), None);
    }
}
