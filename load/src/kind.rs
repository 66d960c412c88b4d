//! The kinds of clients, and the kinds of failures they can meet.

use std::fmt;

use serde::{Serialize, Serializer};

/// What a client does, again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Opens a TCP connection for each request.
    Fresh,
    /// Sends request after request over one connection, with pauses in which the connection is idle.
    KeepAlive,
    /// Asks for an answer that takes the server [`Mix::slow_for`](crate::Mix::slow_for).
    Slow,
    /// Sends a body in pieces over [`Mix::upload_for`](crate::Mix::upload_for).
    Upload,
    /// Reads a chunked body that the server writes over [`Mix::stream_for`](crate::Mix::stream_for).
    Stream,
    /// Sends rounds of concurrent requests over one HTTP/2 connection.
    Http2,
    /// Sends messages over one WebSocket and expects their echo.
    WebSocket,
}

impl Kind {
    /// Every kind, in the order of reports.
    pub const ALL: [Self; 7] = [
        Self::Fresh,
        Self::KeepAlive,
        Self::Slow,
        Self::Upload,
        Self::Stream,
        Self::Http2,
        Self::WebSocket,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fresh => "new connection",
            Self::KeepAlive => "keep-alive",
            Self::Slow => "slow",
            Self::Upload => "upload",
            Self::Stream => "stream",
            Self::Http2 => "http/2",
            Self::WebSocket => "websocket",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// How a request failed, as its client saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Failure {
    /// The connection was refused.
    ConnectRefused,
    /// The connection was reset before it was established.
    ConnectReset,
    /// The connection was not established within [`Mix::connect_deadline`](crate::Mix::connect_deadline).
    ConnectTimeout,
    /// The connection was reset under a request, outside an [`IdleRace`](Self::IdleRace).
    Reset,
    /// The first request on a connection met its end instead of an answer.
    EofBeforeResponse,
    /// A request on a re-used connection met its end or a reset instead of the first byte of an answer.
    IdleRace,
    /// An answer began and the connection ended before it was whole.
    EofInsideResponse,
    /// The server answered with a 5xx status.
    Status5xx,
    /// The server answered with another status than asked for.
    OtherStatus,
    /// No whole answer within [`Mix::deadline`](crate::Mix::deadline).
    TimedOut,
    /// The answer cannot be parsed, or is not the one that was asked for.
    Protocol,
    /// An HTTP/2 request was rejected or lost after it was handed to its connection.
    H2,
    /// The load itself ran out of something: ports, descriptors. The server is not to blame and nothing was measured.
    Local,
}

impl Failure {
    /// Every failure, in the order of reports.
    pub const ALL: [Self; 13] = [
        Self::ConnectRefused,
        Self::ConnectReset,
        Self::ConnectTimeout,
        Self::Reset,
        Self::EofBeforeResponse,
        Self::IdleRace,
        Self::EofInsideResponse,
        Self::Status5xx,
        Self::OtherStatus,
        Self::TimedOut,
        Self::Protocol,
        Self::H2,
        Self::Local,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConnectRefused => "connect refused",
            Self::ConnectReset => "connect reset",
            Self::ConnectTimeout => "connect timeout",
            Self::Reset => "reset",
            Self::EofBeforeResponse => "eof before response",
            Self::IdleRace => "idle race",
            Self::EofInsideResponse => "eof inside response",
            Self::Status5xx => "status 5xx",
            Self::OtherStatus => "other status",
            Self::TimedOut => "timed out",
            Self::Protocol => "protocol",
            Self::H2 => "h2",
            Self::Local => "local",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Failure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
