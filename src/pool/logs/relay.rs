//! The relay: the process that reads what workers write, and writes it on, line by line.
//!
//! 1. It reads no more than it has room for, and writes only where there is room: a sink that is slow stops those who
//!    write to it, and neither the others nor the news of new workers.
//! 2. A sink that cannot be written at all loses its lines: a worker whose pipe is full would be stopped for ever.
//! 3. It ends when the last writer is gone and nobody can send it new pipes. What a terminal or a service manager sends to
//!    everybody is not for it: the workers that it is sent to have still to say what becomes of them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::controller::WorkerId;
use super::lines::{Lines, batch};
use super::tail::Tail;
use super::{WORD_MAX, Word};
use crate::error::{Error, ErrorKind};
use crate::sys::environment::{RELAY, Snapshot};
use crate::sys::process::set_name;
use crate::sys::{descriptors, signals};

/// If this process was started as a relay: is one, to the end. The error is for a program that has nothing else to do.
pub(in super::super) fn relay_if_asked(snapshot: &Snapshot) -> Option<Error> {
    let inode = snapshot.service_manager(RELAY)?;
    let relaying =
        |what: String| Error::new(ErrorKind::Launch, "relaying workers' lines").because(what);
    let inode = inode.to_str().and_then(|inode| inode.parse().ok());
    if !inode.is_some_and(|inode| descriptors::leads_to(WAY, inode)) {
        return Some(relaying(format!(
            "descriptor {WAY} is not the way to a supervisor"
        )));
    }
    let ended = descriptors::adopt(WAY).and_then(|way| {
        signals::ignore(&FOR_OTHERS)?;
        // What ps(1) shows is all that is lost.
        let _ = set_name(NAME.as_ref());
        Relay::new(way)?.run()
    });
    Some(match ended {
        Ok(()) => {
            // What the program makes of the error is nobody's business.
            let _ = silence();
            relaying("nobody writes any more".to_owned())
        }
        Err(error) => relaying(error.to_string()),
    })
}

struct Relay {
    /// To the supervisor, until that is gone.
    way: Option<OwnedFd>,
    sources: Vec<Source>,
    sinks: [Sink; 2],
}

/// The reading end of one stream of a worker.
struct Source {
    worker: WorkerId,
    pipe: File,
    lines: Lines,
    /// Of standard error.
    tail: Option<Tail>,
    sink: usize,
    is_over: bool,
}

/// Where the lines of all of them go.
struct Sink {
    /// None if this process was started without it.
    file: Option<File>,
    lines: Vec<u8>,
}

/// What has something to do.
#[derive(Clone, Copy)]
enum Ready {
    Way,
    Source(usize),
    Sink(usize),
}

impl Relay {
    fn new(way: OwnedFd) -> io::Result<Self> {
        let sinks = [Sink::of(io::stdout())?, Sink::of(io::stderr())?];
        Ok(Self {
            way: Some(way),
            sources: Vec::new(),
            sinks,
        })
    }

