//! A service manager for tests: its socket, and nothing behind it.

use std::ffi::OsString;
use std::fs;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram as StdDatagram};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::notify::Manager;
use crate::sys::descriptors;

/// Nothing a test waits for takes longer than this.
const PATIENCE: Duration = Duration::from_secs(10);

/// What listens at `NOTIFY_SOCKET`.
pub(super) struct FakeManager {
    socket: Option<UnixDatagram>,
    address: SocketAddr,
    room: TempDir,
}

impl FakeManager {
    pub(super) fn at_path() -> Self {
        let room = TempDir::new().unwrap();
        let address = SocketAddr::from_pathname(room.path().join("notify")).unwrap();
        Self::listening(room, address)
    }

    pub(super) fn abstract_name() -> Self {
        let room = TempDir::new().unwrap();
        let name = room.path().as_os_str().as_encoded_bytes();
        let address = SocketAddr::from_abstract_name(name).unwrap();
        Self::listening(room, address)
    }

    /// A way to this manager, and what goes wrong on it.
    pub(super) fn connected(&self) -> (Manager, mpsc::UnboundedReceiver<String>) {
        let (sender, problems) = mpsc::unbounded_channel();
        let manager = Manager::connect(&self.variable(), sender).unwrap();
        (manager, problems)
    }

    /// The next datagram, with its descriptors.
    pub(super) async fn next(&mut self) -> (String, Vec<OwnedFd>) {
        let socket = self.socket.as_ref().unwrap();
        let mut buffer = [0; 8192];
        let receiving = socket.async_io(Interest::READABLE, || {
            descriptors::recv(socket.as_fd(), &mut buffer)
        });
        let received = within(receiving).await.unwrap().unwrap();
        assert!(!received.body_cut && !received.descriptors_cut);
        let text = str::from_utf8(&buffer[..received.length]).unwrap();
        (text.to_owned(), received.descriptors)
    }

    /// The next datagram, which has no descriptors.
    pub(super) async fn next_text(&mut self) -> String {
        let (text, descriptors) = self.next().await;
        assert!(descriptors.is_empty(), "{text}");
        text
    }

    /// Fills the socket's queue; returns with how many datagrams.
    pub(super) fn stuff(&self) -> usize {
        let stuffer = StdDatagram::unbound().unwrap();
        stuffer.set_nonblocking(true).unwrap();
        let full = (0..)
            .map(|_| stuffer.send_to_addr(b"stuffing", &self.address))
            .position(|sent| sent.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock));
        full.unwrap()
    }

    /// Goes away and leaves its path behind.
    pub(super) fn close(&mut self) {
        self.socket = None;
    }

    pub(super) fn close_and_unlink(&mut self) {
        self.close();
        fs::remove_file(self.address.as_pathname().unwrap()).unwrap();
    }

    pub(super) fn open_again(&mut self) {
        if let Some(path) = self.address.as_pathname() {
            // Whether it had been unlinked is the test's business.
            let _ = fs::remove_file(path);
        }
        self.socket = Some(bound(&self.address));
    }

    fn listening(room: TempDir, address: SocketAddr) -> Self {
        let socket = Some(bound(&address));
        Self {
            socket,
            address,
            room,
        }
    }

    /// As in `NOTIFY_SOCKET`.
    fn variable(&self) -> OsString {
        match self.address.as_pathname() {
            Some(path) => path.into(),
            None => format!("@{}", self.room.path().display()).into(),
        }
    }
}

pub(super) async fn within<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.unwrap()
}

fn bound(address: &SocketAddr) -> UnixDatagram {
    let socket = StdDatagram::bind_addr(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    UnixDatagram::from_std(socket).unwrap()
}
