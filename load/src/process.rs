//! Servers under test: what they print, which of their generations live, and that none outlives its test.

use std::ffi::OsString;
use std::fmt::Debug;
use std::fs;
use std::io::{self, BufRead, BufReader, PipeReader};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, kill_process_group, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time;

pub use rustix::process::Signal;

/// The environment variable that every generation of one [`Server`] inherits, and by which they are found.
pub const RUN: &str = "TESTD_RUN";

/// A server's first generation with all that descend from it.
///
/// Dropping it kills them all and waits until they are gone. If the thread is panicking, it then prints their output.
#[derive(Debug)]
pub struct Server {
    child: Child,
    run: OsString,
    output: Arc<watch::Sender<Output>>,
    status: Option<ExitStatus>,
}

#[derive(Debug, Default)]
struct Output {
    lines: Vec<String>,
    /// Nobody can write any more: every generation is gone.
    is_ended: bool,
}

impl Server {
    /// Starts a command in a process group of its own, with its standard output and error in one pipe that all
    /// generations share.
    ///
    /// # Errors
    ///
    /// If the pipe or the process cannot be made.
    pub fn spawn(mut command: Command) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let run = unique_run();
        let child = command
            .env(RUN, &run)
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .process_group(0)
            .spawn()?;
        // It holds the writing ends, which would keep the pipe from ending.
        drop(command);
        let output = Arc::new(watch::Sender::default());
        let collector = Arc::clone(&output);
        thread::spawn(move || collect(reader, &collector));
        Ok(Self {
            child,
            run,
            output,
            status: None,
        })
    }

    /// The first generation's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the first generation; [`signal`] is for the later ones.
    ///
    /// # Errors
    ///
    /// If it is gone.
    pub fn signal(&self, with: Signal) -> io::Result<()> {
        signal(self.pid(), with)
    }

    /// The processes of all live generations, by process id. A process that has exited is not among them, even if its
    /// parent has not looked yet.
    pub fn live(&self) -> Vec<u32> {
        let mut pids: Vec<_> = processes().filter(|pid| self.owns(*pid)).collect();
        pids.sort_unstable();
        pids
    }

    /// The first line of the output that contains `pattern`, as soon as there is one.
    ///
    /// # Errors
    ///
    /// `TimedOut` when `deadline` has passed and `UnexpectedEof` when all generations are gone, with the whole log.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when this is dropped: lines stay where they are.
    pub async fn wait_for_line(&self, pattern: &str, deadline: Duration) -> io::Result<String> {
        let mut lines = self.wait_for_lines(pattern, 1, deadline).await?;
        Ok(lines.remove(0))
    }

    /// The first `count` lines of the output that contain `pattern`, as soon as there are so many.
    ///
    /// # Errors
    ///
    /// As [`wait_for_line`](Self::wait_for_line).
    ///
    /// # Cancel safety
    ///
    /// As [`wait_for_line`](Self::wait_for_line).
    pub async fn wait_for_lines(
        &self,
        pattern: &str,
        count: usize,
        deadline: Duration,
    ) -> io::Result<Vec<String>> {
        let mut output = self.output.subscribe();
        let enough = output.wait_for(|output| output.is_ended || output.contains(pattern, count));
        let Ok(Ok(output)) = time::timeout(deadline, enough).await else {
            let what = format!("no {count} lines with {pattern:?} within {deadline:?}");
            return Err(self.explained(io::ErrorKind::TimedOut, &what));
        };
        let found: Vec<_> = output.matching(pattern).take(count).cloned().collect();
        // The log is read under the same lock.
        drop(output);
        if found.len() < count {
            let what = format!("no {count} lines with {pattern:?} when the last generation ended");
            return Err(self.explained(io::ErrorKind::UnexpectedEof, &what));
        }
        Ok(found)
    }

    /// The address in the line `listening NAME ADDRESS`.
    ///
    /// # Errors
    ///
    /// As [`wait_for_line`](Self::wait_for_line), and `InvalidData` if it is not an address.
    ///
    /// # Cancel safety
    ///
    /// As [`wait_for_line`](Self::wait_for_line).
    pub async fn address(&self, name: &str, deadline: Duration) -> io::Result<SocketAddr> {
        let pattern = format!("listening {name} ");
        let line = self.wait_for_line(&pattern, deadline).await?;
        let address = line.split(&pattern).nth(1).unwrap_or_default().trim();
        address
            .parse()
            .map_err(|_| self.explained(io::ErrorKind::InvalidData, &line))
    }

    /// How the first generation ended, as soon as it has.
    ///
    /// # Errors
    ///
    /// `TimedOut` with the whole log when `deadline` has passed.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when this is dropped.
    pub async fn exit_status(&mut self, deadline: Duration) -> io::Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        wait_gone(self.pid(), deadline)
            .await
            .map_err(|error| self.explained(error.kind(), &error.to_string()))?;
        Ok(*self.status.insert(self.child.wait()?))
    }

    /// Waits until every generation is gone.
    ///
    /// # Errors
    ///
    /// `TimedOut` with the whole log when `deadline` has passed.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when this is dropped.
    pub async fn wait_all_gone(&self, deadline: Duration) -> io::Result<()> {
        let mut output = self.output.subscribe();
        match time::timeout(deadline, output.wait_for(|output| output.is_ended)).await {
            Ok(_) => Ok(()),
            Err(_) => {
                let what = format!("alive after {deadline:?}: {:?}", self.live());
                Err(self.explained(io::ErrorKind::TimedOut, &what))
            }
        }
    }

    /// Waits until this is the only generation, and has collected its children.
    ///
    /// # Errors
    ///
    /// `TimedOut` with the whole log when `deadline` has passed.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when this is dropped.
    pub async fn wait_alone(&self, pid: u32, deadline: Duration) -> io::Result<()> {
        let alone = async {
            while let Some(other) = self.live().into_iter().find(|live| *live != pid) {
                wait_gone(other, deadline).await?;
            }
            eventually(
                "uncollected children",
                || children(pid),
                Vec::new(),
                deadline,
            )
            .await
        };
        let outcome = time::timeout(deadline, alone).await;
        outcome
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|error| self.explained(error.kind(), &format!("{pid} is not alone: {error}")))
    }

    /// All that the generations have written, to standard output and error alike.
    pub fn log(&self) -> String {
        self.output.borrow().lines.join("\n")
    }

    fn explained(&self, kind: io::ErrorKind, what: &str) -> io::Error {
        io::Error::new(kind, format!("{what}; the log:\n{}", self.log()))
    }

    fn owns(&self, pid: u32) -> bool {
        let mut entry = OsString::from(RUN);
        entry.push("=");
        entry.push(&self.run);
        let environment = environment(pid);
        let mut entries = environment.split(|byte| *byte == 0);
        entries.any(|found| found == entry.as_encoded_bytes())
    }

    /// One look is not enough: a generation may have started another between the look and its death.
    fn kill_all(&self) {
        for _ in 0..KILL_ROUNDS_MAX {
            let live = self.live();
            if live.is_empty() {
                return;
            }
            live.into_iter().for_each(|pid| self.kill(pid));
        }
    }

    fn kill(&self, pid: u32) {
        let Ok(handle) = open(pid) else { return };
        // The number may have passed to a stranger before the handle was opened, not after it.
        if self.owns(pid) && pidfd_send_signal(&handle, Signal::KILL).is_ok() {
            has_ended(&handle, KILL_DEADLINE);
        }
    }

    /// Those in the group that threw the environment away. The group's number is ours until its leader is reaped.
    fn kill_group(&self) {
        if self.status.is_none()
            && let Some(group) = raw_pid(self.pid())
        {
            // ESRCH: there is nobody left to kill.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    fn print_log(&self) {
        let lines = self.log();
        let name = self.run.to_string_lossy();
        #[expect(clippy::print_stderr, reason = "cargo shows it with the failed test")]
        {
            eprintln!("--- log of server {name}\n{lines}\n--- end of log");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // First those that can be waited for: a dying process loses its environment before it is gone.
        self.kill_all();
        self.kill_group();
        // It is dead: this only takes it out of the process table.
        let _ = self.child.wait();
        if thread::panicking() {
            self.print_log();
        }
    }
}

impl Output {
    fn matching<'a>(&'a self, pattern: &'a str) -> impl Iterator<Item = &'a String> {
        self.lines.iter().filter(move |line| line.contains(pattern))
    }

    fn contains(&self, pattern: &str, count: usize) -> bool {
        self.matching(pattern).take(count).count() == count
    }
}

/// Sends a signal to a process.
///
/// # Errors
///
/// If there is no such process.
pub fn signal(pid: u32, with: Signal) -> io::Result<()> {
    Ok(pidfd_send_signal(open(pid)?, with)?)
}

/// Whether a process exists and has not exited. One that nobody has reaped yet is not alive.
pub fn is_alive(pid: u32) -> bool {
    open(pid).is_ok_and(|handle| !has_ended(&handle, Duration::ZERO))
}

/// Waits until a process has exited, whoever its parent is: `pidfd_open(2)`, "poll".
///
/// # Errors
///
/// `TimedOut` when `deadline` has passed.
///
/// # Cancel safety
///
/// Nothing is lost when this is dropped.
pub async fn wait_gone(pid: u32, deadline: Duration) -> io::Result<()> {
    let Ok(handle) = open(pid) else { return Ok(()) };
    #[allow(
        deprecated,
        reason = "its successor is unsafe for types whose descriptor may change; an `OwnedFd` keeps its own"
    )]
    let handle = AsyncFd::with_interest(handle, Interest::READABLE)?;
    match time::timeout(deadline, handle.readable()).await {
        Ok(readable) => readable.map(drop),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("process {pid} is alive after {deadline:?}"),
        )),
    }
}

