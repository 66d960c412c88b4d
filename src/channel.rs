//! The channel between two generations: messages with descriptors, one datagram each.
//!
//! The channel is also how each end learns that the other has gone. A peer that dies with something unread makes the
//! next read here fail with ECONNRESET although its own last messages are still queued behind that error (unix(7) is
//! silent about it), so one such error is read past, to the true end.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::Poll;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::protocol::codec::{self, DATAGRAM_MAX};
use crate::protocol::message::Message;
use crate::sys::descriptors::{self, Received};

/// One end of a channel.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: AsyncFd<OwnedFd>,
    buffer: Buffer,
}

/// A message and the descriptors that came with it, as many as it says.
pub(crate) type Delivery = (Message, Vec<OwnedFd>);

/// Why what arrived is not a message.
#[derive(Debug)]
pub(crate) enum RecvError {
    /// The socket failed.
    Io(io::Error),
    /// Not as many descriptors arrived as the message says; most likely this process is at its limit.
    Truncated { expected: usize, got: usize },
    /// The datagram is longer than any message.
    Oversized,
    /// The bytes are not a message of a version that this build reads.
    Garbage {
        /// What it begins with.
        excerpt: String,
        source: serde_json::Error,
    },
}

impl Channel {
    /// Makes a channel of its end of a pair, within a tokio runtime.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: descriptors::watched(socket, Interest::READABLE | Interest::WRITABLE)?,
            buffer: Buffer(vec![0; DATAGRAM_MAX]),
        })
    }

    /// Sends one message with its descriptors, or fails with `WouldBlock` if there is no room for it now.
    ///
    /// ETOOMANYREFS means that this user has too many descriptors on their way (unix(7)): send fewer at once.
    pub(crate) fn try_send(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let body = body_of(message, descriptors)?;
        descriptors::send(self.as_fd(), &body, descriptors)
    }

    /// Waits for the next message; `None` once the other end is closed and everything that it sent has been read.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: a datagram is taken only by the call that returns it.
    pub(crate) async fn recv(&mut self) -> Result<Option<Delivery>, RecvError> {
        let Self { socket, buffer } = self;
        let received = socket
            .async_io(Interest::READABLE, |socket| buffer.fill(socket.as_fd()))
            .await?;
        received.map(|it| buffer.delivery(it)).transpose()
    }

    /// Takes the next message if it is there already; ready with `None` at the end as [`recv`](Self::recv), pending
    /// where that would wait.
    pub(crate) fn try_recv(&mut self) -> Poll<Result<Option<Delivery>, RecvError>> {
        match self.buffer.fill(self.socket.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            Err(error) => Poll::Ready(Err(error.into())),
            Ok(received) => Poll::Ready(received.map(|it| self.buffer.delivery(it)).transpose()),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

/// Room for one datagram, made once.
struct Buffer(Vec<u8>);

impl Buffer {
    /// Receives one datagram, past the reset that a dead peer has left in front of its last words. A second reset in a
    /// row is no such thing.
    fn fill(&mut self, socket: BorrowedFd<'_>) -> io::Result<Option<Received>> {
        match descriptors::recv(socket, &mut self.0) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                descriptors::recv(socket, &mut self.0)
            }
            received => received,
        }
    }

    fn delivery(&self, received: Received) -> Result<Delivery, RecvError> {
        if received.body_cut {
            return Err(RecvError::Oversized);
        }
        let body = &self.0[..received.length];
        let message = codec::decode(body).map_err(|source| RecvError::Garbage {
            excerpt: excerpt(body),
            source,
        })?;
        let (expected, got) = (message.descriptors(), received.descriptors.len());
        if received.descriptors_cut || expected != got {
            return Err(RecvError::Truncated { expected, got });
        }
        Ok((message, received.descriptors))
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.0.len())
    }
}

impl fmt::Display for RecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(_) => f.write_str("reading from the other generation"),
            Self::Truncated { expected, got } => {
                write!(f, "{got} of {expected} descriptors arrived")
            }
            Self::Oversized => write!(f, "a message of more than {DATAGRAM_MAX} bytes arrived"),
            Self::Garbage { excerpt, .. } => write!(f, "not a message: {excerpt}"),
        }
    }
}

impl std::error::Error for RecvError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Garbage { source, .. } => Some(source),
            Self::Truncated { .. } | Self::Oversized => None,
        }
    }
}

