//! Stable's end: picks, passes on, and takes back.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::mem;
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::ON_THE_WAY_MAX;
use super::requests::{Asker, Key, Splitter};
use super::word::{WORD_MAX, Word};
use crate::config::FORWARDED_TOGETHER_MAX;
use crate::listen::{Adopted, Divert, Table};
use crate::rollout::pick::{Client, Pick};
use crate::rollout::{Share, Side};
use crate::sys::descriptors;

/// Passes a share of what this generation accepts to the candidate.
///
/// Dropped, it revokes.
#[derive(Debug)]
pub(crate) struct Director(Arc<Directing>);

/// Why nothing is passed on any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The candidate has closed its end, most likely by dying.
    Gone,
    /// It has left connections waiting.
    Stalled {
        /// How many there were in the end.
        waiting: usize,
        /// For how long the first of them.
        silent: Duration,
    },
    /// It said something that cannot be understood.
    Broken(String),
    /// This generation wanted everything back.
    Revoked,
    /// This generation has left everything to the candidate.
    Released,
}

/// What became of connections, or of requests if the share is one of requests. Each picked one was forwarded or kept; each
/// forwarded one was begun, taken back or lost, or is on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Accepted while the candidate had a share.
    pub(crate) accepted: u64,
    /// The candidate's by its share.
    pub(crate) picked: u64,
    /// Picked, and served by stable all the same since the candidate had no room.
    pub(crate) kept: u64,
    /// Passed to the candidate.
    pub(crate) forwarded: u64,
    /// Acknowledged: its application has them. Of requests: answered by it.
    pub(crate) begun: u64,
    /// Served by stable after all.
    pub(crate) taken_back: u64,
    /// Taken back when nobody accepted here any more. Of requests: without an answer.
    pub(crate) lost: u64,
}

/// A director as operators see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The share that the candidate is to have.
    pub(crate) share: Share,
    /// What became of connections since that is so.
    pub(crate) since: Counts,
    /// What became of them in all.
    pub(crate) total: Counts,
    /// The same, listener by listener.
    pub(crate) listeners: BTreeMap<String, Counts>,
    /// The candidate's, and not acknowledged.
    pub(crate) on_the_way: usize,
}

/// A director as long as there is one.
#[derive(Clone, Debug)]
pub(crate) struct Watched(Weak<Directing>);

impl Watched {
    /// How it stands.
    pub(crate) fn standing(&self) -> Option<Standing> {
        Some(self.0.upgrade()?.lock().standing())
    }
}

#[derive(Debug)]
pub(super) struct Directing {
    socket: AsyncFd<OwnedFd>,
    table: Table,
    splitter: Splitter,
    deadline: Duration,
    state: Mutex<State>,
    /// Something is held, or on its way while the task does not watch the time.
    begun: Notify,
    ended: watch::Sender<Option<End>>,
}

#[derive(Debug)]
struct State {
    pick: Pick,
    share: Share,
    coin: Coin,
    next_id: u64,
    /// Picked, and not sent yet.
    held: Vec<Held>,
    on_the_way: BTreeMap<u64, Sent>,
    /// So few that looking through them is the fastest way.
    listeners: Vec<Listener>,
    /// The total when the share was last set.
    before: Counts,
    is_timed: bool,
    has_ended: bool,
}

/// A listener whose connections were picked from.
#[derive(Debug)]
struct Listener {
    name: Arc<str>,
    counts: Counts,
    /// The candidate does not have it.
    is_declined: bool,
}

/// A connection for the candidate.
#[derive(Debug)]
struct Held {
    listener: Arc<str>,
    connection: OwnedFd,
}

/// A connection on its way.
#[derive(Debug)]
struct Sent {
    listener: Arc<str>,
    connection: OwnedFd,
    at: Instant,
    /// If it is no client's but carries requests: who waits for it to be acknowledged.
    carrier_of: Option<oneshot::Sender<()>>,
}

