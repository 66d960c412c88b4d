//! A store in memory, for tests: what was not committed is gone, and it can be told to fail.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Mutex as Gate, OwnedMutexGuard};
use tokio::time::timeout;

use super::gate::{Change, Record};
use super::store::{Claim, Store, StoreError, Transaction, Work};

/// Cheap to clone: all of them are the same store.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    content: Mutex<Content>,
    transactions: Arc<Gate<()>>,
    claims: Arc<Gate<()>>,
}

/// The record, and the statements that were run.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub(super) record: Record,
    pub(super) statements: Vec<String>,
    /// Why nothing can be asked, if nothing can.
    pub(super) gone: Option<String>,
    /// Whether nobody hears that something was committed.
    pub(super) is_mute: bool,
}

struct Begun {
    store: Memory,
    draft: Content,
    _turn: OwnedMutexGuard<()>,
}

struct Claimed(#[expect(dead_code, reason = "its end is what counts")] OwnedMutexGuard<()>);

impl Claim for Claimed {}

impl Memory {
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut Content) -> T) -> T {
        look(&mut self.0.content.lock().unwrap())
    }

    fn content(&self) -> Result<Content, StoreError> {
        self.with(|content| match &content.gone {
            None => Ok(content.clone()),
            Some(reason) => Err(reason.clone().into()),
        })
    }
}

impl Store for Memory {
    fn read(&self) -> Work<'_, Record> {
        Box::pin(async { Ok(self.content()?.record) })
    }

    fn begin(&self, patience: Duration) -> Work<'_, Box<dyn Transaction>> {
        Box::pin(async move {
            let turn = timeout(patience, Arc::clone(&self.0.transactions).lock_owned()).await?;
            let begun: Box<dyn Transaction> = Box::new(Begun {
                store: self.clone(),
                draft: self.content()?,
                _turn: turn,
            });
            Ok(begun)
        })
    }

    fn claim(&self, patience: Duration) -> Work<'_, Box<dyn Claim>> {
        Box::pin(async move {
            let claim = timeout(patience, Arc::clone(&self.0.claims).lock_owned()).await?;
            let claim: Box<dyn Claim> = Box::new(Claimed(claim));
            Ok(claim)
        })
    }
}

impl Transaction for Begun {
    fn read(&mut self) -> Work<'_, Record> {
        Box::pin(async { Ok(self.draft.record.clone()) })
    }

    fn write<'a>(&'a mut self, change: &'a Change) -> Work<'a, ()> {
        Box::pin(async {
            self.draft.record.apply(change);
            Ok(())
        })
    }

    fn claim(&mut self, _: Duration) -> Work<'_, ()> {
        // There is one transaction at a time.
        Box::pin(async { Ok(()) })
    }

    fn execute<'a>(&'a mut self, sql: &'a str, _: Duration) -> Work<'a, ()> {
        Box::pin(async move {
            self.draft.statements.push(sql.to_owned());
            if sql == "hang" {
                std::future::pending::<()>().await;
            }
            // Others get a turn, if they can have one.
            tokio::task::yield_now().await;
            match sql.contains("fail") {
                true => Err("as planned".into()),
                false => Ok(()),
            }
        })
    }

    fn commit(self: Box<Self>) -> Work<'static, ()> {
        Box::pin(async move {
            let Self { store, draft, .. } = *self;
            store.content()?;
            let is_mute = draft.is_mute;
            store.with(|content| *content = draft);
            match is_mute {
                true => Err("nobody knows".into()),
                false => Ok(()),
            }
        })
    }
}
