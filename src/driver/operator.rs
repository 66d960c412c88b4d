//! What operators see of this generation and want of it, by way of the control socket.
//!
//! Two halves: the driver's, which does what is wanted and publishes where it stands, and the [`Operator`]'s, which runs
//! in the control socket's tasks, reads what was published, and waits there for verdicts.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::sync::{broadcast, oneshot, watch};

use super::drill::Rehearsal;
use super::release::Release;
use super::shared::{Command, Shared, lock};
use super::sharing::{self, Sharing};
use super::{Driver, Role};
use super::{schema, schema_wishes};
use crate::config::{CONTROL_DEADLINE, Config, SCHEMA_GLANCE};
use crate::control::{
    self, Answering, Asked, Condition, Fault, Happened, Lines, Reply, Request, RollbackKind,
    RolloutState, SchemaWish, SideState, Strategy, Underway, Upgrade, Verdict, Verification, What,
};
use crate::director::Watched;
use crate::drain::Guard;
use crate::error::ErrorKind;
use crate::event::{Event, Phase};
use crate::launch::Launched;
use crate::protocol::message::{Timings, micros, millis};
use crate::rollout::attempts::Origin;
use crate::rollout::controller::Promote;
use crate::rollout::{Pause, PauseReason, Share, Until};
use crate::schema::Here;
use crate::sys::descriptors;

/// The class of work that answering is. It is not shown: whoever asks is not what somebody waits for.
const CLASS: &str = "control";

/// Where this generation stands, beyond what [`Status`](super::shared::Status) says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    role: Option<Role>,
    incumbent_since: Option<SystemTime>,
    upgrade: Option<Upgrading>,
    degraded: Option<String>,
    elders: Vec<(u64, u32, Instant)>,
}

#[derive(Clone, Debug)]
struct Upgrading {
    generation: u64,
    pid: Option<u32>,
    /// None while it waits for an elder to leave, and the rollout with it.
    phase: Option<Phase>,
    rollout: Option<RolloutState>,
    director: Option<Watched>,
    asked_at: Instant,
}

/// What an operator wants done.
#[derive(Clone, Debug)]
pub(crate) enum Wanted {
    Upgrade {
        strategy: Option<Strategy>,
        plan: Option<serde_json::Map<String, serde_json::Value>>,
        origin: Origin,
    },
    Promote(Promote),
    Pause,
    Resume,
    Share(Share),
    Abort {
        reason: String,
    },
    Rollback {
        reason: String,
    },
    /// To the release before, by an upgrade to it.
    ColdRollback {
        reason: String,
    },
    /// To the release that serves, and back.
    Drill(Rehearsal),
}

/// The successor's number, or why it was not done.
pub(crate) type Done = Result<u64, String>;

impl Driver {
    pub(super) fn do_wanted(&mut self, wanted: Wanted, reply: oneshot::Sender<Done>) {
        let done = match wanted {
            Wanted::Upgrade {
                strategy,
                plan,
                origin,
            } => self
                .plan(strategy, plan.as_ref())
                .and_then(|plan| self.upgrade(None, plan, origin, Release::Next)),
            Wanted::Promote(promote) => self.promote_or_declare_good(promote),
            Wanted::Pause => self.pause_rollout(),
            Wanted::Resume => self.resume_rollout(),
            Wanted::Share(share) => self.share_by_hand(share),
            Wanted::Abort { reason } => self.abort(or(reason, "an operator aborted it")),
            Wanted::Rollback { reason } => self.undo(or(reason, "an operator rolled it back")),
            Wanted::ColdRollback { reason } => {
                self.roll_back_cold(or(reason, "an operator rolled it back"))
            }
            Wanted::Drill(rehearsal) => self.drill(rehearsal),
        };
        // Whoever asked may have gone away.
        let _ = reply.send(done);
    }

    pub(super) fn refuse_who_waits(&mut self, reason: &str) -> Option<u64> {
        let (waiting, _) = self.waiting.take()?;
        let generation = waiting.generation;
        self.refuse_waiting(waiting, reason.to_owned());
        self.publish();
        Some(generation)
    }

