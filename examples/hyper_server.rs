//! An accept loop of your own with hyper: the layer counts requests and moves HTTP/1 clients over, and hyper's graceful
//! shutdown ends the connections. HTTP/1 and HTTP/2 are told apart by hyper-util.
//!
//! `handover::http::serve` is gentler: hyper closes idle HTTP/1 connections at once, and an HTTP/2 client may have to
//! repeat a request that crossed a GOAWAY.
//!
//! ```sh
//! cargo run --example hyper_server
//! curl http://127.0.0.1:8080                          # hello from process 4711, generation 1
//! kill -HUP 4711                                      # upgrade
//! curl --http2-prior-knowledge http://127.0.0.1:8080  # hello from process 4712, generation 2
//! kill -TERM 4712                                     # stop
//! ```

use std::convert::Infallible;
use std::time::Duration;

use handover::http::DrainLayer;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::{conn::auto, graceful::GracefulShutdown};
use hyper_util::service::TowerToHyperService;
use tower::{Layer, service_fn};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8080".into());
    // The default is ten seconds; one is for trying this out.
    let bake = Duration::from_secs(1);
    let mut starting = handover::builder().bake(bake).start().await?;
    let web = starting.listen_tcp("web", address).await?;
    println!("listening on {}", web.local_addr());
    let generation = starting.ready().await?;

    let (pid, number) = (std::process::id(), generation.number());
    let hello = service_fn(move |_: Request<Incoming>| async move {
        let text = format!("hello from process {pid}, generation {number}\n");
        Ok::<_, Infallible>(Response::new(text))
    });
    let service = TowerToHyperService::new(DrainLayer::new(generation.drain()).layer(hello));
    let connections = GracefulShutdown::new();
    let signal = generation.drain().signal();
    loop {
        let (stream, _) = tokio::select! {
            accepted = web.accept() => accepted?,
            () = signal.draining() => break,
        };
        let http = auto::Builder::new(TokioExecutor::new());
        let connection = http.serve_connection(TokioIo::new(stream), service.clone());
        tokio::spawn(connections.watch(connection.into_owned()));
    }
    tokio::select! {
        () = connections.shutdown() => {}
        () = signal.cut() => {} // the drain deadline, or a second SIGTERM
    }
    Ok(())
}
