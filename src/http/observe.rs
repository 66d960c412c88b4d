//! Counting requests for the guards of a rollout, as a tower layer.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use http::{Extensions, HeaderMap, HeaderName, Request, Response, StatusCode};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::forward::forwarded_for;
use super::health::is_probe;
use crate::observe::{Client, Observation, Observed, Outcome};

/// What a request has that wants to know which generation answers it. The value does not matter.
///
/// It is looked up in every request, which takes a nanosecond for each letter: so it is short.
pub const VERIFY: HeaderName = HeaderName::from_static("x-handover");
/// What the answer to such a request has: the generation's number.
pub const GENERATION: HeaderName = HeaderName::from_static("x-handover-generation");

type FailedIf = dyn Fn(StatusCode, &HeaderMap) -> bool + Send + Sync;
type ClientBy = dyn Fn(&HeaderMap, &Extensions) -> Option<Client> + Send + Sync;

/// Counts how requests end, and how long they take until the head of their response: what comes later, the body, is the
/// client's pace as much as the server's.
///
/// [`serve`](super::serve) has one by default; change it with [`Server::observe`](super::Server::observe). Around a
/// service of your own it goes outermost, so that it sees what the client gets.
///
/// A request has failed if its response has a status of 5xx, its handler panics or its service returns an error. One
/// whose client goes away first is no error. Requests to `/livez` and `/readyz`, wherever they are mounted, are not
/// counted: they say how the generation is, and a 503 is one of their answers.
///
/// A request with the header [`VERIFY`] is told in [`GENERATION`] who has answered it.
#[derive(Clone)]
pub struct ObserveLayer {
    observed: Observed,
    generation: Option<u64>,
    failed_if: Option<Arc<FailedIf>>,
    client_by: Option<Arc<ClientBy>>,
    connections: Arc<AtomicU64>,
}

impl ObserveLayer {
    /// A layer that counts into this.
    ///
    /// Who a client is it does not know: each request counts by itself, which makes the retries of one client look like
    /// the errors of many. So give it [`client_by`](Self::client_by).
    pub fn new(observed: &Observed) -> Self {
        Self {
            observed: observed.clone(),
            generation: None,
            failed_if: None,
            client_by: None,
            connections: Arc::default(),
        }
    }

    /// Answers those who ask by [`VERIFY`] with this number. Default: a [`Server`](super::Server) knows it; alone the layer
    /// does not answer.
    pub fn generation(mut self, number: u64) -> Self {
        self.generation = Some(number);
        self
    }

    /// What is a failure, by status and headers of the response. Default: a status of 5xx.
    pub fn failed_if(
        mut self,
        is_failure: impl Fn(StatusCode, &HeaderMap) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.failed_if = Some(Arc::new(is_failure));
        self
    }

    /// Who a client is, by headers and extensions of the request, so that several errors of one count once; with `None`
    /// it is the peer's address where that is known. Runs for every request.
    ///
    /// Behind a proxy all clients have one address, and a thousand errors would count as one. There this is needed, by a
    /// header that the proxy sets and clients cannot:
    ///
    /// ```
    /// # use handover::{http::ObserveLayer, observe::{Client, Observed}};
    /// # fn example(observed: &Observed) -> ObserveLayer {
    /// ObserveLayer::new(observed).client_by(|headers, _| {
    ///     let client = headers.get("x-real-ip")?.to_str().ok()?;
    ///     Some(Client::from(client))
    /// })
    /// # }
    /// ```
    pub fn client_by(
        mut self,
        client: impl Fn(&HeaderMap, &Extensions) -> Option<Client> + Send + Sync + 'static,
    ) -> Self {
        self.client_by = Some(Arc::new(client));
        self
    }

    pub(super) fn or_generation(self, number: u64) -> Self {
        match self.generation {
            Some(_) => self,
            None => self.generation(number),
        }
    }

    /// Around the service of one connection, whose requests may be of other clients than the peer.
    pub(super) fn on_connection<S>(
        &self,
        peer: &str,
        is_carrier: bool,
        service: S,
    ) -> ObserveService<S> {
        let number = self.connections.fetch_add(1, Relaxed);
        let client = peer
            .parse::<SocketAddr>()
            .map_or_else(|_| Client::from(peer), |peer| Client::from(peer.ip()));
        self.around(client.on_connection(number), is_carrier, service)
    }