impl Director {
    /// Within a tokio runtime: a director without a share, and the candidate's end. A candidate that leaves a connection
    /// unacknowledged for `deadline` has stalled.
    pub(crate) fn new(
        table: &Table,
        splitter: &Splitter,
        pick: Pick,
        deadline: Duration,
    ) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = descriptors::pair()?;
        let state = State {
            pick,
            share: Share::NONE,
            coin: Coin::new(),
            next_id: 0,
            held: Vec::new(),
            on_the_way: BTreeMap::new(),
            listeners: Vec::new(),
            before: Counts::default(),
            is_timed: false,
            has_ended: false,
        };
        let directing = Arc::new(Directing {
            socket: descriptors::watched(ours, Interest::READABLE)?,
            table: table.clone(),
            splitter: splitter.clone(),
            deadline,
            state: Mutex::new(state),
            begun: Notify::new(),
            ended: watch::Sender::new(None),
        });
        tokio::spawn(Arc::clone(&directing).run());
        Ok((Self(directing), theirs))
    }

    /// Gives the candidate this share of what is accepted, or asked for, from now on. When it returns, nothing is passed on by the share
    /// before; with no share nothing is at all, though what is on its way arrives.
    pub(crate) fn set_share(&self, share: Share) {
        let mut state = self.0.lock();
        let unsent = self.0.send_off(&mut state);
        state.before = state.total();
        state.share = share;
        state.pick.set_share(share);
        let is_active = share != Share::NONE && !state.has_ended;
        let is_of_requests = state.pick.is_of_requests();
        drop(state);
        self.0.serve_here(unsent);
        match (is_active, is_of_requests) {
            (true, false) => self.0.table.diverter().start(self.0.clone()),
            (true, true) => self.0.splitter.start(&self.0),
            (false, _) => self.0.stop_picking(),
        }
    }

    /// For those who are to know how it stands at any time.
    pub(crate) fn watched(&self) -> Watched {
        Watched(Arc::downgrade(&self.0))
    }

    /// How it stands.
    #[cfg(test)]
    pub(super) fn standing(&self) -> Standing {
        self.0.lock().standing()
    }

    /// Waits until nothing is passed on any more, and says why.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost; any number of tasks may wait.
    pub(crate) async fn ended(&self) -> End {
        let mut ended = self.0.ended.subscribe();
        match ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(end)) => end.clone(),
            // The sender lives as long as `self`.
            Ok(None) | Err(_) => End::Gone,
        }
    }

    /// Takes back what the candidate has not begun, at once and for good: it is the next that the listeners accept.
    pub(crate) fn revoke(&self) {
        self.0.end(End::Revoked);
    }

    /// Leaves to the candidate what is on its way. For a generation that may not be there to take it back.
    pub(crate) fn release(self) {
        self.0.release();
    }
}

#[cfg(test)]
impl Director {
    /// Anything at all, to the candidate.
    pub(super) fn say(&self, bytes: &[u8]) {
        descriptors::send(self.0.socket.get_ref().as_fd(), bytes, &[]).unwrap();
    }
}

impl Drop for Director {
    fn drop(&mut self) {
        self.revoke();
    }
}

impl Divert for Directing {
    fn wants(&self, listener: &str, peer: Option<IpAddr>) -> bool {
        let mut state = self.lock();
        let coin = state.coin.toss();
        let side = state.pick.connection(peer, coin);
        let has_room = state.has_room();
        let listener = state.listener(listener);
        listener.counts.accepted += 1;
        if side == Side::Stable || listener.is_declined {
            return false;
        }
        listener.counts.picked += 1;
        listener.counts.kept += u64::from(!has_room);
        has_room
    }

    /// Sending wakes the candidate, which costs more than all the rest. So it waits until whoever accepts here has nothing
    /// more to accept, or much is held.
    fn take(&self, listener: &str, connection: OwnedFd) {
        let mut state = self.lock();
        let listener = Arc::clone(&state.listener(listener).name);
        state.held.push(Held {
            listener,
            connection,
        });
        let unsent = match state.may_pass_on() && state.held.len() < FORWARDED_TOGETHER_MAX {
            true => Vec::new(),
            false => self.send_off(&mut state),
        };
        let is_first = state.held.len() == 1;
        drop(state);
        if is_first {
            self.begun.notify_one();
        }
        self.serve_here(unsent);
    }
}

impl Directing {
    /// Listens to the candidate, and watches the time, until the end.
    async fn run(self: Arc<Self>) {
        let mut ended = self.ended.subscribe();
        let mut timer = pin!(sleep_until(Instant::now()));
        let mut is_timed = false;
        loop {
            self.send_off_held();
            // A timer for one that has been begun meanwhile is early for the others. Most often there are none, and
            // setting it anew for each would cost more than forwarding does.
            if !is_timed && let Some(overdue_at) = self.watch_time() {
                timer.as_mut().reset(overdue_at);
                is_timed = true;
            }
            tokio::select! {
                _ = ended.wait_for(Option::is_some) => return,
                readable = self.socket.readable() => match readable {
                    Ok(mut ready) => match self.hear() {
                        Hearing::MoreToCome => {}
                        Hearing::Everything => ready.clear_ready(),
                        // A socket that is shut down for reading stays ready.
                        Hearing::Over => return,
                    },
                    Err(error) => self.end(End::Broken(error.to_string())),
                },
                () = self.begun.notified() => {}
                () = timer.as_mut(), if is_timed => {
                    is_timed = false;
                    self.look_for_overdue();
                }
            }
        }
    }

