//! The one task that joins the machines and the world: it awaits one input, hands it to a machine, and performs every
//! output before it awaits the next.
//!
//! It owns what the machines only name: descriptors, processes, channels, gates.

mod activity;
mod downward;
mod drill;
mod elders;
mod link;
mod looks;
pub(crate) mod manager;
pub(crate) mod membership;
pub(crate) mod operator;
mod parts;
mod preview;
mod release;
mod rollout;
pub(crate) mod schema;
mod schema_wishes;
pub(crate) mod shared;
mod sharing;
mod stop;
mod upward;
mod verify;

use std::future::pending;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::parent_id;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};

use self::downward::Downward;
use self::elders::Elders;
use self::link::{Heard, is_hangup};
use self::manager::ServiceManager;
use self::membership::Membership;
use self::operator::{Done, verdict_of};
use self::release::Release;
use self::rollout::{Examination, Examined, Examining};
use self::shared::{Collected, Command, Shared, Status, Upgraded};
use self::sharing::Sharing;
use self::stop::Stop;
use self::upward::Upward;
use self::verify::Unconfirmed;
use crate::channel::Channel;
use crate::check::Check;
use crate::config::Config;
use crate::control;
use crate::director;
use crate::drain::Guard;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Phase};
use crate::launch::Launcher;
use crate::pid_file;
use crate::preview::Endpoints;
use crate::protocol::deadlines::Deadlines;
use crate::protocol::incumbent::Incumbent;
use crate::protocol::message::{Hello, Message, VERSION, VERSION_MIN, millis};
use crate::protocol::successor::Successor;
use crate::rollout::Rollout;
use crate::rollout::attempts::{Attempts, Origin};
use crate::rollout::controller::Promote;
use crate::rollout::guard::Accepts;
use crate::sys::process::Pidfd;
use crate::sys::{descriptors, limits};
use crate::systemd::notify::Notice;
use crate::trigger::{Signals, Trigger};

/// Descriptors that a successor needs beside its sockets: state, standard error, what it opens while it warms up.
const DESCRIPTORS_SPARE: u64 = 64;

/// The state behind one generation. Lives as long as the runtime does.
#[derive(Debug)]
pub(crate) struct Driver {
    shared: Arc<Shared>,
    config: Config,
    launcher: Launcher,
    commands: mpsc::UnboundedReceiver<Command>,
    signals: Signals,
    manager: ServiceManager,
    generation: u64,
    next_generation: u64,
    role: Role,
    /// The incumbent that this generation takes over from, if it did not start fresh.
    up: Option<Upward>,
    /// This generation as the incumbent.
    incumbent: Incumbent,
    /// The upgrade under way.
    down: Option<Downward>,
    /// An upgrade that waits for an elder to leave, and until when.
    waiting: Option<(Downward, Instant)>,
    /// The connections that ask who accepts and that the successor has not said to expect.
    unconfirmed: Vec<Unconfirmed>,
    /// Where this generation is reached before it has clients.
    preview: Option<Endpoints>,
    /// What a successor has to pass before it has.
    checks: Vec<Check>,
    /// The gates are open again, and it is active again once no successor can be.
    activation_due: bool,
    attempts: Attempts,
    /// How many connections have come lately, while this generation serves.
    accepts: Accepts,
    /// Why somebody has to look, if somebody has.
    degraded: Option<String>,
    elders: Elders,
    /// Kept from leaving while elders drain that would not survive this generation.
    elders_awaited: Option<Guard>,
    /// Sockets that the successor does not want.
    unclaimed: Vec<String>,
    /// What the application is told that waits for its sockets, or for the accept right.
    answer: Option<Result<()>>,
    /// Somebody has asked this generation itself to stop.
    stop_asked: bool,
    /// The stop of the service, once it has begun.
    stop: Option<Stop>,
    /// It leaves, and nobody follows.
    ends_service: bool,
    /// Whether it has connections to serve that another generation has accepted.
    has_adopted: watch::Receiver<bool>,
    incumbent_since: Option<SystemTime>,
    /// Of a pool, if this process is a worker of one.
    membership: Option<Membership>,
}

