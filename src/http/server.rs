//! The accept loop and its options.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::request;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::sleep;
use tracing::{debug, warn};

use super::accept::{Accept, Incoming};
use super::connection::{self, Settings};
use super::inject::Injecting;
use super::io::Rewind;
use super::ledger::Classes;
use super::observe::{ObserveLayer, ObserveService};
use super::service::Serve;
use super::sight::{Sight, peek_socket};
use super::split::{Split, SplitService};
use crate::config::{ACCEPT_PAUSE, HANDSHAKE_DEADLINE, IDLE_GRACE};
#[cfg(test)]
use crate::director::Splitter;
use crate::drain::Drain;
use crate::error::Result;
use crate::generation::Serving;

/// Options of an HTTP server, every one with a default.
#[derive(Clone, Debug)]
#[must_use = "a server does nothing until it serves"]
pub struct Server {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    idle_grace: Duration,
    handshake_deadline: Duration,
    stream_deadline: Option<Duration>,
    upgrade_deadline: Option<Duration>,
    observe: Observe,
    split: Split,
    injecting: Injecting,
}

/// Whether requests are counted, and how.
#[derive(Clone, Debug)]
enum Observe {
    /// By what the generation has.
    Default,
    With(Box<ObserveLayer>),
    Not,
}

impl Server {
    /// A server with every default: HTTP/1 with upgrades and HTTP/2, told apart by a connection's first bytes.
    pub fn new() -> Self {
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        // WebSockets over HTTP/2 begin with an extended CONNECT (RFC 8441).
        http2.timer(TokioTimer::new()).enable_connect_protocol();
        Self {
            http1: http1::Builder::new(),
            http2,
            idle_grace: IDLE_GRACE,
            handshake_deadline: HANDSHAKE_DEADLINE,
            stream_deadline: None,
            upgrade_deadline: None,
            observe: Observe::Default,
            split: Split::default(),
            injecting: Injecting::default(),
        }
    }

    /// How long an idle connection is kept open for one more request once its generation is on its way out, counted
    /// from then or from its last activity. Default: [`IDLE_GRACE`], 5 s.
    pub fn idle_grace(mut self, grace: Duration) -> Self {
        self.idle_grace = grace;
        self
    }

    /// How long the handshake of an accepted connection may take. Default: [`HANDSHAKE_DEADLINE`], 10 s.
    pub fn handshake_deadline(mut self, deadline: Duration) -> Self {
        self.handshake_deadline = deadline;
        self
    }

    /// When a draining generation ends its event streams, counted from the drain's begin. Default: the generation's
    /// drain deadline.
    pub fn stream_deadline(mut self, deadline: Duration) -> Self {
        self.stream_deadline = Some(deadline);
        self
    }

    /// When a draining generation cuts its upgraded connections, counted from the drain's begin. Default: the
    /// generation's drain deadline.
    pub fn upgrade_deadline(mut self, deadline: Duration) -> Self {
        self.upgrade_deadline = Some(deadline);
        self
    }

    /// Counts requests by this layer, where another idea of failures or clients is needed. Default: one that counts
    /// statuses of 5xx as failures and takes a peer's address for the client, into
    /// [`Serving::observed`](crate::Serving::observed).
    pub fn observe(mut self, layer: ObserveLayer) -> Self {
        self.observe = Observe::With(Box::new(layer));
        self
    }

    /// What a request's client is known by, where a share of the *requests* goes to a candidate
    /// ([`By::Request`](crate::rollout::By::Request)): requests with one key stay on one side. With `None` a request is
    /// picked by itself. Default: the peer's address, which behind a proxy is the same for all, so that they would all be on
    /// one side. Runs only while there is such a share.
    ///
    /// ```
    /// # use handover::http::Server;
    /// let server = Server::new().split_key(|request| {
    ///     let user = request.headers.get("x-user")?.to_str().ok()?;
    ///     Some(user.to_owned())
    /// });
    /// ```
    pub fn split_key(
        mut self,
        key: impl Fn(&request::Parts) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.split = self.split.by(key);
        self
    }

