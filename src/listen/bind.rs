//! Binding TCP and UDP sockets, and applying options to bound ones.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use socket2::{Domain, SockRef, Socket, Type};

use super::options::ListenOptions;
use crate::protocol::message::SlotKind;

/// A new TCP listener.
pub(super) fn tcp(address: SocketAddr, options: &ListenOptions) -> io::Result<OwnedFd> {
    let socket = bindable(address, Type::STREAM, options)?;
    socket.set_reuse_address(options.reuse_address)?;
    socket.bind(&address.into())?;
    socket.set_tcp_nodelay(options.nodelay)?;
    socket.listen(options.backlog_for_kernel())?;
    Ok(socket.into())
}

/// A new UDP socket.
pub(super) fn udp(address: SocketAddr, options: &ListenOptions) -> io::Result<OwnedFd> {
    let socket = bindable(address, Type::DGRAM, options)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Applies to an inherited socket what can change once it is bound, and refuses what cannot.
pub(super) fn apply(socket: &OwnedFd, kind: SlotKind, options: &ListenOptions) -> io::Result<()> {
    let sock = SockRef::from(socket);
    if sock.domain()? == Domain::IPV6 {
        refuse_other_v6(&sock, options)?;
    }
    if kind == SlotKind::Tcp {
        sock.set_reuse_address(options.reuse_address)?;
        sock.set_tcp_nodelay(options.nodelay)?;
    }
    if kind != SlotKind::Udp {
        // Listening again changes the backlog and nothing else (listen(2)).
        sock.listen(options.backlog_for_kernel())?;
    }
    Ok(())
}

fn bindable(address: SocketAddr, r#type: Type, options: &ListenOptions) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), r#type.nonblocking(), None)?;
    if let (true, Some(only)) = (address.is_ipv6(), options.only_v6) {
        socket.set_only_v6(only)?;
    }
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    Ok(socket)
}

fn refuse_other_v6(sock: &SockRef<'_>, options: &ListenOptions) -> io::Result<()> {
    let bound = sock.only_v6()?;
    match options.only_v6 {
        Some(wanted) if wanted != bound => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the inherited socket was bound with IPV6_V6ONLY {bound}, which cannot change"),
        )),
        _ => Ok(()),
    }
}
