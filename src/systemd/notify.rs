//! What this process tells the service manager (sd_notify(3)).
//!
//! Not by the crate sd-notify: each of its sends reads `NOTIFY_SOCKET` from the environment, from which we remove it so
//! that no helper speaks for us; it cannot be given the socket, and knows no barrier.

use std::ffi::OsStr;
use std::fmt::{self, Display, Write};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{self, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixDatagram;
use tokio::net::unix::pipe;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, MutexGuard, mpsc, oneshot};
use tokio::time::timeout;

use crate::config::NOTIFY_DEADLINE;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::descriptors;

/// One datagram for the service manager, built up line by line. It carries one descriptor at most.
#[derive(Debug, Default)]
#[must_use = "a notice says nothing until it is told"]
pub(crate) struct Notice {
    lines: String,
    descriptor: Option<OwnedFd>,
}

/// The way to the service manager: one task sends what any clone is told, in order, and nobody waits for it.
#[derive(Clone)]
pub(crate) struct Manager {
    queue: mpsc::Sender<Queued>,
    overflowed: Arc<AtomicBool>,
    storing: Arc<Mutex<()>>,
}

struct Queued {
    notice: Notice,
    /// Who waits to hear how the sending went.
    sent: Option<oneshot::Sender<io::Result<()>>>,
}

impl Notice {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// It serves; the end of a start or of a reload.
    pub(crate) fn ready(self) -> Self {
        self.line("READY", 1)
    }

    /// A reload begins now. The time is what tells systemd which of its requests this answers (systemd.service(5)).
    pub(crate) fn reloading(self) -> Self {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
        let this = self.line("RELOADING", 1);
        match now {
            Ok(now) => this.line("MONOTONIC_USEC", now.as_micros()),
            // No kernel refuses this clock; without the line an old manager still understands the other one.
            Err(_) => this,
        }
    }

    /// The service is on its way out; only its last generation may say so.
    pub(crate) fn stopping(self) -> Self {
        self.line("STOPPING", 1)
    }

    /// One line for `systemctl status`.
    pub(crate) fn status(self, text: &str) -> Self {
        self.line("STATUS", one_line(text))
    }

    /// What this process has counted, for the supervisor of a pool. Others ignore what begins like this (sd_notify(3)).
    pub(crate) fn counts(self, tally: &impl serde::Serialize) -> Self {
        match serde_json::to_string(tally) {
            Ok(text) => self.line(COUNTS, one_line(&text)),
            // Numbers and a text always have a form.
            Err(_) => self,
        }
    }

    /// At the other end of this socket this process hears how the supervisor of a pool wants it to count.
    pub(crate) fn listen(self, descriptor: OwnedFd) -> Self {
        let mut this = self.line(WATCH, 1);
        debug_assert!(this.descriptor.is_none(), "one descriptor in a notice");
        this.descriptor = Some(descriptor);
        this
    }

    /// From now on another process is the main one.
    pub(crate) fn main_pid(self, pid: u32) -> Self {
        self.line("MAINPID", pid)
    }

    /// Still alive.
    pub(crate) fn watchdog(self) -> Self {
        self.line("WATCHDOG", 1)
    }

    /// Starting or stopping takes this much longer, from now on.
    pub(crate) fn extend_timeout(self, by: Duration) -> Self {
        self.line("EXTEND_TIMEOUT_USEC", by.as_micros())
    }

    /// Keep this descriptor, whatever becomes of it, and give it to the next start of the service under this name.
    pub(crate) fn store(self, name: &str, descriptor: OwnedFd) -> Self {
        // A listener can report an error or hang-up that passes, and would be dropped for it without a word.
        self.line("FDPOLL", 0).lend(name, descriptor)
    }

    /// As [`store`](Self::store), but only until its other end is closed.
    pub(super) fn lend(self, name: &str, descriptor: OwnedFd) -> Self {
        let mut this = self.line("FDSTORE", 1).line("FDNAME", one_line(name));
        debug_assert!(this.descriptor.is_none(), "one descriptor in a notice");
        this.descriptor = Some(descriptor);
        this
    }

