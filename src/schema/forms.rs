//! In which forms the data is, given who has written: decisions alone, of plain values.
//!
//! 1. A form is whole if every row can be read in it: everybody who has written since it was made whole writes it.
//! 2. Whoever enters may write from then on, so what it does not write is not whole from then on.
//! 3. Nobody runs who reads a form that is not whole. A release that brings a backfill makes it whole before it runs, once
//!    it has entered: from then on nobody enters who does not write what it reads. Until it has done so its own entry
//!    takes nothing away, so that whatever it copies from is whole.

use serde::{Deserialize, Serialize};

use super::gate::Version;

/// In which versions' forms a release has its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Forms {
    /// The one that it reads.
    pub reads: Version,
    /// The oldest that it writes.
    pub writes_from: Version,
    /// The newest that it writes.
    pub writes_to: Version,
    /// Whether it can bring every row into the form that it reads.
    #[serde(default)]
    pub backfills: bool,
}

impl Forms {
    pub(super) fn writes(&self, form: Version) -> bool {
        (self.writes_from..=self.writes_to).contains(&form)
    }
}

/// The forms in which every row can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Whole {
    /// The oldest.
    pub from: Version,
    /// The newest.
    pub to: Version,
}

impl Whole {
    fn of(form: Version) -> Self {
        let (from, to) = (form, form);
        Self { from, to }
    }

    pub(super) fn contains(&self, form: Version) -> bool {
        (self.from..=self.to).contains(&form)
    }

    /// What is left of it once somebody writes. What a store has that nobody has said anything of is in the form that the
    /// first one reads who does.
    pub(super) fn written_by(whole: Option<Self>, forms: Forms) -> Self {
        let whole = whole.unwrap_or_else(|| Self::of(forms.reads));
        Self {
            from: whole.from.max(forms.writes_from),
            to: whole.to.min(forms.writes_to),
        }
    }

    /// With a form that every row has been brought into.
    pub(super) fn filled(whole: Option<Self>, form: Version) -> Self {
        match whole {
            Some(whole) if whole.contains(form) => whole,
            Some(Self { from, to }) if to.checked_add(1) == Some(form) => Self { from, to: form },
            Some(Self { from, to }) if form.checked_add(1) == Some(from) => Self { from: form, to },
            // What lies between is not said to be whole.
            Some(_) | None => Self::of(form),
        }
    }

    /// Whether a release has to bring every row into its form before it runs.
    pub(super) fn wants_backfill(whole: Option<Self>, forms: Forms) -> bool {
        forms.backfills && !whole.is_some_and(|whole| whole.contains(forms.reads))
    }
}

#[cfg(test)]
mod tests {
    //! Explores every order in which the releases that rename a column come and go on hosts of their own.

    use stateright::{Checker, Model, Property};

    use super::super::gate::{Change, Declared, Generation, Record, State};
    use super::*;