    fn around<S>(&self, client: Client, is_carrier: bool, service: S) -> ObserveService<S> {
        let layer = self.clone();
        ObserveService {
            service,
            watch: Some(Arc::new(Watch {
                layer,
                client,
                is_carrier,
            })),
        }
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = ObserveService<S>;

    fn layer(&self, service: S) -> ObserveService<S> {
        self.around(Client::unknown(), false, service)
    }
}

/// A service within an [`ObserveLayer`].
#[derive(Clone, Debug)]
pub struct ObserveService<S> {
    service: S,
    /// One for each connection of a server of ours: services are cloned for every request, and a count that is shared
    /// by all threads would cost more than all the rest.
    watch: Option<Arc<Watch>>,
}

/// What is the same for all requests of a connection.
#[derive(Debug)]
struct Watch {
    layer: ObserveLayer,
    client: Client,
    /// Another generation was asked, and says by whom.
    is_carrier: bool,
}

impl<S> ObserveService<S> {
    /// Counts nothing.
    pub(super) fn transparent(service: S) -> Self {
        let watch = None;
        Self { service, watch }
    }
}

impl<S, A, B> Service<Request<A>> for ObserveService<S>
where
    S: Service<Request<A>, Response = Response<B>>,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Observing<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<A>) -> Self::Future {
        let Some(watch) = self.watch.as_deref() else {
            return Observing {
                future: self.service.call(request),
                observation: None,
                generation: None,
                failed_if: None,
            };
        };
        let layer = &watch.layer;
        let is_work = !is_probe(request.uri());
        let observation = is_work.then(|| layer.observed.begin(watch.client(&request)));
        let asks = |_: &u64| request.headers().contains_key(&ASKED);
        Observing {
            observation,
            generation: layer.generation.filter(asks),
            failed_if: layer.failed_if.clone(),
            future: self.service.call(request),
        }
    }
}

/// [`VERIFY`], made once.
static ASKED: HeaderName = VERIFY;

impl Watch {
    fn client<B>(&self, request: &Request<B>) -> Client {
        let given = self.layer.client_by.as_ref();
        let given = given.and_then(|by| by(request.headers(), request.extensions()));
        let carried = || self.is_carrier.then(|| forwarded_for(request.headers()));
        given.or_else(|| carried().flatten()).unwrap_or(self.client)
    }
}

pin_project! {
    /// The response of an [`ObserveService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct Observing<F> {
        #[pin]
        future: F,
        observation: Option<Observation>,
        // What the response is to say, if its client has asked.
        generation: Option<u64>,
        failed_if: Option<Arc<FailedIf>>,
    }
}

impl<F, B, E> Future for Observing<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<B>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut outcome = ready!(this.future.poll(cx));
        if let Some(observation) = this.observation.take() {
            observation.end(outcome_of(&outcome, this.failed_if.as_deref()));
        }
        if let (Some(generation), Ok(response)) = (this.generation.take(), &mut outcome) {
            response.headers_mut().insert(GENERATION, generation.into());
        }
        Poll::Ready(outcome)
    }
}

fn outcome_of<B, E>(answer: &Result<Response<B>, E>, failed_if: Option<&FailedIf>) -> Outcome {
    let has_failed = match (answer, failed_if) {
        (Ok(response), None) => response.status().is_server_error(),
        (Ok(response), Some(failed_if)) => failed_if(response.status(), response.headers()),
        (Err(_), _) => true,
    };
    match has_failed {
        true => Outcome::Failed,
        false => Outcome::Answered,
    }
}

