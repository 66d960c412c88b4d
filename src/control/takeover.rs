//! How a process that somebody else has started becomes the successor of a running generation.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::client::{Client, not_understood, refused};
use super::request::{Refusal, RefusalKind, Reply, Request, from_line, to_line};
use crate::config::CONTROL_REQUEST_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::descriptors;
use crate::sys::environment::{CHANNEL, channel_value};

/// The successor's end of a channel to the incumbent of a service, for this very process.
///
/// A successor that does not speak is given up at its start deadline like any other, and ended; so is one that drops this.
#[derive(Debug)]
#[must_use = "the incumbent ends a successor that does not speak"]
pub struct Takeover {
    channel: OwnedFd,
    generation: u64,
    incumbent: u32,
}

impl Takeover {
    /// The number that this process has as a generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The process that it takes over from.
    pub fn incumbent_pid(&self) -> u32 {
        self.incumbent
    }

    /// Leaves the channel to the program that this process becomes by exec(3), and returns the variable that tells it so,
    /// name and value.
    ///
    /// # Errors
    ///
    /// If the descriptor cannot be made inheritable.
    pub fn leave_to_exec(self) -> io::Result<(&'static str, OsString)> {
        let channel = descriptors::leave_to_exec(self.channel)?;
        let value = channel_value(&channel, self.incumbent)?;
        // From here on it is whose the number is.
        let _ = channel.into_raw_fd();
        Ok((CHANNEL, value))
    }

    pub(crate) fn into_channel(self) -> OwnedFd {
        self.channel
    }
}

impl Client {
    /// Becomes the successor of the generation that serves: this process, and no other one, which takes over as if the
    /// incumbent had started it. [`Builder::takeover`](crate::Builder::takeover) does it at the start.
    ///
    /// The incumbent watches over this process from then on: it ends it where it would end a successor of its own, and
    /// must be able to, so it refuses a process of a user that it may not signal.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask). [`ErrorKind::Refused`] says who serves.
    ///
    /// # Cancel safety
    ///
    /// None: the incumbent may have taken this process for its successor, and ends it then.
    pub async fn takeover(&self) -> Result<Takeover> {
        self.in_time(self.take_over_from_whoever_answers()).await
    }

    async fn take_over_from_whoever_answers(&self) -> Result<Takeover> {
        loop {
            let stream = self.stream().await?;
            let (line, channel) = exchange(stream)
                .await
                .map_err(|error| self.asking().because(error))?;
            match (from_line(&line).map_err(not_understood)?, channel) {
                (
                    Reply::Takeover {
                        generation,
                        incumbent,
                    },
                    Some(channel),
                ) => {
                    return Ok(Takeover {
                        channel,
                        generation,
                        incumbent,
                    });
                }
                (
                    Reply::Error(Refusal {
                        kind: RefusalKind::Moved,
                        ..
                    }),
                    _,
                ) => {}
                (Reply::Error(refusal), _) => {
                    return Err(refused(refusal).while_incumbent_serves());
                }
                (Reply::Takeover { .. }, None) => {
                    return Err(Error::new(ErrorKind::Io, "taking over a service")
                        .because("its channel did not arrive: this process may be at its limit"));
                }
                (other, _) => return Err(not_understood(format!("it answered {other:?}"))),
            }
        }
    }
}

/// One line each way, and the descriptor that comes with the answer.
async fn exchange(mut stream: UnixStream) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    match stream.write_all(&to_line(&Request::Takeover)?).await {
        // Whoever refuses a client before it has spoken has said why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written?,
    }
    let (mut line, mut descriptors) = (Vec::new(), Vec::new());
    while !line.ends_with(b"\n") {
        let mut buffer = [0; 4096];
        let receive = || descriptors::recv(stream.as_fd(), &mut buffer);
        let Some(received) = stream.async_io(Interest::READABLE, receive).await? else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        line.extend(&buffer[..received.length]);
        descriptors.extend(received.descriptors);
        if line.len() > CONTROL_REQUEST_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let channel = descriptors.pop().filter(|_| descriptors.is_empty());
    Ok((line, channel))
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::net::UnixListener;

    use super::*;

    /// What a client makes of a service that answers each of its connections in turn with these bytes and descriptors.
    async fn takeover(answers: &[(&[u8], usize)]) -> Result<Takeover> {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let client = Client::new(&path).deadline(Duration::from_secs(20));
        let answering = async {
            for (bytes, count) in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 64];
                let length = stream.read(&mut request).await.unwrap();
                let request = from_line::<Request>(&request[..length]).unwrap();
                assert_eq!(request, Request::Takeover);
                let null = std::fs::File::open("/dev/null").unwrap();
                let descriptors: Vec<BorrowedFd<'_>> = vec![null.as_fd(); *count];
                descriptors::send_on_stream(stream.as_fd(), bytes, &descriptors).unwrap();
            }
        };
        tokio::join!(client.takeover(), answering).0
    }

    const AGREED: &[u8] =
        b"{\"version\":1,\"reply\":\"takeover\",\"generation\":7,\"incumbent\":42}\n";
    const MOVED: &[u8] =
        b"{\"version\":1,\"reply\":\"error\",\"kind\":\"moved\",\"message\":\"\"}\n";
    const REFUSED: &[u8] =
        b"{\"version\":1,\"reply\":\"error\",\"kind\":\"refused\",\"message\":\"no\"}\n";

    #[tokio::test]
    async fn the_channel_comes_with_the_answer_of_whoever_answers() {
        let taken = takeover(&[(MOVED, 0), (AGREED, 1)]).await.unwrap();
        assert_eq!((taken.generation(), taken.incumbent_pid()), (7, 42));
        let inode = descriptors::inode(taken.channel.as_fd()).unwrap();
        let (name, value) = taken.leave_to_exec().unwrap();
        assert_eq!(name, "HANDOVER_CHANNEL");
        let value = value.into_string().unwrap();
        assert!(value.ends_with(&format!(":{inode}:42")), "{value}");
    }

    #[tokio::test]
    async fn an_answer_without_a_channel_or_with_too_many_is_no_takeover() {
        for count in [0, 2] {
            let error = takeover(&[(AGREED, count)]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io, "{count}");
        }
    }

    #[tokio::test]
    async fn a_refusal_says_that_somebody_serves() {
        let error = takeover(&[(REFUSED, 0)]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.incumbent_serving());
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error_and_what_has_no_end_too() {
        let endless = [b'a'; CONTROL_REQUEST_MAX + 1];
        let stopping = b"{\"version\":1,\"reply\":\"stopping\"}\n";
        for (answer, kind) in [
            (&b"nonsense\n"[..], ErrorKind::Protocol),
            (stopping, ErrorKind::Protocol),
            (b"{\"version\":1", ErrorKind::Io),
            (&endless, ErrorKind::Io),
        ] {
            assert_eq!(takeover(&[(answer, 0)]).await.unwrap_err().kind(), kind);
        }
    }
}
