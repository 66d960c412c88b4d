//! Lets requests that cross a GOAWAY arrive before the server hears that its client has seen it.
//!
//! On the way out h2 says GOAWAY for the highest stream there can be and a PING, and when that is acknowledged GOAWAY for
//! the last stream it has seen (RFC 9113, section 6.8). But clients, h2's own among them, write the acknowledgment in
//! front of requests that they had queued when the PING came. Those would be rejected, and not every client tries again.
//! So acknowledgments are held back for [`GOAWAY_SETTLE`] once the generation is on its way out; nothing else is.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::io::Io;
use crate::config::GOAWAY_SETTLE;

/// An HTTP/2 connection, from its preface on.
pub(super) struct LateAck<S> {
    io: Io<S>,
    frames: Frames,
    /// Present once the generation is on its way out: what was read goes through here then.
    sorted: Option<Sorted>,
}

/// What was read and h2 does not have yet.
#[derive(Default)]
struct Sorted {
    ready: BytesMut,
    /// Acknowledgments, and when they go on their way.
    held: BytesMut,
    release: Option<Pin<Box<Sleep>>>,
    is_ended: bool,
}

/// Where in the sequence of frames the connection is (RFC 9113, section 4.1).
struct Frames {
    /// The head of the next frame, as far as it has come.
    head: Vec<u8>,
    /// What is left of the payload.
    payload: usize,
    is_ack: bool,
    /// Between HEADERS and the end of its header block nothing else may come (section 6.10).
    is_in_block: bool,
}

impl<S> LateAck<S> {
    pub(super) fn new(io: Io<S>) -> Self {
        Self {
            io,
            frames: Frames::after_preface(),
            sorted: None,
        }
    }

    /// Bytes of a frame's head that h2 has already cannot be sorted; the next frame can.
    fn begin_to_sort(&mut self) {
        if self.sorted.is_none() && self.io.ledger().is_leaving() && self.frames.head.is_empty() {
            self.frames.is_ack = false;
            self.sorted = Some(Sorted::default());
        }
    }
}

impl Sorted {
    fn take(&mut self, buf: &mut ReadBuf<'_>) {
        let length = self.ready.len().min(buf.remaining());
        buf.put_slice(&self.ready[..length]);
        self.ready.advance(length);
    }

    fn sort(&mut self, frames: &mut Frames, bytes: &[u8]) {
        frames.walk(bytes, |bytes, is_ack| match is_ack {
            true if self.held.len() < HELD_MAX => self.held.extend_from_slice(bytes),
            _ => self.ready.extend_from_slice(bytes),
        });
    }

    fn poll_release(&mut self, cx: &mut Context<'_>, frames: &Frames) {
        if self.held.is_empty() {
            return;
        }
        let release = self
            .release
            .get_or_insert_with(|| Box::pin(sleep(GOAWAY_SETTLE)));
        if release.as_mut().poll(cx).is_ready() && frames.payload == 0 && !frames.is_in_block {
            self.release = None;
            self.ready.unsplit(self.held.split());
        }
    }

    fn end(&mut self, frames: &mut Frames) {
        self.is_ended = true;
        self.ready.unsplit(self.held.split());
        self.ready
            .extend_from_slice(&std::mem::take(&mut frames.head));
    }
}

impl Frames {
    fn after_preface() -> Self {
        Self {
            head: Vec::with_capacity(HEAD),
            payload: PREFACE,
            is_ack: false,
            is_in_block: false,
        }
    }

    /// Gives every part of these bytes to `sink`, heads only when they are complete, with whether it belongs to the
    /// acknowledgment of a PING.
    fn walk(&mut self, mut bytes: &[u8], mut sink: impl FnMut(&[u8], bool)) {
        while !bytes.is_empty() {
            let wanted = if self.payload > 0 {
                self.payload
            } else {
                HEAD - self.head.len()
            };
            let (part, rest) = bytes.split_at(wanted.min(bytes.len()));
            bytes = rest;
            if self.payload > 0 {
                self.payload -= part.len();
                sink(part, self.is_ack);
            } else {
                self.head.extend_from_slice(part);
                if self.head.len() == HEAD {
                    self.enter();
                    sink(&std::mem::take(&mut self.head), self.is_ack);
                }
            }
        }
    }

    fn enter(&mut self) {
        let (kind, flags) = (self.head[3], self.head[4]);
        self.payload = usize::from(self.head[0]) << 16
            | usize::from(self.head[1]) << 8
            | usize::from(self.head[2]);
        // What is no proper acknowledgment is h2's to refuse.
        let is_ack = kind == PING && flags & ACK != 0;
        self.is_ack = is_ack && self.payload == PING_PAYLOAD && !self.is_in_block;
        if matches!(kind, HEADERS | CONTINUATION) {
            self.is_in_block = flags & END_HEADERS == 0;
        }
    }
}

