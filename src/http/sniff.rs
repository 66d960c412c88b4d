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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    use super::super::ledger::Activity;
    use super::super::tests;
    use super::*;

    fn io(read: &'static [u8]) -> (DuplexStream, Io<DuplexStream>) {
        let (client, server) = duplex(64);
        (client, tests::io(server, read))
    }

    #[tokio::test]
    async fn the_preface_is_told_from_everything_else_and_put_back_in_any_split() {
        let requests: [(&[u8], Protocol); 3] = [
            (PREFACE, Protocol::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", Protocol::Http1),
            (b"PUT / HTTP/1.1\r\n\r\n1234567", Protocol::Http1),
        ];
        for (bytes, expected) in requests {
            for split in 0..bytes.len() {
                let (mut client, mut io) = io(&bytes[..split]);
                client.write_all(&bytes[split..]).await.unwrap();
                assert_eq!(protocol(&mut io).await.unwrap(), Some(expected));
                let mut again = vec![0; bytes.len()];
                io.read_exact(&mut again).await.unwrap();
                assert_eq!(again, bytes, "split at {split}");
            }
        }
    }

    #[tokio::test]
    async fn a_single_byte_that_no_preface_begins_with_is_enough() {
        let (_client, mut io) = io(b"G");
        assert_eq!(protocol(&mut io).await.unwrap(), Some(Protocol::Http1));
        assert_eq!(io.ledger().activity(), Activity::Busy);
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_speaks_nothing() {
        let (client, mut io) = io(b"");
        drop(client);
        assert_eq!(protocol(&mut io).await.unwrap(), None);
        assert_eq!(io.ledger().activity(), Activity::Idle);
    }
}
