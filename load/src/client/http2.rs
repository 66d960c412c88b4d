//! HTTP/2 clients: rounds of concurrent requests over one connection.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::Client;
use super::http1::check;
use super::wire::{Watched, Wire};
use crate::kind::Failure;
use crate::recorder::Failed;
use crate::routes;

type Sender = SendRequest<Empty<Bytes>>;

struct Open {
    sender: Sender,
    wire: Arc<Wire>,
    /// Requests on this connection that met some end of their own.
    ended: u64,
}

pub(super) async fn run(mut client: Client) {
    let mut open = None;
    while client.turn().await {
        open = round(&client, open).await;
    }
}

/// One round of requests; gives back the connection if it takes more of them.
async fn round(client: &Client, open: Option<Open>) -> Option<Open> {
    let mut open = match open {
        Some(open) => open,
        None => connected(client).await?,
    };
    let requests =
        (0..client.mix.http2_streams).map(|index| request(client, open.sender.clone(), index));
    let sent = join_all(requests).await;
    let all_ended = sent.iter().all(|sent| matches!(sent, Sent::Yes));
    open.ended += sent.iter().filter(|sent| matches!(sent, Sent::Yes)).count() as u64;
    let is_excused = open.wire.has_acknowledged() && open.ended >= open.wire.owed();
    for sent in sent {
        if let Sent::Rejected(start, failed) = sent
            && !is_excused
        {
            client.recorder.record(client.kind, start, Err(failed));
        }
    }
    if !all_ended || open.sender.is_closed() {
        client.reconnects();
        return None;
    }
    Some(open)
}

enum Sent {
    Yes,
    /// The connection had ended, or a GOAWAY had come, before anything of the request was handed to it.
    No,
    /// Rejected by a GOAWAY. Whether it was this client's fault shows when the others of its round have ended.
    Rejected(Instant, Failed),
}

async fn connected(client: &Client) -> Option<Open> {
    let start = Instant::now();
    match client.bounded(connect(client)).await {
        Ok(open) => Some(open),
        Err(failed) => {
            client.recorder.record(client.kind, start, Err(failed));
            None
        }
    }
}

async fn connect(client: &Client) -> Result<Open, Failed> {
    let (stream, wire) = Watched::new(client.connect().await?);
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(lost)?;
    // Its end shows in each request that it takes along.
    tokio::spawn(connection);
    Ok(Open {
        sender,
        wire,
        ended: 0,
    })
}

async fn request(client: &Client, mut sender: Sender, index: usize) -> Sent {
    let start = Instant::now();
    let (path, end) = path(index);
    let outcome = client.bounded(exchange(&mut sender, path, end)).await;
    let outcome = match outcome {
        Ok(End::Unsent) => return Sent::No,
        Ok(End::Rejected(failed)) => return Sent::Rejected(start, failed),
        Ok(End::Answered(generation)) => Ok(generation),
        Err(failed) => Err(failed),
    };
    client.recorder.record(client.kind, start, outcome);
    Sent::Yes
}

/// One request of each round is still in flight when the others are answered, so that a GOAWAY finds some.
fn path(index: usize) -> (&'static str, &'static str) {
    match index {
        0 => ("/slow?ms=100", "slow\n"),
        _ => ("/", routes::HELLO),
    }
}

enum End {
    Answered(u64),
    /// hyper gave it back.
    Unsent,
    Rejected(Failed),
}

async fn exchange(sender: &mut Sender, path: &str, end: &str) -> Result<End, Failed> {
    let request = Request::get(format!("http://load{path}"))
        .body(Empty::new())
        .map_err(|error| Failed::new(Failure::Local, error))?;
    if sender.ready().await.is_err() {
        return Ok(End::Unsent);
    }
    let response = match sender.try_send_request(request).await {
        Ok(response) => response,
        Err(error) if error.message().is_some() => return Ok(End::Unsent),
        Err(error) => return ended(error.into_error()),
    };
    let status = response.status().as_u16();
    let generation = response.headers().get(routes::GENERATION);
    let generation = generation.and_then(|value| value.to_str().ok()?.parse().ok());
    let body = response.into_body().collect().await.map_err(lost)?;
    check(status, generation, &body.to_bytes(), end).map(End::Answered)
}

/// How a request ended that got no answer.
fn ended(error: hyper::Error) -> Result<End, Failed> {
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    let is_rejection = cause.is_some_and(|cause: &h2::Error| {
        cause.is_go_away() && cause.is_remote() && cause.reason() == Some(h2::Reason::NO_ERROR)
    });
    match is_rejection {
        true => Ok(End::Rejected(lost(error))),
        false => Err(lost(error)),
    }
}

fn lost(error: hyper::Error) -> Failed {
    Failed::new(Failure::H2, format!("{error:?}"))
}
