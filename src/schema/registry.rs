//! One generation's entry in the record, and what is done to the record on its behalf.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::unistd::gethostname;
use tokio::sync::watch;
use tokio::time::timeout;

use super::declaration::Schema;
use super::gate::{
    Blocker, Change, Contraction, Declared, Generation, Misfit, Record, State, Todo, Version,
};
use super::identity::Identity;
use super::step::{How, Step};
use super::store::{StoreError, Transaction};
use crate::error::{Error, ErrorKind, Result};

/// A generation's entry in the record of its schema, from [`Starting::schema`](crate::Starting::schema) until nothing of
/// the generation is left in flight. Cheap to clone.
#[derive(Clone)]
pub struct Registration(Arc<Inner>);

struct Inner {
    schema: Schema,
    identity: Identity,
    own: Mutex<Generation>,
    /// What the generation is, before the store has heard of it.
    state: watch::Sender<State>,
    /// What the store said last.
    known: watch::Sender<Record>,
    here: Mutex<Here>,
    /// Which generations of this host have been in the record. One that is alive and never was has declared no schema.
    entered: Mutex<BTreeSet<u64>>,
}

/// What this generation knows of its own host, whatever the record has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Here {
    /// What is under way that a contraction must not meet, in words.
    pub(crate) rollout: Option<String>,
    /// The other generations that are alive.
    pub(crate) others: Vec<(u64, State)>,
}

/// Whether what destroys something is to be done, or only looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Confirmed {
    /// Somebody means it.
    Yes,
    /// Only whether it would be done.
    DryRun,
}

/// What came of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Changed {
    /// It is so now.
    Done,
    /// It was so already.
    Already,
    /// It would be done, if it were confirmed.
    Would,
}

/// What is to be written, and to be said.
struct Decision<T> {
    answer: T,
    changes: Vec<Change>,
}

impl<T> Decision<T> {
    fn none(answer: T) -> Self {
        Self::of(answer, [])
    }

    fn of(answer: T, changes: impl Into<Vec<Change>>) -> Self {
        Self {
            answer,
            changes: changes.into(),
        }
    }
}

impl Registration {
    /// Expands the store, if this release is to do that, and enters a generation beside these others of its host. `extend`
    /// is called before anything that may take long.
    ///
    /// # Cancel safety
    ///
    /// What was done to the store is done; the entry, if there is one already, is that of a generation that does not serve.
    pub(crate) async fn enter(
        schema: Schema,
        generation: u64,
        others: Vec<(u64, State)>,
        extend: impl Fn(Duration),
    ) -> Result<Self> {
        let failed = |error: StoreError| trouble("entering a generation").because(error);
        let host = match &schema.host {
            Some(host) => host.clone(),
            None => gethostname()
                .map_err(|errno| failed(errno.into()))?
                .to_string_lossy()
                .into_owned(),
        };
        let identity = Identity::own().map_err(|error| failed(error.into()))?;
        let own = Generation {
            host,
            process: identity.to_text(),
            generation,
            declared: schema.declared(),
            state: State::NotYet,
            awaits: None,
            lease_ms: 0,
        };
        let registration = Self(Arc::new(Inner {
            schema,
            identity,
            own: Mutex::new(own),
            state: watch::Sender::new(State::NotYet),
            known: watch::Sender::new(Record::default()),
            here: Mutex::new(Here {
                rollout: None,
                others,
            }),
            entered: Mutex::default(),
        }));
        registration.begin(extend).await?;
        Ok(registration)
    }

    async fn begin(&self, extend: impl Fn(Duration)) -> Result<()> {
        let schema = &self.0.schema;
        let there = self.look().await?;
        let mut expanded = there.clone();
        if schema.expands_at_start {
            expanded.version = self.reachable(&there);
        }
        self.refuse_misfit(expanded.fits(&schema.declared(), None))?;
        if expanded.version > there.version {
            extend(schema.expansion_limit());
            self.expand().await?;
        }
        let own = self.own().clone();
        let entered = self.transact("entering a generation", |record| {
            match record.fits(&own.declared, Some(&own)) {
                Ok(()) => {
                    let lease_ms = self.lease(record);
                    let awaits = self.awaits(record.active);
                    let entry = Generation {
                        awaits,
                        lease_ms,
                        ..own
                    };
                    Decision::of(Ok(awaits), self.writing(record, entry))
                }
                Err(misfit) => Decision::none(Err(misfit)),
            }
        });
        let awaits = self.refuse_misfit(entered.await?)?;
        self.own().awaits = awaits;
        let filled = self.backfill(extend).await;
        if filled.is_err() {
            // Nobody is told twice: whoever looks finds that the process is gone.
            let _ = self.leave().await;
        }
        filled
    }

