//! Where a socket is bound, and where somebody wants one.

use std::fmt;
use std::io;
use std::net;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net as unix;
use std::path::Path;

use socket2::{Domain, SockRef, Type};

use crate::protocol::message::SlotKind;

/// Where a socket is bound.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    Inet(net::SocketAddr),
    Unix(unix::SocketAddr),
}

impl Address {
    /// Reads a socket's own address, after checking that it is of the kind it is said to be.
    pub(crate) fn of(socket: &OwnedFd, kind: SlotKind) -> io::Result<Self> {
        let sock = SockRef::from(socket);
        let inet = matches!(sock.domain()?, Domain::IPV4 | Domain::IPV6);
        let fits = match kind {
            SlotKind::Tcp => inet && sock.r#type()? == Type::STREAM && sock.is_listener()?,
            SlotKind::Udp => inet && sock.r#type()? == Type::DGRAM,
            SlotKind::Unix => {
                sock.domain()? == Domain::UNIX
                    && sock.r#type()? == Type::STREAM
                    && sock.is_listener()?
            }
            SlotKind::Blob | SlotKind::Descriptor | SlotKind::Unknown => false,
        };
        if !fits {
            return Err(unlike(kind));
        }
        match sock.local_addr()?.as_socket() {
            Some(address) => Ok(Self::Inet(address)),
            None => unix::UnixListener::from(socket.try_clone()?)
                .local_addr()
                .map(Self::Unix),
        }
    }

    /// Whether a claim of `wanted` means the socket that is bound here. Port 0 means any port.
    pub(super) fn answers(&self, wanted: &Self) -> bool {
        match (self, wanted) {
            (Self::Inet(bound), Self::Inet(wanted)) => {
                bound.ip() == wanted.ip()
                    && (wanted.port() == 0 || wanted.port() == bound.port())
                    && (scope(wanted) == 0 || scope(wanted) == scope(bound))
            }
            (Self::Unix(bound), Self::Unix(wanted)) => same_name(bound, wanted),
            _ => false,
        }
    }

    /// Whether this is the very address that is wanted, with nothing left open.
    pub(crate) fn is(&self, wanted: &Self) -> bool {
        let open = matches!(wanted, Self::Inet(wanted) if wanted.port() == 0);
        !open && self.answers(wanted)
    }

    /// The path of a Unix socket that has one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Inet(_) => None,
            Self::Unix(address) => address.as_pathname(),
        }
    }

    /// Whether both cannot be listened on at once: the same address, or one is a wildcard for the other.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Inet(one), Self::Inet(two)) => {
                one.port() != 0 && one.port() == two.port() && ips_overlap(one, two)
            }
            (Self::Unix(one), Self::Unix(two)) => same_name(one, two),
            _ => false,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix(address) => match (address.as_pathname(), address.as_abstract_name()) {
                (Some(path), _) => path.display().fmt(f),
                (_, Some(name)) => write!(f, "@{}", name.escape_ascii()),
                _ => f.write_str("(unnamed)"),
            },
        }
    }
}

fn unlike(kind: SlotKind) -> io::Error {
    let is_not = match kind {
        SlotKind::Tcp => "not a listening TCP socket",
        SlotKind::Unix => "not a listening Unix stream socket",
        SlotKind::Udp => "not a UDP socket",
        SlotKind::Blob | SlotKind::Descriptor | SlotKind::Unknown => "not a socket",
    };
    io::Error::new(io::ErrorKind::InvalidInput, is_not)
}

fn same_name(one: &unix::SocketAddr, two: &unix::SocketAddr) -> bool {
    one.as_pathname() == two.as_pathname() && one.as_abstract_name() == two.as_abstract_name()
}

fn ips_overlap(one: &net::SocketAddr, two: &net::SocketAddr) -> bool {
    let wildcard = one.ip().is_unspecified() || two.ip().is_unspecified();
    one.ip() == two.ip() || (wildcard && one.is_ipv4() == two.is_ipv4())
}

fn scope(address: &net::SocketAddr) -> u32 {
    match address {
        net::SocketAddr::V4(_) => 0,
        net::SocketAddr::V6(address) => address.scope_id(),
    }
}