/// What each descriptor of a process refers to, as `/proc/PID/fd` says, in the order of their numbers: two tables with
/// the same contents are equal.
///
/// # Errors
///
/// If the process is gone or not ours to look into.
pub fn descriptors(pid: u32) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let number: u32 = entry.file_name().to_string_lossy().parse().unwrap_or(0);
        // It may have been closed since the directory was read.
        if let Ok(target) = fs::read_link(entry.path()) {
            found.push((number, target.to_string_lossy().into_owned()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, target)| target).collect())
}

/// Looks until what it sees is what is wanted: for a descriptor that another process closes, or a dead child that it
/// collects. The kernel tells nobody of those; only `/proc` shows them.
///
/// # Errors
///
/// `TimedOut` with what was seen last when `deadline` has passed.
///
/// # Cancel safety
///
/// Nothing is lost when this is dropped.
pub async fn eventually<T: PartialEq + Debug>(
    what: &str,
    mut look: impl FnMut() -> T,
    wanted: T,
    deadline: Duration,
) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        let seen = look();
        if seen == wanted {
            return Ok(());
        }
        if begun.elapsed() > deadline {
            let what = format!("{what}: {seen:#?}, not {wanted:#?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
        }
        time::sleep(LOOK_AGAIN).await;
    }
}

