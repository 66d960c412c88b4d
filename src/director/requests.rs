//! A share of the requests that stable's HTTP servers get: picked here, carried elsewhere.
//!
//! While there is none, a server finds that out by reading one flag.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use tokio::sync::watch;

use super::directing::{Counts, Directing};

/// Whether the candidate answers some of this generation's requests.
#[derive(Clone, Default)]
pub(crate) struct Splitter(Arc<Shared>);

#[derive(Default)]
struct Shared {
    is_active: AtomicBool,
    to: watch::Sender<Option<Arc<Directing>>>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker<'a> {
    /// `None` if it has no address.
    pub(crate) peer: Option<IpAddr>,
    /// What it is known by.
    pub(crate) key: Key<'a>,
}

/// By what a request's side is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key<'a> {
    /// The peer's address, if it has one.
    Peer,
    /// What the application knows its client by.
    Named(&'a str),
    /// Nothing: each request by itself.
    Coin,
}

/// The way to the candidate, for the requests of one listener.
#[derive(Clone)]
pub(crate) struct Route {
    to: Weak<Directing>,
    listener: Arc<str>,
    current: watch::Receiver<Option<Arc<Directing>>>,
}

/// What became of a picked request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Stable answers it all the same: nothing of it was sent.
    Kept,
    /// It is being sent.
    Forwarded,
    /// The candidate has answered.
    Answered,
    /// It was sent, and there is no answer.
    Lost,
}

impl Splitter {
    /// One relaxed load.
    pub(crate) fn is_active(&self) -> bool {
        self.0.is_active.load(Ordering::Relaxed)
    }

    /// Picks a side: the way to the candidate, if the request is the candidate's.
    pub(crate) fn pick(&self, listener: &Arc<str>, asker: Asker<'_>) -> Option<Route> {
        let to = self.0.to.borrow().clone()?;
        to.wants_request(listener, asker).then(|| Route {
            to: Arc::downgrade(&to),
            listener: Arc::clone(listener),
            current: self.0.to.subscribe(),
        })
    }

    pub(super) fn start(&self, to: &Arc<Directing>) {
        let mut last = None;
        self.0.to.send_if_modified(|current| {
            let is_other = !is(current, Arc::as_ptr(to));
            if is_other {
                last = current.replace(Arc::clone(to));
            }
            is_other
        });
        self.0.is_active.store(true, Ordering::Relaxed);
        drop(last);
    }

    /// No request is picked any more, if it was by `from`.
    pub(super) fn stop(&self, from: &Directing) {
        let mut last = None;
        self.0.to.send_if_modified(|current| {
            if is(current, from) {
                self.0.is_active.store(false, Ordering::Relaxed);
                last = current.take();
            }
            last.is_some()
        });
        drop(last);
    }
}

impl Route {
    /// Passes on the other end of a connection that is to carry requests. When it returns, the candidate's application has
    /// it.
    ///
    /// # Errors
    ///
    /// If it never will: there is no candidate any more, or it has no room, or does not have the listener.
    ///
    /// # Cancel safety
    ///
    /// The connection may reach the candidate all the same.
    pub(crate) async fn carry(&self, connection: OwnedFd) -> io::Result<()> {
        let carrying = match self.to.upgrade() {
            Some(to) => to.carry(&self.listener, connection)?,
            None => return Err(io::ErrorKind::NotConnected.into()),
        };
        carrying
            .await
            .map_err(|_| io::ErrorKind::ConnectionRefused.into())
    }

    pub(crate) fn count(&self, fate: Fate) {
        let Some(to) = self.to.upgrade() else { return };
        to.count(&self.listener, |counts: &mut Counts| {
            *match fate {
                Fate::Kept => &mut counts.kept,
                Fate::Forwarded => &mut counts.forwarded,
                Fate::Answered => &mut counts.begun,
                Fate::Lost => &mut counts.lost,
            } += 1;
        });
    }

    /// Whether requests may be sent on it.
    pub(crate) fn is_open(&self) -> bool {
        is(&self.current.borrow(), self.to.as_ptr())
    }

    /// Whether both lead to the same candidate.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.to.ptr_eq(&other.to)
    }

    /// Waits until no more requests are to be sent on it.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub(crate) async fn closed(&mut self) {
        let to = self.to.clone();
        let is_other = move |current: &Option<_>| !is(current, to.as_ptr());
        // The end of the generation's last handle is an end as well.
        let _ = self.current.wait_for(is_other).await;
    }
}

fn is(current: &Option<Arc<Directing>>, to: *const Directing) -> bool {
    current
        .as_ref()
        .is_some_and(|current| ptr::eq(Arc::as_ptr(current), to))
}

impl fmt::Debug for Splitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Splitter")
            .field("is_active", &self.is_active())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}
