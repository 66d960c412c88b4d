//! Explores both machines to exhaustion: every order of deliveries, deaths, time-outs and requests.
//!
//! The world here is what the driver and the kernel make of the machines' outputs: two ordered queues, processes that
//! may die at any moment, kills that take their time, and an application that becomes ready, fails or says nothing.
//!
//! Flips, commits and rollbacks come at any moment that the machine takes them at; or, in explorations of their own, from
//! the rollout controller, as in the driver.

use std::collections::VecDeque;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use stateright::{Checker, Model, Property};

use super::deadlines::Deadlines;
use super::incumbent::{self, Incumbent, Verdict};
use super::message::{Chunk, Hello, Message, VERSION, VERSION_MIN};
use super::successor::{self, Successor};
use crate::event::Phase;
use crate::rollout::controller::{self, Controller, Promote, Refusal, Reverted, Trigger};
use crate::rollout::{Outcome, Rollout, Share, Side, Until};

const CHUNKS: u32 = 2;

fn now() -> Instant {
    static NOW: OnceLock<Instant> = OnceLock::new();
    *NOW.get_or_init(Instant::now)
}

fn deadlines() -> Deadlines {
    Deadlines {
        start: Duration::from_secs(60),
        start_max: Duration::from_secs(900),
        flip: Duration::from_secs(1),
        exit: Duration::from_secs(5),
        hard_stop: Duration::from_secs(900),
    }
}

struct Handover {
    upgrades: u8,
    /// Who decides on flips, commits and rollbacks; anybody at any moment if there is none.
    plan: Option<Rollout>,
}

#[derive(Clone, Debug, PartialEq, Hash)]
struct World {
    incumbent: Option<Incumbent>,
    incumbent_open: bool,
    shutting: bool,
    chunk: u32,
    start_chunk: u32,
    commit_chunk: u32,
    channel_held: bool,
    successor: Option<Successor>,
    successor_open: bool,
    opening: bool,
    extended: bool,
    /// It has something of the clients' that it is to finish, unless it dies.
    shares: bool,
    killed: bool,
    killed_at_work: bool,
    to_incumbent: VecDeque<Message>,
    to_successor: VecDeque<Message>,
    incumbent_knows: Knowledge,
    successor_knows: Knowledge,
    committed: bool,
    drained_uncommitted: bool,
    /// The successor has shut its gates again.
    reverted: bool,
    /// The successor has been told to end the service, should it be the only one left.
    ends_alone: bool,
    may_let_go: bool,
    let_go_early: bool,
    stopping: bool,
    rollback_asked: bool,
    upgrades_left: u8,
    verdicts: Vec<Kind>,
    rollout: Option<Controller>,
    checking: bool,
    verifying: Option<Side>,
    commands_left: u8,
    outcomes: Vec<Outcome>,
}

/// What one side has learned of the other's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Hash)]
enum Knowledge {
    Nothing,
    Closed,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Committed,
    Aborted,
    RolledBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Upgrade { launches: bool },
    Share,
    Flip,
    Commit,
    Rollback,
    StopIncumbent,
    StopSuccessor,
    DeliverToIncumbent,
    DeliverToSuccessor,
    GarbageToIncumbent,
    GarbageToSuccessor,
    ClosedToIncumbent,
    ClosedToSuccessor,
    EndedToIncumbent,
    EndedToSuccessor,
    IncumbentDies,
    SuccessorDies,
    IncumbentTimesOut,
    SuccessorTimesOut,
    GatesShut,
    GatesOpen,
    GatesFail,
    AppReady,
    AppExtends,
    Checked { passes: bool },
    Verified { passes: bool },
    RolloutTimesOut,
    GuardFails,
    Promote { full: bool },
    Pause,
    Resume,
    Abort,
    RollBack,
}

