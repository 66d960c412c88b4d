//! The asking end of the control socket.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::request::{Happened, Refusal, RefusalKind, Reply, Request, from_line, to_line};
use crate::config::{CONTROL_ANSWER, CONTROL_REPLY_MAX};
use crate::error::{Error, ErrorKind, Result};

/// Asks the incumbent of a service, over its control socket.
///
/// Each request is a connection of its own, so one that waits holds up no other.
///
/// ```no_run
/// # async fn example() -> handover::Result<()> {
/// use handover::control::{Client, Reply, Request};
///
/// let client = Client::new("/run/app/control.sock");
/// if let Reply::Status(status) = client.ask(&Request::Status).await? {
///     println!("generation {} serves, process {}", status.generation, status.pid);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    deadline: Duration,
}

/// What happens to one generation from now on.
#[derive(Debug)]
pub struct EventStream(Connection);

#[derive(Debug)]
struct Connection(BufReader<UnixStream>);

impl Client {
    /// Of the service whose control socket has this path; one that begins with `@` is an abstract name.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            deadline: CONTROL_ANSWER,
        }
    }

    /// How long an answer may take. A verdict comes after the bake, so raise it to wait for one.
    /// Default: [`CONTROL_ANSWER`], 10 s.
    #[must_use]
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.deadline = limit;
        self
    }

    /// The path of the control socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks, and waits for the answer. If another generation answers by now, that one is asked.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] if the service said that it would not, in its words. [`ErrorKind::Schema`] if a step of a
    /// migration was begun and has failed. [`ErrorKind::Protocol`] if one did
    /// not understand the other. [`ErrorKind::Io`] if nobody answers: its source is an [`io::Error`],
    /// [`TimedOut`](io::ErrorKind::TimedOut) after the [deadline](Self::deadline), and
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if the generation that was asked went away without an answer.
    ///
    /// # Cancel safety
    ///
    /// What was asked for goes on or not; nobody hears of it.
    pub async fn ask(&self, request: &Request) -> Result<Reply> {
        let (_, reply) = self.in_time(self.ask_whoever_answers(request)).await?;
        Ok(reply)
    }

    /// Begins to listen to what happens. What happens after this has returned is not missed.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask).
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn events(&self) -> Result<EventStream> {
        match self
            .in_time(self.ask_whoever_answers(&Request::Events))
            .await?
        {
            (connection, Reply::Events) => Ok(EventStream(connection)),
            (_, other) => Err(not_understood(format!("it answered {other:?}"))),
        }
    }

    pub(super) async fn in_time<T>(&self, answer: impl Future<Output = Result<T>>) -> Result<T> {
        let late = |_| {
            self.asking()
                .because(io::Error::from(io::ErrorKind::TimedOut))
        };
        timeout(self.deadline, answer).await.map_err(late)?
    }

    /// One that has moved away in the meantime leaves its successor listening, so this ends with the first answer.
    async fn ask_whoever_answers(&self, request: &Request) -> Result<(Connection, Reply)> {
        loop {
            let mut connection = self.connect().await?;
            connection
                .say(request)
                .await
                .map_err(|error| self.asking().because(error))?;
            match connection.hear().await.map_err(|error| error.of(self))? {
                Reply::Error(Refusal {
                    kind: RefusalKind::Moved,
                    ..
                }) => {}
                Reply::Error(refusal) => return Err(refused(refusal)),
                reply => return Ok((connection, reply)),
            }
        }
    }

    async fn connect(&self) -> Result<Connection> {
        Ok(Connection(BufReader::new(self.stream().await?)))
    }

    pub(super) async fn stream(&self) -> Result<UnixStream> {
        let stream = match self.path.as_os_str().as_bytes() {
            // tokio takes a name that begins like this for an abstract one.
            [b'@', name @ ..] => {
                UnixStream::connect(OsStr::from_bytes(&[b"\0", name].concat())).await
            }
            _ => UnixStream::connect(&self.path).await,
        };
        stream.map_err(|error| self.asking().because(error))
    }

    pub(super) fn asking(&self) -> Error {
        Error::new(
            ErrorKind::Io,
            format!("asking the service at {}", self.path.display()),
        )
    }
}

impl EventStream {
    /// The next event. `None` when this generation has handed over or is gone: listen to the next one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Protocol`] if a line cannot be understood.
    ///
    /// # Cancel safety
    ///
    /// None: a line that has come in part is lost, and what follows cannot be understood.
    pub async fn next(&mut self) -> Result<Option<Happened>> {
        match self.0.hear().await {
            Ok(happened) => Ok(Some(happened)),
            Err(Unheard::Gone(_)) => Ok(None),
            Err(Unheard::Garbled(reason)) => Err(not_understood(reason)),
        }
    }
}

/// Why there is no line.
enum Unheard {
    Gone(io::Error),
    Garbled(String),
}

impl Unheard {
    fn of(self, client: &Client) -> Error {
        match self {
            Self::Gone(error) => client.asking().because(error),
            Self::Garbled(reason) => not_understood(reason),
        }
    }
}

impl Connection {
    /// Whoever refuses a client does so before it has spoken, and what it has said is still to be read then.
    async fn say(&mut self, request: &Request) -> io::Result<()> {
        match self.0.write_all(&to_line(request)?).await {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    }

    async fn hear<T: DeserializeOwned>(&mut self) -> Result<T, Unheard> {
        let limit = u64::try_from(CONTROL_REPLY_MAX).unwrap_or(u64::MAX);
        let mut line = Vec::new();
        let mut limited = (&mut self.0).take(limit);
        limited
            .read_until(b'\n', &mut line)
            .await
            .map_err(Unheard::Gone)?;
        if line.len() == CONTROL_REPLY_MAX && !line.ends_with(b"\n") {
            return Err(Unheard::Garbled("its answer has no end".to_owned()));
        }
        if !line.ends_with(b"\n") {
            return Err(Unheard::Gone(io::ErrorKind::UnexpectedEof.into()));
        }
        from_line(&line).map_err(Unheard::Garbled)
    }
}

pub(super) fn refused(refusal: Refusal) -> Error {
    let kind = match refusal.kind {
        RefusalKind::Malformed => ErrorKind::Protocol,
        RefusalKind::Failed => ErrorKind::Schema,
        _ => ErrorKind::Refused,
    };
    Error::new(kind, "asking the service").because(refusal.message)
}

pub(super) fn not_understood(reason: String) -> Error {
    Error::new(ErrorKind::Protocol, "understanding the service").because(reason)
}