    pub(super) fn publish_standing(&self) {
        let now = Instant::now();
        let underway = self.down.as_ref().map(|down| (down, self.upgrade_phase()));
        let waiting = self.waiting.as_ref().map(|(waiting, _)| (waiting, None));
        let upgrade = underway
            .filter(|(_, phase)| phase.is_some())
            .or(waiting)
            .map(|(down, phase)| Upgrading {
                generation: down.generation,
                pid: down.pid(),
                phase,
                rollout: phase.map(|_| down.rollout_state(now)),
                director: down.director.as_ref().map(Sharing::watched),
                asked_at: down.asked_at,
            });
        // First, so that whoever sees the standing change finds out who is asked now.
        let asked = match self.role {
            // Who has the role is being settled; whoever it is answers then.
            Role::Incumbent
                if upgrade
                    .as_ref()
                    .is_some_and(|it| it.phase == Some(Phase::Committing)) =>
            {
                Asked::NotNow
            }
            Role::Incumbent | Role::LameDuck => Asked::Yes,
            Role::Starting => Asked::NotNow,
            Role::Leaving if self.ends_service => Asked::Yes,
            Role::Leaving => Asked::NeverAgain,
        };
        self.shared.asked.send_if_modified(|now| {
            let changes = *now != asked;
            *now = asked;
            changes
        });
        if let Some(schema) = self.shared.schema.registration() {
            let rollout = upgrade.as_ref().map(|upgrade| {
                let phase = upgrade
                    .phase
                    .map_or_else(|| "waiting".to_owned(), |it| it.to_string());
                format!(
                    "an upgrade to generation {} is under way here ({phase})",
                    upgrade.generation
                )
            });
            let others = self.others();
            schema.set_here(Here { rollout, others });
        }
        let elders = self.elders.iter();
        self.shared.standing.send_replace(Standing {
            role: Some(self.role),
            incumbent_since: self.incumbent_since,
            upgrade,
            degraded: self.degraded.clone(),
            elders: elders
                .map(|elder| (elder.generation, elder.pid, elder.kill_at))
                .collect(),
        });
    }

    /// This generation serves because the one that was to judge it has died: nobody has said that it is good.
    pub(super) fn remember_rescue(&mut self, from: u64) {
        let reason =
            format!("generation {from} ended before its rollout to this one had a verdict");
        self.shared.remember(Upgrade {
            verdict: Verdict::Degraded,
            reason: reason.clone(),
            ..self.own_upgrade(from, Timings::default())
        });
        self.shared.warn(reason.clone());
        self.degraded = Some(reason);
    }

    /// The upgrade that this generation came by is an upgrade in its history too.
    pub(super) fn remember_own_upgrade(&self, from: u64, timings: Option<Timings>) {
        if let Some(timings) = timings {
            self.shared.remember(self.own_upgrade(from, timings));
        }
    }

    fn own_upgrade(&self, from: u64, timings: Timings) -> Upgrade {
        let rollback = self.up.as_ref().and_then(|up| up.cold_rollback.clone());
        let (rollback_to, reason) = rollback.map(|it| (it.to, it.reason)).unzip();
        let now_ms = control::unix_ms(SystemTime::now());
        let known = timings.asked_at_ms != 0;
        Upgrade {
            generation: self.generation,
            from,
            verdict: Verdict::Committed,
            reason: reason.unwrap_or_default(),
            rollback_to,
            phase: None,
            pid: Some(std::process::id()),
            incumbent_serves: false,
            exit: None,
            last_words: String::new(),
            asked_at_ms: if known { timings.asked_at_ms } else { now_ms },
            ready_after_ms: known.then_some(timings.ready_after_ms),
            flip_took_us: known.then_some(timings.flip_took_us),
            rollback_took_us: None,
            explanation: None,
            candidate: None,
            stable: None,
            forwarding: None,
            drill: None,
            took_ms: if known {
                now_ms.saturating_sub(timings.asked_at_ms)
            } else {
                0
            },
        }
    }
}

