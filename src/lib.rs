//! Hands listening sockets from one process generation to the next.

pub mod config;
pub mod error;
pub mod event;

mod listen;
mod protocol;

pub use crate::error::{Error, ErrorKind, Result};
pub use crate::event::{Event, Phase};
pub use crate::listen::{ListenOptions, TcpListener, UdpSocket, UnixListener};