    /// When the connection that is on its way for longest has been so for too long.
    fn watch_time(&self) -> Option<Instant> {
        let mut state = self.lock();
        let since = state.on_the_way.first_key_value().map(|(_, sent)| sent.at);
        state.is_timed = since.is_some();
        since.map(|since| since + self.deadline)
    }

    fn look_for_overdue(&self) {
        // What was said in time counts, though this process may have been too busy to look.
        while matches!(self.hear(), Hearing::MoreToCome) {}
        let mut state = self.lock();
        state.is_timed = false;
        let overdue = Instant::now() - self.deadline;
        let oldest = state.on_the_way.first_key_value();
        if oldest.is_some_and(|(_, sent)| sent.at <= overdue) {
            let waiting = state.on_the_way.len();
            drop(state);
            self.end(End::Stalled {
                waiting,
                silent: self.deadline,
            });
        }
    }

    fn send_off_held(&self) {
        let mut state = self.lock();
        let unsent = self.send_off(&mut state);
        drop(state);
        self.serve_here(unsent);
    }

    /// Sends what is held, in order, and all that one listener has got in a row together. Returns what the candidate does
    /// not take now.
    fn send_off(&self, state: &mut State) -> Vec<Held> {
        let mut held = mem::take(&mut state.held).into_iter().peekable();
        while state.may_pass_on()
            && let Some(Held { listener, .. }) = held.peek()
        {
            let listener = Arc::clone(listener);
            let mut connections = Vec::new();
            while let Some(next) = held.next_if(|next| next.listener == listener) {
                connections.push(next.connection);
            }
            let count = connections.len() as u64;
            if let Err(error) = self.send(state, &listener, &mut connections, None) {
                tracing::debug!(%error, "the candidate takes no connections now");
                let unsent = connections.into_iter().map(|connection| Held {
                    listener: Arc::clone(&listener),
                    connection,
                });
                return unsent.chain(held).collect();
            }
            state.listener(&listener).counts.forwarded += count;
        }
        held.collect()
    }

    fn send(
        &self,
        state: &mut State,
        listener: &str,
        connections: &mut Vec<OwnedFd>,
        mut carrier_of: Option<oneshot::Sender<()>>,
    ) -> io::Result<()> {
        let (first, count) = (state.next_id, connections.len());
        let word = Word::Forward {
            listener: listener.to_owned(),
            first,
            count: u32::try_from(count).unwrap_or(u32::MAX),
        };
        let borrowed: Vec<BorrowedFd<'_>> = connections.iter().map(AsFd::as_fd).collect();
        descriptors::send(self.socket.as_fd(), &word.to_bytes(), &borrowed)?;
        drop(borrowed);
        let (listener, at) = (Arc::clone(&state.listener(listener).name), Instant::now());
        let sent = connections.drain(..).map(|connection| Sent {
            listener: Arc::clone(&listener),
            connection,
            at,
            carrier_of: carrier_of.take(),
        });
        state.on_the_way.extend((first..).zip(sent));
        state.next_id += count as u64;
        Ok(())
    }

    /// Takes in some of what the candidate has said. Others get the lock in between.
    fn hear(&self) -> Hearing {
        let mut settled = Settled::default();
        let mut state = self.lock();
        if state.has_ended {
            return Hearing::Over;
        }
        let mut heard = Heard::Word;
        for _ in 0..HEARD_TOGETHER_MAX {
            heard = self.hear_one(&mut state, &mut settled);
            if !matches!(heard, Heard::Word) {
                break;
            }
        }
        drop(state);
        // Closing takes its time, so nobody is kept waiting by it.
        for Sent { carrier_of, .. } in settled.begun {
            // Who waits no more has sent its request elsewhere.
            let _ = carrier_of.map(|waiting| waiting.send(()));
        }
        self.take_back(settled.declined);
        let end = match heard {
            Heard::Word => return Hearing::MoreToCome,
            Heard::Nothing => return Hearing::Everything,
            Heard::Closed => End::Gone,
            Heard::Garbage(reason) => End::Broken(reason),
            Heard::Failed(error) => End::Broken(error.to_string()),
        };
        self.end(end);
        Hearing::Over
    }

