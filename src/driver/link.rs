//! What can be heard on a channel, told apart for the machines.

use std::io;
use std::os::fd::OwnedFd;
use std::task::Poll;

use crate::channel::{Channel, Delivery, RecvError};
use crate::protocol::message::Message;

/// One thing heard.
#[derive(Debug)]
pub(crate) enum Heard {
    Message(Message, Vec<OwnedFd>),
    Closed,
    Broken(String),
}

impl Heard {
    /// The next thing the other side says.
    ///
    /// # Cancel safety
    ///
    /// That of [`Channel::recv`]: nothing is lost.
    pub(crate) async fn next(channel: &mut Channel) -> Self {
        channel.recv().await.into()
    }

    /// What a dead peer has left in the channel, one at a time.
    pub(crate) fn rest(channel: &mut Channel) -> Option<Self> {
        match channel.try_recv() {
            Poll::Pending | Poll::Ready(Ok(None)) => None,
            Poll::Ready(heard) => Some(heard.into()),
        }
    }
}

impl From<Result<Option<Delivery>, RecvError>> for Heard {
    fn from(received: Result<Option<Delivery>, RecvError>) -> Self {
        match received {
            Ok(Some((message, descriptors))) => Self::Message(message, descriptors),
            Ok(None) => Self::Closed,
            Err(error) => Self::Broken(error.to_string()),
        }
    }
}

/// Whether a message could not be sent because the other side is gone, which its end will explain better.
pub(super) fn is_hangup(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET))
}