impl From<io::Error> for RecvError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn body_of(message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<Vec<u8>> {
    debug_assert_eq!(message.descriptors(), descriptors.len());
    let body = codec::encode(message);
    if body.len() > DATAGRAM_MAX {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok(body)
}

fn excerpt(body: &[u8]) -> String {
    body.get(..EXCERPT_MAX)
        .unwrap_or(body)
        .escape_ascii()
        .to_string()
}

/// Bytes of a foreign datagram that an error repeats.
const EXCERPT_MAX: usize = 60;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use nix::sys::resource::{Resource, setrlimit};
    use tokio::time::timeout;

    use super::*;
    use crate::protocol::message::{Chunk, Slot, SlotKind};
    use crate::sys::descriptors::pair;
    use crate::sys::testing::ran_in_its_own_process;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn messages_arrive_in_order_with_their_descriptors() {
        let (left, mut right) = channels();
        let null = File::open("/dev/null").unwrap();
        left.try_send(&offer(1), &[null.as_fd()]).unwrap();
        left.try_send(&Message::Started, &[]).unwrap();
        let (message, descriptors) = next(&mut right).await;
        assert_eq!((message, descriptors.len()), (offer(1), 1));
        let (message, descriptors) = next(&mut right).await;
        assert_eq!((message, descriptors.len()), (Message::Started, 0));
    }

    #[tokio::test]
    async fn a_reader_wakes_for_a_message_and_for_the_end() {
        let (left, mut right) = channels();
        let reader = tokio::spawn(async move {
            let (first, _) = next(&mut right).await;
            (first, right.recv().await.unwrap().is_none())
        });
        tokio::task::yield_now().await;
        left.try_send(&Message::Committed, &[]).unwrap();
        drop(left);
        let read = timeout(PATIENCE, reader).await.unwrap().unwrap();
        assert_eq!(read, (Message::Committed, true));
    }

    #[tokio::test]
    async fn a_peer_that_dies_with_unread_messages_leaves_a_reset_in_front_of_its_own() {
        let (dead, _) = dead_peer();
        let reset = descriptors::recv(dead.as_fd(), &mut [0; 1]).unwrap_err();
        assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
        assert!(descriptors::recv(dead.as_fd(), &mut [0; 1]).is_ok());
    }

    #[tokio::test]
    async fn the_last_words_of_a_dead_peer_are_read_past_its_reset() {
        let (mut waiting, words) = dead_peer();
        for word in &words {
            assert_eq!(&next(&mut waiting).await.0, word);
        }
        assert!(waiting.recv().await.unwrap().is_none());

        let (mut polling, words) = dead_peer();
        for word in &words {
            assert!(
                matches!(polling.try_recv(), Poll::Ready(Ok(Some((message, _)))) if message == *word)
            );
        }
        assert!(matches!(polling.try_recv(), Poll::Ready(Ok(None))));
    }

    #[tokio::test]
    async fn trying_never_waits() {
        let (left, mut right) = channels();
        assert!(right.try_recv().is_pending());
        let full = loop {
            if let Err(error) = left.try_send(&Message::Started, &[]) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(next(&mut right).await.0, Message::Started);
    }

    #[tokio::test]
    async fn a_wrong_number_of_descriptors_is_refused_and_none_is_kept() {
        let (left, mut right) = channels();
        let (reader, writer) = io::pipe().unwrap();
        descriptors::send(left.as_fd(), &codec::encode(&offer(2)), &[writer.as_fd()]).unwrap();
        drop(writer);
        let refused = right.recv().await.unwrap_err();
        assert!(matches!(
            refused,
            RecvError::Truncated {
                expected: 2,
                got: 1
            }
        ));
        assert_eq!(io::read_to_string(reader).unwrap(), "");

        descriptors::send(
            left.as_fd(),
            &codec::encode(&Message::Started),
            &[left.as_fd()],
        )
        .unwrap();
        let refused = right.recv().await.unwrap_err();
        assert!(matches!(
            refused,
            RecvError::Truncated {
                expected: 0,
                got: 1
            }
        ));
    }

    #[tokio::test]
    async fn a_receiver_at_its_limit_learns_that_descriptors_are_lost() {
        let name = "channel::tests::a_receiver_at_its_limit_learns_that_descriptors_are_lost";
        if ran_in_its_own_process(name, &[]) {
            return;
        }
        let (left, mut right) = channels();
        left.try_send(&offer(4), &[left.as_fd(); 4]).unwrap();
        let highest = File::open("/dev/null").unwrap().as_raw_fd();
        let limit = u64::try_from(highest).unwrap() + 2;
        setrlimit(Resource::RLIMIT_NOFILE, limit, limit).unwrap();
        let refused = right.recv().await.unwrap_err();
        assert!(
            matches!(
                refused,
                RecvError::Truncated {
                    expected: 4,
                    got: 2
                }
            ),
            "{refused:?}"
        );
    }

    #[tokio::test]
    async fn garbage_is_told_by_its_beginning() {
        let (left, mut right) = channels();
        descriptors::send(left.as_fd(), &[0xff; 1000], &[]).unwrap();
        match right.recv().await.unwrap_err() {
            RecvError::Garbage { excerpt, .. } => assert_eq!(excerpt, "\\xff".repeat(EXCERPT_MAX)),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_message_too_long_is_neither_sent_nor_taken() {
        let (left, mut right) = channels();
        let reason = "x".repeat(DATAGRAM_MAX);
        let error = left.try_send(&Message::Failed { reason }, &[]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        descriptors::send(left.as_fd(), &vec![b' '; DATAGRAM_MAX + 1], &[]).unwrap();
        assert!(matches!(right.recv().await, Err(RecvError::Oversized)));
        left.try_send(&Message::Started, &[]).unwrap();
        assert_eq!(next(&mut right).await.0, Message::Started);
    }

    fn channels() -> (Channel, Channel) {
        let (left, right) = pair().unwrap();
        (Channel::new(left).unwrap(), Channel::new(right).unwrap())
    }

    /// A channel whose other end has said these words and died without reading the answer.
    fn dead_peer() -> (Channel, [Message; 2]) {
        let (survivor, dying) = channels();
        let words = [Message::Started, Message::Committed];
        for word in &words {
            dying.try_send(word, &[]).unwrap();
        }
        survivor.try_send(&Message::Started, &[]).unwrap();
        (survivor, words)
    }

    async fn next(channel: &mut Channel) -> Delivery {
        let received = timeout(PATIENCE, channel.recv()).await;
        received.unwrap().unwrap().unwrap()
    }

    fn offer(descriptors: usize) -> Message {
        let slot = Slot {
            name: "web".into(),
            kind: SlotKind::Tcp,
            inode: None,
            keeper: None,
        };
        Message::Offer(Chunk {
            chunk: 0,
            last: true,
            slots: vec![slot; descriptors],
        })
    }
}