    /// Counts no requests: the guards of a rollout will see none.
    pub fn unobserved(mut self) -> Self {
        self.observe = Observe::Not;
        self
    }

    /// Sets hyper's own options for HTTP/1.
    ///
    /// hyper applies its `header_read_timeout` to idle connections too, and closes those under an arriving request;
    /// by default it has no timer and so no timeout.
    pub fn http1(mut self, set: impl FnOnce(&mut http1::Builder)) -> Self {
        set(&mut self.http1);
        self
    }

    /// Sets hyper's own options for HTTP/2.
    pub fn http2(mut self, set: impl FnOnce(&mut http2::Builder<TokioExecutor>)) -> Self {
        set(&mut self.http2);
        self
    }

    /// Serves connections until this generation has handed over or stops, and returns when nothing of its work is left,
    /// or its time is up. Leave `main` then.
    ///
    /// While a candidate has a share of the requests, the picked ones are forwarded to it as HTTP/1.1 and without their
    /// hop-by-hop fields, and the peer is appended to `x-forwarded-for`. This generation answers itself what asks for an
    /// upgrade, gRPC (whose trailers would be lost), `/livez` and `/readyz`, and what cannot reach the candidate; with 502 a
    /// request that the candidate had begun and did not answer.
    ///
    /// # Cancel safety
    ///
    /// Nothing more is accepted once this is dropped; accepted connections are served on.
    pub async fn serve<A: Accept, V: Serve>(self, generation: &Serving, source: A, service: V) {
        self.observing(generation)
            .serve_on(generation.drain(), source, service)
            .await;
    }

    /// As [`serve`](Self::serve), for what a handshake makes of each accepted stream, such as TLS. Requests are not split:
    /// the candidate would expect a handshake.
    ///
    /// Handshakes run beside each other, each in its connection's task and within
    /// [`handshake_deadline`](Self::handshake_deadline).
    ///
    /// An idle connection is looked at before it is closed here too, as long as reading from the stream that the
    /// handshake made reads from the one that it was given, in the same call.
    ///
    /// # Cancel safety
    ///
    /// As [`serve`](Self::serve).
    pub async fn serve_with<A, H, F, S2, V>(
        self,
        generation: &Serving,
        source: A,
        handshake: H,
        service: V,
    ) where
        A: Accept,
        H: Fn(Rewind<A::Stream>) -> F,
        F: Future<Output = io::Result<S2>> + Send + 'static,
        S2: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        V: Serve,
    {
        self.observing(generation)
            .serve_with_on(generation.drain(), source, handshake, service)
            .await;
    }

    fn observing(mut self, generation: &Serving) -> Self {
        self.split = self.split.to(generation.splitter());
        self.injecting = Injecting::of(generation.injected());
        let layer = match &self.observe {
            Observe::Default => ObserveLayer::new(generation.observed()),
            Observe::With(layer) => ObserveLayer::clone(layer),
            Observe::Not => return self,
        };
        self.observe(layer.or_generation(generation.number()))
    }

    #[cfg(test)]
    pub(super) fn splitting(mut self, splitter: &Splitter) -> Self {
        self.split = self.split.to(splitter);
        self
    }

    pub(super) async fn serve_on<A: Accept, V: Serve>(self, drain: &Drain, source: A, service: V) {
        let (observe, injecting) = (self.observe.clone(), self.injecting.clone());
        let origin = self.split.clone().at(source.name());
        let settings = self.settings(drain);
        accept(drain, source, |peer, is_carrier, stream| {
            let service = injecting.around(service.clone());
            let service = observe.around(&peer, is_carrier, service);
            let origin = origin.as_ref().filter(|_| !is_carrier);
            let service = SplitService::new(service, origin, &peer);
            let presence = settings.present(peer);
            let settings = Arc::clone(&settings);
            tokio::spawn(connection::serve(
                settings,
                presence,
                stream,
                Sight::Socket(peek_socket),
                service,
            ));
        })
        .await;
    }