/// As the history says how an upgrade failed.
pub(super) fn verdict_of(kind: ErrorKind) -> Verdict {
    match kind {
        ErrorKind::RolledBack => Verdict::RolledBack,
        ErrorKind::Refused => Verdict::Refused,
        _ => Verdict::Aborted,
    }
}

fn or(reason: String, default: &str) -> String {
    if reason.is_empty() {
        default.to_owned()
    } else {
        reason
    }
}

/// What the control socket asks.
#[derive(Debug)]
pub(crate) struct Operator {
    shared: Arc<Shared>,
    build: String,
    started_at: Instant,
}

impl Operator {
    pub(crate) fn new(shared: Arc<Shared>, config: &Config) -> Self {
        Self {
            shared,
            build: config.build.clone(),
            started_at: Instant::now(),
        }
    }

    /// This generation stays until the answer is out.
    fn guard(&self) -> Guard {
        let class = self
            .shared
            .drain
            .class_with_deadline(CLASS, CONTROL_DEADLINE);
        class.guard("answering an operator")
    }

    async fn have_done(&self, wanted: Wanted) -> Result<u64, Reply> {
        self.command(|reply| Command::Operate { wanted, reply })
            .await
    }

    async fn command(
        &self,
        command: impl FnOnce(oneshot::Sender<Done>) -> Command,
    ) -> Result<u64, Reply> {
        self::command(&self.shared, command).await
    }

    /// Does it, and answers that it has begun or how it ended.
    async fn carry_out(&self, wanted: Wanted, wait: bool) -> Result<Reply, Reply> {
        let generation = self.have_done(wanted).await?;
        if !wait {
            return Ok(Reply::Begun { generation });
        }
        Ok(tokio::select! {
            biased;
            upgrade = self.until_verdict(generation) => Reply::Verdict { upgrade: Box::new(upgrade) },
            undecided = self.until_undecided(generation) => undecided,
        })
    }

    async fn do_at_once(&self, wanted: Wanted) -> Result<Reply, Reply> {
        let generation = self.have_done(wanted).await?;
        Ok(Reply::Done { generation })
    }

    async fn undo(&self, wanted: Wanted) -> Result<Reply, Reply> {
        let generation = self.have_done(wanted).await?;
        let upgrade = Box::new(self.until_verdict(generation).await);
        Ok(Reply::Verdict { upgrade })
    }

    /// What has begun goes on without whoever asked.
    async fn drill(&self, fault: Option<Fault>, wait: bool) -> Result<Reply, Reply> {
        let beginning = tokio::spawn(begin_drill(Arc::clone(&self.shared), fault));
        let generation = beginning.await.map_err(|_| gone())??;
        if !wait {
            return Ok(Reply::Begun { generation });
        }
        let upgrade = self.until_verdict(generation).await;
        Ok(match upgrade.drill {
            Some(drill) => Reply::Drilled { drill },
            None => Reply::Verdict {
                upgrade: Box::new(upgrade),
            },
        })
    }

    /// Makes the process that asks the successor. The channel is its only once the driver has agreed: a client that is
    /// refused gets none.
    async fn hand_over(&self, lines: &mut Lines) -> io::Result<()> {
        let (ours, theirs) = descriptors::pair()?;
        let begun = async {
            let (pid, process) = lines.peer().map_err(Reply::refused)?;
            process.can_be_killed().map_err(|error| {
                let text = format!("process {pid} could not be ended if it failed: {error}");
                Reply::refused(text)
            })?;
            let successor = Box::new(Launched::by_somebody_else(ours, pid, process));
            self.command(|reply| Command::TakeOver { successor, reply })
                .await
        };
        match begun.await {
            Ok(generation) => {
                let incumbent = std::process::id();
                let reply = Reply::Takeover {
                    generation,
                    incumbent,
                };
                lines.say_with(&reply, theirs.as_fd()).await
            }
            Err(refusal) => lines.say(&refusal).await,
        }
    }