    /// A generation is in the record, and writes. One that has a backfill before it does not write until that is done.
    fn writing(&self, record: &Record, entry: Generation) -> Vec<Change> {
        let forms = entry.declared.forms;
        let forms = forms.filter(|_| !record.wants_backfill(&entry.declared));
        let written = record.written_by(forms);
        [Change::Entered(entry)]
            .into_iter()
            .chain(written)
            .collect()
    }

    /// Once this generation has entered, whoever does not write what it reads is refused.
    async fn backfill(&self, extend: impl Fn(Duration)) -> Result<()> {
        let declared = self.0.schema.declared();
        let (Some(step), Some(forms)) = (&self.0.schema.backfill, declared.forms) else {
            return Ok(());
        };
        let is_wanted = |record: &Record| record.wants_backfill(&declared);
        if !is_wanted(&self.0.known.borrow()) {
            return Ok(());
        }
        extend(step.deadline);
        let doing = format!("bringing every row into the form of schema {}", forms.reads);
        let over = |record: &Record| record.filled(forms.reads);
        self.take(&doing, step, is_wanted, None, over).await?;
        self.renew().await
    }

    /// What this generation still waits for, that knows of no activation beyond this one.
    fn awaits(&self, active: Version) -> Option<Version> {
        let activated = self.0.schema.activated.iter();
        activated.copied().find(|version| *version > active)
    }

    /// Drops what a contraction has left whose floor has risen, if this release has the step. What cannot be dropped yet
    /// is in nobody's way: the record has it until the next call, or the next start.
    pub(crate) async fn finish_contraction(&self, extend: impl Fn(Duration)) -> Result<()> {
        let begun = self.0.known.borrow().contracting;
        let step = begun
            .and_then(|version| Some((version, self.0.schema.contract.get(&version).cloned()?)));
        match step {
            None => Ok(()),
            Some((version, step)) => {
                extend(self.0.schema.limits.lock + step.deadline);
                self.drop_below(version, &step).await
            }
        }
    }

    fn refuse_misfit<T>(&self, fits: std::result::Result<T, Misfit>) -> Result<T> {
        fits.map_err(|misfit| trouble("starting").because(format!("this release {misfit}")))
    }

    /// The version that this release can expand the store to.
    fn reachable(&self, there: &Record) -> Version {
        let schema = &self.0.schema;
        let steps = schema.expand.keys().copied().collect();
        let mut reached = there.clone();
        while let Some(next) = reached.next_expansion(schema.declared().knows, &steps) {
            reached.version = next;
        }
        reached.version
    }

    /// The newest version that the store has been expanded to, as far as this generation has heard.
    pub fn version(&self) -> Version {
        self.0.known.borrow().version
    }

    /// The version that the store has been contracted to, as far as this generation has heard.
    pub fn floor(&self) -> Version {
        self.0.known.borrow().floor
    }

    /// Whether this generation is to write the form of a version: everybody who is alive understands it.
    ///
    /// It is heard of with the next [renewal](Schema::renew), and never taken back.
    pub fn is_active(&self, version: Version) -> bool {
        self.0.known.borrow().active >= version
    }

    /// Waits until something that this generation has heard of the store has changed.
    ///
    /// # Cancel safety
    ///
    /// What changes between two calls is missed: look after the call.
    pub async fn changed(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.known.subscribe().changed().await;
    }

