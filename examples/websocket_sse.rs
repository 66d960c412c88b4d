//! Connections that last: a WebSocket that says goodbye, and an event stream that ends itself, when their generation
//! drains. Their clients connect again, and find the successor.
//!
//! ```sh
//! cargo run --example websocket_sse
//! curl -N -H 'accept: text/event-stream' http://127.0.0.1:8080/events
//! kill -HUP $(pgrep -n websocket_sse)     # upgrade: a second later the stream ends; the next is of generation 2
//! websocat ws://127.0.0.1:8080/ws         # type a line: it comes back behind the generation's number
//! kill -TERM $(pgrep -n websocket_sse)    # stop: the WebSocket is closed with code 1001
//! ```

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::sse::{Event, Sse};
use axum::{Extension, Router, extract::State, response::Response, routing::get};
use futures_util::{Stream, StreamExt, stream};
use handover::drain::Signal;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8080".into());
    // The default is ten seconds; one is for trying this out.
    let bake = Duration::from_secs(1);
    let mut starting = handover::builder().bake(bake).start().await?;
    let web = starting.listen_tcp("web", address).await?;
    println!("listening on {}", web.local_addr());
    let generation = starting.ready().await?;

    let routes = Router::new().route("/ws", get(upgrade));
    let app = routes.route("/events", get(events));
    let app = app.with_state(generation.number());
    handover::http::serve(&generation, web, app).await?;
    Ok(())
}

/// A request for an upgrade or an event stream carries the signal of its class.
async fn upgrade(
    upgrade: WebSocketUpgrade,
    State(number): State<u64>,
    Extension(signal): Extension<Signal>,
) -> Response {
    upgrade.on_upgrade(move |socket| echo(socket, number, signal))
}

async fn echo(mut socket: WebSocket, number: u64, signal: Signal) {
    loop {
        let answer = tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(Message::Text(text))) => Message::text(format!("{number} {text}")),
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => return,
            },
            () = signal.draining() => break,
        };
        if socket.send(answer).await.is_err() {
            return;
        }
    }
    let (code, reason) = (close_code::AWAY, "connect again".into());
    if socket
        .send(Message::Close(Some(CloseFrame { code, reason })))
        .await
        .is_ok()
    {
        // The closing handshake ends with the client's own close frame.
        while let Some(Ok(_)) = socket.recv().await {}
    }
}

async fn events(
    State(number): State<u64>,
    Extension(signal): Extension<Signal>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let ticks = stream::iter(1..).then(move |tick: u64| async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(Event::default().data(format!("tick {tick} of generation {number}")))
    });
    Sse::new(ticks.take_until(async move { signal.draining().await }))
}
