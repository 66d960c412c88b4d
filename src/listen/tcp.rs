//! TCP listeners.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::net::TcpStream;

use super::gate::{Gate, Listen, Watch};
use super::probe::Caller;

/// A named TCP listener. It accepts while its generation serves, and waits while another generation does.
///
/// Several tasks may accept from one listener. Dropping it gives up accepting; the socket stays open until its
/// generation leaves, so that a successor can still inherit it.
pub struct TcpListener {
    gate: Arc<Gate<tokio::net::TcpListener>>,
    name: String,
    local_addr: SocketAddr,
}

impl TcpListener {
    pub(super) fn new(
        gate: Arc<Gate<tokio::net::TcpListener>>,
        name: &str,
        local_addr: SocketAddr,
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
    /// connection is still in the queue. Failures of one connection (accept(2), "Error handling") are passed over.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a connection that has been taken from the queue is returned by the poll that took it.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.gate.accept().await
    }

    /// As [`accept`](Self::accept), for a caller that polls. Only the last task that polled is woken.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        self.gate.poll_accept(cx)
    }

    /// The address it is bound to, with the port that the kernel chose if port 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The name it was claimed or bound by.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        self.gate.abandon();
    }
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpListener")
            .field("name", &self.name)
            .field("local_addr", &self.local_addr)
            .field("gate", &self.gate)
            .finish()
    }
}

impl Watch for tokio::net::TcpListener {
    fn watch(socket: OwnedFd) -> io::Result<Self> {
        Self::from_std(socket.into())
    }
}

impl Listen for tokio::net::TcpListener {
    type Accepted = (TcpStream, SocketAddr);

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Self::Accepted>> {
        accept_one(self, cx)
    }

    fn adopt(connection: OwnedFd) -> io::Result<Self::Accepted> {
        let stream = std::net::TcpStream::from(connection);
        stream.set_nonblocking(true)?;
        let peer = stream.peer_addr()?;
        Ok((TcpStream::from_std(stream)?, peer))
    }

    fn peer((_, peer): &Self::Accepted) -> Option<IpAddr> {
        Some(peer.ip())
    }

    fn caller((_, peer): &Self::Accepted) -> Caller {
        Caller::inet(*peer)
    }

    fn connection((stream, _): &Self::Accepted) -> BorrowedFd<'_> {
        stream.as_fd()
    }

    fn into_connection((stream, _): Self::Accepted) -> io::Result<OwnedFd> {
        stream.into_std().map(OwnedFd::from)
    }
}

fn accept_one(
    listener: &tokio::net::TcpListener,
    cx: &mut Context<'_>,
) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
    pass_over(|| listener.poll_accept(cx))
}

/// Accepts again after an error that belongs to the connection and not to the listener.
pub(super) fn pass_over<T>(mut accept: impl FnMut() -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
    loop {
        match accept() {
            Poll::Ready(Err(error)) if concerns_one_connection(&error) => {}
            outcome => return outcome,
        }
    }
}

/// accept(2), "Error handling": pending network errors of the new socket are passed through accept.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::ENETDOWN
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
        )
    )
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn an_error_of_one_connection_is_passed_over_and_one_of_the_process_is_not() {
        let mut errors = VecDeque::from([libc::ECONNABORTED, libc::ENETUNREACH, libc::EMFILE, 0]);
        let outcome: Poll<io::Result<()>> = pass_over(|| {
            let next = errors.pop_front().unwrap();
            Poll::Ready(Err(io::Error::from_raw_os_error(next)))
        });
        let Poll::Ready(Err(error)) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        assert_eq!(errors, [0]);
    }
}