impl World {
    fn new(upgrades: u8) -> Self {
        Self {
            incumbent: Some(Incumbent::new(deadlines())),
            incumbent_open: true,
            shutting: false,
            chunk: 0,
            start_chunk: 0,
            commit_chunk: 0,
            channel_held: false,
            successor: None,
            successor_open: false,
            opening: false,
            extended: false,
            shares: false,
            killed: false,
            killed_at_work: false,
            to_incumbent: VecDeque::new(),
            to_successor: VecDeque::new(),
            incumbent_knows: Knowledge::Nothing,
            successor_knows: Knowledge::Nothing,
            committed: false,
            drained_uncommitted: false,
            reverted: false,
            ends_alone: false,
            may_let_go: false,
            let_go_early: false,
            stopping: false,
            rollback_asked: false,
            upgrades_left: upgrades,
            verdicts: Vec::new(),
            rollout: None,
            checking: false,
            verifying: None,
            commands_left: 2,
            outcomes: Vec::new(),
        }
    }

    fn with_incumbent(&mut self, input: impl FnOnce(&mut Incumbent)) {
        let Some(mut machine) = self.incumbent.take() else {
            return;
        };
        input(&mut machine);
        self.perform_downward(&mut machine);
        self.incumbent = Some(machine);
    }

    fn with_rollout(&mut self, input: impl FnOnce(&mut Controller)) {
        if let (Some(machine), Some(rollout)) = (&self.incumbent, &mut self.rollout) {
            let mut machine = machine.clone();
            input(rollout);
            self.perform_downward(&mut machine);
            self.incumbent = Some(machine);
        }
    }

    /// The rollout's outputs first, as the driver has it.
    fn perform_downward(&mut self, machine: &mut Incumbent) {
        loop {
            if let Some(output) = self.rollout.as_mut().and_then(Controller::poll_output) {
                self.perform_rollout(machine, output);
            } else if let Some(output) = machine.poll_output() {
                self.perform_incumbent(machine, output);
            } else {
                break;
            }
        }
    }

    fn perform_rollout(&mut self, machine: &mut Incumbent, output: controller::Output) {
        use controller::Output;
        match output {
            Output::RunChecks => self.checking = true,
            Output::SetShare(Share::NONE) => {}
            Output::SetShare(_) => {
                self.shares = true;
                machine.handle_share();
            }
            Output::Flip => machine.handle_flip(now()),
            Output::Verify(side) => self.verifying = Some(side),
            Output::Commit => machine.handle_commit(now()),
            Output::Abort { reason } | Output::RollBack { reason } => {
                machine.handle_rollback(now(), reason);
                let mut ahead = machine.clone();
                let mut wanted = std::iter::from_fn(|| ahead.poll_output());
                let kills = wanted.any(|output| output == incumbent::Output::Kill);
                self.killed_at_work |= self.shares && kills;
            }
            Output::Stage(_) | Output::Paused(..) | Output::Resumed => {}
            Output::Verdict(verdict) => {
                self.outcomes.push(verdict.outcome);
                self.rollout = None;
                (self.checking, self.verifying) = (false, None);
            }
        }
    }

    /// What the operator says; that it is refused, where it is, is for the controller's own exploration.
    fn command(&mut self, command: impl FnOnce(&mut Controller) -> Result<(), Refusal>) {
        self.commands_left -= 1;
        self.with_rollout(|rollout| {
            let _refused = command(rollout);
        });
    }

    fn tell_rollout(&mut self, verdict: &Verdict) {
        let Some(rollout) = &mut self.rollout else {
            return;
        };
        let how = match verdict {
            Verdict::Committed => return rollout.handle_committed(),
            Verdict::Aborted { .. } => Reverted::BeforeFlip,
            Verdict::RolledBack { .. } => Reverted::AfterFlip,
        };
        rollout.handle_reverted(now(), how, String::new());
    }