    /// What is left out, to see that it is missed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Sabotage {
        Nothing,
        /// Only those who are alive are looked at.
        NoMemory,
        /// Whoever enters takes away what it is to copy from.
        Eager,
    }

    struct Exploration(Sabotage);

    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    struct World {
        record: Record,
        /// Whether some row cannot be read in the form of version 1, or of version 2.
        lacks: [bool; 2],
        /// A backfill has copied from a form that some row was not in.
        has_lost: bool,
        processes: [Process; 4],
        /// Whether the last release has written, and the second one has run behind that.
        has_gone_back: bool,
        starts_left: u8,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    enum Process {
        Out,
        Entered,
        Running,
        /// Killed. Its entry stays.
        Dead,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    enum Action {
        Enter(usize),
        Run(usize),
        Write(usize),
        Kill(usize),
        Leave(usize),
    }

    /// The first one, as it was written, knows no other form.
    fn forms(index: usize) -> Forms {
        let (reads, writes_from, writes_to) = [(1, 1, 1), (1, 1, 2), (2, 1, 2), (2, 2, 2)][index];
        Forms {
            reads,
            writes_from,
            writes_to,
            backfills: index > 0,
        }
    }

    fn entry(index: usize) -> Generation {
        Generation {
            host: index.to_string(),
            process: String::new(),
            generation: 1,
            declared: Declared {
                forms: Some(forms(index)),
                ..Declared::default()
            },
            state: State::Active,
            awaits: None,
            lease_ms: 0,
        }
    }

    impl World {
        fn lacks(&self, form: Version) -> bool {
            self.lacks[form as usize - 1]
        }

        fn apply(&mut self, exploration: &Exploration, change: &Change) {
            self.record.apply(change);
            if exploration.0 == Sabotage::NoMemory {
                let forms = self.record.whole.map(|_| Whole { from: 0, to: 9 });
                self.record.whole = forms;
            }
        }

        fn write(&mut self, exploration: &Exploration, index: usize) {
            let change = self.record.written_by(Some(forms(index)));
            change.iter().for_each(|it| self.apply(exploration, it));
        }

        fn enter(&mut self, exploration: &Exploration, index: usize) -> Option<()> {
            if self.processes[index] != Process::Out {
                return None;
            }
            self.starts_left = self.starts_left.checked_sub(1)?;
            let entry = entry(index);
            self.record.fits(&entry.declared, Some(&entry)).ok()?;
            self.apply(exploration, &Change::Entered(entry));
            let waits = Whole::wants_backfill(self.record.whole, forms(index));
            if !waits || exploration.0 == Sabotage::Eager {
                self.write(exploration, index);
            }
            self.processes[index] = Process::Entered;
            Some(())
        }

        fn run(&mut self, exploration: &Exploration, index: usize) -> Option<()> {
            if self.processes[index] != Process::Entered {
                return None;
            }
            let forms = forms(index);
            if Whole::wants_backfill(self.record.whole, forms) {
                // Of two forms it copies from the other one.
                self.has_lost |= self.lacks(3 - forms.reads);
                self.lacks[forms.reads as usize - 1] = false;
                let filled = Whole::filled(self.record.whole, forms.reads);
                self.apply(exploration, &Change::Whole(filled));
            }
            self.write(exploration, index);
            self.processes[index] = Process::Running;
            Some(())
        }
    }

    impl Model for Exploration {
        type State = World;
        type Action = Action;

        fn init_states(&self) -> Vec<World> {
            vec![World {
                record: Record::default(),
                lacks: [false; 2],
                has_lost: false,
                processes: [Process::Out; 4],
                has_gone_back: false,
                starts_left: 6,
            }]
        }

        fn actions(&self, _: &World, actions: &mut Vec<Action>) {
            for index in 0..4 {
                actions.extend([
                    Action::Enter(index),
                    Action::Run(index),
                    Action::Write(index),
                    Action::Kill(index),
                    Action::Leave(index),
                ]);
            }
        }

        fn next_state(&self, world: &World, action: Action) -> Option<World> {
            let mut next = world.clone();
            match action {
                Action::Enter(index) => next.enter(self, index)?,
                Action::Run(index) => {
                    let had_forward_only = world.lacks(1);
                    next.run(self, index)?;
                    next.has_gone_back |= index == 1 && had_forward_only;
                }
                Action::Write(index) if next.processes[index] == Process::Running => {
                    for form in [1, 2] {
                        next.lacks[form as usize - 1] |= !forms(index).writes(form);
                    }
                }
                Action::Kill(index) => match next.processes[index] {
                    Process::Out | Process::Dead => return None,
                    _ => next.processes[index] = Process::Dead,
                },
                // One that was killed is struck out by somebody who knows.
                Action::Leave(index) if next.processes[index] != Process::Out => {
                    let Generation { host, process, .. } = entry(index);
                    next.apply(self, &Change::Left { host, process });
                    next.processes[index] = Process::Out;
                }
                _ => return None,
            }
            next.record.departures.clear();
            Some(next)
        }

        fn properties(&self) -> Vec<Property<Self>> {
            vec![
                Property::always(READABLE, |_, world: &World| {
                    let mut running = (0..4).filter(|it| world.processes[*it] == Process::Running);
                    !running.any(|index| world.lacks(forms(index).reads))
                }),
                Property::always(COPIED, |_, world: &World| !world.has_lost),
                Property::sometimes(
                    "what is not whole any more is filled",
                    |_, world: &World| world.has_gone_back,
                ),
                Property::sometimes("two releases write side by side", |_, world: &World| {
                    world.processes[2..] == [Process::Running; 2]
                }),
            ]
        }
    }

    const READABLE: &str = "whoever runs can read every row";
    const COPIED: &str = "what is copied is there";

    #[test]
    fn whoever_runs_can_read_every_row_in_every_order_in_which_four_releases_come_and_go() {
        let checker = Exploration(Sabotage::Nothing).checker().spawn_dfs().join();
        checker.assert_properties();
        assert!(checker.is_done());
        let states = checker.unique_state_count();
        println!("{states} states explored to exhaustion");
        assert!(states > 1_000, "only {states} states");
    }

    #[test]
    fn without_any_one_of_the_rules_somebody_misses_a_row() {
        for (sabotage, missed) in [(Sabotage::NoMemory, READABLE), (Sabotage::Eager, COPIED)] {
            let checker = Exploration(sabotage).checker().spawn_dfs().join();
            assert!(checker.discoveries().contains_key(missed), "{sabotage:?}");
        }
    }
}
