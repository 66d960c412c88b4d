//! A look at an idle connection before it is closed.
//!
//! The reactor hears of bytes some time after they have reached the socket, so that a request may wait there unnoticed.
//! The kernel is asked about a plain connection. The socket of a wrapped one, as under TLS, is out of reach inside the
//! stream that the handshake made of it, and what waits there need not be a request; so that stream is read once more,
//! and what passes the socket meanwhile is observed from below.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use socket2::SockRef;
use tokio::io::{AsyncRead, ReadBuf};

use super::io::Rewind;

/// How to look at a connection.
pub(super) enum Sight<S> {
    /// The stream is a socket.
    Socket(Peek<S>),
    /// The stream is wrapped around a socket.
    Through(Arc<Wire>),
}

/// What a look finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrivals {
    Nothing,
    /// Bytes that may become a request, or be of what is spoken below HTTP.
    Unclear,
    Request,
}

/// What is known of the socket below a wrapped stream. One task at a time reads from a connection.
#[derive(Debug, Default)]
pub(super) struct Wire {
    /// The kernel is to be asked about what the reactor has not heard of.
    is_looked_at: AtomicBool,
    /// Bytes have come that nothing has come of yet: half a record, or one without data, such as a key update.
    is_unclear: AtomicBool,
}

/// Observes a socket from inside the stream that is wrapped around it.
#[derive(Debug)]
pub(super) struct Watch<S> {
    peek: Peek<S>,
    wire: Arc<Wire>,
}

/// Asks the kernel whether bytes wait in a socket.
pub(super) type Peek<S> = fn(&S) -> bool;

impl<S> Sight<S> {
    /// Through what came of a handshake, whose own bytes begin no request.
    pub(super) fn through(wire: Arc<Wire>) -> Self {
        wire.is_unclear.store(false, Relaxed);
        Self::Through(wire)
    }

    /// Something has come of the bytes so far.
    pub(super) fn cleared(&self) {
        if let Self::Through(wire) = self {
            wire.is_unclear.store(false, Relaxed);
        }
    }
}

impl<S: AsyncRead + Unpin> Sight<S> {
    /// Looks. What has to be read for that is put back.
    pub(super) fn look(&self, stream: &mut Rewind<S>) -> Arrivals {
        match self {
            Self::Socket(peek) if peek(stream.get_ref()) => Arrivals::Request,
            Self::Socket(_) => Arrivals::Nothing,
            Self::Through(wire) => wire.look(stream),
        }
    }
}

impl Wire {
    fn look<S: AsyncRead + Unpin>(&self, stream: &mut Rewind<S>) -> Arrivals {
        let mut chunk = [0; 512];
        let mut buf = ReadBuf::new(&mut chunk);
        // Nobody has to be woken: whoever goes on serving polls again.
        let mut cx = Context::from_waker(Waker::noop());
        self.is_looked_at.store(true, Relaxed);
        let read = Pin::new(&mut *stream).poll_read(&mut cx, &mut buf);
        self.is_looked_at.store(false, Relaxed);
        // What is unclear buys one more grace, and is not found again unless more of it comes.
        let is_unclear = self.is_unclear.swap(false, Relaxed);
        match read {
            Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                stream.put_back(Bytes::copy_from_slice(buf.filled()));
                Arrivals::Request
            }
            Poll::Pending if is_unclear => Arrivals::Unclear,
            _ => Arrivals::Nothing,
        }
    }
}

impl<S: AsFd> Watch<S> {
    pub(super) fn new(wire: Arc<Wire>) -> Self {
        Self {
            peek: peek_socket,
            wire,
        }
    }
}

impl<S> Watch<S> {
    /// After every attempt to read from the socket.
    pub(super) fn observe(&self, stream: &S, has_read: bool) {
        let wire = &*self.wire;
        if has_read || wire.is_looked_at.load(Relaxed) && (self.peek)(stream) {
            wire.is_unclear.store(true, Relaxed);
        }
    }
}

/// A [`Peek`] that asks the kernel, and not the reactor.
pub(super) fn peek_socket<S: AsFd>(stream: &S) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    // recv(2): MSG_DONTWAIT makes this call alone non-blocking.
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    matches!(
        SockRef::from(stream).recv_with_flags(&mut byte, flags),
        Ok(1..)
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use tokio::net::TcpStream;

    use super::*;

    /// Two ends of a connection. The client blocks this thread, so that the reactor cannot hear of its bytes meanwhile.
    fn pair() -> (std::net::TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        server.set_nonblocking(true).unwrap();
        (client, TcpStream::from_std(server).unwrap())
    }

    #[tokio::test]
    async fn the_kernel_is_asked_and_not_the_reactor() {
        let (mut client, server) = pair();
        assert!(!peek_socket(&server));
        // The client blocks this thread, so that the reactor cannot hear of the bytes before the look.
        client.write_all(b"G").unwrap();
        assert!(peek_socket(&server));
    }

    #[tokio::test]
    async fn a_client_that_has_closed_has_sent_nothing() {
        let (client, server) = pair();
        drop(client);
        assert!(!peek_socket(&server));
    }
}
