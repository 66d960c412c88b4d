//! HTTP/1 clients that write their own bytes, so that nothing retries, pools or looks at a connection unasked.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time;

use super::Client;
use crate::kind::{Failure, Kind};
use crate::recorder::{Failed, Outcome};
use crate::routes;

pub(super) async fn run(mut client: Client) {
    let mut idle = None;
    while client.turn().await {
        client.attempt(request(&client, &mut idle)).await;
    }
}

async fn request(client: &Client, idle: &mut Option<Connection>) -> Outcome {
    match client.kind {
        Kind::KeepAlive => keep_alive(client, idle).await,
        Kind::Upload => upload(client).await,
        Kind::Slow => {
            let path = format!("/slow?ms={}", client.mix.slow_for.as_millis());
            once(client, &path, "slow\n").await
        }
        Kind::Stream => {
            let ms = client.mix.stream_for.as_millis();
            let path = format!("/stream?ms={ms}&n={STREAM_CHUNKS}");
            once(client, &path, &routes::stream_end(STREAM_CHUNKS)).await
        }
        _ => once(client, "/", routes::HELLO).await,
    }
}

/// One request on a connection of its own.
async fn once(client: &Client, path: &str, end: &str) -> Outcome {
    let mut connection = Connection::open(client).await?;
    connection.send(&get(path, "close")).await?;
    connection.receive().await?.checked(end)
}

async fn keep_alive(client: &Client, idle: &mut Option<Connection>) -> Outcome {
    let mut connection = match usable(client, idle.take()) {
        Some(connection) => connection,
        None => Connection::open(client).await?,
    };
    connection.send(&get("/", "keep-alive")).await?;
    let answer = connection.receive().await?;
    if answer.closes {
        client.reconnects();
    } else {
        connection.is_reused = true;
        *idle = Some(connection);
    }
    answer.checked(routes::HELLO)
}

/// The idle connection, unless the client looks at it and finds that the server ended it.
fn usable(client: &Client, idle: Option<Connection>) -> Option<Connection> {
    let connection = idle?;
    if client.mix.notices_idle_close && connection.has_ended() {
        client.reconnects();
        return None;
    }
    Some(connection)
}

async fn upload(client: &Client) -> Outcome {
    let mut connection = Connection::open(client).await?;
    let length = UPLOAD_PIECES as usize * UPLOAD_PIECE.len();
    let head = format!(
        "POST /upload HTTP/1.1\r\nhost: load\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    connection.send(head.as_bytes()).await?;
    send_pieces(&mut connection, client.mix.upload_for / UPLOAD_PIECES).await?;
    connection
        .receive()
        .await?
        .checked(&routes::upload_end(length))
}

async fn send_pieces(connection: &mut Connection, pause: Duration) -> Result<(), Failed> {
    for _ in 0..UPLOAD_PIECES {
        time::sleep(pause).await;
        connection.send(&UPLOAD_PIECE).await?;
    }
    Ok(())
}

fn get(path: &str, connection: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: load\r\nconnection: {connection}\r\n\r\n").into_bytes()
}

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    /// Whether a request was answered on it before.
    is_reused: bool,
}

struct Answer {
    head: Head,
    body: Vec<u8>,
    closes: bool,
}

#[derive(Clone, Copy)]
struct Head {
    length: usize,
    status: u16,
    generation: Option<u64>,
    framing: Framing,
    closes: bool,
}

#[derive(Clone, Copy)]
enum Framing {
    Length(usize),
    Chunked,
}

impl Connection {
    async fn open(client: &Client) -> Result<Self, Failed> {
        Ok(Self {
            stream: client.connect().await?,
            received: Vec::new(),
            is_reused: false,
        })
    }

