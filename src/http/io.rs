//! The two wrappers between a socket and hyper.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep, timeout};

use super::body::{Cut, cut};
use super::ledger::Ledger;
use super::sight::{Arrivals, Sight, Watch, Wire};
use crate::config::LINGER_DEADLINE;
use crate::drain::Guard;

/// A stream with bytes that were already read from it put back in front.
#[derive(Debug)]
pub struct Rewind<S> {
    prefix: Bytes,
    stream: S,
    watch: Option<Watch<S>>,
}

impl<S> Rewind<S> {
    pub(crate) fn new(stream: S, prefix: Bytes) -> Self {
        Self {
            prefix,
            stream,
            watch: None,
        }
    }

    /// Lets whoever serves what is wrapped around this socket look at it.
    pub(super) fn watched(&mut self) -> Arc<Wire>
    where
        S: AsFd,
    {
        let wire = Arc::new(Wire::default());
        self.watch = Some(Watch::new(Arc::clone(&wire)));
        wire
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
            let before = buf.filled().len();
            let read = Pin::new(&mut self.stream).poll_read(cx, buf);
            if let Some(watch) = &self.watch {
                watch.observe(&self.stream, buf.filled().len() > before);
            }
            return read;
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

/// What hyper reads from and writes to: keeps the [`Ledger`], lingers, and ends an upgraded connection when it is cut.
pub(super) struct Io<S> {
    stream: Rewind<S>,
    ledger: Arc<Ledger>,
    sight: Sight<S>,
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
    pub(super) fn new(stream: Rewind<S>, sight: Sight<S>, ledger: Arc<Ledger>) -> Self {
        Self {
            stream,
            ledger,
            sight,
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

impl<S: AsyncRead + Unpin> Io<S> {
    /// Looks at an idle connection before it is closed. Nothing of what is found is lost.
    pub(super) fn look(&mut self) -> Arrivals {
        self.sight.look(&mut self.stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Io<S> {
    /// Closes a connection whose client waits for nothing, so that it does not matter whether this works.
    pub(super) async fn close(mut self) {
        let shutdown = poll_fn(|cx| Pin::new(&mut self).poll_shutdown(cx));
        let _ = timeout(LINGER_DEADLINE, shutdown).await;
    }

    /// Whether the client may have sent, or be sending, more than was read: a body, or requests behind the answer that
    /// was made the last one.
    fn has_unread(&mut self) -> bool {
        let may_pipeline = self.ledger.is_leaving() && !self.ledger.is_upgraded();
        self.ledger.may_be_unread() || may_pipeline && self.look() != Arrivals::Nothing
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
            Poll::Ready(Ok(())) => {
                self.sight.cleared();
                self.ledger.read(&buf.filled()[before..]);
            }
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
            if !self.has_unread() {
                return Poll::Ready(Ok(()));
            }
        }
        self.poll_linger(cx).map(Ok)
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_is_put_back_comes_before_what_was_not_read_yet() {
        let (mut client, server) = duplex(8);
        let mut stream = Rewind::new(server, Bytes::from("b"));
        stream.put_back(Bytes::from("a"));
        client.write_all(b"c").await.unwrap();
        let mut read = [0; 3];
        stream.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"abc");
    }
}