    fn perform_incumbent(&mut self, machine: &mut Incumbent, output: incumbent::Output) {
        use incumbent::Output;
        match output {
            Output::Phase(Phase::Baking) => {
                if let Some(rollout) = &mut self.rollout {
                    rollout.handle_flipped(now());
                }
            }
            Output::Ready => {
                if let Some(rollout) = &mut self.rollout {
                    rollout.handle_ready(now());
                }
            }
            Output::Launch | Output::Phase(_) => {}
            Output::Send(message) => self.to_successor.push_back(message),
            Output::SendChunk => {
                let last = self.chunk + 1 == CHUNKS;
                let chunk = Chunk {
                    chunk: self.chunk,
                    last,
                    slots: Vec::new(),
                };
                self.to_successor.push_back(Message::Offer(chunk));
                machine.handle_chunk_sent(self.chunk, last);
                self.chunk += 1;
            }
            Output::ShutGates { .. } => self.shutting = true,
            Output::SendStart => {
                let (chunk, last) = (self.start_chunk, self.start_chunk + 1 == CHUNKS);
                let slots = Vec::new();
                self.to_successor
                    .push_back(Message::Start(Chunk { chunk, last, slots }));
                machine.handle_chunk_sent(chunk, last);
                self.start_chunk += 1;
            }
            Output::OpenGates => (self.incumbent_open, self.shutting) = (true, false),
            Output::SendCommit => {
                let (chunk, last) = (self.commit_chunk, self.commit_chunk + 1 == CHUNKS);
                self.to_successor.push_back(Message::Commit {
                    chunk,
                    last,
                    millis: 0,
                    elders: Vec::new(),
                    timings: None,
                });
                machine.handle_chunk_sent(chunk, last);
                self.commit_chunk += 1;
            }
            Output::Kill => self.killed = true,
            Output::Release { .. } => {}
            Output::Verdict(verdict) => {
                self.tell_rollout(&verdict);
                self.channel_held = verdict == Verdict::Committed;
                self.verdicts.push(match verdict {
                    Verdict::Committed => Kind::Committed,
                    Verdict::Aborted { .. } => Kind::Aborted,
                    Verdict::RolledBack { .. } => Kind::RolledBack,
                });
            }
            Output::Drain { handed_over } => {
                if self.verifying.take().is_some()
                    && let Some(rollout) = &mut self.rollout
                {
                    rollout.handle_verified(now(), Side::Stable, Ok(()));
                }
                self.incumbent_open = false;
                self.drained_uncommitted |= handed_over && !self.committed;
            }
        }
    }

    fn with_successor(&mut self, input: impl FnOnce(&mut Successor)) {
        let Some(mut machine) = self.successor.take() else {
            return;
        };
        input(&mut machine);
        while let Some(output) = machine.poll_output() {
            self.perform_successor(output);
        }
        self.successor = Some(machine);
    }

    fn perform_successor(&mut self, output: successor::Output) {
        use successor::Output;
        match output {
            Output::Send(message) => self.to_incumbent.push_back(message),
            Output::Claim | Output::Fail { .. } => {}
            Output::Drain { .. } => self.let_go_early |= !self.may_let_go,
            Output::OpenGates { .. } => self.opening = true,
            Output::ShutGates => {
                (self.successor_open, self.opening) = (false, false);
                self.reverted = true;
            }
            Output::Promote => self.committed = true,
        }
    }

    fn launch(&mut self) {
        self.successor = Some(Successor::new(deadlines(), now()));
        (self.successor_open, self.opening, self.extended) = (false, false, false);
        (self.shares, self.killed, self.shutting) = (false, false, false);
        (self.chunk, self.start_chunk, self.commit_chunk) = (0, 0, 0);
        (self.channel_held, self.committed) = (true, false);
        (self.reverted, self.may_let_go, self.ends_alone) = (false, false, false);
        self.incumbent_knows = Knowledge::Nothing;
        self.successor_knows = Knowledge::Nothing;
        self.to_incumbent = VecDeque::from([hello()]);
        self.to_successor = VecDeque::from([hello()]);
    }

    fn phase(&self) -> Option<Phase> {
        self.incumbent.as_ref().and_then(Incumbent::phase)
    }

    /// The kernel or the channel holds what will make the survivor open its gates; it needs no time-out.
    fn news_is_on_its_way(&self) -> bool {
        let of_incumbent = self.incumbent.is_none() && self.successor_knows < Knowledge::Ended;
        let of_successor = self.successor.is_none() && self.incumbent_knows == Knowledge::Nothing;
        let stopped =
            |message: &Message| matches!(message, Message::Stopped { .. } | Message::Failed { .. });
        let on_the_wire = self.to_incumbent.iter().any(stopped);
        of_incumbent || self.incumbent.is_some() && (of_successor || on_the_wire)
    }

    fn successor_is_ready(&self) -> bool {
        self.opening
            || self.successor.as_ref().is_some_and(|machine| {
                machine.is_serving() || machine.awaits_start() || machine.awaits_reopened()
            })
    }
}

