//! Hands listening sockets from one process generation to the next.

pub mod config;
pub mod error;
pub mod event;

pub mod drain;

#[cfg(feature = "http")]
pub mod http;
mod protocol;

pub use crate::error::{Error, ErrorKind, Result};
pub use crate::event::{Event, Phase};
