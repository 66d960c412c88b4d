//! Explores the gates to exhaustion: every order in which generations of three releases on two hosts start, expand, serve,
//! freeze, die, leave, activate, contract and are started again, with a crash between any two steps.
//!
//! The world keeps beside the record what is really in the database, and what a generation that runs works on: I10, and
//! that no generation ever runs that the store does not fit.

use std::collections::BTreeSet;
use std::time::Duration;

use stateright::{Checker, Model, Property};

use super::gate::{
    Change, Contraction, Declared, Generation, Record, State as Standing, Todo, Version,
};

/// A generation that may be started: its host and its release.
#[derive(Clone, Copy, Debug)]
struct Release {
    host: &'static str,
    knows: Version,
    needs: Version,
    /// Whose form it writes only once it has heard that it is active.
    waits: Option<Version>,
}

struct Exploration {
    releases: &'static [Release],
    /// How often one that is gone may be started again, in all.
    restarts: u8,
    /// Whether steps run in the transaction that moves the record.
    in_transaction: bool,
    sabotage: Sabotage,
}

/// What is left out, to see that it is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sabotage {
    Nothing,
    /// A lapsed lease counts as a generation that is gone.
    LapsedIsGone,
    /// Who enters is not measured against the floor.
    BlindEntry,
    /// What is dropped is dropped before the floor rises.
    DropFirst,
    /// What is waited for is asked of the release that contracts alone.
    DeafToOthers,
    /// Who enters later is not measured against what is active.
    Forgetful,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    record: Record,
    /// What is in the database in truth.
    added: Version,
    dropped: Version,
    /// How often each version was contracted to.
    drops: [u8; 4],
    processes: Vec<Process>,
    /// The activation that each of them has heard of that waits for one.
    heard: Vec<Version>,
    restarts_left: u8,
    /// Whoever is at a step outside of a transaction.
    claim: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Process {
    /// Not started, or refused: nothing of it is left.
    Out,
    /// It has looked whether it could run, and is to expand.
    Starting,
    /// It is at a step outside of a transaction, which has begun or has had its effect.
    Expanding {
        to: Version,
        has_run: bool,
    },
    Entered,
    Running,
    /// It runs, and has raised the floor.
    Contracting {
        to: Version,
        has_run: bool,
    },
    /// Nothing of it is in flight any more.
    Drained,
    /// Killed. Its entry stays.
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Start(usize),
    Expand(usize),
    Enter(usize),
    Serve(usize),
    Activate(usize),
    Contract(usize, Version),
    Drop(usize),
    Drain(usize),
    Leave(usize),
    Kill(usize),
    Lapse(usize),
    Renew(usize),
}

const NOW: u64 = 100;
const VALID: u64 = 200;
const LAPSED: u64 = 50;

impl Exploration {
    fn entry(&self, index: usize) -> Generation {
        let Release {
            host,
            knows,
            needs,
            waits,
        } = self.releases[index];
        Generation {
            host: host.to_owned(),
            process: index.to_string(),
            generation: index as u64,
            declared: Declared {
                knows,
                needs,
                forms: None,
            },
            state: Standing::Active,
            awaits: waits,
            lease_ms: VALID,
        }
    }

    fn fits(&self, record: &Record, entry: &Generation) -> bool {
        let mut record = record.clone();
        match self.sabotage {
            Sabotage::BlindEntry => return true,
            Sabotage::Forgetful => record.active = 0,
            _ => {}
        }
        record.fits(&entry.declared, Some(entry)).is_ok()
    }

    fn steps(&self, index: usize) -> BTreeSet<Version> {
        (2..=self.releases[index].knows).collect()
    }
}

impl World {
    fn apply(&mut self, change: &Change) {
        self.record.apply(change);
    }

    /// Whoever is known to be gone on the host of the one that begins a transaction.
    fn sweep(&mut self, exploration: &Exploration, by: usize) {
        let host = exploration.releases[by].host;
        for index in 0..self.processes.len() {
            let entry = exploration.entry(index);
            let is_gone = self.processes[index] == Process::Dead && entry.host == host;
            let is_sabotaged = exploration.sabotage == Sabotage::LapsedIsGone
                && self
                    .record
                    .generations
                    .iter()
                    .any(|it| it.is(&entry) && it.lease_ms < NOW);
            if is_gone || is_sabotaged {
                self.apply(&Change::Left {
                    host: entry.host,
                    process: entry.process,
                });
            }
        }
    }