fn hello() -> Message {
    Message::Hello(Hello {
        version_min: VERSION_MIN,
        version_max: VERSION,
        crate_version: String::new(),
        build: String::new(),
        generation: 1,
        successor: 2,
        pid: 2,
        descriptors: 0,
    })
}

impl Model for Handover {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.upgrades)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let mut add = |condition: bool, action| {
            if condition {
                actions.push(action);
            }
        };
        let incumbent = world.incumbent.as_ref();
        let successor = world.successor.as_ref();
        let idle = world.rollout.is_none()
            && incumbent.is_some_and(|machine| machine.phase().is_none() && !machine.is_leaving());
        let may_upgrade =
            idle && world.upgrades_left > 0 && (successor.is_none() || !world.successor_open);
        add(may_upgrade, Action::Upgrade { launches: true });
        add(may_upgrade, Action::Upgrade { launches: false });
        if self.plan.is_none() {
            let stands_by = world.phase() == Some(Phase::Standby);
            add(stands_by, Action::Flip);
            add(stands_by && !world.shares, Action::Share);
            add(world.phase() == Some(Phase::Baking), Action::Commit);
            add(
                world.phase().is_some() && !world.rollback_asked,
                Action::Rollback,
            );
        }
        if let (Some(rollout), Some(_)) = (&world.rollout, incumbent) {
            for passes in [false, true] {
                add(world.checking, Action::Checked { passes });
                add(world.verifying.is_some(), Action::Verified { passes });
            }
            add(rollout.poll_timeout().is_some(), Action::RolloutTimesOut);
            add(true, Action::GuardFails);
            let listened_to = world.commands_left > 0;
            for full in [false, true] {
                add(listened_to, Action::Promote { full });
            }
            add(listened_to, Action::Pause);
            add(listened_to, Action::Resume);
            add(listened_to, Action::Abort);
            add(listened_to, Action::RollBack);
        }
        add(
            incumbent.is_some() && !world.stopping,
            Action::StopIncumbent,
        );
        add(
            successor.is_some() && !world.stopping,
            Action::StopSuccessor,
        );

        let channel = world.channel_held;
        add(
            incumbent.is_some() && channel && !world.to_incumbent.is_empty(),
            Action::DeliverToIncumbent,
        );
        add(
            incumbent.is_some() && channel && !world.to_incumbent.is_empty(),
            Action::GarbageToIncumbent,
        );
        add(
            successor.is_some() && !world.to_successor.is_empty(),
            Action::DeliverToSuccessor,
        );
        add(
            successor.is_some() && !world.to_successor.is_empty(),
            Action::GarbageToSuccessor,
        );

        let heard_all = world.to_incumbent.is_empty();
        let successor_gone = successor.is_none() && channel;
        add(
            incumbent.is_some()
                && successor_gone
                && heard_all
                && world.incumbent_knows == Knowledge::Nothing,
            Action::ClosedToIncumbent,
        );
        add(
            incumbent.is_some()
                && successor_gone
                && heard_all
                && world.incumbent_knows < Knowledge::Ended,
            Action::EndedToIncumbent,
        );
        let told_all = world.to_successor.is_empty() && successor.is_some();
        add(
            told_all
                && (incumbent.is_none() || !channel)
                && world.successor_knows == Knowledge::Nothing,
            Action::ClosedToSuccessor,
        );
        add(
            told_all && incumbent.is_none() && world.successor_knows < Knowledge::Ended,
            Action::EndedToSuccessor,
        );

        add(incumbent.is_some(), Action::IncumbentDies);
        add(successor.is_some(), Action::SuccessorDies);
        add(
            incumbent.is_some_and(|machine| machine.poll_timeout().is_some()),
            Action::IncumbentTimesOut,
        );
        add(
            successor.is_some_and(|machine| machine.poll_timeout().is_some()),
            Action::SuccessorTimesOut,
        );
        add(incumbent.is_some() && world.shutting, Action::GatesShut);
        add(successor.is_some() && world.opening, Action::GatesOpen);
        add(
            successor.is_some() && world.opening && incumbent.is_some(),
            Action::GatesFail,
        );
        let warming = successor.is_some_and(Successor::is_warming);
        add(warming, Action::AppReady);
        add(warming && !world.extended, Action::AppExtends);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Upgrade { launches } => {
                next.upgrades_left -= 1;
                next.rollout = self.plan.clone().map(Controller::new);
                next.commands_left = 2;
                next.with_incumbent(|machine| {
                    machine
                        .handle_upgrade(now())
                        .expect("only offered when idle");
                });
                if launches {
                    next.launch();
                    next.with_incumbent(|machine| machine.handle_launched(now()));
                } else {
                    next.with_incumbent(|machine| machine.handle_launch_failed(String::new()));
                }
            }
            Action::Share => {
                next.shares = true;
                next.with_incumbent(Incumbent::handle_share);
            }
            Action::Commit => next.with_incumbent(|machine| machine.handle_commit(now())),
            Action::Flip => next.with_incumbent(|machine| machine.handle_flip(now())),
            Action::Rollback => {
                let was_killed = next.killed;
                next.rollback_asked = true;
                next.with_incumbent(|machine| machine.handle_rollback(now(), String::new()));
                next.killed_at_work |= next.shares && next.killed && !was_killed;
            }
            Action::StopIncumbent => {
                next.stopping = true;
                next.with_incumbent(|machine| machine.handle_stop(now()));
            }
            Action::StopSuccessor => {
                next.stopping |= next.committed;
                // What becomes of the service is for the incumbent to say, while there is one.
                let alone = next.successor_knows == Knowledge::Ended;
                next.may_let_go |= next.committed || alone;
                next.ends_alone = true;
                next.with_successor(|machine| machine.handle_stop(now(), String::new()));
            }
            Action::DeliverToIncumbent => {
                let message = next.to_incumbent.pop_front()?;
                next.with_incumbent(|machine| machine.handle_message(now(), message, 0));
            }
            Action::DeliverToSuccessor => {
                let message = next.to_successor.pop_front()?;
                next.may_let_go |= message == Message::Reopened;
                next.ends_alone |= matches!(
                    message,
                    Message::Stop {
                        ends_service: true,
                        ..
                    }
                );
                next.with_successor(|machine| machine.handle_message(now(), message));
            }
            Action::GarbageToIncumbent => {
                next.to_incumbent.pop_front()?;
                next.with_incumbent(|machine| machine.handle_broken(now(), String::new()));
            }
            Action::GarbageToSuccessor => {
                next.to_successor.pop_front()?;
                next.with_successor(|machine| machine.handle_broken(now(), String::new()));
            }
            Action::ClosedToIncumbent => {
                next.incumbent_knows = Knowledge::Closed;
                next.with_incumbent(|machine| machine.handle_closed(now()));
            }
            Action::EndedToIncumbent => {
                next.incumbent_knows = Knowledge::Ended;
                next.with_incumbent(|machine| machine.handle_exit(now(), ""));
            }
            Action::ClosedToSuccessor => {
                next.successor_knows = Knowledge::Closed;
                next.with_successor(|machine| machine.handle_closed(now()));
            }
            Action::EndedToSuccessor => {
                next.successor_knows = Knowledge::Ended;
                next.may_let_go |= next.ends_alone;
                next.with_successor(Successor::handle_incumbent_exit);
            }
            Action::IncumbentDies => {
                next.incumbent = None;
                (next.incumbent_open, next.shutting) = (false, false);
                next.to_incumbent.clear();
            }
            Action::SuccessorDies => {
                next.successor = None;
                (next.successor_open, next.opening) = (false, false);
                next.to_successor.clear();
            }
            Action::IncumbentTimesOut => next.with_incumbent(|machine| {
                if let Some(deadline) = machine.poll_timeout() {
                    machine.handle_timeout(deadline);
                }
            }),
            Action::SuccessorTimesOut => {
                let waits = next.successor.as_ref();
                next.may_let_go |= waits.is_some_and(Successor::awaits_reopened);
                next.with_successor(|machine| {
                    if let Some(deadline) = machine.poll_timeout() {
                        machine.handle_timeout(deadline);
                    }
                });
            }
            Action::GatesShut => {
                (next.shutting, next.incumbent_open) = (false, false);
                next.with_incumbent(|machine| machine.handle_gates_shut(now()));
            }
            Action::GatesOpen => {
                (next.opening, next.successor_open) = (false, true);
                next.with_successor(Successor::handle_gates_open);
            }
            Action::GatesFail => {
                next.opening = false;
                next.with_successor(|machine| machine.handle_gates_failed(String::new()));
            }
            Action::AppReady => next.with_successor(|machine| machine.handle_ready(Vec::new())),
            Action::Checked { passes } => {
                next.checking = false;
                next.with_rollout(|rollout| rollout.handle_checked(now(), result(passes)));
            }
            Action::Verified { passes } => {
                let side = next.verifying.take()?;
                next.with_rollout(|rollout| rollout.handle_verified(now(), side, result(passes)));
            }
            Action::RolloutTimesOut => next.with_rollout(|rollout| {
                if let Some(deadline) = rollout.poll_timeout() {
                    rollout.handle_timeout(deadline);
                }
            }),
            Action::GuardFails => next.with_rollout(|rollout| {
                let (waiting, silent) = (1, Duration::ZERO);
                rollout.handle_trigger(now(), Trigger::Stalled { waiting, silent });
            }),
            Action::Promote { full } => {
                let promote = if full { Promote::Full } else { Promote::Next };
                next.command(|rollout| rollout.handle_promote(now(), promote));
            }
            Action::Pause => next.command(|rollout| rollout.handle_pause(now())),
            Action::Resume => next.command(|rollout| rollout.handle_resume(now())),
            Action::Abort => {
                next.command(|rollout| rollout.handle_abort(now(), String::new()));
            }
            Action::RollBack => {
                next.command(|rollout| rollout.handle_rollback(now(), String::new()));
            }
            Action::AppExtends => {
                next.extended = true;
                next.with_successor(|machine| machine.handle_extend(Duration::from_secs(60)));
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "I1: somebody accepts, or a flip is in progress",
                |_, world: &World| {
                    let incumbent_ready = world
                        .incumbent
                        .as_ref()
                        .is_some_and(|machine| !machine.is_leaving());
                    let ready = incumbent_ready || world.successor_is_ready();
                    let accepting = world.incumbent_open || world.successor_open;
                    let flipping = world.incumbent.as_ref().is_some_and(|machine| {
                        machine.awaits_other_side() && machine.poll_timeout().is_some()
                    });
                    let news = world.news_is_on_its_way();
                    !ready || accepting || flipping || news || world.opening || world.stopping
                },
            ),
            Property::always(
                "I3: one generation's gates are open, outside a rollback",
                |_, world: &World| {
                    let overlap = world.incumbent_open && world.successor_open;
                    !overlap || world.phase() == Some(Phase::Reverting) || world.killed
                },
            ),
            Property::always(
                "I4: the incumbent leaves only on a verified commit",
                |_, world: &World| !world.drained_uncommitted,
            ),
            Property::always(
                "I6: every wait for the other side has a deadline",
                |_, world: &World| {
                    world.incumbent.as_ref().is_none_or(|machine| {
                        let decides =
                            matches!(machine.phase(), None | Some(Phase::Standby | Phase::Baking));
                        let by_rollout = world.rollout.as_ref().is_none_or(|rollout| {
                            let of_operator = rollout
                                .pause()
                                .is_some_and(|it| it.until == Until::Operator);
                            rollout.poll_timeout().is_some() || of_operator
                        });
                        machine.poll_timeout().is_some() || decides && by_rollout
                    })
                },
            ),
            Property::always(
                "an incumbent without an upgrade under way serves",
                |_, world: &World| {
                    world.incumbent.as_ref().is_none_or(|machine| {
                        machine.phase().is_some() || machine.is_leaving() || world.incumbent_open
                    })
                },
            ),
            Property::always(
                "a successor whose gates were open leaves when somebody else serves, or is silent for too long",
                |_, world: &World| !world.let_go_early,
            ),
            Property::always(
                "a successor that was given up is dead or dying",
                |_, world: &World| {
                    let alive_and_open = world.successor.is_some() && world.successor_open;
                    let given_up = world
                        .verdicts
                        .last()
                        .is_some_and(|kind| *kind != Kind::Committed);
                    let over = world.incumbent.is_some() && world.phase().is_none();
                    !(alive_and_open && given_up && over) || world.killed || world.stopping
                },
            ),
            Property::always(
                "a rollout and its handover end alike",
                |exploration: &Self, world: &World| {
                    let alike = |(kind, outcome): (&Kind, &Outcome)| match kind {
                        Kind::Committed => *outcome == Outcome::Promoted,
                        Kind::Aborted => *outcome == Outcome::Aborted,
                        Kind::RolledBack => {
                            [Outcome::RolledBack, Outcome::Degraded].contains(outcome)
                        }
                    };
                    let verifies = usize::from(world.rollout.is_some() && world.phase().is_none());
                    let handed = world.verdicts.len();
                    exploration.plan.is_none()
                        || world.incumbent.is_none()
                        || handed == world.outcomes.len() + verifies
                            && world.verdicts.iter().zip(&world.outcomes).all(alike)
                },
            ),
            Property::always(
                "a successor that has begun something is not killed by who wants it undone",
                |_, world: &World| !world.killed_at_work,
            ),
            Property::sometimes(
                "a successor with a share is let go before the flip",
                |exploration: &Self, world: &World| {
                    let aborted = world.verdicts == [Kind::Aborted];
                    let has_steps = exploration.plan.as_ref().is_none_or(Rollout::is_canary);
                    !has_steps || aborted && world.shares && world.reverted && !world.killed
                },
            ),
            Property::sometimes("an upgrade commits", |_, world: &World| {
                world.verdicts.contains(&Kind::Committed)
            }),
            Property::sometimes(
                "an upgrade is rolled back and the next one commits",
                |exploration: &Self, world: &World| {
                    let alone = exploration.upgrades == 1;
                    alone || world.verdicts == [Kind::RolledBack, Kind::Committed]
                },
            ),
            Property::sometimes(
                "an upgrade is aborted and the next one commits",
                |exploration: &Self, world: &World| {
                    let alone = exploration.upgrades == 1;
                    alone || world.verdicts == [Kind::Aborted, Kind::Committed]
                },
            ),
            Property::sometimes(
                "the successor serves alone after the incumbent's death",
                |_, world: &World| {
                    world.incumbent.is_none() && world.successor_open && world.committed
                },
            ),
            Property::sometimes(
                "an incumbent dies in the middle of a rollback and the successor serves again",
                |_, world: &World| {
                    let alone = world.incumbent.is_none() && world.reverted;
                    alone && world.successor_open && world.committed
                },
            ),
            Property::sometimes(
                "both are open for the moment of a rollback",
                |_, world: &World| world.incumbent_open && world.successor_open,
            ),
        ]
    }
}

