//! The accept right of one socket of this process.
//!
//! 1. Everyone accepts under the lock of the state, and `shut` takes the same lock: once it returns, nobody accepts.
//! 2. A gate that is not open has no registration in any epoll, so its socket wakes nobody. Dropping tokio's type
//!    deregisters before it returns (epoll_ctl(2), `EPOLL_CTL_DEL`).
//! 3. Locks are taken in the order state, waiting.
//! 4. Adopted connections pass whether the gate is open or shut, retired too: they are this generation's already. None
//!    of the locks above is held while one is claimed from whoever passed it, which may add further ones meanwhile.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep};

use super::divert::{Diversion, Diverting};
use super::intake::{Adopted, Intake};
use super::probe::{Caller, Expected};
use super::waiting::{Seat, Waiting};
use crate::config::DEAF_RETRY;

/// What tokio makes of a socket that it watches: being registered is being alive.
pub(super) trait Watch: Sized + Send + 'static {
    fn watch(socket: OwnedFd) -> io::Result<Self>;
}

/// A watched listener, whose connections may come from another generation and go to one as well.
pub(super) trait Listen: Watch {
    /// What an application accepts.
    type Accepted;

    /// From the kernel's queue.
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Self::Accepted>>;
    /// The same of a connection that was accepted elsewhere.
    fn adopt(connection: OwnedFd) -> io::Result<Self::Accepted>;
    /// Who is at the other end, if that has an address.
    fn peer(accepted: &Self::Accepted) -> Option<IpAddr>;
    /// Where it comes from, for those who only ask who accepts.
    fn caller(accepted: &Self::Accepted) -> Caller;
    /// The connection alone.
    fn connection(accepted: &Self::Accepted) -> BorrowedFd<'_>;
    /// The same, watched by nobody.
    fn into_connection(accepted: Self::Accepted) -> io::Result<OwnedFd>;
}

/// A gate as the table sees it, whatever passes through.
pub(super) trait Gated: fmt::Debug + Send + Sync {
    /// Puts a connection before the application that was accepted elsewhere, or gives it back.
    fn adopt(&self, adopted: Adopted) -> Result<(), Adopted>;
    /// Opens, or says why this gate would be deaf and stays shut. An open or retired gate stays as it is.
    fn open(&self) -> io::Result<()>;
    /// Opens even if the socket cannot be watched now, and goes on trying to watch it.
    fn open_regardless(&self);
    /// Takes the accept right away. When it returns, nobody in this process accepts from the socket any more.
    fn shut(&self);
    /// How many came through since it was made.
    fn accepted(&self) -> u64;
    /// Begins to notice when the last connection came through. Nothing else changes.
    fn settle(&self);
    /// Since when nobody came through a gate that settles; `None` if nobody can.
    fn quiet_since(&self) -> Option<Instant>;
    /// The socket will be shut down for reading, so that its queue comes to an end: retires when that is reached.
    fn expect_end(&self);
    /// Retires as soon as those who accept have emptied the queue; at once if nobody can.
    fn finish(&self);
    /// Gives the socket back for good. Whoever waits at the gate waits for ever.
    fn retire(&self);
    /// Becomes `true` when the gate has retired.
    fn retired(&self) -> watch::Receiver<bool>;
    /// Becomes 0 when the application has all that was adopted.
    fn adopted(&self) -> watch::Receiver<usize>;
}

/// See the module's head.
pub(super) struct Gate<W> {
    state: Mutex<State<W>>,
    waiting: Arc<Waiting>,
    /// The one waker that the registration knows: it wakes all of `waiting`.
    waker: Waker,
    runtime: Handle,
    intake: Intake,
    diversion: Diversion,
    expected: Arc<Expected>,
}

struct State<W> {
    /// None once retired.
    socket: Option<Arc<OwnedFd>>,
    right: Right<W>,
    end: End,
    accepted: u64,
    /// The application has dropped its listener.
    abandoned: bool,
    retired: watch::Sender<bool>,
}

