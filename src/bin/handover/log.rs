//! The supervisor's own log, on standard error: standard output is the workers'.
//!
//! Whoever reads it may be slow, or not read at all, and the supervisor has one thread: it writes only where there is room.
//! Events wait as long as there is place for them, and are counted then.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Standard error; none where it always has room, as a file has (epoll_ctl(2), EPERM).
#[derive(Debug)]
pub(crate) struct Log(Option<AsyncFd<OwnedFd>>);

impl Log {
    pub(crate) fn open() -> Self {
        let stderr = io::stderr().as_fd().try_clone_to_owned();
        #[allow(
            deprecated,
            reason = "unsound only for a type that may change its number, which OwnedFd does not; the new name is too new"
        )]
        let watched = stderr.and_then(|stderr| AsyncFd::with_interest(stderr, Interest::WRITABLE));
        Self(watched.ok())
    }

    /// In one write, so that nobody else's lines come between.
    pub(crate) async fn write(&self, line: &str) {
        if let Some(stderr) = &self.0 {
            until_room(stderr).await;
        }
        // Without a standard error there is nobody to tell.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

async fn until_room(stderr: &AsyncFd<OwnedFd>) {
    while let Ok(mut ready) = stderr.writable().await {
        let mut polled = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut polled, PollTimeout::ZERO) {
            Ok(0) => ready.clear_ready(),
            // Room, or an error that the write has too.
            Ok(_) | Err(_) => return,
        }
    }
}
