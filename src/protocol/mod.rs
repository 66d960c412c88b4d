//! Both ends of a handover as machines without I/O, and the words they exchange.
//!
//! Nothing in here knows sockets, clocks or processes: time is an argument, descriptors are slot numbers.

pub(crate) mod codec;
pub(crate) mod deadlines;
pub(crate) mod incumbent;
pub(crate) mod message;
#[cfg(test)]
mod model;
pub(crate) mod successor;