    /// Expands the store to the newest version that this release has steps for. Says which versions are new.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Schema`] if a step fails or the store cannot be asked. What was expanded before it stays.
    ///
    /// # Cancel safety
    ///
    /// A step that runs in a transaction is undone; another is done once more the next time.
    pub async fn expand(&self) -> Result<Vec<Version>> {
        let (mut done, steps) = (Vec::new(), &self.0.schema.expand);
        let (knows, all) = (
            self.0.schema.declared().knows,
            steps.keys().copied().collect(),
        );
        loop {
            let so_far = |error: Error| match done.is_empty() {
                true => error,
                false => error.having_begun(),
            };
            let there = self.look().await.map_err(so_far)?;
            let next = there.next_expansion(knows, &all);
            let Some((version, step)) = next.and_then(|next| Some((next, steps.get(&next)?)))
            else {
                return Ok(done);
            };
            let is_wanted = |record: &Record| record.version + 1 == version;
            let doing = format!("expanding to schema {version}");
            let (begun, over) = (Change::Expanding(version), |_: &Record| {
                Change::Expanded(version)
            });
            let taken = self.take(&doing, step, is_wanted, Some(begun), over).await;
            if taken.map_err(so_far)? {
                done.push(version);
            }
        }
    }

    /// Lets everybody write the form of a version, once everybody who is alive knows it. Whoever does not may not run any
    /// more: a cold rollback to such a release is blocked from then on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] if somebody does not, or may not, or there is nothing to activate; with all reasons.
    /// [`ErrorKind::Schema`] if the store cannot be asked.
    ///
    /// # Cancel safety
    ///
    /// It may be done or not.
    pub async fn activate(&self, version: Version) -> Result<Changed> {
        let doing = format!("activating schema {version}");
        if !self.0.schema.activated.contains(&version) {
            let reason = "the release that serves here does not wait for that: it has nothing to activate there";
            return Err(Error::new(ErrorKind::Refused, doing).because(reason));
        }
        let answer = self.transact(&doing, |record| {
            match self.now(record).may_activate(version) {
                Ok(Todo::Begin | Todo::Finish) => {
                    Decision::of(Ok(Changed::Done), [Change::Activated(version)])
                }
                Ok(Todo::Nothing) => Decision::none(Ok(Changed::Already)),
                Err(blockers) => Decision::none(Err(blockers)),
            }
        });
        answer.await?.map_err(|blockers| refusal(&doing, &blockers))
    }

    /// Drops what releases need that know less than this version, if nobody who is alive or may be is one of them, no
    /// rollout is open anywhere, and whoever was one has been gone [for long enough](Schema::contract_after). There is no
    /// way back: a cold rollback to such a release is blocked from then on.
    ///
    /// However many ask at the same time, it is done once.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] with everything that speaks against it; nothing has changed. [`ErrorKind::Schema`] if the
    /// store cannot be asked, or the step failed: the floor may have risen then, and the next call, or the next start,
    /// goes on from there.
    ///
    /// # Cancel safety
    ///
    /// As with the error.
    pub async fn contract(&self, version: Version, confirmed: Confirmed) -> Result<Changed> {
        let doing = format!("contracting to schema {version}");
        let step = self.0.schema.contract.get(&version);
        let asked = self.contraction(version);
        let answer = self.transact(&doing, |record| {
            match self.now(record).may_contract(&asked) {
                Ok(Todo::Begin) if confirmed == Confirmed::Yes => {
                    Decision::of(Ok(Todo::Begin), [Change::Contracting(version)])
                }
                other => Decision::none(other),
            }
        });
        let todo = answer
            .await?
            .map_err(|blockers| refusal(&doing, &blockers))?;
        match (todo, step, confirmed) {
            (Todo::Nothing, ..) | (_, None, _) => Ok(Changed::Already),
            (_, Some(_), Confirmed::DryRun) => Ok(Changed::Would),
            (_, Some(step), Confirmed::Yes) => {
                let dropped = self.drop_below(version, step).await;
                dropped.map_err(|error| match todo {
                    Todo::Begin => error.having_begun(),
                    Todo::Finish | Todo::Nothing => error,
                })?;
                Ok(Changed::Done)
            }
        }
    }

