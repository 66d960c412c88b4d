//! What the driver and the handles of one generation have in common.

use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::activity::Activity;
use super::manager::KeptState;
use super::operator::{Done, Standing, Wanted};
use super::schema::Declared;
use super::verify::Announced;
use crate::control::{Asked, Drill, History, Upgrade, Verification};
use crate::director::Splitter;
use crate::drain::Drain;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Phase};
use crate::health::Health;
use crate::inject::Injected;
use crate::launch::{Images, Launched};
use crate::listen::Table;
use crate::observe::Observed;
use crate::rollout::{Rollout, Side};
use crate::state::{Offer, State};
use crate::verify::Announcement;

/// Events that a slow reader may fall behind before it misses some.
const EVENTS_KEPT: usize = 64;

/// A hook that contributes state for the successor.
pub(crate) type Hook =
    Arc<dyn Fn(&mut Offer) -> Result<(), Box<dyn StdError + Send + Sync>> + Send + Sync>;

/// What the hooks have contributed, or why not.
pub(crate) type Collected = Result<Offer, String>;

/// One per process and start, behind an [`Arc`].
pub(crate) struct Shared {
    pub(crate) table: Table,
    pub(crate) splitter: Splitter,
    pub(crate) drain: Drain,
    pub(crate) health: Health,
    pub(crate) observed: Observed,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) status: watch::Sender<Status>,
    /// What operators are told beside the status.
    pub(crate) standing: watch::Sender<Standing>,
    /// Whether operators are to ask this generation.
    pub(crate) asked: watch::Sender<Asked>,
    pub(crate) history: watch::Sender<History>,
    /// The last drill, which may be older than the history.
    pub(crate) drill: watch::Sender<Option<Drill>>,
    /// What came of the last verification.
    pub(crate) verified: watch::Sender<Option<Verification>>,
    /// What this generation does wrong, as the candidate of a drill.
    pub(crate) injected: Injected,
    /// Successors that were given up and whose end has not been seen: they may accept for as long as they live.
    pub(crate) at_large: watch::Sender<usize>,
    pub(crate) at_offer: Hooks,
    pub(crate) at_flip: Hooks,
    /// What runs in the active generation only.
    pub(crate) activity: Activity,
    /// What this generation has to do with a schema.
    pub(crate) schema: Declared,
    /// What the incumbent passed at the offer.
    pub(crate) offered: Mutex<State>,
    /// What the incumbent passed at the flip.
    pub(crate) flipped: Mutex<State>,
    /// What this generation runs, and what a cold rollback goes back to.
    pub(crate) images: Mutex<Images>,
}

/// Hooks in the order in which they were added.
#[derive(Default)]
pub(crate) struct Hooks(Mutex<Vec<Hook>>);

/// What the handles ask of the driver.
#[derive(Debug)]
pub(crate) enum Command {
    /// Hand over to a successor; answered with the verdict.
    Upgrade {
        /// The builder's if there is none.
        plan: Option<Box<Rollout>>,
        reply: oneshot::Sender<Result<Upgraded>>,
    },
    /// Do what an operator wants; answered when it has begun.
    Operate {
        wanted: Wanted,
        reply: oneshot::Sender<Done>,
    },
    /// Hand over to a process that somebody else has started; answered when it has begun.
    TakeOver {
        successor: Box<Launched>,
        reply: oneshot::Sender<Done>,
    },
    /// Let the successor that is held in standby take over.
    Flip,
    /// Undo the upgrade that is under way.
    Rollback { reason: String },
    /// Connections that ask whether this side accepts are about to come; answered when it knows.
    Announce {
        side: Side,
        announcement: Announcement,
        reply: oneshot::Sender<Announced>,
    },
    /// Ask fresh connections who answers them; answered when that has begun.
    Verify {
        reply: oneshot::Sender<std::result::Result<oneshot::Receiver<Verification>, String>>,
    },
    /// The hooks have run that make this generation inactive, for as long as it was wished.
    Deactivated,
    /// A successor that was given up has ended.
    SuccessorGone,
    /// An upgrade has failed, and all is known about it.
    AnnounceFailure { reason: String },
    /// Have the service manager keep some bytes for the next fresh start.
    KeepState(KeptState),
    /// Stop, and the service with it.
    Stop,
}

