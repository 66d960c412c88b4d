//! Hands listening sockets from one process generation to the next.

pub mod config;
pub mod error;
pub mod event;

mod channel;
mod launch;
mod pid_file;
mod protocol;
pub mod state;
mod sys;

pub use crate::error::{Error, ErrorKind, Result};
pub use crate::event::{Event, Phase};

/// Not for users: the fuzz target's way to the codec.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn fuzz_codec(body: &[u8]) {
    protocol::codec::examine(body);
}