/// What this generation is to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Not ready, or not committed.
    Starting,
    /// Upgrades start here, and rollbacks end here.
    Incumbent,
    /// The service is to stop: it accepts for a little longer, so that clients can be sent elsewhere before.
    LameDuck,
    /// It finishes what it has begun.
    Leaving,
}

/// What can happen to a generation.
enum Input {
    FromIncumbent(Heard),
    IncumbentEnded,
    FromSuccessor(Heard),
    SuccessorEnded,
    HooksDone(Collected),
    Adopted,
    DirectorEnded(director::End),
    Examined(Examination, Examined),
    ElderGone(elders::Elder),
    Command(Command),
    Trigger(Trigger),
    ManagerProblem(String),
    FromSupervisor(Heard),
    Time,
}

impl Driver {
    pub(crate) fn new(
        shared: Arc<Shared>,
        config: Config,
        launcher: Launcher,
        commands: mpsc::UnboundedReceiver<Command>,
        signals: Signals,
        manager: ServiceManager,
    ) -> Self {
        let incumbent = Incumbent::new(deadlines(&config));
        let has_adopted = shared.table.has_adopted();
        let membership = Membership::of(&config, &shared.observed);
        Self {
            shared,
            config,
            launcher,
            commands,
            signals,
            manager,
            generation: 1,
            next_generation: 2,
            role: Role::Starting,
            up: None,
            incumbent,
            down: None,
            waiting: None,
            unconfirmed: Vec::new(),
            preview: None,
            checks: Vec::new(),
            activation_due: false,
            attempts: Attempts::default(),
            accepts: Accepts::default(),
            degraded: None,
            elders: Elders::default(),
            elders_awaited: None,
            unclaimed: Vec::new(),
            answer: None,
            stop_asked: false,
            stop: None,
            ends_service: false,
            has_adopted,
            incumbent_since: None,
            membership,
        }
    }

    /// What each successor has to pass before it has clients.
    pub(crate) fn with_checks(mut self, checks: Vec<Check>) -> Self {
        self.checks = checks;
        self
    }

    /// Makes this generation the successor of the one at the other end of `channel`.
    ///
    /// Returns when its sockets have arrived.
    ///
    /// # Cancel safety
    ///
    /// None: the handover is given up with the driver.
    pub(crate) async fn succeed(&mut self, channel: OwnedFd) -> Result<()> {
        let doing = || Error::new(ErrorKind::Protocol, "greeting the incumbent");
        let pid = descriptors::peer_pid(channel.as_fd()).map_err(|error| doing().because(error))?;
        let process = Pidfd::open(pid);
        let channel =
            Channel::new(channel).map_err(|error| doing().because(error).with_peer(pid))?;
        // The number is the incumbent's own for as long as its end of the channel is open, which the greeting proves.
        // Where it does not, the number may be another process's by now: a child whose parent is somebody else has
        // lost its own. One that lives and gave this successor up has said so, and that is read first.
        let orphaned = match channel.try_send(&self.hello(), &[]) {
            Ok(()) => false,
            Err(error) if is_hangup(&error) => parent_id() != pid,
            Err(error) => return Err(doing().because(error).with_peer(pid)),
        };
        let process = match process {
            _ if orphaned => None,
            Ok(process) => Some(process),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => None,
            Err(error) => return Err(doing().because(error).with_peer(pid)),
        };
        let machine = Successor::new(deadlines(&self.config), Instant::now());
        let is_dead = process.is_none();
        self.up = Some(Upward::new(machine, channel, process, pid));
        if is_dead {
            // There is no end left to wait for: it died and was collected before this process came so far.
            self.incumbent_ended();
        }
        // Most often it is there already: what has been queued is read without a wake-up by the runtime.
        self.hear_rest_of_incumbent();
        self.answer().await
    }

