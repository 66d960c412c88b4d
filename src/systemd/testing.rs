//! A service manager for tests: its socket, and nothing behind it.

use std::ffi::OsString;
use std::fs;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram as StdDatagram};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
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
        within(self.next_or_wait()).await
    }

    /// As [`next`](Self::next), for as long as the test has patience.
    async fn next_or_wait(&mut self) -> (String, Vec<OwnedFd>) {
        let socket = self.socket.as_ref().unwrap();
        let mut buffer = [0; 8192];
        let receiving = socket.async_io(Interest::READABLE, || {
            descriptors::recv(socket.as_fd(), &mut buffer)
        });
        let received = receiving.await.unwrap().unwrap();
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

/// A store behind a manager's socket, which treats descriptors as systemd does: in the order of the datagrams, and one
/// for which there is no room is closed without a word.
pub(super) struct Store {
    kept: Arc<Mutex<Vec<(String, OwnedFd)>>>,
    serving: JoinHandle<()>,
}

impl Store {
    pub(super) fn behind(mut fake: FakeManager, room: usize) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let store = Arc::clone(&kept);
        let serving = tokio::spawn(async move {
            loop {
                let (text, mut descriptors) = fake.next_or_wait().await;
                let mut kept = store.lock().unwrap();
                let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
                let name = name.unwrap_or("stored");
                if text.contains("FDSTOREREMOVE=1\n") {
                    kept.retain(|(kept, _)| kept != name);
                } else if text.contains("FDSTORE=1\n") && kept.len() < room {
                    kept.extend(descriptors.drain(..).map(|fd| (name.to_owned(), fd)));
                }
            }
        });
        Self { kept, serving }
    }

    pub(super) fn names(&self) -> Vec<String> {
        let kept = self.kept.lock().unwrap();
        kept.iter().map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn inodes(&self) -> Vec<u64> {
        let kept = self.kept.lock().unwrap();
        kept.iter()
            .map(|(_, fd)| descriptors::inode(fd.as_fd()).unwrap())
            .collect()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.serving.abort();
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