    /// What it writes to the record is what it has heard before.
    fn hear(&mut self, entry: &Generation, index: usize) {
        if entry.awaits.is_none() {
            return;
        }
        let heard = std::mem::replace(&mut self.heard[index], self.record.active);
        let entries = self.record.generations.iter_mut();
        for found in entries.filter(|it| it.is(entry)) {
            found.awaits = entry.awaits.filter(|awaited| *awaited > heard);
        }
    }

    fn lease(&mut self, entry: &Generation, lease_ms: u64) -> bool {
        let entries = &mut self.record.generations;
        let found = entries
            .iter_mut()
            .find(|it| it.is(entry) && it.lease_ms != lease_ms);
        found.map(|it| it.lease_ms = lease_ms).is_some()
    }

    fn end(&mut self, index: usize, how: Process) {
        self.processes[index] = how;
        if self.claim == Some(index) {
            self.claim = None;
        }
    }

    fn start(&mut self, exploration: &Exploration, index: usize) -> Option<()> {
        match self.processes[index] {
            Process::Out => {}
            // The entry of the one before is another process's.
            Process::Dead
                if self
                    .record
                    .generations
                    .iter()
                    .any(|it| it.is(&exploration.entry(index))) =>
            {
                return None;
            }
            Process::Dead => {}
            _ => return None,
        }
        self.restarts_left = self.restarts_left.checked_sub(1)?;
        let mut reachable = self.record.clone();
        let knows = exploration.releases[index].knows;
        while let Some(next) = reachable.next_expansion(knows, &exploration.steps(index)) {
            reachable.version = next;
        }
        if !exploration.fits(&reachable, &exploration.entry(index)) {
            return None;
        }
        self.processes[index] = Process::Starting;
        Some(())
    }

    fn expand(&mut self, exploration: &Exploration, index: usize) -> Option<()> {
        match self.processes[index] {
            Process::Starting => {
                let knows = exploration.releases[index].knows;
                let next = self
                    .record
                    .next_expansion(knows, &exploration.steps(index))?;
                if exploration.in_transaction {
                    self.added = next;
                    self.apply(&Change::Expanded(next));
                } else {
                    if self.claim.is_some() {
                        return None;
                    }
                    self.claim = Some(index);
                    self.apply(&Change::Expanding(next));
                    let has_run = false;
                    self.processes[index] = Process::Expanding { to: next, has_run };
                }
            }
            Process::Expanding { to, has_run: false } => {
                self.added = self.added.max(to);
                let has_run = true;
                self.processes[index] = Process::Expanding { to, has_run };
            }
            Process::Expanding { to, has_run: true } => {
                self.apply(&Change::Expanded(to));
                self.end(index, Process::Starting);
            }
            _ => return None,
        }
        Some(())
    }

    fn enter(&mut self, exploration: &Exploration, index: usize) -> Option<()> {
        let is_ready = self.processes[index] == Process::Starting
            && self
                .record
                .next_expansion(exploration.releases[index].knows, &exploration.steps(index))
                .is_none();
        if !is_ready {
            return None;
        }
        self.sweep(exploration, index);
        let entry = exploration.entry(index);
        let fits = exploration.fits(&self.record, &entry);
        match fits {
            true => {
                self.apply(&Change::Entered(entry.clone()));
                // It has read the record, and has begun nothing.
                self.hear(&entry, index);
                self.hear(&entry, index);
                self.processes[index] = Process::Entered;
            }
            false => self.processes[index] = Process::Out,
        }
        Some(())
    }

    fn activate(&mut self, exploration: &Exploration, by: usize) -> Option<()> {
        let awaited = exploration.releases[by].waits?;
        if self.processes[by] != Process::Running {
            return None;
        }
        self.sweep(exploration, by);
        match self.record.may_activate(awaited) {
            Ok(Todo::Begin) => self.apply(&Change::Activated(awaited)),
            _ => return None,
        }
        Some(())
    }

    fn contract(&mut self, exploration: &Exploration, by: usize, to: Version) -> Option<()> {
        if self.processes[by] != Process::Running || to > exploration.releases[by].knows {
            return None;
        }
        self.sweep(exploration, by);
        let asked = Contraction {
            version: to,
            has_step: true,
            rollout: None,
            age_min: Duration::ZERO,
        };
        let mut asked_of = self.record.clone();
        if exploration.sabotage == Sabotage::DeafToOthers {
            let others = asked_of.generations.iter_mut();
            let others = others.filter(|it| !it.is(&exploration.entry(by)));
            others.for_each(|it| it.awaits = None);
        }
        match asked_of.may_contract(&asked) {
            Ok(Todo::Begin) if exploration.sabotage == Sabotage::DropFirst => {
                self.dropped = to;
            }
            Ok(Todo::Begin) => self.apply(&Change::Contracting(to)),
            Ok(Todo::Finish) => {}
            Ok(Todo::Nothing) | Err(_) => return None,
        }
        let has_run = false;
        self.processes[by] = Process::Contracting { to, has_run };
        Some(())
    }