fn result(passes: bool) -> Result<(), String> {
    passes.then_some(()).ok_or_else(String::new)
}

fn explore(model: Handover) -> usize {
    let checker = model.checker().spawn_bfs().join();
    checker.assert_properties();
    assert!(checker.is_done());
    checker.unique_state_count()
}

#[test]
fn both_machines_keep_the_invariants_in_every_reachable_state() {
    let states = explore(Handover {
        upgrades: 2,
        plan: None,
    });
    println!("two upgrades: {states} states explored to exhaustion");
    assert!(
        states > 10_000,
        "only {states} states: the model has lost its actions"
    );
}

#[test]
fn an_immediate_rollout_and_its_handover_keep_the_invariants_in_every_reachable_state() {
    let states = explore(Handover {
        upgrades: 1,
        plan: Some(Rollout::immediate()),
    });
    println!("an immediate rollout: {states} states explored to exhaustion");
    assert!(
        states > 10_000,
        "only {states} states: the model has lost its actions"
    );
}

#[test]
fn a_canary_and_its_handover_keep_the_invariants_in_every_reachable_state() {
    let canary = Rollout::canary([5]).unguarded().units_min(0);
    let states = explore(Handover {
        upgrades: 1,
        plan: Some(canary),
    });
    println!("a canary: {states} states explored to exhaustion");
    assert!(
        states > 10_000,
        "only {states} states: the model has lost its actions"
    );
}
