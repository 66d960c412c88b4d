//! How the supervisor knows that a worker is ready: by its word, by an accepted connection, or by its being alive.

use std::collections::hash_map::RandomState;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::sleep;

use crate::protocol::message::Tally;
use crate::sys::descriptors::{recv, watched};
use crate::sys::environment::Snapshot;
use crate::sys::queue::{accept_queue, is_end_heard};
use crate::systemd::notify::COUNTS;

/// When a worker counts as ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Readiness {
    /// When its process says `READY=1` on `NOTIFY_SOCKET` (sd_notify(3)), as programs do that are written with this crate.
    /// Nobody else's word counts, a helper's neither.
    #[default]
    Notify,
    /// When it has accepted a connection on a socket of its own: one more is passed to it, behind the others and under the
    /// name `probe`, on a port of the loopback address. Nothing comes on that connection but its end.
    Accepts,
    /// When it has been alive for so long.
    Alive(Duration),
}

/// The socket on which workers speak to the supervisor as to a service manager.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    socket: AsyncFd<OwnedFd>,
    name: String,
}

/// One datagram of a process that the kernel vouches for.
#[derive(Debug)]
pub(crate) struct Notification {
    pub(crate) pid: u32,
    pub(crate) text: String,
    /// What was sent along. Closed with this, which whoever waits for a barrier takes for an answer (sd_notify(3)).
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl NotifySocket {
    /// In a directory, where only processes of this user may speak to it; or, without one, at an abstract address, which is
    /// gone with this process and which any process of the host may fill.
    pub(crate) fn open(directory: Option<&Path>) -> io::Result<Self> {
        let [one, two] = [random(), random()];
        let name = format!("handover-pool-{one:016x}{two:016x}");
        let path = directory.and_then(|it| it.join(&name).into_os_string().into_string().ok());
        let at_path = path.and_then(|path| Some((bound(&path).ok()?, path)));
        let (socket, name) = match at_path {
            Some(at_path) => at_path,
            None => (bound(&format!("\0{name}"))?, name),
        };
        let socket = watched(socket, Interest::READABLE)?;
        Ok(Self { socket, name })
    }

    /// The same socket in the next program of this process, under the name that it was bound to.
    pub(crate) fn resume(socket: OwnedFd, name: String) -> io::Result<Self> {
        let socket = watched(socket, Interest::READABLE)?;
        Ok(Self { socket, name })
    }

    /// Its path, or the name of an abstract address.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// As `NOTIFY_SOCKET` says it.
    pub(crate) fn address(&self) -> OsString {
        match self.is_path() {
            true => self.name.clone().into(),
            false => format!("@{}", self.name).into(),
        }
    }

    /// Nobody speaks to it any more.
    pub(crate) fn remove(&self) {
        if self.is_path() {
            // Whoever has removed it before has done the same.
            let _ = fs::remove_file(&self.name);
        }
    }

    /// The next word of somebody who is known by the number of his process. What is too long to be one is no word.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub(crate) async fn next(&self, is_known: impl Fn(u32) -> bool) -> io::Result<Notification> {
        loop {
            for _ in 0..STRANGERS_MAX {
                let mut ready = self.socket.readable().await?;
                match ready.try_io(|socket| receive(socket.as_fd(), &is_known)) {
                    Ok(Ok(Some(notification))) => return Ok(notification),
                    Ok(Ok(None)) => {}
                    Ok(Err(error)) => return Err(error),
                    Err(_would_block) => {}
                }
            }
            // However much strangers have to say, whoever waits for something else has his turn.
            yield_now().await;
        }
    }

    fn is_path(&self) -> bool {
        self.name.starts_with('/')
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

impl Notification {
    /// The value that it gives to a variable.
    pub(crate) fn value(&self, variable: &str) -> Option<&str> {
        let mut lines = self.text.lines();
        lines.find_map(|line| line.strip_prefix(variable)?.strip_prefix('='))
    }

    /// What it says that its process has counted. What cannot be understood is no count.
    pub(crate) fn tally(&self) -> Option<Tally> {
        serde_json::from_str(self.value(COUNTS)?).ok()
    }
}

/// At a path, or at an abstract address behind a null.
fn bound(name: &str) -> io::Result<OwnedFd> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::UNIX, kind, None)?;
    // The path gets the mode that the socket has by then (`unix_bind_bsd` in net/unix/af_unix.c).
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(name)?)?;
    // The kernel puts down who sends, and lets nobody lie who is not root (unix(7), SCM_CREDENTIALS).
    setsockopt(&socket, sockopt::PassCred, &true)?;
    Ok(socket.into())
}