    /// The record with what is known here: what this generation is now, which it may not have been told yet, and those of
    /// this host who are alive and have not entered themselves.
    pub(crate) fn now(&self, record: &Record) -> Record {
        let own = self.own().clone();
        let mut now = record.clone();
        let entries = now.generations.iter_mut();
        for entry in entries.filter(|it| it.is(&own)) {
            entry.state = *self.0.state.borrow();
        }
        let unentered = self.unentered(record);
        let unentered = unentered.map(|(generation, state)| Generation {
            process: String::new(),
            generation,
            declared: Declared::default(),
            state,
            awaits: None,
            lease_ms: u64::MAX,
            ..own.clone()
        });
        now.generations.extend(unentered);
        now
    }

    /// Whoever is alive on this host and has declared nothing, or not yet. One that had left the record before this
    /// generation first saw it is taken for one as well, until its process has ended.
    fn unentered(&self, record: &Record) -> impl Iterator<Item = (u64, State)> {
        let own = self.own().clone();
        let of_this_host = record.generations.iter().filter(|it| it.host == own.host);
        let mut entered: BTreeSet<_> = of_this_host.map(|it| it.generation).collect();
        entered.extend(lock(&self.0.entered).iter());
        entered.insert(own.generation);
        let others = lock(&self.0.here).others.clone().into_iter();
        others.filter(move |(generation, _)| !entered.contains(generation))
    }

    fn contraction(&self, version: Version) -> Contraction {
        let schema = &self.0.schema;
        Contraction {
            version,
            has_step: schema.contract.contains_key(&version),
            rollout: lock(&self.0.here).rollout.clone(),
            age_min: schema.limits.contract_after,
        }
    }

    /// Once, by whoever comes first.
    async fn drop_below(&self, version: Version, step: &Step) -> Result<()> {
        let doing = format!("dropping what lies below schema {version}");
        let is_wanted = |record: &Record| record.contracting == Some(version);
        // That it has begun is in the record since the floor rose.
        let over = |_: &Record| Change::Contracted(version);
        self.take(&doing, step, is_wanted, None, over).await?;
        Ok(())
    }

    /// Strikes every generation of a host out of the record whose lease has lapsed, for somebody who knows that all of them
    /// are gone. One that is not, after all, enters itself again, and may have lost what it needs by then.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] if there is none, or all of them are alive. [`ErrorKind::Schema`] if the store cannot be asked.
    ///
    /// # Cancel safety
    ///
    /// It may be done or not.
    pub async fn expunge(&self, host: &str, confirmed: Confirmed) -> Result<Changed> {
        let doing = format!("expunging {host:?}");
        let answer = self.transact(&doing, |record| {
            let of_it = record.generations.iter().filter(|it| it.host == host);
            let (lapsed, alive): (Vec<_>, Vec<_>) =
                of_it.partition(|it| record.lapsed_ms(it).is_some());
            match (lapsed.is_empty(), confirmed) {
                (true, _) => Decision::none(Err(alive.len())),
                (false, Confirmed::DryRun) => Decision::none(Ok(Changed::Would)),
                (false, Confirmed::Yes) => {
                    let left: Vec<_> = lapsed.into_iter().map(left).collect();
                    Decision::of(Ok(Changed::Done), left)
                }
            }
        });
        answer.await?.map_err(|alive| {
            let reason = match alive {
                0 => "no generation of that host is in the record",
                _ => "all of that host have been heard of: their leases have not lapsed",
            };
            Error::new(ErrorKind::Refused, &doing).because(reason)
        })
    }

    /// Whether a step that is done by one, at once or once more after a crash, is still to be done; does it then.
    async fn take(
        &self,
        doing: &str,
        step: &Step,
        is_wanted: impl Fn(&Record) -> bool,
        begun: Option<Change>,
        over: impl Fn(&Record) -> Change,
    ) -> Result<bool> {
        if let How::Sql(statements) = &step.how {
            return self
                .take_in_transaction(doing, statements, step.deadline, is_wanted, over)
                .await;
        }
        let failed = |error: StoreError| trouble(doing).because(error);
        // Whoever has it may be at this very step.
        let claim = self.0.schema.store.claim(step.deadline);
        let claim = in_time(self.0.schema.limits.answer + step.deadline, claim);
        let mut claim = claim.await.map_err(failed)?;
        let decide = |record: &Record| match is_wanted(record) {
            true => Decision::of(true, Vec::from_iter(begun)),
            false => Decision::none(false),
        };
        if !self.transact(doing, decide).await? {
            return Ok(false);
        }
        let run = tokio::select! {
            run = in_time(step.deadline, step.how.run()) => run,
            // Somebody else may be at it from now on.
            reason = claim.lost() => Err(format!("the claim on it was lost: {reason:?}").into()),
        };
        run.map_err(|error| failed(error).having_begun())?;
        // Whether it was lost is only asked now and then, and others may be further by now.
        let finish = |record: &Record| match is_wanted(record) {
            true => Decision::of(true, [over(record)]),
            false => Decision::none(false),
        };
        let finished = self.transact(doing, finish).await;
        finished.map_err(Error::having_begun)
    }

