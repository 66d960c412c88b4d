//! What the service manager hears of this generation, and when. All of it does nothing where there is no manager.
//!
//! It listens to one process of the service, the main one (sd_notify(3), `NotifyAccess=main`), and what becomes of the
//! main one becomes of the service. So the incumbent speaks until its successor is committed, in the bake as well: a
//! successor that crashes there is nobody's main process. Then, as its last word, the incumbent names the successor.

use std::future::{Future, pending};
use std::mem;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::shared::lock;
use super::upward::state_of;
use super::{Driver, Role};
use crate::channel::Channel;
use crate::config::{Config, EXTEND_AGAIN, NOTIFY_DEADLINE};
use crate::drain::Guard;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::message::SlotKind;
use crate::sys::environment::Snapshot;
use crate::sys::memory;
use crate::systemd::notify::{Manager, Notice};
use crate::systemd::store::{self, Deposit, Plan};
use crate::systemd::{activation, watchdog};

/// The way to the service manager, and whether it listens.
#[derive(Debug)]
pub(crate) struct ServiceManager {
    manager: Option<Manager>,
    problems: mpsc::UnboundedReceiver<String>,
    /// What was wrong with what it passed, until somebody can have asked for events.
    passed_badly: Vec<String>,
    /// What it is to keep once it listens to this process.
    to_keep: Vec<KeptState>,
    place: Place,
    /// Whether somebody has started this process as a unit's main one, and no generation as its successor.
    is_started_as_main: bool,
    /// When it is to hear again how long the upgrade under way may take.
    extend_again: Option<Instant>,
    /// Whether it is to keep sockets for a start after this service's crash or restart.
    keeps: bool,
    /// How many descriptors it keeps in all, if it says so.
    room_max: Option<usize>,
    watchdog: Option<Watchdog>,
}

/// What this process is to the manager.
#[derive(Debug)]
enum Place {
    /// It may become the main one. The manager would drop what it says (`NotifyAccess=main`), so that is kept until then:
    /// the manager itself may ask it for a reload before it has heard from its predecessor that it is the main one.
    NotYet {
        told: Vec<Notice>,
        /// Who is to be the main one after it, if it has handed over meanwhile.
        successor: Option<Named>,
    },
    Main,
    NoMore,
}

/// A committed successor that is to be named as the main process.
#[derive(Debug)]
struct Named {
    generation: u64,
    pid: u32,
    /// Its closing tells the successor that the manager knows.
    channel: Option<Channel>,
    /// This process must outlive the manager's hearing so.
    guard: Guard,
}

/// Bytes for the next fresh start, and who waits to hear that they are kept.
#[derive(Debug)]
pub(crate) struct KeptState {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) reply: oneshot::Sender<Result<()>>,
}

/// How often it wants to hear that the main process is alive.
#[derive(Debug)]
struct Watchdog {
    every: Duration,
    next: Option<Instant>,
}

impl KeptState {
    fn answer(self, problem: Option<String>) {
        let failed = || {
            Error::new(
                ErrorKind::Io,
                format!("keeping {:?} for the next start", self.name),
            )
        };
        let result = problem.map_or(Ok(()), |problem| Err(failed().because(problem)));
        // Whoever asked may have stopped waiting.
        let _ = self.reply.send(result);
    }
}

impl ServiceManager {
    /// The one that has started this process, or the generation before it. What is wrong with it is told as a problem.
    pub(crate) fn of(snapshot: &Snapshot, config: &Config, is_main: bool) -> Self {
        let (sender, problems) = mpsc::unbounded_channel();
        let socket = snapshot.service_manager("NOTIFY_SOCKET");
        let manager = socket.and_then(|socket| {
            let connected = Manager::connect(socket, sender.clone());
            let explain = |error: &Error| sender.send(format!("{error:?}"));
            connected.inspect_err(|error| drop(explain(error))).ok()
        });
        let watchdog = watchdog::interval(snapshot).map(|every| Watchdog { every, next: None });
        let room_max = store::room_max(snapshot);
        let has_room = room_max.is_some_and(|room| room > 0);
        Self {
            keeps: config.fd_store.unwrap_or(has_room),
            room_max,
            watchdog: watchdog.filter(|_| manager.is_some()),
            manager,
            problems,
            passed_badly: Vec::new(),
            to_keep: Vec::new(),
            extend_again: None,
            is_started_as_main: is_main,
            place: match is_main {
                true => Place::Main,
                false => Place::NotYet {
                    told: Vec::new(),
                    successor: None,
                },
            },
        }
    }

