//! The same listener under plain `axum::serve`, for those who want axum's own server.
//!
//! What is lost against `handover::http::serve`: axum closes idle connections at once, under a request that may be on
//! its way, and waits for long-lived ones without a deadline.
//!
//! ```sh
//! cargo run --example axum_serve --features axum
//! curl http://127.0.0.1:8080      # hello from process 4711, generation 1
//! kill -HUP 4711                  # upgrade
//! curl http://127.0.0.1:8080      # hello from process 4712, generation 2
//! kill -TERM 4712                 # stop
//! ```

use std::time::Duration;

use axum::{Router, routing::get};

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
    let hello = format!("hello from process {pid}, generation {number}\n");
    let app = Router::new().route("/", get(|| async { hello }));
    axum::serve(web, app)
        .with_graceful_shutdown(generation.draining())
        .await?;
    Ok(())
}
