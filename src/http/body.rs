//! A response's body, counted until it is gone.

use std::fmt;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
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
        body: Ending<B>,
        guard: Guard,
    }
}

impl<B> Body<B> {
    pub(super) fn new(body: B, guard: Guard, cut: Option<Cut>) -> Self {
        let body = Ending { body, cut };
        Self { body, guard }
    }
}

impl<B: http_body::Body> http_body::Body for Body<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> fmt::Debug for Body<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("guard", &self.guard)
            .finish_non_exhaustive()
    }
}

pin_project! {
    /// The same on a connection of ours, where a response is in flight until the last of its data is written.
    ///
    /// h2 takes all that the application has, and keeps what its client has not made room for.
    pub(super) struct Outgoing<B> {
        #[pin]
        body: Ending<B>,
        request: Arc<InFlight>,
    }
}

impl<B> Outgoing<B> {
    pub(super) fn new(body: B, request: InFlight, cut: Option<Cut>) -> Self {
        let (body, request) = (Ending { body, cut }, Arc::new(request));
        Self { body, request }
    }
}

impl<B: http_body::Body> http_body::Body for Outgoing<B> {
    type Data = Unwritten<B::Data>;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx));
        let held = |data| Unwritten {
            data,
            _request: Arc::clone(this.request),
        };
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(held))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A part of a response, which keeps it in flight until it is dropped.
pub(super) struct Unwritten<D> {
    data: D,
    _request: Arc<InFlight>,
}

impl<D: Buf> Buf for Unwritten<D> {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.data.chunks_vectored(slices)
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        self.data.copy_to_bytes(length)
    }
}

pin_project! {
    /// A body that is complete when it is cut.
    struct Ending<B> {
        #[pin]
        body: B,
        cut: Option<Cut>,
    }
}

impl<B: http_body::Body> http_body::Body for Ending<B> {
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