    fn drop_below(&mut self, exploration: &Exploration, index: usize) -> Option<()> {
        let Process::Contracting { to, has_run } = self.processes[index] else {
            return None;
        };
        if exploration.sabotage == Sabotage::DropFirst {
            self.apply(&Change::Contracting(to));
        }
        let is_done = self.record.contracting != Some(to);
        let run = |world: &mut Self| {
            world.dropped = world.dropped.max(to);
            let drops = &mut world.drops[to as usize];
            *drops = drops.saturating_add(1).min(3);
        };
        match (exploration.in_transaction, has_run) {
            (_, false) if is_done && self.claim != Some(index) => {
                self.processes[index] = Process::Running;
            }
            (true, _) => {
                run(self);
                self.apply(&Change::Contracted(to));
                self.processes[index] = Process::Running;
            }
            (false, false) => {
                if self.claim.is_some_and(|holder| holder != index) {
                    return None;
                }
                self.claim = Some(index);
                run(self);
                let has_run = true;
                self.processes[index] = Process::Contracting { to, has_run };
            }
            (false, true) => {
                self.apply(&Change::Contracted(to));
                self.end(index, Process::Running);
            }
        }
        Some(())
    }

    /// The first process that the database does not fit, of those that work on it.
    fn broken(&self, exploration: &Exploration) -> Option<usize> {
        let works =
            |process: &Process| matches!(process, Process::Running | Process::Contracting { .. });
        let misfits = |index: &usize| {
            let Release {
                knows,
                needs,
                waits,
                ..
            } = exploration.releases[*index];
            let writes_before = waits
                .is_some_and(|awaited| awaited > self.heard[*index] && awaited <= self.dropped);
            let misunderstands = knows < self.record.active;
            knows < self.dropped || needs > self.added || writes_before || misunderstands
        };
        (0..self.processes.len())
            .filter(|index| works(&self.processes[*index]))
            .find(misfits)
    }
}

impl Model for Exploration {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            record: Record {
                version: 1,
                now_ms: NOW,
                ..Record::default()
            },
            added: 1,
            dropped: 0,
            drops: [0; 4],
            processes: vec![Process::Out; self.releases.len()],
            heard: vec![0; self.releases.len()],
            restarts_left: self.restarts,
            claim: None,
        }]
    }

    fn actions(&self, _: &World, actions: &mut Vec<Action>) {
        for index in 0..self.releases.len() {
            actions.extend([
                Action::Start(index),
                Action::Expand(index),
                Action::Enter(index),
                Action::Serve(index),
                Action::Activate(index),
                Action::Contract(index, 2),
                Action::Contract(index, 3),
                Action::Drop(index),
                Action::Drain(index),
                Action::Leave(index),
                Action::Kill(index),
                Action::Lapse(index),
                Action::Renew(index),
            ]);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Start(index) => next.start(self, index)?,
            Action::Expand(index) => next.expand(self, index)?,
            Action::Enter(index) => next.enter(self, index)?,
            Action::Serve(index) if next.processes[index] == Process::Entered => {
                let entry = self.entry(index);
                next.processes[index] = match self.fits(&next.record, &entry) {
                    true => Process::Running,
                    false => Process::Drained,
                };
            }
            Action::Activate(index) => next.activate(self, index)?,
            Action::Contract(index, to) => next.contract(self, index, to)?,
            Action::Drop(index) => next.drop_below(self, index)?,
            Action::Drain(index) if next.processes[index] == Process::Running => {
                next.processes[index] = Process::Drained;
            }
            Action::Leave(index) if next.processes[index] == Process::Drained => {
                let entry = self.entry(index);
                next.apply(&Change::Left {
                    host: entry.host,
                    process: entry.process,
                });
                next.processes[index] = Process::Out;
            }
            Action::Kill(index) => match next.processes[index] {
                Process::Out | Process::Dead => return None,
                _ => next.end(index, Process::Dead),
            },
            Action::Lapse(index) => next.lease(&self.entry(index), LAPSED).then_some(())?,
            Action::Renew(index) => {
                let works = matches!(next.processes[index], Process::Entered | Process::Running);
                if !works {
                    return None;
                }
                let entry = self.entry(index);
                next.lease(&entry, VALID);
                next.hear(&entry, index);
            }
            _ => return None,
        }
        // Departures have no time here, so they say nothing.
        next.record.departures.clear();
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(FITS, |exploration: &Self, world: &World| {
                world.broken(exploration).is_none()
            }),
            Property::always(
                "what is gone lies below the floor, and what the record says is there",
                |_, world: &World| {
                    world.dropped <= world.record.floor && world.record.version <= world.added
                },
            ),
            Property::always(
                "in a transaction, a version is contracted to once",
                |exploration: &Self, world: &World| {
                    !exploration.in_transaction || world.drops.iter().all(|drops| *drops <= 1)
                },
            ),
            Property::sometimes("contracted all the way", |_, world: &World| {
                world.record.floor == 3 && world.record.contracting.is_none()
            }),
            Property::sometimes(
                "what is waited for is activated",
                |exploration: &Self, world: &World| {
                    let mut releases = exploration.releases.iter();
                    world.record.active > 0 || releases.all(|release| release.waits.is_none())
                },
            ),
            Property::sometimes(
                "a contraction that was begun by one is finished by another",
                |_, world: &World| {
                    let dead = world.processes.contains(&Process::Dead);
                    dead && world.record.contracting.is_some()
                        && world.drops.iter().all(|drops| *drops == 0)
                },
            ),
            Property::sometimes(
                "two generations run side by side on two hosts",
                |exploration: &Self, world: &World| {
                    let hosts = exploration.releases.iter().zip(&world.processes);
                    let hosts = hosts.filter(|(_, process)| **process == Process::Running);
                    let hosts: BTreeSet<_> = hosts.map(|(release, _)| release.host).collect();
                    hosts.len() == 2
                },
            ),
        ]
    }
}

