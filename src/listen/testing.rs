//! What the tests of this directory share: sockets, and facts about them from /proc.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::gate::Watch;

/// Nothing a test waits for takes longer than this.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

pub(super) fn listening_socket() -> (OwnedFd, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    (listener.into(), address)
}

pub(super) fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect_timeout(&address, DEADLINE).unwrap()
}

/// Waits until a connection is in the socket's queue: `connect` may return a moment before it is.
pub(super) fn await_queue(socket: &OwnedFd) {
    let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(DEADLINE).unwrap();
    assert_eq!(nix::poll::poll(&mut polled, timeout), Ok(1));
}

pub(super) fn inode(socket: &OwnedFd) -> u64 {
    fs::File::from(socket.try_clone().unwrap())
        .metadata()
        .unwrap()
        .ino()
}

/// How many descriptors of this process refer to the socket.
pub(super) fn descriptors(inode: u64) -> usize {
    let link = format!("socket:[{inode}]");
    let open = fs::read_dir("/proc/self/fd").unwrap();
    open.filter(|entry| {
        let path = entry.as_ref().unwrap().path();
        fs::read_link(path).is_ok_and(|to| to.as_os_str() == link.as_str())
    })
    .count()
}

/// How many times the socket is registered in epolls of this process (proc_pid_fdinfo(5)).
pub(super) fn registrations(inode: u64) -> usize {
    let field = format!("ino:{inode:x}");
    let open = fs::read_dir("/proc/self/fdinfo").unwrap();
    open.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
        .flat_map(|info| info.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| line.starts_with("tfd:"))
        .filter(|line| line.split_whitespace().any(|word| word == field))
        // A runtime has several descriptors of its one epoll, and each of them shows the same line.
        .collect::<BTreeSet<_>>()
        .len()
}

/// Polls once, as its task would.
pub(super) async fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    let mut future = future;
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

pub(super) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.unwrap()
}

thread_local! {
    /// Whether the kernel refuses to watch one more socket for this thread.
    pub(super) static UNWATCHABLE: Cell<bool> = const { Cell::new(false) };
}

/// A listener whose registration fails on demand.
pub(super) struct Fallible(tokio::net::TcpListener);

impl Watch for Fallible {
    fn watch(socket: OwnedFd) -> io::Result<Self> {
        if UNWATCHABLE.get() {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        tokio::net::TcpListener::watch(socket).map(Self)
    }
}

impl Fallible {
    pub(super) fn accept(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(tokio::net::TcpStream, SocketAddr)>> {
        self.0.poll_accept(cx)
    }
}