    /// The application is warmed up. Returns when this generation has the accept right.
    ///
    /// Until then nobody but the application waits for this driver, so it runs in the application's task: every change
    /// of tasks would cost the clients of a handover a wake-up.
    ///
    /// # Cancel safety
    ///
    /// None: the handover is given up with the driver.
    pub(crate) async fn ready(&mut self) -> Result<()> {
        // An open gate holds a second descriptor of its socket.
        let sockets = self.shared.table.names().len();
        self.raise_descriptor_limit(u32::try_from(sockets).unwrap_or(u32::MAX));
        self.report_if_degraded();
        if self.up.is_none() {
            self.listen_stop();
            return self.serve_fresh();
        }
        let unclaimed = self.shared.table.unclaimed();
        self.shared.table.close_unclaimed();
        self.open_preview().await?;
        if let Some(up) = &mut self.up {
            up.machine.handle_ready(unclaimed);
        }
        self.perform_upward();
        self.answer_failed();
        self.listen_stop();
        self.answer().await
    }

    async fn answer(&mut self) -> Result<()> {
        loop {
            if let Some(answer) = self.answer.take() {
                return answer;
            }
            let input = self.next().await;
            self.handle(input);
        }
    }

    /// Whether somebody serves whom this generation is to take over from.
    pub(crate) fn has_incumbent(&self) -> bool {
        self.up.as_ref().is_some_and(|up| up.process.is_some())
    }

    /// How long a start may take, unless it says that it needs longer.
    pub(crate) fn start_deadline(&self) -> Duration {
        self.config.start
    }

    /// The application needs longer to warm up.
    pub(crate) fn extend(&mut self, by: Duration) {
        match &mut self.up {
            Some(up) => {
                up.machine.handle_extend(by);
                self.perform_upward();
            }
            None => self.manager.tell(Notice::new().extend_timeout(by)),
        }
    }

    /// The application gives up before it is ready.
    pub(crate) fn abandon(&mut self) {
        match &mut self.up {
            Some(up) => {
                let reason = "the application gave up before it was ready".to_owned();
                up.machine.handle_stop(Instant::now(), reason);
                self.perform_upward();
            }
            // Whoever starts in its place must find the addresses free, though this process lives on.
            None => self.shared.table.retire(),
        }
    }

    /// Runs for the rest of the process's life.
    pub(crate) async fn run(mut self: Box<Self>) {
        loop {
            let input = self.next().await;
            self.handle(input);
        }
    }