    /// What the store has now is asked before anything is changed. The incumbent that is warm is not kept waiting for a
    /// store that is not there: nothing can have been contracted that it needs.
    async fn may_go_back(&self, cold: bool) -> Result<(), Reply> {
        let Some(schema) = self.shared.schema.registration() else {
            return Ok(());
        };
        if !cold {
            // What is known by then, the driver looks at.
            let _ = tokio::time::timeout(SCHEMA_GLANCE, schema.look()).await;
            return Ok(());
        }
        let release = lock(&self.shared.images)
            .before()
            .map(|it| it.release().clone());
        // Why there is none is for the driver to say.
        let Ok(release) = release else { return Ok(()) };
        let who = format!("the release of generation {}", release.generation);
        let fits = schema.check(&who, release.schema).await;
        fits.map_err(Reply::refused)
    }

    /// What has begun goes on without whoever asked.
    async fn schema(&self, wish: SchemaWish) -> Result<Reply, Reply> {
        let Some(schema) = self.shared.schema.registration().cloned() else {
            return Err(Reply::refused("this service declares no schema"));
        };
        let before = lock(&self.shared.images)
            .before()
            .map(|it| it.release().clone());
        let way_back = before
            .ok()
            .map(|it| (it.generation, it.schema.unwrap_or_default()));
        let granting = tokio::spawn(schema_wishes::grant(schema, wish, way_back));
        granting
            .await
            .map_err(|_| gone())?
            .map(|schema| Reply::Schema {
                schema: Box::new(schema),
            })
    }

    async fn until_verdict(&self, generation: u64) -> Upgrade {
        let mut history = self.shared.history.subscribe();
        loop {
            if let Some(upgrade) = history.borrow_and_update().of(generation) {
                return upgrade.clone();
            }
            // The sender lives as long as `self`.
            let _ = history.changed().await;
        }
    }

    /// The rollout waits for an operator to decide.
    async fn until_undecided(&self, generation: u64) -> Reply {
        let mut standing = self.shared.standing.subscribe();
        loop {
            if let Some(reply) = standing.borrow_and_update().undecided(generation) {
                return reply;
            }
            let _ = standing.changed().await;
        }
    }

    /// Answered by the next generation if this one hands over meanwhile: the list of elders goes there.
    async fn until_no_elders(&self) -> Reply {
        let mut standing = self.shared.standing.subscribe();
        loop {
            let is_alone = standing.borrow_and_update().elders.is_empty();
            if *self.shared.asked.borrow() == Asked::NeverAgain {
                return Reply::moved();
            }
            if is_alone {
                return Reply::Drain(self.drain_state());
            }
            let _ = standing.changed().await;
        }
    }

    async fn tell_events(&self, lines: &mut Lines) -> io::Result<()> {
        let mut events = self.shared.events.subscribe();
        let generation = self.generation();
        let mut guard = Some(self.guard());
        lines.say(&Reply::Events).await?;
        loop {
            let (what, is_last) = match events.recv().await {
                Ok(event) => {
                    let drains = matches!(event, Event::Draining { .. });
                    let is_last = drains && *self.shared.asked.borrow() == Asked::NeverAgain
                        || matches!(event, Event::Drained { .. });
                    if drains && !is_last {
                        // A service that stops is told of to its end, which nobody who listens may put off.
                        guard = None;
                    }
                    (What::from(event), is_last)
                }
                Err(broadcast::error::RecvError::Lagged(count)) => (What::Missed { count }, false),
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            };
            lines.say(&Happened::now(generation, what)).await?;
            if is_last {
                drop(guard);
                return Ok(());
            }
        }
    }

    fn generation(&self) -> u64 {
        self.shared.status.borrow().generation
    }

    fn stop(&self, now: bool) -> Reply {
        let is_stopping = matches!(
            self.shared.standing.borrow().role,
            Some(Role::LameDuck | Role::Leaving)
        );
        if is_stopping && !now {
            return Reply::refused("the service is stopping already");
        }
        let stop = || self.shared.command(Command::Stop);
        let stopped = match now && !is_stopping {
            // The second one does not wait.
            true => stop().and_then(|()| stop()),
            false => stop(),
        };
        match stopped {
            Ok(()) => Reply::Stopping,
            Err(error) => Reply::refused(format!("{error:?}")),
        }
    }