fn receive(
    socket: BorrowedFd<'_>,
    is_known: impl Fn(u32) -> bool,
) -> io::Result<Option<Notification>> {
    let mut buffer = [0; WORD_MAX];
    let received = recv(socket, &mut buffer)?.filter(|received| !received.body_cut);
    Ok(received.and_then(|received| {
        let pid = received.sender.filter(|pid| is_known(*pid))?;
        let text = String::from_utf8_lossy(&buffer[..received.length]);
        Some(Notification {
            pid,
            text: text.into_owned(),
            descriptors: received.descriptors,
        })
    }))
}

/// What the service manager has made for this service alone (`RuntimeDirectory=`, systemd.exec(5)). Workers of root may become
/// other users before they are ready, who could not speak there.
pub(crate) fn private_directory(snapshot: &Snapshot, is_root: bool) -> Option<PathBuf> {
    let directories = snapshot.var("RUNTIME_DIRECTORY").filter(|_| !is_root)?;
    env::split_paths(directories).next()
}

/// A socket that only one worker has.
pub(crate) fn private_listener() -> io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Waits until somebody has accepted from a private listener. Bounded by whoever waits.
///
/// An empty queue says so only of a connection that has been in it, which is known of one whose end was heard.
///
/// # Errors
///
/// If the kernel gives no connection.
pub(crate) async fn accepted(listener: TcpListener) -> io::Result<()> {
    let mut connection = TcpStream::connect(listener.local_addr()?).await?;
    connection.shutdown().await?;
    while !is_end_heard(connection.as_fd())? || accept_queue(listener.as_fd())? > 0 {
        sleep(PROBE_LOOK).await;
    }
    Ok(())
}

/// What std seeds its maps with: random for each process, and different each time.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Bytes of a datagram: as many as systemd reads.
const WORD_MAX: usize = 4096;
/// Words of strangers that are dropped in one turn.
const STRANGERS_MAX: usize = 32;
/// How often a private queue is looked at, which tells nobody when it is emptied.
const PROBE_LOOK: Duration = Duration::from_millis(20);
/// The name of the socket that only one worker has.
pub(crate) const PROBE: &str = "probe";

#[cfg(test)]
mod tests {
    use std::fs;
    use std::future::poll_fn;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Poll;

    use tokio::time::timeout;

    use super::*;
    use crate::systemd::notify::Notice;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn word(notify: &NotifySocket, of: u32) -> Notification {
        let word = timeout(PATIENCE, notify.next(|pid| pid == of)).await;
        word.unwrap().unwrap()
    }

