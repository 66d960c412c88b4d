//! Finishing what is in flight: begin, count, wait with a deadline, report what was left.
//!
//! Knows nothing of handovers or of HTTP: anything that can hold a [`Guard`] can be waited for.
//!
//! The order that makes "gone the moment nothing is left" right:
//!
//! 1. The count of all guards is one number behind one lock, so that "begun" and "zero" are seen together.
//! 2. Whoever makes either of them true wakes the waiters after it has let go of the lock.
//! 3. A waiter enrols for the wake-up before it looks, so that a change between its look and its wait is not missed.
//!
//! A guard taken while draining counts like any other: work that is begun late is still waited for.

mod progress;
mod signal;
mod track;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

pub use self::progress::{ClassProgress, Progress, Report, Straggler};
pub use self::signal::{Signal, Stage};

/// The work in flight of one generation.
#[derive(Clone)]
pub struct Drain {
    shared: Arc<Shared>,
}

/// A kind of work with a deadline of its own, such as requests, uploads, streams or background jobs.
#[derive(Clone)]
pub struct Class {
    shared: Arc<Shared>,
    index: usize,
    deadline: Deadline,
}

/// One unit of work in flight, until it is dropped.
#[must_use = "a guard that is dropped at once counts nothing"]
pub struct Guard {
    class: Class,
    id: u64,
}

struct Shared {
    default_deadline: Duration,
    hard_stop: Duration,
    stage: watch::Sender<Stage>,
    work: Mutex<Work>,
    changed: Notify,
}

#[derive(Default)]
struct Work {
    classes: Vec<ClassWork>,
    /// Units that ended because their time was up, or after it.
    cut_off: Vec<Straggler>,
    in_flight: usize,
    next_id: u64,
}

struct ClassWork {
    name: &'static str,
    deadline: Deadline,
    units: BTreeMap<u64, Unit>,
}

/// Readable without the lock: every request of a server asks for it.
#[derive(Clone)]
struct Deadline(Arc<AtomicU64>);

struct Unit {
    label: Cow<'static, str>,
    since: Instant,
}