    /// Close everything that is kept under this name.
    pub(crate) fn forget(self, name: &str) -> Self {
        self.line("FDSTOREREMOVE", 1).line("FDNAME", one_line(name))
    }

    /// What went wrong, as the kernel would number it.
    pub(crate) fn errno(self, errno: i32) -> Self {
        self.line("ERRNO", errno)
    }

    fn barrier(descriptor: OwnedFd) -> Self {
        let mut this = Self::new().line("BARRIER", 1);
        this.descriptor = Some(descriptor);
        this
    }

    /// Word for word.
    #[cfg(all(test, feature = "pool"))]
    pub(crate) fn text(&self) -> &str {
        &self.lines
    }

    fn line(mut self, key: &str, value: impl Display) -> Self {
        // Writing to a String cannot fail.
        let _ = writeln!(self.lines, "{key}={value}");
        self
    }
}

impl Manager {
    /// The manager that listens at this path, or at this abstract name if it begins with `@`. What goes wrong later is
    /// told to `problems`: once for each way in which it goes wrong, and again only if it went well in between.
    ///
    /// # Errors
    ///
    /// If this is no Unix address, or outside a tokio runtime. Whether anybody listens there shows later.
    pub(crate) fn connect(socket: &OsStr, problems: mpsc::UnboundedSender<String>) -> Result<Self> {
        let reaching = || manager_error(format!("reaching the service manager at {socket:?}"));
        let address = address(socket).map_err(|error| reaching().because(error))?;
        let runtime = Handle::try_current().map_err(|error| reaching().because(error))?;
        let (queue, queued) = mpsc::channel(QUEUE_MAX);
        let overflowed = Arc::new(AtomicBool::new(false));
        let problems = Problems::new(socket, problems);
        runtime.spawn(deliver(queued, address, problems, Arc::clone(&overflowed)));
        Ok(Self {
            queue,
            overflowed,
            storing: Arc::default(),
        })
    }

    /// Until nobody else measures the store or puts something into it: two at once would find each other's probes.
    pub(super) async fn alone_with_the_store(&self) -> MutexGuard<'_, ()> {
        self.storing.lock().await
    }

    /// Queues a notice. It is dropped, and that is a problem, if the manager takes too long over those before it.
    pub(crate) fn tell(&self, notice: Notice) {
        self.queue(Queued { notice, sent: None });
    }

    /// Resolves once the manager has read everything that it was told before this call.
    ///
    /// # Errors
    ///
    /// If it cannot be told to say so, or says nothing within [`NOTIFY_DEADLINE`].
    pub(crate) fn barrier(&self) -> impl Future<Output = Result<()>> + Send + use<> {
        let waiting = self.queue_barrier();
        async move {
            let answer = async { awaited(waiting?).await };
            let answer = timeout(NOTIFY_DEADLINE, answer).await;
            answer
                .unwrap_or_else(|_| Err(silent()))
                .map_err(|error| manager_error(BARRIER.into()).because(error))
        }
    }

    /// The manager closes the writing end when it has read everything up to it (sd_notify(3), `BARRIER=1`).
    fn queue_barrier(&self) -> io::Result<(oneshot::Receiver<io::Result<()>>, pipe::Receiver)> {
        let (reader, writer) = io::pipe()?;
        let reader = pipe::Receiver::from_owned_fd(reader.into())?;
        let (sent, sending) = oneshot::channel();
        self.queue(Queued {
            notice: Notice::barrier(writer.into()),
            sent: Some(sent),
        });
        Ok((sending, reader))
    }

    fn queue(&self, queued: Queued) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.queue.try_send(queued) {
            // The task is told at its next notice, of which there are many.
            self.overflowed.store(true, Ordering::Relaxed);
        }
        // It is closed only with its runtime, and then there is nobody left to tell.
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.queue.max_capacity() - self.queue.capacity();
        f.debug_struct("Manager")
            .field("waiting", &waiting)
            .finish_non_exhaustive()
    }
}

