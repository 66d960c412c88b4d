//! Explores the controller to exhaustion: every order of what the handover, the guards, the application and the operator do.
//!
//! The world here is what the driver makes of the machine's outputs: checks and verifications that may come late or fail,
//! a handover that may end at any moment, traffic that comes or does not.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use stateright::{Checker, Expectation, Model, Property};

use super::controller::{Controller, Output, Promote, Reverted, Trigger};
use super::guard::{Finding, Reading};
use super::plan::{Promotion, Rollout};
use super::share::Share;
use super::side::Side;
use super::verdict::{Outcome, PauseReason, Stage, Until};

fn now() -> Instant {
    static NOW: OnceLock<Instant> = OnceLock::new();
    *NOW.get_or_init(Instant::now)
}

struct Exploration {
    plan: Rollout,
    commands: u8,
    begin: fn(Rollout) -> Controller,
    /// What may happen, of all that may happen to a release.
    reaches: fn(&str) -> bool,
}

#[derive(Clone, Debug, PartialEq, Hash)]
struct World {
    machine: Controller,
    commands_left: u8,
    checking: bool,
    verifying: [bool; 2],
    flipping: bool,
    committing: bool,
    handover: Handover,
    share: Share,
    /// The candidate has had enough traffic since its share changed, and what the guards last made of it.
    fed: bool,
    finding: Option<Finding>,
    trouble: bool,
    degraded: bool,
    /// Stable does not fit what the candidate has been let to make of the schema.
    cut_off: bool,
    verified: [bool; 2],
    /// The operator's hand is in what the machine does next.
    by_operator: bool,
    all_the_way: bool,
    verdict: Option<Outcome>,
    broken: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Handover {
    Before,
    Flipped,
    Committed,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Ready,
    Checked {
        passes: bool,
    },
    TimesOut,
    Look {
        late: bool,
        feeds: bool,
        finding: Finding,
    },
    Exits,
    Trouble,
    TroubleOver,
    Degraded,
    Recovered,
    CutOff,
    Flipped,
    Verified {
        side: Side,
        passes: bool,
    },
    Committed,
    Reverted(Reverted),
    Promote {
        full: bool,
    },
    Pause,
    Resume,
    Share(Share),
    Abort,
    Rollback,
}

impl Exploration {
    /// Steps before the flip have nothing to do with it, and there are enough states with them.
    fn cuts_off(&self) -> bool {
        (self.reaches)(PROMOTED) && self.plan.step_after(Share::NONE).is_none()
    }
}

impl World {
    fn new(exploration: &Exploration) -> Self {
        let mut world = Self {
            machine: (exploration.begin)(exploration.plan.clone()),
            commands_left: exploration.commands,
            checking: false,
            verifying: [false; 2],
            flipping: false,
            committing: false,
            handover: Handover::Before,
            share: Share::NONE,
            fed: false,
            finding: None,
            trouble: false,
            degraded: false,
            cut_off: false,
            verified: [false; 2],
            by_operator: false,
            all_the_way: false,
            verdict: None,
            broken: None,
        };
        world.perform();
        world
    }

    fn perform(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            if self.verdict.is_some() {
                self.broken = Some("it went on after the verdict");
            }
            match output {
                Output::RunChecks => self.checking = true,
                Output::SetShare(share) => {
                    if share > self.share && self.share > Share::NONE {
                        self.forbid_blind("a greater share without data");
                    }
                    if share > self.share {
                        self.forbid_troubled("a greater share in trouble");
                    }
                    (self.share, self.fed, self.finding) = (share, false, None);
                }
                Output::Flip => {
                    if self.share > Share::NONE {
                        self.forbid_blind("a flip without data");
                    }
                    self.forbid_troubled("a flip in trouble");
                    self.flipping = true;
                }
                Output::Verify(side) => {
                    self.verifying[side as usize] = true;
                    self.verified[side as usize] = false;
                }
                Output::Commit => {
                    self.forbid_blind("a promotion without data");
                    self.forbid_troubled("a promotion in trouble");
                    if !self.verified[Side::Candidate as usize] {
                        self.broken = Some("a promotion of what was not verified");
                    }
                    self.committing = true;
                }
                Output::Abort { reason } | Output::RollBack { reason } => {
                    if self.cut_off && reason.starts_with("the guard") {
                        self.broken = Some("a guard undid a flip that there is no way back from");
                    }
                    if self.share > Share::NONE {
                        self.broken = Some("a candidate given up with a share");
                    }
                }
                Output::Verdict(verdict) => self.end(verdict.outcome),
                Output::Stage(_) | Output::Paused(..) | Output::Resumed => {}
            }
        }
    }

