//! UDP sockets.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::ReadBuf;

use super::gate::{Gate, Watch};

/// A named UDP socket. It receives while its generation serves; it can always send.
///
/// The gate moves the right to receive, datagram by datagram: the socket is the same in both generations, so datagrams
/// of one client may reach the successor in the middle of a conversation. Dropping it gives up receiving; the socket
/// stays open until its generation leaves, so that a successor can still inherit it.
pub struct UdpSocket {
    gate: Arc<Gate<tokio::net::UdpSocket>>,
    /// To answer with, for as long as anybody holds this, whoever has the right to receive.
    socket: Arc<OwnedFd>,
    name: String,
    local_addr: SocketAddr,
}

impl UdpSocket {
    pub(super) fn new(
        gate: Arc<Gate<tokio::net::UdpSocket>>,
        socket: Arc<OwnedFd>,
        name: &str,
        local_addr: SocketAddr,
    ) -> Self {
        Self {
            gate,
            socket,
            name: name.to_owned(),
            local_addr,
        }
    }

    /// Receives a datagram as soon as there is one and the gate is open: its length and its sender. What does not fit
    /// into `buf` is cut off (udp(7)). Once this generation has given its sockets away for good, it waits for ever.
    ///
    /// # Errors
    ///
    /// What recvfrom(2) reports for this socket.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a datagram that has been received is returned by the poll that received it.
    pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let mut buf = ReadBuf::new(buf);
        let receive = |socket: &tokio::net::UdpSocket, cx: &mut Context<'_>| {
            socket.poll_recv_from(cx, &mut buf)
        };
        let sender = self.gate.pass(receive).await?;
        Ok((buf.filled().len(), sender))
    }

    /// As [`recv_from`](Self::recv_from), for a caller that polls. Only the last task that polled is woken.
    pub fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<SocketAddr>> {
        self.gate
            .poll_pass(cx, |socket, cx| socket.poll_recv_from(cx, buf))
    }

    /// Sends a datagram, whether or not the gate is open, so that a draining generation can still answer.
    ///
    /// # Errors
    ///
    /// What sendto(2) reports.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: either the datagram was sent whole by the poll that returned, or not at all.
    pub async fn send_to(&self, buf: &[u8], target: SocketAddr) -> io::Result<usize> {
        loop {
            match SockRef::from(&self.socket).send_to(buf, &target.into()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    writable(&self.socket).await?
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome,
            }
        }
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

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.gate.abandon();
    }
}

impl fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpSocket")
            .field("name", &self.name)
            .field("local_addr", &self.local_addr)
            .field("gate", &self.gate)
            .finish()
    }
}

impl Watch for tokio::net::UdpSocket {
    fn watch(socket: OwnedFd) -> io::Result<Self> {
        Self::from_std(socket.into())
    }
}

/// Waits for room in the send buffer. The gate may be shut, so this registration is its own and ends with the wait.
async fn writable(socket: &OwnedFd) -> io::Result<()> {
    tokio::net::UdpSocket::from_std(socket.try_clone()?.into())?
        .writable()
        .await
}