/// What has gone wrong since it last went well.
struct Problems {
    socket: String,
    told: Vec<String>,
    to: mpsc::UnboundedSender<String>,
}

impl Problems {
    fn new(socket: &OsStr, to: mpsc::UnboundedSender<String>) -> Self {
        Self {
            socket: socket.to_string_lossy().into_owned(),
            told: Vec::new(),
            to,
        }
    }

    fn tell(&mut self, what: impl Display) {
        let problem = format!("telling the service manager at {}: {what}", self.socket);
        if !self.told.contains(&problem) {
            // Whoever does not listen does not want to know.
            let _ = self.to.send(problem.clone());
            self.told.push(problem);
        }
    }
}

async fn deliver(
    mut queue: mpsc::Receiver<Queued>,
    to: SocketAddr,
    mut problems: Problems,
    overflowed: Arc<AtomicBool>,
) {
    while let Some(Queued { notice, sent }) = queue.recv().await {
        let result = send(&to, &notice).await;
        match &result {
            Ok(()) => problems.told.clear(),
            Err(error) => problems.tell(error),
        }
        if overflowed.swap(false, Ordering::Relaxed) {
            problems.tell("it read too slowly, and some notices were dropped");
        }
        if let Some(sent) = sent {
            // Who no longer waits has had its deadline.
            let _ = sent.send(result);
        }
    }
}

/// Sends one datagram through a socket of its own: one that was connected before would stay with a manager that is gone
/// when another has taken its place.
async fn send(to: &SocketAddr, notice: &Notice) -> io::Result<()> {
    let socket = net::UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(to)?;
    let carried: Vec<BorrowedFd<'_>> = notice.descriptor.iter().map(AsFd::as_fd).collect();
    let try_send =
        |socket: BorrowedFd<'_>| descriptors::send(socket, notice.lines.as_bytes(), &carried);
    match try_send(socket.as_fd()) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        done => return done,
    }
    let socket = UnixDatagram::from_std(socket)?;
    let room = socket.async_io(Interest::WRITABLE, || try_send(socket.as_fd()));
    timeout(NOTIFY_DEADLINE, room)
        .await
        .unwrap_or_else(|_| Err(silent()))
}

async fn awaited(
    (sending, mut reader): (oneshot::Receiver<io::Result<()>>, pipe::Receiver),
) -> io::Result<()> {
    let sent = sending.await;
    sent.unwrap_or_else(|_| Err(io::Error::other("too much waits to be sent before it")))?;
    // The end of the pipe is the answer; nobody writes to it.
    match reader.read(&mut [0]).await? {
        0 => Ok(()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    match socket.as_bytes() {
        [b'@', name @ ..] if !name.is_empty() => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(socket),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "NOTIFY_SOCKET is neither a path nor an abstract name, which are all that is spoken here",
        )),
    }
}

/// The text as one line that the manager takes: it drops what has other control characters in it, or is too long.
fn one_line(text: &str) -> String {
    let fits = |(start, letter): &(usize, char)| start + letter.len_utf8() <= LINE_MAX;
    let letters = text.trim_end().char_indices().take_while(fits);
    letters
        .map(|(_, letter)| if letter.is_control() { ' ' } else { letter })
        .collect()
}

fn silent() -> io::Error {
    let text = format!("it has not answered within {NOTIFY_DEADLINE:?}");
    io::Error::new(io::ErrorKind::TimedOut, text)
}

fn manager_error(doing: String) -> Error {
    Error::new(ErrorKind::Io, doing)
}

