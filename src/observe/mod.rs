//! Counting how requests end and how long they take, for the guards of a rollout.
//!
//! [`http::serve`](crate::http::serve) counts by itself. Other services count what they call a request with
//! [`Serving::observed`](crate::Serving::observed):
//!
//! ```
//! use handover::observe::{Observed, Outcome};
//!
//! # fn example(observed: &Observed, peer: std::net::SocketAddr) {
//! let request = observed.begin(peer);
//! // ... answer it ...
//! request.end(Outcome::Answered);
//! # }
//! ```
//!
//! Each thread counts in memory of its own, so that counting takes no lock and shares no cache line. Errors and slow
//! requests are rare, and are told apart by client under a lock: of several errors of one client within
//! [`CLIENT_WINDOW`], one is counted.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::panicking;
use std::time::{Duration, Instant};

use crate::config::{OBSERVED_REQUESTS_MIN, OBSERVED_WINDOW};
use crate::protocol::message::micros;
use crate::rollout::CLIENT_WINDOW;
use crate::rollout::guard::{Clients, Counts, SAMPLES_MIN};
use crate::sys::limits::processors;

mod client;
mod histogram;

pub use self::client::Client;
pub(crate) use self::client::Counted;
use self::histogram::{BUCKETS, Histogram, bucket};

/// What one generation has answered. Cheap to clone; every clone counts into the same.
#[derive(Clone)]
pub struct Observed(Arc<Inner>);

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was answered.
    Answered,
    /// It was not answered, or the answer was that the service has failed.
    Failed,
    /// Its client went away before there was an answer. That is no error, and counts only if the client had waited for
    /// longer than a slow request takes: then it is one.
    Cancelled,
}

/// Everything that was counted, at one moment. All of it only grows, but for what is in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Snapshot {
    /// Requests, and errors and slow ones among them, one for each client and window.
    pub counts: Counts,
    /// Requests that have begun and not ended.
    pub in_flight: u64,
    /// Connections that the application has accepted from sockets of its own. Those that came through this crate's
    /// listeners are counted there.
    pub accepted: u64,
    /// Requests that were turned away because there were too many, which are errors as well.
    pub shed: u64,
    /// Requests whose client went away; of `counts` are only those that were slow.
    pub cancelled: u64,
}

/// A request that has begun. Dropped without having ended it was cancelled, or has failed if the thread panics.
#[must_use = "a request that is dropped was cancelled"]
pub struct Observation {
    /// Being held is being in flight. It belongs to the thread on which the request began, so that its count of holders
    /// is written by hardly anybody else.
    shard: Option<Arc<Shard>>,
    /// As all moments here: since [`Dials::begun`].
    began: Duration,
    client: Client,
}

/// What a generation has answered lately: what a candidate is measured by once it serves alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct History {
    pub(crate) counts: Counts,
    /// The 99th percentile of what requests took, if there were enough.
    pub(crate) slow_above: Option<Duration>,
}

/// How a generation that takes part in a rollout is to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Requests that take longer are slow. None is if there is no limit.
    pub(crate) slow_above: Option<Duration>,
    /// How long further errors of the same client count as the one that was counted.
    pub(crate) window: Duration,
    pub(crate) by: Counted,
}

struct Inner {
    shards: Box<[Arc<Shard>]>,
    rare: Arc<Rare>,
}

/// What one thread, or some, count. Aligned to two cache lines, since processors fetch them in pairs.
#[repr(align(128))]
struct Shard {
    buckets: [AtomicU64; BUCKETS],
    rare: Arc<Rare>,
}

/// What all threads share: read at every request, and written at few.
struct Rare {
    dials: Dials,
    tallies: Tallies,
}

/// Nothing that is written often may come onto the same cache line.
#[repr(align(128))]
struct Dials {
    begun: Instant,
    /// In microseconds.
    slow_above: AtomicU64,
    /// In seconds since `begun`.
    turn_at: AtomicU64,
    by_connection: AtomicBool,
}

#[derive(Default)]
#[repr(align(128))]
struct Tallies {
    errors: AtomicU64,
    slow: AtomicU64,
    shed: AtomicU64,
    cancelled: AtomicU64,
    accepted: AtomicU64,
    clients: Mutex<Deduplicated>,
    recent: Mutex<Recent>,
}