/// The verdict of an upgrade that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Upgraded {
    /// The generation that serves now.
    pub generation: u64,
    /// Its process.
    pub pid: u32,
    /// From the request until the successor was ready.
    pub ready_after: Duration,
    /// From the incumbent's gates being shut until the successor's were open.
    pub flip_took: Duration,
    /// From the request until the successor was committed, the bake included.
    pub committed_after: Duration,
}

/// A generation as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// This generation's number.
    pub generation: u64,
    /// Whether it has the accept right or can take it back: it upgrades, and answers for the service.
    pub incumbent: bool,
    /// The phase of the upgrade under way, and the successor's number.
    pub upgrade: Option<(u64, Phase)>,
    /// Other generations that are alive and drain, oldest first.
    pub elders: Vec<Elder>,
}

/// Another generation that finishes what it has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Elder {
    /// Its number.
    pub generation: u64,
    /// Its process.
    pub pid: u32,
}

impl Shared {
    pub(crate) fn new(
        table: Table,
        drain: Drain,
        commands: mpsc::UnboundedSender<Command>,
    ) -> Arc<Self> {
        let status = Status {
            generation: 1,
            incumbent: false,
            upgrade: None,
            elders: Vec::new(),
        };
        Arc::new(Self {
            table,
            splitter: Splitter::default(),
            drain,
            health: Health::default(),
            observed: Observed::new(),
            events: broadcast::Sender::new(EVENTS_KEPT),
            commands,
            status: watch::Sender::new(status),
            standing: watch::Sender::default(),
            asked: watch::Sender::default(),
            history: watch::Sender::default(),
            drill: watch::Sender::default(),
            verified: watch::Sender::default(),
            injected: Injected::default(),
            at_large: watch::Sender::new(0),
            at_offer: Hooks::default(),
            at_flip: Hooks::default(),
            activity: Activity::default(),
            schema: Declared::default(),
            offered: Mutex::default(),
            flipped: Mutex::default(),
            images: Mutex::default(),
        })
    }

    /// Tells everybody who listens, and the log.
    pub(crate) fn emit(&self, event: Event) {
        match &event {
            Event::Warning { .. }
            | Event::Refused { .. }
            | Event::Aborted { .. }
            | Event::RolledBack { .. } => tracing::warn!(?event, "handover"),
            Event::Phase { .. } => tracing::debug!(?event, "handover"),
            _ => tracing::info!(?event, "handover"),
        }
        self.schema.follow(&event);
        // Nobody listening is no loss: the log has it.
        let _ = self.events.send(event);
    }

    /// An upgrade has its verdict.
    pub(crate) fn remember(&self, upgrade: Upgrade) {
        if let Some(drill) = &upgrade.drill {
            self.drill.send_replace(Some(Drill::clone(drill)));
        }
        self.history.send_modify(|history| history.add(upgrade));
    }

    pub(crate) fn warn(&self, message: impl Into<String>) {
        self.emit(Event::Warning {
            message: message.into(),
        });
    }

    pub(crate) fn command(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| gone())
    }
}

/// The driver ends only with the runtime it runs on.
pub(crate) fn gone() -> Error {
    Error::new(ErrorKind::Stopping, "asking this generation's driver").because("it has ended")
}

impl Hooks {
    pub(crate) fn add(&self, hook: Hook) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(hook);
    }

    fn all(&self) -> Vec<Hook> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Runs every hook away from the runtime's threads: a hook may block or panic, and must not take the driver along.
    ///
    /// `None` if there is nothing to run.
    pub(crate) fn run(&self) -> Option<oneshot::Receiver<Collected>> {
        let hooks = self.all();
        (!hooks.is_empty()).then(|| begin(hooks))
    }
}

/// On a thread of its own: a runtime that shuts down waits for its blocking threads, and a hook may never return.
fn begin(hooks: Vec<Hook>) -> oneshot::Receiver<Collected> {
    let (reply, collected) = oneshot::channel();
    let thread = std::thread::Builder::new().name("handover-hooks".to_owned());
    // Whoever waits for the answer sees that it never comes, when no thread can be had as well.
    let _ = thread.spawn(move || reply.send(collect(&hooks)));
    collected
}

fn collect(hooks: &[Hook]) -> Collected {
    let mut outgoing = Offer::default();
    for hook in hooks {
        hook(&mut outgoing).map_err(|error| format!("a state hook failed: {error}"))?;
    }
    Ok(outgoing)
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("status", &*self.status.borrow())
            .finish_non_exhaustive()
    }
}

/// What is behind it is whole even if a holder of the lock has panicked.
pub(crate) fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
