//! Faults in the answers of a drill's candidate.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Request, Response, StatusCode};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tower_service::Service;

use crate::inject::Injected;

/// What is put around the services of a generation.
#[derive(Clone, Debug, Default)]
pub(super) struct Injecting(Injected);

/// A service that does wrong what the generation is to do wrong.
#[derive(Clone, Debug)]
pub(super) struct Injurious<S> {
    service: S,
    injected: Injected,
}

impl Injecting {
    pub(super) fn of(injected: &Injected) -> Self {
        Self(injected.clone())
    }

    pub(super) fn around<S>(&self, service: S) -> Injurious<S> {
        Injurious {
            service,
            injected: self.0.clone(),
        }
    }
}

impl<S, A, B> Service<Request<A>> for Injurious<S>
where
    S: Service<Request<A>, Response = Response<B>>,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Injured<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let injury = self.injected.injury();
        Injured {
            delay: injury.delay.map(sleep),
            fails: injury.fails,
            future: self.service.call(request),
        }
    }
}

pin_project! {
    /// A response that may come late, or as a failure.
    #[must_use = "futures do nothing unless polled"]
    pub(super) struct Injured<F> {
        #[pin]
        delay: Option<Sleep>,
        #[pin]
        future: F,
        fails: bool,
    }
}

impl<F, B, E> Future for Injured<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(delay) = this.delay.as_mut().as_pin_mut() {
            ready!(delay.poll(cx));
            this.delay.set(None);
        }
        let mut response = ready!(this.future.poll(cx))?;
        if *this.fails {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
        Poll::Ready(Ok(response))
    }
}