    fn status(&self) -> control::Status {
        let standing = self.shared.standing.borrow().clone();
        let history = self.shared.history.borrow();
        control::Status {
            generation: self.generation(),
            pid: std::process::id(),
            role: standing.role(),
            condition: standing.condition(),
            degraded: standing.degraded.clone(),
            build: self.build.clone(),
            crate_version: env!("CARGO_PKG_VERSION").to_owned(),
            health: self.shared.health.readiness().to_string(),
            uptime_ms: millis(self.started_at.elapsed()),
            incumbent_since_ms: standing.incumbent_since.map(control::unix_ms),
            upgrade: self.underway(&standing),
            rollback: Some(self.rollback_on_offer(&standing)),
            elders: standing.elders(),
            classes: self.classes(),
            sockets: self.sockets(),
            last: history.last().cloned(),
            counts: Some(self.counts()),
            verification: self.shared.verified.borrow().clone(),
            drill: self.shared.drill.borrow().clone(),
            pool: None,
            schema: self.shared.schema.registration().map(|schema| {
                Box::new(schema_wishes::state(schema, &schema.known(), String::new()))
            }),
        }
    }

    /// What this generation has counted since its start.
    fn counts(&self) -> SideState {
        let snapshot = self.shared.observed.snapshot();
        let [p50_us, p99_us] = self
            .shared
            .observed
            .latencies()
            .map(|took| took.map(micros));
        SideState {
            generation: self.generation(),
            requests: snapshot.counts.requests,
            errors: snapshot.counts.errors,
            slow: snapshot.counts.slow,
            shed: snapshot.shed,
            in_flight: snapshot.in_flight,
            rate: None,
            p50_us,
            p99_us,
        }
    }

    fn underway(&self, standing: &Standing) -> Option<Underway> {
        let mut underway = standing.underway()?;
        let rollout = underway.rollout.as_mut();
        if let Some(stable) = rollout.and_then(|rollout| rollout.stable.as_mut()) {
            let own = self.counts();
            *stable = SideState {
                generation: own.generation,
                in_flight: own.in_flight,
                p50_us: own.p50_us,
                p99_us: own.p99_us,
                ..stable.clone()
            };
        }
        Some(underway)
    }

    fn explain(&self) -> Reply {
        let standing = self.shared.standing.borrow().clone();
        Reply::Explain {
            upgrade: self.shared.history.borrow().last().cloned().map(Box::new),
            underway: self.underway(&standing).map(Box::new),
        }
    }

    fn rollback_on_offer(&self, standing: &Standing) -> control::Rollback {
        match standing.upgrade.as_ref().map(|upgrade| upgrade.phase) {
            Some(Some(phase @ (Phase::Committing | Phase::Reverting))) => {
                control::Rollback::none(format!("the upgrade under way is {phase}"))
            }
            Some(_) => {
                let (generation, build) = (self.generation(), self.build.clone());
                control::Rollback::to(RollbackKind::Instant, generation, build)
                    .unless(self.shared.schema.misfit())
            }
            None => match lock(&self.shared.images).before() {
                Ok(image) => {
                    let release = image.release();
                    let (generation, build) = (release.generation, release.build.clone());
                    let schema = self.shared.schema.registration();
                    // Whoever declares nothing knows nothing.
                    let declared = Some(release.schema.unwrap_or_default());
                    control::Rollback::to(RollbackKind::Cold, generation, build)
                        .unless(schema.and_then(|schema| schema.misfit(declared)))
                }
                Err(why) => control::Rollback::none(why),
            },
        }
    }