/// Length of the client's connection preface (section 3.4).
const PREFACE: usize = 24;
/// Length of a frame's head.
const HEAD: usize = 9;
const HEADERS: u8 = 0x1;
const PING: u8 = 0x6;
const PING_PAYLOAD: usize = 8;
/// How much is held back at the most: sixteen acknowledgments.
const HELD_MAX: usize = 16 * (HEAD + PING_PAYLOAD);
const CONTINUATION: u8 = 0x9;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for LateAck<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.begin_to_sort();
        let Self { io, frames, sorted } = &mut *self;
        let Some(sorted) = sorted else {
            let before = buf.filled().len();
            ready!(Pin::new(io).poll_read(cx, buf))?;
            frames.walk(&buf.filled()[before..], |_, _| {});
            return Poll::Ready(Ok(()));
        };
        let mut chunk = [0; 4096];
        loop {
            sorted.poll_release(cx, frames);
            if !sorted.ready.is_empty() || sorted.is_ended {
                sorted.take(buf);
                return Poll::Ready(Ok(()));
            }
            let mut read = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut *io).poll_read(cx, &mut read))?;
            match read.filled() {
                [] => sorted.end(frames),
                bytes => sorted.sort(frames, bytes),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for LateAck<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::super::ledger::Ledger;
    use super::super::tests;
    use super::*;

    const PRI: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn connection() -> (DuplexStream, LateAck<DuplexStream>, Arc<Ledger>) {
        let (client, server) = duplex(64 * 1024);
        let io = tests::io(server, b"");
        let ledger = Arc::clone(io.ledger());
        (client, LateAck::new(io), ledger)
    }

    async fn read(server: &mut LateAck<DuplexStream>, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        server.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    #[tokio::test(start_paused = true)]
    async fn an_acknowledgment_on_the_way_out_comes_after_the_requests_behind_it() {
        let (mut client, mut server, ledger) = connection();
        let (ack, request) = (
            frame(PING, ACK, &[7; 8]),
            frame(HEADERS, END_HEADERS, b"GET"),
        );
        client.write_all(PRI).await.unwrap();
        assert_eq!(read(&mut server, PREFACE).await, PRI);
        ledger.set_leaving(true);
        let begin = Instant::now();
        client
            .write_all(&[&*ack, &*request].concat())
            .await
            .unwrap();
        assert_eq!(read(&mut server, request.len()).await, request);
        assert_eq!(begin.elapsed(), Duration::ZERO);
        assert_eq!(read(&mut server, ack.len()).await, ack);
        assert!(begin.elapsed() >= GOAWAY_SETTLE);
    }

    #[tokio::test(start_paused = true)]
    async fn an_acknowledgment_comes_at_once_while_the_generation_serves() {
        let (mut client, mut server, _ledger) = connection();
        let ack = frame(PING, ACK, &[7; 8]);
        let begin = Instant::now();
        client.write_all(&[PRI, &*ack].concat()).await.unwrap();
        assert_eq!(read(&mut server, PREFACE + ack.len()).await[PREFACE..], ack);
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn an_acknowledgment_never_comes_between_the_parts_of_a_header_block() {
        let (mut client, mut server, ledger) = connection();
        let ack = frame(PING, ACK, &[7; 8]);
        let (first, second) = (
            frame(HEADERS, 0, b"GE"),
            frame(CONTINUATION, END_HEADERS, b"T"),
        );
        ledger.set_leaving(true);
        client
            .write_all(&[PRI, &*ack, &*first].concat())
            .await
            .unwrap();
        assert_eq!(
            read(&mut server, PREFACE + first.len()).await[PREFACE..],
            first
        );
        tokio::time::advance(GOAWAY_SETTLE * 2).await;
        client.write_all(&second).await.unwrap();
        let rest = read(&mut server, second.len() + ack.len()).await;
        assert_eq!(rest, [second, ack].concat());
    }

    #[tokio::test(start_paused = true)]
    async fn every_byte_arrives_however_the_frames_are_cut() {
        let frames = [
            frame(HEADERS, END_HEADERS, b"GET"),
            frame(PING, ACK, &[7; 8]),
            frame(PING, 0, &[8; 8]),
            frame(0, 1, &[9; 200]),
        ];
        let sent = [PRI, &*frames.concat()].concat();
        for size in 1..40 {
            let (mut client, mut server, ledger) = connection();
            let mut received = Vec::new();
            for (index, part) in sent.chunks(size).enumerate() {
                // Sorting begins wherever in a frame this finds the connection.
                ledger.set_leaving(index > 2);
                client.write_all(part).await.unwrap();
                server.read_buf(&mut received).now_or_never();
            }
            client.write_all(&frames[0][..5]).await.unwrap();
            drop(client);
            server.read_to_end(&mut received).await.unwrap();
            let (mut received, mut sent) = (received, [&*sent, &frames[0][..5]].concat());
            received.sort_unstable();
            sent.sort_unstable();
            assert_eq!(received, sent, "in parts of {size}");
        }
    }
}
