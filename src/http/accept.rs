//! Where connections come from.

use std::io;
use std::os::fd::AsFd;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

/// A source of connections.
pub(crate) trait Accept: Send {
    /// One accepted connection.
    type Stream: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static;

    /// The next connection.
    ///
    /// # Cancel safety
    ///
    /// Must lose no connection when it is dropped.
    fn accept(&mut self) -> impl Future<Output = io::Result<Incoming<Self::Stream>>> + Send;
}

/// An accepted connection.
#[derive(Debug)]
pub(crate) struct Incoming<S> {
    pub(crate) stream: S,
    /// How the connection is called in logs and drain reports.
    pub(crate) peer: String,
    /// What another generation has read from it, not served yet.
    pub(crate) already_read: Bytes,
}