    fn generations(&self) -> Vec<control::Generation> {
        let standing = self.shared.standing.borrow().clone();
        let elders = standing.elders.iter();
        let elders = elders.map(|(generation, pid, _)| control::Generation {
            generation: *generation,
            pid: Some(*pid),
            role: control::Role::Draining,
            phase: None,
        });
        let own = control::Generation {
            generation: self.generation(),
            pid: Some(std::process::id()),
            role: standing.role(),
            phase: None,
        };
        let successor = standing.underway().map(|upgrade| control::Generation {
            generation: upgrade.generation,
            pid: upgrade.pid,
            role: control::Role::Successor,
            phase: Some(upgrade.phase),
        });
        let mut all: Vec<_> = elders.chain([own]).chain(successor).collect();
        all.sort_by_key(|generation| generation.generation);
        all
    }

    fn drain_state(&self) -> control::DrainState {
        let standing = self.shared.standing.borrow().clone();
        control::DrainState {
            generation: self.generation(),
            draining: standing.role == Some(Role::Leaving),
            classes: self.classes(),
            elders: standing.elders(),
        }
    }

    fn classes(&self) -> Vec<control::ClassWork> {
        let classes = self.shared.drain.progress().classes.into_iter();
        let shown = classes.filter(|class| class.name != CLASS && class.name != schema::CLASS);
        shown
            .map(|class| control::ClassWork {
                name: class.name.to_owned(),
                in_flight: class.in_flight,
                oldest_ms: class.oldest.map(millis),
                left_ms: class.time_left.map(millis),
            })
            .collect()
    }

    fn sockets(&self) -> Vec<control::Socket> {
        let described = self.shared.table.describe().into_iter();
        described
            .map(|(name, kind, address)| control::Socket {
                name,
                kind,
                address,
            })
            .collect()
    }
}

/// What the driver has to say to it.
async fn command<T>(
    shared: &Shared,
    command: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Command,
) -> Result<T, Reply> {
    let (reply, done) = oneshot::channel();
    let asked = shared.command(command(reply));
    asked.map_err(|error| Reply::refused(format!("{error:?}")))?;
    done.await.map_err(|_| gone())?.map_err(Reply::refused)
}

async fn verify(shared: &Shared) -> Result<Verification, Reply> {
    let verifying = command(shared, |reply| Command::Verify { reply }).await?;
    verifying.await.map_err(|_| gone())
}

/// Whoever serves has to be found to serve before anything is tried.
async fn begin_drill(shared: Arc<Shared>, fault: Option<Fault>) -> Result<u64, Reply> {
    if fault.is_some() && !crate::inject::IS_POSSIBLE {
        return Err(Reply::refused(NOT_INJECTED));
    }
    let before = verify(&shared).await?;
    if !before.passed {
        let reason = format!(
            "it is not found to serve before the drill: {}",
            before.reason
        );
        return Err(Reply::refused(reason));
    }
    let wanted = Wanted::Drill(Rehearsal { fault, before });
    command(&shared, |reply| Command::Operate { wanted, reply }).await
}

fn gone() -> Reply {
    Reply::refused(format!("{:?}", super::shared::gone()))
}

impl Answering for Operator {
    fn asked(&self) -> watch::Receiver<Asked> {
        self.shared.asked.subscribe()
    }

    fn keep(&self) -> Guard {
        self.guard()
    }