impl Drain {
    pub(crate) fn new(default_deadline: Duration, hard_stop: Duration) -> Self {
        let shared = Shared {
            default_deadline,
            hard_stop,
            stage: watch::Sender::new(Stage::Serving),
            work: Mutex::default(),
            changed: Notify::new(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The class of this name, made with the generation's drain deadline if there is none yet.
    pub fn class(&self, name: &'static str) -> Class {
        self.shared.class(name)
    }

    /// The class of this name, whose units are cut `deadline` after the drain began.
    pub fn class_with_deadline(&self, name: &'static str, deadline: Duration) -> Class {
        let class = self.shared.class(name);
        class.deadline.set(deadline);
        class
    }

    /// What tasks observe to learn that this generation is on its way out, with the default deadline.
    pub fn signal(&self) -> Signal {
        Signal::new(
            self.shared.stage.subscribe(),
            self.shared.limit(self.shared.default_deadline),
        )
    }

    /// How many units of work are in flight.
    pub fn in_flight(&self) -> usize {
        self.shared.lock().in_flight
    }

    /// What is in flight, class by class.
    pub fn progress(&self) -> Progress {
        let begun = self.shared.begun();
        let work = self.shared.lock();
        let classes = work.classes.iter().map(|class| ClassProgress {
            name: class.name,
            in_flight: class.units.len(),
            oldest: class.units.values().map(|unit| unit.since.elapsed()).max(),
            time_left: begun.map(|begun| {
                self.shared
                    .cut_at(class, begun)
                    .duration_since(Instant::now())
            }),
        });
        Progress {
            classes: classes.collect(),
        }
    }

    /// Waits until the drain has begun and nothing is left, or nothing that may still be waited for.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost; any number of tasks may wait.
    pub async fn drained(&self) -> Report {
        self.drained_but(None).await
    }

    /// The same for whoever leaves last: waits until nothing is left but the class of its own unit.
    pub(crate) async fn drained_beside(&self, last: &Guard) {
        self.drained_but(Some(last.class.index)).await;
    }

    async fn drained_but(&self, class: Option<usize>) -> Report {
        let mut stage = self.shared.stage.subscribe();
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let until = match *stage.borrow_and_update() {
                Stage::Serving | Stage::Quiesced { .. } => None,
                Stage::Draining { since, until } => {
                    match self.shared.last_cut((since, until), class) {
                        Some(cut_at) if cut_at > Instant::now() => Some(cut_at),
                        _ => return self.shared.report(since),
                    }
                }
                Stage::Cut { since } => return self.shared.report(since),
            };
            tokio::select! {
                () = changed => {}
                // The sender lives as long as `self`.
                _ = stage.changed() => {}
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
            }
        }
    }

    /// The accept right is gone: clients should move over. A rollback may still resume.
    pub(crate) fn quiesce(&self) {
        self.shared.advance(|stage| match stage {
            Stage::Serving => Some(Stage::Quiesced {
                since: Instant::now(),
            }),
            _ => None,
        });
    }

    /// The accept right is back.
    pub(crate) fn resume(&self) {
        self.shared.advance(|stage| match stage {
            Stage::Quiesced { .. } => Some(Stage::Serving),
            _ => None,
        });
    }

    /// Finish and leave; there is no way back.
    pub(crate) fn begin(&self) {
        self.begin_within(self.shared.hard_stop);
    }

    /// The same with less time: whatever a class may take, it is cut when `limit` is over. A drain that has begun gets
    /// no more time than that either.
    pub(crate) fn begin_within(&self, limit: Duration) {
        let now = Instant::now();
        let limited = now + self.shared.limit(limit);
        self.shared.advance(|stage| match stage {
            Stage::Serving | Stage::Quiesced { .. } => Some(Stage::Draining {
                since: now,
                until: limited,
            }),
            Stage::Draining { since, until } if limited < until => Some(Stage::Draining {
                since,
                until: limited,
            }),
            _ => None,
        });
    }

    /// Leave now, whatever is in flight.
    pub(crate) fn cut_now(&self) {
        self.shared.advance(|stage| match stage {
            Stage::Draining { since, .. } => Some(Stage::Cut { since }),
            Stage::Serving | Stage::Quiesced { .. } => Some(Stage::Cut {
                since: Instant::now(),
            }),
            Stage::Cut { .. } => None,
        });
    }
}

impl Class {
    /// Counts one unit of work. The label names it if it has to be cut off.
    pub fn guard(&self, label: impl Into<Cow<'static, str>>) -> Guard {
        let unit = Unit {
            label: label.into(),
            since: Instant::now(),
        };
        let mut work = self.shared.lock();
        let id = work.next_id;
        work.next_id += 1;
        work.in_flight += 1;
        work.classes[self.index].units.insert(id, unit);
        drop(work);
        Guard {
            class: self.clone(),
            id,
        }
    }

    /// Counts a future as one unit of work, from now until it completes or is dropped.
    pub fn track<F, L>(&self, label: L, future: F) -> impl Future<Output = F::Output> + use<F, L>
    where
        F: Future,
        L: Into<Cow<'static, str>>,
    {
        track::Tracked::new(self.guard(label), future)
    }

    /// What tasks of this class observe to learn that their generation is on its way out, and when they are cut.
    pub fn signal(&self) -> Signal {
        let limit = self.shared.limit(self.deadline.get());
        Signal::new(self.shared.stage.subscribe(), limit)
    }
}

impl Guard {
    /// The signal of this unit's class.
    pub fn signal(&self) -> Signal {
        self.class.signal()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let shared = &self.class.shared;
        let mut work = shared.lock();
        let class = &mut work.classes[self.class.index];
        let (name, deadline) = (class.name, class.deadline.get());
        let unit = class.units.remove(&self.id);
        let class_is_empty = class.units.is_empty();
        if shared.is_out_of_time(deadline) {
            work.cut_off.extend(unit.map(|unit| unit.straggler(name)));
        }
        work.in_flight -= 1;
        drop(work);
        // A class that has become empty may be the one whose deadline was being waited for.
        if class_is_empty {
            shared.changed.notify_waiters();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Work> {
        // Nothing that runs under the lock can panic half-way through a change.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn class(self: &Arc<Self>, name: &'static str) -> Class {
        let mut work = self.lock();
        let known = work.classes.iter().position(|class| class.name == name);
        let index = known.unwrap_or(work.classes.len());
        if known.is_none() {
            let deadline = Deadline::new(self.default_deadline);
            work.classes.push(ClassWork {
                name,
                deadline,
                units: BTreeMap::new(),
            });
        }
        let deadline = work.classes[index].deadline.clone();
        Class {
            shared: Arc::clone(self),
            index,
            deadline,
        }
    }

    fn advance(&self, next: impl FnOnce(Stage) -> Option<Stage>) {
        self.stage.send_if_modified(|stage| match next(*stage) {
            Some(new) => {
                *stage = new;
                true
            }
            None => false,
        });
        self.changed.notify_waiters();
    }

    /// Since when it drains, and until when at the latest.
    fn begun(&self) -> Option<(Instant, Instant)> {
        match *self.stage.borrow() {
            Stage::Serving | Stage::Quiesced { .. } => None,
            Stage::Draining { since, until } => Some((since, until)),
            Stage::Cut { since } => Some((since, since)),
        }
    }

    fn is_out_of_time(&self, deadline: Duration) -> bool {
        match *self.stage.borrow() {
            Stage::Serving | Stage::Quiesced { .. } => false,
            Stage::Draining { since, until } => {
                (since + self.limit(deadline)).min(until) <= Instant::now()
            }
            Stage::Cut { .. } => true,
        }
    }

    fn limit(&self, deadline: Duration) -> Duration {
        deadline.min(self.hard_stop)
    }

    fn cut_at(&self, class: &ClassWork, (since, until): (Instant, Instant)) -> Instant {
        (since + self.limit(class.deadline.get())).min(until)
    }

    /// When the last class that has something in flight is cut; `None` if nothing is.
    fn last_cut(&self, begun: (Instant, Instant), except: Option<usize>) -> Option<Instant> {
        let work = self.lock();
        let others = work.classes.iter().enumerate();
        let others = others.filter(|(index, _)| Some(*index) != except);
        let busy = others.filter(|(_, class)| !class.units.is_empty());
        busy.map(|(_, class)| self.cut_at(class, begun)).max()
    }

    fn report(&self, since: Instant) -> Report {
        let work = self.lock();
        let classes = work.classes.iter();
        let left =
            classes.flat_map(|class| class.units.values().map(|unit| unit.straggler(class.name)));
        Report {
            stragglers: work.cut_off.iter().cloned().chain(left).collect(),
            took: since.elapsed(),
        }
    }
}

impl Deadline {
    fn new(deadline: Duration) -> Self {
        let new = Self(Arc::default());
        new.set(deadline);
        new
    }

    fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    fn set(&self, deadline: Duration) {
        let millis = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        self.0.store(millis, Ordering::Relaxed);
    }
}

impl Unit {
    fn straggler(&self, class: &'static str) -> Straggler {
        Straggler {
            class,
            label: self.label.clone(),
            age: self.since.elapsed(),
        }
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain")
            .field("progress", &self.progress())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.shared.lock().classes[self.index].name;
        f.debug_tuple("Class").field(&name).finish()
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("class", &self.class)
            .field("id", &self.id)
            .finish()
    }
}

#[cfg(test)]
mod tests;
