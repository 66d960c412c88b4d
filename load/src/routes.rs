//! What every server under test answers. Each answer names the generation that gave it, in its head and in its body.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::map_response_with_state;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use serde::Deserialize;
use tokio::time;

/// The header that names the generation.
pub const GENERATION: &str = "x-generation";

/// The routes of a server whose WebSockets live until their clients end them.
///
/// | route | answer, after the generation's number and a space |
/// |---|---|
/// | `GET /` | `hello` |
/// | `GET /slow?ms=` | `slow`, that much later |
/// | `POST /upload` | `upload LENGTH`, once the body has come to its end |
/// | `GET /stream?ms=&n=` | `n` chunks over that time, each a line |
/// | `GET /sse?ms=&n=` | the same as server-sent events |
/// | `GET /ws` | each message, echoed |
/// | `GET /pid` | the process id |
/// | `GET /exit?code=` | none: the process exits |
/// | `GET /abort` | none: the process aborts |
/// | `GET /hang` | none, for ever |
pub fn app(generation: u64) -> Router {
    app_with(generation, pending::<()>)
}

/// The same routes; when the future that `draining` makes is done, WebSockets close with code 1001 (going away).
pub fn app_with<F>(generation: u64, draining: impl Fn() -> F + Send + Sync + 'static) -> Router
where
    F: Future<Output = ()> + Send + 'static,
{
    let draining = std::sync::Arc::new(move || draining().boxed());
    Router::new()
        .route("/", get(hello))
        .route("/slow", get(slow))
        .route("/upload", post(upload))
        .route("/stream", get(streamed))
        .route("/sse", get(events))
        .route("/pid", get(pid))
        .route("/exit", get(exit))
        .route("/abort", get(abort))
        .route("/hang", get(pending::<Response>))
        .route(
            "/ws",
            any(move |State(generation), upgrade: WebSocketUpgrade| {
                let draining = draining();
                async move { upgrade.on_upgrade(move |socket| echo(generation, socket, draining)) }
            }),
        )
        .layer(map_response_with_state(generation, name_generation))
        .with_state(generation)
}

pub(crate) const HELLO: &str = "hello\n";

pub(crate) fn upload_end(length: usize) -> String {
    format!("upload {length}\n")
}

pub(crate) fn stream_end(n: usize) -> String {
    format!("chunk {n}/{n}\n")
}

async fn name_generation(State(generation): State<u64>, mut response: Response) -> Response {
    let value = HeaderValue::from(generation);
    response.headers_mut().insert(GENERATION, value);
    response
}

async fn hello(State(generation): State<u64>) -> String {
    format!("{generation} {HELLO}")
}

#[derive(Deserialize)]
struct Slow {
    ms: u64,
}

async fn slow(State(generation): State<u64>, Query(slow): Query<Slow>) -> String {
    time::sleep(Duration::from_millis(slow.ms)).await;
    format!("{generation} slow\n")
}

async fn upload(State(generation): State<u64>, body: Body) -> Result<String, StatusCode> {
    let mut length = 0;
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        length += piece.map_err(|_| StatusCode::BAD_REQUEST)?.len();
    }
    Ok(format!("{generation} {}", upload_end(length)))
}

#[derive(Deserialize)]
struct Streamed {
    ms: u64,
    n: u32,
}

async fn streamed(State(generation): State<u64>, Query(streamed): Query<Streamed>) -> Response {
    let lines = lines(generation, streamed);
    Body::from_stream(lines.map(|line| Ok::<_, Infallible>(Bytes::from(line + "\n"))))
        .into_response()
}

async fn events(State(generation): State<u64>, Query(streamed): Query<Streamed>) -> Response {
    let lines = lines(generation, streamed);
    Sse::new(lines.map(|line| Ok::<_, Infallible>(Event::default().data(line)))).into_response()
}

fn lines(generation: u64, Streamed { ms, n }: Streamed) -> impl Stream<Item = String> {
    let pause = Duration::from_millis(ms) / n.max(1);
    stream::iter(1..=n).then(move |index| async move {
        time::sleep(pause).await;
        format!("{generation} chunk {index}/{n}")
    })
}

async fn echo(generation: u64, mut socket: WebSocket, mut draining: BoxFuture<'static, ()>) {
    loop {
        let message = tokio::select! {
            message = socket.recv() => message,
            () = &mut draining => return close(socket).await,
        };
        let Some(Ok(message)) = message else { return };
        if let Message::Text(text) = message {
            let reply = Message::text(format!("{generation} {text}"));
            if socket.send(reply).await.is_err() {
                return;
            }
        }
    }
}

/// Says goodbye and reads on to the client's own.
async fn close(mut socket: WebSocket) {
    let going_away = Message::Close(Some(CloseFrame {
        code: 1001,
        reason: "draining".into(),
    }));
    if socket.send(going_away).await.is_ok() {
        while let Some(Ok(_)) = socket.recv().await {}
    }
}

async fn pid(State(generation): State<u64>) -> String {
    format!("{generation} {}\n", std::process::id())
}

#[derive(Deserialize)]
struct Exit {
    code: i32,
}

#[expect(
    clippy::disallowed_methods,
    reason = "a server under test has to end as badly as it is told to"
)]
async fn exit(Query(exit): Query<Exit>) {
    std::process::exit(exit.code)
}

async fn abort() {
    std::process::abort()
}