/// The children of a process, those included that have ended and that it has not collected.
pub fn children(pid: u32) -> Vec<u32> {
    processes()
        .filter(|child| parent(*child) == Some(pid))
        .collect()
}

/// `proc_pid_stat(5)`: the parent is field 4.
fn parent(pid: u32) -> Option<u32> {
    fields(pid)?.get(4)?.parse().ok()
}

/// The fields of `proc_pid_stat(5)` by its numbers, which begin with 1. Those up to the name, field 2, are left empty: it
/// may have any character in it.
fn fields(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let (before, rest) = ([""; 3].into_iter(), rest.split_whitespace());
    Some(before.chain(rest).map(str::to_owned).collect())
}

fn collect(reader: PipeReader, output: &watch::Sender<Output>) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader
        .read_until(b'\n', &mut line)
        .is_ok_and(|read| read > 0)
    {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        output.send_modify(|output| {
            // What comes after is read all the same, so that no server blocks on a full pipe.
            if output.lines.len() < LINES_MAX {
                output.lines.push(text);
            }
        });
        line.clear();
    }
    output.send_modify(|output| output.is_ended = true);
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The environment that a process was given; empty if it has none, is gone or is not ours to look into.
///
/// An exec has no event to wait for, and who looks into one must not take a successor for a stranger.
fn environment(pid: u32) -> Vec<u8> {
    let begun = Instant::now();
    loop {
        let found = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let is_all = environment_len(pid) == Some(found.len());
        if is_all || !has_program(pid) || begun.elapsed() > EXEC_DEADLINE {
            return found;
        }
        thread::yield_now();
    }
}

/// How long the environment of a process is, if its address space is complete: `proc_pid_stat(5)`, `env_start` and
/// `env_end`. An exec notes after these where its code starts (`startcode`; 1 is what others are told).
fn environment_len(pid: u32) -> Option<usize> {
    let fields = fields(pid)?;
    let number = |number: usize| fields.get(number)?.parse::<usize>().ok();
    let (start_code, start, end) = (number(26)?, number(50)?, number(51)?);
    (start_code > 1).then(|| end.saturating_sub(start))
}

/// Whether a process is there, ours to look into, and none of the kernel's own.
fn has_program(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = raw_pid(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

fn raw_pid(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

fn has_ended(handle: &OwnedFd, within: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: within.as_secs() as i64,
        tv_nsec: within.subsec_nanos().into(),
    };
    let mut watched = [PollFd::new(handle, PollFlags::IN)];
    poll(&mut watched, Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// Unlike any other run on this machine, so that two tests never end each other's servers.
fn unique_run() -> OsString {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = now.unwrap_or_default().as_nanos();
    format!("{}-{number}-{nanos}", std::process::id()).into()
}

const LINES_MAX: usize = 100_000;
const LOOK_AGAIN: Duration = Duration::from_millis(2);
const EXEC_DEADLINE: Duration = Duration::from_secs(5);
const KILL_DEADLINE: Duration = Duration::from_secs(5);
const KILL_ROUNDS_MAX: usize = 100;
