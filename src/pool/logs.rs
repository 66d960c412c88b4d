//! What workers write to standard output and standard error.
//!
//! It is passed through, or every line says whose it is. For the second a process of its own, the [relay], reads the pipes
//! that the workers write to:
//!
//! 1. No log, however slow, stops the supervisor, which reads and writes none of it; and workers whose supervisor was killed
//!    have a reader still.
//! 2. A pipe is passed before its worker is started, so none starts whose lines nobody would read.
//! 3. The supervisor keeps the reading ends until the relay says that nothing more can come: a relay that dies is followed by
//!    another one, and what is lost is what it had read and not written yet.
//! 4. The relay is this same program, started without a fork as workers are, and outlives the program that the supervisor's
//!    process becomes.

mod lines;
mod relay;
mod tail;

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep_until, timeout};

pub(super) use self::relay::relay_if_asked;
use self::tail::Tail;
use super::controller::{ReleaseId, WorkerId};
use super::inheritance::Files;
use crate::config::EXIT_DEADLINE;
use crate::sys::activated::{Activated, Program, spawn_activated};
use crate::sys::descriptors::{self, watched};
use crate::sys::environment::{RELAY, Snapshot};
use crate::sys::process::{Pidfd, Reaped, discard};

/// Where the lines of workers go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Logs {
    /// Workers have the supervisor's standard output and standard error.
    #[default]
    Plain,
    /// There too, each line with the worker and the release that it is of: `worker 2 release 3 | `, behind a level of the
    /// journal (`<3>`, sd-daemon(3)).
    ///
    /// A line longer than 4 KiB comes in pieces, each with its prefix: that is what a pipe takes at once, so no line is torn. A candidate's last words explain why an update was
    /// undone. Workers write to pipes, which some programs fill only when they have a block full: `PYTHONUNBUFFERED=1` and
    /// stdbuf(1) are for these.
    ///
    /// The process that reads the pipes is this program once more. As in a
    /// [trial](super#the-supervisors-own-upgrade) what comes before [`start`](super::Builder::start) runs there too,
    /// and `start` returns an error in the end.
    Prefixed,
}

/// The pipes of all workers, and the relay that reads them.
#[derive(Debug)]
pub(super) struct Outlets {
    logs: Logs,
    snapshot: &'static Snapshot,
    relay: Option<Relay>,
    /// When the next one is started, after one that did not last.
    again_at: Option<Instant>,
    streams: BTreeMap<WorkerId, Stream>,
}

#[derive(Debug)]
struct Relay {
    pid: u32,
    process: Pidfd,
    way: AsyncFd<OwnedFd>,
    since: Instant,
    /// It has let go of its end, and is killed then.
    ends_by: Option<Instant>,
}

/// What one worker writes.
#[derive(Debug)]
struct Stream {
    release: ReleaseId,
    /// The reading ends of standard output and standard error; none once nothing more can come.
    pipes: Option<[OwnedFd; 2]>,
    tail: Arc<Tail>,
    is_passed: bool,
}

/// What has happened to them.
#[derive(Debug)]
pub(super) enum Relayed {
    /// Some words came, or there was room for others.
    Some,
    /// The relay has died, like this.
    Died(String),
}

/// What supervisor and relay say to each other. Fields that one of them does not know it ignores: they may be of different
/// releases.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    /// With the reading ends of standard output and standard error, and the file of its last words.
    Begun {
        worker: WorkerId,
        release: ReleaseId,
    },
    /// Both of its streams are over.
    Ended { worker: WorkerId },
    /// Nobody waits any more for what it has written.
    Forgotten { worker: WorkerId },
}

/// All of them for the next supervisor in this process, beside the descriptors: the relay's process and the way to it, and
/// for each worker its pipes and its last words.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Saved {
    relay: Option<u32>,
    streams: Vec<(WorkerId, ReleaseId, bool)>,
}

/// What a worker has said last, as far as it is known by now.
#[derive(Clone, Debug)]
pub(super) struct LastWords(Arc<Tail>);

impl Outlets {
    pub(super) fn new(logs: Logs, snapshot: &'static Snapshot) -> Self {
        Self {
            logs,
            snapshot,
            relay: None,
            again_at: None,
            streams: BTreeMap::new(),
        }
    }

    /// Goes on with what was saved. Whoever was started before keeps what it has.
    pub(super) fn resume(
        mut self,
        saved: Saved,
        files: &mut Files<'_>,
        now: Instant,
    ) -> io::Result<Self> {
        if let Some(pid) = saved.relay {
            self.relay = Some(Relay {
                pid,
                process: Pidfd::adopt(files.take()?)?,
                way: watched(files.take()?, BOTH)?,
                since: now,
                ends_by: None,
            });
        }
        for (worker, release, is_passed) in saved.streams {
            let stream = Stream {
                release,
                pipes: Some([files.take()?, files.take()?]),
                tail: Arc::new(files.take()?.into()),
                is_passed,
            };
            self.streams.insert(worker, stream);
        }
        Ok(self)
    }

