//! Turning requests away before they queue, as a tower layer.
//!
//! tower has a limit of its own, `ConcurrencyLimit` within `LoadShed`. It takes a place when the service is asked whether
//! it is ready, which is before there is a request: health checks could not be let through, and what it says no with is
//! an error that somebody still has to make a response of.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderValue, Request, Response, StatusCode};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::health::is_probe;
use crate::config::SHED_RETRY_AFTER;
use crate::observe::Observed;

/// Answers 503 with `Retry-After` while as many requests are in flight as there may be, at once and without asking the
/// service. A request is in flight until the head of its response; a body that is streamed takes no place.
///
/// Requests to `/livez` and `/readyz`, wherever they are mounted, are always let through: a service that is busy is
/// neither dead nor, by itself, to be left by its clients.
///
/// What is turned away is counted ([`Snapshot::shed`](crate::observe::Snapshot::shed)), and it counts as an error for
/// the guards of a rollout, one for each client and window: it is what the client gets, and a candidate that can take
/// less than stable is worse. Where both sides are overloaded the guards see that stable fails too, and hold.
///
/// All clones, and all services of one layer, share its limit.
///
/// ```
/// use axum::{Router, routing::get};
/// use handover::http::ShedLayer;
///
/// # fn example(starting: &handover::Starting) -> Router {
/// Router::new()
///     .route("/", get(|| async { "hello" }))
///     .layer(ShedLayer::new(starting.observed(), 1_000))
/// # }
/// ```
#[derive(Clone)]
pub struct ShedLayer {
    places: Arc<Places>,
    observed: Observed,
    retry_after: HeaderValue,
}

impl ShedLayer {
    /// Lets that many requests be in flight at once, and counts the others into `observed`.
    pub fn new(observed: &Observed, in_flight_max: usize) -> Self {
        let places = Places {
            taken: AtomicUsize::new(0),
            limit: in_flight_max,
        };
        Self {
            places: Arc::new(places),
            observed: observed.clone(),
            retry_after: seconds(SHED_RETRY_AFTER),
        }
    }

    /// When clients that were turned away are to try again, rounded up to seconds.
    /// Default: [`SHED_RETRY_AFTER`], 1 s.
    pub fn retry_after(mut self, pause: Duration) -> Self {
        self.retry_after = seconds(pause);
        self
    }

    fn refusal<B: Default>(&self) -> Response<B> {
        self.observed.count_shed();
        let mut response = Response::new(B::default());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        let headers = response.headers_mut();
        headers.insert(RETRY_AFTER, self.retry_after.clone());
        response
    }
}

impl<S> Layer<S> for ShedLayer {
    type Service = ShedService<S>;

    fn layer(&self, service: S) -> ShedService<S> {
        ShedService {
            service,
            layer: self.clone(),
        }
    }
}

/// A service within a [`ShedLayer`].
#[derive(Clone, Debug)]
pub struct ShedService<S> {
    service: S,
    layer: ShedLayer,
}

impl<S, A, B> Service<Request<A>> for ShedService<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    B: Default,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Shedding<S::Future, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let is_probe = is_probe(request.uri());
        let place = match is_probe {
            true => None,
            false => Places::take(&self.layer.places),
        };
        if place.is_none() && !is_probe {
            return Shedding {
                future: None,
                place: None,
                refusal: Some(self.layer.refusal()),
            };
        }
        Shedding {
            future: Some(self.service.call(request)),
            place,
            refusal: None,
        }
    }
}

pin_project! {
    /// The response of a [`ShedService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct Shedding<F, B> {
        // None of a request that was turned away.
        #[pin]
        future: Option<F>,
        // Until there is a response.
        place: Option<Place>,
        refusal: Option<Response<B>>,
    }
}

impl<F, B, E> Future for Shedding<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(future) = this.future.as_pin_mut() {
            let answer = ready!(future.poll(cx));
            *this.place = None;
            return Poll::Ready(answer);
        }
        // A future is not polled again after it is ready.
        let refusal = this.refusal.take();
        refusal.map_or(Poll::Pending, |refusal| Poll::Ready(Ok(refusal)))
    }
}

#[derive(Debug)]
struct Places {
    taken: AtomicUsize,
    limit: usize,
}

/// A request's place, until it is dropped.
#[derive(Debug)]
struct Place(Arc<Places>);

