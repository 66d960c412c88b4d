//! How a connection is present in its generation's drain: in which class it counts, and until when it may stay.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::ledger::{Activity, Ledger};
use crate::config::{LOOK_AGAIN, STREAM_SETTLE};
use crate::drain::{Class, Guard, Signal};

/// One connection's place in the drain. Holds exactly one guard from accept to close, so that a drain that begins at
/// any moment finds every connection counted.
#[derive(Debug)]
pub(super) struct Presence {
    ledger: Arc<Ledger>,
    idle_grace: Duration,
    /// The class of ordinary work.
    base: Class,
    counted_as: Activity,
    guard: Guard,
    signal: Signal,
    /// Whether the generation is on its way out.
    leaving: bool,
    /// When the connection was last seen to have become idle, or active while idle.
    idle_since: Instant,
    /// When the time of its class was found to be up.
    overdue_since: Option<Instant>,
}

/// Why a connection is no longer attended to.
#[derive(Debug)]
pub(super) enum End<T> {
    /// It ended by itself.
    Finished(T),
    /// It was idle for all of its grace.
    GraceOver,
    /// The time of its class is up.
    Cut,
}

impl Presence {
    pub(super) fn new(ledger: Arc<Ledger>, idle_grace: Duration) -> Self {
        let base = ledger.classes.http1.clone();
        let guard = base.guard(ledger.peer.clone());
        Self {
            signal: guard.signal(),
            guard,
            base,
            counted_as: Activity::Busy,
            ledger,
            idle_grace,
            leaving: false,
            idle_since: Instant::now(),
            overdue_since: None,
        }
    }

    pub(super) fn ledger(&self) -> Arc<Ledger> {
        Arc::clone(&self.ledger)
    }

    pub(super) fn speaks_http2(&mut self) {
        self.base = self.ledger.classes.http2.clone();
        self.count_as(self.counted_as);
    }

    /// Drives a connection, or a part of its life. `leave` is called, perhaps often, while the generation is on its
    /// way out.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub(super) async fn attend<F: Future>(
        &mut self,
        mut work: Pin<&mut F>,
        leave: impl Fn(Pin<&mut F>),
    ) -> End<F::Output> {
        let mut has_looked = false;
        loop {
            self.observe();
            if self.leaving {
                leave(work.as_mut());
            }
            let until = self.until();
            let (ledger, counted_as, leaving) = (&*self.ledger, self.counted_as, self.leaving);
            let step = poll_fn(|cx| match work.as_mut().poll(cx) {
                Poll::Ready(output) => Poll::Ready(Some(output)),
                Poll::Pending if counted(ledger, leaving) != counted_as => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            tokio::select! {
                biased;
                _ = self.signal.changed() => {}
                output = step => match output {
                    Some(output) => return End::Finished(output),
                    None => has_looked = false,
                },
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    if self.is_out_of_time() {
                        return End::Cut;
                    } else if !self.is_grace_over() {
                        has_looked = false;
                    } else if has_looked {
                        return End::GraceOver;
                    } else {
                        // Lets the reactor hear of bytes that have arrived, and the work read them.
                        yield_now().await;
                        has_looked = true;
                    }
                }
            }
        }
    }

    fn observe(&mut self) {
        loop {
            self.leaving = self.signal.is_quiesced();
            self.ledger.set_leaving(self.leaving);
            let activity = counted(&self.ledger, self.leaving);
            if activity == self.counted_as {
                return;
            }
            // The signal of another class tells only of what comes after it was made, so that is looked at again.
            self.count_as(activity);
        }
    }

    fn count_as(&mut self, activity: Activity) {
        let classes = &self.ledger.classes;
        let class = match activity {
            Activity::Busy => &self.base,
            Activity::Idle => &classes.idle,
            Activity::Streaming => &classes.stream,
            Activity::Tunnelling => &classes.upgrade,
        };
        // The new guard is taken before the last one is dropped: in between, the drain must not find nothing.
        self.guard = class.guard(self.ledger.peer.clone());
        self.signal = self.guard.signal();
        self.counted_as = activity;
        if activity == Activity::Idle {
            self.idle_since = Instant::now();
            self.ledger.take_touched();
        }
    }

    /// When to look again at the latest.
    fn until(&self) -> Option<Instant> {
        if !self.leaving {
            return None;
        }
        let now = Instant::now();
        let look = match self.counted_as {
            Activity::Idle => self.idle_since.checked_add(self.idle_grace),
            _ => now.checked_add(LOOK_AGAIN),
        };
        let cut = match (self.counted_as, self.overdue_since) {
            (Activity::Streaming, Some(since)) => Some(since + STREAM_SETTLE),
            _ => self
                .signal
                .time_left()
                .and_then(|left| now.checked_add(left)),
        };
        [look, cut].into_iter().flatten().min()
    }

    fn is_out_of_time(&mut self) -> bool {
        if self.signal.time_left() != Some(Duration::ZERO) {
            return false;
        }
        let since = *self.overdue_since.get_or_insert_with(Instant::now);
        // Streams end by themselves now, those of HTTP/2 in tasks of their own.
        self.counted_as != Activity::Streaming || since.elapsed() >= STREAM_SETTLE
    }

    fn is_grace_over(&mut self) -> bool {
        if self.counted_as != Activity::Idle {
            return false;
        }
        if self.ledger.take_touched() {
            self.idle_since = Instant::now();
            return false;
        }
        true
    }
}