    /// The next thing that went wrong between it and us.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub(super) async fn problem(&mut self) -> String {
        match self.problems.recv().await {
            Some(problem) => problem,
            None => pending().await,
        }
    }

    pub(super) fn tell(&mut self, notice: Notice) {
        match (&self.manager, &mut self.place) {
            (Some(manager), Place::Main) => manager.tell(notice),
            (Some(_), Place::NotYet { told, .. }) => told.push(notice),
            _ => {}
        }
    }

    /// The manager, if it listens to this process.
    pub(super) fn listening(&self) -> Option<&Manager> {
        let is_main = matches!(self.place, Place::Main);
        self.manager.as_ref().filter(|_| is_main)
    }

    /// Whether the manager listens to this process, or will before this process leaves.
    fn hears(&self) -> bool {
        self.manager.is_some() && !matches!(self.place, Place::NoMore)
    }

    pub(super) fn next_pet(&self) -> Option<Instant> {
        let next = self.watchdog.as_ref()?.next;
        next.filter(|_| self.listening().is_some())
    }

    pub(super) fn next_extension(&self) -> Option<Instant> {
        self.extend_again.filter(|_| self.listening().is_some())
    }

    pub(super) fn pet_if_due(&mut self, now: Instant) {
        if self.next_pet().is_some_and(|next| now >= next) {
            self.pet(now);
        }
    }

    /// From now on this process is the one that is alive.
    fn pet(&mut self, now: Instant) {
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.next = Some(now + watchdog.every);
            self.tell(Notice::new().watchdog());
        }
    }

    /// Names another process as the main one. Resolves when the manager knows; nothing that this one says counts then.
    fn resign(&mut self, notice: Notice) -> Option<impl Future<Output = Result<()>> + use<>> {
        // The successor's own sign of life may take as long again.
        let notice = match self.watchdog {
            Some(_) => notice.watchdog(),
            None => notice,
        };
        self.tell(notice);
        let told = self.listening().map(Manager::barrier);
        self.place = Place::NoMore;
        told
    }
}

// What the driver has to say, and what it gets.
impl Driver {
    /// Takes over what the manager has passed to a fresh generation: sockets of its units, and what an earlier life of
    /// the service has left in its store.
    pub(crate) fn take_activation(&mut self, snapshot: &Snapshot) {
        let passed = activation::take(snapshot);
        let refused = self.shared.table.adopt_activated(passed.sockets);
        let refused = refused.into_iter().map(|error| format!("{error:?}"));
        self.manager.passed_badly = passed.problems.into_iter().chain(refused).collect();
        lock(&self.shared.offered).extend(state_of(passed.state));
    }

    /// It serves, and the manager listens to it.
    pub(super) fn announce(&mut self) {
        let unclaimed = self.shared.table.close_unclaimed_activated().into_iter();
        let unclaimed = unclaimed.map(|slot| {
            let name = slot.name;
            format!("nobody claims {name:?}, which the service manager has passed")
        });
        let badly = mem::take(&mut self.manager.passed_badly);
        for problem in badly.into_iter().chain(unclaimed) {
            self.shared.warn(problem);
        }
        self.manager
            .tell(Notice::new().ready().status(&self.standing()));
        self.manager.pet(Instant::now());
        self.keep_sockets();
    }

    /// A successor that is the main process of a unit of its own has started once the role is its.
    pub(super) fn announce_takeover(&mut self) {
        if self.manager.is_started_as_main {
            self.announce();
        }
    }

