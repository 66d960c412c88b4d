//! Plain `axum::serve` over our listeners.
//!
//! What it drains is axum's own: pass it [`Serving::draining`](crate::Serving::draining) as its graceful shutdown. It
//! closes idle connections at once, under a request that may be on its way; [`serve`](super::serve) does not.

use std::io;
use std::net::SocketAddr;

use axum::serve::Listener;
use tokio::time::sleep;

use crate::config::ACCEPT_PAUSE;
use crate::listen::{TcpListener, UnixListener};

impl Listener for TcpListener {
    type Io = tokio::net::TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match Self::accept(self).await {
                Ok(accepted) => return accepted,
                Err(error) => pause(&error).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(Self::local_addr(self))
    }
}

impl Listener for UnixListener {
    type Io = tokio::net::UnixStream;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match Self::accept(self).await {
                Ok((stream, peer)) => return (stream, peer),
                Err(error) => pause(&error).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(Self::local_addr(self).clone().into())
    }
}

/// The connection is still in the queue; descriptors or memory come back when another one ends.
async fn pause(error: &io::Error) {
    tracing::warn!(%error, "accepting fails; trying again");
    sleep(ACCEPT_PAUSE).await;
}