/// Whose error, and whose slow request, was counted in this window.
struct Deduplicated {
    errors: Clients,
    slow: Clients,
}

/// The totals when the window began, and when the one before it did.
#[derive(Default)]
struct Recent {
    newer: Totals,
    older: Totals,
}

#[derive(Clone, Debug, Default)]
struct Totals {
    latency: Histogram,
    errors: u64,
    slow: u64,
}

impl Observed {
    /// Counts for themselves, as the [`Default`] does.
    pub(crate) fn new() -> Self {
        let rare = Arc::new(Rare {
            dials: Dials {
                begun: Instant::now(),
                slow_above: AtomicU64::new(u64::MAX),
                turn_at: AtomicU64::new(OBSERVED_WINDOW.as_secs()),
                by_connection: AtomicBool::new(false),
            },
            tallies: Tallies::default(),
        });
        let shards =
            (0..processors().next_power_of_two().min(SHARDS_MAX)).map(|_| Shard::new(&rare));
        Self(Arc::new(Inner {
            shards: shards.collect(),
            rare,
        }))
    }

    /// A request of this client begins.
    #[inline]
    pub fn begin(&self, client: impl Into<Client>) -> Observation {
        let now = self.0.rare.now();
        self.turn_if_due(now);
        Observation {
            shard: Some(Arc::clone(self.shard())),
            began: now,
            client: client.into(),
        }
    }

    /// A request of this client has ended in this way, and took this long. For those who have measured it themselves; it
    /// was never in flight.
    pub fn record(&self, outcome: Outcome, took: Duration, client: impl Into<Client>) {
        let now = self.0.rare.now();
        self.turn_if_due(now);
        self.shard().count(now, outcome, took, client.into());
    }

    /// A connection was accepted from a socket of the application's own. Where nobody accepts any more although
    /// connections wait, a rollout is undone; by this it knows that somebody does.
    pub fn count_accepted(&self) {
        self.0.rare.tallies.accepted.fetch_add(1, Relaxed);
    }

    /// A request was turned away because there were too many. Its outcome, [`Outcome::Failed`], is counted besides.
    pub fn count_shed(&self) {
        self.0.rare.tallies.shed.fetch_add(1, Relaxed);
    }

    /// What was counted until now. Counts that go on meanwhile may be in one figure and not yet in another.
    pub fn snapshot(&self) -> Snapshot {
        let tallies = &self.0.rare.tallies;
        // Before the requests: one that ends meanwhile is then in the requests and may be missing here, but there are
        // never more errors than requests.
        let [errors, slow] = [&tallies.errors, &tallies.slow].map(|count| count.load(Relaxed));
        let in_flight = self.0.shards.iter().map(Shard::in_flight).sum();
        Snapshot {
            counts: Counts {
                requests: self.requests(),
                errors,
                slow,
            },
            in_flight,
            accepted: tallies.accepted.load(Relaxed),
            shed: tallies.shed.load(Relaxed),
            cancelled: tallies.cancelled.load(Relaxed),
        }
    }

    /// How long that part of the requests took at most, to a sixteenth, of those of the last five to ten minutes with
    /// traffic. None without requests.
    pub fn percentile(&self, part: f64) -> Option<Duration> {
        self.latest().latency.percentile(part)
    }

    /// The median and the 99th percentile of it. None without requests.
    pub(crate) fn latencies(&self) -> [Option<Duration>; 2] {
        let latency = self.latest().latency;
        [0.5, TAIL].map(|part| latency.percentile(part))
    }

    /// What was answered in the last five to ten minutes with traffic.
    pub(crate) fn history(&self) -> History {
        let latest = self.latest();
        let requests = latest.latency.total();
        let has_tail = requests >= SAMPLES_MIN as u64;
        History {
            counts: Counts {
                requests,
                errors: latest.errors,
                slow: latest.slow,
            },
            slow_above: latest.latency.percentile(TAIL).filter(|_| has_tail),
        }
    }

