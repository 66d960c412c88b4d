//! A web server that can be upgraded in place: the whole of what it takes.
//!
//! ```sh
//! cargo run --example axum_app
//! curl http://127.0.0.1:8080      # hello from process 4711
//! kill -HUP 4711                  # upgrade; rebuild before it and the new build takes over
//! curl http://127.0.0.1:8080      # hello from process 4712, which the next signal is for
//! kill -TERM 4712                 # stop, without losing a connection
//! ```
//!
//! For ten seconds after an upgrade the incumbent is warm, and takes over again if the successor dies.

use axum::{Router, routing::get};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8080".into());
    let mut starting = handover::start().await?; // fresh, or the successor of a running generation
    let web = starting.listen_tcp("web", address).await?; // inherited by name, or bound
    println!("listening on {}", web.local_addr());
    let hello = format!("hello from process {}\n", std::process::id());
    let app = Router::new().route("/", get(|| async { hello }));
    let generation = starting.ready().await?; // warmed up: the incumbent may hand over
    handover::http::serve(&generation, web, app).await?; // returns once this generation has drained
    Ok(())
}