    fn end(&mut self, outcome: Outcome) {
        let fits = match outcome {
            Outcome::Promoted => self.handover == Handover::Committed,
            Outcome::Aborted | Outcome::Degraded => self.handover == Handover::Gone,
            Outcome::RolledBack => self.verified[Side::Stable as usize],
        };
        if !fits {
            self.broken = Some("a verdict that is not so");
        }
        self.verdict = Some(outcome);
    }

    fn forbid_blind(&mut self, what: &'static str) {
        let seen = self.fed && self.finding == Some(Finding::Fine);
        if !seen && !self.by_operator && !self.all_the_way {
            self.broken = Some(what);
        }
    }

    fn forbid_troubled(&mut self, what: &'static str) {
        if (self.trouble || self.degraded) && !self.by_operator && !self.all_the_way {
            self.broken = Some(what);
        }
    }

    fn command(&mut self, command: impl FnOnce(&mut Controller)) {
        self.commands_left -= 1;
        self.by_operator = true;
        command(&mut self.machine);
    }

    /// Whether the operator's way back is open, and takes the share away before it is used.
    fn offers(&self, command: impl FnOnce(&mut Controller) -> bool) -> bool {
        let mut machine = self.machine.clone();
        let accepted = command(&mut machine);
        let mut share = self.share;
        while let Some(output) = machine.poll_output() {
            match output {
                Output::SetShare(set) => share = set,
                Output::Abort { .. } | Output::RollBack { .. } => {
                    return accepted && share == Share::NONE;
                }
                _ => {}
            }
        }
        false
    }
}

fn reading(finding: Finding) -> Vec<Reading> {
    vec![Reading {
        guard: String::new(),
        finding,
        text: String::new(),
        figures: Vec::new(),
    }]
}