    /// Counts by these rules from now on. What was counted stays.
    pub(crate) fn apply(&self, rules: Rules) {
        let Rare { dials, tallies } = &*self.0.rare;
        *tallies.clients() = Deduplicated::new(rules.window);
        let by_connection = rules.by == Counted::Connection;
        dials.by_connection.store(by_connection, Relaxed);
        let slow_above = rules.slow_above.map_or(u64::MAX, micros);
        dials.slow_above.store(slow_above, Relaxed);
    }

    #[inline]
    fn shard(&self) -> &Arc<Shard> {
        // There is a power of two of them, so that this stays in bounds.
        &self.0.shards[turn() & (self.0.shards.len() - 1)]
    }

    fn requests(&self) -> u64 {
        let shards = self.0.shards.iter();
        shards
            .flat_map(|shard| &shard.buckets)
            .map(|count| count.load(Relaxed))
            .sum()
    }

    fn totals(&self) -> Totals {
        let tallies = &self.0.rare.tallies;
        let of = |bucket: usize| {
            let shards = self.0.shards.iter();
            shards
                .map(|shard| shard.buckets[bucket].load(Relaxed))
                .sum()
        };
        Totals {
            errors: tallies.errors.load(Relaxed),
            slow: tallies.slow.load(Relaxed),
            latency: (0..BUCKETS).map(of).collect(),
        }
    }

    fn latest(&self) -> Totals {
        let totals = self.totals();
        let recent = self.0.rare.tallies.recent();
        totals.since(&recent.older)
    }

    #[inline]
    fn turn_if_due(&self, now: Duration) {
        if now.as_secs() >= self.0.rare.dials.turn_at.load(Relaxed) {
            self.turn(now);
        }
    }

    /// A new window begins, if the last one has seen enough.
    #[cold]
    fn turn(&self, now: Duration) {
        let Rare { dials, tallies } = &*self.0.rare;
        // Whoever else comes here meanwhile has nothing to do.
        let Ok(mut recent) = tallies.recent.try_lock() else {
            return;
        };
        let next = (now + OBSERVED_WINDOW).as_secs();
        dials.turn_at.store(next, Relaxed);
        let totals = self.totals();
        if totals.since(&recent.newer).latency.total() >= OBSERVED_REQUESTS_MIN {
            recent.older = std::mem::replace(&mut recent.newer, totals);
        }
    }
}

impl Default for Observed {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Observed").field(&self.snapshot()).finish()
    }
}

impl Observation {
    /// It has ended in this way, now.
    #[inline]
    pub fn end(mut self, outcome: Outcome) {
        self.count(outcome);
    }

    #[inline]
    fn count(&mut self, outcome: Outcome) {
        if let Some(shard) = self.shard.take() {
            let now = shard.rare.now();
            let took = now.saturating_sub(self.began);
            shard.count(now, outcome, took, self.client);
        }
    }

    #[cold]
    fn give_up(&mut self) {
        self.count(match panicking() {
            true => Outcome::Failed,
            false => Outcome::Cancelled,
        });
    }
}

impl Drop for Observation {
    #[inline]
    fn drop(&mut self) {
        if self.shard.is_some() {
            self.give_up();
        }
    }
}

impl fmt::Debug for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observation")
            .field("began", &self.began)
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

impl Shard {
    fn new(rare: &Arc<Rare>) -> Arc<Self> {
        Arc::new(Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            rare: Arc::clone(rare),
        })
    }

    fn in_flight(self: &Arc<Self>) -> u64 {
        // One of them is the list of shards.
        (Arc::strong_count(self) - 1) as u64
    }

    #[inline]
    fn count(&self, now: Duration, outcome: Outcome, took: Duration, client: Client) {
        let took = micros(took);
        let is_slow = took > self.rare.dials.slow_above.load(Relaxed);
        if outcome == Outcome::Answered && !is_slow {
            self.buckets[bucket(took)].fetch_add(1, Relaxed);
        } else {
            self.count_rare(now, outcome, took, is_slow, client);
        }
    }

    #[cold]
    fn count_rare(
        &self,
        now: Duration,
        outcome: Outcome,
        took: u64,
        is_slow: bool,
        client: Client,
    ) {
        let tallies = &self.rare.tallies;
        if outcome == Outcome::Cancelled {
            tallies.cancelled.fetch_add(1, Relaxed);
            if !is_slow {
                return;
            }
        }
        // Requests before errors: see `Observed::snapshot`.
        self.buckets[bucket(took)].fetch_add(1, Relaxed);
        let is_error = outcome == Outcome::Failed;
        self.rare.count_bad(now, is_error, is_slow, client);
    }
}