    fn run(mut self) -> io::Result<()> {
        while !self.is_over() {
            for ready in self.wait()? {
                match ready {
                    Ready::Way => self.hear()?,
                    Ready::Source(index) => self.read(index),
                    Ready::Sink(index) => self.sinks[index].write(),
                }
            }
            self.part();
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.way.is_none()
            && self.sources.is_empty()
            && self.sinks.iter().all(|it| it.lines.is_empty())
    }

    fn wait(&self) -> io::Result<Vec<Ready>> {
        let sinks = self
            .sinks
            .iter()
            .enumerate()
            .filter(|(_, sink)| !sink.lines.is_empty());
        let sinks = sinks.filter_map(|(index, sink)| {
            let file = sink.file.as_ref()?;
            Some((
                Ready::Sink(index),
                PollFd::new(file.as_fd(), PollFlags::POLLOUT),
            ))
        });
        let readable = |file| PollFd::new(file, PollFlags::POLLIN);
        let has_room = |source: &&Source| self.sinks[source.sink].has_room();
        let sources = self
            .sources
            .iter()
            .enumerate()
            .filter(|(_, source)| has_room(source));
        let sources =
            sources.map(|(index, source)| (Ready::Source(index), readable(source.pipe.as_fd())));
        let way = self
            .way
            .as_ref()
            .map(|way| (Ready::Way, readable(way.as_fd())));
        let (asked, mut polled): (Vec<_>, Vec<_>) = sinks.chain(sources).chain(way).unzip();
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let is_ready = |polled: &PollFd<'_>| polled.any().unwrap_or(true);
        let ready = asked.into_iter().zip(&polled);
        Ok(ready
            .filter(|(_, polled)| is_ready(polled))
            .map(|(ready, _)| ready)
            .collect())
    }

    fn hear(&mut self) -> io::Result<()> {
        let Some(way) = &self.way else { return Ok(()) };
        let mut body = [0; WORD_MAX];
        let received = match descriptors::recv(way.as_fd(), &mut body) {
            Ok(Some(received)) => received,
            Ok(None) => {
                self.way = None;
                return Ok(());
            }
            // One that is gone with something unread may have said something all the same.
            Err(error) if is_passing(&error) || error.kind() == io::ErrorKind::ConnectionReset => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let (worker, release) = match serde_json::from_slice(&body[..received.length])? {
            Word::Begun { worker, release } => (worker, release),
            Word::Forgotten { worker } => {
                self.sources.retain(|source| source.worker != worker);
                return Ok(());
            }
            Word::Ended { .. } => return Ok(()),
        };
        let [out, err, tail] = <[OwnedFd; 3]>::try_from(received.descriptors)
            .map_err(|_| io::Error::other("not the pipes of a worker"))?;
        for (sink, (pipe, tail)) in [(out, None), (err, Some(tail.into()))]
            .into_iter()
            .enumerate()
        {
            self.sources.push(Source {
                worker,
                pipe: pipe.into(),
                lines: Lines::of(worker, release),
                tail,
                sink,
                is_over: false,
            });
        }
        Ok(())
    }

    fn read(&mut self, index: usize) {
        let source = &mut self.sources[index];
        source.read(&mut self.sinks[source.sink].lines);
    }

    /// Those who can write no more are let go, and the supervisor is told of a worker when both of its streams are.
    fn part(&mut self) {
        let mut over: Vec<WorkerId> = self
            .sources
            .iter()
            .filter(|it| it.is_over)
            .map(|it| it.worker)
            .collect();
        over.dedup();
        self.sources.retain(|source| !source.is_over);
        for worker in over {
            let is_left = self.sources.iter().any(|source| source.worker == worker);
            if let Some(way) = self.way.as_ref().filter(|_| !is_left)
                && let Ok(word) = serde_json::to_vec(&Word::Ended { worker })
            {
                // A supervisor that cannot be told keeps its ends for longer than it had to.
                let _ = descriptors::send(way.as_fd(), &word, &[]);
            }
        }
        for sink in self.sinks.iter_mut().filter(|sink| sink.file.is_none()) {
            sink.lines.clear();
        }
    }
}

impl Source {
    fn read(&mut self, lines: &mut Vec<u8>) {
        let mut chunk = [0; CHUNK];
        match self.pipe.read(&mut chunk) {
            Ok(length @ 1..) => {
                let chunk = &chunk[..length];
                self.lines.push(chunk, lines);
                // Without it there are no last words; the lines are what matters.
                let _ = self.tail.as_ref().map(|tail| tail.push(chunk));
            }
            Err(error) if is_passing(&error) => {}
            Ok(0) | Err(_) => {
                self.lines.finish(lines);
                self.is_over = true;
            }
        }
    }
}

impl Sink {
    fn of(stream: impl AsFd) -> io::Result<Self> {
        let file = match stream.as_fd().try_clone_to_owned() {
            Ok(file) => Some(file.into()),
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => None,
            Err(error) => return Err(error),
        };
        let lines = Vec::new();
        Ok(Self { file, lines })
    }

    fn has_room(&self) -> bool {
        self.lines.len() < PENDING
    }

    fn write(&mut self) {
        let Some(file) = &mut self.file else { return };
        match file.write(batch(&self.lines)) {
            Ok(written @ 1..) => drop(self.lines.drain(..written)),
            Err(error) if is_passing(&error) => {}
            Ok(0) | Err(_) => self.lines.clear(),
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

fn silence() -> io::Result<()> {
    let null = File::options().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}

/// Where the way is: the first that is passed (`SD_LISTEN_FDS_START`).
const WAY: RawFd = 3;
/// For ps(1).
const NAME: &str = "handover-logs";
/// How much is read at once: 8 KiB.
const CHUNK: usize = 8 * 1024;
/// How much waits for a sink before nothing more is read for it: 64 KiB.
const PENDING: usize = 64 * 1024;
/// What everybody of a terminal or of a service is sent, and what a background process gets that writes to a terminal.
const FOR_OTHERS: [i32; 9] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGPIPE,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGTTOU,
    libc::SIGTSTP,
];
