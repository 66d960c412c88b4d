//! The serving end of the control socket: who may ask, for how long, and that nobody is in anybody's way.
//!
//! It runs beside the driver and never in it: a client that says nothing, reads nothing or goes away costs a task and a
//! place among [`CONTROL_CLIENTS_MAX`], and nothing else.

use std::future::pending;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix;
use std::pin::pin;
use std::sync::Arc;

use serde::Serialize;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, Interest,
};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::request::{RefusalKind, Reply, Request, from_line, to_line};
use crate::config::{
    ACCEPT_PAUSE, CONTROL_CLIENTS_MAX, CONTROL_DEADLINE, CONTROL_KEPT, CONTROL_REQUEST_MAX,
    CONTROL_WAITING_MAX,
};
use crate::drain::Guard;
use crate::sys::descriptors;
use crate::sys::process::{Pidfd, is_own_user_or_root};

/// Whether this generation is the one that operators are to talk to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Another one is, or nobody for a moment: whoever connects waits in the queue.
    #[default]
    NotNow,
    /// It is.
    Yes,
    /// It has handed over, or will never serve.
    NeverAgain,
}

/// What can be asked of a generation.
pub(crate) trait Answering: Send + Sync + 'static {
    /// Whether it is the one to ask.
    fn asked(&self) -> watch::Receiver<Asked>;

    /// Keeps this generation's process until it is dropped.
    fn keep(&self) -> Guard;

    /// Does what is asked, and says so. Dropped when the client goes away.
    fn answer(
        &self,
        request: Request,
        lines: &mut Lines,
    ) -> impl Future<Output = io::Result<()>> + Send;
}

/// The way back to one client.
#[derive(Debug)]
pub(crate) struct Lines(OwnedWriteHalf);

impl Lines {
    #[cfg(test)]
    pub(crate) fn to(stream: UnixStream) -> Self {
        Self(stream.into_split().1)
    }

