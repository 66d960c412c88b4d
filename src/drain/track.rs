//! A future that is counted for as long as it lives.

use std::pin::Pin;
use std::task::{Context, Poll};

use super::Guard;

/// See [`Class::track`](super::Class::track).
pub(super) struct Tracked<F> {
    future: Pin<Box<F>>,
    guard: Option<Guard>,
}

impl<F: Future> Tracked<F> {
    pub(super) fn new(guard: Guard, future: F) -> Self {
        Self {
            future: Box::pin(future),
            guard: Some(guard),
        }
    }
}

impl<F: Future> Future for Tracked<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let output = self.future.as_mut().poll(context);
        if output.is_ready() {
            self.guard = None;
        }
        output
    }
}
