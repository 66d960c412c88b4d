//! The drain as a tower layer, for those who accept connections themselves.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Method, Request, Response, Version};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::body::{Body, cut};
use super::service::{is_event_stream, leaves_http, say_last};
use crate::drain::{Class, Drain, Guard, Signal};

/// Counts requests in flight, in the classes `request` and `stream`, and moves HTTP/1 clients to another connection
/// once the generation is on its way out.
///
/// For servers with an accept loop of their own; [`Server`](super::Server) does this and more by itself. What a layer
/// cannot see is connections: it counts neither idle nor upgraded ones, nor a request whose head is not complete.
///
/// Every request carries the [`Signal`] of its class as an extension.
#[derive(Clone, Debug)]
pub struct DrainLayer {
    requests: Class,
    streams: Class,
}

impl DrainLayer {
    /// A layer that counts into this drain.
    pub fn new(drain: &Drain) -> Self {
        Self {
            requests: drain.class("request"),
            streams: drain.class("stream"),
        }
    }
}

impl<S> Layer<S> for DrainLayer {
    type Service = DrainService<S>;

    fn layer(&self, service: S) -> DrainService<S> {
        DrainService {
            service,
            layer: self.clone(),
        }
    }
}

/// A service within a [`DrainLayer`].
#[derive(Clone, Debug)]
pub struct DrainService<S> {
    service: S,
    layer: DrainLayer,
}

impl<S, A, B> Service<Request<A>> for DrainService<S>
where
    S: Service<Request<A>, Response = Response<B>>,
{
    type Response = Response<Body<B>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let label = format!("{} {}", request.method(), request.uri().path());
        let guard = self.layer.requests.guard(label.clone());
        let pending = Pending {
            signal: guard.signal(),
            guard,
            label,
            streams: self.layer.streams.clone(),
            is_connect: request.method() == Method::CONNECT,
            is_http1: request.version() < Version::HTTP_2,
        };
        request.extensions_mut().insert(pending.signal.clone());
        ResponseFuture {
            future: self.service.call(request),
            pending: Some(pending),
        }
    }
}

pin_project! {
    /// The response of a [`DrainService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        future: F,
        pending: Option<Pending>,
    }
}

/// What is known of a request until it is answered.
#[derive(Debug)]
struct Pending {
    guard: Guard,
    signal: Signal,
    label: String,
    streams: Class,
    is_connect: bool,
    is_http1: bool,
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<Body<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.future.poll(cx))?;
        // A future is not polled again after it is ready.
        let Some(pending) = this.pending.take() else {
            return Poll::Pending;
        };
        Poll::Ready(Ok(pending.answered(response)))
    }
}

impl Pending {
    fn answered<B>(self, mut response: Response<B>) -> Response<Body<B>> {
        let leaves_http = leaves_http(response.status(), self.is_connect);
        if self.is_http1 && self.signal.is_quiesced() && !leaves_http {
            say_last(response.headers_mut());
        }
        if !is_event_stream(response.headers()) {
            return response.map(|body| Body::new(body, self.guard, None));
        }
        let guard = self.streams.guard(self.label);
        let cut = cut(guard.signal());
        response.map(|body| Body::new(body, guard, Some(cut)))
    }
}

impl<F> std::fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseFuture")
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}
