//! A response's body, counted until it is gone.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;

use super::service::InFlight;
use crate::drain::{Guard, Signal};

/// Resolves when the time of what it belongs to is up.
pub(super) type Cut = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(super) fn cut(signal: Signal) -> Cut {
    Box::pin(async move { signal.cut().await })
}

pin_project! {
    /// A response's body that counts as in flight until it is dropped.
    ///
    /// An event stream ends when the time of its class is up, so that its client comes back to another generation.
    pub struct Body<B> {
        #[pin]
        body: B,
        cut: Option<Cut>,
        held: Held,
    }
}

/// What says that a response is in flight.
#[derive(Debug)]
pub(super) enum Held {
    Connection { _request: InFlight },
    Layer { _guard: Guard },
}

impl<B> Body<B> {
    pub(super) fn new(body: B, held: impl Into<Held>, cut: Option<Cut>) -> Self {
        Self {
            body,
            cut,
            held: held.into(),
        }
    }
}

impl<B: http_body::Body> http_body::Body for Body<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        if let Some(cut) = this.cut
            && cut.as_mut().poll(cx).is_ready()
        {
            *this.cut = None;
            return Poll::Ready(None);
        }
        this.body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl From<InFlight> for Held {
    fn from(request: InFlight) -> Self {
        Self::Connection { _request: request }
    }
}

impl From<Guard> for Held {
    fn from(guard: Guard) -> Self {
        Self::Layer { _guard: guard }
    }
}

impl<B> fmt::Debug for Body<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}
