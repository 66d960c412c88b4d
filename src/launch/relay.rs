//! A successor's standard error, until it is the incumbent.
//!
//! It is a pipe, so that a failed upgrade can be explained by the successor's last words; the incumbent copies what it
//! reads to its own standard error. A pipe without a reader is a trap: the next `eprintln!` panics. So the successor is
//! offered two descriptors of its own, a duplicate of the incumbent's standard error ([`SLOT_STDERR`]) and one of the
//! pipe's reading end ([`SLOT_STDERR_PIPE`]). While it holds the second, no write can fail, whoever dies. When it
//! becomes the incumbent, or its incumbent dies, it [restores](restore_stderr) the first and copies what is left in the
//! pipe, and what its own helpers may still write there.
//!
//! O_NONBLOCK is set on the reading end only, which is theirs alone; a standard error is shared with strangers.
//!
//! What an incumbent has read and not yet written when it is killed is lost: at most one chunk of 8 KiB.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::dup2_stderr;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::{self, JoinHandle};
use tokio::time::timeout;

use super::tail::{TAIL_BYTES_MAX, Tail};
use crate::protocol::message::{Slot, SlotKind};
use crate::state::State;
use crate::sys::descriptors::same_file;
use crate::sys::process::Pidfd;

/// The slot of the standard error that the successor is to have in the end.
const SLOT_STDERR: &str = "handover.stderr";
/// The slot of the reading end of the pipe that is its standard error until then.
const SLOT_STDERR_PIPE: &str = "handover.stderr-pipe";

/// Everything that a relay needs, acquired before there is a successor that it could fail.
#[derive(Debug)]
pub(super) struct Capture {
    /// The successor's standard error; dropped once the successor has it.
    pub(super) writer: OwnedFd,
    reader: pipe::Receiver,
    pipe: OwnedFd,
    stderr: File,
}

/// Copies what a successor writes to this process's standard error, and remembers the end of it.
///
/// Goes on until the last writer is gone, even if this is dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    copying: JoinHandle<()>,
    tail: Arc<Mutex<Tail>>,
    pipe: OwnedFd,
    stderr: Arc<File>,
}

impl Capture {
    /// `None` if this process has no standard error that a successor could get back.
    pub(super) fn open() -> io::Result<Option<Self>> {
        let stderr = match io::stderr().as_fd().try_clone_to_owned() {
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => return Ok(None),
            stderr => File::from(stderr?),
        };
        let (reader, writer) = io::pipe()?;
        Ok(Some(Self {
            pipe: reader.try_clone()?.into(),
            reader: pipe::Receiver::from_owned_fd(reader.into())?,
            writer: writer.into(),
            stderr,
        }))
    }

    pub(super) fn relay(self) -> Relay {
        let (tail, stderr) = (Arc::default(), Arc::new(self.stderr));
        let copying = copy(self.reader, Arc::clone(&stderr), Arc::clone(&tail));
        Relay {
            copying: task::spawn(copying),
            tail,
            pipe: self.pipe,
            stderr,
        }
    }
}

impl Relay {
    /// The last lines that have been read so far.
    pub(crate) fn tail(&self) -> String {
        lock(&self.tail).text()
    }

    /// The last lines of a successor that is gone: waits until everything that it wrote is read, or for as long as the
    /// deadline allows, since a helper that outlived it may keep the pipe open.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub(crate) async fn last_words(&mut self, deadline: Duration) -> String {
        if !self.copying.is_finished() {
            // In time or not, the tail is then what there is.
            let _ = timeout(deadline, &mut self.copying).await;
        }
        self.tail()
    }

    /// What the successor must be offered so that its standard error outlives this process.
    pub(crate) fn slots(&self) -> io::Result<Vec<(Slot, OwnedFd)>> {
        Ok(vec![
            (slot(SLOT_STDERR), self.stderr.try_clone()?.into()),
            (slot(SLOT_STDERR_PIPE), self.pipe.try_clone()?),
        ])
    }
}

/// The standard error that a successor is to have in the end, and the reading end of the one that it has.
#[derive(Clone, Debug)]
pub(crate) struct OwnStderr(Arc<Mutex<Option<(OwnedFd, OwnedFd)>>>);