    /// The same of statements. The record is locked only when they are done, so that they keep nobody else from renewing a
    /// lease or from starting, however long they take.
    async fn take_in_transaction(
        &self,
        doing: &str,
        statements: &str,
        deadline: Duration,
        is_wanted: impl Fn(&Record) -> bool,
        over: impl Fn(&Record) -> Change,
    ) -> Result<bool> {
        let limits = &self.0.schema.limits;
        // Whoever has the claim may be at this very step.
        let patience = limits.lock + deadline;
        let has_begun = AtomicBool::new(false);
        let work = async {
            let mut transaction = self.0.schema.store.begin(patience).await?;
            transaction.claim(patience).await?;
            if !is_wanted(&self.0.schema.store.read().await?) {
                return Ok(None);
            }
            has_begun.store(true, Ordering::Relaxed);
            in_time(deadline, transaction.execute(statements, deadline)).await?;
            let mut record = transaction.read().await?;
            // The claim may have been lost meanwhile, and then others are further by now: this is undone.
            if !is_wanted(&record) {
                return Ok(None);
            }
            let over = over(&record);
            write(&mut *transaction, &mut record, &over).await?;
            transaction.commit().await?;
            Ok(Some(record))
        };
        let limit = patience + deadline + limits.answer;
        let done = in_time(limit, work).await;
        let taken = done.map_err(|error| failure(doing, error, has_begun.into_inner()))?;
        let is_taken = taken.is_some();
        match taken {
            Some(record) => self.hear(record),
            None => drop(self.look().await?),
        }
        Ok(is_taken)
    }

    /// This generation is something else from now on. The store hears of it with the next renewal.
    pub(crate) fn become_now(&self, state: State) {
        self.0.state.send_if_modified(|now| {
            let is_another = *now != state;
            *now = state;
            is_another
        });
    }