    /// One line, which the client must have read before [`CONTROL_DEADLINE`] has passed if its buffer is full.
    pub(crate) async fn say(&mut self, content: &impl Serialize) -> io::Result<()> {
        let line = to_line(content)?;
        timeout(CONTROL_DEADLINE, self.0.write_all(&line))
            .await
            .map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// The same with a descriptor, of which no more than one is lost to a client that does not expect it.
    pub(crate) async fn say_with(
        &mut self,
        content: &impl Serialize,
        descriptor: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let line = to_line(content)?;
        let stream: &UnixStream = self.0.as_ref();
        let sending = stream.async_io(Interest::WRITABLE, || {
            descriptors::send_on_stream(stream.as_fd(), &line, &[descriptor])
        });
        timeout(CONTROL_DEADLINE, sending)
            .await
            .map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// The process that has connected, held; an error in words if that is not possible.
    pub(crate) fn peer(&self) -> Result<(u32, Pidfd), String> {
        let stream: &UnixStream = self.0.as_ref();
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let Some(pid) = pid.filter(|pid| *pid > 0).map(i32::unsigned_abs) else {
            return Err("your process cannot be seen from here: another PID namespace".to_owned());
        };
        let failed = |error: io::Error| format!("holding process {pid}: {error}");
        let process = Pidfd::of_peer(stream.as_fd(), pid).map_err(failed)?;
        if descriptors::is_hung_up(stream.as_fd()).map_err(failed)? {
            return Err(format!("process {pid} has gone away"));
        }
        Ok((pid, process))
    }
}

/// Until this generation is never asked again.
pub(crate) async fn serve<A: Answering>(socket: unix::net::UnixListener, answering: A) {
    let mut asked = answering.asked();
    let house = Arc::new(House {
        answering,
        clients: Arc::new(Semaphore::new(CONTROL_CLIENTS_MAX)),
        waiting: Semaphore::new(CONTROL_WAITING_MAX),
    });
    loop {
        let now = asked.wait_for(|asked| *asked != Asked::NotNow).await;
        if !now.is_ok_and(|asked| *asked == Asked::Yes) {
            return;
        }
        // Watched only while it is this generation's to accept from: the other one must not be woken for it.
        match socket.try_clone().and_then(UnixListener::from_std) {
            Ok(listener) => house.receive(&listener, &mut asked).await,
            Err(error) => {
                tracing::warn!(%error, "the control socket cannot be watched; trying again");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

struct House<A> {
    answering: A,
    clients: Arc<Semaphore>,
    waiting: Semaphore,
}

impl<A: Answering> House<A> {
    async fn receive(
        self: &Arc<Self>,
        listener: &UnixListener,
        asked: &mut watch::Receiver<Asked>,
    ) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = until_not_asked(asked) => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => self.admit(stream),
                // Out of descriptors or memory: whoever connected is still in the queue.
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: UnixStream) {
        let Ok(place) = Arc::clone(&self.clients).try_acquire_owned() else {
            return send_away(stream);
        };
        let house = Arc::clone(self);
        // From here on nobody but this process can answer it.
        let kept = house.answering.keep();
        tokio::spawn(async move {
            // Whoever is gone needs no answer.
            let _ = house.converse(stream, kept).await;
            drop(place);
        });
    }

    async fn converse(&self, stream: UnixStream, kept: Guard) -> io::Result<()> {
        let mut kept = Some(kept);
        let peer = stream.peer_cred()?;
        let (reader, writer) = stream.into_split();
        let mut lines = Lines(writer);
        if !is_own_user_or_root(peer.uid()) {
            let text = format!("user {} is neither the service's nor root", peer.uid());
            return lines.say(&Reply::error(RefusalKind::Forbidden, text)).await;
        }
        let mut reader = BufReader::new(reader);
        let request = match read_while_kept(&mut reader, &mut kept).await {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(reason) => {
                return lines
                    .say(&Reply::error(RefusalKind::Malformed, reason))
                    .await;
            }
        };
        if !matches!(request, Request::Status) {
            tracing::debug!(?request, uid = peer.uid(), pid = peer.pid(), "control");
        }
        if *self.answering.asked().borrow() != Asked::Yes {
            return lines.say(&Reply::moved()).await;
        }
        // Whoever answers keeps it as long as the answer takes, and not longer than that.
        drop(kept);
        let _waiting = match takes_its_time(&request).then(|| self.waiting.try_acquire()) {
            Some(Err(_)) => return lines.say(&busy("too many clients wait already")).await,
            Some(Ok(place)) => Some(place),
            None => None,
        };
        tokio::select! {
            biased;
            answered = self.answering.answer(request, &mut lines) => answered,
            () = vanished(&mut reader) => Ok(()),
        }
    }
}

async fn until_not_asked(asked: &mut watch::Receiver<Asked>) {
    // An error says that the generation is gone, which is never asked again.
    let _ = asked.wait_for(|asked| *asked != Asked::Yes).await;
}

fn takes_its_time(request: &Request) -> bool {
    match request {
        Request::Upgrade { wait, .. }
        | Request::Promote { wait, .. }
        | Request::Drain { wait }
        | Request::Drill { wait, .. }
        | Request::Rollback {
            cold: true, wait, ..
        } => *wait,
        Request::Events | Request::Verify | Request::Schema { .. } => true,
        _ => false,
    }
}

fn busy(why: &str) -> Reply {
    Reply::error(RefusalKind::Busy, why)
}

/// Without a task: there may be many of them, and a line fits into the buffer of a new connection.
fn send_away(stream: UnixStream) {
    let line = to_line(&busy("too many clients are connected")).unwrap_or_default();
    if let Ok(mut stream) = stream.into_std() {
        // It sees that it was closed if it does not see why.
        let _ = stream.write_all(&line);
    }
}

/// The generation waits for those who have connected to it, and no longer than they need to speak if they want to.
async fn read_while_kept(
    reader: &mut (impl AsyncBufRead + Unpin),
    kept: &mut Option<Guard>,
) -> Result<Option<Request>, String> {
    let mut reading = pin!(read_request(reader));
    match timeout(CONTROL_KEPT, &mut reading).await {
        Ok(request) => request,
        Err(_) => {
            *kept = None;
            reading.await
        }
    }
}

/// `None` if the client has gone without a word.
async fn read_request(reader: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<Request>, String> {
    let limit = u64::try_from(CONTROL_REQUEST_MAX).unwrap_or(u64::MAX);
    let mut line = Vec::new();
    let mut limited = reader.take(limit);
    let reading = limited.read_until(b'\n', &mut line);
    match timeout(CONTROL_DEADLINE, reading).await {
        Err(_) => Err(format!("no request came within {CONTROL_DEADLINE:?}")),
        Ok(Err(_)) => Ok(None),
        Ok(Ok(_)) if line.is_empty() => Ok(None),
        Ok(Ok(_)) if line.len() == CONTROL_REQUEST_MAX && !line.ends_with(b"\n") => Err(format!(
            "the request is longer than {CONTROL_REQUEST_MAX} bytes"
        )),
        Ok(Ok(_)) => from_line(&line).map(Some),
    }
}

/// Whether the client has closed its end. One that says more than it was asked for is not listened to any longer.
async fn vanished(reader: &mut (impl AsyncRead + Unpin)) {
    match reader.read(&mut [0; 64]).await {
        Ok(0) | Err(_) => {}
        Ok(_) => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_given_up_at_the_deadline() {
        let (ours, _deaf) = UnixStream::pair().unwrap();
        let mut lines = Lines::to(ours);
        let since = Instant::now();
        lines.say(&Reply::Stopping).await.unwrap();
        assert_eq!(since.elapsed(), Duration::ZERO);
        let more_than_a_buffer = Reply::refused("no".repeat(1 << 20));
        let error = lines.say(&more_than_a_buffer).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(since.elapsed(), CONTROL_DEADLINE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_read_to_its_end_and_to_no_more_than_the_limit() {
        let longest = [b' '; CONTROL_REQUEST_MAX];
        assert!(read_request(&mut &longest[..]).await.is_err());
        let text = br#"{"request":"status"}"#;
        let mut padded = longest;
        padded[..text.len()].copy_from_slice(text);
        padded[CONTROL_REQUEST_MAX - 1] = b'\n';
        let request = read_request(&mut &padded[..]).await;
        assert_eq!(request, Ok(Some(Request::Status)));
        assert_eq!(read_request(&mut &b""[..]).await, Ok(None));
    }
}
