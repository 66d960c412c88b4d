//! Hands listening sockets from one process generation to the next.

pub mod config;
pub mod error;
pub mod event;

mod channel;
mod protocol;
mod sys;

pub use crate::error::{Error, ErrorKind, Result};
pub use crate::event::{Event, Phase};