impl OwnStderr {
    /// Takes it out of what was offered; `None` if standard error is not captured.
    pub(crate) fn take(offered: &mut State) -> Option<Self> {
        let stderr = offered.take_descriptor(SLOT_STDERR);
        let pipe = offered.take_descriptor(SLOT_STDERR_PIPE);
        stderr
            .zip(pipe)
            .map(|both| Self(Arc::new(Mutex::new(Some(both)))))
    }

    /// Restores it, if that has not been done.
    pub(crate) fn restore(&self) -> io::Result<()> {
        let both = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        both.map_or(Ok(()), |(stderr, pipe)| restore_stderr(stderr, pipe))
    }

    /// Restores it when the incumbent is gone, whatever this generation does then: a pipe that nobody empties would
    /// stall whoever writes to it.
    pub(crate) fn restore_after(&self, incumbent: &Pidfd) -> io::Result<()> {
        let incumbent = incumbent.try_clone()?;
        let own = self.clone();
        task::spawn(async move {
            if incumbent.exited().await.is_ok()
                && let Err(error) = own.restore()
            {
                tracing::warn!(%error, "standard error stays with the incumbent");
            }
        });
        Ok(())
    }
}

/// Gives this process the standard error that its incumbent has offered, and copies what is left in the pipe there: at
/// once what is in it, later what helpers still write.
///
/// Leaves standard error alone if the application has redirected it in the meantime.
fn restore_stderr(stderr: OwnedFd, pipe: OwnedFd) -> io::Result<()> {
    // First, because it needs no new descriptor: a process that has none left must not be left with a pipe that nobody
    // reads.
    if same_file(io::stderr().as_fd(), pipe.as_fd())? {
        dup2_stderr(&stderr)?;
    }
    fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    // Past std's lock, which a thread may hold that waits for room in the very pipe that is emptied here.
    let rest = pipe::Receiver::from_owned_fd(pipe)?;
    // Not here: whoever reads the log may be slow, and an incumbent waits for this generation's word.
    task::spawn(copy(rest, Arc::new(File::from(stderr)), Arc::default()));
    Ok(())
}

/// For a successor whose incumbent died before it could offer anything: standard error goes where standard output goes,
/// if nobody reads it any more, so that the next `eprintln!` does not panic.
pub(crate) fn rescue_stderr() -> io::Result<()> {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    // poll(2): POLLERR is set for the writing end of a pipe whose reading end is closed, asked for or not.
    let mut polled = [PollFd::new(stderr.as_fd(), PollFlags::empty())];
    let broken = poll(&mut polled, PollTimeout::ZERO)? > 0
        && polled[0]
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLERR));
    if broken {
        dup2_stderr(&stdout)?;
    }
    Ok(())
}

async fn copy(mut pipe: pipe::Receiver, stderr: Arc<File>, tail: Arc<Mutex<Tail>>) {
    let mut chunk = vec![0; TAIL_BYTES_MAX];
    while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
        lock(&tail).push(&chunk[..length]);
        let (text, stderr) = (chunk[..length].to_vec(), Arc::clone(&stderr));
        // A log that cannot be written must not stop the reading: a full pipe would stall the successor.
        let _ = task::spawn_blocking(move || (&*stderr).write_all(&text)).await;
    }
}

fn slot(name: &str) -> Slot {
    Slot {
        name: name.into(),
        kind: SlotKind::Descriptor,
        inode: None,
        keeper: None,
    }
}

