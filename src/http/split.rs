//! A share of the requests, answered by the candidate.

use std::fmt;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::{Request, Response, StatusCode, request};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tower_service::Service;
use tracing::debug;

use super::BoxError;
use super::carrier::{Carrier, Carriers, Failure};
use super::forward::{can_be_forwarded, forwarded, strip};
use super::health::is_probe;
use super::service::Serve;
use crate::director::{Asker, Fate, Key, Route, Splitter};

type KeyBy = dyn Fn(&request::Parts) -> Option<String> + Send + Sync;

/// How a server splits.
#[derive(Clone, Default)]
pub(super) struct Split {
    splitter: Splitter,
    key: Option<Arc<KeyBy>>,
}

/// A server whose requests are split.
pub(super) struct Origin {
    split: Split,
    listener: Arc<str>,
    carriers: Carriers,
}

impl Split {
    pub(super) fn by(
        mut self,
        key: impl Fn(&request::Parts) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.key = Some(Arc::new(key));
        self
    }

    pub(super) fn to(mut self, splitter: &Splitter) -> Self {
        self.splitter = splitter.clone();
        self
    }

    /// For the connections of a listener; one without a name is not known to a candidate.
    pub(super) fn at(self, listener: Option<&str>) -> Option<Arc<Origin>> {
        let listener = listener?.into();
        Some(Arc::new(Origin {
            split: self,
            listener,
            carriers: Carriers::default(),
        }))
    }
}

impl Origin {
    fn pick(&self, parts: &request::Parts, peer: Option<IpAddr>) -> Option<Route> {
        if is_probe(&parts.uri) || !can_be_forwarded(parts) {
            return None;
        }
        let named = self.split.key.as_ref().map(|key| key(parts));
        let key = match &named {
            None => Key::Peer,
            Some(None) => Key::Coin,
            Some(Some(name)) => Key::Named(name),
        };
        let asker = Asker { peer, key };
        self.split.splitter.pick(&self.listener, asker)
    }

    /// The candidate's answer, or the request if nothing of it was sent.
    async fn ask(
        &self,
        route: &Route,
        request: Request<Incoming>,
        peer: Option<IpAddr>,
    ) -> Result<Response<Elsewhere>, Request<Incoming>> {
        let mut carrier = match self.carriers.get(route).await {
            Ok(carrier) => carrier,
            Err(error) => {
                debug!(%error, "a request does not reach the candidate");
                return Err(request);
            }
        };
        let (parts, body) = request.into_parts();
        let request = forwarded(&parts, peer).map(|()| body);
        let answer = carrier.send(request).await;
        if let Err(Failure::Unsent(body)) = answer {
            return Err(Request::from_parts(parts, body));
        }
        route.count(Fate::Forwarded);
        match answer {
            Ok(mut response) => {
                route.count(Fate::Answered);
                strip(response.headers_mut());
                let carriers = self.carriers.clone();
                Ok(response.map(|body| Elsewhere::new(body, carrier, carriers)))
            }
            Err(failure) => {
                route.count(Fate::Lost);
                if let Failure::Broken(error) = failure {
                    debug!(%error, "the candidate does not answer a request that it has");
                }
                let mut response = Response::new(Elsewhere::default());
                *response.status_mut() = StatusCode::BAD_GATEWAY;
                Ok(response)
            }
        }
    }
}

/// A service of one connection, some of whose requests go elsewhere.
#[derive(Clone, Debug)]
pub(super) struct SplitService<V> {
    service: V,
    origin: Option<Arc<Origin>>,
    peer: Option<IpAddr>,
}

impl<V> SplitService<V> {
    /// Without an origin nothing goes elsewhere.
    pub(super) fn new(service: V, origin: Option<&Arc<Origin>>, peer: &str) -> Self {
        let peer = peer.parse().ok().map(|peer: SocketAddr| peer.ip());
        Self {
            service,
            origin: origin.cloned(),
            peer,
        }
    }
}

