//! An HTTP/2 connection.
//!
//! h2 says GOAWAY in two steps: first one that forbids nothing yet and a PING, then, when the client has answered that
//! and so has seen the first, one that names the last stream. Requests that crossed the first are answered; see
//! [`super::late_ack`] for those that come right behind the client's answer.

use std::pin::pin;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::debug;

use super::connection::Settings;
use super::io::Io;
use super::late_ack::LateAck;
use super::presence::{End, Presence};
use super::service::{Serve, Tracked};

pub(super) async fn serve<S, V>(settings: &Settings, presence: &mut Presence, io: Io<S>, service: V)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    V: Serve,
{
    io.ledger().multiplexed();
    presence.speaks_http2();
    let service = Tracked::new(service, Arc::clone(io.ledger()));
    let connection = pin!(
        settings
            .http2
            .serve_connection(TokioIo::new(LateAck::new(io)), service)
    );
    let end = presence
        .attend(connection, |connection| connection.graceful_shutdown())
        .await;
    if let End::Finished(Err(error)) = end {
        debug!(%error, "HTTP/2 connection failed");
    }
}
