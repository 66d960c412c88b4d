//! What may be done to a schema, given who is alive: decisions alone, of plain values.
//!
//! 1. A generation may run if it needs no more than there is, and knows what is no longer there and what has been activated.
//! 2. Whoever is in the record counts as alive, until it is known to be gone. A lapsed lease is no such knowledge: the
//!    process may be frozen.
//! 3. The floor rises once nobody in the record knows less (I10), and before anything is dropped. Whoever enters the
//!    record later is measured against it in the same transaction.
//! 4. What has been begun is in the record before it is done, so that a later start can finish it.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::forms::{Forms, Whole};

/// A version of a schema: 1, 2, 3 … in the order in which releases change it. 0 is a store that nobody has touched.
pub type Version = u32;

/// What a release says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Declared {
    /// The newest version that it understands: it works once everything older has been dropped.
    pub knows: Version,
    /// The oldest version that it works on.
    pub needs: Version,
    /// Whose form of the data it reads and writes, if it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forms: Option<Forms>,
}

/// What a generation is to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum State {
    /// It starts, or is a candidate that has not been flipped to.
    NotYet,
    /// It serves.
    Active,
    /// A rollback goes back to it: the release after it serves and is not committed.
    Warm,
    /// It finishes what it has begun.
    Draining,
}

/// One generation that may be alive, as it has entered itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Generation {
    /// The host that it runs on, as that was named.
    pub host: String,
    /// Which process it is, to others on the same host.
    pub process: String,
    /// Its number there.
    pub generation: u64,
    /// What its release says of itself.
    pub declared: Declared,
    /// What it is.
    pub state: State,
    /// The oldest version whose form it does not write yet: it waits for that to be activated, and has not heard of it.
    pub awaits: Option<Version>,
    /// Until when it has said that it is alive, in milliseconds since 1970 by the clock of the store.
    pub lease_ms: u64,
}

/// When the last generation left that knew no more than this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Departure {
    /// What it knew.
    pub knows: Version,
    /// When it left, as far as anybody knows, in milliseconds since 1970 by the clock of the store.
    pub at_ms: u64,
}

/// All that a store keeps about its schema.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Record {
    /// The newest version that has been expanded to.
    pub version: Version,
    /// The version up to which it has been contracted: what older releases need is gone, or about to go.
    pub floor: Version,
    /// The newest version whose form is written.
    pub active: Version,
    /// The forms in which every row can be read, if somebody has said in which forms rows are written.
    pub whole: Option<Whole>,
    /// An expansion that has begun outside of a transaction and is not known to be done.
    pub expanding: Option<Version>,
    /// A contraction whose floor has risen and whose drop is not known to be done.
    pub contracting: Option<Version>,
    /// Who may be alive.
    pub generations: Vec<Generation>,
    /// Who is gone: for each knowledge the last one.
    pub departures: Vec<Departure>,
    /// When it was read, in milliseconds since 1970 by the clock of the store.
    pub now_ms: u64,
}

/// One change of a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// Something was written in the form of this version, or is about to be, for the first time.
    Activated(Version),
    /// Every row can be read in these forms, and in no other that is known of.
    Whole(Whole),
    /// A step begins that expands to this version outside of a transaction.
    Expanding(Version),
    /// This version is there, and nothing is being expanded; unless the record is beyond it.
    Expanded(Version),
    /// The floor rises to this version, and what lies below it is about to be dropped. Whoever enters from now on writes
    /// this version's form.
    Contracting(Version),
    /// What lies below this version has been dropped; that is not being contracted any more.
    Contracted(Version),
    /// A generation enters itself, or is something else by now: the one of this host and process.
    Entered(Generation),
    /// One that knows no more than this, and has not entered itself, was alive just now.
    Unentered(Version),
    /// The generation of this host and process is gone.
    Left {
        /// Its host.
        host: String,
        /// Its process.
        process: String,
    },
}

