//! Explores the controller to exhaustion: every order of what workers, deadlines and operators do.
//!
//! Time stands still but for deadlines: whatever can happen before the next one happens in every order, and then that one
//! passes. From every state that is reached the fair weather is tried as well: without further faults the pool comes to
//! rest, at its size and with one release.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use stateright::{Checker, Model, Property};

use super::controller::{Controller, Ended, Output, ReleaseId, Stage, UpdateStage, WorkerId};
use super::plan::{Care, OnFailure, Plan};

fn now() -> Instant {
    static NOW: OnceLock<Instant> = OnceLock::new();
    *NOW.get_or_init(|| Instant::now() + Duration::from_secs(3600))
}

struct Exploration {
    workers: usize,
    plan: Plan,
    faults: u8,
    commands: u8,
    allowed: fn(&Action) -> bool,
    /// Begins with all workers serving.
    is_up: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    machine: Controller,
    faults_left: u8,
    commands_left: u8,
    releases: ReleaseId,
    /// A worker that counted has died, or the size has changed: the number of those ready may be any.
    is_disturbed: bool,
    /// Every worker has been ready once.
    is_up: bool,
    /// Candidates of the update under way.
    failed: usize,
    broken: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Ready(WorkerId),
    Crashes(WorkerId),
    Leaves(WorkerId),
    TimesOut,
    Update,
    Pause,
    Resume,
    Abort,
    Scale(usize),
    Unfit,
    Stop,
}

impl World {
    fn new(exploration: &Exploration) -> Self {
        let care = Care {
            // Waits are as much alike as they may be, so that there are fewer orders of them.
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(1),
            backoff_alone: Duration::from_secs(1),
            loop_after: 2,
            forgiven_after: Duration::from_secs(1),
        };
        let plan = exploration.plan.clone();
        let stop = Duration::from_secs(1);
        let machine = Controller::new(exploration.workers, 1, plan, care, stop, now());
        let mut world = Self {
            machine: machine.expect("a plan that can be carried out"),
            faults_left: exploration.faults,
            commands_left: exploration.commands,
            releases: 1,
            is_disturbed: false,
            is_up: false,
            failed: 0,
            broken: None,
        };
        world.settle(exploration, None, &[]);
        if exploration.is_up {
            for (id, ..) in world.machine.ids() {
                world.act(exploration, Action::Ready(id));
            }
            world.act(exploration, Action::TimesOut);
        }
        world
    }

    fn act(&mut self, exploration: &Exploration, action: Action) {
        let before = self.machine.ids();
        let found = |id| before.iter().find(|(worker, ..)| *worker == id).copied();
        let candidate = self.machine.progress();
        let is_candidate = |release| candidate.as_ref().is_some_and(|it| it.candidate == release);
        let is_on_trial = |release| {
            let stage = candidate.as_ref().map(|it| &it.stage);
            let trial = matches!(stage, Some(UpdateStage::Rolling | UpdateStage::Paused));
            trial && is_candidate(release)
        };
        match action {
            Action::Ready(id) => self.machine.handle_ready(id, now()),
            Action::Leaves(id) => self.machine.handle_exited(id, "told to", 0.0, now()),
            Action::Crashes(id) => {
                self.faults_left -= 1;
                let (_, release, stage) = found(id).expect("it is there");
                let counted = match stage {
                    Stage::Starting => false,
                    Stage::Settling => !is_on_trial(release),
                    _ => true,
                };
                self.is_disturbed |= counted;
                self.machine.handle_exited(id, "crashed", 0.0, now());
            }
            Action::TimesOut => {
                let at = self.machine.poll_timeout().expect("there is a deadline");
                if at < now() {
                    self.broken = Some("a deadline has passed and was not looked at");
                }
                self.machine.handle_timeout(0.0, at);
                let by = at.saturating_duration_since(now());
                self.machine = self.machine.clone().rebased(by);
            }
            Action::Update => {
                self.releases += 1;
                self.failed = 0;
                let plan = exploration.plan.clone();
                let updated = self.machine.update(self.releases, plan, now());
                self.commanded(updated.is_ok());
            }
            Action::Pause => {
                let paused = self.machine.pause(now()).is_ok();
                self.commanded(paused);
            }
            Action::Resume => {
                let resumed = self.machine.resume(now()).is_ok();
                self.failed = 0;
                self.commanded(resumed);
            }
            Action::Abort => {
                let aborted = self.machine.abort("by hand".into(), now()).is_ok();
                self.commanded(aborted);
            }
            Action::Scale(wanted) => {
                self.is_disturbed = true;
                let scaled = self.machine.scale(wanted, now()).is_ok();
                self.commanded(scaled);
            }
            Action::Unfit => {
                self.faults_left -= 1;
                self.machine.handle_unfit("500".into(), now());
            }
            Action::Stop => {
                self.machine.stop(now(), now());
                self.commanded(true);
            }
        }
        if let Action::Crashes(id) = action
            && let Some((_, release, Stage::Starting | Stage::Settling | Stage::Serving)) =
                found(id)
            && is_candidate(release)
        {
            self.failed += 1;
        }
        self.settle(exploration, Some(action), &before);
    }