const FITS: &str = "I10: nobody ever runs whom the store does not fit";

/// Two hosts, each of which comes from the first release to a later one.
const RELEASES: &[Release] = &[
    Release {
        host: "a",
        knows: 1,
        needs: 1,
        waits: None,
    },
    Release {
        host: "a",
        knows: 2,
        needs: 2,
        waits: None,
    },
    Release {
        host: "b",
        knows: 1,
        needs: 1,
        waits: None,
    },
    Release {
        host: "b",
        knows: 3,
        needs: 2,
        waits: None,
    },
];

/// One that waits for an activation, between one that does not know what it waits for and one that does not wait.
const ACTIVATING: &[Release] = &[
    Release {
        host: "a",
        knows: 2,
        needs: 1,
        waits: None,
    },
    Release {
        host: "a",
        knows: 3,
        needs: 2,
        waits: Some(3),
    },
    Release {
        host: "b",
        knows: 3,
        needs: 2,
        waits: None,
    },
];

fn explore(releases: &'static [Release], in_transaction: bool) {
    let exploration = Exploration {
        releases,
        restarts: u8::try_from(releases.len()).unwrap() + 1,
        in_transaction,
        sabotage: Sabotage::Nothing,
    };
    let checker = exploration.checker().spawn_dfs().join();
    checker.assert_properties();
    assert!(checker.is_done());
    let states = checker.unique_state_count();
    println!("{states} states explored to exhaustion");
    assert!(
        states > 10_000,
        "only {states} states: the model has lost its actions"
    );
}

#[test]
fn the_gates_keep_i10_in_every_reachable_state_with_steps_in_transactions() {
    explore(RELEASES, true);
    explore(ACTIVATING, true);
}

#[test]
fn the_gates_keep_i10_in_every_reachable_state_with_steps_outside_of_transactions() {
    explore(RELEASES, false);
    explore(ACTIVATING, false);
}

#[test]
fn without_any_one_of_the_rules_the_model_finds_who_is_broken() {
    for (sabotage, releases) in [
        (Sabotage::LapsedIsGone, RELEASES),
        (Sabotage::BlindEntry, RELEASES),
        (Sabotage::DropFirst, RELEASES),
        (Sabotage::DeafToOthers, ACTIVATING),
        (Sabotage::Forgetful, ACTIVATING),
    ] {
        let exploration = Exploration {
            releases,
            restarts: 3,
            in_transaction: true,
            sabotage,
        };
        let checker = exploration.checker().spawn_dfs().join();
        let found = checker.discoveries();
        let is_found = found.keys().any(|property| {
            *property == FITS || property.starts_with("what is gone lies below the floor")
        });
        assert!(is_found, "{sabotage:?}");
    }
}