impl Record {
    /// What the record is after a change; for stores that keep it in memory, and to know it without reading it again.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Activated(version) => self.active = *version,
            Change::Whole(whole) => self.whole = Some(*whole),
            Change::Expanding(version) => self.expanding = Some(*version),
            Change::Expanded(version) if *version > self.version => {
                (self.version, self.expanding) = (*version, None);
            }
            Change::Contracting(version) => {
                (self.floor, self.contracting) = (*version, Some(*version));
                self.active = self.active.max(*version);
            }
            Change::Contracted(version) if self.contracting == Some(*version) => {
                self.contracting = None;
            }
            Change::Expanded(_) | Change::Contracted(_) => {}
            Change::Entered(entered) => {
                self.generations.retain(|other| !other.is(entered));
                self.generations.push(entered.clone());
                self.generations
                    .sort_by_key(|it| (it.host.clone(), it.generation, it.process.clone()));
            }
            Change::Unentered(knows) => self.depart(*knows),
            Change::Left { host, process } => self.remove(host, process),
        }
    }

    fn remove(&mut self, host: &str, process: &str) {
        let is_it = |it: &Generation| it.host == host && it.process == process;
        let Some(place) = self.generations.iter().position(is_it) else {
            return;
        };
        let knows = self.generations.remove(place).declared.knows;
        self.depart(knows);
    }

    fn depart(&mut self, knows: Version) {
        self.departures.retain(|other| other.knows != knows);
        let at_ms = self.now_ms;
        self.departures.push(Departure { knows, at_ms });
    }

    /// Whether a release may run on what there is, beside whoever is alive but the one of this process.
    pub(crate) fn fits(&self, declared: &Declared, except: Option<&Generation>) -> Fits {
        self.fits_alone(declared)?;
        let Some(forms) = declared.forms else {
            return Ok(());
        };
        let others = self.generations.iter();
        let others = others.filter(|other| except.is_none_or(|except| !except.is(other)));
        for other in others {
            let Some(theirs) = other.declared.forms else {
                continue;
            };
            let misread = |form, by_us| Misfit::Unreadable {
                other: Box::new(other.clone()),
                form,
                by_us,
            };
            if !theirs.writes(forms.reads) {
                return Err(misread(forms.reads, true));
            }
            if !forms.writes(theirs.reads) {
                return Err(misread(theirs.reads, false));
            }
        }
        Ok(())
    }

    /// Whether a release may run on what there is.
    pub(crate) fn fits_alone(&self, declared: &Declared) -> Fits {
        let Declared {
            knows,
            needs,
            forms,
        } = *declared;
        if knows < self.floor {
            return Err(Misfit::Contracted {
                floor: self.floor,
                knows,
            });
        }
        if knows < self.active {
            return Err(Misfit::Activated {
                active: self.active,
                knows,
            });
        }
        if needs > self.version {
            return Err(Misfit::TooOld {
                version: self.version,
                needs,
            });
        }
        let Some(forms) = forms else { return Ok(()) };
        let form = forms.reads;
        if !forms.writes(form) {
            return Err(Misfit::Forgets { form });
        }
        match self.whole {
            Some(whole) if !whole.contains(form) && !forms.backfills => {
                Err(Misfit::NotWhole { form })
            }
            _ => Ok(()),
        }
    }

    /// Whether a release has to bring every row into its form before it runs.
    pub(crate) fn wants_backfill(&self, declared: &Declared) -> bool {
        let forms = declared.forms;
        forms.is_some_and(|forms| Whole::wants_backfill(self.whole, forms))
    }

    /// The change that it is for the forms when a release begins to write, if it is one.
    pub(crate) fn written_by(&self, forms: Option<Forms>) -> Option<Change> {
        let whole = Whole::written_by(self.whole, forms?);
        (self.whole != Some(whole)).then_some(Change::Whole(whole))
    }

    /// The change that it is when every row has been brought into a form.
    pub(crate) fn filled(&self, form: Version) -> Change {
        Change::Whole(Whole::filled(self.whole, form))
    }

    /// The version to expand to next, for a release that knows so much and has these steps. Not across a gap.
    pub(crate) fn next_expansion(
        &self,
        knows: Version,
        steps: &BTreeSet<Version>,
    ) -> Option<Version> {
        let next = self.version.checked_add(1)?;
        (next <= knows && steps.contains(&next)).then_some(next)
    }

    /// Whether the form of a version may be written from now on.
    pub(crate) fn may_activate(&self, version: Version) -> Result<Todo, Vec<Blocker>> {
        if self.active >= version {
            return Ok(Todo::Nothing);
        }
        let mut blockers = Vec::new();
        if version > self.version {
            let (version, there) = (version, self.version);
            blockers.push(Blocker::NotExpanded { version, there });
        }
        blockers.extend(self.who_knows_less(version));
        none(blockers, Todo::Begin)
    }

    /// Whether the floor may rise to a version, with all that speaks against it.
    pub(crate) fn may_contract(&self, asked: &Contraction) -> Result<Todo, Vec<Blocker>> {
        let version = asked.version;
        let mut blockers = Vec::new();
        match self.contracting {
            Some(begun) if begun == version && asked.has_step => return Ok(Todo::Finish),
            Some(begun) if begun == version => return Err(vec![Blocker::NoStep { version }]),
            None if self.floor >= version => return Ok(Todo::Nothing),
            Some(begun) => blockers.push(Blocker::Unfinished { version: begun }),
            None => {}
        }
        if version > self.version {
            let there = self.version;
            blockers.push(Blocker::NotExpanded { version, there });
        }
        if !asked.has_step {
            blockers.push(Blocker::NoStep { version });
        }
        blockers.extend(self.who_writes_what_was_before(version));
        if let Some(rollout) = &asked.rollout {
            let rollout = rollout.clone();
            blockers.push(Blocker::Rollout { rollout });
        }
        blockers.extend(self.who_knows_less(version));
        blockers.extend(self.who_is_in_a_rollout(version, asked.rollout.is_some()));
        blockers.extend(self.too_young(version, asked.age_min));
        none(blockers, Todo::Begin)
    }

    fn who_knows_less(&self, version: Version) -> impl Iterator<Item = Blocker> {
        let older = move |it: &&Generation| it.declared.knows < version;
        self.generations
            .iter()
            .filter(older)
            .map(|it| Blocker::Older {
                generation: Box::new(it.clone()),
                lapsed_ms: self.lapsed_ms(it),
            })
    }

    fn who_writes_what_was_before(&self, version: Version) -> impl Iterator<Item = Blocker> {
        let waiting = self.generations.iter().filter_map(move |it| {
            let awaited = it.awaits.filter(|awaited| *awaited <= version)?;
            Some((it, awaited))
        });
        waiting.map(|(it, awaited)| Blocker::WritesBefore {
            generation: Box::new(it.clone()),
            awaited,
            is_active: self.active >= awaited,
        })
    }

    /// Beside those that are named for what they know, and those of a rollout that is named already.
    fn who_is_in_a_rollout(
        &self,
        version: Version,
        is_named: bool,
    ) -> impl Iterator<Item = Blocker> {
        let is_open =
            |it: &&Generation| matches!(it.state, State::NotYet | State::Warm) && !is_named;
        let open = self.generations.iter().filter(is_open);
        let open = open.filter(move |it| it.declared.knows >= version);
        let open: Vec<_> = open
            .map(|it| Blocker::InRollout {
                generation: Box::new(it.clone()),
            })
            .collect();
        open.into_iter()
    }

    /// Whoever knew less may be wanted back for a while.
    fn too_young(&self, version: Version, age_min: Duration) -> Option<Blocker> {
        let older = self.departures.iter().filter(|it| it.knows < version);
        let left_ms = older.map(|it| it.at_ms).max()?;
        let age = Duration::from_millis(self.now_ms.saturating_sub(left_ms));
        (age < age_min).then_some(Blocker::TooYoung { age, age_min })
    }

    /// For how long its lease is over, if it is.
    pub(crate) fn lapsed_ms(&self, generation: &Generation) -> Option<u64> {
        let over = self.now_ms.checked_sub(generation.lease_ms)?;
        (over > 0).then_some(over)
    }
}