    fn commanded(&mut self, done: bool) {
        self.commands_left -= 1;
        if !done {
            self.broken = Some("a command was offered and refused");
        }
    }

    /// Performs what the machine asks for, and looks whether it may.
    fn settle(
        &mut self,
        exploration: &Exploration,
        action: Option<Action>,
        before: &[(WorkerId, ReleaseId, Stage)],
    ) {
        while let Some(output) = self.machine.poll_output() {
            self.check_output(exploration, action, before, &output);
        }
        let (ready, wanted) = (self.machine.ready(), self.machine.wanted());
        let is_counted = |it: &&(WorkerId, ReleaseId, Stage)| {
            it.1 == self.machine.stable() && matches!(it.2, Stage::Settling | Stage::Serving)
        };
        self.is_up |= self.machine.ids().iter().filter(is_counted).count() >= wanted;
        let least = wanted.saturating_sub(exploration.plan.unavailable);
        let keeps = self.is_up && !self.is_disturbed && !self.machine.is_stopping();
        if keeps && ready < least {
            self.broken = Some("too few are ready");
        }
        self.machine = self.machine.clone().renumbered().0;
    }

    fn check_output(
        &mut self,
        exploration: &Exploration,
        action: Option<Action>,
        before: &[(WorkerId, ReleaseId, Stage)],
        output: &Output,
    ) {
        let ids = self.machine.ids();
        let release_of = |id| ids.iter().find(|(worker, ..)| *worker == id).map(|it| it.1);
        match output {
            Output::Start { release, .. } => {
                let live = ids
                    .iter()
                    .filter(|it| !matches!(it.2, Stage::Stopping | Stage::Killed));
                if live.count() > self.machine.wanted() + exploration.plan.surge {
                    self.broken = Some("too many live");
                }
                let progress = self.machine.progress();
                let is_candidate = progress.is_some_and(|it| it.candidate == *release);
                let failed_max = exploration.plan.halt_on_failures;
                if is_candidate && self.failed >= failed_max.clamp(1, self.machine.wanted()) {
                    self.broken = Some("a candidate was started after too many had failed");
                }
                if self.machine.is_stopping() {
                    self.broken = Some("a worker was started in a pool that stops");
                }
            }
            Output::Stop { worker } | Output::Kill { worker } => {
                if let Some(Action::Crashes(_)) = action
                    && release_of(*worker) == Some(self.machine.stable())
                {
                    self.broken = Some("a crash has stopped a stable worker");
                }
                let was_starting =
                    before.contains(&(*worker, release_of(*worker).unwrap_or(0), Stage::Starting));
                if action == Some(Action::TimesOut) && was_starting {
                    // It was not ready in time.
                    let is_stable = release_of(*worker) == Some(self.machine.stable());
                    self.is_disturbed |= is_stable;
                    self.failed += usize::from(!is_stable);
                }
            }
            Output::Verdict { release, ended, .. } => {
                let others = ids.iter().filter(|it| {
                    let is_live = !matches!(it.2, Stage::Stopping | Stage::Killed);
                    is_live && it.1 != self.machine.stable()
                });
                if *ended != Ended::Degraded && others.count() > self.failed && !self.is_disturbed {
                    self.broken = Some("a verdict with two releases");
                }
                if (*ended == Ended::Committed) != (*release == self.machine.stable()) {
                    self.broken = Some("a verdict that is not so");
                }
                let serves =
                    |it: &(WorkerId, ReleaseId, Stage)| it.1 == *release && it.2 == Stage::Serving;
                if *ended == Ended::Committed && !ids.iter().any(serves) {
                    self.broken = Some("a commit of a release of which nobody serves");
                }
            }
            _ => {}
        }
    }

    /// Nothing fails any more, and everybody does what is asked.
    fn comes_to_rest(&self, exploration: &Exploration) -> bool {
        let mut world = self.clone();
        for _ in 0..200 {
            let next = world
                .machine
                .ids()
                .into_iter()
                .find_map(|(id, _, stage)| match stage {
                    Stage::Starting => Some(Action::Ready(id)),
                    Stage::Stopping | Stage::Killed => Some(Action::Leaves(id)),
                    Stage::Settling | Stage::Serving => None,
                });
            let next = next.or_else(|| world.machine.poll_timeout().map(|_| Action::TimesOut));
            let Some(next) = next else { break };
            world.act(exploration, next);
            if world.broken.is_some() {
                return false;
            }
        }
        let ids = world.machine.ids();
        if world.machine.is_stopping() {
            return ids.is_empty();
        }
        let of_stable = ids.iter().all(|it| it.1 == world.machine.stable());
        match world.machine.progress().map(|it| it.stage) {
            Some(UpdateStage::Paused | UpdateStage::Halted(_)) => {
                ids.len() >= world.machine.wanted()
            }
            Some(_) => false,
            None => {
                of_stable
                    && ids.len() == world.machine.wanted()
                    && world.machine.looping().is_none()
            }
        }
    }
}