    /// The last word of the generation before this one was that this is the main process now.
    pub(super) fn become_main(&mut self) {
        let Place::NotYet { told, successor } = &mut self.manager.place else {
            return;
        };
        let (told, successor) = (mem::take(told), successor.take());
        self.manager.place = Place::Main;
        told.into_iter()
            .for_each(|notice| self.manager.tell(notice));
        if let Some(successor) = successor {
            return self.name(successor);
        }
        self.manager.pet(Instant::now());
        self.keep_sockets();
        let to_keep = mem::take(&mut self.manager.to_keep);
        to_keep.into_iter().for_each(|state| self.keep_state(state));
    }

    /// Has the manager keep what is claimed, for a start after a crash or a restart, and let go of what is not.
    fn keep_sockets(&self) {
        let Some(manager) = self.manager.listening().filter(|_| self.manager.keeps) else {
            return;
        };
        let (manager, shared) = (manager.clone(), self.shared.clone());
        let room_max = self.manager.room_max;
        tokio::spawn(async move {
            let claimed = shared.table.offer();
            let plan = Plan::new(&shared.table.stored(), claimed.iter().map(|(slot, _)| slot));
            store::forget_sockets(&manager, &plan.forget);
            let new = claimed
                .into_iter()
                .filter(|(slot, _)| plan.store.contains(&slot.name));
            let deposits = new.filter_map(|(slot, socket)| {
                Some(Deposit {
                    name: slot.name,
                    kind: slot.kind,
                    descriptor: socket.try_clone().ok()?,
                })
            });
            let deposited = store::deposit(&manager, deposits.collect(), room_max).await;
            let kept: Vec<String> = plan.keep.into_iter().chain(deposited.kept).collect();
            shared.table.set_stored(&kept);
            if let Some(problem) = deposited.problem {
                shared.warn(problem);
            }
        });
    }

    /// Has the manager keep some bytes for the next fresh start, in the place of those of the same name. A generation to
    /// which it does not listen yet waits until it does.
    pub(super) fn keep_state(&mut self, state: KeptState) {
        let Some(manager) = self.manager.listening().cloned() else {
            if self.manager.manager.is_some() && self.role != Role::Leaving {
                return self.manager.to_keep.push(state);
            }
            return state.answer(Some("there is no service manager that listens".to_owned()));
        };
        let descriptor = match memory::sealed(c"handover-kept", &state.bytes) {
            Ok(descriptor) => descriptor,
            Err(error) => return state.answer(Some(error.to_string())),
        };
        let deposit = Deposit {
            name: state.name.clone(),
            kind: SlotKind::Blob,
            descriptor,
        };
        store::forget_state(&manager, std::slice::from_ref(&state.name));
        let room_max = self.manager.room_max;
        tokio::spawn(async move {
            let deposited = store::deposit(&manager, vec![deposit], room_max).await;
            state.answer(deposited.problem);
        });
    }

    pub(super) fn announce_upgrade(&mut self) {
        let status = format!("starting an upgrade; {}", self.standing());
        self.manager.tell(Notice::new().reloading().status(&status));
    }

    /// A reload that comes to nothing has to end all the same; one that meets another upgrade ends with that one.
    pub(super) fn announce_refusal(&mut self, reason: &str) {
        if self.role != Role::Incumbent {
            return;
        }
        self.manager.tell(Notice::new().reloading());
        if self.upgrade_phase().is_none() && self.waiting.is_none() {
            let status = format!("upgrade refused: {reason}; {}", self.standing());
            self.manager.tell(Notice::new().ready().status(&status));
        }
    }

    /// How far the upgrade is, and how long it may take to get further.
    ///
    /// Told again now and then: systemd 252 starts its clock anew with each command of a reload.
    pub(super) fn announce_phase(&mut self) {
        let Some((down, phase)) = self.down.as_ref().zip(self.upgrade_phase()) else {
            self.manager.extend_again = None;
            return;
        };
        self.manager.extend_again = Some(Instant::now() + EXTEND_AGAIN);
        let status = format!(
            "upgrading to generation {}: {phase}; {}",
            down.generation,
            self.standing()
        );
        let deadline = self
            .incumbent
            .poll_timeout()
            .or_else(|| self.rollout_deadline());
        // What waits for an operator has no deadline, and says so again before this is over.
        let left = deadline.map_or(EXTEND_AGAIN, |deadline| {
            deadline.saturating_duration_since(Instant::now())
        });
        let notice = Notice::new().status(&status);
        self.manager
            .tell(notice.extend_timeout(left + self.config.exit));
    }

