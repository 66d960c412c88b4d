//! What a release says of its schema.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::forms::Forms;
use super::gate::{Declared, Version};
use super::step::Step;
use super::store::Store;
use crate::config::{
    SCHEMA_CONTRACT_AFTER, SCHEMA_DEADLINE, SCHEMA_LEASE, SCHEMA_LOCK_DEADLINE, SCHEMA_RENEW,
};

/// The schema of a release: where it is kept, what the release knows and needs of it, and its steps.
///
/// ```
/// # #[cfg(feature = "schema-sqlite")] {
/// use handover::schema::{Schema, Sqlite, Step};
///
/// let schema = Schema::new(Sqlite::new("app.db"))
///     .knows(2)
///     .needs(2)
///     .expand(1, Step::sql("CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT)"))
///     .expand(2, Step::sql("ALTER TABLE person ADD COLUMN full_name TEXT"));
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a schema does nothing until `Starting::schema`"]
pub struct Schema {
    pub(super) store: Arc<dyn Store>,
    pub(super) declared: Declared,
    pub(super) expand: BTreeMap<Version, Step>,
    pub(super) contract: BTreeMap<Version, Step>,
    pub(super) activated: BTreeSet<Version>,
    pub(super) backfill: Option<Step>,
    pub(super) expands_at_start: bool,
    pub(super) host: Option<String>,
    pub(super) limits: Limits,
}

/// How long things take at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) answer: Duration,
    pub(super) lock: Duration,
    pub(super) lease: Duration,
    pub(super) renew: Duration,
    pub(super) contract_after: Duration,
}

impl Schema {
    /// Of the data that is beside this record. The release knows and needs nothing until it says so.
    pub fn new(store: impl Store) -> Self {
        Self {
            store: Arc::new(store),
            declared: Declared::default(),
            expand: BTreeMap::new(),
            contract: BTreeMap::new(),
            activated: BTreeSet::new(),
            backfill: None,
            expands_at_start: true,
            host: None,
            limits: Limits {
                answer: SCHEMA_DEADLINE,
                lock: SCHEMA_LOCK_DEADLINE,
                lease: SCHEMA_LEASE,
                renew: SCHEMA_RENEW,
                contract_after: SCHEMA_CONTRACT_AFTER,
            },
        }
    }

    /// The newest version that this release understands: it works on it once everything older has been dropped. Default: 0.
    pub fn knows(mut self, version: Version) -> Self {
        self.declared.knows = version;
        self
    }

    /// The oldest version that this release works on. Default: 0.
    pub fn needs(mut self, version: Version) -> Self {
        self.declared.needs = version;
        self
    }

    /// In which version's form this release reads its data, and in which ones' it writes, always: what it writes only
    /// behind an activation is none of them. A handover between two releases of which one would not find what the other
    /// has written is refused, since that loses rows at a rollback; and so is the start of one that reads a form which not
    /// every row is in, given who has run, unless it has a [backfill](Self::backfill).
    ///
    /// Default: not said, and nobody looks.
    pub fn forms(mut self, reads: Version, writes: RangeInclusive<Version>) -> Self {
        self.declared.forms = Some(Forms {
            reads,
            writes_from: *writes.start(),
            writes_to: *writes.end(),
            backfills: false,
        });
        self
    }

    /// How every row is brought into the [form](Self::forms) that this release reads, from the other one that it writes or
    /// that those before it have written. It runs when a generation of this release starts, before it is ready, if somebody
    /// has run since the last time who does not write that form, or nothing is known of that. So it must find the rows that
    /// lack something, and leave the others alone. Generations that write both forms may be serving meanwhile.
    pub fn backfill(mut self, step: Step) -> Self {
        self.backfill = Some(step);
        self
    }

    /// How the store comes from the version before to this one. It only adds: every release that is alive goes on working.
    /// What copies rows is a [backfill](Self::backfill), since those before may write again.
    ///
    /// It runs when a generation of this release starts, before it is ready, once however many start at the same time.
    pub fn expand(mut self, version: Version, step: Step) -> Self {
        self.expand.insert(version, step);
        self
    }

    /// How what releases need that know less than this version is dropped. It runs when an operator asks for it and nobody
    /// can miss it: `handover schema contract`.
    pub fn contract(mut self, version: Version, step: Step) -> Self {
        self.contract.insert(version, step);
        self
    }

    /// This release writes the form of a version only once [`Registration::is_active`](super::Registration::is_active)
    /// says so: `handover schema activate`. It is not contracted to before. From then on a release that does not know the
    /// version is refused, and so is a rollback to one: it would not understand what has been written.
    pub fn activated(mut self, version: Version) -> Self {
        self.activated.insert(version);
        self
    }

    /// Whether starting expands the store; if not, an operator does: `handover schema expand`. Default: yes.
    pub fn expand_at_start(mut self, expand: bool) -> Self {
        self.expands_at_start = expand;
        self
    }

    /// What this host is called to the others that share the store. Two services on one host that share it need different
    /// names. Default: the host name of the system (gethostname(2)).
    pub fn host(mut self, name: impl Into<String>) -> Self {
        self.host = Some(name.into());
        self
    }

    /// How long whoever needs what is to be dropped must have been gone: the time in which somebody may want them back.
    /// Default: [`SCHEMA_CONTRACT_AFTER`], 24 h.
    pub fn contract_after(mut self, age: Duration) -> Self {
        self.limits.contract_after = age;
        self
    }

    /// For how long a generation says that it is alive, each time. One that has not been heard of for so long may be alive
    /// or not, which blocks. Default: [`SCHEMA_LEASE`], 30 s.
    pub fn lease(mut self, time: Duration) -> Self {
        self.limits.lease = time;
        self
    }

    /// How often it says so, and hears what others have done. Default: [`SCHEMA_RENEW`], 10 s.
    pub fn renew(mut self, interval: Duration) -> Self {
        self.limits.renew = interval;
        self
    }

    /// How long a question to the store may take. Default: [`SCHEMA_DEADLINE`], 5 s.
    pub fn answer_deadline(mut self, limit: Duration) -> Self {
        self.limits.answer = limit;
        self
    }

    /// How long another transaction, or another process's step, is waited for. Default: [`SCHEMA_LOCK_DEADLINE`], 10 s.
    pub fn lock_deadline(mut self, limit: Duration) -> Self {
        self.limits.lock = limit;
        self
    }

    /// How long its steps of an expansion may take together, when all of them are to be done.
    pub(crate) fn expansion_limit(&self) -> Duration {
        let steps = self.expand.values().map(|step| step.deadline);
        steps.fold(self.limits.lock, Duration::saturating_add)
    }

    /// What the release says of itself.
    pub(crate) fn declared(&self) -> Declared {
        let backfills = self.backfill.is_some();
        let forms = self.declared.forms;
        Declared {
            forms: forms.map(|forms| Forms { backfills, ..forms }),
            ..self.declared
        }
    }
}
