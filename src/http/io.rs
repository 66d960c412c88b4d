//! The two wrappers between a socket and hyper.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep, timeout};

use super::body::{Cut, cut};
use super::ledger::Ledger;
use crate::config::LINGER_DEADLINE;
use crate::drain::Guard;

/// A stream with bytes that were already read from it put back in front.
#[derive(Debug)]
pub struct Rewind<S> {
    prefix: Bytes,
    stream: S,
}

impl<S> Rewind<S> {
    pub(crate) fn new(stream: S, prefix: Bytes) -> Self {
        Self { prefix, stream }
    }

    /// The stream itself. Reading from it would miss what was put back.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    pub(super) fn put_back(&mut self, bytes: Bytes) {
        if self.prefix.is_empty() {
            self.prefix = bytes;
        } else {
            let mut joined = BytesMut::from(&bytes[..]);
            joined.extend_from_slice(&self.prefix);
            self.prefix = joined.freeze();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewind<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let length = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..length]);
        self.prefix.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewind<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Asks the kernel whether bytes wait in a socket.
pub(super) type Peek<S> = fn(&S) -> bool;

/// A [`Peek`] that asks the kernel, and not the reactor, which may not have heard of the bytes yet.
pub(super) fn peek_socket<S: AsFd>(stream: &S) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    // recv(2): MSG_DONTWAIT makes this call alone non-blocking.
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    matches!(
        SockRef::from(stream).recv_with_flags(&mut byte, flags),
        Ok(1..)
    )
}

/// A [`Peek`] for streams whose socket is out of reach.
pub(super) fn peek_nothing<S>(_: &S) -> bool {
    false
}

/// What hyper reads from and writes to: keeps the [`Ledger`], lingers, and ends an upgraded connection when it is cut.
pub(super) struct Io<S> {
    stream: Rewind<S>,
    ledger: Arc<Ledger>,
    peek: Peek<S>,
    tether: Option<Tether>,
    linger: Option<Pin<Box<Sleep>>>,
}

/// Counts an upgraded connection for as long as it lives, and cuts it when its time is up.
pub(super) struct Tether {
    // Readers and writers may be different tasks, and each future wakes only the last task that polled it.
    read_cut: Cut,
    write_cut: Cut,
    _guard: Guard,
}

impl Tether {
    pub(super) fn new(guard: Guard) -> Self {
        Self {
            read_cut: cut(guard.signal()),
            write_cut: cut(guard.signal()),
            _guard: guard,
        }
    }
}

impl<S> Io<S> {
    pub(super) fn new(stream: Rewind<S>, peek: Peek<S>, ledger: Arc<Ledger>) -> Self {
        Self {
            stream,
            ledger,
            peek,
            tether: None,
            linger: None,
        }
    }

    pub(super) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Whether bytes were put back that nobody has read since.
    pub(super) fn has_prefix(&self) -> bool {
        !self.stream.prefix.is_empty()
    }

    /// Whether bytes wait in the socket that the reactor may not have heard of yet.
    pub(super) fn has_arrivals(&self) -> bool {
        (self.peek)(&self.stream.stream)
    }

    /// The stream, for reads that the ledger does not count.
    pub(super) fn uncounted(&mut self) -> &mut Rewind<S> {
        &mut self.stream
    }

    fn is_cut(&mut self, cx: &mut Context<'_>, side: fn(&mut Tether) -> &mut Cut) -> bool {
        if !self.ledger.is_upgraded() {
            return false;
        }
        if self.tether.is_none() {
            self.tether = self.ledger.take_tether();
        }
        let tether = self.tether.as_mut();
        tether.is_some_and(|tether| side(tether).as_mut().poll(cx).is_ready())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Io<S> {
    /// Closes a connection whose client waits for nothing, so that it does not matter whether this works.
    pub(super) async fn close(mut self) {
        let shutdown = poll_fn(|cx| Pin::new(&mut self).poll_shutdown(cx));
        let _ = timeout(LINGER_DEADLINE, shutdown).await;
    }

    /// Reads on until the client closes, so that what it still sends does not make the kernel answer with a reset,
    /// which would discard the response on its way (RFC 9112, section 9.6).
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = self
            .linger
            .get_or_insert_with(|| Box::pin(sleep(LINGER_DEADLINE)));
        let mut discarded = [0; 4096];
        while until.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::new(&mut discarded);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf));
            if read.is_err() || buf.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Io<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_cut(cx, |tether| &mut tether.read_cut) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        match &read {
            Poll::Ready(Ok(())) => self.ledger.read(&buf.filled()[before..]),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.ledger.read_blocked(),
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Io<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_cut(cx, |tether| &mut tether.write_cut) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        self.ledger.wrote();
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_cut(cx, |tether| &mut tether.write_cut) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
        self.ledger.wrote();
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.ledger.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            self.ledger.closing();
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        if self.ledger.may_be_unread() {
            ready!(self.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S> fmt::Debug for Io<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Io")
            .field("ledger", &self.ledger)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;

    use super::*;

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

    #[tokio::test]
    async fn what_is_put_back_comes_before_what_was_not_read_yet() {
        let (mut client, server) = pair();
        let mut stream = Rewind::new(server, Bytes::from("b"));
        stream.put_back(Bytes::from("a"));
        client.write_all(b"c").unwrap();
        let mut read = [0; 3];
        stream.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"abc");
    }
}
