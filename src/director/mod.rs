//! A share of the connections that the stable generation accepts, served by the candidate.
//!
//! Stable accepts, picks, and passes the picked connections over a socket pair of their own. Who serves a connection is
//! settled by one event, its acknowledgement:
//!
//! 1. The candidate acknowledges a connection when its application accepts it, before anybody can read from it. Until then
//!    stable keeps its own descriptor.
//! 2. Stable takes back what is not acknowledged: when the candidate has died, once everything that it still said has been
//!    read; or by *revoking*, when it has stalled or is given up. For that stable says `revoked` and shuts its end down for
//!    reading, in this order. An acknowledgement either was sent before that and is read, or fails (unix(7), EPIPE), and a
//!    candidate that fails to acknowledge finds the `revoked` in its queue and lets go.
//! 3. A candidate that fails to acknowledge and finds no such word has outlived stable, or stable has *released* what was
//!    on its way: there is nobody else who has the connection, so the candidate serves it.
//!
//! So each connection has one server, whoever dies or stands still at whatever moment.
//!
//! Where the share is one of requests, stable's HTTP servers send the picked ones themselves, over connections of their own
//! that go the same way. Such a connection is not used before it is acknowledged, and is dropped rather than taken back.
//!
//! Nobody waits for the candidate: what it has no room for is served by stable, and counted.

mod adopter;
mod directing;
#[cfg_attr(
    not(feature = "http"),
    allow(dead_code, reason = "only HTTP has requests")
)]
mod requests;
#[cfg(test)]
mod tests;
mod word;

pub(crate) use self::adopter::adopt;
pub(crate) use self::directing::{Counts, Director, End, Standing, Watched};
pub(crate) use self::requests::Splitter;
#[cfg(feature = "http")]
pub(crate) use self::requests::{Asker, Fate, Key, Route};

/// The slot in which the candidate is offered its end.
pub(crate) const SLOT: &str = "handover.director";

/// How many connections may be on their way to the candidate: so few that neither end's socket is ever full of them, the
/// acknowledgements of all of them included.
const ON_THE_WAY_MAX: usize = 128;