    pub(super) fn save(&self) -> Saved {
        let streams = self.streams.iter().filter(|(_, stream)| !stream.is_over());
        Saved {
            relay: self.pid(),
            streams: streams
                .map(|(id, it)| (*id, it.release, it.is_passed))
                .collect(),
        }
    }

    /// The descriptors, in the order in which [`Saved`] has them.
    pub(super) fn files(&self) -> Vec<BorrowedFd<'_>> {
        let relay = self.relay.iter();
        let relay = relay.flat_map(|it| [it.process.as_fd(), it.way.get_ref().as_fd()]);
        let streams = self.streams.values().filter_map(Stream::files);
        relay.chain(streams.flatten()).collect()
    }

    /// The process of the relay.
    pub(super) fn pid(&self) -> Option<u32> {
        self.relay.as_ref().map(|relay| relay.pid)
    }

    /// What a worker that is about to be started has for standard output and standard error, if not the supervisor's.
    pub(super) fn open(
        &mut self,
        worker: WorkerId,
        release: ReleaseId,
    ) -> io::Result<Option<[OwnedFd; 2]>> {
        if self.logs == Logs::Plain {
            return Ok(None);
        }
        let (out, err, tail) = (pipe()?, pipe()?, Tail::create()?);
        if self.relay.is_none() && self.again_at.is_none() {
            self.relay = Some(Relay::start(self.snapshot)?);
        }
        let stream = Stream {
            release,
            pipes: Some([out.0, err.0]),
            tail: Arc::new(tail),
            is_passed: false,
        };
        self.streams.insert(worker, stream);
        self.pass();
        Ok(Some([out.1, err.1]))
    }

    /// Whether nothing more can come from a worker.
    pub(super) fn is_over(&self, worker: WorkerId) -> bool {
        self.streams.get(&worker).is_none_or(Stream::is_over)
    }

    /// Forgets those of whom nothing more can come, but for these. Of others that are gone it is not more than so many whose
    /// lines wait: behind a log that nobody reads, workers may crash on and on.
    pub(super) fn forget_all_but(&mut self, is_there: impl Fn(WorkerId) -> bool) {
        let is_kept =
            |worker: &WorkerId, stream: &mut Stream| !stream.is_over() || is_there(*worker);
        self.streams.retain(is_kept);
        let gone = self.streams.keys().filter(|worker| !is_there(**worker));
        let gone: Vec<WorkerId> = gone.copied().collect();
        for worker in &gone[..gone.len().saturating_sub(GONE_MAX)] {
            self.streams.remove(worker);
            let word = serde_json::to_vec(&Word::Forgotten { worker: *worker });
            if let (Ok(word), Some(relay)) = (word, &self.relay) {
                // One that cannot be told keeps its ends for longer than it had to.
                let _ = descriptors::send(relay.way.get_ref().as_fd(), &word, &[]);
            }
        }
    }

    pub(super) fn last_words(&self, worker: WorkerId) -> Option<LastWords> {
        let stream = self.streams.get(&worker)?;
        Some(LastWords(Arc::clone(&stream.tail)))
    }

    /// Waits until something happens that the supervisor has to know.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub(super) async fn next(&mut self) -> Relayed {
        let Some(relay) = &self.relay else {
            match self.again_at {
                Some(at) => sleep_until(at.into()).await,
                None => pending().await,
            }
            return self.start_again();
        };
        let mut body = [0; WORD_MAX];
        let waiting = self.streams.iter().find(|(_, stream)| stream.is_to_pass());
        let passed = async {
            match waiting {
                Some((worker, stream)) => {
                    let pass = |way: &OwnedFd| stream.pass(*worker, way.as_fd());
                    let passed = relay.way.async_io(Interest::WRITABLE, pass);
                    passed.await.map(|()| *worker)
                }
                None => pending().await,
            }
        };
        let hear = |way: &OwnedFd| descriptors::recv(way.as_fd(), &mut body);
        let heard = relay.way.async_io(Interest::READABLE, hear);
        let ends = relay.ends_by.unwrap_or(relay.since);
        let heard = tokio::select! {
            biased;
            gone = relay.process.exited() => return self.is_dead(gone.err()),
            () = sleep_until(ends.into()), if relay.ends_by.is_some() => return self.is_dead(None),
            heard = heard, if relay.ends_by.is_none() => heard,
            passed = passed, if relay.ends_by.is_none() => match passed {
                Ok(worker) => {
                    self.is_passed(worker);
                    return Relayed::Some;
                }
                Err(error) => Err(error),
            },
        };
        match heard.map(|heard| heard.map(|it| serde_json::from_slice(&body[..it.length]))) {
            Ok(Some(Ok(Word::Ended { worker }))) => {
                if let Some(stream) = self.streams.get_mut(&worker) {
                    stream.pipes = None;
                }
            }
            // A later relay may say what this supervisor does not know.
            Ok(Some(_)) => {}
            // It ends by itself, and how it does is the reason.
            Ok(None) => self.hangs_up(),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.hangs_up(),
            Err(error) => return self.is_dead(Some(error)),
        }
        Relayed::Some
    }

    /// Lets the relay end with the last line of the last worker. Who still writes after `limit` is read on.
    pub(super) async fn finish(&mut self, limit: Duration) {
        let is_read = self.streams.values().all(Stream::is_over);
        if self.relay.is_none() && !is_read {
            // Without one these lines are lost.
            let _ = self.start_again();
        }
        self.pass();
        let Some(Relay { process, way, .. }) = self.relay.take() else {
            return;
        };
        drop(way);
        if timeout(limit, process.exited()).await.is_ok() {
            // How it has ended is no news.
            let _ = process.reap();
        }
    }

    fn start_again(&mut self) -> Relayed {
        self.again_at = None;
        self.streams
            .values_mut()
            .for_each(|stream| stream.is_passed = false);
        match Relay::start(self.snapshot) {
            Ok(relay) => self.relay = Some(relay),
            Err(error) => {
                self.again_at = Some(Instant::now() + AGAIN);
                return Relayed::Died(format!("it cannot be started: {error}"));
            }
        }
        self.pass();
        Relayed::Some
    }

    fn hangs_up(&mut self) {
        if let Some(relay) = &mut self.relay {
            relay.ends_by = Some(Instant::now() + EXIT_DEADLINE);
        }
    }

    /// Or as good as dead, for this reason.
    fn is_dead(&mut self, why: Option<io::Error>) -> Relayed {
        let Some(relay) = self.relay.take() else {
            return Relayed::Some;
        };
        // One that lasted comes back at once.
        self.again_at = Some(Instant::now().max(relay.since + AGAIN));
        let end = relay.process.end();
        Relayed::Died(match (why, end) {
            (None, Ok(Reaped::Exited(status))) => status.to_string(),
            (None, _) => "nobody knows how".to_owned(),
            (Some(error), _) => error.to_string(),
        })
    }

    fn is_passed(&mut self, worker: WorkerId) {
        if let Some(stream) = self.streams.get_mut(&worker) {
            stream.is_passed = true;
        }
    }

    /// As far as there is room; the rest follows when there is.
    fn pass(&mut self) {
        let Some(relay) = &self.relay else { return };
        let waiting = self
            .streams
            .iter_mut()
            .filter(|(_, stream)| stream.is_to_pass());
        for (worker, stream) in waiting {
            stream.is_passed = stream.pass(*worker, relay.way.get_ref().as_fd()).is_ok();
        }
    }
}