impl Generation {
    /// Whether it is the same process.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.host == other.host && self.process == other.process
    }
}

/// What there is to do about a wish that may be granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Todo {
    /// All of it.
    Begin,
    /// The rest of it: somebody has begun and not finished.
    Finish,
    /// Nothing: it is so already.
    Nothing,
}

/// A contraction that somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contraction {
    pub(crate) version: Version,
    /// Whether the release that is asked has a step for it.
    pub(crate) has_step: bool,
    /// What is under way on this host, in words, if something is.
    pub(crate) rollout: Option<String>,
    /// How long whoever knew less must have been gone.
    pub(crate) age_min: Duration,
}

pub(crate) type Fits = Result<(), Misfit>;

/// Why a release may not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Misfit {
    /// What it needs is gone.
    Contracted { floor: Version, knows: Version },
    /// What it needs is there, and what is written it does not understand.
    Activated { active: Version, knows: Version },
    /// What it needs is not there yet.
    TooOld { version: Version, needs: Version },
    /// It does not write what it reads.
    Forgets { form: Version },
    /// Some row is not in the form that it reads.
    NotWhole { form: Version },
    /// It or a generation that is alive would not find what the other has written.
    Unreadable {
        other: Box<Generation>,
        form: Version,
        by_us: bool,
    },
}