    /// What this generation is, and when that changes.
    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.0.state.subscribe()
    }

    /// Says that this generation is alive and what it is, and hears what others have done.
    ///
    /// # Cancel safety
    ///
    /// It may be said or not.
    pub(crate) async fn renew(&self) -> Result<()> {
        let entry = {
            // Whoever has just heard of an activation may still be at what was begun before.
            let awaits = self.awaits(self.0.known.borrow().active);
            let mut own = self.own();
            (own.state, own.awaits) = (*self.0.state.borrow(), awaits);
            own.clone()
        };
        let said = self.say("renewing the lease", |record| {
            let lease_ms = self.lease(record);
            let mut changes = self.writing(record, Generation { lease_ms, ..entry });
            // What starts has not served, and may declare something yet.
            let mut has_served = self.unentered(record).map(|(_, state)| state);
            if has_served.any(|state| state != State::NotYet) {
                changes.push(Change::Unentered(Declared::default().knows));
            }
            changes
        });
        said.await
    }

    /// How often that is to be done.
    pub(crate) fn renewal_interval(&self) -> Duration {
        self.0.schema.limits.renew
    }

    /// Nothing of this generation is left.
    pub(crate) async fn leave(&self) -> Result<()> {
        let own = left(&self.own());
        self.say("leaving", |_| vec![own]).await
    }

    /// Whether another release could run now: `who` is it, in words.
    pub(crate) async fn check(
        &self,
        who: &str,
        declared: Option<Declared>,
    ) -> std::result::Result<(), String> {
        let record = self.look().await.map_err(unknown)?;
        record
            .fits(&declared.unwrap_or_default(), None)
            .map_err(|misfit| format!("{who} {misfit}"))
    }

    /// Whether this generation could run now, beside whoever is alive.
    pub(crate) async fn check_own(&self) -> Result<()> {
        let (record, own) = (self.look().await?, self.own().clone());
        self.refuse_misfit(record.fits(&own.declared, Some(&own)))
    }

    /// Whether the candidate of this number could serve now, as it has entered itself.
    pub(crate) async fn check_candidate(&self, number: u64) -> std::result::Result<(), String> {
        let record = self.look().await.map_err(unknown)?;
        let own = self.own().clone();
        let is_it =
            |it: &&Generation| it.host == own.host && it.generation == number && !it.is(&own);
        let entries = record.generations.iter().filter(is_it);
        let entry = entries.max_by_key(|it| it.lease_ms);
        let declared = entry.map(|it| it.declared).unwrap_or_default();
        let who = match entry {
            Some(_) => format!("generation {number}"),
            None => format!("generation {number} has declared no schema, so it"),
        };
        record
            .fits(&declared, entry)
            .map_err(|misfit| format!("{who} {misfit}"))
    }

    /// Why a release must not run, as far as has been heard; this one's own without another.
    pub(crate) fn misfit(&self, declared: Option<Declared>) -> Option<String> {
        let declared = declared.unwrap_or_else(|| self.0.schema.declared());
        // Whose forms are read is for those who are about to run.
        let misfit = self.0.known.borrow().fits_alone(&declared).err()?;
        Some(misfit.to_string())
    }

    /// What is known of this host by now.
    pub(crate) fn set_here(&self, here: Here) {
        *lock(&self.0.here) = here;
    }

    /// What speaks against each contraction that this release has a step for and that is not done.
    pub(crate) fn contractions(&self, record: &Record) -> Vec<(Version, Vec<String>)> {
        let versions = self.0.schema.contract.keys();
        let open = versions
            .filter(|version| **version > record.floor || record.contracting == Some(**version));
        let blockers = |version: &Version| {
            let blockers = self
                .now(record)
                .may_contract(&self.contraction(*version))
                .err();
            let blockers = blockers.unwrap_or_default();
            (*version, blockers.iter().map(ToString::to_string).collect())
        };
        open.map(blockers).collect()
    }

    /// What has been activated of what this release waits for, and what has not.
    pub(crate) fn activations(&self, record: &Record) -> Vec<(Version, Vec<String>)> {
        let open = self.0.schema.activated.iter();
        let open = open.filter(|version| **version > record.active);
        let blockers = |version: &Version| {
            let blockers = self.now(record).may_activate(*version).err();
            let blockers = blockers.unwrap_or_default();
            (*version, blockers.iter().map(ToString::to_string).collect())
        };
        open.map(blockers).collect()
    }

    /// This generation's own entry, as it was last written.
    pub(crate) fn entry(&self) -> Generation {
        self.own().clone()
    }

    /// What the store said last.
    pub(crate) fn known(&self) -> Record {
        self.0.known.borrow().clone()
    }

    /// The record of this moment, without those of this host who are known to be gone.
    pub(crate) async fn look(&self) -> Result<Record> {
        let schema = &self.0.schema;
        let read = in_time(schema.limits.answer, schema.store.read()).await;
        let mut record = read.map_err(|error| trouble("asking the store").because(error))?;
        for gone in self.gone(&record) {
            record.apply(&gone);
        }
        self.hear(record.clone());
        Ok(record)
    }

    /// What nobody waits for longer than for an answer.
    async fn say(&self, doing: &str, changes: impl FnOnce(&Record) -> Vec<Change>) -> Result<()> {
        let limit = self.0.schema.limits.answer;
        let decide = |record: &Record| Decision::of((), changes(record));
        self.transact_in(doing, limit, limit, decide).await
    }

    async fn transact<T>(
        &self,
        doing: &str,
        decide: impl FnOnce(&Record) -> Decision<T>,
    ) -> Result<T> {
        let limits = &self.0.schema.limits;
        let limit = limits.lock + limits.answer;
        self.transact_in(doing, limits.lock, limit, decide).await
    }

    /// One transaction on the record, that waits for others no longer than it has patience.
    async fn transact_in<T>(
        &self,
        doing: &str,
        patience: Duration,
        limit: Duration,
        decide: impl FnOnce(&Record) -> Decision<T>,
    ) -> Result<T> {
        let has_begun = AtomicBool::new(false);
        let done = in_time(limit, self.in_transaction(patience, &has_begun, decide)).await;
        let failed = |error| failure(doing, error, has_begun.into_inner());
        let (answer, record) = done.map_err(failed)?;
        self.hear(record);
        Ok(answer)
    }

    /// What was read before something else was heard is not news, unless the store was taken back by somebody: then it
    /// stays so.
    fn hear(&self, record: Record) {
        let host = self.own().host.clone();
        let of_this_host = record.generations.iter().filter(|it| it.host == host);
        lock(&self.0.entered).extend(of_this_host.map(|it| it.generation));
        let lease_ms = u64::try_from(self.0.schema.limits.lease.as_millis()).unwrap_or(u64::MAX);
        self.0.known.send_if_modified(|known| {
            let is_older = record.version < known.version
                || record.floor < known.floor
                || record.active < known.active;
            let is_news = !is_older || record.now_ms > known.now_ms.saturating_add(lease_ms);
            if is_news {
                *known = record;
            }
            is_news
        });
    }

    async fn in_transaction<T>(
        &self,
        patience: Duration,
        has_begun: &AtomicBool,
        decide: impl FnOnce(&Record) -> Decision<T>,
    ) -> std::result::Result<(T, Record), StoreError> {
        let mut transaction = self.0.schema.store.begin(patience).await?;
        let mut record = transaction.read().await?;
        for gone in self.gone(&record) {
            write(&mut *transaction, &mut record, &gone).await?;
        }
        let decision = decide(&record);
        // Whoever is given up while it commits may be done, or not.
        has_begun.store(!decision.changes.is_empty(), Ordering::Relaxed);
        for change in &decision.changes {
            write(&mut *transaction, &mut record, change).await?;
        }
        transaction.commit().await?;
        Ok((decision.answer, record))
    }

    /// Generations of this host whose process is known to be gone.
    fn gone(&self, record: &Record) -> Vec<Change> {
        let own = self.own().clone();
        let of_this_host = record
            .generations
            .iter()
            .filter(|it| it.host == own.host && !it.is(&own));
        let gone = of_this_host.filter(|it| {
            let has_lapsed = record.lapsed_ms(it).is_some();
            self.0.identity.knows_gone(&it.process, has_lapsed)
        });
        gone.map(left).collect()
    }

    fn lease(&self, record: &Record) -> u64 {
        let lease = self.0.schema.limits.lease.as_millis();
        record.now_ms + u64::try_from(lease).unwrap_or(u64::MAX / 2)
    }

    fn own(&self) -> MutexGuard<'_, Generation> {
        lock(&self.0.own)
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Registration").field(&*self.own()).finish()
    }
}