impl Relay {
    fn start(snapshot: &Snapshot) -> io::Result<Self> {
        let (ours, theirs) = descriptors::pair()?;
        let inode = descriptors::inode(theirs.as_fd())?.to_string();
        let env = [&snapshot.env[..], &[(RELAY.into(), inode.into())]].concat();
        let pid = spawn_activated(&Activated {
            // What this process runs, whatever its name leads to by now (proc_pid_exe(5)).
            program: Program::Path(Path::new("/proc/self/exe")),
            argv: &snapshot.argv,
            env: &env,
            cwd: None,
            sockets: &[theirs.as_fd()],
            streams: None,
        })?;
        Ok(Self {
            pid,
            process: Pidfd::open(pid).inspect_err(|_| discard(pid))?,
            way: watched(ours, BOTH)?,
            since: Instant::now(),
            ends_by: None,
        })
    }
}

impl Stream {
    fn pass(&self, worker: WorkerId, way: BorrowedFd<'_>) -> io::Result<()> {
        let release = self.release;
        let word = serde_json::to_vec(&Word::Begun { worker, release })?;
        match self.files() {
            Some(files) => descriptors::send(way, &word, &files),
            None => Ok(()),
        }
    }

    fn files(&self) -> Option<[BorrowedFd<'_>; 3]> {
        let [out, err] = self.pipes.as_ref()?;
        Some([out.as_fd(), err.as_fd(), self.tail.as_fd()])
    }

    fn is_over(&self) -> bool {
        self.pipes.is_none()
    }

    fn is_to_pass(&self) -> bool {
        !self.is_passed && !self.is_over()
    }
}

impl LastWords {
    pub(super) fn text(&self) -> String {
        // Without them there is a reason still.
        self.0.text().unwrap_or_default()
    }
}

/// Its reading end, which nobody has to wait at, and the end that its worker has.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((reader.into(), writer.into()))
}

/// How many workers that are gone may have lines that nobody has read.
const GONE_MAX: usize = 64;
/// How long the last lines of workers that are gone are waited for: 2 s.
pub const LOGS_WITHIN: Duration = Duration::from_secs(2);
const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);
/// The longest word.
const WORD_MAX: usize = 256;
/// A relay that has lasted for less time is not started again before.
const AGAIN: Duration = Duration::from_secs(1);
