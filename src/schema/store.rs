//! Where a schema's record is kept: beside the data that it is about, so that one transaction covers both.

use std::error::Error as StdError;
use std::fmt;
use std::future::pending;
use std::pin::Pin;
use std::time::Duration;

use super::gate::{Change, Record};

/// What went wrong in a store.
pub type StoreError = Box<dyn StdError + Send + Sync>;

/// Something that a store does.
pub type Work<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Keeps others from steps that run outside of a transaction, until it is dropped or the process is gone.
pub trait Claim: Send {
    /// Why somebody else may have it by now, once that is so; never where nothing but this process can end it.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    fn lost(&mut self) -> Pin<Box<dyn Future<Output = StoreError> + Send + '_>> {
        Box::pin(pending())
    }
}

/// A place that keeps one [`Record`]: a table or two in the database whose schema it is.
///
/// Everything here is called with a deadline around it, and may be dropped at any point: a transaction that was not
/// committed must leave nothing behind then.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// The record as it is, waiting for nobody's transaction. That of a store that nobody has touched is the default.
    fn read(&self) -> Work<'_, Record>;

    /// Begins a transaction. Whenever it waits for another one of these, that is an error when `patience` is over. Makes
    /// whatever tables it needs.
    fn begin(&self, patience: Duration) -> Work<'_, Box<dyn Transaction>>;

    /// Keeps every other caller of this waiting, in whatever process and on whatever host, until the claim is dropped or
    /// the process that has it is gone; an error when `patience` is over.
    fn claim(&self, patience: Duration) -> Work<'_, Box<dyn Claim>>;
}

/// Changes of a record, and of the data beside it, all of which are made or none.
pub trait Transaction: Send {
    /// The record, as nobody else can change it until this is over. Waits for whoever has read it so before.
    fn read(&mut self) -> Work<'_, Record>;

    /// As [`Store::claim`], until this is over.
    fn claim(&mut self, patience: Duration) -> Work<'_, ()>;

    /// Makes a change.
    fn write<'a>(&'a mut self, change: &'a Change) -> Work<'a, ()>;

    /// Runs statements of the application's own. They must not end the transaction. Dropped, or when the limit is over, they
    /// are to be given up, also by whoever runs them.
    fn execute<'a>(&'a mut self, sql: &'a str, limit: Duration) -> Work<'a, ()>;

    /// Makes everything so.
    fn commit(self: Box<Self>) -> Work<'static, ()>;
}