/// Behind the name of whoever it is about.
impl fmt::Display for Misfit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contracted { floor, knows } => write!(
                out,
                "knows schema {knows}, and the store has been contracted to {floor}: what it needs is gone; run a release \
                 that knows schema {floor}"
            ),
            Self::Activated { active, knows } => write!(
                out,
                "knows schema {knows}, and schema {active} is active: it does not understand what is written; run a \
                 release that knows schema {active}"
            ),
            Self::TooOld { version, needs } => write!(
                out,
                "needs schema {needs}, and the store has {version}: expand it first, with a release that has the steps"
            ),
            Self::Forgets { form } => write!(
                out,
                "reads the form of schema {form}, and does not write it: it would not find its own rows"
            ),
            Self::NotWhole { form } => write!(
                out,
                "reads the form of schema {form}, which not every row is in: somebody has run who does not write it, and \
                 this release has no backfill; run one that has, or one that reads what was written"
            ),
            Self::Unreadable {
                other,
                form,
                by_us: true,
            } => write!(
                out,
                "reads the form of schema {form}, which {other} does not write: hand over to a release that writes both \
                 first, and wait until that one has left"
            ),
            Self::Unreadable {
                other,
                form,
                by_us: false,
            } => write!(
                out,
                "does not write the form of schema {form}, which {other} reads: rows would be lost to it; hand over to a \
                 release that writes both first, and wait until that one has left"
            ),
        }
    }
}

/// What speaks against an activation or a contraction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Blocker {
    /// There is no such version yet.
    NotExpanded { version: Version, there: Version },
    /// The release that is asked does not know how.
    NoStep { version: Version },
    /// Another contraction has begun.
    Unfinished { version: Version },
    /// A generation writes the form before a version: that is not active, or it has not heard so.
    WritesBefore {
        generation: Box<Generation>,
        awaited: Version,
        is_active: bool,
    },
    /// A generation knows less, and is alive or may be.
    Older {
        generation: Box<Generation>,
        lapsed_ms: Option<u64>,
    },
    /// An upgrade is under way here.
    Rollout { rollout: String },
    /// One is elsewhere, or the rollback window is open.
    InRollout { generation: Box<Generation> },
    /// Whoever knew less has not been gone for long.
    TooYoung { age: Duration, age_min: Duration },
}

