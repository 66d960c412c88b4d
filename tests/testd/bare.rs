//! The same server without the crate: what the bench compares a handover with.

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::{Outcome, setting};

pub(crate) async fn serve() -> Outcome {
    let address = setting("TESTD_LISTEN").unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let web = TcpListener::bind(address).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            println!("hangup");
        }
    });
    println!("listening web {}", web.local_addr()?);
    println!("ready 1 pid {}", std::process::id());
    axum::serve(web, handover_load::routes::app(1))
        .with_graceful_shutdown(async move {
            terminate.recv().await;
        })
        .await?;
    Ok(())
}