impl Model for Exploration {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let mut add = |condition: bool, action| {
            if condition {
                actions.push(action);
            }
        };
        let stage = world.machine.stage();
        let exists = world.handover != Handover::Gone && world.handover != Handover::Committed;
        let flipped = world.handover == Handover::Flipped;
        add(exists && stage == Stage::Starting, Action::Ready);
        for passes in [true, false] {
            add(world.checking, Action::Checked { passes });
            for side in [Side::Stable, Side::Candidate] {
                let pending = world.verifying[side as usize];
                add(pending, Action::Verified { side, passes });
            }
        }
        let due = world.machine.poll_timeout().is_some();
        add(due, Action::TimesOut);
        let has_traffic = exists && (world.share > Share::NONE || flipped);
        for (late, feeds) in [(false, false), (false, true), (true, false), (true, true)] {
            for finding in [
                Finding::Fine,
                Finding::Inconclusive,
                Finding::Failed,
                Finding::Error,
            ] {
                let look = Action::Look {
                    late,
                    feeds,
                    finding,
                };
                add(has_traffic && (!late || due) && !(feeds && world.fed), look);
            }
        }
        // Whoever reports an end may do so twice, or late.
        add(true, Action::Exits);
        add(!world.trouble, Action::Trouble);
        add(world.trouble, Action::TroubleOver);
        add(exists && !world.degraded, Action::Degraded);
        add(world.degraded, Action::Recovered);
        add(flipped && !world.cut_off && self.cuts_off(), Action::CutOff);
        add(exists && world.flipping, Action::Flipped);
        add(exists && world.committing, Action::Committed);
        let gone = world.handover == Handover::Gone;
        let before = (exists && !flipped) || gone;
        let after = (exists && (flipped || world.flipping)) || gone;
        add(before, Action::Reverted(Reverted::BeforeFlip));
        add(after, Action::Reverted(Reverted::AfterFlip));
        let listened_to = world.commands_left > 0;
        for full in [false, true] {
            add(listened_to, Action::Promote { full });
        }
        for command in [
            Action::Pause,
            Action::Resume,
            Action::Abort,
            Action::Rollback,
        ] {
            add(listened_to, command);
        }
        for share in [Share::NONE, Share::percent(2), Share::percent(30)] {
            add(listened_to, Action::Share(share));
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        next.by_operator = false;
        let result = |passes| if passes { Ok(()) } else { Err(String::new()) };
        let time_out = next.machine.poll_timeout();
        match action {
            Action::Ready => next.machine.handle_ready(now()),
            Action::Checked { passes } => {
                next.checking = false;
                next.machine.handle_checked(now(), result(passes));
            }
            Action::TimesOut => next.machine.handle_timeout(time_out?),
            Action::Look {
                late,
                feeds,
                finding,
            } => {
                let time = if late { time_out? } else { now() };
                let units_before = next.machine.units();
                let more = if feeds { self.plan.units_min } else { 0 };
                next.fed |= feeds;
                next.finding = Some(finding);
                next.machine
                    .handle_look(time, units_before + more, reading(finding));
            }
            Action::Exits => {
                let how = String::new();
                next.machine.handle_trigger(now(), Trigger::Exited { how });
            }
            Action::Trouble => {
                next.trouble = true;
                next.machine.handle_trouble(now());
            }
            Action::TroubleOver => {
                next.trouble = false;
                next.machine.handle_trouble_over(now());
            }
            Action::CutOff => {
                next.cut_off = true;
                next.machine.handle_way_back(false);
            }
            Action::Degraded => {
                next.degraded = true;
                next.machine.handle_degraded(now());
            }
            Action::Recovered => {
                next.degraded = false;
                next.machine.handle_recovered(now());
            }
            Action::Flipped => {
                next.flipping = false;
                next.handover = Handover::Flipped;
                if next.machine.stage() == Stage::Flipping {
                    (next.share, next.fed, next.finding) = (Share::FULL, false, None);
                }
                next.machine.handle_flipped(now());
            }
            Action::Verified { side, passes } => {
                next.verifying[side as usize] = false;
                next.verified[side as usize] = passes;
                next.machine.handle_verified(now(), side, result(passes));
            }
            Action::Committed => {
                next.committing = false;
                next.handover = Handover::Committed;
                next.machine.handle_committed();
            }
            Action::Reverted(how) => {
                next.handover = Handover::Gone;
                next.machine.handle_reverted(now(), how, String::new());
            }
            Action::Promote { full } => {
                let promote = if full { Promote::Full } else { Promote::Next };
                let mut accepted = false;
                next.command(|machine| accepted = machine.handle_promote(now(), promote).is_ok());
                next.all_the_way |= full && accepted;
            }
            Action::Pause => next.command(|machine| {
                let _refused = machine.handle_pause(now());
            }),
            Action::Resume => {
                next.command(|machine| {
                    let _refused = machine.handle_resume(now());
                });
                // It lets the rollout go on by itself; what follows is the machine's decision.
            }
            Action::Share(share) => next.command(|machine| {
                let _refused = machine.handle_share(now(), share);
            }),
            Action::Abort => next.command(|machine| {
                let _refused = machine.handle_abort(now(), String::new());
            }),
            Action::Rollback => next.command(|machine| {
                let _refused = machine.handle_rollback(now(), String::new());
            }),
        }
        next.by_operator &= !matches!(action, Action::Resume);
        next.perform();
        next.by_operator = false;
        if next.handover == Handover::Gone {
            (next.flipping, next.committing) = (false, false);
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(
                "1, 2, 5: one verdict, no progress on missing data or in trouble, no share for a candidate given up",
                |_, world: &World| world.broken.is_none(),
            ),
            Property::always(
                "3: until the flip the operator can abort",
                |_, world: &World| {
                    use Stage::{Flipping, Preview, Shifting, Starting};
                    let before = [Starting, Preview, Shifting, Flipping];
                    !before.contains(&world.machine.stage())
                        || world
                            .offers(|machine| machine.handle_abort(now(), String::new()).is_ok())
                },
            ),
            Property::always(
                "3: while stable is warm the operator can roll back",
                |_, world: &World| {
                    let warm = [Stage::Flipping, Stage::Verifying, Stage::Baking];
                    !warm.contains(&world.machine.stage())
                        || world
                            .offers(|machine| machine.handle_rollback(now(), String::new()).is_ok())
                },
            ),
            Property::always(
                "4: every wait has a deadline, or is the handover's, or the operator's and says so",
                |_, world: &World| {
                    let machine = &world.machine;
                    let of_operator = machine
                        .pause()
                        .is_some_and(|pause| pause.until == Until::Operator);
                    let of_handover = match machine.stage() {
                        Stage::Starting | Stage::Flipping | Stage::Committing | Stage::Over => true,
                        Stage::Reverting => world.handover != Handover::Gone,
                        _ => false,
                    };
                    machine.poll_timeout().is_some() || of_operator || of_handover
                },
            ),
            Property::always(
                "a rollout that is over without a promotion has left the candidate nothing",
                |_, world: &World| match world.verdict {
                    None | Some(Outcome::Promoted) => true,
                    Some(_) => world.share == Share::NONE,
                },
            ),
            Property::always(
                "6: a rehearsal never commits",
                |exploration: &Self, world: &World| {
                    (exploration.reaches)(PROMOTED)
                        || !world.committing && world.verdict != Some(Outcome::Promoted)
                },
            ),
            Property::sometimes(PROMOTED, |_, world: &World| {
                world.verdict == Some(Outcome::Promoted)
            }),
            Property::sometimes("aborted", |_, world: &World| {
                world.verdict == Some(Outcome::Aborted)
            }),
            Property::sometimes("rolled back", |_, world: &World| {
                world.verdict == Some(Outcome::RolledBack)
            }),
            Property::sometimes("degraded", |_, world: &World| {
                world.verdict == Some(Outcome::Degraded)
            }),
            Property::sometimes(
                "promoted without a word of the operator",
                |exploration: &Self, world: &World| {
                    world.commands_left == exploration.commands
                        && world.verdict == Some(Outcome::Promoted)
                        || exploration.plan.promotion == Promotion::ByHand
                },
            ),
            Property::sometimes(
                "a flip taken back while it was on its way",
                |_, world: &World| world.machine.stage() == Stage::Reverting && world.flipping,
            ),
            Property::sometimes("paused by hand", |_, world: &World| {
                is_paused(world, PauseReason::Manual)
            }),
            Property::sometimes(
                "paused for want of a way back",
                |exploration: &Self, world: &World| {
                    !exploration.cuts_off() || is_paused(world, PauseReason::NoWayBack)
                },
            ),
            Property::sometimes("paused for trouble on both sides", |_, world: &World| {
                is_paused(world, PauseReason::SharedTrouble)
            }),
            Property::sometimes("paused for a degraded candidate", |_, world: &World| {
                is_paused(world, PauseReason::CandidateDegraded)
            }),
            Property::sometimes("paused for want of data", |_, world: &World| {
                is_paused(world, PauseReason::NotEnoughData)
            }),
            Property::sometimes("paused for guards that cannot tell", |_, world: &World| {
                is_paused(world, PauseReason::Inconclusive)
            }),
            Property::sometimes(
                "paused for guards that cannot measure",
                |_, world: &World| is_paused(world, PauseReason::CannotMeasure),
            ),
        ];
        if self.plan.promotion == Promotion::ByHand {
            properties.push(Property::always(
                "the flip is the operator's",
                |exploration: &Self, world: &World| {
                    let flips = world.flipping || world.handover == Handover::Flipped;
                    !flips || world.commands_left < exploration.commands
                },
            ));
        }
        properties.retain(|property| {
            property.expectation != Expectation::Sometimes || (self.reaches)(property.name)
        });
        properties
    }
}