    async fn answer(&self, request: Request, lines: &mut Lines) -> io::Result<()> {
        if request == Request::Events {
            return self.tell_events(lines).await;
        }
        let _guard = self.guard();
        if request == Request::Takeover {
            return self.hand_over(lines).await;
        }
        if let Request::Rollback { cold, .. } = request
            && let Err(refusal) = self.may_go_back(cold).await
        {
            return lines.say(&refusal).await;
        }
        let reply = match request {
            Request::Status => Ok(Reply::Status(Box::new(self.status()))),
            Request::Upgrade {
                wait,
                strategy,
                plan,
                automatic,
            } => {
                let origin = match automatic {
                    true => Origin::Automatic,
                    false => Origin::Operator,
                };
                let wanted = Wanted::Upgrade {
                    strategy,
                    plan,
                    origin,
                };
                self.carry_out(wanted, wait).await
            }
            Request::Promote { wait, full } => {
                let promote = if full { Promote::Full } else { Promote::Next };
                let wait = wait && self.shared.standing.borrow().upgrade.is_some();
                self.carry_out(Wanted::Promote(promote), wait).await
            }
            Request::Pause => self.do_at_once(Wanted::Pause).await,
            Request::Resume => self.do_at_once(Wanted::Resume).await,
            Request::Share { share } => self.do_at_once(Wanted::Share(share)).await,
            Request::Abort { reason } => self.undo(Wanted::Abort { reason }).await,
            Request::Rollback {
                reason,
                cold: false,
                wait: true,
            } => self.undo(Wanted::Rollback { reason }).await,
            Request::Rollback {
                reason,
                cold: false,
                wait,
            } => self.carry_out(Wanted::Rollback { reason }, wait).await,
            Request::Rollback { reason, wait, .. } => {
                self.carry_out(Wanted::ColdRollback { reason }, wait).await
            }
            Request::Generations => Ok(Reply::Generations {
                generations: self.generations(),
            }),
            Request::History => Ok(Reply::History {
                upgrades: self.shared.history.borrow().iter().cloned().collect(),
            }),
            Request::Explain => Ok(self.explain()),
            Request::Drain { wait: false } => Ok(Reply::Drain(self.drain_state())),
            Request::Drain { wait: true } => Ok(self.until_no_elders().await),
            Request::Verify => verify(&self.shared)
                .await
                .map(|verification| Reply::Verified { verification }),
            Request::Drill { inject, wait } => self.drill(inject, wait).await,
            Request::Schema { wish } => self.schema(wish).await,
            Request::Stop { now } => Ok(self.stop(now)),
            Request::Scale { .. } | Request::UpgradeSupervisor => {
                Err(Reply::refused("this service is no pool of workers"))
            }
            Request::Events | Request::Takeover => Ok(Reply::Events),
        };
        let reply = reply.unwrap_or_else(|refusal| refusal);
        lines.say(&reply).await
    }
}

impl Upgrading {
    /// With the counts of this moment.
    fn rollout(&self) -> Option<RolloutState> {
        let standing = self.director.as_ref().and_then(Watched::standing);
        let rollout = self.rollout.clone()?;
        Some(RolloutState {
            forwarding: standing.as_ref().map(sharing::state_of),
            ..rollout
        })
    }
}

impl Standing {
    fn role(&self) -> control::Role {
        match self.role {
            None | Some(Role::Starting) => control::Role::Starting,
            Some(Role::Incumbent) => control::Role::Incumbent,
            Some(Role::LameDuck) => control::Role::LameDuck,
            Some(Role::Leaving) => control::Role::Draining,
        }
    }

    fn condition(&self) -> Condition {
        let pause = self
            .upgrade
            .as_ref()
            .and_then(|upgrade| upgrade.rollout.as_ref()?.pause);
        match (&self.degraded, &self.upgrade, pause) {
            (Some(_), _, _) => Condition::Degraded,
            (None, None, _) => Condition::Healthy,
            (None, Some(_), None) => Condition::Progressing,
            (None, Some(_), Some(_)) => Condition::Paused,
        }
    }

    fn undecided(&self, generation: u64) -> Option<Reply> {
        let upgrade = self.upgrade.as_ref();
        let upgrade = upgrade.filter(|upgrade| upgrade.generation == generation)?;
        match upgrade.rollout.as_ref()?.pause? {
            Pause {
                until: Until::Recovery,
                ..
            } => None,
            Pause {
                reason: PauseReason::ByHand,
                ..
            } => Some(Reply::Standby {
                generation,
                pid: upgrade.pid,
            }),
            _ => Some(Reply::Paused {
                generation,
                rollout: Box::new(upgrade.rollout()?),
            }),
        }
    }

