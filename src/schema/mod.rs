//! Expanding and contracting a database while several generations live beside it.
//!
//! Two generations live side by side during every upgrade, so the database must fit both. Migration tools do not know
//! which generations are alive; this crate does. A release says which [`Version`] of the schema it
//! [knows](Schema::knows) and [needs](Schema::needs); the store has a *version*, up to which it was expanded, and a
//! *floor*, up to which it was contracted:
//!
//! ```text
//!      needs ≤ version        knows ≥ floor, and what is active        a generation may run if all of it is so
//!
//! expand    adds; when a release starts, before it is ready, once however many start at the same time
//! activate  the new form is written from now on: when all that are alive know it. Whoever does not may not run any more
//! contract  the floor rises, then what lies below it is dropped: when nobody can miss it. There is no way back
//! ```
//!
//! It is checked before a generation is ready, before every flip and before every rollback; what does not fit is refused,
//! with the reason, before anything has changed. Every generation of every host that shares the store is in its record,
//! from before it is ready until nothing of it is left in flight, with a lease. One whose lease has lapsed may be alive or
//! not, and blocks whatever it could miss.
//!
//! # Copying what is there
//!
//! An expansion runs once. What it copies is out of date as soon as a release runs again that writes the form before, as
//! after a rollback. So a release says in which [forms](Schema::forms) it reads and writes its rows: the record knows which
//! form every row is in, given who has run, and a release that reads another one runs its [backfill](Schema::backfill)
//! first, or is refused.
//!
//! What needs a migration language has one: the [steps](Step) are plain SQL, a migration tool, or code.
//!
//! # Beside a migration tool
//!
//! A tool that has its own table of what it has done stays in charge of that; the gates say when it may run, and what it is
//! run for. A version here is then one of its own, or a number for some of them:
//!
//! ```
//! use handover::schema::{Schema, Step};
//!
//! # fn steps(schema: Schema) -> Schema {
//! schema
//!     // sqlx-cli, in the service's own environment:
//!     .expand(7, Step::command("sqlx", ["migrate", "run", "--target-version", "20260711"]))
//!     // sqlx::migrate!(..).run(&pool), or refinery's runner().run_async(&mut client):
//!     .expand(8, Step::run(|| async { Ok(()) }))
//!     // What drops something is in a file of its own, so that nothing but this runs it:
//!     .contract(8, Step::command("psql", ["-v", "ON_ERROR_STOP=1", "-f", "contract/8.sql"]))
//! # }
//! ```
//!
//! # When the store cannot be asked
//!
//! Whoever serves goes on. Nothing is expanded, activated or contracted; no generation starts, and nothing is flipped to.
//! A rollback to the incumbent that is warm goes by what was last known: nothing can have been contracted while it was.
//!
//! # What it cannot know
//!
//! A process that writes to the database without this crate, and a release that declares nothing: that one is taken for
//! one that knows nothing, and may run for as long as nothing has been contracted or activated. On its own host it is known
//! to be alive, and blocks both; on another one it is not. An operator who
//! [expunges](Registration::expunge) a host vouches for it.

mod declaration;
mod forms;
mod gate;
mod identity;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod model;
#[cfg(feature = "schema-postgres")]
mod postgres;
mod registry;
#[cfg(any(feature = "schema-sqlite", feature = "schema-postgres"))]
mod rows;
#[cfg(feature = "schema-sqlite")]
mod sqlite;
mod step;
mod store;
#[cfg(test)]
mod tests;

pub use self::declaration::Schema;
pub use self::forms::{Forms, Whole};
pub use self::gate::{Change, Declared, Departure, Generation, Record, State, Version};
#[cfg(feature = "schema-postgres")]
pub use self::postgres::Postgres;
pub(crate) use self::registry::Here;
pub use self::registry::{Changed, Confirmed, Registration};
#[cfg(feature = "schema-sqlite")]
pub use self::sqlite::Sqlite;
pub use self::step::Step;
pub use self::store::{Claim, Store, StoreError, Transaction, Work};