fn is_paused(world: &World, reason: PauseReason) -> bool {
    world
        .machine
        .pause()
        .is_some_and(|pause| pause.reason == reason)
}

const PROMOTED: &str = "promoted";

/// Two commands of the operator in any two moments, and everything else without end.
fn explore(plan: Rollout) {
    explore_from(Exploration {
        plan: plan.error_limit(2),
        commands: 2,
        begin: Controller::new,
        reaches: |_| true,
    });
}

fn explore_from(exploration: Exploration) {
    let checker = exploration.checker().spawn_dfs().join();
    checker.assert_properties();
    assert!(checker.is_done());
    let states = checker.unique_state_count();
    println!("{states} states explored to exhaustion");
    assert!(
        states > 50_000,
        "only {states} states: the model has lost its actions"
    );
}

#[test]
fn an_immediate_rollout_keeps_the_invariants_in_every_reachable_state() {
    explore(Rollout::immediate().guarded().units_min(1));
}

#[test]
fn a_rehearsal_keeps_the_invariants_in_every_reachable_state() {
    explore_from(Exploration {
        plan: Rollout::blue_green().error_limit(2),
        commands: 2,
        begin: Controller::rehearsing,
        reaches: |what| ["aborted", "rolled back", "degraded", "paused by hand"].contains(&what),
    });
}

#[test]
fn a_flip_by_hand_keeps_the_invariants_in_every_reachable_state() {
    let plan = Rollout::blue_green().promotion(Promotion::ByHand);
    explore(plan.promotion_deadline(Duration::from_secs(3600)));
}

#[test]
fn a_canary_keeps_the_invariants_in_every_reachable_state() {
    explore(Rollout::canary([1, 5]));
}
