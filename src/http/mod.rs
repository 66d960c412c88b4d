//! Serving HTTP so that no request is lost when a generation leaves.
//!
//! A leaving generation is in a bind: a client may send its next request over a connection in the very instant in
//! which that connection is closed. What each kind of connection is owed, and when it is let go:
//!
//! | connection | from the flip on | closed |
//! |---|---|---|
//! | HTTP/1, request in flight | its answer says `Connection: close` | after the answer |
//! | HTTP/1, idle or new | one more request, its answer says `Connection: close` | after that, or when it was idle for [`idle_grace`](Server::idle_grace) and nothing waits in its socket |
//! | HTTP/2 | GOAWAY in two steps, requests that cross it are answered | after its last stream |
//! | server-sent events | as above | at [`stream_deadline`](Server::stream_deadline), by ending the stream |
//! | WebSocket, CONNECT | told through [`Signal`](crate::drain::Signal) | when the application does, or at [`upgrade_deadline`](Server::upgrade_deadline) |
//!
//! A rollback takes all of this back, except that HTTP/2 clients open a new connection.
//!
//! Handlers that last can see that they should end: every request carries the
//! [`Signal`](crate::drain::Signal) of its class as an extension.
//!
//! What is counted (see [`Drain::progress`](crate::drain::Drain::progress)) is connections, in the classes
//! `handshake`, `http1`, `http2`, `stream`, `upgrade` and `idle`. A connection that is idle counts as `http1` or
//! `http2` while its generation serves, so that serving a request takes no lock.
//!
//! # Counting
//!
//! Requests are counted for the guards of a rollout, with failures and latency and without a lock: [`ObserveLayer`] says
//! how. A request that says `x-handover` is told in `x-handover-generation` who has answered. Against overload
//! there is [`ShedLayer`].
//!
//! # Health
//!
//! [`Health`](crate::Health) is a service for `/livez` and `/readyz`. A handover is invisible in it: `/readyz` says
//! `ready` in every generation that serves or has handed over. It says 503 and why while a generation is starting, when
//! the application calls it degraded, in the [lame duck](crate::Builder::lame_duck) and at the end of the service.
//!
//! ```no_run
//! # async fn serve() -> handover::Result<()> {
//! use axum::Router;
//! use handover::config::LAME_DUCK_KUBERNETES;
//!
//! let builder = handover::builder().lame_duck(LAME_DUCK_KUBERNETES);
//! let mut starting = builder.start().await?;
//! let web = starting.listen_tcp("web", "0.0.0.0:8080").await?;
//! let health = starting.health();
//! let app = Router::new()
//!     .route_service("/livez", health.clone())
//!     .route_service("/readyz", health.clone());
//! let generation = starting.ready().await?;
//! // Whenever the application knows better:
//! health.degraded("the database does not answer");
//! health.restored();
//! # handover::http::serve(&generation, web, app).await
//! # }
//! ```

mod accept;
#[cfg(feature = "axum")]
mod axum_listener;
mod body;
mod carrier;
mod connection;
mod forward;
mod health;
mod http1;
mod http2;
#[cfg_attr(not(feature = "inject"), path = "not_injected.rs")]
mod inject;
mod io;
mod late_ack;
mod layer;
mod ledger;
mod listeners;
mod observe;
mod presence;
mod server;
mod service;
mod shed;
mod sight;
mod sniff;
mod split;

pub use self::accept::{Accept, Incoming};
pub use self::body::Body;
pub use self::io::Rewind;
pub use self::layer::{DrainLayer, DrainService, ResponseFuture};
pub use self::observe::{GENERATION, ObserveLayer, ObserveService, Observing, VERIFY};
pub use self::server::{Server, serve};
pub use self::service::Serve;
pub use self::shed::{ShedLayer, ShedService, Shedding};

/// What services and bodies fail with.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[cfg(test)]
mod tests;
