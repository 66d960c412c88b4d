//! An HTTP/1 connection, which is never closed under an arriving request.
//!
//! hyper's own graceful shutdown is not used: it closes a connection between two requests without a look at its socket.
//! Instead, every response on the way out says `Connection: close`; and a connection that has been idle for all of its
//! grace is taken out of hyper, looked at, and put back if anything has arrived.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use hyper::server::conn::http1::{Parts, UpgradeableConnection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::debug;

use super::connection::Settings;
use super::io::Io;
use super::presence::{End, Presence};
use super::service::{Serve, Tracked};
use super::sight::Arrivals;

type Connection<S, V> = UpgradeableConnection<TokioIo<Io<S>>, Tracked<V>>;

pub(super) async fn serve<S, V>(
    settings: &Settings,
    presence: &mut Presence,
    mut io: Io<S>,
    service: V,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    V: Serve,
{
    let mut service = Tracked::new(service, Arc::clone(io.ledger()));
    loop {
        let connection = settings.http1.serve_connection(TokioIo::new(io), service);
        let mut connection: Connection<S, V> = connection.with_upgrades();
        match presence.attend(Pin::new(&mut connection), |_| {}).await {
            End::Finished(Ok(())) | End::Cut => return,
            End::Finished(Err(error)) => return debug!(%error, "HTTP/1 connection failed"),
            End::GraceOver => {}
        }
        let Some(parts) = connection.into_parts() else {
            return;
        };
        service = parts.service.clone();
        match with_request(parts).await {
            Some(again) => io = again,
            None => return,
        }
    }
}

/// Looks at an idle connection for the last time: closes it, or returns it if anything of another request has arrived.
async fn with_request<S, V>(parts: Parts<TokioIo<Io<S>>, Tracked<V>>) -> Option<Io<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut io = parts.io.into_inner();
    io.uncounted().put_back(without_empty_lines(parts.read_buf));
    // What the last request's body may still reach into is not taken for a request: that would let one client of a
    // proxy speak in another one's name.
    let arrivals = match io.has_prefix() {
        true if io.ledger().had_body() => Arrivals::Nothing,
        true => Arrivals::Request,
        false if io.ledger().may_be_unread() => Arrivals::Nothing,
        false => io.look(),
    };
    match arrivals {
        Arrivals::Request => io.ledger().rewound(),
        // Whatever it is, its sender is given another grace.
        Arrivals::Unclear => io.ledger().touch(),
        Arrivals::Nothing => {
            io.close().await;
            return None;
        }
    }
    Some(io)
}

/// Some clients send an empty line after a request's body (RFC 9112, section 2.2).
fn without_empty_lines(mut bytes: Bytes) -> Bytes {
    let request = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
    bytes.split_off(request.unwrap_or(bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_comes_after_empty_lines_is_a_request() {
        for (bytes, request) in [
            ("", ""),
            ("\r\n", ""),
            ("\r\n\r\nGET", "GET"),
            ("GET\r\n", "GET\r\n"),
        ] {
            assert_eq!(without_empty_lines(bytes.into()), request);
        }
    }
}