/// How far a gate is on its way to giving its socket back.
#[derive(Clone, Copy)]
enum End {
    /// It is not.
    Open,
    /// Those who are on their way are let in; since when nobody came.
    Settling { quiet_since: Instant },
    /// Retires when the queue is empty.
    WhenEmpty,
    /// Retires when accept says that nobody will come any more. Such a socket polls readable for ever (unix_poll), so
    /// that looking does not tell whether its queue is empty.
    WhenRefused,
}

enum Right<W> {
    Shut,
    Open(W),
    /// Open, but the kernel would not watch the socket; the next attempt is at the end of the timer.
    Deaf(Pin<Box<Sleep>>),
}

impl<W: Watch> Gate<W> {
    /// A shut gate. Its socket will be watched by `runtime`, some of its connections may be diverted, and those that are
    /// `expected` are answered.
    pub(super) fn new(
        socket: Arc<OwnedFd>,
        runtime: Handle,
        diversion: Diversion,
        expected: Arc<Expected>,
    ) -> Self {
        let waiting = Arc::new(Waiting::default());
        Self {
            intake: Intake::default(),
            diversion,
            expected,
            state: Mutex::new(State {
                socket: Some(socket),
                right: Right::Shut,
                end: End::Open,
                accepted: 0,
                abandoned: false,
                retired: watch::Sender::new(false),
            }),
            waker: Waker::from(Arc::clone(&waiting)),
            waiting,
            runtime,
        }
    }

