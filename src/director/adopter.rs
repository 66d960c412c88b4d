//! The candidate's end: puts before the application what stable passes on, and says what became of it.

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::directing::recv_past_reset;
use super::word::{WORD_MAX, Word};
use crate::listen::{Adopted, Permit, Table};
use crate::sys::descriptors::{self, Received};

/// Within a tokio runtime: adopts into the listeners of `table` what arrives at `socket`, for as long as stable has its
/// end open.
///
/// # Errors
///
/// If that is no such socket, or the process has no resources to watch it.
pub(crate) fn adopt(socket: OwnedFd, table: &Table) -> io::Result<()> {
    begin(socket, table).map(drop)
}

fn begin(socket: OwnedFd, table: &Table) -> io::Result<Arc<Adopting>> {
    if !descriptors::is_seqpacket_socket(socket.as_fd()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    SockRef::from(&socket).set_nonblocking(true)?;
    let adopting = Arc::new(Adopting {
        socket: descriptors::watched(socket, Interest::READABLE)?,
        table: table.clone(),
        hearing: Mutex::default(),
    });
    tokio::spawn(Arc::clone(&adopting).run());
    Ok(adopting)
}

struct Adopting {
    socket: AsyncFd<OwnedFd>,
    table: Table,
    /// Held while a datagram is taken and understood, so that whoever has it knows all that was said before.
    hearing: Mutex<Hearing>,
}

#[derive(Debug, Default)]
struct Hearing {
    revoked: bool,
    ended: bool,
}

/// Stable's own until it is claimed.
struct Lent {
    by: Arc<Adopting>,
    id: u64,
    is_settled: bool,
}

/// Connections that have arrived.
struct Delivery {
    listener: String,
    first: u64,
    count: u32,
    connections: Vec<OwnedFd>,
}

/// What a test knows of the candidate's end.
#[cfg(test)]
pub(super) struct Adopter(Arc<Adopting>);

#[cfg(test)]
impl Adopter {
    pub(super) fn begin(socket: OwnedFd, table: &Table) -> io::Result<Self> {
        begin(socket, table).map(Self)
    }

    pub(super) fn has_heard_the_end(&self) -> bool {
        self.0.lock().revoked
    }
}

impl Adopting {
    async fn run(self: Arc<Self>) {
        while let Ok(mut ready) = self.socket.readable().await {
            self.hear_all();
            if self.lock().ended {
                return;
            }
            ready.clear_ready();
        }
    }

    /// Everything that stable has said so far.
    fn hear_all(self: &Arc<Self>) {
        while let Some(delivery) = self.hear_one() {
            if let Some(delivery) = delivery {
                self.deliver(delivery);
            }
        }
    }

    /// `None` if there is nothing to be heard now.
    fn hear_one(&self) -> Option<Option<Delivery>> {
        let mut hearing = self.lock();
        if hearing.ended {
            return None;
        }
        let mut buffer = [0; WORD_MAX];
        let received = match recv_past_reset(self.socket.get_ref().as_fd(), &mut buffer) {
            Ok(Some(received)) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Ok(None) => {
                hearing.ended = true;
                return None;
            }
            Err(error) => {
                self.give_up(&mut hearing, &error.to_string());
                return None;
            }
        };
        match Word::from_bytes(&buffer[..received.length]) {
            Ok(Word::Forward {
                listener,
                first,
                count,
            }) if !hearing.revoked => Some(Some(Delivery::new(listener, first, count, received))),
            Ok(Word::Forward { .. }) => Some(None),
            Ok(Word::Revoked) => {
                hearing.revoked = true;
                Some(None)
            }
            Ok(word @ (Word::Begun { .. } | Word::Declined { .. })) => {
                self.give_up(&mut hearing, &format!("{word:?} was not expected"));
                None
            }
            Err(error) => {
                self.give_up(&mut hearing, &error.to_string());
                None
            }
        }
    }

    /// Stable sees the end, and takes back what was not acknowledged.
    fn give_up(&self, hearing: &mut Hearing, reason: &str) {
        tracing::warn!(
            reason,
            "the stable generation's director cannot be understood"
        );
        (hearing.ended, hearing.revoked) = (true, true);
        // It may have gone by now, which comes to the same.
        let _ = SockRef::from(self.socket.get_ref()).shutdown(Shutdown::Both);
    }

    fn deliver(self: &Arc<Self>, delivery: Delivery) {
        let Delivery {
            listener,
            first,
            count,
            connections,
        } = delivery;
        let ids = first..first.saturating_add(u64::from(count));
        let arrived = connections.len() as u64;
        if !self.table.adopts(&listener) {
            return ids.for_each(|id| self.decline(id, true));
        }
        // Most likely this process is at its limit of descriptors.
        ids.clone()
            .skip(usize::try_from(arrived).unwrap_or(usize::MAX))
            .for_each(|id| self.decline(id, false));
        for (id, connection) in ids.zip(connections) {
            let lent = Box::new(Lent {
                by: Arc::clone(self),
                id,
                is_settled: false,
            });
            let adopted = Adopted::with_permit(connection, lent);
            // Comes back when too many wait, and is declined by being dropped.
            let _ = self.table.adopt_connection(&listener, adopted);
        }
    }

    fn decline(&self, id: u64, for_good: bool) {
        let word = Word::Declined { id, for_good };
        if let Err(error) = self.say(&word) {
            tracing::debug!(%error, id, "a connection is not declined");
        }
    }

    fn say(&self, word: &Word) -> io::Result<()> {
        descriptors::send(self.socket.get_ref().as_fd(), &word.to_bytes(), &[])
    }

    fn lock(&self) -> MutexGuard<'_, Hearing> {
        self.hearing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit for Lent {
    fn claim(mut self: Box<Self>) -> bool {
        self.is_settled = true;
        if self.by.lock().revoked {
            return false;
        }
        match self.by.say(&Word::Begun { id: self.id }) {
            Ok(()) => true,
            // Not heard of, so still stable's, which takes it back when its time is up.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            // Stable is gone, or has taken it back; then it has said so before.
            Err(_) => {
                self.by.hear_all();
                !self.by.lock().revoked
            }
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.is_settled {
            self.by.decline(self.id, false);
        }
    }
}

impl Delivery {
    fn new(listener: String, first: u64, count: u32, received: Received) -> Self {
        Self {
            listener,
            first,
            count,
            connections: received.descriptors,
        }
    }
}

impl fmt::Debug for Adopting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adopting")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}