async fn write(
    transaction: &mut dyn Transaction,
    record: &mut Record,
    change: &Change,
) -> std::result::Result<(), StoreError> {
    transaction.write(change).await?;
    record.apply(change);
    Ok(())
}

fn left(generation: &Generation) -> Change {
    Change::Left {
        host: generation.host.clone(),
        process: generation.process.clone(),
    }
}

async fn in_time<T>(
    limit: Duration,
    work: impl Future<Output = std::result::Result<T, StoreError>>,
) -> std::result::Result<T, StoreError> {
    let late = || format!("it was not done when {limit:?} were over").into();
    timeout(limit, work).await.unwrap_or_else(|_| Err(late()))
}

fn trouble(doing: impl Into<String>) -> Error {
    Error::new(ErrorKind::Schema, doing)
}

fn failure(doing: &str, error: StoreError, has_begun: bool) -> Error {
    let error = trouble(doing).because(error);
    match has_begun {
        true => error.having_begun(),
        false => error,
    }
}

fn refusal(doing: &str, blockers: &[Blocker]) -> Error {
    let reasons: Vec<_> = blockers.iter().map(ToString::to_string).collect();
    Error::new(ErrorKind::Refused, doing).because(reasons.join("; "))
}

/// The reason of a check that could not be made.
fn unknown(error: Error) -> String {
    format!("whether the schema fits is not known: {error:?}")
}

/// What is behind it is whole even if a holder of the lock has panicked.
fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