impl fmt::Debug for ObserveLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObserveLayer")
            .field("observed", &self.observed)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl<F> fmt::Debug for Observing<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observing").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::{pending, poll_fn, ready};
    use std::pin::pin;

    use http::HeaderValue;

    use super::*;
    use crate::rollout::guard::Counts;

    type Answer = Result<Response<()>, Infallible>;

    fn request(path: &str) -> Request<()> {
        Request::builder().uri(path).body(()).unwrap()
    }

    fn status(status: u16) -> Response<()> {
        Response::builder().status(status).body(()).unwrap()
    }

    fn layer() -> (Observed, ObserveLayer) {
        let observed = Observed::default();
        let layer = ObserveLayer::new(&observed).generation(7);
        (observed, layer)
    }

    async fn ask(layer: &ObserveLayer, request: Request<()>, answer: u16) -> Response<()> {
        let service = tower::service_fn(move |_| ready(Answer::Ok(status(answer))));
        layer.layer(service).call(request).await.unwrap()
    }

    fn counts(observed: &Observed) -> (u64, u64) {
        let Counts {
            requests, errors, ..
        } = observed.snapshot().counts;
        (requests, errors)
    }

    #[tokio::test]
    async fn an_answer_of_5xx_is_an_error_and_every_other_one_is_not() {
        let (observed, layer) = layer();
        for answer in [101, 200, 304, 404, 429] {
            ask(&layer, request("/"), answer).await;
        }
        assert_eq!(counts(&observed), (5, 0));
        for answer in [500, 503] {
            ask(&layer, request("/"), answer).await;
        }
        assert_eq!(counts(&observed), (7, 2));
    }

    #[tokio::test]
    async fn the_application_may_say_what_is_a_failure_and_who_is_a_client() {
        let (observed, layer) = layer();
        let layer = layer
            .failed_if(|status, _| status == StatusCode::NOT_FOUND)
            .client_by(|headers, _| Some(headers.get("user")?.to_str().ok()?.into()));
        for (user, answer) in [("a", 404), ("a", 404), ("b", 404), ("c", 500)] {
            let mut request = request("/");
            request
                .headers_mut()
                .insert("user", HeaderValue::from_static(user));
            ask(&layer, request, answer).await;
        }
        assert_eq!(counts(&observed), (4, 2));
    }

    #[tokio::test]
    async fn requests_of_nobody_in_particular_count_by_themselves_and_those_of_a_peer_once() {
        let (observed, layer) = layer();
        for _ in 0..3 {
            ask(&layer, request("/"), 500).await;
        }
        assert_eq!(counts(&observed), (3, 3));
        for port in [1, 2] {
            let service = tower::service_fn(|_| ready(Answer::Ok(status(500))));
            let mut service = layer.on_connection(&format!("192.0.2.7:{port}"), false, service);
            service.call(request("/")).await.unwrap();
        }
        assert_eq!(counts(&observed), (5, 4));
    }

    #[tokio::test]
    async fn only_who_asks_is_told_the_generation_and_also_by_a_failure() {
        let (_, layer) = layer();
        assert!(
            !ask(&layer, request("/"), 200)
                .await
                .headers()
                .contains_key(GENERATION)
        );
        for (path, answer) in [("/", 200), ("/", 500), ("/readyz", 503)] {
            let mut request = request(path);
            request
                .headers_mut()
                .insert(VERIFY, HeaderValue::from_static(""));
            assert_eq!(
                ask(&layer, request, answer).await.headers()[GENERATION],
                "7"
            );
        }
    }

    #[tokio::test]
    async fn health_is_asked_for_without_being_counted() {
        let (observed, layer) = layer();
        for path in ["/livez", "/readyz", "/internal/readyz"] {
            ask(&layer, request(path), 503).await;
        }
        assert_eq!(counts(&observed), (0, 0));
        ask(&layer, request("/livezoo"), 503).await;
        assert_eq!(counts(&observed), (1, 1));
    }

    #[tokio::test]
    async fn an_error_of_the_service_is_one_and_a_response_that_is_given_up_is_none() {
        let (observed, layer) = layer();
        let service = tower::service_fn(|_| ready(Err::<Response<()>, _>("broken")));
        assert!(layer.layer(service).call(request("/")).await.is_err());
        assert_eq!(counts(&observed), (1, 1));

        let service = tower::service_fn(|_| pending::<Answer>());
        let mut answer = Box::pin(layer.layer(service).call(request("/")));
        let is_pending = poll_fn(|cx| Poll::Ready(answer.as_mut().poll(cx).is_pending()));
        assert!(is_pending.await);
        assert_eq!(observed.snapshot().in_flight, 1);
        drop(answer);
        let snapshot = observed.snapshot();
        assert_eq!((snapshot.in_flight, snapshot.cancelled), (0, 1));
        assert_eq!(counts(&observed), (1, 1));
    }

    #[tokio::test]
    async fn a_handler_that_panics_has_failed() {
        let (observed, layer) = layer();
        let service = tower::service_fn(|_| async {
            if true {
                panic!("on purpose");
            }
            Answer::Ok(status(200))
        });
        let answer = layer.layer(service).call(request("/"));
        let answered = tokio::spawn(async move { pin!(answer).await.map(drop) }).await;
        assert!(answered.unwrap_err().is_panic());
        assert_eq!(counts(&observed), (1, 1));
    }
}
