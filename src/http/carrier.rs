//! Connections that carry requests to a candidate.
//!
//! Each is a TCP connection of this process with itself, over loopback, of which one end is passed to the candidate as if
//! it were a client's. So whatever listens there, and counts and drains there, need not know.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::time::timeout;

use crate::config::{CARRIER_DEADLINE, CARRIERS_IDLE_MAX};
use crate::director::Route;
use crate::listen::loopback_pair;

/// The idle ones of a server.
#[derive(Clone, Debug, Default)]
pub(super) struct Carriers(Arc<Mutex<Vec<Carrier>>>);

/// A connection whose other end the candidate's application has.
#[derive(Debug)]
pub(super) struct Carrier {
    sender: SendRequest<Incoming>,
    /// The same socket, to be asked what the reactor has not heard of.
    socket: OwnedFd,
    route: Route,
}

/// Why there is no response.
pub(super) enum Failure {
    /// Nothing was sent; this is the body.
    Unsent(Incoming),
    /// The candidate may have begun.
    Broken(hyper::Error),
}

impl Carriers {
    /// An idle one, or another one.
    ///
    /// # Errors
    ///
    /// If none reaches the candidate's application within [`CARRIER_DEADLINE`].
    pub(super) async fn get(&self, route: &Route) -> io::Result<Carrier> {
        while let Some(carrier) = self.pop() {
            if carrier.route.is_same(route) && carrier.is_usable() {
                return Ok(carrier);
            }
        }
        timeout(CARRIER_DEADLINE, self.connect(route)).await?
    }

    /// Keeps one whose response is complete, for the next request.
    pub(super) fn put_back(&self, mut carrier: Carrier) {
        if carrier.sender.is_ready() {
            return self.push(carrier);
        }
        let carriers = self.clone();
        // It has to notice yet that the response was read; or the request is longer than the response.
        tokio::spawn(async move {
            let ready = timeout(CARRIER_DEADLINE, carrier.sender.ready()).await;
            if let Ok(Ok(())) = ready {
                carriers.push(carrier);
            }
        });
    }

    async fn connect(&self, route: &Route) -> io::Result<Carrier> {
        let (ours, theirs) = loopback_pair().await?;
        route.carry(theirs.into_std()?.into()).await?;
        let socket = ours.as_fd().try_clone_to_owned()?;
        let handshake = http1::handshake(TokioIo::new(ours)).await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        tokio::spawn({
            let (carriers, mut route) = (self.clone(), route.clone());
            async move {
                let mut connection = std::pin::pin!(connection);
                tokio::select! {
                    // Whoever sends a request hears how it ends.
                    _ = &mut connection => return,
                    () = route.closed() => carriers.clear(&route),
                }
                // What is under way ends as it will.
                let _ = connection.await;
            }
        });
        Ok(Carrier {
            sender,
            socket,
            route: route.clone(),
        })
    }

    fn pop(&self) -> Option<Carrier> {
        self.lock().pop()
    }

    fn push(&self, carrier: Carrier) {
        let mut idle = self.lock();
        // Under the lock: who clears it comes later than the end that is looked for here.
        if carrier.route.is_open() && idle.len() < CARRIERS_IDLE_MAX {
            idle.push(carrier);
        }
    }

    fn clear(&self, route: &Route) {
        self.lock().retain(|carrier| !carrier.route.is_same(route));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Carrier>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Carrier {
    /// # Cancel safety
    ///
    /// The request is given up, which the candidate sees.
    pub(super) async fn send(
        &mut self,
        request: Request<Incoming>,
    ) -> Result<Response<Incoming>, Failure> {
        let sending = self.sender.try_send_request(request);
        sending
            .await
            .map_err(|mut error| match error.take_message() {
                Some(unsent) => Failure::Unsent(unsent.into_body()),
                None => Failure::Broken(error.into_error()),
            })
    }

    /// A candidate that has died or left has closed its end, of which the kernel knows first.
    fn is_usable(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        let peeked = SockRef::from(&self.socket).recv_with_flags(&mut byte, flags);
        let is_quiet = peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        is_quiet && self.sender.is_ready()
    }
}