    /// Waits until the gate is open and `attempt` has something. Nothing is lost if it is dropped.
    pub(super) async fn pass<T>(
        &self,
        mut attempt: impl FnMut(&W, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> io::Result<T> {
        let mut turn = Turn {
            waiting: &self.waiting,
            seat: None,
        };
        poll_fn(|cx| self.poll_in(&mut turn.seat, cx, &mut attempt)).await
    }

    /// As [`pass`](Self::pass), for callers without a future. Only the last one is woken.
    pub(super) fn poll_pass<T>(
        &self,
        cx: &mut Context<'_>,
        mut attempt: impl FnMut(&W, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        self.poll_in(&mut Some(Seat::SHARED), cx, &mut attempt)
    }

    fn poll_in<T>(
        &self,
        seat: &mut Option<Seat>,
        cx: &mut Context<'_>,
        attempt: &mut impl FnMut(&W, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let mut state = self.lock();
        let mut shared = Context::from_waker(&self.waker);
        if let Poll::Ready(outcome) = state.poll(&self.runtime, &mut shared, attempt) {
            return Poll::Ready(outcome);
        }
        self.waiting.enter(seat, cx.waker());
        // Readiness that came before the waiter had its seat woke nobody, so look again.
        state.poll(&self.runtime, &mut shared, attempt)
    }

    /// The socket, unless the gate has retired.
    #[cfg(test)]
    fn socket(&self) -> Option<Arc<OwnedFd>> {
        self.lock().socket.clone()
    }

    /// Shuts for good because there is nobody left to accept. The socket stays, for an offer.
    pub(super) fn abandon(&self) {
        self.intake.close();
        let mut state = self.lock();
        state.abandoned = true;
        state.right = Right::Shut;
        if !matches!(state.end, End::Open) {
            state.retire();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<L: Listen> Gate<L> {
    /// The next connection: one that was adopted, or else one from the kernel's queue that is not to go elsewhere.
    /// Nothing is lost if it is dropped.
    pub(super) async fn accept(&self) -> io::Result<L::Accepted> {
        let mut turn = Turn {
            waiting: &self.waiting,
            seat: None,
        };
        poll_fn(|cx| self.poll_accept_in(&mut turn.seat, cx)).await
    }

    /// As [`accept`](Self::accept), for callers without a future. Only the last one is woken.
    pub(super) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<L::Accepted>> {
        self.poll_accept_in(&mut Some(Seat::SHARED), cx)
    }

    fn poll_accept_in(
        &self,
        seat: &mut Option<Seat>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<L::Accepted>> {
        let diverting = self.diversion.begin();
        loop {
            if let Some(adopted) = self.take_adopted() {
                return Poll::Ready(Ok(adopted));
            }
            let outcome = match self.poll_in(seat, cx, &mut L::poll_accept) {
                Poll::Ready(Ok(accepted)) if self.answers(&accepted) => continue,
                Poll::Ready(Ok(accepted)) => match &diverting {
                    Some(elsewhere) if elsewhere.wants(L::peer(&accepted)) => {
                        divert::<L>(elsewhere, accepted);
                        continue;
                    }
                    _ => Poll::Ready(Ok(accepted)),
                },
                outcome => outcome,
            };
            // What was adopted before the waiter had its seat woke nobody, so look again.
            if outcome.is_ready() || self.intake.is_empty() {
                return outcome;
            }
        }
    }

    /// Whether that was a connection which only asks who accepts; it has its answer now.
    fn answers(&self, accepted: &L::Accepted) -> bool {
        self.expected
            .answers(&L::connection(accepted), || L::caller(accepted))
    }

    fn take_adopted(&self) -> Option<L::Accepted> {
        while let Some(adopted) = self.intake.next() {
            match adopted.claim(L::adopt) {
                Ok(Some(accepted)) => return Some(accepted),
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "an adopted connection has gone"),
            }
        }
        None
    }
}

fn divert<L: Listen>(elsewhere: &Diverting<'_>, accepted: L::Accepted) {
    match L::into_connection(accepted) {
        Ok(connection) => elsewhere.take(connection),
        Err(error) => tracing::warn!(%error, "a connection could not be diverted"),
    }
}

impl<W: Watch> Gated for Gate<W> {
    fn adopt(&self, adopted: Adopted) -> Result<(), Adopted> {
        self.intake.add(adopted)?;
        self.waker.wake_by_ref();
        Ok(())
    }

    fn open(&self) -> io::Result<()> {
        self.lock().open(&self.runtime)?;
        self.waker.wake_by_ref();
        Ok(())
    }

    fn open_regardless(&self) {
        self.lock().open_regardless(&self.runtime);
        self.waker.wake_by_ref();
    }

    fn shut(&self) {
        self.lock().right = Right::Shut;
    }

    fn accepted(&self) -> u64 {
        self.lock().accepted
    }

    fn settle(&self) {
        let quiet_since = Instant::now();
        self.lock().end = End::Settling { quiet_since };
    }

    fn quiet_since(&self) -> Option<Instant> {
        let state = self.lock();
        match (state.end, &state.right) {
            (_, Right::Shut) => None,
            (End::Settling { quiet_since }, _) => Some(quiet_since),
            _ => None,
        }
    }

    fn expect_end(&self) {
        self.lock().end = End::WhenRefused;
    }

    fn finish(&self) {
        self.lock().finish();
        self.waker.wake_by_ref();
    }

    fn retire(&self) {
        self.lock().retire();
    }

    fn retired(&self) -> watch::Receiver<bool> {
        self.lock().retired.subscribe()
    }

    fn adopted(&self) -> watch::Receiver<usize> {
        self.intake.count()
    }
}

impl<W: Watch> State<W> {
    fn poll<T>(
        &mut self,
        runtime: &Handle,
        shared: &mut Context<'_>,
        attempt: &mut impl FnMut(&W, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        while let Right::Deaf(retry) = &mut self.right {
            ready!(retry.as_mut().poll(shared));
            self.right = Right::Shut;
            self.open_regardless(runtime);
        }
        let Right::Open(watch) = &self.right else {
            return Poll::Pending;
        };
        let outcome = attempt(watch, shared);
        if let Poll::Ready(Ok(_)) = outcome {
            self.accepted += 1;
        }
        match (&outcome, &mut self.end) {
            (Poll::Ready(Ok(_)), End::Settling { quiet_since }) => *quiet_since = Instant::now(),
            (Poll::Pending, End::WhenEmpty) => self.retire_if_empty(shared),
            (Poll::Ready(Err(error)), End::WhenRefused) if is_end(error) => {
                self.retire();
                return Poll::Pending;
            }
            _ => {}
        }
        outcome
    }

    fn open(&mut self, runtime: &Handle) -> io::Result<()> {
        let (Some(socket), Right::Shut, false) = (&self.socket, &self.right, self.abandoned) else {
            return Ok(());
        };
        let _entered = runtime.enter();
        self.right = Right::Open(W::watch(socket.try_clone()?)?);
        Ok(())
    }

    /// A rollback has nobody else to fall back on (fails open), so a socket that cannot be watched is tried again.
    fn open_regardless(&mut self, runtime: &Handle) {
        if let Err(error) = self.open(runtime) {
            tracing::warn!(%error, "a gate is open but its socket cannot be watched; trying again");
            let _entered = runtime.enter();
            self.right = Right::Deaf(Box::pin(sleep(DEAF_RETRY)));
        }
    }

    fn finish(&mut self) {
        let is_empty = match self.end {
            End::WhenRefused => false,
            _ => !self.socket.as_deref().is_some_and(has_waiting),
        };
        if matches!(self.right, Right::Shut) || is_empty {
            self.retire();
        } else if !matches!(self.end, End::WhenRefused) {
            self.end = End::WhenEmpty;
        }
    }

    /// Being pending does not say that the queue is empty: tokio's budget may be used up, or its news be on the way.
    fn retire_if_empty(&mut self, shared: &Context<'_>) {
        if self.socket.as_deref().is_some_and(has_waiting) {
            shared.waker().wake_by_ref();
        } else {
            self.retire();
        }
    }

    fn retire(&mut self) {
        self.right = Right::Shut;
        self.socket = None;
        self.retired.send_replace(true);
    }
}

/// Whether somebody waits in the socket's queue. A socket that was shut down for reading always says yes.
pub(super) fn has_waiting(socket: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    nix::poll::poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// What accept says of a listener that was shut down for reading once its queue is empty (see unix.rs).
fn is_end(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

impl<W> fmt::Debug for Gate<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        f.write_str(match (&state.socket, &state.right) {
            (None, _) => "Gate(retired)",
            (_, Right::Shut) => "Gate(shut)",
            (_, Right::Open(_)) => "Gate(open)",
            (_, Right::Deaf(_)) => "Gate(open, deaf)",
        })
    }
}

/// A waiting future's seat, left when the future is dropped.
struct Turn<'a> {
    waiting: &'a Waiting,
    seat: Option<Seat>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(seat) = self.seat {
            self.waiting.leave(seat);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem;
    use std::net::SocketAddr;
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use tokio::net::{TcpListener, TcpStream};

    use super::super::divert::{Divert, Diverter};
    use super::super::intake::Permit;
    use super::super::testing::{
        Fallible, UNWATCHABLE, await_queue, connect, descriptors, inode, listening_socket,
        poll_once, registrations, within,
    };
    use super::*;
    use crate::config::ADOPTED_MAX;

    type Client = std::net::TcpStream;

    fn gate<W: Watch>() -> (Arc<Gate<W>>, SocketAddr, u64) {
        let (socket, address) = listening_socket();
        let inode = inode(&socket);
        let gate = Gate::new(
            Arc::new(socket),
            Handle::current(),
            Diverter::default().at("web"),
            Arc::default(),
        );
        (Arc::new(gate), address, inode)
    }

    async fn accept(gate: &Gate<TcpListener>) -> (TcpStream, SocketAddr) {
        gate.pass(|listener, cx| listener.poll_accept(cx))
            .await
            .unwrap()
    }

    fn poll_accept(gate: &Gate<TcpListener>, cx: &mut Context<'_>) -> Poll<()> {
        let accepted = gate.poll_pass(cx, |listener, cx| listener.poll_accept(cx));
        accepted.map(|accepted| drop(accepted.unwrap()))
    }

    /// What was ready in an epoll before a later connection comes through has been told by then.
    async fn let_the_runtime_read_its_epoll() {
        let (gate, address, _) = gate();
        gate.open().unwrap();
        let _client = connect(address);
        within(accept(&gate)).await;
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn a_connection_waits_in_the_queue_until_the_gate_opens() {
        let (gate, address, _) = gate();
        let mut waiting = pin!(accept(&gate));
        let client = connect(address);
        assert!(poll_once(waiting.as_mut()).await.is_pending());
        gate.open().unwrap();
        let (_, peer) = within(waiting).await;
        assert_eq!(peer, client.local_addr().unwrap());
    }

    #[tokio::test]
    async fn once_shut_returns_a_pending_accept_takes_nothing() {
        let (gate, address, _) = gate();
        let other = std::net::TcpListener::from(gate.socket().unwrap().try_clone().unwrap());
        gate.open().unwrap();
        let mut pending = pin!(accept(&gate));
        assert!(poll_once(pending.as_mut()).await.is_pending());
        gate.shut();
        let client = connect(address);
        await_queue(&gate.socket().unwrap());
        let_the_runtime_read_its_epoll().await;
        assert!(poll_once(pending.as_mut()).await.is_pending());
        let (_, peer) = other.accept().unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
    }

    #[tokio::test]
    async fn opening_wakes_those_who_wait() {
        let (gate, ..) = gate::<TcpListener>();
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        assert!(poll_accept(&gate, &mut cx).is_pending());
        gate.open().unwrap();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        gate.shut();
        assert!(poll_accept(&gate, &mut cx).is_pending());
        gate.open_regardless();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn readiness_that_comes_before_a_waiter_has_its_seat_is_not_lost() {
        let (gate, ..) = gate::<TcpListener>();
        gate.open().unwrap();
        let mut came = false;
        let mut passing = pin!(gate.pass(|_, cx| {
            if mem::replace(&mut came, true) {
                return Poll::Ready(Ok(()));
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }));
        assert!(poll_once(passing.as_mut()).await.is_ready());
    }

    #[tokio::test]
    async fn an_abandoned_gate_is_deregistered_and_does_not_open_again() {
        let (gate, _, inode) = gate::<TcpListener>();
        gate.open().unwrap();
        gate.abandon();
        assert_eq!(registrations(inode), 0);
        gate.open().unwrap();
        assert_eq!(registrations(inode), 0);
        assert_eq!(descriptors(inode), 1);
    }

    #[tokio::test]
    async fn only_an_open_gate_is_registered_in_an_epoll() {
        let (gate, _, inode) = gate();
        let mut pending = pin!(accept(&gate));
        assert!(poll_once(pending.as_mut()).await.is_pending());
        assert_eq!(registrations(inode), 0);
        gate.open().unwrap();
        assert_eq!(registrations(inode), 1);
        gate.shut();
        assert_eq!(registrations(inode), 0);
    }

    #[tokio::test]
    async fn a_connection_at_a_shut_gate_wakes_nobody() {
        let (gate, address, _) = gate::<TcpListener>();
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        gate.open().unwrap();
        assert!(poll_accept(&gate, &mut cx).is_pending());
        gate.shut();
        let _client = connect(address);
        let_the_runtime_read_its_epoll().await;
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn everyone_who_accepts_from_one_listener_makes_progress() {
        const ACCEPTORS: usize = 8;
        const EACH: usize = 10;
        let (gate, address, _) = gate();
        gate.open().unwrap();
        let acceptors: Vec<_> = (0..ACCEPTORS)
            .map(|_| {
                let gate = Arc::clone(&gate);
                tokio::spawn(async move {
                    for _ in 0..EACH {
                        accept(&gate).await;
                    }
                })
            })
            .collect();
        let clients = tokio::task::spawn_blocking(move || {
            (0..ACCEPTORS * EACH)
                .map(|_| connect(address))
                .collect::<Vec<_>>()
        });
        within(clients).await.unwrap();
        for acceptor in acceptors {
            within(acceptor).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_dropped_accept_leaves_nothing_behind() {
        let (gate, _, _) = gate();
        for _ in 0..10 {
            let mut pending = pin!(accept(&gate));
            assert!(poll_once(pending.as_mut()).await.is_pending());
        }
        assert_eq!(
            format!("{:?}", gate.waiting),
            format!("{:?}", {
                let fresh = Waiting::default();
                (0..10).for_each(|_| {
                    let mut seat = None;
                    fresh.enter(&mut seat, Waker::noop());
                    fresh.leave(seat.unwrap());
                });
                fresh
            })
        );
    }

    #[tokio::test]
    async fn an_unwatchable_socket_keeps_a_forward_flip_shut() {
        let (gate, _, inode) = gate::<Fallible>();
        UNWATCHABLE.set(true);
        let error = gate.open().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(format!("{gate:?}"), "Gate(shut)");
        assert_eq!(descriptors(inode), 1);
    }

    #[tokio::test]
    async fn a_gate_opened_regardless_accepts_once_its_socket_can_be_watched() {
        let (gate, address, _) = gate::<Fallible>();
        UNWATCHABLE.set(true);
        gate.open_regardless();
        let _client = connect(address);
        let mut deaf = pin!(gate.pass(Fallible::accept));
        assert!(poll_once(deaf.as_mut()).await.is_pending());
        // Still unwatchable at the first retry, watchable at a later one.
        let retried = tokio::time::timeout(DEAF_RETRY * 3, deaf.as_mut()).await;
        assert!(retried.is_err());
        assert_eq!(format!("{gate:?}"), "Gate(open, deaf)");
        UNWATCHABLE.set(false);
        within(deaf).await.unwrap();
    }

    #[tokio::test]
    async fn a_deaf_gate_shuts_like_any_other() {
        let (gate, address, inode) = gate::<Fallible>();
        UNWATCHABLE.set(true);
        gate.open_regardless();
        gate.shut();
        UNWATCHABLE.set(false);
        let _client = connect(address);
        let mut pending = pin!(gate.pass(Fallible::accept));
        assert!(poll_once(pending.as_mut()).await.is_pending());
        assert_eq!(registrations(inode), 0);
    }

    #[tokio::test]
    async fn a_retired_gate_has_closed_its_socket_and_pends_for_ever() {
        let (gate, _, inode) = gate();
        gate.open().unwrap();
        let mut pending = pin!(accept(&gate));
        assert!(poll_once(pending.as_mut()).await.is_pending());
        gate.retire();
        assert_eq!(descriptors(inode), 0);
        gate.open().unwrap();
        assert!(poll_once(pending.as_mut()).await.is_pending());
    }

    #[tokio::test]
    async fn a_finishing_gate_retires_when_the_accept_loop_has_emptied_the_queue() {
        let (gate, address, inode) = gate();
        gate.open().unwrap();
        let clients: Vec<_> = (0..5).map(|_| connect(address)).collect();
        await_queue(&gate.socket().unwrap());
        gate.finish();
        for _ in &clients {
            within(accept(&gate)).await;
        }
        let mut retired = gate.retired();
        assert!(!*retired.borrow());
        let mut pending = pin!(accept(&gate));
        assert!(poll_once(pending.as_mut()).await.is_pending());
        within(retired.wait_for(|retired| *retired)).await.unwrap();
        assert_eq!(descriptors(inode), 0);
    }

    #[tokio::test]
    async fn a_finishing_gate_with_an_empty_queue_or_without_a_listener_retires_at_once() {
        let (empty, ..) = gate::<TcpListener>();
        empty.open().unwrap();
        empty.finish();
        assert!(*empty.retired().borrow());

        let (abandoned, address, _) = gate::<TcpListener>();
        abandoned.open().unwrap();
        let _client = connect(address);
        await_queue(&abandoned.socket().unwrap());
        abandoned.finish();
        assert!(!*abandoned.retired().borrow());
        abandoned.abandon();
        assert!(*abandoned.retired().borrow());
    }

    /// A connection that somebody else has accepted, and its client's end.
    fn elsewhere() -> (OwnedFd, Client) {
        let (socket, address) = listening_socket();
        let client = connect(address);
        await_queue(&socket);
        let (accepted, _) = std::net::TcpListener::from(socket).accept().unwrap();
        (accepted.into(), client)
    }

    /// Answers as it is told, and remembers what it was told.
    struct Told {
        may: bool,
        heard: Arc<Mutex<Vec<&'static str>>>,
    }

    impl Told {
        fn permit(may: bool) -> (Box<Self>, Arc<Mutex<Vec<&'static str>>>) {
            let heard = Arc::new(Mutex::new(Vec::new()));
            let told = Self {
                may,
                heard: Arc::clone(&heard),
            };
            (Box::new(told), heard)
        }
    }

    impl Permit for Told {
        fn claim(self: Box<Self>) -> bool {
            self.heard.lock().unwrap().push("claimed");
            self.may
        }
    }

    impl Drop for Told {
        fn drop(&mut self) {
            self.heard.lock().unwrap().push("dropped");
        }
    }

    #[tokio::test]
    async fn an_adopted_connection_passes_a_shut_gate_and_an_open_one_before_the_queue() {
        let (gate, address, _) = gate::<TcpListener>();
        for open in [false, true] {
            let (connection, client) = elsewhere();
            if open {
                gate.open().unwrap();
                let _queued = connect(address);
                await_queue(&gate.socket().unwrap());
            }
            gate.adopt(Adopted::new(connection)).unwrap();
            let (_, peer) = within(gate.accept()).await.unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
        }
        within(gate.accept()).await.unwrap();
    }

    #[tokio::test]
    async fn an_adopted_connection_wakes_whoever_accepts() {
        let (gate, ..) = gate::<TcpListener>();
        let mut accepting = pin!(gate.accept());
        assert!(poll_once(accepting.as_mut()).await.is_pending());
        let (connection, _client) = elsewhere();
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        assert!(
            gate.poll_accept(&mut Context::from_waker(&waker))
                .is_pending()
        );
        gate.adopt(Adopted::new(connection)).unwrap();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        within(accepting).await.unwrap();
    }

    #[tokio::test]
    async fn a_retired_gate_still_gives_out_what_was_adopted() {
        let (gate, ..) = gate::<TcpListener>();
        let (connection, _client) = elsewhere();
        gate.adopt(Adopted::new(connection)).unwrap();
        gate.retire();
        let mut left = gate.adopted();
        assert_eq!(*left.borrow_and_update(), 1);
        within(gate.accept()).await.unwrap();
        assert_eq!(*left.borrow_and_update(), 0);
    }

    #[tokio::test]
    async fn a_connection_is_claimed_only_when_somebody_accepts() {
        let (gate, ..) = gate::<TcpListener>();
        let (connection, _client) = elsewhere();
        let (permit, heard) = Told::permit(true);
        gate.adopt(Adopted::with_permit(connection, permit))
            .unwrap();
        assert!(heard.lock().unwrap().is_empty());
        within(gate.accept()).await.unwrap();
        assert_eq!(*heard.lock().unwrap(), ["claimed", "dropped"]);
    }

    #[tokio::test]
    async fn a_connection_that_was_taken_back_is_passed_over() {
        let (gate, ..) = gate::<TcpListener>();
        let (taken_back, _client) = elsewhere();
        let (ours, client) = elsewhere();
        let (permit, _) = Told::permit(false);
        gate.adopt(Adopted::with_permit(taken_back, permit))
            .unwrap();
        gate.adopt(Adopted::new(ours)).unwrap();
        let (_, peer) = within(gate.accept()).await.unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
    }

    #[tokio::test]
    async fn what_is_no_connection_any_more_is_neither_claimed_nor_accepted() {
        let (gate, ..) = gate::<TcpListener>();
        let (permit, heard) = Told::permit(true);
        let null = std::fs::File::open("/dev/null").unwrap();
        gate.adopt(Adopted::with_permit(null.into(), permit))
            .unwrap();
        let mut accepting = pin!(gate.accept());
        assert!(poll_once(accepting.as_mut()).await.is_pending());
        assert_eq!(*heard.lock().unwrap(), ["dropped"]);
    }

    #[tokio::test]
    async fn a_listener_that_is_dropped_gives_up_what_it_adopted() {
        let (gate, ..) = gate::<TcpListener>();
        let (connection, _client) = elsewhere();
        let (permit, heard) = Told::permit(true);
        gate.adopt(Adopted::with_permit(connection, permit))
            .unwrap();
        gate.abandon();
        assert_eq!(*heard.lock().unwrap(), ["dropped"]);
        let (connection, _client) = elsewhere();
        assert!(gate.adopt(Adopted::new(connection)).is_err());
    }

    #[tokio::test]
    async fn no_more_wait_than_may() {
        let (gate, ..) = gate::<TcpListener>();
        let null = std::fs::File::open("/dev/null").unwrap();
        let adopted = || Adopted::new(null.try_clone().unwrap().into());
        for _ in 0..ADOPTED_MAX {
            gate.adopt(adopted()).unwrap();
        }
        assert!(gate.adopt(adopted()).is_err());
    }

    /// Takes all that it is asked about, or nothing.
    #[derive(Debug)]
    struct Elsewhere {
        wanted: bool,
        taken: Mutex<Vec<OwnedFd>>,
    }

    impl Divert for Elsewhere {
        fn wants(&self, listener: &str, peer: Option<IpAddr>) -> bool {
            assert_eq!((listener, peer.is_some()), ("web", true));
            self.wanted
        }

        fn take(&self, _: &str, connection: OwnedFd) {
            self.taken.lock().unwrap().push(connection);
        }
    }

    fn diverted(gate: &Gate<TcpListener>, wanted: bool) -> Arc<Elsewhere> {
        let to = Arc::new(Elsewhere {
            wanted,
            taken: Mutex::default(),
        });
        gate.diversion.diverter().start(to.clone());
        to
    }

    #[tokio::test]
    async fn what_is_wanted_elsewhere_goes_there() {
        let (gate, address, _) = gate();
        gate.open().unwrap();
        let to = diverted(&gate, true);
        let clients: Vec<_> = (0..40).map(|_| connect(address)).collect();
        await_queue(&gate.socket().unwrap());
        let mut accepting = pin!(gate.accept());
        while to.taken.lock().unwrap().len() < clients.len() {
            let polled = poll_fn(|cx| Poll::Ready(accepting.as_mut().poll(cx)));
            assert!(within(polled).await.is_pending());
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_is_not_wanted_elsewhere_or_no_more_is_accepted() {
        let (gate, address, _) = gate();
        gate.open().unwrap();
        diverted(&gate, false);
        let _client = connect(address);
        within(gate.accept()).await.unwrap();
        let to = diverted(&gate, true);
        gate.diversion.diverter().stop(&*to);
        let _client = connect(address);
        within(gate.accept()).await.unwrap();
    }
}