    /// An upgrade has failed. A reload has no way to fail (facts: systemd 257 takes READY=1 for success), so the words
    /// say it. An upgrade that has begun since then ends the reload itself.
    pub(super) fn announce_failure(&mut self, reason: &str) {
        if self.role == Role::Incumbent && self.down.is_none() && self.waiting.is_none() {
            let status = format!("{}; {reason}", self.standing());
            self.manager.tell(Notice::new().ready().status(&status));
        }
    }

    /// Hands the service over to a committed successor, at once or as soon as the manager listens to this process. This
    /// process must outlive the manager's hearing so, and its end of the channel, whose closing tells the successor, with
    /// it.
    ///
    /// One that somebody else has started in another unit cannot be this one's main process: this unit ends then.
    pub(super) fn announce_successor(
        &mut self,
        generation: u64,
        pid: u32,
        channel: Option<Channel>,
        is_child: bool,
    ) {
        if !self.manager.hears() {
            return;
        }
        if !is_child && !shares_our_unit(pid) {
            let status =
                format!("generation {generation} serves (process {pid}), outside of this unit");
            // systemd 252 takes no stop in the middle of a reload, which the upgrade was to it.
            self.manager.tell(Notice::new().ready());
            return self.announce_end(&status, self.config.hard_stop);
        }
        let class = self
            .shared
            .drain
            .class_with_deadline("service manager", NAMING_DEADLINE);
        let named = Named {
            generation,
            pid,
            channel,
            guard: class.guard("hearing of the successor"),
        };
        match &mut self.manager.place {
            Place::NotYet { successor, .. } => *successor = Some(named),
            _ => self.name(named),
        }
    }

    fn name(&mut self, named: Named) {
        let (generation, pid) = (named.generation, named.pid);
        let status = format!("generation {generation} serves (process {pid})");
        let notice = Notice::new().main_pid(pid).ready().status(&status);
        let Some(told) = self.manager.resign(notice) else {
            return;
        };
        let shared = self.shared.clone();
        tokio::spawn(async move {
            if let Err(error) = told.await {
                shared.warn(format!("{error:?}"));
            }
            drop(named.channel);
            drop(named.guard);
        });
    }

    /// Only the last generation says so: the manager kills what is left of the service some time after it.
    ///
    /// It kills the other generations with this one, so this one waits for them, as long as its own stop lasts.
    pub(super) fn announce_stop(&mut self, within: Duration) {
        let generation = self.generation;
        let status = format!("stopping: generation {generation} finishes what is in flight");
        self.announce_end(&status, within);
    }

    fn announce_end(&mut self, status: &str, within: Duration) {
        let notice = Notice::new().stopping().status(status);
        self.manager
            .tell(notice.extend_timeout(within + self.config.exit));
        if self.manager.hears() && self.elders.count() > 0 {
            let class = self.shared.drain.class("older generations");
            self.elders_awaited = Some(class.guard(self.elders.describe()));
        }
    }

    fn standing(&self) -> String {
        format!("generation {} serves", self.generation)
    }
}

/// systemd knows a unit's processes by their control group (cgroups(7)). Whose is not known is another's.
pub(crate) fn shares_our_unit(pid: u32) -> bool {
    let group = |process: &str| std::fs::read(format!("/proc/{process}/cgroup")).ok();
    group(&pid.to_string()).is_some_and(|theirs| group("self") == Some(theirs))
}

/// Until the manager has heard of a successor: first the predecessor may have to wait for it, then this process.
const NAMING_DEADLINE: Duration = NOTIFY_DEADLINE.saturating_mul(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_of_our_unit_by_its_control_group() {
        assert!(shares_our_unit(std::process::id()));
        assert!(!shares_our_unit(0));
    }
}
