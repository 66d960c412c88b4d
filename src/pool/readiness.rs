//! How the supervisor knows that a worker is ready: by its word, by an accepted connection, or by its being alive.

use std::collections::hash_map::RandomState;
use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::sys::descriptors::{recv, watched};
use crate::sys::queue::{accept_queue, is_end_heard};

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
    /// At an abstract address that nobody can guess, and that is gone with this process.
    pub(crate) fn open() -> io::Result<Self> {
        let [one, two] = [random(), random()];
        let name = format!("handover-pool-{one:016x}{two:016x}");
        let address = SocketAddr::from_abstract_name(name.as_bytes())?;
        let socket = UnixDatagram::bind_addr(&address)?;
        socket.set_nonblocking(true)?;
        // The kernel puts down who sends, and lets nobody lie who is not root (unix(7), SCM_CREDENTIALS).
        setsockopt(&socket, sockopt::PassCred, &true)?;
        let socket = watched(socket.into(), Interest::READABLE)?;
        Ok(Self { socket, name })
    }

    /// The same socket in the next program of this process, under the name that it was bound to.
    pub(crate) fn resume(socket: OwnedFd, name: String) -> io::Result<Self> {
        let socket = watched(socket, Interest::READABLE)?;
        Ok(Self { socket, name })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// As `NOTIFY_SOCKET` says it.
    pub(crate) fn address(&self) -> OsString {
        format!("@{}", self.name).into()
    }

    /// The next word of anybody. What is too long to be one is no word.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub(crate) async fn next(&self) -> io::Result<Notification> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| receive(socket.as_fd())) {
                Ok(Ok(Some(notification))) => return Ok(notification),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
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
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Notification>> {
    let mut buffer = [0; WORD_MAX];
    let received = recv(socket, &mut buffer)?.filter(|received| !received.body_cut);
    Ok(received.and_then(|received| {
        let text = String::from_utf8_lossy(&buffer[..received.length]);
        Some(Notification {
            pid: received.sender?,
            text: text.into_owned(),
            descriptors: received.descriptors,
        })
    }))
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
/// How often a private queue is looked at, which tells nobody when it is emptied.
const PROBE_LOOK: Duration = Duration::from_millis(20);
/// The name of the socket that only one worker has.
pub(crate) const PROBE: &str = "probe";

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_word_comes_with_the_number_of_whoever_sent_it_and_descriptors_stay_outside() {
        let notify = NotifySocket::open().unwrap();
        let name = notify.address().into_string().unwrap();
        let address = SocketAddr::from_abstract_name(name.trim_start_matches('@')).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect_addr(&address).unwrap();
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        let null = std::fs::File::open("/dev/null").unwrap();
        let carried = [null.as_fd()];
        let socket = sender.as_fd();
        crate::sys::descriptors::send(socket, b"STATUS=x\nREADY=1\n", &carried).unwrap();
        drop(null);
        let word = tokio::time::timeout(PATIENCE, notify.next()).await;
        let word = word.unwrap().unwrap();
        assert_eq!(word.pid, std::process::id());
        assert_eq!(word.value("READY"), Some("1"));
        assert_eq!(word.value("STATUS"), Some("x"));
        assert_eq!(word.value("READ"), None);
        // Other tests open and close descriptors at the same time, but not on balance.
        assert!(open() <= before + 8);
        sender.send(&[b'x'; 2 * WORD_MAX]).unwrap();
        sender.send(b"READY=1").unwrap();
        let word = tokio::time::timeout(PATIENCE, notify.next()).await;
        assert_eq!(word.unwrap().unwrap().text, "READY=1");
    }

    #[tokio::test]
    async fn a_private_listener_waits_for_its_first_accept() {
        let listener = private_listener().unwrap();
        let theirs = listener.try_clone().unwrap();
        let probing = tokio::spawn(accepted(listener));
        let theirs = tokio::net::TcpListener::from_std(theirs).unwrap();
        theirs.accept().await.unwrap();
        tokio::time::timeout(PATIENCE, probing)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}