    fn underway(&self) -> Option<Underway> {
        self.upgrade.as_ref().map(|upgrade| Underway {
            generation: upgrade.generation,
            pid: upgrade.pid,
            phase: match upgrade.phase {
                Some(phase) => phase.to_string(),
                None => "waiting".to_owned(),
            },
            for_ms: millis(upgrade.asked_at.elapsed()),
            rollout: upgrade.rollout(),
        })
    }

    fn elders(&self) -> Vec<control::Elder> {
        let now = Instant::now();
        let elders = self.elders.iter();
        elders
            .map(|(generation, pid, kill_at)| control::Elder {
                generation: *generation,
                pid: *pid,
                killed_in_ms: millis(kill_at.saturating_duration_since(now)),
            })
            .collect()
    }
}

const NOT_INJECTED: &str = "this service was built without the feature \"inject\": its candidates have no faults but \
     their own";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::UnixStream;
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::drain::Drain;
    use crate::listen::Table;

    type Heard = tokio::io::Lines<BufReader<UnixStream>>;

    fn shared() -> Arc<Shared> {
        let drain = Drain::new(CONTROL_DEADLINE, CONTROL_DEADLINE);
        Shared::new(Table::default(), drain, mpsc::unbounded_channel().0)
    }

    /// A client that has asked, and what it hears.
    fn ask(shared: &Arc<Shared>, request: Request) -> (JoinHandle<io::Result<()>>, Heard) {
        let operator = Operator::new(Arc::clone(shared), &Config::default());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let answering =
            tokio::spawn(async move { operator.answer(request, &mut Lines::to(ours)).await });
        (answering, BufReader::new(theirs).lines())
    }

    fn stand(shared: &Shared, asked: Asked, elders: &[(u64, u32, Instant)]) {
        shared.asked.send_replace(asked);
        shared.standing.send_replace(Standing {
            elders: elders.to_vec(),
            ..Standing::default()
        });
    }

    fn draining(shared: &Shared) {
        shared.emit(Event::Draining {
            in_flight: 0,
            reason: String::new(),
        });
    }

    async fn next(heard: &mut Heard) -> String {
        heard.next_line().await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn whoever_is_being_answered_keeps_the_generation_until_the_answer_is_out() {
        let shared = shared();
        stand(&shared, Asked::Yes, &[(1, 7, Instant::now())]);
        let (answering, mut heard) = ask(&shared, Request::Drain { wait: true });
        let is_counted = async {
            while shared.drain.in_flight() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(CONTROL_DEADLINE, is_counted)
            .await
            .unwrap();
        shared.drain.begin();
        stand(&shared, Asked::NeverAgain, &[]);
        assert!(next(&mut heard).await.contains(r#""kind":"moved""#));
        answering.await.unwrap().unwrap();
        assert!(shared.drain.drained().await.stragglers.is_empty());
    }

    #[tokio::test]
    async fn whoever_listens_hears_that_the_generation_hands_over_and_then_the_end() {
        let shared = shared();
        stand(&shared, Asked::Yes, &[]);
        let (answering, mut heard) = ask(&shared, Request::Events);
        assert!(next(&mut heard).await.contains("events"));
        assert_eq!(shared.drain.in_flight(), 1);
        stand(&shared, Asked::NeverAgain, &[]);
        draining(&shared);
        assert!(next(&mut heard).await.contains("draining"));
        answering.await.unwrap().unwrap();
        assert_eq!(heard.next_line().await.unwrap(), None);
        assert_eq!(shared.drain.in_flight(), 0);
    }

    #[tokio::test]
    async fn whoever_listens_does_not_put_off_the_end_of_the_service_and_hears_of_it() {
        let shared = shared();
        stand(&shared, Asked::Yes, &[]);
        let (answering, mut heard) = ask(&shared, Request::Events);
        assert!(next(&mut heard).await.contains("events"));
        draining(&shared);
        assert!(next(&mut heard).await.contains("draining"));
        assert_eq!(shared.drain.in_flight(), 0);
        shared.emit(Event::Drained {
            stragglers: Vec::new(),
            took: Duration::ZERO,
        });
        assert!(next(&mut heard).await.contains("drained"));
        answering.await.unwrap().unwrap();
    }
}
