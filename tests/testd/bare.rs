//! The same server without the crate: what the bench and the tests compare with.

use axum::serve::Listener;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};

use super::{Outcome, setting};

pub(crate) async fn serve() -> Outcome {
    let address = setting("TESTD_LISTEN").unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let web = TcpListener::bind(address).await?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            println!("hangup");
        }
    });
    println!("listening web {}", web.local_addr()?);
    let unix = setting("TESTD_UNIX").map(UnixListener::bind).transpose()?;
    println!("ready 1 pid {}", std::process::id());
    match unix {
        Some(unix) => serve_until_term(unix).await,
        None => serve_until_term(web).await,
    }
}

async fn serve_until_term(listener: impl Listener<Addr: std::fmt::Debug>) -> Outcome {
    let mut terminate = signal(SignalKind::terminate())?;
    axum::serve(listener, handover_load::routes::app(1))
        .with_graceful_shutdown(async move {
            terminate.recv().await;
        })
        .await?;
    Ok(())
}
