//! What crosses an HTTP/2 connection, frame by frame, to tell requests that the server lost from those that this client
//! should not have sent.
//!
//! A server that leaves says GOAWAY for the highest stream there can be and a PING, and once that is acknowledged GOAWAY
//! for the last stream that it answers (RFC 9113 section 6.8). hyper writes requests that it holds at that instant after
//! its acknowledgment, against the same section; the server rejects those unprocessed. Whatever was on the wire before
//! the acknowledgment is owed an answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What was seen on one connection.
#[derive(Debug, Default)]
pub(super) struct Wire {
    is_warned: AtomicBool,
    has_acknowledged: AtomicBool,
    owed: AtomicU64,
}

/// A connection that is watched.
pub(super) struct Watched {
    stream: TcpStream,
    wire: Arc<Wire>,
    incoming: Frames,
    outgoing: Frames,
}

/// Cuts bytes into frames.
#[derive(Default)]
struct Frames {
    /// The begin of a frame, up to four bytes into its payload.
    begin: Vec<u8>,
    skip: usize,
}

struct Frame {
    kind: u8,
    is_ack: bool,
    /// The first four bytes of the payload, or as many as there are.
    payload: u32,
}

impl Wire {
    /// How many requests the server owes an answer: all, until it has been told that its warning has come.
    pub(super) fn owed(&self) -> u64 {
        self.owed.load(Ordering::Relaxed)
    }

    /// Whether this client knew that the server leaves, and has said so.
    pub(super) fn has_acknowledged(&self) -> bool {
        self.has_acknowledged.load(Ordering::Relaxed)
    }

    fn received(&self, frame: &Frame) {
        if frame.kind == GOAWAY && frame.payload & STREAM_MAX == STREAM_MAX {
            self.is_warned.store(true, Ordering::Relaxed);
        }
    }

    fn sent(&self, frame: &Frame) {
        match frame.kind {
            PING if frame.is_ack && self.is_warned.load(Ordering::Relaxed) => {
                self.has_acknowledged.store(true, Ordering::Relaxed);
            }
            HEADERS if !self.has_acknowledged() => {
                self.owed.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

impl Watched {
    pub(super) fn new(stream: TcpStream) -> (Self, Arc<Wire>) {
        let wire = Arc::new(Wire::default());
        let watched = Self {
            stream,
            wire: Arc::clone(&wire),
            incoming: Frames::default(),
            outgoing: Frames::after(PREFACE),
        };
        (watched, wire)
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buffer);
        let wire = &this.wire;
        this.incoming
            .feed(&buffer.filled()[before..], |frame| wire.received(frame));
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = polled {
            let wire = &this.wire;
            this.outgoing
                .feed(&bytes[..written], |frame| wire.sent(frame));
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl Frames {
    /// Those that follow a preface of so many bytes.
    fn after(preface: usize) -> Self {
        Self {
            begin: Vec::new(),
            skip: preface,
        }
    }

    fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&Frame)) {
        for byte in bytes {
            if self.skip > 0 {
                self.skip -= 1;
                continue;
            }
            self.begin.push(*byte);
            if let Some((frame, rest)) = parse(&self.begin) {
                each(&frame);
                self.begin.clear();
                self.skip = rest;
            }
        }
    }
}

/// The frame that begins like this, and how many bytes of it are still to come; RFC 9113 section 4.1.
fn parse(begin: &[u8]) -> Option<(Frame, usize)> {
    let ([high, middle, low, kind, flags, _, _, _, _], payload) = begin.split_first_chunk()?;
    let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
    if payload.len() < length.min(4) {
        return None;
    }
    let frame = Frame {
        kind: *kind,
        is_ack: flags & ACK != 0,
        payload: payload
            .iter()
            .fold(0, |sum, byte| sum << 8 | u32::from(*byte)),
    };
    Some((frame, length - payload.len()))
}

const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
const HEADERS: u8 = 1;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const STREAM_MAX: u32 = u32::MAX >> 1;

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: [u8; 12] = [0, 0, 3, HEADERS, 5, 0, 0, 0, 1, b'a', b'b', b'c'];
    const PONG: [u8; 17] = [0, 0, 8, PING, ACK, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    const WARNING: [u8; 17] = [
        0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0,
    ];
    const LAST: [u8; 17] = [0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];

    #[test]
    fn what_was_sent_before_the_acknowledgment_is_owed() {
        let wire = Wire::default();
        receive(&wire, &WARNING);
        send(&wire, &[&REQUEST[..], &REQUEST, &PONG, &REQUEST].concat());
        assert_eq!((wire.owed(), wire.has_acknowledged()), (2, true));
    }

    #[test]
    fn nothing_is_acknowledged_without_a_warning() {
        let wire = Wire::default();
        receive(&wire, &LAST);
        send(&wire, &[&PONG[..], &REQUEST].concat());
        assert_eq!((wire.owed(), wire.has_acknowledged()), (1, false));
    }

    #[test]
    fn frames_are_found_however_the_bytes_come() {
        let bytes = [
            &[0; PREFACE][..],
            &REQUEST,
            &[0, 0, 0, 4, 1, 0, 0, 0, 0],
            &PONG,
        ]
        .concat();
        for size in 1..bytes.len() {
            let mut frames = Frames::after(PREFACE);
            let mut kinds = Vec::new();
            for piece in bytes.chunks(size) {
                frames.feed(piece, |frame| kinds.push((frame.kind, frame.is_ack)));
            }
            assert_eq!(kinds, [(HEADERS, true), (4, true), (PING, true)]);
        }
    }

    fn receive(wire: &Wire, bytes: &[u8]) {
        Frames::default().feed(bytes, |frame| wire.received(frame));
    }

    fn send(wire: &Wire, bytes: &[u8]) {
        Frames::default().feed(bytes, |frame| wire.sent(frame));
    }
}
