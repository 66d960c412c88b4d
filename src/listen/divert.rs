//! Connections that were accepted here and are to be served elsewhere.
//!
//! While nothing is diverted, a gate finds that out by reading one flag.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Takes some of the connections of a generation elsewhere.
pub(crate) trait Divert: fmt::Debug + Send + Sync {
    /// Whether a connection of this listener is to go elsewhere; `None` if its peer has no address.
    fn wants(&self, listener: &str, peer: Option<IpAddr>) -> bool;
    /// Takes one that it wanted, without blocking. What it finds no place for is adopted by the listener again.
    fn take(&self, listener: &str, connection: OwnedFd);
}

/// Whether connections of this generation are diverted, and to whom.
#[derive(Clone, Debug, Default)]
pub(crate) struct Diverter(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    is_active: AtomicBool,
    to: Mutex<Option<Arc<dyn Divert>>>,
}

/// The same, of one listener.
#[derive(Clone, Debug)]
pub(super) struct Diversion {
    diverter: Diverter,
    listener: Arc<str>,
}

/// Who is asked about the connections of one poll of a gate.
#[derive(Debug)]
pub(super) struct Diverting<'a> {
    to: Arc<dyn Divert>,
    listener: &'a str,
}

impl Diverter {
    /// From now on `to` is asked about each connection.
    pub(crate) fn start(&self, to: Arc<dyn Divert>) {
        let mut asked = self.lock();
        let last = asked.replace(to);
        self.0.is_active.store(true, Ordering::Relaxed);
        drop(asked);
        drop(last);
    }

    /// Nobody is asked any more, if it was `from`. A poll of a gate that has asked already may still come with what it
    /// got.
    pub(crate) fn stop(&self, from: &dyn Divert) {
        let mut to = self.lock();
        if to
            .as_ref()
            .is_some_and(|to| ptr::addr_eq(Arc::as_ptr(to), from))
        {
            self.0.is_active.store(false, Ordering::Relaxed);
            // Its end is foreign code, and may come back here.
            let last = to.take();
            drop(to);
            drop(last);
        }
    }

    pub(super) fn at(&self, listener: &str) -> Diversion {
        Diversion {
            diverter: self.clone(),
            listener: listener.into(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<dyn Divert>>> {
        self.0.to.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Diversion {
    #[cfg(test)]
    pub(super) fn diverter(&self) -> &Diverter {
        &self.diverter
    }

    pub(super) fn begin(&self) -> Option<Diverting<'_>> {
        if !self.diverter.0.is_active.load(Ordering::Relaxed) {
            return None;
        }
        Some(Diverting {
            to: self.diverter.lock().clone()?,
            listener: &self.listener,
        })
    }
}

impl Diverting<'_> {
    pub(super) fn wants(&self, peer: Option<IpAddr>) -> bool {
        self.to.wants(self.listener, peer)
    }

    pub(super) fn take(&self, connection: OwnedFd) {
        self.to.take(self.listener, connection);
    }
}
