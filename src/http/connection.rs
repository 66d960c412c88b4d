//! One connection's life: handshake, sniff, serve.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tracing::debug;

use super::io::{Io, Rewind};
use super::ledger::{Classes, Ledger};
use super::presence::{End, Presence};
use super::service::Serve;
use super::sight::{Arrivals, Sight, Wire};
use super::sniff::{self, Protocol};
use crate::drain::Guard;

/// What every connection of a server needs to know.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) http1: http1::Builder,
    pub(super) http2: http2::Builder<TokioExecutor>,
    pub(super) idle_grace: Duration,
    pub(super) handshake_deadline: Duration,
    pub(super) classes: Arc<Classes>,
}

impl Settings {
    /// Counts a connection from the moment it was accepted.
    pub(super) fn present(&self, peer: String) -> Presence {
        let ledger = Arc::new(Ledger::new(Arc::clone(&self.classes), peer));
        Presence::new(ledger, self.idle_grace)
    }
}

/// Performs the handshake, then serves what comes of it. `guard` counts the handshake.
pub(super) async fn shake_hands<S2, V>(
    settings: Arc<Settings>,
    guard: Guard,
    peer: String,
    handshake: impl Future<Output = io::Result<S2>>,
    wire: Arc<Wire>,
    service: V,
) where
    S2: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    V: Serve,
{
    let signal = guard.signal();
    let shaken = tokio::select! {
        shaken = timeout(settings.handshake_deadline, handshake) => shaken,
        () = signal.cut() => return,
    };
    match shaken {
        Ok(Ok(stream)) => {
            let presence = settings.present(peer);
            drop(guard);
            serve(
                settings,
                presence,
                Rewind::new(stream, Bytes::new()),
                Sight::through(wire),
                service,
            )
            .await;
        }
        Ok(Err(error)) => debug!(peer, %error, "handshake failed"),
        Err(_) => debug!(peer, "handshake took too long"),
    }
}

pub(super) async fn serve<S, V>(
    settings: Arc<Settings>,
    mut presence: Presence,
    stream: Rewind<S>,
    sight: Sight<S>,
    service: V,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    V: Serve,
{
    let mut io = Io::new(stream, sight, presence.ledger());
    match first_words(&mut io, &mut presence).await {
        Some(Protocol::Http1) => super::http1::serve(&settings, &mut presence, io, service).await,
        Some(Protocol::Http2) => super::http2::serve(&settings, &mut presence, io, service).await,
        None => io.close().await,
    }
}

/// Waits for the client to speak, for as long as an idle connection may stay.
async fn first_words<S>(io: &mut Io<S>, presence: &mut Presence) -> Option<Protocol>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let end = {
            let words = pin!(sniff::protocol(io));
            presence.attend(words, |_| {}).await
        };
        match end {
            End::Finished(protocol) => return protocol.ok().flatten(),
            End::Cut => return None,
            // Nothing was read, or the connection would not have been idle.
            End::GraceOver => match io.look() {
                Arrivals::Nothing => return None,
                Arrivals::Unclear => io.ledger().touch(),
                Arrivals::Request => io.ledger().begun(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::super::tests;
    use super::*;
    use crate::drain::Drain;

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_is_not_closed_over_bytes_in_its_socket() {
        let long = Duration::from_secs(600);
        let drain = Drain::new(long, long);
        let ledger = tests::ledger(&drain);
        let mut presence = Presence::new(Arc::clone(&ledger), Duration::ZERO);
        let (mut client, server) = duplex(64);
        let mut io = Io::new(
            Rewind::new(server, Bytes::new()),
            Sight::Socket(|_| true),
            ledger,
        );
        drain.begin();
        let saying = async {
            tokio::time::sleep(long / 2).await;
            client.write_all(b"GET").await
        };
        let (protocol, said) = tokio::join!(first_words(&mut io, &mut presence), saying);
        said.unwrap();
        assert_eq!(protocol, Some(Protocol::Http1));
    }
}