impl Model for Exploration {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_some() {
            return;
        }
        // The kernel promises that SIGKILL ends a process, and nothing else has to happen before.
        let killed = |it: &(WorkerId, ReleaseId, Stage)| it.2 == Stage::Killed;
        if let Some((id, ..)) = world.machine.ids().into_iter().find(killed) {
            return actions.push(Action::Leaves(id));
        }
        for (id, _, stage) in world.machine.ids() {
            match stage {
                Stage::Starting => actions.push(Action::Ready(id)),
                Stage::Stopping | Stage::Killed => actions.push(Action::Leaves(id)),
                Stage::Settling | Stage::Serving => {}
            }
            if world.faults_left > 0 && !matches!(stage, Stage::Stopping | Stage::Killed) {
                actions.push(Action::Crashes(id));
            }
        }
        if world.machine.poll_timeout().is_some() {
            actions.push(Action::TimesOut);
        }
        let stage = world.machine.progress().map(|it| it.stage);
        if world.faults_left > 0 && stage.is_some() {
            actions.push(Action::Unfit);
        }
        if world.commands_left > 0 && !world.machine.is_stopping() {
            match stage {
                None => actions.push(Action::Update),
                Some(UpdateStage::Rolling) => actions.extend([Action::Pause, Action::Abort]),
                Some(UpdateStage::Paused | UpdateStage::Halted(_)) => {
                    actions.extend([Action::Resume, Action::Abort]);
                }
                Some(UpdateStage::Reverting(_)) => {}
            }
            actions.extend([
                Action::Scale(1),
                Action::Scale(self.workers + 1),
                Action::Stop,
            ]);
        }
        actions.retain(self.allowed);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut world = world.clone();
        world.act(self, action);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is broken", |_, world: &World| {
                world.broken.is_none()
            }),
            Property::always("it comes to rest", |exploration: &Self, world: &World| {
                world.comes_to_rest(exploration)
            }),
            Property::sometimes("an update succeeds", |_, world: &World| {
                world.machine.stable() > 1
            }),
            Property::sometimes("an update is undone", |_, world: &World| {
                let stage = world.machine.progress().map(|it| it.stage);
                matches!(
                    stage,
                    Some(UpdateStage::Reverting(_) | UpdateStage::Halted(_))
                )
            }),
        ]
    }
}

fn explore(exploration: Exploration) {
    let checker = exploration.checker().spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
}

fn plan() -> Plan {
    let second = Duration::from_secs(1);
    Plan {
        min_healthy: second,
        healthy_deadline: 2 * second,
        progress_deadline: 3 * second,
        ..Plan::default()
    }
}

#[test]
fn two_workers_with_faults_deadlines_and_an_operator() {
    explore(Exploration {
        workers: 2,
        plan: plan(),
        faults: 2,
        commands: 1,
        allowed: |_| true,
        is_up: false,
    });
}

#[test]
fn updates_of_two_workers_with_faults_and_an_operator_who_looks_on() {
    explore(Exploration {
        workers: 2,
        plan: plan(),
        faults: 2,
        commands: 2,
        allowed: |action| !matches!(action, Action::Stop | Action::Scale(_)),
        is_up: true,
    });
}

#[test]
fn three_workers_in_batches_with_one_missing() {
    explore(Exploration {
        workers: 3,
        plan: Plan {
            unavailable: 1,
            ..plan()
        },
        faults: 2,
        commands: 1,
        allowed: |action| !matches!(action, Action::Stop | Action::Scale(_)),
        is_up: true,
    });
}

#[test]
fn updates_that_may_fail_in_part_of_a_pool_that_is_scaled() {
    explore(Exploration {
        workers: 3,
        plan: Plan {
            halt_on_failures: 2,
            ..plan()
        },
        faults: 2,
        commands: 2,
        allowed: |action| {
            matches!(
                action,
                Action::Ready(_)
                    | Action::Leaves(_)
                    | Action::Crashes(_)
                    | Action::TimesOut
                    | Action::Update
                    | Action::Scale(1)
            )
        },
        is_up: true,
    });
}

#[test]
fn without_surge_and_with_the_mix_left_as_it_is() {
    explore(Exploration {
        workers: 2,
        plan: Plan {
            surge: 0,
            unavailable: 1,
            on_failure: OnFailure::Halt,
            ..plan()
        },
        faults: 2,
        commands: 2,
        allowed: |action| !matches!(action, Action::Stop | Action::Scale(_)),
        is_up: true,
    });
}
