//! Replaces a running server without losing a request, and comes back by itself when the new release is bad.
//!
//! ```no_run
//! use axum::{Router, routing::get};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let mut starting = handover::start().await?;                  // fresh, or successor of a running generation
//!     let web = starting.listen_tcp("web", "0.0.0.0:8080").await?;  // inherited by name, or bound
//!     let app = Router::new().route("/", get(|| async { "hello" }));
//!     let generation = starting.ready().await?;                     // warmed up: takes over from the incumbent
//!     handover::http::serve(&generation, web, app).await?;          // returns once this generation has drained
//!     Ok(())
//! }
//! ```
//!
//! `kill -HUP` upgrades this service in place; `kill -TERM` stops it, without resetting a connection: see
//! [`Serving::stop`]. [`Health`] tells a load balancer in time.
//!
//! # What happens
//!
//! A *generation* is one process's life as the server. An upgrade has an *incumbent* and a *successor*:
//!
//! ```text
//! incumbent  serves ──────────────────────────┤ warm: gates shut, sockets held ├─ drains ─ leaves
//!                    launch  offer             flip                        commit
//! successor          └ claims by name, warms up ┤ serves ────────────────────────────────────────
//! ```
//!
//! Every named listener has a *gate*, this process's right to accept from it. Both generations hold every socket from
//! the offer until one of them retires, so a connection that waits in the kernel's queue is never lost, whoever dies.
//! Until the flip any failure leaves the incumbent serving as if nothing had happened; from the flip to the commit (the
//! *bake*) the incumbent opens its gates again the moment the successor dies, stops, or breaks the protocol.
//!
//! # Rollouts
//!
//! [`Builder::rollout`] says how much a release has to prove before it is the incumbent. At once, as above, is the
//! default. Blue/green looks at it in private before the flip ([`Builder::preview`], [`Builder::pre_flip`]), and judges it
//! by its errors and slow answers until the commit. A canary gives it a growing share of the clients before:
//!
//! ```no_run
//! use handover::rollout::Rollout;
//!
//! # async fn start() -> handover::Result<()> {
//! let canary = Rollout::canary([1, 5, 25, 50]);
//! let starting = handover::builder().rollout(canary).start().await?;
//! # drop(starting);
//! # Ok(())
//! # }
//! ```
//!
//! A release that is worse than the one before is undone by itself, with a verdict that has the numbers. [`rollout`] has the
//! picture, [`rollout::guard`] what is compared, [`control`] how operators look on and decide.
//!
//! # What is guaranteed, and what is not
//!
//! - No connection that the kernel has completed is reset by a flip, a rollback or a death on one side. What a crashed
//!   generation had accepted and not answered is lost with it.
//! - [`http::serve`] closes no HTTP/1 connection under an arriving request, short of one that is written after a whole
//!   idle grace in the instant of the close.
//! - A handover that fails is never a failed service: [`Error::incumbent_serving`] says so.
//! - Every wait has a deadline; [`config`] has the defaults, [`Builder`] the setters.
//! - UDP has no queue of connections: datagrams go to the generation whose gate is open.
//! - The descriptor limit bounds how many sockets can be passed; the successor raises its soft limit to the hard one.
//!
//! # Features
//!
//! `http` (default): [`http`]. `axum`: this crate's listeners work with plain `axum::serve`. `cli`: the program `handover`,
//! which asks a service over its [control socket](control). `pool`: workers of one program under a supervisor.
//! `schema-sqlite` and `schema-postgres`: where the record of a [`schema`] can be kept.
//!
//! # Where to read next
//!
//! [`Builder::start`], [`Starting`], [`Serving`]; then what you need of these:
//!
//! | for | see |
//! |---|---|
//! | HTTP servers, health endpoints, load shedding | [`http`] |
//! | work that is not HTTP | [`drain`] |
//! | what travels to the successor | [`state`] |
//! | what runs in one generation only | [`Serving::on_activate`] |
//! | trying a release before everybody meets it | [`rollout`] |
//! | a database that both releases share | [`schema`] |
//! | counting what is not HTTP | [`observe`] |
//! | operators | [`control`], [`event`] |
//!
//! docs/OPERATIONS.md in the repository is for whoever runs the service, docs/PROTOCOL.md says what two generations say to
//! each other.

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
pub mod rollout;

pub mod drain;
mod health;
pub mod observe;
mod sys;

mod channel;
mod listen;
mod pid_file;
pub mod schema;
pub mod state;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "the driver is about to speak through it")
)]
mod systemd;

mod check;
pub mod control;
mod director;
#[cfg_attr(not(feature = "inject"), path = "not_injected.rs")]
mod inject;
mod launch;
mod preview;
mod verify;

mod trigger;

mod driver;

mod generation;

#[cfg(feature = "pool")]
pub mod pool;

#[cfg(feature = "http")]
pub mod http;

pub use crate::check::Check;
pub use crate::driver::shared::{Elder, Status, Upgraded};
pub use crate::error::{Error, ErrorKind, Result};
pub use crate::event::{Event, Phase};
pub use crate::generation::{Builder, Events, Serving, Starting, builder, start};
pub use crate::health::{Health, Readiness};
pub use crate::listen::{ListenOptions, TcpListener, UdpSocket, UnixListener};

#[cfg(all(doctest, feature = "http", feature = "schema-sqlite"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// Not for users: the fuzz target's way to the codec.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn fuzz_codec(body: &[u8]) {
    protocol::codec::examine(body);
}