/// The sentence for the operator.
impl fmt::Display for Blocker {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotExpanded { version, there } => {
                write!(
                    out,
                    "there is no schema {version} yet: the store has {there}"
                )
            }
            Self::NoStep { version } => write!(
                out,
                "the release that serves here has no such step for schema {version}"
            ),
            Self::Unfinished { version } => write!(
                out,
                "the contraction to schema {version} has not been finished: ask for that one first"
            ),
            Self::WritesBefore {
                generation,
                awaited,
                is_active: false,
            } => write!(
                out,
                "schema {awaited} has not been activated: {generation} writes the form before"
            ),
            Self::WritesBefore {
                generation,
                awaited,
                is_active: true,
            } => write!(
                out,
                "{generation} has not heard yet that schema {awaited} is active"
            ),
            Self::Older {
                generation,
                lapsed_ms: None,
            } => write!(
                out,
                "{generation} knows schema {} only",
                generation.declared.knows
            ),
            Self::Older {
                generation,
                lapsed_ms: Some(lapsed_ms),
            } => write!(
                out,
                "{generation} knows schema {} only, and has not been heard of since its lease ended {:?} ago: it may be \
                 frozen, or cut off; once it is known to be gone, expunge {:?}",
                generation.declared.knows,
                Duration::from_millis(*lapsed_ms),
                generation.host
            ),
            Self::Rollout { rollout } => write!(out, "{rollout}"),
            Self::InRollout { generation } => {
                write!(out, "{generation} is part of a rollout that is open")
            }
            Self::TooYoung { age, age_min } => write!(
                out,
                "whoever knew less has been gone for {:?} only, of {age_min:?}",
                Duration::from_secs(age.as_secs())
            ),
        }
    }
}

/// `web3 generation 40 (draining)`.
impl fmt::Display for Generation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host,
            generation,
            state,
            ..
        } = self;
        write!(out, "{host} generation {generation} ({state})")
    }
}

impl fmt::Display for State {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::NotYet => "not yet",
            Self::Active => "active",
            Self::Warm => "warm",
            Self::Draining => "draining",
        })
    }
}

