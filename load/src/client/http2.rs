//! HTTP/2 clients: rounds of concurrent requests over one connection.

use std::time::Instant;

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::Client;
use super::http1::check;
use crate::kind::Failure;
use crate::recorder::Failed;
use crate::routes;

type Sender = SendRequest<Empty<Bytes>>;

pub(super) async fn run(mut client: Client) {
    let mut open = None;
    while client.turn().await {
        open = round(&client, open).await;
    }
}

/// One round of requests; gives back the connection if it takes more of them.
async fn round(client: &Client, open: Option<Sender>) -> Option<Sender> {
    let sender = match open {
        Some(sender) => sender,
        None => connected(client).await?,
    };
    let requests =
        (0..client.mix.http2_streams).map(|index| request(client, sender.clone(), index));
    let all_sent = join_all(requests)
        .await
        .into_iter()
        .all(|sent| sent == Sent::Yes);
    if !all_sent || sender.is_closed() {
        client.reconnects();
        return None;
    }
    Some(sender)
}

#[derive(PartialEq)]
enum Sent {
    Yes,
    /// The connection had ended, or a GOAWAY had come, before anything of the request was handed to it.
    No,
}

async fn connected(client: &Client) -> Option<Sender> {
    let start = Instant::now();
    match client.bounded(connect(client)).await {
        Ok(sender) => Some(sender),
        Err(failed) => {
            client.recorder.record(client.kind, start, Err(failed));
            None
        }
    }
}

async fn connect(client: &Client) -> Result<Sender, Failed> {
    let stream = client.connect().await?;
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(lost)?;
    // Its end shows in each request that it takes along.
    tokio::spawn(connection);
    Ok(sender)
}

async fn request(client: &Client, mut sender: Sender, index: usize) -> Sent {
    let start = Instant::now();
    let (path, end) = path(index);
    let outcome = client.bounded(exchange(&mut sender, path, end)).await;
    match outcome.transpose() {
        Some(outcome) => {
            client.recorder.record(client.kind, start, outcome);
            Sent::Yes
        }
        None => Sent::No,
    }
}

/// One request of each round is still in flight when the others are answered, so that a GOAWAY finds some.
fn path(index: usize) -> (&'static str, &'static str) {
    match index {
        0 => ("/slow?ms=100", "slow\n"),
        _ => ("/", routes::HELLO),
    }
}

/// What became of a request, or nothing if hyper gave it back unsent.
async fn exchange(sender: &mut Sender, path: &str, end: &str) -> Result<Option<u64>, Failed> {
    let request = Request::get(format!("http://load{path}"))
        .body(Empty::new())
        .map_err(|error| Failed::new(Failure::Local, error))?;
    if sender.ready().await.is_err() {
        return Ok(None);
    }
    let response = match sender.try_send_request(request).await {
        Ok(response) => response,
        Err(error) if error.message().is_some() => return Ok(None),
        Err(error) => return Err(lost(error.into_error())),
    };
    let status = response.status().as_u16();
    let generation = response.headers().get(routes::GENERATION);
    let generation = generation.and_then(|value| value.to_str().ok()?.parse().ok());
    let body = response.into_body().collect().await.map_err(lost)?;
    check(status, generation, &body.to_bytes(), end).map(Some)
}

fn lost(error: hyper::Error) -> Failed {
    Failed::new(Failure::H2, format!("{error:?}"))
}
