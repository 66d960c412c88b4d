//! Keeps the ledger of each request, from the moment the service is given it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::header::{ACCEPT, CONNECTION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::service::{TowerToHyperService, TowerToHyperServiceFuture};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::BoxError;
use super::body::{Cut, Outgoing, cut};
use super::ledger::Ledger;

/// The services that can be served: axum's router is one, and so is every tower stack around it.
pub trait Serve:
    Service<
        Request<Incoming>,
        Response = Response<Self::Body>,
        Error: Into<BoxError>,
        Future: Send + 'static,
    > + Clone
    + Send
    + 'static
{
    /// The body of its responses.
    type Body: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static;
}

impl<V, B> Serve for V
where
    V: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    V::Error: Into<BoxError>,
    V::Future: Send + 'static,
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Body = B;
}

/// A service whose requests are entered into their connection's ledger.
#[derive(Clone, Debug)]
pub(super) struct Tracked<V> {
    service: TowerToHyperService<V>,
    ledger: Arc<Ledger>,
}

impl<V> Tracked<V> {
    pub(super) fn new(service: V, ledger: Arc<Ledger>) -> Self {
        Self {
            service: TowerToHyperService::new(service),
            ledger,
        }
    }
}

impl<V: Serve> hyper::service::Service<Request<Incoming>> for Tracked<V> {
    type Response = Response<Outgoing<V::Body>>;
    type Error = V::Error;
    type Future = Answer<V>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let in_flight = InFlight::new(Arc::clone(&self.ledger), &request);
        let is_connect = request.method() == Method::CONNECT;
        announce(&self.ledger, &mut request, is_connect);
        Answer {
            future: self.service.call(request),
            in_flight: Some(in_flight),
            is_connect,
        }
    }
}

pin_project! {
    /// A response under way.
    pub(super) struct Answer<V>
    where
        V: Service<Request<Incoming>>,
    {
        #[pin]
        future: TowerToHyperServiceFuture<V, Request<Incoming>>,
        in_flight: Option<InFlight>,
        is_connect: bool,
    }
}

impl<V: Serve> Future for Answer<V> {
    type Output = Result<Response<Outgoing<V::Body>>, V::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.future.poll(cx))?;
        let Some(mut in_flight) = this.in_flight.take() else {
            return Poll::Pending;
        };
        let cut = in_flight.answered(&mut response, *this.is_connect);
        Poll::Ready(Ok(response.map(|body| Outgoing::new(body, in_flight, cut))))
    }
}

/// One request, entered into its connection's ledger until its response is complete or given up.
#[derive(Debug)]
pub(super) struct InFlight {
    ledger: Arc<Ledger>,
    streaming: bool,
}

impl InFlight {
    fn new(ledger: Arc<Ledger>, request: &Request<Incoming>) -> Self {
        let body = request.body();
        ledger.request((!body.is_end_stream()).then(|| body.size_hint().exact()));
        Self {
            ledger,
            streaming: false,
        }
    }

    /// Enters what the response's head says, and returns what ends its body early if it is without end.
    fn answered<B>(&mut self, response: &mut Response<B>, is_connect: bool) -> Option<Cut> {
        let ledger = &*self.ledger;
        if leaves_http(response.status(), is_connect) {
            match ledger.is_multiplexed() {
                true => ledger.tunnel_begun(),
                false => ledger.upgraded(),
            }
            return None;
        }
        if !ledger.is_multiplexed() && ledger.is_last_response() {
            say_last(response.headers_mut());
        }
        is_event_stream(response.headers()).then(|| {
            self.streaming = true;
            ledger.stream_begun();
            cut(ledger.classes.stream.signal())
        })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.ledger.response_ended(self.streaming);
    }
}

/// Gives every handler the means to see that it should end, with the deadline of the class that its request is likely
/// to be in: only the response says whether it is an event stream.
fn announce(ledger: &Ledger, request: &mut Request<Incoming>, is_connect: bool) {
    let classes = &ledger.classes;
    let class = if is_connect || request.extensions().get::<OnUpgrade>().is_some() {
        &classes.upgrade
    } else if names_event_stream(request.headers(), ACCEPT) {
        &classes.stream
    } else if ledger.is_multiplexed() {
        &classes.http2
    } else {
        &classes.http1
    };
    request.extensions_mut().insert(class.signal());
}

/// Tells an HTTP/1 client that its next request needs another connection.
pub(super) fn say_last(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
}

pub(super) fn is_event_stream(headers: &HeaderMap) -> bool {
    names_event_stream(headers, CONTENT_TYPE)
}

pub(super) fn leaves_http(status: StatusCode, is_connect: bool) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS || (is_connect && status.is_success())
}

fn names_event_stream(headers: &HeaderMap, name: HeaderName) -> bool {
    let value = headers.get(name).map(HeaderValue::as_bytes);
    value.is_some_and(|value| value.starts_with(b"text/event-stream"))
}
