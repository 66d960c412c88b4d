//! How much load, and of what kinds.

use std::time::Duration;

use crate::kind::Kind;

/// How many clients of each kind, how fast each goes, and what bounds them all.
#[derive(Clone, Debug)]
pub struct Mix {
    /// How many there are of each kind, by `kind as usize`.
    pub clients: [Clients; Kind::ALL.len()],
    /// How long the server takes to answer a slow request: 2 s.
    pub slow_for: Duration,
    /// Over how long the pieces of an upload are sent: 1 s.
    pub upload_for: Duration,
    /// Over how long the server streams a body: 2 s.
    pub stream_for: Duration,
    /// Concurrent requests on each HTTP/2 connection: 4.
    pub http2_streams: usize,
    /// Whether a keep-alive client looks for the end of its idle connection before it writes, as a good pool would: no.
    /// What it then finds is a reconnect instead of a failure.
    pub notices_idle_close: bool,
    /// How long a connection may take to be established: 3 s.
    pub connect_deadline: Duration,
    /// How long a request may take, its connection included: 10 s.
    pub deadline: Duration,
    /// When the clients stop by themselves: after 10 min.
    pub duration_max: Duration,
    /// When the clients stop by themselves: after 10 million requests.
    pub requests_max: u64,
    /// Where the clients' pauses begin in the sequence of random numbers: 1.
    pub seed: u64,
}

/// The clients of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Clients {
    /// How many there are.
    pub count: usize,
    /// How many requests (HTTP/2: rounds of requests) each begins per second, at most.
    pub per_second: f64,
}

impl Mix {
    /// No clients at all, to be filled [`with`](Self::with) some.
    pub fn none() -> Self {
        Self {
            clients: Kind::ALL.map(|kind| Clients {
                count: 0,
                per_second: default_rate(kind),
            }),
            slow_for: Duration::from_secs(2),
            upload_for: Duration::from_secs(1),
            stream_for: Duration::from_secs(2),
            http2_streams: 4,
            notices_idle_close: false,
            connect_deadline: Duration::from_secs(3),
            deadline: Duration::from_secs(10),
            duration_max: Duration::from_secs(10 * 60),
            requests_max: 10_000_000,
            seed: 1,
        }
    }

    /// 32 clients with new connections, 32 with keep-alive, 8 slow ones, 4 uploads, 4 streams and 8 with HTTP/2: about
    /// 2600 requests each second, which two cores bear beside the servers.
    pub fn standard() -> Self {
        Self::none()
            .with(Kind::Fresh, 32)
            .with(Kind::KeepAlive, 32)
            .with(Kind::Slow, 8)
            .with(Kind::Upload, 4)
            .with(Kind::Stream, 4)
            .with(Kind::Http2, 8)
    }

    /// The same with `count` clients of this kind.
    pub fn with(mut self, kind: Kind, count: usize) -> Self {
        self.clients[kind as usize].count = count;
        self
    }

    /// The same with `count` WebSocket clients.
    pub fn websockets(self, count: usize) -> Self {
        self.with(Kind::WebSocket, count)
    }

    /// The same with clients of this kind that begin at most `per_second` requests (HTTP/2: rounds of requests) each.
    pub fn paced(mut self, kind: Kind, per_second: f64) -> Self {
        self.clients[kind as usize].per_second = per_second;
        self
    }

    /// How many clients of this kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.clients[kind as usize].count
    }

    /// The mean pause of a client of this kind between two requests.
    pub(crate) fn pause(&self, kind: Kind) -> Duration {
        Duration::from_secs(1).div_f64(self.clients[kind as usize].per_second)
    }
}

fn default_rate(kind: Kind) -> f64 {
    match kind {
        Kind::Fresh => 25.0,
        Kind::KeepAlive => 50.0,
        Kind::Slow | Kind::Upload | Kind::Stream => 20.0,
        Kind::Http2 => 5.0,
        Kind::WebSocket => 10.0,
    }
}
