//! The same server without handover: what the benches compare with.
//!
//! `plain [ADDRESS]` binds, says `listening web ADDRESS`, and serves until SIGTERM.

use std::io::{self, Write};

use handover_load::routes;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> io::Result<()> {
    let address = std::env::args().nth(1);
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:0")).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    writeln!(io::stdout(), "listening web {}", listener.local_addr()?)?;
    axum::serve(listener, routes::app(1))
        .with_graceful_shutdown(async move {
            terminate.recv().await;
        })
        .await
}
