//! Where connections come from.

use std::io;
use std::os::fd::AsFd;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

/// A source of connections: this crate's listeners, or one of your own.
pub trait Accept: Send {
    /// One accepted connection.
    type Stream: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static;

    /// The next connection.
    ///
    /// # Errors
    ///
    /// What keeps this process from accepting, such as a limit of descriptors; it is asked again after a pause.
    ///
    /// # Cancel safety
    ///
    /// Must lose no connection when it is dropped.
    fn accept(&mut self) -> impl Future<Output = io::Result<Incoming<Self::Stream>>> + Send;

    /// The name of the TCP listener by which a candidate has it too, so that requests of its connections can be split
    /// ([`By::Request`](crate::rollout::By::Request)). Default: none, and this generation answers them all.
    fn name(&self) -> Option<&str> {
        None
    }

    /// Whether the connection is not a client's but carries requests that another generation was asked, which has added
    /// its peer to `x-forwarded-for`. Default: it is not.
    fn is_carrier(&self, stream: &Self::Stream) -> bool {
        let _ = stream;
        false
    }
}

/// An accepted connection.
#[derive(Debug)]
pub struct Incoming<S> {
    /// The connection.
    pub stream: S,
    /// How the connection is called in logs and drain reports.
    pub peer: String,
    /// What another generation has read from it, not served yet.
    pub already_read: Bytes,
}