/// The variable in which a worker of a pool says what it has counted.
pub(crate) const COUNTS: &str = "X_HANDOVER_COUNTS";
/// The variable with which it sends the socket by which it hears how to count.
pub(crate) const WATCH: &str = "X_HANDOVER_WATCH";
const BARRIER: &str = "waiting until the service manager has read what it was told";
/// Notices that wait for a manager which reads slowly; a busy service has a few.
const QUEUE_MAX: usize = 1024;
/// Bytes of text in a line: a manager reads 4,096 for the whole datagram at least (systemd 252).
const LINE_MAX: usize = 2048;

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::fs::File;

    use tempfile::TempDir;
    use tokio::sync::mpsc::error::TryRecvError;

    use super::super::testing::{FakeManager, within};
    use super::*;

    #[tokio::test]
    async fn notices_arrive_in_order_and_each_is_one_datagram() {
        let mut fake = FakeManager::at_path();
        let (manager, mut problems) = fake.connected();
        manager.tell(Notice::new().ready().status("serves"));
        manager.tell(Notice::new().extend_timeout(Duration::from_secs(2)));
        manager.tell(Notice::new().main_pid(77).watchdog());
        manager.tell(Notice::new().stopping().errno(22));
        assert_eq!(fake.next_text().await, "READY=1\nSTATUS=serves\n");
        assert_eq!(fake.next_text().await, "EXTEND_TIMEOUT_USEC=2000000\n");
        assert_eq!(fake.next_text().await, "MAINPID=77\nWATCHDOG=1\n");
        assert_eq!(fake.next_text().await, "STOPPING=1\nERRNO=22\n");
        assert_eq!(problems.try_recv(), Err(TryRecvError::Empty));
    }

    #[tokio::test]
    async fn an_abstract_name_is_an_address() {
        let mut fake = FakeManager::abstract_name();
        let (manager, _problems) = fake.connected();
        manager.tell(Notice::new().ready());
        assert_eq!(fake.next_text().await, "READY=1\n");
    }

    #[test]
    fn a_reload_says_when_in_the_same_datagram() {
        let clock = || Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
        let before = clock().as_micros();
        let notice = Notice::new().reloading();
        let after = clock().as_micros();
        let stamp = notice.lines.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        let stamp: u128 = stamp.unwrap().trim_end().parse().unwrap();
        assert!((before..=after).contains(&stamp));
    }

    #[test]
    fn no_text_makes_a_line_of_its_own_or_a_datagram_too_long() {
        let notice = Notice::new().status("failed:\nMAINPID=1\r\0\u{7f}x\n");
        assert_eq!(notice.lines, "STATUS=failed: MAINPID=1   x\n");
        let long = "ü".repeat(LINE_MAX);
        assert!(Notice::new().status(&long).ready().lines.len() < 4096);
    }

    #[tokio::test]
    async fn a_stored_descriptor_travels_with_its_name_and_stays_open_until_then() {
        let mut fake = FakeManager::at_path();
        let (manager, _problems) = fake.connected();
        let null = File::open("/dev/null").unwrap();
        let inode = descriptors::inode(null.as_fd()).unwrap();
        manager.tell(Notice::new().store("web", null.into()));
        manager.tell(Notice::new().forget("web"));
        let (text, carried) = fake.next().await;
        assert_eq!(text, "FDPOLL=0\nFDSTORE=1\nFDNAME=web\n");
        let [carried] = carried.as_slice() else {
            panic!("{carried:?}");
        };
        assert_eq!(descriptors::inode(carried.as_fd()).unwrap(), inode);
        let (text, carried) = fake.next().await;
        assert_eq!(text, "FDSTOREREMOVE=1\nFDNAME=web\n");
        assert!(carried.is_empty());
    }

    #[tokio::test]
    async fn a_barrier_is_alone_with_one_descriptor_and_ends_when_that_is_closed() {
        let mut fake = FakeManager::at_path();
        let (manager, _problems) = fake.connected();
        manager.tell(Notice::new().main_pid(77));
        let barrier = tokio::spawn(manager.barrier());
        assert_eq!(fake.next_text().await, "MAINPID=77\n");
        let (text, carried) = fake.next().await;
        assert_eq!((text.as_str(), carried.len()), ("BARRIER=1\n", 1));
        assert!(!barrier.is_finished());
        drop(carried);
        within(barrier).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_barrier_that_nobody_answers_is_an_error_at_its_deadline() {
        let fake = FakeManager::at_path();
        let (manager, _problems) = fake.connected();
        let error = manager.barrier().await.unwrap_err();
        assert!(
            error.source().unwrap().to_string().contains("5s"),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn a_manager_that_is_gone_is_one_problem_and_one_that_came_back_is_told_again() {
        let mut fake = FakeManager::at_path();
        let (manager, mut problems) = fake.connected();
        for vanish in [
            FakeManager::close,
            FakeManager::close,
            FakeManager::close_and_unlink,
        ] {
            vanish(&mut fake);
            for _ in 0..3 {
                manager.tell(Notice::new().watchdog());
            }
            // Had it been sent into the void, the closed pipe would pass for an answer.
            within(manager.barrier()).await.unwrap_err();
            let problem = problems.try_recv().unwrap();
            assert!(problem.contains("os error"), "{problem}");
            assert_eq!(problems.try_recv(), Err(TryRecvError::Empty));
            fake.open_again();
            manager.tell(Notice::new().ready());
            assert_eq!(fake.next_text().await, "READY=1\n");
        }
    }

    #[tokio::test]
    async fn a_full_socket_is_waited_for() {
        let mut fake = FakeManager::at_path();
        let (manager, mut problems) = fake.connected();
        let stuffed = fake.stuff();
        manager.tell(Notice::new().ready());
        for _ in 0..stuffed {
            assert_eq!(fake.next_text().await, "stuffing");
        }
        assert_eq!(fake.next_text().await, "READY=1\n");
        assert_eq!(problems.try_recv(), Err(TryRecvError::Empty));
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_stays_full_is_a_problem_at_the_deadline() {
        let fake = FakeManager::at_path();
        let (manager, mut problems) = fake.connected();
        fake.stuff();
        manager.tell(Notice::new().ready());
        let problem = problems.recv().await.unwrap();
        assert!(problem.contains("not answered within 5s"), "{problem}");
    }

    #[tokio::test]
    async fn more_notices_than_wait_are_dropped_with_a_word_and_the_teller_never_waits() {
        let mut fake = FakeManager::at_path();
        let (manager, mut problems) = fake.connected();
        // The task has no chance to run before the first await.
        for _ in 0..=QUEUE_MAX {
            manager.tell(Notice::new().watchdog());
        }
        within(manager.barrier()).await.unwrap_err();
        for _ in 0..QUEUE_MAX {
            assert_eq!(fake.next_text().await, "WATCHDOG=1\n");
        }
        let problem = within(problems.recv()).await.unwrap();
        assert!(problem.contains("dropped"), "{problem}");
        manager.tell(Notice::new().ready());
        assert_eq!(fake.next_text().await, "READY=1\n");
    }

    #[tokio::test]
    async fn an_address_that_is_not_spoken_is_refused_by_name() {
        let room = TempDir::new().unwrap();
        let long = room.path().join("x".repeat(200)).into_os_string();
        for socket in ["", "@", "vsock:2:1234", "relative", long.to_str().unwrap()] {
            let problems = mpsc::unbounded_channel().0;
            let error = Manager::connect(OsStr::new(socket), problems).unwrap_err();
            assert!(error.to_string().contains(socket));
            assert!(error.source().is_some());
        }
    }

    #[test]
    fn outside_a_runtime_there_is_no_manager_and_no_panic() {
        let problems = mpsc::unbounded_channel().0;
        assert!(Manager::connect(OsStr::new("@x"), problems).is_err());
    }

    #[tokio::test]
    async fn nothing_stays_open_when_a_descriptor_could_not_be_sent() {
        let mut fake = FakeManager::at_path();
        let (manager, mut problems) = fake.connected();
        fake.close();
        let (reader, writer) = io::pipe().unwrap();
        manager.tell(Notice::new().store("web", writer.into()));
        within(problems.recv()).await.unwrap();
        within(manager.barrier()).await.unwrap_err();
        let mut reader = pipe::Receiver::from_owned_fd(reader.into()).unwrap();
        assert_eq!(within(reader.read(&mut [0])).await.unwrap(), 0);
    }
}
