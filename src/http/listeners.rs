//! This crate's listeners as sources of connections.

use std::io;

use bytes::Bytes;
use tokio::net::{TcpStream, UnixStream};

use super::accept::{Accept, Incoming};
use crate::listen::{TcpListener, UnixListener};

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<Incoming<TcpStream>> {
        let (stream, peer) = Self::accept(self).await?;
        Ok(incoming(stream, peer.to_string()))
    }

    fn name(&self) -> Option<&str> {
        Some(Self::name(self))
    }

    /// Nobody who connects to the listener's port can have such a connection: its ports are both the kernel's choice.
    fn is_carrier(&self, stream: &TcpStream) -> bool {
        let Ok(local) = stream.local_addr() else {
            return false;
        };
        let is_from_here = stream.peer_addr().is_ok_and(|peer| peer.ip().is_loopback());
        is_from_here && local.ip().is_loopback() && local.port() != Self::local_addr(self).port()
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept(&mut self) -> io::Result<Incoming<UnixStream>> {
        let (stream, _) = Self::accept(self).await?;
        let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let peer = peer.map_or_else(|| "unix".to_owned(), |pid| format!("unix pid {pid}"));
        Ok(incoming(stream, peer))
    }
}

/// The kernel's queue has what nobody has read from.
fn incoming<S>(stream: S, peer: String) -> Incoming<S> {
    Incoming {
        stream,
        peer,
        already_read: Bytes::new(),
    }
}