    fn hear_one(&self, state: &mut State, settled: &mut Settled) -> Heard {
        let mut buffer = [0; WORD_MAX];
        let received = match recv_past_reset(self.socket.as_fd(), &mut buffer) {
            Ok(Some(received)) => received,
            Ok(None) => return Heard::Closed,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Heard::Nothing,
            Err(error) => return Heard::Failed(error),
        };
        let word = match Word::from_bytes(&buffer[..received.length]) {
            Ok(word) => word,
            Err(error) => return Heard::Garbage(error.to_string()),
        };
        let known = match &word {
            Word::Begun { id } | Word::Declined { id, .. } => state.on_the_way.remove(id),
            Word::Forward { .. } | Word::Revoked => None,
        };
        let Some(sent) = known else {
            return Heard::Garbage(format!("{word:?} was not expected"));
        };
        match word {
            Word::Declined { for_good, .. } => {
                if for_good {
                    state.listener(&sent.listener).is_declined = true;
                }
                settled.declined.push(sent);
            }
            _ => {
                if sent.carrier_of.is_none() {
                    state.listener(&sent.listener).counts.begun += 1;
                }
                settled.begun.push(sent);
            }
        }
        Heard::Word
    }

    fn stop_picking(&self) {
        self.table.diverter().stop(self);
        self.splitter.stop(self);
    }

    /// The end: whatever the candidate has not begun is served here.
    fn end(&self, why: End) {
        self.stop_picking();
        let mut state = self.lock();
        if mem::replace(&mut state.has_ended, true) {
            return;
        }
        let (revoked, socket) = (Word::Revoked.to_bytes(), self.socket.get_ref());
        if let Err(error) = descriptors::send(socket.as_fd(), &revoked, &[]) {
            tracing::debug!(%error, "the candidate is not told what is taken back");
        }
        // From here on no acknowledgement can be sent; those that were are read, to the end.
        if let Err(error) = SockRef::from(socket).shutdown(Shutdown::Read) {
            tracing::debug!(%error, "the candidate is gone");
        }
        let mut settled = Settled::default();
        loop {
            match self.hear_one(&mut state, &mut settled) {
                // One that makes no sense hides no other.
                Heard::Word | Heard::Garbage(_) => {}
                Heard::Closed => break,
                Heard::Nothing => break tracing::warn!("the director's end is not known"),
                Heard::Failed(error) => {
                    break tracing::warn!(%error, "the director's end is not known");
                }
            }
        }
        let unbegun = mem::take(&mut state.on_the_way);
        let unsent = mem::take(&mut state.held);
        drop(state);
        settled.declined.extend(unbegun.into_values());
        self.take_back(settled.declined);
        self.serve_here(unsent);
        self.ended.send_replace(Some(why));
    }

    fn release(&self) {
        self.stop_picking();
        let mut state = self.lock();
        let unsent = self.send_off(&mut state);
        if mem::replace(&mut state.has_ended, true) {
            return;
        }
        let left = mem::take(&mut state.on_the_way);
        drop(state);
        drop(left);
        self.serve_here(unsent);
        self.ended.send_replace(Some(End::Released));
    }

    /// Has them accepted here, in order. Who waits for a carrier of requests sees that there is none, and has sent nothing.
    fn take_back(&self, back: Vec<Sent>) {
        for sent in back.into_iter().filter(|sent| sent.carrier_of.is_none()) {
            self.adopt(&sent.listener, sent.connection, |counts| {
                counts.taken_back += 1;
            });
        }
    }

    /// The same with what has never been sent.
    fn serve_here(&self, unsent: Vec<Held>) {
        for Held {
            listener,
            connection,
        } in unsent
        {
            self.adopt(&listener, connection, |counts| counts.kept += 1);
        }
    }

