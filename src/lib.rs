//! Hands listening sockets from one process generation to the next.

#![warn(
    clippy::exit,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used
)]

pub mod config;
pub mod error;
pub mod event;

mod protocol;

pub mod drain;
mod sys;

mod channel;
mod listen;
mod pid_file;
pub mod state;

mod launch;

mod trigger;

mod driver;

mod generation;

#[cfg(feature = "http")]
pub mod http;

pub use crate::driver::shared::{Elder, Status, Upgraded};
pub use crate::error::{Error, ErrorKind, Result};
pub use crate::event::{Event, Phase};
pub use crate::generation::{Builder, Events, Serving, Starting, builder, start};
pub use crate::listen::{ListenOptions, TcpListener, UdpSocket, UnixListener};

/// Not for users: the fuzz target's way to the codec.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn fuzz_codec(body: &[u8]) {
    protocol::codec::examine(body);
}
