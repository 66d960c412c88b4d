//! What one connection owes its client, written by the wrappers around it and read by its [`Presence`].
//!
//! 1. An HTTP/1 connection is polled by one task, together with its service and its response body. Its phase goes
//!    round `EMPTY → BEGUN → ANSWERING → ANSWERED → EMPTY`; `ANSWERED` ends with a flush, because hyper flushes the
//!    stream only when it has written everything.
//! 2. HTTP/2 requests run in tasks of their own, so those are counted. A count may lag behind the connection's last
//!    wake-up; whoever acts on it looks again after a while.
//! 3. `leaving` is set before a connection is polled, so that the answer produced then can tell its client.
//!
//! [`Presence`]: super::presence::Presence

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use super::io::Tether;
use crate::config::PIPELINED_MAX;
use crate::drain::{Class, Drain};

/// The classes that connections are counted in.
#[derive(Clone, Debug)]
pub(super) struct Classes {
    pub(super) handshake: Class,
    pub(super) http1: Class,
    pub(super) http2: Class,
    pub(super) idle: Class,
    pub(super) stream: Class,
    pub(super) upgrade: Class,
}

/// What a connection is doing, as its generation's drain sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    Idle,
    Busy,
    /// Nothing but event streams.
    Streaming,
    /// Something over which a protocol of its own is spoken.
    Tunnelling,
}

pub(super) struct Ledger {
    pub(super) classes: Arc<Classes>,
    pub(super) peer: String,
    leaving: AtomicBool,
    touched: AtomicBool,
    phase: AtomicU8,
    requests: AtomicU32,
    streams: AtomicU32,
    tunnels: AtomicU32,
    read_ahead: AtomicBool,
    answered_ahead: AtomicU32,
    framing: Framing,
    tether: Mutex<Option<Tether>>,
}

/// How far into the connection's bytes the current HTTP/1 request reaches; positions count from the first byte.
#[derive(Debug, Default)]
struct Framing {
    read: AtomicU64,
    /// Where the request's head ends; 0 if that was not seen.
    head_end: AtomicU64,
    /// Where its body ends; `u64::MAX` if that is not known.
    body_end: AtomicU64,
}

/// Nothing of a request was read, nothing of a response is left to write.
const EMPTY: u8 = 0;
/// A request's first bytes were read.
const BEGUN: u8 = 1;
/// The service has the request, or hyper the response's body.
const ANSWERING: u8 = 2;
/// The response is complete but perhaps not written.
const ANSWERED: u8 = 3;
/// The connection has left HTTP.
const UPGRADED: u8 = 4;
/// The write side is, or is being, shut down.
const CLOSING: u8 = 5;
/// The connection carries many requests at once; the counts say what it does.
const MULTIPLEXED: u8 = 6;

impl Ledger {
    pub(super) fn new(classes: Arc<Classes>, peer: String) -> Self {
        Self {
            classes,
            peer,
            leaving: AtomicBool::new(false),
            touched: AtomicBool::new(false),
            phase: AtomicU8::new(EMPTY),
            requests: AtomicU32::new(0),
            streams: AtomicU32::new(0),
            tunnels: AtomicU32::new(0),
            read_ahead: AtomicBool::new(false),
            answered_ahead: AtomicU32::new(0),
            framing: Framing::default(),
            tether: Mutex::default(),
        }
    }

    pub(super) fn activity(&self) -> Activity {
        let requests = self.requests.load(Relaxed);
        if self.tunnels.load(Relaxed) > 0 {
            Activity::Tunnelling
        } else if requests > 0 && requests == self.streams.load(Relaxed) {
            Activity::Streaming
        } else if requests > 0 || !matches!(self.phase(), EMPTY | MULTIPLEXED) {
            Activity::Busy
        } else {
            Activity::Idle
        }
    }