impl<V: Serve> Service<Request<Incoming>> for SplitService<V> {
    type Response = Response<SplitBody<V::Body>>;
    type Error = V::Error;
    type Future = Splitting<V::Future, V::Body, V::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), V::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let origin = self.origin.as_ref();
        let Some(origin) = origin.filter(|origin| origin.split.splitter.is_active()) else {
            let future = self.service.call(request);
            return Splitting::Here { future };
        };
        let (parts, body) = request.into_parts();
        let route = origin.pick(&parts, self.peer);
        let request = Request::from_parts(parts, body);
        let Some(route) = route else {
            let future = self.service.call(request);
            return Splitting::Here { future };
        };
        let (origin, peer) = (Arc::clone(origin), self.peer);
        // The one that is ready.
        let unready = self.service.clone();
        let mut service = mem::replace(&mut self.service, unready);
        let future = Box::pin(async move {
            match origin.ask(&route, request, peer).await {
                Ok(response) => Ok(response.map(|body| SplitBody::There { body })),
                Err(request) => {
                    route.count(Fate::Kept);
                    let response = service.call(request).await?;
                    Ok(response.map(|body| SplitBody::Here { body }))
                }
            }
        });
        Splitting::There { future }
    }
}

type Answering<B, E> = Pin<Box<dyn Future<Output = Result<Response<SplitBody<B>>, E>> + Send>>;

pin_project! {
    /// The response of a [`SplitService`].
    #[project = SplittingProjection]
    #[must_use = "futures do nothing unless polled"]
    pub(super) enum Splitting<F, B, E> {
        Here { #[pin] future: F },
        There { future: Answering<B, E> },
    }
}

impl<F, B, E> Future for Splitting<F, B, E>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<SplitBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            SplittingProjection::Here { future } => {
                let response = ready!(future.poll(cx))?;
                Poll::Ready(Ok(response.map(|body| SplitBody::Here { body })))
            }
            SplittingProjection::There { future } => future.as_mut().poll(cx),
        }
    }
}

pin_project! {
    /// A response's body, wherever it is from.
    #[project = SplitBodyProjection]
    pub(super) enum SplitBody<B> {
        Here { #[pin] body: B },
        There { body: Elsewhere },
    }
}

impl<B> Body for SplitBody<B>
where
    B: Body<Error: Into<BoxError>>,
{
    type Data = SplitData<B::Data>;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, BoxError>>> {
        Poll::Ready(match self.project() {
            SplitBodyProjection::Here { body } => ready!(body.poll_frame(cx)).map(|frame| {
                let frame = frame.map_err(Into::into)?;
                Ok(frame.map_data(SplitData::Here))
            }),
            SplitBodyProjection::There { body } => ready!(Pin::new(body).poll_frame(cx))
                .map(|frame| Ok(frame?.map_data(SplitData::There))),
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Here { body } => body.is_end_stream(),
            Self::There { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Here { body } => body.size_hint(),
            Self::There { body } => body.size_hint(),
        }
    }
}

/// Data of either side.
pub(super) enum SplitData<D> {
    Here(D),
    There(Bytes),
}

impl<D: Buf> Buf for SplitData<D> {
    fn remaining(&self) -> usize {
        match self {
            Self::Here(data) => data.remaining(),
            Self::There(data) => data.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Here(data) => data.chunk(),
            Self::There(data) => data.chunk(),
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [std::io::IoSlice<'a>]) -> usize {
        match self {
            Self::Here(data) => data.chunks_vectored(slices),
            Self::There(data) => data.chunks_vectored(slices),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Here(data) => data.advance(count),
            Self::There(data) => data.advance(count),
        }
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        match self {
            Self::Here(data) => data.copy_to_bytes(length),
            Self::There(data) => data.copy_to_bytes(length),
        }
    }
}

/// The body of the candidate's answer. When it is complete, another request may use its connection; given up, it cuts it.
#[derive(Debug, Default)]
pub(super) struct Elsewhere(Option<(Incoming, Carrier, Carriers)>);

impl Elsewhere {
    fn new(body: Incoming, carrier: Carrier, carriers: Carriers) -> Self {
        Self(Some((body, carrier, carriers)))
    }

    fn finish(&mut self) {
        if let Some((_, carrier, carriers)) = self.0.take() {
            carriers.put_back(carrier);
        }
    }
}

impl Body for Elsewhere {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some((body, ..)) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if frame.is_none() {
            self.finish();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|(body, ..)| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let body = self.0.as_ref().map(|(body, ..)| body.size_hint());
        body.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}

impl Drop for Elsewhere {
    /// Nobody asks for the end of a body that is known to be there.
    fn drop(&mut self) {
        if self.is_end_stream() {
            self.finish();
        }
    }
}

impl fmt::Debug for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Split")
            .field("splitter", &self.splitter)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin")
            .field("split", &self.split)
            .field("listener", &self.listener)
            .field("carriers", &self.carriers)
            .finish()
    }
}