    fn has_ended(&self) -> bool {
        match self.stream.try_read(&mut [0]) {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        let sent = self.stream.write_all(bytes).await;
        sent.map_err(|error| self.lost(Some(error)))
    }

    async fn receive(&mut self) -> Result<Answer, Failed> {
        let head = loop {
            match parse_head(&self.received)? {
                Some(head) => break head,
                None => self.fill().await?,
            }
        };
        self.received.drain(..head.length);
        let body = match head.framing {
            Framing::Length(length) => self.take(length).await?,
            Framing::Chunked => self.chunks().await?,
        };
        if !self.received.is_empty() {
            return Err(protocol("bytes after the answer"));
        }
        Ok(Answer {
            head,
            body,
            closes: head.closes,
        })
    }

    async fn chunks(&mut self) -> Result<Vec<u8>, Failed> {
        let mut body = Vec::new();
        loop {
            let size = self.chunk_size().await?;
            let chunk = self.take(size).await?;
            if self.take(2).await? != b"\r\n" {
                return Err(protocol("no line end after a chunk"));
            }
            if size == 0 {
                return Ok(body);
            }
            body.extend(chunk);
            within_limit(body.len())?;
        }
    }

    async fn chunk_size(&mut self) -> Result<usize, Failed> {
        loop {
            match httparse::parse_chunk_size(&self.received) {
                Ok(httparse::Status::Complete((length, size))) => {
                    self.received.drain(..length);
                    return Ok(usize::try_from(size).unwrap_or(usize::MAX));
                }
                Ok(httparse::Status::Partial) => self.fill_body().await?,
                Err(_) => return Err(protocol("not a chunk size")),
            }
        }
    }

    async fn take(&mut self, length: usize) -> Result<Vec<u8>, Failed> {
        within_limit(length)?;
        while self.received.len() < length {
            self.fill_body().await?;
        }
        Ok(self.received.drain(..length).collect())
    }

    /// Reads more of an answer whose head is complete.
    async fn fill_body(&mut self) -> Result<(), Failed> {
        match self.stream.read_buf(&mut self.received).await {
            Ok(0) => Err(inside_response()),
            Ok(_) => Ok(()),
            Err(error) => Err(Failed::new(Failure::Reset, format!("in a body: {error}"))),
        }
    }

    /// Reads more of a head.
    async fn fill(&mut self) -> Result<(), Failed> {
        within_limit(self.received.len())?;
        match self.stream.read_buf(&mut self.received).await {
            Ok(0) => Err(self.lost(None)),
            Ok(_) => Ok(()),
            Err(error) => Err(self.lost(Some(error))),
        }
    }

    /// What it means that the connection ended (by an error, if there is one) before the head of an answer was complete.
    fn lost(&self, error: Option<io::Error>) -> Failed {
        let failure = match (self.received.is_empty(), self.is_reused, &error) {
            (true, true, _) => Failure::IdleRace,
            (_, _, Some(_)) => Failure::Reset,
            (true, false, None) => Failure::EofBeforeResponse,
            (false, _, None) => Failure::EofInsideResponse,
        };
        let end = error.map_or_else(|| "end of file".to_owned(), |error| error.to_string());
        Failed::new(failure, end)
    }
}

impl Answer {
    /// The generation that answered, if this is what was asked for.
    fn checked(self, end: &str) -> Outcome {
        check(self.head.status, self.head.generation, &self.body, end)
    }
}

/// The generation that answered, if the answer is a 200 whose header and body agree and whose body is whole.
pub(super) fn check(status: u16, generation: Option<u64>, body: &[u8], end: &str) -> Outcome {
    match status {
        200 => {}
        500..=599 => return Err(Failed::new(Failure::Status5xx, format!("status {status}"))),
        _ => {
            return Err(Failed::new(
                Failure::OtherStatus,
                format!("status {status}"),
            ));
        }
    }
    let generation = generation.ok_or_else(|| protocol("no generation in the head"))?;
    let begin = format!("{generation} ");
    if body.starts_with(begin.as_bytes()) && body.ends_with(end.as_bytes()) {
        Ok(generation)
    } else {
        let begin = String::from_utf8_lossy(&body[..body.len().min(40)]);
        Err(protocol(format!(
            "generation {generation} sent another body: {begin:?}"
        )))
    }
}

fn parse_head(bytes: &[u8]) -> Result<Option<Head>, Failed> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(bytes).map_err(protocol)? {
        httparse::Status::Partial => Ok(None),
        httparse::Status::Complete(length) => Ok(Some(Head {
            length,
            status: response.code.unwrap_or(0),
            generation: field(&response, routes::GENERATION).and_then(|text| text.parse().ok()),
            framing: framing(&response)?,
            closes: closes(&response),
        })),
    }
}

/// Bodies that end with the connection are not taken: their end cannot be told from a cut.
fn framing(response: &httparse::Response<'_, '_>) -> Result<Framing, Failed> {
    if let Some(coding) = field(response, "transfer-encoding") {
        return match coding.eq_ignore_ascii_case("chunked") {
            true => Ok(Framing::Chunked),
            false => Err(protocol(format!("transfer-encoding: {coding}"))),
        };
    }
    let length = field(response, "content-length").and_then(|text| text.parse().ok());
    length
        .map(Framing::Length)
        .ok_or_else(|| protocol("a body without a length"))
}

fn closes(response: &httparse::Response<'_, '_>) -> bool {
    match field(response, "connection") {
        Some(value) => value.eq_ignore_ascii_case("close"),
        None => response.version == Some(0),
    }
}

fn field<'b>(response: &httparse::Response<'_, 'b>, name: &str) -> Option<&'b str> {
    let mut headers = response.headers.iter();
    let found = headers.find(|header| header.name.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(found.value).ok()
}

fn within_limit(length: usize) -> Result<(), Failed> {
    if length > ANSWER_MAX {
        return Err(protocol(format!("more than {ANSWER_MAX} bytes")));
    }
    Ok(())
}

fn protocol(what: impl ToString) -> Failed {
    Failed::new(Failure::Protocol, what)
}

fn inside_response() -> Failed {
    Failed::new(Failure::EofInsideResponse, "end of file in a body")
}

const ANSWER_MAX: usize = 1 << 20;
const STREAM_CHUNKS: usize = 20;
const UPLOAD_PIECES: u32 = 10;
const UPLOAD_PIECE: [u8; 4096] = [b'u'; 4096];
