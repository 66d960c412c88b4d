//! WebSocket clients (RFC 6455): a handshake and masked text frames, written by hand.

use std::io;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Client;
use crate::kind::Failure;
use crate::recorder::Failed;

pub(super) async fn run(mut client: Client) {
    let mut open = None;
    while client.turn().await {
        open = message(&client, open).await;
    }
    if let Some(socket) = open {
        // The load is over: whether the server still reads this changes nothing that was counted.
        let _ = socket.try_write(&masked(CLOSE, &1000u16.to_be_bytes()));
    }
}

/// Sends one message and takes its echo; gives back the socket if it is still open.
async fn message(client: &Client, open: Option<TcpStream>) -> Option<TcpStream> {
    let start = Instant::now();
    match client.bounded(echo(client, open)).await {
        Ok(Reply::Text(text, socket)) => {
            let outcome = generation(&text);
            let open = outcome.is_ok().then_some(socket);
            client.recorder.record(client.kind, start, outcome);
            open
        }
        Ok(Reply::GoingAway) => {
            client.reconnects();
            None
        }
        Err(failed) => {
            client.recorder.record(client.kind, start, Err(failed));
            None
        }
    }
}

enum Reply {
    Text(String, TcpStream),
    /// The server closed in the way that the protocol has for it.
    GoingAway,
}

async fn echo(client: &Client, open: Option<TcpStream>) -> Result<Reply, Failed> {
    let mut socket = match open {
        Some(socket) => socket,
        None => handshake(client.connect().await?).await?,
    };
    // A server that has gone away may refuse the message, but its close frame is still there to be read.
    let sent = socket.write_all(&masked(TEXT, MESSAGE)).await;
    let (opcode, payload) = match read_frame(&mut socket).await {
        Ok(frame) => frame,
        Err(error) => return Err(lost(sent.err().unwrap_or(error))),
    };
    match opcode {
        TEXT => Ok(Reply::Text(
            String::from_utf8_lossy(&payload).into_owned(),
            socket,
        )),
        CLOSE => closed(socket, &payload).await,
        _ => Err(protocol(format!("opcode {opcode:#x}"))),
    }
}

async fn closed(mut socket: TcpStream, payload: &[u8]) -> Result<Reply, Failed> {
    match payload {
        [high, low, ..] if GOING_AWAY.contains(&u16::from_be_bytes([*high, *low])) => {
            // Best effort by RFC 6455 section 7.1.4: the server may be gone after its own close frame.
            let _ = socket.write_all(&masked(CLOSE, &payload[..2])).await;
            Ok(Reply::GoingAway)
        }
        _ => Err(protocol(format!("closed with {payload:?}"))),
    }
}

fn generation(text: &str) -> Result<u64, Failed> {
    let number = text.split(' ').next().and_then(|first| first.parse().ok());
    match number {
        Some(generation) if text.as_bytes().ends_with(MESSAGE) => Ok(generation),
        _ => Err(protocol(format!("another echo: {text:?}"))),
    }
}

async fn handshake(mut socket: TcpStream) -> Result<TcpStream, Failed> {
    socket.write_all(UPGRADE).await.map_err(lost)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match socket.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) if head.is_empty() => return Err(unanswered(error)),
            Err(error) => return Err(lost(error)),
        }
        if head.len() > HEAD_MAX {
            return Err(protocol("a head without an end"));
        }
    }
    match head.starts_with(b"HTTP/1.1 101 ") {
        true => Ok(socket),
        false => Err(refused(&head)),
    }
}

fn refused(head: &[u8]) -> Failed {
    let line = String::from_utf8_lossy(head);
    let line = line.lines().next().unwrap_or_default();
    match line.starts_with("HTTP/1.1 5") {
        true => Failed::new(Failure::Status5xx, line),
        false => Failed::new(Failure::OtherStatus, line),
    }
}

async fn read_frame(socket: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    socket.read_exact(&mut head).await?;
    let mut payload = vec![0; usize::from(head[1] & 0x7f)];
    socket.read_exact(&mut payload).await?;
    Ok((head[0] & 0x0f, payload))
}

/// A final frame with a payload of less than 126 bytes. Its mask is zero, which RFC 6455 allows and readers can read.
fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode, 0x80 | payload.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    frame
}

fn unanswered(error: io::Error) -> Failed {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Failed::new(Failure::EofBeforeResponse, "end of file"),
        _ => Failed::new(Failure::Reset, error),
    }
}

fn lost(error: io::Error) -> Failed {
    let failure = match error.kind() {
        io::ErrorKind::UnexpectedEof => Failure::EofInsideResponse,
        _ => Failure::Reset,
    };
    Failed::new(failure, error)
}

fn protocol(what: impl ToString) -> Failed {
    Failed::new(Failure::Protocol, what)
}

const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
/// Normal closure, going away, service restart: RFC 6455 section 7.4.1 and its IANA registry.
const GOING_AWAY: [u16; 3] = [1000, 1001, 1012];
const MESSAGE: &[u8] = b"over and out";
const HEAD_MAX: usize = 16 * 1024;
const UPGRADE: &[u8] =
    b"GET /ws HTTP/1.1\r\nhost: load\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
