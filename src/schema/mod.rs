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
//! A tool that has its own table of what it has done stays in charge of that; the gates say when it may run, and how far. What
//! adds and what drops are two sets of migrations, so that an expansion never runs what a contraction is waiting with, and
//! nobody calls the tool but these steps. A version here is one of the tool's, or a number for some of them.
//!
//! refinery, with a history of its own for what drops:
//!
//! ```ignore
//! mod adds { refinery::embed_migrations!("migrations/expand"); }
//! mod drops { refinery::embed_migrations!("migrations/contract"); }
//!
//! async fn migrate(mut runner: Runner, history: &str, to: i32) -> Result<(), Box<dyn Error + Send + Sync>> {
//!     runner.set_migration_table_name(history);
//!     runner.set_target(Target::Version(to)).run_async(&mut connect().await?).await?;
//!     Ok(())
//! }
//! schema
//!     .expand(8, Step::run(|| migrate(adds::migrations::runner(), "refinery_schema_history", 8)))
//!     .contract(8, Step::run(|| migrate(drops::migrations::runner(), "refinery_contract_history", 8)))
//! ```
//!
//! sqlx, where both sets have one history, so neither may mind what it does not find in its own:
//!
//! ```ignore
//! async fn migrate(directory: &str, to: i64) -> Result<(), Box<dyn Error + Send + Sync>> {
//!     let mut migrator = Migrator::new(Path::new(directory)).await?;
//!     Ok(migrator.set_ignore_missing(true).run_to(to, &pool()).await?)
//! }
//! schema
//!     .expand(8, Step::run(|| migrate("migrations/expand", 20260711)))
//!     .contract(8, Step::run(|| migrate("migrations/contract", 20260801)))
//! ```
//!
//! Whatever has a program: sqlx-cli, psql with a file for each step.
//!
//! ```
//! use handover::schema::{Schema, Step};
//!
//! # fn steps(schema: Schema) -> Schema {
//! let expand = ["migrate", "run", "--source", "migrations/expand", "--ignore-missing"];
//! let to = ["--target-version", "20260711"];
//! schema
//!     .expand(8, Step::command("sqlx", [&expand[..], &to].concat()))
//!     .contract(8, Step::command("psql", ["-1", "-v", "ON_ERROR_STOP=1", "-f", "contract/8.sql"]))
//! # }
//! ```
//!
//! The package `migrators` in the repository is such a service, with ten of it started at once.
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