impl Places {
    fn take(places: &Arc<Self>) -> Option<Place> {
        let one_more = |taken| (taken < places.limit).then_some(taken + 1);
        let taken = places.taken.fetch_update(Relaxed, Relaxed, one_more);
        taken.ok().map(|_| Place(Arc::clone(places)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Relaxed);
    }
}

fn seconds(pause: Duration) -> HeaderValue {
    let rounded_up = pause.as_nanos().div_ceil(Duration::from_secs(1).as_nanos());
    HeaderValue::from(u64::try_from(rounded_up).unwrap_or(u64::MAX))
}

impl fmt::Debug for ShedLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShedLayer")
            .field("places", &self.places)
            .field("retry_after", &self.retry_after)
            .finish_non_exhaustive()
    }
}

impl<F, B> fmt::Debug for Shedding<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shedding")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::sync::oneshot;

    use super::super::observe::ObserveLayer;
    use super::*;

    type Waiting = oneshot::Receiver<()>;

    /// Answers a request when what it carries is told to.
    async fn handle(
        request: Request<Waiting>,
    ) -> Result<Response<String>, oneshot::error::RecvError> {
        request.into_body().await?;
        Ok(Response::new("done".to_owned()))
    }

    fn request(path: &str) -> (Request<Waiting>, oneshot::Sender<()>) {
        let (release, waiting) = oneshot::channel();
        let request = Request::builder().uri(path).body(waiting).unwrap();
        (request, release)
    }

    fn observed() -> (Observed, ShedLayer) {
        let observed = Observed::default();
        let layer = ShedLayer::new(&observed, 2);
        (observed, layer)
    }

    async fn is_pending<F: Future>(future: &mut Pin<Box<F>>) -> bool {
        poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }

    #[tokio::test]
    async fn one_more_than_there_may_be_is_turned_away_and_told_when_to_come_back() {
        let (observed, layer) = observed();
        let layer = layer.retry_after(Duration::from_millis(2_100));
        let mut service =
            ObserveLayer::new(&observed).layer(layer.layer(tower::service_fn(handle)));
        let [
            (one, release_one),
            (other, _keep),
            (third, _),
            (fourth, release_fourth),
        ] = [(); 4].map(|()| request("/"));
        let mut one = Box::pin(service.call(one));
        let mut other = Box::pin(service.call(other));
        assert!(is_pending(&mut one).await && is_pending(&mut other).await);
        let refused = service.call(third).await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            (&refused.headers()[RETRY_AFTER], &**refused.body()),
            (&HeaderValue::from(3), "")
        );
        let snapshot = observed.snapshot();
        assert_eq!(
            (snapshot.shed, snapshot.counts.errors, snapshot.in_flight),
            (1, 1, 2)
        );

        release_one.send(()).unwrap();
        assert_eq!(one.await.unwrap().body(), "done");
        let mut fourth = Box::pin(service.call(fourth));
        assert!(is_pending(&mut fourth).await);
        release_fourth.send(()).unwrap();
        assert_eq!(fourth.await.unwrap().status(), StatusCode::OK);
        assert_eq!(observed.snapshot().shed, 1);
    }

    #[tokio::test]
    async fn health_is_answered_however_much_is_in_flight_and_takes_no_place() {
        let (observed, layer) = observed();
        let mut service = layer.layer(tower::service_fn(handle));
        let (mut held, mut probes) = (Vec::new(), Vec::new());
        for path in ["/readyz", "/livez", "/", "/", "/internal/readyz"] {
            let (request, release) = request(path);
            let mut answer = Box::pin(service.call(request));
            assert!(is_pending(&mut answer).await, "{path}");
            held.push(release);
            probes.push(answer);
        }
        let (one_more, _release) = request("/");
        assert_eq!(
            service.call(one_more).await.unwrap().status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(observed.snapshot().shed, 1);
    }

    #[tokio::test]
    async fn a_client_that_goes_away_leaves_its_place() {
        let (observed, layer) = observed();
        let mut service = layer.layer(tower::service_fn(handle));
        for _ in 0..3 {
            let (request, _release) = request("/");
            let mut answer = Box::pin(service.call(request));
            assert!(is_pending(&mut answer).await);
        }
        assert_eq!(observed.snapshot().shed, 0);
    }
}
