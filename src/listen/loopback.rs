//! A TCP connection of this process with itself.

use std::io;
use std::net::Ipv4Addr;

use tokio::net::{TcpListener, TcpStream};

/// Two ends of one connection. Others of this machine may connect meanwhile, and are left out.
pub(crate) async fn loopback_pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let near = TcpStream::connect(listener.local_addr()?).await?;
    let own = near.local_addr()?;
    let far = loop {
        match listener.accept().await? {
            (far, peer) if peer == own => break far,
            _ => {}
        }
    };
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}