    pub(super) async fn serve_with_on<A, H, F, S2, V>(
        self,
        drain: &Drain,
        source: A,
        handshake: H,
        service: V,
    ) where
        A: Accept,
        H: Fn(Rewind<A::Stream>) -> F,
        F: Future<Output = io::Result<S2>> + Send + 'static,
        S2: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        V: Serve,
    {
        let (observe, injecting) = (self.observe.clone(), self.injecting.clone());
        let settings = self.settings(drain);
        accept(drain, source, |peer, _, mut stream| {
            let service = observe.around(&peer, false, injecting.around(service.clone()));
            let guard = settings.classes.handshake.guard(peer.clone());
            let wire = stream.watched();
            let shaking = handshake(stream);
            let settings = Arc::clone(&settings);
            tokio::spawn(connection::shake_hands(
                settings, guard, peer, shaking, wire, service,
            ));
        })
        .await;
    }

    fn settings(self, drain: &Drain) -> Arc<Settings> {
        let mut classes = Classes::new(drain);
        if let Some(deadline) = self.stream_deadline {
            classes.stream = drain.class_with_deadline("stream", deadline);
        }
        if let Some(deadline) = self.upgrade_deadline {
            classes.upgrade = drain.class_with_deadline("upgrade", deadline);
        }
        Arc::new(Settings {
            http1: self.http1,
            http2: self.http2,
            idle_grace: self.idle_grace,
            handshake_deadline: self.handshake_deadline,
            classes: Arc::new(classes),
        })
    }
}

impl Observe {
    /// Around the service of one connection.
    fn around<V>(&self, peer: &str, is_carrier: bool, service: V) -> ObserveService<V> {
        match self {
            Self::With(layer) => layer.on_connection(peer, is_carrier, service),
            Self::Default | Self::Not => ObserveService::transparent(service),
        }
    }
}

/// Serves HTTP/1 and HTTP/2 with every default of [`Server`] until this generation has handed over or stops; returns
/// when nothing of its work is left, or its time is up. Leave `main` then.
///
/// The service is axum's `Router`, or any tower service over hyper's requests.
///
/// # Errors
///
/// None today; the result leaves room for a server that cannot go on.
///
/// # Cancel safety
///
/// Nothing more is accepted once this is dropped; accepted connections are served on.
pub async fn serve<A: Accept, V: Serve>(generation: &Serving, source: A, service: V) -> Result<()> {
    Server::new().serve(generation, source, service).await;
    Ok(())
}

impl Default for Server {
    fn default() -> Self {
        Self::new()
    }
}

/// Accepts until the drain begins, and returns when it has ended.
async fn accept<A: Accept>(
    drain: &Drain,
    mut source: A,
    mut begin: impl FnMut(String, bool, Rewind<A::Stream>),
) {
    let signal = drain.signal();
    let mut draining = pin!(signal.draining());
    loop {
        tokio::select! {
            biased;
            () = &mut draining => break,
            Incoming { stream, peer, already_read } = next(&mut source) => {
                let is_carrier = source.is_carrier(&stream);
                begin(peer, is_carrier, Rewind::new(stream, already_read));
            }
        }
    }
    drop(source);
    drain.drained().await;
}

/// The next connection, however long accepting fails.
pub(super) async fn next<A: Accept>(source: &mut A) -> Incoming<A::Stream> {
    loop {
        match source.accept().await {
            Ok(incoming) => return incoming,
            Err(error) if is_of_one_connection(&error) => {
                debug!(%error, "a connection was gone before it was accepted")
            }
            Err(error) => {
                warn!(%error, "cannot accept, trying again");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// accept(2) reports errors that are already pending on the new connection; they say nothing about the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}