    pub(super) fn set_leaving(&self, leaving: bool) {
        self.leaving.store(leaving, Relaxed);
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Relaxed)
    }

    /// Whether bytes went either way since this was asked last.
    pub(super) fn take_touched(&self) -> bool {
        self.touched.swap(false, Relaxed)
    }

    pub(super) fn is_multiplexed(&self) -> bool {
        self.phase() == MULTIPLEXED
    }

    pub(super) fn is_upgraded(&self) -> bool {
        self.phase() == UPGRADED
    }

    pub(super) fn multiplexed(&self) {
        self.enter(MULTIPLEXED);
    }

    /// The first bytes of a request were read, by whomever.
    pub(super) fn begun(&self) {
        if self.phase() == EMPTY {
            self.enter(BEGUN);
        }
    }

    /// The connection was taken out of hyper between two requests and will be read anew.
    pub(super) fn rewound(&self) {
        self.framing.restart();
        self.enter(BEGUN);
    }

    pub(super) fn closing(&self) {
        if !self.is_multiplexed() && !self.is_upgraded() {
            self.enter(CLOSING);
        }
    }

    pub(super) fn read(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.touch();
        self.read_ahead.store(true, Relaxed);
        if matches!(self.phase(), EMPTY | BEGUN) {
            self.framing.search_head_end(bytes);
            self.enter(BEGUN);
        }
        self.framing.advance(bytes.len());
    }

    pub(super) fn read_blocked(&self) {
        self.read_ahead.store(false, Relaxed);
    }

    pub(super) fn wrote(&self) {
        self.touch();
    }

    /// Something has happened that begins no request and yet is a sign of life.
    pub(super) fn touch(&self) {
        self.touched.store(true, Relaxed);
    }

    pub(super) fn flushed(&self) {
        if self.phase() == ANSWERED {
            self.enter(EMPTY);
        }
    }

    /// The service is given a request with a body of this length: none at all, or unknown.
    pub(super) fn request(&self, body: Option<Option<u64>>) {
        self.requests.fetch_add(1, Relaxed);
        if !self.is_multiplexed() {
            self.framing.request(body);
            self.enter(ANSWERING);
        }
    }

    /// The response's body, or the service's future, is gone.
    pub(super) fn response_ended(&self, streaming: bool) {
        if streaming {
            self.streams.fetch_sub(1, Relaxed);
        }
        self.requests.fetch_sub(1, Relaxed);
        if self.phase() == ANSWERING {
            self.enter(ANSWERED);
        }
    }

    /// The response in flight is an event stream.
    pub(super) fn stream_begun(&self) {
        self.streams.fetch_add(1, Relaxed);
    }

    /// A stream of this HTTP/2 connection has left HTTP. Its end cannot be seen, so that only the client or the
    /// class's deadline ends the connection.
    pub(super) fn tunnel_begun(&self) {
        self.tunnels.fetch_add(1, Relaxed);
    }

    /// This HTTP/1 connection leaves HTTP with its next flush.
    pub(super) fn upgraded(&self) {
        let guard = self.classes.upgrade.guard(self.peer.clone());
        *self.tether.lock().unwrap_or_else(PoisonError::into_inner) = Some(Tether::new(guard));
        self.enter(UPGRADED);
    }

    pub(super) fn take_tether(&self) -> Option<Tether> {
        self.tether
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Whether the response to this HTTP/1 request is to be the connection's last.
    ///
    /// A client that has pipelined requests behind this one is answered those first.
    pub(super) fn is_last_response(&self) -> bool {
        if !self.leaving.load(Relaxed) {
            return false;
        }
        // hyper reads on while it waits for a response if its buffer is empty, and not otherwise.
        let more = self.read_ahead.load(Relaxed) && !self.framing.has_body();
        !more || self.answered_ahead.fetch_add(1, Relaxed) >= PIPELINED_MAX
    }

    /// Whether the last request had a body, which the application may not have read to its end.
    pub(super) fn had_body(&self) -> bool {
        self.framing.has_body()
    }

    /// Whether the client may have sent, or be sending, more than was read.
    pub(super) fn may_be_unread(&self) -> bool {
        !self.is_upgraded() && (self.is_multiplexed() || self.framing.may_be_unread())
    }

    fn phase(&self) -> u8 {
        self.phase.load(Relaxed)
    }

    fn enter(&self, phase: u8) {
        self.phase.store(phase, Relaxed);
    }
}

impl Framing {
    /// Finds the end of the head that is being read, if it is in these bytes as a whole.
    fn search_head_end(&self, bytes: &[u8]) {
        const END: &[u8] = b"\r\n\r\n";
        let end = if bytes.ends_with(END) {
            Some(bytes.len())
        } else {
            bytes
                .windows(END.len())
                .position(|window| window == END)
                .map(|at| at + END.len())
        };
        if let Some(end) = end {
            self.head_end
                .store(self.read.load(Relaxed) + end as u64, Relaxed);
        }
    }