impl Rare {
    #[inline]
    fn now(&self) -> Duration {
        self.dials.begun.elapsed()
    }

    fn count_bad(&self, now: Duration, is_error: bool, is_slow: bool, client: Client) {
        let client = client.counted_as(match self.dials.by_connection.load(Relaxed) {
            true => Counted::Connection,
            false => Counted::Client,
        });
        let mut clients = self.tallies.clients();
        let Deduplicated { errors, slow } = &mut *clients;
        let is_first = |table: &mut Clients| client.is_none_or(|client| table.count(client, now));
        if is_error && is_first(errors) {
            self.tallies.errors.fetch_add(1, Relaxed);
        }
        if is_slow && is_first(slow) {
            self.tallies.slow.fetch_add(1, Relaxed);
        }
    }
}

impl Tallies {
    fn clients(&self) -> MutexGuard<'_, Deduplicated> {
        // A panic in between would leave a client counted, or not.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deduplicated {
    fn new(window: Duration) -> Self {
        Self {
            errors: Clients::new(window),
            slow: Clients::new(window),
        }
    }
}

impl Default for Deduplicated {
    fn default() -> Self {
        Self::new(CLIENT_WINDOW)
    }
}

impl Totals {
    fn since(&self, earlier: &Self) -> Self {
        Self {
            latency: self.latency.since(&earlier.latency),
            errors: self.errors.saturating_sub(earlier.errors),
            slow: self.slow.saturating_sub(earlier.slow),
        }
    }
}

/// This thread's place among those who count. It is no more than a way to keep threads apart, whichever is whose.
#[inline]
fn turn() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static TURN: Cell<Option<usize>> = const { Cell::new(None) };
    }
    TURN.with(|turn| match turn.get() {
        Some(turn) => turn,
        None => {
            let assigned = NEXT.fetch_add(1, Relaxed);
            turn.set(Some(assigned));
            assigned
        }
    })
}