/// While a generation serves, idle connections count as busy, so that a request changes nothing here.
fn counted(ledger: &Ledger, leaving: bool) -> Activity {
    match ledger.activity() {
        Activity::Idle if !leaving => Activity::Busy,
        activity => activity,
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::io::Write;
    use std::pin::pin;
    use std::sync::Barrier;

    use futures_util::FutureExt;
    use tokio::io::{AsyncRead, ReadBuf};
    use tokio::time::sleep;

    use super::super::tests;
    use super::*;
    use crate::drain::Drain;

    const GRACE: Duration = Duration::from_secs(5);
    const LONG: Duration = Duration::from_secs(600);

    fn present() -> (Drain, Presence) {
        let drain = Drain::new(LONG, LONG);
        let presence = Presence::new(tests::ledger(&drain), GRACE);
        (drain, presence)
    }

    fn counts(drain: &Drain) -> Vec<&'static str> {
        let classes = drain.progress().classes;
        classes
            .into_iter()
            .filter(|class| class.in_flight > 0)
            .map(|class| class.name)
            .collect()
    }

    /// Attends to a connection that does `work`, until it is to be closed.
    async fn attend(presence: &mut Presence, work: impl Future<Output = ()>) -> End<()> {
        let work = pin!(async {
            work.await;
            pending().await
        });
        presence.attend(work, |_| {}).await
    }

    #[tokio::test(start_paused = true)]
    async fn the_grace_of_a_connection_that_was_idle_before_begins_with_the_flip() {
        let (drain, mut presence) = present();
        let begun = Instant::now();
        let work = async {
            sleep(GRACE * 3).await;
            drain.quiesce();
        };
        assert!(matches!(attend(&mut presence, work).await, End::GraceOver));
        assert_eq!(begun.elapsed(), GRACE * 4);
        assert_eq!(counts(&drain), ["idle"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_grace_of_a_connection_that_was_active_since_begins_anew() {
        let (drain, mut presence) = present();
        let ledger = presence.ledger();
        let begun = Instant::now();
        let work = async {
            drain.quiesce();
            sleep(GRACE / 2).await;
            ledger.request(None);
            sleep(GRACE * 2).await;
            assert_eq!(counts(&drain), ["http1"]);
            ledger.response_ended(false);
            ledger.flushed();
        };
        assert!(matches!(attend(&mut presence, work).await, End::GraceOver));
        assert_eq!(begun.elapsed(), GRACE / 2 + GRACE * 2 + GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_still_writes_is_not_idle() {
        let (drain, mut presence) = present();
        let ledger = presence.ledger();
        ledger.multiplexed();
        drain.begin();
        let begun = Instant::now();
        let work = async {
            for _ in 0..10 {
                sleep(GRACE / 2).await;
                ledger.wrote();
            }
        };
        assert!(matches!(attend(&mut presence, work).await, End::GraceOver));
        assert!(begun.elapsed() >= GRACE * 5);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_end_in_other_tasks_are_noticed_in_time() {
        let (drain, mut presence) = present();
        let ledger = presence.ledger();
        ledger.multiplexed();
        ledger.request(None);
        drain.begin();
        tokio::spawn(async move {
            sleep(GRACE / 2).await;
            ledger.response_ended(false);
        });
        let begun = Instant::now();
        assert!(matches!(
            attend(&mut presence, async {}).await,
            End::GraceOver
        ));
        assert!(begun.elapsed() <= GRACE * 2);
    }

    #[tokio::test]
    async fn bytes_that_come_together_with_the_end_of_the_grace_are_read() {
        let (drain, mut presence) = present();
        presence.idle_grace = Duration::from_millis(10);
        let (mut client, server) = std::os::unix::net::UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        let mut server = tokio::net::UnixStream::from_std(server).unwrap();
        drain.begin();
        let (mut polls, mut byte) = (0, [0]);
        let work = poll_fn(|cx| {
            polls += 1;
            if polls == 2 {
                // Woken by the timer, after the reactor's turn and before the grace is found to be over.
                client.write_all(b"G").unwrap();
            }
            Pin::new(&mut server).poll_read(cx, &mut ReadBuf::new(&mut byte))
        });
        let end = presence.attend(pin!(work), |_| {}).await;
        assert!(matches!(end, End::Finished(Ok(()))));
    }

    #[tokio::test(start_paused = true)]
    async fn work_in_flight_is_cut_when_the_time_of_its_class_is_up() {
        let (drain, mut presence) = present();
        presence.ledger().request(None);
        drain.begin();
        let begun = Instant::now();
        assert!(matches!(attend(&mut presence, async {}).await, End::Cut));
        assert_eq!(begun.elapsed(), LONG);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_counted_at_every_moment() {
        let (drain, mut presence) = present();
        let work = async {
            drain.begin();
            sleep(GRACE / 2).await;
        };
        let mut drained = pin!(drain.drained());
        tokio::select! {
            biased;
            _ = &mut drained => panic!("the drain saw nothing in flight"),
            end = attend(&mut presence, work) => assert!(matches!(end, End::GraceOver)),
        }
        drop(presence);
        drained.await;
    }

    /// Another thread begins the drain while this one finds that the connection does something else than before.
    #[test]
    fn a_drain_that_begins_while_a_connection_changes_its_class_is_noticed() {
        const TRIALS: usize = 10_000;
        for trial in 0..TRIALS {
            let (drain, mut presence) = present();
            let ledger = presence.ledger();
            let start = Barrier::new(2);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    start.wait();
                    drain.begin();
                });
                ledger.request(None);
                ledger.stream_begun();
                start.wait();
                presence.observe();
            });
            let is_noticed = presence.leaving || presence.signal.changed().now_or_never().is_some();
            assert!(is_noticed, "in trial {trial}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_grace_is_too_long() {
        let (drain, mut presence) = present();
        presence.idle_grace = Duration::MAX;
        drain.begin();
        assert!(matches!(attend(&mut presence, async {}).await, End::Cut));
    }
}