    fn adopt(&self, listener: &str, connection: OwnedFd, count: impl FnOnce(&mut Counts)) {
        let adopted = self
            .table
            .adopt_connection(listener, Adopted::new(connection));
        let mut state = self.lock();
        let counts = &mut state.listener(listener).counts;
        match adopted {
            Ok(()) => count(counts),
            Err(_) => {
                counts.lost += 1;
                tracing::warn!(%listener, "a connection was dropped: nobody accepts any more");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// For requests.
#[cfg_attr(
    not(feature = "http"),
    allow(dead_code, reason = "only HTTP has requests")
)]
impl Directing {
    /// Whether the candidate is to answer a request.
    pub(super) fn wants_request(&self, listener: &str, asker: Asker<'_>) -> bool {
        let mut state = self.lock();
        let coin = state.coin.toss();
        let client = match asker.key {
            Key::Peer => asker.peer.map(Client::Address),
            Key::Named(name) => Some(Client::Named(name)),
            Key::Coin => None,
        };
        let side = state.pick.request(asker.peer, client, coin);
        let may_pass_on = state.may_pass_on();
        let listener = state.listener(listener);
        listener.counts.accepted += 1;
        if side == Side::Stable || listener.is_declined || !may_pass_on {
            return false;
        }
        listener.counts.picked += 1;
        true
    }

    /// Passes on a connection that carries requests. Resolves when the candidate's application has it; an error says that
    /// it never will.
    pub(super) fn carry(
        &self,
        listener: &str,
        connection: OwnedFd,
    ) -> io::Result<oneshot::Receiver<()>> {
        let mut state = self.lock();
        if !state.has_room() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let (waiting, begun) = oneshot::channel();
        self.send(&mut state, listener, &mut vec![connection], Some(waiting))?;
        if !state.is_timed {
            self.begun.notify_one();
        }
        Ok(begun)
    }

    pub(super) fn count(&self, listener: &str, count: impl FnOnce(&mut Counts)) {
        count(&mut self.lock().listener(listener).counts);
    }
}

impl State {
    fn may_pass_on(&self) -> bool {
        self.share != Share::NONE && !self.has_ended
    }

    fn has_room(&self) -> bool {
        self.may_pass_on() && self.held.len() + self.on_the_way.len() < ON_THE_WAY_MAX
    }

    fn listener(&mut self, name: &str) -> &mut Listener {
        let known = self.listeners.iter().position(|it| &*it.name == name);
        let index = known.unwrap_or_else(|| {
            self.listeners.push(Listener {
                name: name.into(),
                counts: Counts::default(),
                is_declined: false,
            });
            self.listeners.len() - 1
        });
        &mut self.listeners[index]
    }

    fn standing(&self) -> Standing {
        let total = self.total();
        Standing {
            share: self.share,
            since: total.since(self.before),
            total,
            listeners: self
                .listeners
                .iter()
                .map(|it| (it.name.to_string(), it.counts))
                .collect(),
            on_the_way: self.held.len() + self.on_the_way.len(),
        }
    }

    fn total(&self) -> Counts {
        self.listeners
            .iter()
            .fold(Counts::default(), |sum, it| sum.plus(it.counts))
    }
}

impl Counts {
    pub(super) fn plus(self, other: Self) -> Self {
        self.zip(other, |one, other| one + other)
    }

    fn since(self, before: Self) -> Self {
        self.zip(before, u64::saturating_sub)
    }

    fn zip(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            accepted: with(self.accepted, other.accepted),
            picked: with(self.picked, other.picked),
            kept: with(self.kept, other.kept),
            forwarded: with(self.forwarded, other.forwarded),
            begun: with(self.begun, other.begun),
            taken_back: with(self.taken_back, other.taken_back),
            lost: with(self.lost, other.lost),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the candidate takes no more connections"),
            Self::Stalled { waiting, silent } => write!(
                f,
                "the candidate left {waiting} connections waiting, for up to {silent:?}"
            ),
            Self::Broken(reason) => {
                write!(f, "the candidate cannot be understood: {reason}")
            }
            Self::Revoked => f.write_str("the candidate has no share any more"),
            Self::Released => f.write_str("the candidate has them all"),
        }
    }
}

/// What a look at the socket leaves.
enum Hearing {
    MoreToCome,
    Everything,
    Over,
}

enum Heard {
    Word,
    Nothing,
    Closed,
    Garbage(String),
    Failed(io::Error),
}

/// What is no longer on its way.
#[derive(Default)]
struct Settled {
    begun: Vec<Sent>,
    declined: Vec<Sent>,
}

/// Random bits for what has no client to go by. Nobody gains by foreseeing them.
#[derive(Debug)]
struct Coin(u64);

impl Coin {
    fn new() -> Self {
        // The standard library's only source of randomness; an even seed could be zero, which stays zero.
        Self(RandomState::new().build_hasher().finish() | 1)
    }

    /// Marsaglia's xorshift with a multiplication (Vigna, 2016: xorshift64*), whose upper bits are the good ones.
    fn toss(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}

/// A peer that dies with something unread leaves one reset in front of its last words.
pub(super) fn recv_past_reset(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<Option<descriptors::Received>> {
    match descriptors::recv(socket, buffer) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
            descriptors::recv(socket, buffer)
        }
        received => received,
    }
}

/// Words that are taken in before somebody else gets the lock.
const HEARD_TOGETHER_MAX: usize = 32;
