//! The operator's way to a running service: a Unix socket that every generation holds and only the incumbent answers.
//!
//! A client connects to the path of [`Builder::control`](crate::Builder::control), says one [`Request`] in one line of
//! JSON, and gets one [`Reply`] in one line; after [`Request::Events`] a [`Happened`] in each further line. Whoever asks
//! must be the user that the service runs as, or root.
//!
//! ```text
//! → {"version":1,"request":"upgrade","wait":true}
//! ← {"version":1,"reply":"verdict","upgrade":{"generation":2,"verdict":"committed",...}}
//! ```
//!
//! [`Client`] speaks it from Rust; the program `handover` (feature `cli`) from a shell.

mod client;
mod counts;
mod drill;
mod history;
mod request;
mod schema;
mod server;
mod takeover;
mod verification;
mod workers;

pub use self::client::{Client, EventStream};
pub use self::counts::SideState;
pub use self::drill::{Drill, Fault, Losses};
pub(crate) use self::history::History;
pub(crate) use self::request::unix_ms;
pub use self::request::{
    ClassWork, Condition, DrainState, Elder, ForwardedCounts, ForwardingState, Generation,
    Happened, Refusal, RefusalKind, Reply, Request, Role, Rollback, RollbackKind, RolloutState,
    Socket, Status, Strategy, Underway, Upgrade, VERSION, VERSION_MIN, Verdict, What,
};
pub use self::schema::{SchemaGate, SchemaGeneration, SchemaState, SchemaWish};
pub(crate) use self::server::{Answering, Asked, Lines, serve};
pub use self::takeover::Takeover;
pub use self::verification::{Found, Verification, VerifiedAddress};
pub use self::workers::{PoolState, UpdateState, WorkerState};
