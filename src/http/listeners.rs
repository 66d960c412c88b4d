//! This crate's listeners as sources of connections.

use std::io;

use tokio::net::{TcpStream, UnixStream};

use super::accept::{Accept, Incoming};
use crate::listen::{Accepted, TcpListener, UnixListener};

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<Incoming<TcpStream>> {
        let Accepted {
            stream,
            peer,
            already_read,
        } = self.accept_with_bytes().await?;
        Ok(Incoming {
            stream,
            peer: peer.to_string(),
            already_read: already_read.into(),
        })
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept(&mut self) -> io::Result<Incoming<UnixStream>> {
        let (stream, _) = Self::accept(self).await?;
        let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let peer = peer.map_or_else(|| "unix".to_owned(), |pid| format!("unix pid {pid}"));
        Ok(Incoming {
            stream,
            peer,
            already_read: Default::default(),
        })
    }
}