    fn advance(&self, length: usize) {
        // One task writes this at a time, so there is no update to lose.
        self.read
            .store(self.read.load(Relaxed) + length as u64, Relaxed);
    }

    fn request(&self, body: Option<Option<u64>>) {
        let body_end = match (body, self.head_end.swap(0, Relaxed)) {
            (None, _) => 0,
            (Some(Some(length)), head_end @ 1..) => head_end.saturating_add(length),
            _ => u64::MAX,
        };
        self.body_end.store(body_end, Relaxed);
    }

    fn has_body(&self) -> bool {
        self.body_end.load(Relaxed) > 0
    }

    fn may_be_unread(&self) -> bool {
        self.read.load(Relaxed) < self.body_end.load(Relaxed)
    }

    fn restart(&self) {
        self.read.store(0, Relaxed);
        self.head_end.store(0, Relaxed);
        self.body_end.store(0, Relaxed);
    }
}

impl Classes {
    pub(super) fn new(drain: &Drain) -> Self {
        Self {
            handshake: drain.class("handshake"),
            http1: drain.class("http1"),
            http2: drain.class("http2"),
            idle: drain.class("idle"),
            stream: drain.class("stream"),
            upgrade: drain.class("upgrade"),
        }
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger")
            .field("peer", &self.peer)
            .field("activity", &self.activity())
            .field("phase", &self.phase())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests;
    use super::*;

    const HEAD: &[u8] = b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\n";

    fn ledger() -> Arc<Ledger> {
        let long = Duration::from_secs(600);
        tests::ledger(&Drain::new(long, long))
    }

    #[test]
    fn a_request_is_in_flight_from_its_first_byte_to_the_flush_of_its_answer() {
        let ledger = ledger();
        assert_eq!(ledger.activity(), Activity::Idle);
        ledger.read(b"G");
        ledger.flushed();
        assert_eq!(ledger.activity(), Activity::Busy);
        ledger.request(None);
        ledger.flushed();
        assert_eq!(ledger.activity(), Activity::Busy);
        ledger.response_ended(false);
        assert_eq!(ledger.activity(), Activity::Busy);
        ledger.flushed();
        assert_eq!(ledger.activity(), Activity::Idle);
    }

    #[test]
    fn requests_of_one_connection_are_counted_and_streams_among_them_do_not_hide_the_rest() {
        let ledger = ledger();
        ledger.multiplexed();
        ledger.read(b"frames");
        assert_eq!(ledger.activity(), Activity::Idle);
        ledger.request(None);
        ledger.request(None);
        ledger.stream_begun();
        assert_eq!(ledger.activity(), Activity::Busy);
        ledger.response_ended(false);
        assert_eq!(ledger.activity(), Activity::Streaming);
        ledger.response_ended(true);
        assert_eq!(ledger.activity(), Activity::Idle);
    }

    #[test]
    fn a_body_of_known_length_is_unread_until_its_last_byte_was_read() {
        let ledger = ledger();
        ledger.read(&[HEAD, b"a"].concat());
        ledger.request(Some(Some(3)));
        assert!(ledger.may_be_unread());
        ledger.read(b"b");
        assert!(ledger.may_be_unread());
        ledger.read(b"c");
        assert!(!ledger.may_be_unread());
    }

    #[test]
    fn what_cannot_be_known_may_be_unread() {
        let (chunked, split) = (ledger(), ledger());
        chunked.read(HEAD);
        chunked.request(Some(None));
        assert!(chunked.may_be_unread());
        split.read(&HEAD[..HEAD.len() - 1]);
        split.read(b"\nabc");
        split.request(Some(Some(3)));
        assert!(split.may_be_unread());
    }

    #[test]
    fn the_last_response_is_the_one_behind_which_nothing_was_read() {
        let ledger = ledger();
        ledger.read(HEAD);
        ledger.request(None);
        assert!(!ledger.is_last_response());
        ledger.set_leaving(true);
        assert!(!ledger.is_last_response());
        ledger.read_blocked();
        assert!(ledger.is_last_response());
    }

    #[test]
    fn a_client_that_pipelines_without_end_is_told_in_the_end() {
        let ledger = ledger();
        ledger.set_leaving(true);
        ledger.read(HEAD);
        ledger.request(None);
        assert_eq!(
            (0..=PIPELINED_MAX).position(|_| ledger.is_last_response()),
            Some(PIPELINED_MAX as usize)
        );
    }
}