    /// # Cancel safety
    ///
    /// Each branch keeps what it has not returned.
    async fn next(&mut self) -> Input {
        let deadline = self.next_deadline();
        let (up_channel, up_process) = match &mut self.up {
            Some(up) => (up.channel.as_mut(), up.process.as_ref()),
            None => (None, None),
        };
        let (hooks, examining, director, link) = match &mut self.down {
            Some(Downward {
                hooks,
                examining,
                director,
                link,
                ..
            }) => (
                hooks.as_mut(),
                examining.as_mut(),
                director.as_ref(),
                link.as_mut(),
            ),
            None => (None, None, None, None),
        };
        let (down_channel, down_process) = match link {
            Some(link) => {
                let process = (!link.has_ended()).then_some(&link.process);
                (link.channel.as_mut(), process)
            }
            None => (None, None),
        };
        let supervisor = self.membership.as_mut().and_then(Membership::channel);
        tokio::select! {
            heard = when(up_channel.map(Heard::next)) => Input::FromIncumbent(heard),
            heard = when(down_channel.map(Heard::next)) => Input::FromSuccessor(heard),
            _ = when(down_process.map(Pidfd::exited)) => Input::SuccessorEnded,
            _ = when(up_process.map(Pidfd::exited)) => Input::IncumbentEnded,
            done = when(hooks) => Input::HooksDone(done.unwrap_or_else(|_| Err("a state hook panicked".to_owned()))),
            (what, result) = when(examining.map(Examining::done)) => Input::Examined(what, result),
            end = when(director.map(Sharing::ended)) => Input::DirectorEnded(end),
            Ok(()) = self.has_adopted.changed() => Input::Adopted,
            Some(command) = self.commands.recv() => Input::Command(command),
            trigger = self.signals.next() => Input::Trigger(trigger),
            elder = self.elders.next_gone() => Input::ElderGone(elder),
            problem = self.manager.problem() => Input::ManagerProblem(problem),
            heard = when(supervisor.map(Heard::next)) => Input::FromSupervisor(heard),
            () = when(deadline.map(|at| tokio::time::sleep_until(at.into()))) => Input::Time,
        }
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::FromIncumbent(heard) => self.heard_from_incumbent(heard),
            Input::IncumbentEnded => self.incumbent_ended(),
            Input::FromSuccessor(heard) => self.heard_from_successor(heard),
            Input::SuccessorEnded => self.successor_ended(),
            Input::HooksDone(result) => self.hooks_done(result),
            Input::Adopted => self.adopted(),
            Input::DirectorEnded(end) => self.director_ended(end),
            Input::Examined(what, result) => {
                self.examined(what, result);
                self.perform_downward();
            }
            Input::ElderGone(elder) => self.elder_gone(&elder),
            Input::Command(command) => self.handle_command(command),
            Input::Trigger(Trigger::Upgrade) => {
                // Nobody waits for the answer of a signal; the refusal is an event.
                let plan = self.config.rollout.clone();
                let _ = self.upgrade(None, plan, Origin::Automatic, Release::Next);
            }
            Input::Trigger(Trigger::Stop) => self.stop(),
            Input::ManagerProblem(problem) => self.shared.warn(problem),
            Input::FromSupervisor(heard) => self.heard_from_supervisor(heard),
            Input::Time => self.time_passed(),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let up = self.up.as_ref().and_then(|up| up.machine.poll_timeout());
        let waiting = self.waiting.as_ref().map(|(_, until)| *until);
        [
            up,
            self.incumbent.poll_timeout(),
            self.rollout_deadline(),
            self.next_accepts(),
            self.next_look(),
            waiting,
            self.elders.next_kill(),
            self.manager.next_pet(),
            self.manager.next_extension(),
            self.next_report(),
            self.lame_duck_until(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn time_passed(&mut self) {
        // What came in time counts, though this process may have been too busy to look.
        self.hear_rest_of_incumbent();
        self.hear_rest_of_successor();
        let now = Instant::now();
        self.manager.pet_if_due(now);
        self.report_if_due(now);
        if self.manager.next_extension().is_some_and(|at| now >= at) {
            self.announce_phase();
        }
        if let Some(up) = &mut self.up {
            up.machine.handle_timeout(now);
        }
        self.perform_upward();
        self.incumbent.handle_timeout(now);
        self.perform_downward();
        if let Some(down) = &mut self.down {
            down.controller.handle_timeout(now);
        }
        self.perform_downward();
        self.look_if_due();
        if self.next_accepts().is_some_and(|at| at <= now) {
            self.remember_accepts(now);
        }
        for generation in self.elders.kill_overdue(now, now + self.config.hard_stop) {
            self.shared.warn(format!(
                "generation {generation} outstayed its hard stop and was killed"
            ));
        }
        if self.lame_duck_until().is_some_and(|until| until <= now) {
            self.end_lame_duck();
        }
        let overdue = |waiting: &mut (Downward, Instant)| now >= waiting.1;
        if let Some((waiting, _)) = self.waiting.take_if(overdue) {
            let reason = format!("too many generations are alive: {}", self.elders.describe());
            self.refuse_waiting(waiting, reason);
            self.publish();
        }
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Upgrade { plan, reply } => {
                let plan = plan.map_or_else(|| self.config.rollout.clone(), |plan| *plan);
                // Answered by way of `reply`.
                let _ = self.upgrade(Some(reply), plan, Origin::Automatic, Release::Next);
            }
            Command::Operate { wanted, reply } => self.do_wanted(wanted, reply),
            Command::TakeOver { successor, reply } => {
                // Whoever asked may have gone away.
                let _ = reply.send(self.hand_over_to(*successor));
            }
            Command::Flip => {
                // Nothing to be promoted is nothing to be done.
                let _ = self.promote_successor(Promote::Next);
            }
            Command::Rollback { reason } => {
                // Nor is nothing to be undone.
                let _ = self.undo(reason);
            }
            Command::Announce {
                side,
                announcement,
                reply,
            } => self.announce_probes(side, announcement, reply),
            Command::Verify { reply } => {
                // Whoever asked may have gone away.
                let _ = reply.send(self.verify_by_hand());
            }
            Command::Deactivated => self.deactivated(),
            Command::SuccessorGone => self.perform_downward(),
            Command::AnnounceFailure { reason } => self.announce_failure(&reason),
            Command::KeepState(state) => self.keep_state(state),
            Command::Stop => self.stop(),
        }
    }

    fn listen_stop(&mut self) {
        if let Err(error) = self.signals.listen_stop(&self.config.stop_signals) {
            self.shared.warn(format!(
                "the stop signals keep their default action: {error}"
            ));
        }
    }

    fn serve_fresh(&mut self) -> Result<()> {
        self.shared.table.open_all()?;
        self.activate();
        self.shared.health.serving();
        self.shared.emit(Event::Serving {
            generation: self.generation,
        });
        self.become_incumbent();
        self.announce();
        Ok(())
    }

    fn become_incumbent(&mut self) {
        self.role = Role::Incumbent;
        self.incumbent_since = Some(SystemTime::now());
        self.write_pid_file();
        self.remember_accepts(Instant::now());
        self.shared.emit(Event::Incumbent {
            generation: self.generation,
        });
        self.publish();
    }

    fn remember_accepts(&mut self, now: Instant) {
        let accepted = self.shared.table.accepted().count;
        self.accepts.handle_total(now, accepted);
    }

    /// Not while a successor serves: what it accepts is not counted here.
    fn next_accepts(&self) -> Option<Instant> {
        let serves = self.role == Role::Incumbent && self.down.is_none();
        self.accepts.poll_timeout().filter(|_| serves)
    }

    /// The successor's number, or why there will be none.
    fn upgrade(
        &mut self,
        reply: Option<oneshot::Sender<Result<Upgraded>>>,
        plan: Rollout,
        origin: Origin,
        release: Release,
    ) -> Done {
        let Err(reason) = self.may_upgrade(&plan, origin) else {
            return Ok(self.begin_upgrade(reply, plan, release));
        };
        self.refuse(reply, reason.clone());
        Err(reason)
    }

    /// Or why not now.
    fn may_upgrade(&self, plan: &Rollout, origin: Origin) -> Result<(), String> {
        if self.membership.is_some() {
            return Err("this process is a worker of a pool: ask its supervisor".to_owned());
        }
        Err(match (self.role, self.upgrade_phase()) {
            (Role::Starting, _) => "this generation is not the incumbent yet".to_owned(),
            (Role::LameDuck, _) => {
                "the service is stopping, this generation is a lame duck".to_owned()
            }
            (Role::Leaving, _) => "this generation is on its way out".to_owned(),
            (Role::Incumbent, Some(phase)) => format!("an upgrade is under way ({phase})"),
            (Role::Incumbent, None) if self.waiting.is_some() => {
                "an upgrade waits for an older generation to leave".to_owned()
            }
            (Role::Incumbent, None) => {
                let permitted = self.attempts.permit(origin, plan);
                return permitted.map_err(|too_many| too_many.to_string());
            }
        })
    }

    fn begin_upgrade(
        &mut self,
        reply: Option<oneshot::Sender<Result<Upgraded>>>,
        plan: Rollout,
        release: Release,
    ) -> u64 {
        let generation = self.next_generation;
        let down = Downward::new(generation, reply, release, plan, Instant::now());
        if self.has_capacity() {
            self.next_generation += 1;
            self.start_upgrade(down);
        } else {
            let reason = format!(
                "an upgrade waits for one of these to leave: {}",
                self.elders.describe()
            );
            self.shared.warn(reason);
            self.announce_upgrade();
            self.next_generation += 1;
            self.waiting = Some((down, Instant::now() + self.config.capacity));
            self.publish();
        }
        generation
    }

    fn start_upgrade(&mut self, down: Downward) {
        self.down = Some(down);
        self.announce_upgrade();
        // Refused only while one is under way, which `upgrade` has looked at.
        let begun = self.incumbent.handle_upgrade(Instant::now());
        debug_assert!(begun.is_ok());
        self.perform_downward();
    }

    /// This generation, its elders and the successor.
    fn has_capacity(&self) -> bool {
        self.elders.count() + 2 <= self.config.generations_max.max(2)
    }

    fn elder_gone(&mut self, elder: &elders::Elder) {
        self.shared.emit(Event::ElderGone {
            generation: elder.generation,
            pid: elder.pid,
        });
        if self.elders.count() == 0 {
            self.elders_awaited = None;
        }
        if self.has_capacity()
            && let Some((down, _)) = self.waiting.take()
        {
            self.start_upgrade(down);
        }
        self.publish();
    }

    fn refuse(&mut self, reply: Option<oneshot::Sender<Result<Upgraded>>>, reason: String) {
        self.announce_refusal(&reason);
        self.shared.emit(Event::Refused {
            reason: reason.clone(),
        });
        if let Some(reply) = reply {
            let error = Error::new(ErrorKind::Refused, "upgrading").because(reason);
            let serving = self.answers_for_the_service();
            // Whoever asked may have stopped waiting.
            let _ = reply.send(Err(if serving {
                error.while_incumbent_serves()
            } else {
                error
            }));
        }
    }

    /// It has a number, so somebody may wait for its verdict.
    fn refuse_waiting(&mut self, waiting: Downward, reason: String) {
        self.shared.remember(control::Upgrade {
            generation: waiting.generation,
            from: self.generation,
            verdict: verdict_of(ErrorKind::Refused),
            reason: reason.clone(),
            rollback_to: None,
            phase: None,
            pid: None,
            incumbent_serves: self.answers_for_the_service(),
            exit: None,
            last_words: String::new(),
            asked_at_ms: waiting.asked_at_ms,
            ready_after_ms: None,
            flip_took_us: None,
            rollback_took_us: None,
            explanation: None,
            candidate: None,
            stable: None,
            forwarding: None,
            drill: None,
            took_ms: millis(waiting.asked_at.elapsed()),
        });
        self.refuse(waiting.reply, reason);
    }

    /// Leaves, or ends the service if nobody else has the role.
    fn drain(&mut self, reason: String, handed_over: bool) {
        if self.role == Role::Incumbent && !handed_over {
            return self.stop_service();
        }
        if handed_over {
            self.shared.health.handed_over();
        }
        self.begin_leaving(reason);
        let shared = self.shared.clone();
        // What waits in queues that are only ours is served first.
        let unclaimed = std::mem::take(&mut self.unclaimed);
        let accepted = shared.table.adopted_accepted(self.config.flip);
        let finishing = shared.table.finish(&unclaimed, self.config.flip);
        let finishing = async { tokio::join!(finishing, accepted).0 };
        tokio::spawn(async move { leave(&shared, finishing, None, || Duration::MAX).await });
    }

    fn begin_leaving(&mut self, reason: String) {
        self.role = Role::Leaving;
        // Whoever is the next to be active, it is not this one.
        drop(self.shared.activity.wish(false));
        self.preview = None;
        // Whoever hears of it finds that it is so.
        self.publish();
        let in_flight = self.shared.drain.in_flight();
        self.leave_schema();
        self.shared.emit(Event::Draining { in_flight, reason });
    }

    fn leave_now(&self) {
        remove_pid_file(self.config.pid_file.as_deref());
        self.shared.drain.cut_now();
    }

    fn answers_for_the_service(&self) -> bool {
        matches!(self.role, Role::Incumbent | Role::LameDuck)
    }

    fn write_pid_file(&self) {
        let Some(path) = &self.config.pid_file else {
            return;
        };
        if let Err(error) = pid_file::write(path, std::process::id()) {
            self.shared
                .warn(format!("writing {}: {error}", path.display()));
        }
    }

    fn raise_descriptor_limit(&self, sockets: u32) {
        let needed = u64::from(sockets) + DESCRIPTORS_SPARE;
        if let Err(error) = limits::raise_descriptor_limit(needed) {
            self.shared.warn(format!(
                "raising the limit of descriptors for {sockets} sockets: {error}"
            ));
        }
    }

    /// How far the upgrade under way is. Behind a rollback it is the verification that the verdict waits for.
    fn upgrade_phase(&self) -> Option<Phase> {
        let phase = self.incumbent.phase();
        phase.or_else(|| self.down.as_ref().map(|_| Phase::Reverting))
    }

    fn publish(&self) {
        let upgrade = self
            .down
            .as_ref()
            .and_then(|down| Some((down.generation, self.upgrade_phase()?)));
        let elders = self.elders.iter().map(|elder| shared::Elder {
            generation: elder.generation,
            pid: elder.pid,
        });
        let status = Status {
            generation: self.generation,
            incumbent: self.answers_for_the_service(),
            upgrade,
            elders: elders.collect(),
        };
        self.shared.status.send_replace(status);
        self.publish_standing();
    }

    fn hello(&self) -> Message {
        Message::Hello(Hello {
            version_min: VERSION_MIN,
            version_max: VERSION,
            crate_version: env!("CARGO_PKG_VERSION").to_owned(),
            build: self.config.build.clone(),
            generation: 0,
            successor: 0,
            pid: std::process::id(),
            descriptors: 0,
        })
    }
}

/// `finishing` empties the queues that are only ours; a second stop does not wait for it. Then the work in flight has
/// what is `left`, if its own deadlines are not shorter.
async fn leave(
    shared: &Shared,
    finishing: impl Future<Output = Vec<String>>,
    pid_file: Option<&Path>,
    left: impl FnOnce() -> Duration,
) {
    tokio::select! {
        cut_off = finishing => for name in cut_off {
            shared.warn(format!("{name:?} was closed with connections waiting"));
        },
        _ = shared.drain.drained() => {}
    }
    shared.table.retire();
    // The process may be gone the moment that nothing is in flight.
    remove_pid_file(pid_file);
    shared.drain.begin_within(left());
    let report = shared.drain.drained().await;
    let stragglers = report.stragglers.iter().map(ToString::to_string).collect();
    shared.emit(Event::Drained {
        stragglers,
        took: report.took,
    });
}

fn remove_pid_file(path: Option<&Path>) {
    if let Some(path) = path {
        // The next start replaces it either way.
        let _ = pid_file::remove_if_ours(path, std::process::id());
    }
}

fn deadlines(config: &Config) -> Deadlines {
    Deadlines {
        start: config.start,
        start_max: config.start_max.max(config.start),
        flip: config.flip,
        exit: config.exit,
        hard_stop: config.hard_stop,
    }
}

/// Pends for ever where there is nothing to wait for.
async fn when<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn nothing_to_wait_for_pends() {
        let nothing = when(None::<std::future::Ready<()>>);
        assert!(tokio::time::timeout(Duration::ZERO, nothing).await.is_err());
    }
}
