//! Unix stream listeners.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::net::UnixStream;
use tokio::net::unix::SocketAddr;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use socket2::SockRef;

use super::gate::{Gate, Listen, Watch};
use super::probe::Caller;
use super::tcp::pass_over;

/// A named Unix stream listener. It accepts while its generation serves, and waits while another generation does.
///
/// Several tasks may accept from one listener. Dropping it gives up accepting; the socket stays open until its
/// generation leaves, so that a successor can still inherit it.
pub struct UnixListener {
    gate: Arc<Gate<tokio::net::UnixListener>>,
    name: String,
    local_addr: std::os::unix::net::SocketAddr,
}

impl UnixListener {
    pub(super) fn new(
        gate: Arc<Gate<tokio::net::UnixListener>>,
        name: &str,
        local_addr: std::os::unix::net::SocketAddr,
    ) -> Self {
        Self {
            gate,
            name: name.to_owned(),
            local_addr,
        }
    }

    /// Accepts a connection as soon as there is one and the gate is open, or one that another generation has accepted
    /// and passed on, whatever the gate. Once this generation has given its sockets away for good, it waits for ever:
    /// select it against the end of serving.
    ///
    /// # Errors
    ///
    /// Only what concerns this process: `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`. Wait a little and call again; the
    /// connection is still in the queue.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a connection that has been taken from the queue is returned by the poll that took it.
    pub async fn accept(&self) -> io::Result<(UnixStream, SocketAddr)> {
        self.gate.accept().await
    }

    /// As [`accept`](Self::accept), for a caller that polls. Only the last task that polled is woken.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(UnixStream, SocketAddr)>> {
        self.gate.poll_accept(cx)
    }

    /// The path or abstract name it is bound to.
    pub fn local_addr(&self) -> &std::os::unix::net::SocketAddr {
        &self.local_addr
    }

    /// The name it was claimed or bound by.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for UnixListener {
    fn drop(&mut self) {
        self.gate.abandon();
    }
}

impl fmt::Debug for UnixListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnixListener")
            .field("name", &self.name)
            .field("local_addr", &self.local_addr)
            .field("gate", &self.gate)
            .finish()
    }
}

impl Watch for tokio::net::UnixListener {
    fn watch(socket: OwnedFd) -> io::Result<Self> {
        Self::from_std(socket.into())
    }
}

impl Listen for tokio::net::UnixListener {
    type Accepted = (UnixStream, SocketAddr);

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Self::Accepted>> {
        accept_one(self, cx)
    }

    fn adopt(connection: OwnedFd) -> io::Result<Self::Accepted> {
        let stream = std::os::unix::net::UnixStream::from(connection);
        stream.set_nonblocking(true)?;
        let peer = stream.peer_addr()?.into();
        Ok((UnixStream::from_std(stream)?, peer))
    }

    fn peer(_: &Self::Accepted) -> Option<IpAddr> {
        None
    }

    /// Asked of the socket: what tokio's accept says leaves abstract names out.
    fn caller((stream, _): &Self::Accepted) -> Caller {
        let peer = stream.peer_addr();
        peer.map_or(Caller::Abstract(Vec::new()), |peer| {
            Caller::unix(&peer.into())
        })
    }

    fn connection((stream, _): &Self::Accepted) -> BorrowedFd<'_> {
        stream.as_fd()
    }

    fn into_connection((stream, _): Self::Accepted) -> io::Result<OwnedFd> {
        stream.into_std().map(OwnedFd::from)
    }
}

fn accept_one(
    listener: &tokio::net::UnixListener,
    cx: &mut Context<'_>,
) -> Poll<io::Result<(UnixStream, SocketAddr)>> {
    let accepted = pass_over(|| listener.poll_accept(cx));
    match accepted.is_pending() && is_shut_down(listener) {
        true => Poll::Ready(accept_rest(listener)),
        false => accepted,
    }
}

/// Whether nobody can connect any more, though some may wait (`POLLRDHUP`, poll(2)).
fn is_shut_down(listener: &tokio::net::UnixListener) -> bool {
    let hung_up = PollFlags::from_bits_retain(libc::POLLRDHUP);
    let mut polled = [PollFd::new(listener.as_fd(), hung_up)];
    nix::poll::poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// The next of those who had come before the listener was shut down, or `EINVAL`: what the kernel says at the end of
/// the queue, but to blocking callers only (unix_accept). Tokio may say pending while it has not heard of them.
fn accept_rest(listener: &tokio::net::UnixListener) -> io::Result<(UnixStream, SocketAddr)> {
    let accepted = SockRef::from(listener).accept().map_err(|error| {
        let is_end = error.kind() == io::ErrorKind::WouldBlock;
        if is_end {
            io::Error::from_raw_os_error(libc::EINVAL)
        } else {
            error
        }
    });
    tokio::net::UnixListener::adopt(accepted?.0.into())
}
