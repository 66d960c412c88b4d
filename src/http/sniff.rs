//! Which protocol a new connection speaks.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::io::Io;

/// What a client begins an HTTP/2 connection with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// Reads until the first bytes differ from the preface of HTTP/2 or complete it, and puts them back.
///
/// `None` if the client closed before it said anything.
///
/// # Cancel safety
///
/// What was read is lost, if anything was.
pub(super) async fn protocol<S: AsyncRead + Unpin>(io: &mut Io<S>) -> io::Result<Option<Protocol>> {
    let mut first = [0; PREFACE.len()];
    let mut length = 0;
    while length < PREFACE.len() && PREFACE.starts_with(&first[..length]) {
        match io.uncounted().read(&mut first[length..]).await? {
            0 => break,
            read => length += read,
        }
        io.ledger().begun();
    }
    io.uncounted()
        .put_back(Bytes::copy_from_slice(&first[..length]));
    Ok(match length {
        0 => None,
        _ if first == *PREFACE => Some(Protocol::Http2),
        _ => Some(Protocol::Http1),
    })
}