/// A request is slow if it takes longer than this part of stable's did.
const TAIL: f64 = 0.99;
/// More threads than that share their shards: each takes 4 KiB.
const SHARDS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn client(number: u32) -> Client {
        Client::from(number.to_string().as_str())
    }

    fn rules(slow_above: Option<Duration>) -> Rules {
        Rules {
            slow_above,
            window: CLIENT_WINDOW,
            by: Counted::Client,
        }
    }

    fn counts(requests: u64, errors: u64, slow: u64) -> Counts {
        Counts {
            requests,
            errors,
            slow,
        }
    }

    #[test]
    fn requests_of_all_threads_are_counted_once() {
        let observed = Observed::new();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let observed = &observed;
                scope.spawn(move || {
                    for number in 0..1_000 {
                        let outcome = match number % 10 {
                            0 => Outcome::Failed,
                            _ => Outcome::Answered,
                        };
                        observed.begin(client(thread * 1_000 + number)).end(outcome);
                    }
                });
            }
        });
        let snapshot = observed.snapshot();
        assert_eq!(snapshot.counts, counts(8_000, 800, 0));
        assert_eq!((snapshot.in_flight, snapshot.cancelled), (0, 0));
    }

    #[test]
    fn a_request_is_in_flight_until_it_ends_or_is_dropped() {
        let observed = Observed::new();
        let (one, other) = (observed.begin(client(1)), observed.begin(client(2)));
        assert_eq!(observed.snapshot().in_flight, 2);
        one.end(Outcome::Answered);
        assert_eq!(observed.snapshot().in_flight, 1);
        drop(other);
        let snapshot = observed.snapshot();
        assert_eq!((snapshot.in_flight, snapshot.cancelled), (0, 1));
        assert_eq!(snapshot.counts, counts(1, 0, 0));
    }

    #[test]
    fn a_request_whose_handler_panics_has_failed() {
        let observed = Observed::new();
        let request = observed.begin(client(1));
        let panicked = std::thread::spawn(move || {
            let _request = request;
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        assert_eq!(observed.snapshot().counts, counts(1, 1, 0));
    }

    #[test]
    fn a_client_errs_once_in_a_window_however_often_it_tries_again() {
        let observed = Observed::new();
        for _ in 0..100 {
            observed.record(Outcome::Failed, MILLI, client(1));
        }
        observed.record(Outcome::Failed, MILLI, client(2));
        assert_eq!(observed.snapshot().counts, counts(101, 2, 0));
        let (shard, later) = (observed.shard(), observed.0.rare.now() + CLIENT_WINDOW);
        shard.count(later, Outcome::Failed, MILLI, client(1));
        assert_eq!(observed.snapshot().counts, counts(102, 3, 0));
    }

    #[test]
    fn where_connections_are_picked_each_of_them_errs_for_itself() {
        let observed = Observed::new();
        observed.apply(Rules {
            by: Counted::Connection,
            ..rules(None)
        });
        for connection in [1, 2, 2] {
            let client = client(1).on_connection(connection);
            observed.record(Outcome::Failed, MILLI, client);
        }
        assert_eq!(observed.snapshot().counts, counts(3, 2, 0));
    }

    #[test]
    fn slow_is_what_takes_longer_than_it_was_told_and_nothing_before_that() {
        let observed = Observed::new();
        observed.record(Outcome::Answered, 100 * MILLI, client(1));
        observed.apply(rules(Some(10 * MILLI)));
        observed.record(Outcome::Answered, 10 * MILLI, client(1));
        observed.record(Outcome::Answered, 11 * MILLI, client(1));
        observed.record(Outcome::Failed, 11 * MILLI, client(2));
        assert_eq!(observed.snapshot().counts, counts(4, 1, 2));
    }

    #[test]
    fn a_client_that_goes_away_is_no_error_and_slow_if_it_had_waited_long() {
        let observed = Observed::new();
        observed.apply(rules(Some(10 * MILLI)));
        observed.record(Outcome::Cancelled, MILLI, client(1));
        assert_eq!(observed.snapshot().counts, counts(0, 0, 0));
        observed.record(Outcome::Cancelled, 20 * MILLI, client(1));
        let snapshot = observed.snapshot();
        assert_eq!(snapshot.counts, counts(1, 0, 1));
        assert_eq!(snapshot.cancelled, 2);
    }

    #[test]
    fn one_request_in_a_hundred_is_slower_than_what_history_calls_slow() {
        let observed = Observed::new();
        for millis in 1..=100 {
            assert_eq!(observed.history().slow_above, None);
            observed.record(Outcome::Answered, millis * MILLI, client(1));
        }
        let slow_above = observed.history().slow_above.unwrap();
        assert!(
            (99 * MILLI..=106 * MILLI).contains(&slow_above),
            "{slow_above:?}"
        );
        assert_eq!(observed.percentile(0.99), Some(slow_above));
    }

    #[test]
    fn history_forgets_what_is_older_than_two_windows_with_traffic() {
        let observed = Observed::new();
        let answer = |window: u32, took: Duration, requests: u64| {
            let now = window * OBSERVED_WINDOW;
            for _ in 0..requests {
                observed.turn_if_due(now);
                let shard = observed.shard();
                shard.count(now, Outcome::Answered, took, client(1));
            }
        };
        answer(0, 100 * MILLI, OBSERVED_REQUESTS_MIN);
        answer(1, MILLI, OBSERVED_REQUESTS_MIN);
        let history = observed.history();
        assert_eq!(history.counts.requests, 2 * OBSERVED_REQUESTS_MIN);
        answer(2, MILLI, 1);
        let history = observed.history();
        assert_eq!(history.counts.requests, OBSERVED_REQUESTS_MIN + 1);
        assert!(history.slow_above.unwrap() < 2 * MILLI);
        // A night with next to no traffic is no reason to forget the day.
        answer(100, MILLI, 1);
        answer(200, MILLI, 1);
        let history = observed.history();
        assert_eq!(history.counts.requests, OBSERVED_REQUESTS_MIN + 3);
    }
}