    fn sender(notify: &NotifySocket) -> UnixDatagram {
        let name = notify.address().into_string().unwrap();
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name).unwrap(),
            None => SocketAddr::from_pathname(name).unwrap(),
        };
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect_addr(&address).unwrap();
        sender
    }

    #[tokio::test]
    async fn a_word_comes_with_the_number_of_whoever_sent_it_and_descriptors_stay_outside() {
        let notify = NotifySocket::open(None).unwrap();
        let (sender, myself) = (sender(&notify), std::process::id());
        let open = || fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        let null = fs::File::open("/dev/null").unwrap();
        let carried = [null.as_fd()];
        let socket = sender.as_fd();
        crate::sys::descriptors::send(socket, b"STATUS=x\nREADY=1\n", &carried).unwrap();
        drop(null);
        let first = word(&notify, myself).await;
        assert_eq!(first.pid, myself);
        assert_eq!(first.value("READY"), Some("1"));
        assert_eq!(first.value("STATUS"), Some("x"));
        assert_eq!(first.value("READ"), None);
        // Other tests open and close descriptors at the same time, but not on balance.
        assert!(open() <= before + 8);
        sender.send(&[b'x'; 2 * WORD_MAX]).unwrap();
        sender.send(b"READY=1").unwrap();
        assert_eq!(word(&notify, myself).await.text, "READY=1");
    }

    #[tokio::test]
    async fn a_stranger_who_never_stops_is_not_heard_and_keeps_nobody_else_from_his_turn() {
        let notify = NotifySocket::open(None).unwrap();
        let (sender, sent) = (sender(&notify), Arc::new(AtomicUsize::new(0)));
        let flood = std::thread::spawn({
            let sent = Arc::clone(&sent);
            // Until the socket is closed.
            move || {
                while sender.send(b"READY=1").is_ok() {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let turn = poll_fn(|context| {
            context.waker().wake_by_ref();
            match sent.load(Ordering::Relaxed) > 1000 {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        });
        let heard = tokio::select! {
            biased;
            () = turn => None,
            word = notify.next(|_| false) => Some(word),
        };
        drop(notify);
        flood.join().unwrap();
        assert!(heard.is_none(), "{heard:?}");
    }

    #[test]
    fn a_service_s_own_directory_is_for_workers_that_stay_the_same_user() {
        let env = vec![("RUNTIME_DIRECTORY".into(), "/run/app:/run/more".into())];
        let snapshot = Snapshot {
            env,
            ..Snapshot::default()
        };
        let directory = private_directory(&snapshot, false);
        assert_eq!(directory, Some(PathBuf::from("/run/app")));
        assert_eq!(private_directory(&snapshot, true), None);
        assert_eq!(private_directory(&Snapshot::default(), false), None);
    }

    #[tokio::test]
    async fn in_a_directory_only_this_user_may_write_to_it_and_it_is_gone_after_it_was_removed() {
        let room = tempfile::tempdir().unwrap();
        let notify = NotifySocket::open(Some(room.path())).unwrap();
        let path = PathBuf::from(notify.address());
        assert!(path.starts_with(room.path()));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        sender(&notify).send(b"READY=1").unwrap();
        assert_eq!(word(&notify, std::process::id()).await.text, "READY=1");
        let (socket, name) = (notify.as_fd().try_clone_to_owned(), notify.name());
        let next = NotifySocket::resume(socket.unwrap(), name.to_owned()).unwrap();
        assert_eq!(next.address(), notify.address());
        next.remove();
        assert!(!path.exists());
        // A directory in which there is no room for it is no reason to have none.
        let nowhere = NotifySocket::open(Some(&room.path().join("none"))).unwrap();
        assert!(nowhere.address().into_string().unwrap().starts_with('@'));
    }

    #[test]
    fn reports_of_every_build_are_read_and_ours_is_written_byte_for_byte() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire/pool");
        let read = |name: &str| Notification {
            pid: 1,
            text: fs::read_to_string(golden.join(name)).unwrap(),
            descriptors: Vec::new(),
        };
        let tally = Tally {
            requests: 4_200,
            errors: 3,
            slow: 41,
            shed: 2,
            in_flight: 17,
            accepted: Some(1_300),
            p50_us: Some(850),
            p99_us: Some(120_000),
            slow_us: Some(118_000),
            ..Tally::default()
        };
        let ours = read("report-slow.txt");
        assert_eq!(ours.tally(), Some(tally.clone()));
        assert_eq!(Notice::new().counts(&tally).text(), ours.text);
        // Of a build that is not told what is slow.
        let before = Tally {
            slow: 0,
            slow_us: None,
            ..tally
        };
        assert_eq!(read("report.txt").tally(), Some(before));
        let nonsense = Notification {
            text: format!("{COUNTS}=many\n"),
            ..ours
        };
        assert_eq!(nonsense.tally(), None);
    }

    #[tokio::test]
    async fn a_private_listener_waits_for_its_first_accept() {
        let listener = private_listener().unwrap();
        let theirs = listener.try_clone().unwrap();
        let probing = tokio::spawn(accepted(listener));
        let theirs = tokio::net::TcpListener::from_std(theirs).unwrap();
        theirs.accept().await.unwrap();
        timeout(PATIENCE, probing).await.unwrap().unwrap().unwrap();
    }
}