fn none(blockers: Vec<Blocker>, todo: Todo) -> Result<Todo, Vec<Blocker>> {
    match blockers.is_empty() {
        true => Ok(todo),
        false => Err(blockers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Version 3 is there, 1 has been contracted to, and all of it is written.
    fn record() -> Record {
        Record {
            version: 3,
            floor: 1,
            active: 3,
            now_ms: 100_000,
            ..Record::default()
        }
    }

    fn with(generation: &Generation) -> Record {
        let mut record = record();
        record.apply(&Change::Entered(generation.clone()));
        record
    }

    fn generation(knows: Version, state: State) -> Generation {
        Generation {
            host: "there".to_owned(),
            process: "another".to_owned(),
            generation: 40,
            declared: Declared {
                knows,
                ..Declared::default()
            },
            state,
            awaits: None,
            lease_ms: 200_000,
        }
    }

    fn to_two() -> Contraction {
        Contraction {
            version: 2,
            has_step: true,
            rollout: None,
            age_min: Duration::ZERO,
        }
    }

    #[test]
    fn each_rule_of_a_contraction_speaks_by_itself_and_for_itself_alone() {
        assert_eq!(record().may_contract(&to_two()), Ok(Todo::Begin));
        let in_rollout = Contraction {
            rollout: Some("an upgrade is under way".to_owned()),
            ..to_two()
        };
        let rollout = Blocker::Rollout {
            rollout: "an upgrade is under way".to_owned(),
        };
        let old = generation(1, State::Active);
        let lapsed = Generation {
            lease_ms: 99_000,
            ..old.clone()
        };
        let waiting = Generation {
            awaits: Some(2),
            ..generation(2, State::Active)
        };
        let starting = generation(2, State::NotYet);
        let warm = generation(2, State::Warm);
        let boxed = |it: &Generation| Box::new(it.clone());
        for (record, asked, blocker) in [
            (
                Record {
                    version: 1,
                    ..record()
                },
                to_two(),
                Blocker::NotExpanded {
                    version: 2,
                    there: 1,
                },
            ),
            (
                record(),
                Contraction {
                    has_step: false,
                    ..to_two()
                },
                Blocker::NoStep { version: 2 },
            ),
            (
                Record {
                    contracting: Some(1),
                    ..record()
                },
                to_two(),
                Blocker::Unfinished { version: 1 },
            ),
            (
                Record {
                    active: 1,
                    ..with(&waiting)
                },
                to_two(),
                Blocker::WritesBefore {
                    generation: boxed(&waiting),
                    awaited: 2,
                    is_active: false,
                },
            ),
            (
                with(&waiting),
                to_two(),
                Blocker::WritesBefore {
                    generation: boxed(&waiting),
                    awaited: 2,
                    is_active: true,
                },
            ),
            (
                with(&old),
                to_two(),
                Blocker::Older {
                    generation: boxed(&old),
                    lapsed_ms: None,
                },
            ),
            (
                with(&lapsed),
                to_two(),
                Blocker::Older {
                    generation: boxed(&lapsed),
                    lapsed_ms: Some(1_000),
                },
            ),
            (
                with(&starting),
                to_two(),
                Blocker::InRollout {
                    generation: boxed(&starting),
                },
            ),
            (
                with(&warm),
                to_two(),
                Blocker::InRollout {
                    generation: boxed(&warm),
                },
            ),
            // Whoever is part of it is not named beside it.
            (with(&warm), in_rollout, rollout),
        ] {
            assert_eq!(record.may_contract(&asked), Err(vec![blocker]));
        }
    }

    #[test]
    fn a_contraction_that_has_begun_is_finished_by_who_has_the_step_and_one_that_is_done_is_done() {
        let begun = Record {
            floor: 2,
            contracting: Some(2),
            ..with(&generation(3, State::Warm))
        };
        assert_eq!(begun.may_contract(&to_two()), Ok(Todo::Finish));
        let stepless = Contraction {
            has_step: false,
            ..to_two()
        };
        let nobody = Err(vec![Blocker::NoStep { version: 2 }]);
        assert_eq!(begun.may_contract(&stepless), nobody);
        let done = Record {
            floor: 2,
            ..record()
        };
        assert_eq!(done.may_contract(&stepless), Ok(Todo::Nothing));
    }

    #[test]
    fn a_contraction_waits_for_the_last_of_those_that_knew_less_and_for_no_other() {
        let left = |knows, at_ms| Departure { knows, at_ms };
        let after = |departures: &[Departure]| {
            let record = Record {
                departures: departures.to_vec(),
                ..record()
            };
            record.may_contract(&Contraction {
                age_min: Duration::from_secs(60),
                ..to_two()
            })
        };
        let age = Duration::from_secs(10);
        let age_min = Duration::from_secs(60);
        let young = Err(vec![Blocker::TooYoung { age, age_min }]);
        assert_eq!(after(&[left(0, 0), left(1, 90_000)]), young);
        assert_eq!(after(&[left(1, 0), left(0, 90_000)]), young);
        assert_eq!(after(&[left(1, 40_000), left(2, 90_000)]), Ok(Todo::Begin));
    }

    #[test]
    fn what_is_not_there_or_not_known_is_not_activated_and_what_is_active_stays_so() {
        let old = generation(3, State::Active);
        let too_early = vec![
            Blocker::NotExpanded {
                version: 4,
                there: 3,
            },
            Blocker::Older {
                generation: Box::new(old.clone()),
                lapsed_ms: None,
            },
        ];
        assert_eq!(with(&old).may_activate(4), Err(too_early));
        assert_eq!(with(&old).may_activate(3), Ok(Todo::Nothing));
        let next = Record {
            version: 4,
            ..record()
        };
        assert_eq!(next.may_activate(4), Ok(Todo::Begin));
    }

    #[test]
    fn an_expansion_goes_as_far_as_the_release_knows_and_over_no_gap() {
        let next = |knows, steps: &[Version]| {
            let steps = steps.iter().copied().collect();
            record().next_expansion(knows, &steps)
        };
        assert_eq!(next(4, &[4, 5]), Some(4));
        assert_eq!(next(3, &[4, 5]), None);
        assert_eq!(next(5, &[5]), None);
    }

    #[test]
    fn a_release_is_measured_against_the_forms_of_everybody_but_its_own_process() {
        let declared = |form| Declared {
            knows: 3,
            needs: 3,
            forms: Some(Forms {
                reads: form,
                writes_from: form,
                writes_to: form,
                backfills: true,
            }),
        };
        let own = Generation {
            declared: declared(2),
            ..generation(3, State::Active)
        };
        let record = with(&own);
        assert_eq!(record.fits(&declared(3), Some(&own)), Ok(()));
        assert!(record.fits(&declared(3), None).is_err());
    }
}