fn lock(tail: &Mutex<Tail>) -> MutexGuard<'_, Tail> {
    tail.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::ran_in_its_own_process;

    /// How much a pipe holds, unless somebody changed it (pipe(7)).
    const PIPE_BYTES: usize = 64 * 1024;
    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn last_words_wait_for_the_last_writer_but_not_for_ever() {
        let (mut relay, mut writer, _log) = relay();
        let helper = writer.try_clone().unwrap();
        writer.write_all(b"no such database\n").unwrap();
        drop(writer);
        assert_eq!(relay.last_words(Duration::ZERO).await, relay.tail());
        drop(helper);
        for _ in 0..2 {
            assert_eq!(relay.last_words(PATIENCE).await, "no such database\n");
        }
    }

    #[tokio::test]
    async fn a_successor_is_read_although_the_log_cannot_be_written() {
        let (mut relay, mut writer, log) = relay();
        drop(log);
        let much = vec![b'x'; 4 * PIPE_BYTES];
        let writing = task::spawn_blocking(move || writer.write_all(&much));
        timeout(PATIENCE, writing).await.unwrap().unwrap().unwrap();
        assert_eq!(relay.last_words(PATIENCE).await.len(), TAIL_BYTES_MAX);
    }

    #[tokio::test]
    async fn a_relay_that_is_dropped_goes_on_to_the_end() {
        let (relay, mut writer, mut log) = relay();
        drop(relay);
        writer.write_all(b"still heard").unwrap();
        drop(writer);
        assert_eq!(heard(&mut log, 11).await, "still heard");
    }

    #[tokio::test]
    async fn a_restored_standard_error_gets_what_was_left_and_what_helpers_write() {
        let name = "launch::relay::tests::a_restored_standard_error_gets_what_was_left_and_what_helpers_write";
        if ran_in_its_own_process(name, &[]) {
            return;
        }
        let (relay, mut helper, mut log) = relay();
        // The incumbent has died: nobody copies.
        relay.copying.abort();
        dup2_stderr(&helper).unwrap();
        io::stderr().write_all(b"left\n").unwrap();
        let own = offered(&relay);
        let real = relay.stderr.try_clone().unwrap();
        drop(relay);
        own.restore().unwrap();
        assert!(same_file(io::stderr().as_fd(), real.as_fd()).unwrap());
        assert_eq!(heard(&mut log, 5).await, "left\n");
        helper.write_all(b"helper\n").unwrap();
        assert_eq!(heard(&mut log, 7).await, "helper\n");
    }

    #[tokio::test]
    async fn a_standard_error_that_the_application_redirected_is_left_alone() {
        let name =
            "launch::relay::tests::a_standard_error_that_the_application_redirected_is_left_alone";
        if ran_in_its_own_process(name, &[]) {
            return;
        }
        let (relay, _helper, _log) = relay();
        let (_reader, elsewhere) = io::pipe().unwrap();
        dup2_stderr(&elsewhere).unwrap();
        offered(&relay).restore().unwrap();
        assert!(same_file(io::stderr().as_fd(), elsewhere.as_fd()).unwrap());
    }

    #[test]
    fn a_standard_error_that_nobody_reads_goes_where_standard_output_goes() {
        let name = "launch::relay::tests::a_standard_error_that_nobody_reads_goes_where_standard_output_goes";
        if ran_in_its_own_process(name, &[]) {
            return;
        }
        let (reader, writer) = io::pipe().unwrap();
        dup2_stderr(&writer).unwrap();
        rescue_stderr().unwrap();
        assert!(same_file(io::stderr().as_fd(), writer.as_fd()).unwrap());
        drop(reader);
        rescue_stderr().unwrap();
        assert!(same_file(io::stderr().as_fd(), io::stdout().as_fd()).unwrap());
    }

    async fn heard(log: &mut pipe::Receiver, length: usize) -> String {
        let mut text = vec![0; length];
        let read = timeout(PATIENCE, log.read_exact(&mut text)).await;
        read.unwrap().unwrap();
        String::from_utf8(text).unwrap()
    }

    fn offered(relay: &Relay) -> OwnStderr {
        let mut state = State::default();
        for (slot, descriptor) in relay.slots().unwrap() {
            assert!(state.insert(slot, descriptor).is_none());
        }
        let offered = OwnStderr::take(&mut state).unwrap();
        assert_eq!(state.names().count(), 0);
        assert!(OwnStderr::take(&mut state).is_none());
        offered
    }

    /// A relay to a log that can be read, and the successor's end of it.
    fn relay() -> (Relay, File, pipe::Receiver) {
        let (log, stderr) = io::pipe().unwrap();
        let mut capture = Capture::open().unwrap().unwrap();
        capture.stderr = File::from(OwnedFd::from(stderr));
        let writer = capture.writer.try_clone().unwrap();
        let log = pipe::Receiver::from_owned_fd(log.into()).unwrap();
        (capture.relay(), File::from(writer), log)
    }
}
