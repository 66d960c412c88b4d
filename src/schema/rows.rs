//! The record as tables and rows, for stores that speak SQL: statements that SQLite and PostgreSQL both understand.

use super::forms::{Forms, Whole};
use super::gate::{Change, Declared, Departure, Generation, Record, State, Version};
use super::store::StoreError;

/// The tables of a record, made if they are not there. One row of `handover_schema` is what transactions lock.
pub(super) const TABLES: &str = "
CREATE TABLE IF NOT EXISTS handover_schema (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    version BIGINT NOT NULL,
    floor BIGINT NOT NULL,
    active BIGINT NOT NULL,
    whole_from BIGINT,
    whole_to BIGINT,
    expanding BIGINT,
    contracting BIGINT
);
CREATE TABLE IF NOT EXISTS handover_generations (
    host TEXT NOT NULL,
    process TEXT NOT NULL,
    generation BIGINT NOT NULL,
    knows BIGINT NOT NULL,
    needs BIGINT NOT NULL,
    reads BIGINT,
    writes_from BIGINT,
    writes_to BIGINT,
    backfills BIGINT,
    state TEXT NOT NULL,
    awaits BIGINT,
    lease_ms BIGINT NOT NULL,
    PRIMARY KEY (host, process)
);
CREATE TABLE IF NOT EXISTS handover_departures (
    knows BIGINT PRIMARY KEY,
    at_ms BIGINT NOT NULL
);
INSERT INTO handover_schema (id, version, floor, active) VALUES (1, 0, 0, 0) ON CONFLICT (id) DO NOTHING;
";

pub(super) const READ_SCHEMA: &str = "SELECT version, floor, active, expanding, contracting, whole_from, whole_to FROM handover_schema WHERE id = 1";

pub(super) const READ_GENERATIONS: &str =
    "SELECT generation, knows, needs, awaits, lease_ms, reads, writes_from, writes_to, backfills, host, process, state
    FROM handover_generations ORDER BY host, generation, process";

pub(super) const READ_DEPARTURES: &str =
    "SELECT knows, at_ms FROM handover_departures ORDER BY knows";

/// The columns of one row, as a store reads them: numbers first, text behind.
pub(super) trait Columns {
    fn number(&self, column: usize) -> Result<Option<i64>, StoreError>;
    fn text(&self, column: usize) -> Result<String, StoreError>;
}

/// A value of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Number(Option<i64>),
    Text(String),
}

/// What a store has read.
pub(super) fn record<C: Columns>(
    schema: &C,
    generations: &[C],
    departures: &[C],
    now_ms: u64,
) -> Result<Record, StoreError> {
    Ok(Record {
        version: version(schema, 0)?,
        floor: version(schema, 1)?,
        active: version(schema, 2)?,
        expanding: maybe_version(schema, 3)?,
        contracting: maybe_version(schema, 4)?,
        whole: match (maybe_version(schema, 5)?, maybe_version(schema, 6)?) {
            (Some(from), Some(to)) => Some(Whole { from, to }),
            _ => None,
        },
        generations: generations
            .iter()
            .map(generation)
            .collect::<Result<_, _>>()?,
        departures: departures.iter().map(departure).collect::<Result<_, _>>()?,
        now_ms,
    })
}

fn generation<C: Columns>(row: &C) -> Result<Generation, StoreError> {
    let forms = [5, 6, 7].map(|column| maybe_version(row, column));
    let [reads, from, to] = forms;
    let forms = match (reads?, from?, to?) {
        (Some(reads), Some(writes_from), Some(writes_to)) => Some(Forms {
            reads,
            writes_from,
            writes_to,
            backfills: row.number(8)? == Some(1),
        }),
        _ => None,
    };
    Ok(Generation {
        generation: number(row, 0)?,
        declared: Declared {
            knows: version(row, 1)?,
            needs: version(row, 2)?,
            forms,
        },
        awaits: maybe_version(row, 3)?,
        lease_ms: number(row, 4)?,
        host: row.text(9)?,
        process: row.text(10)?,
        state: match &*row.text(11)? {
            "active" => State::Active,
            "warm" => State::Warm,
            "draining" => State::Draining,
            // What a newer build means by another one is not known here, and this blocks most.
            _ => State::NotYet,
        },
    })
}

fn departure<C: Columns>(row: &C) -> Result<Departure, StoreError> {
    let (knows, at_ms) = (version(row, 0)?, number(row, 1)?);
    Ok(Departure { knows, at_ms })
}

fn version<C: Columns>(row: &C, column: usize) -> Result<Version, StoreError> {
    let version = maybe_version(row, column)?;
    version.ok_or_else(|| "a version is missing in the record".into())
}

fn maybe_version<C: Columns>(row: &C, column: usize) -> Result<Option<Version>, StoreError> {
    let number = row.number(column)?;
    Ok(number.map(Version::try_from).transpose()?)
}

fn number<C: Columns>(row: &C, column: usize) -> Result<u64, StoreError> {
    let number = row.number(column)?.unwrap_or_default();
    Ok(u64::try_from(number)?)
}

/// The statements of a change, with their values.
pub(super) fn statements(change: &Change, now_ms: u64) -> Vec<(&'static str, Vec<Value>)> {
    let one = |sql, version: &Version| vec![(sql, vec![Value::from(*version)])];
    match change {
        Change::Activated(version) => one("UPDATE handover_schema SET active = $1", version),
        Change::Whole(Whole { from, to }) => vec![(
            "UPDATE handover_schema SET whole_from = $1, whole_to = $2",
            vec![Value::from(*from), Value::from(*to)],
        )],
        Change::Expanding(version) => one("UPDATE handover_schema SET expanding = $1", version),
        Change::Expanded(version) => one(
            "UPDATE handover_schema SET version = $1, expanding = NULL WHERE version < $1",
            version,
        ),
        Change::Contracting(version) => one(
            "UPDATE handover_schema
            SET floor = $1, contracting = $1, active = CASE WHEN active < $1 THEN $1 ELSE active END",
            version,
        ),
        Change::Contracted(version) => one(
            "UPDATE handover_schema SET contracting = NULL WHERE contracting = $1",
            version,
        ),
        Change::Entered(generation) => vec![(ENTER, columns(generation))],
        Change::Unentered(knows) => vec![(SEE, vec![Value::from(*knows), Value::from(now_ms)])],
        Change::Left { host, process } => {
            let who = [Value::Text(host.clone()), Value::Text(process.clone())];
            let when = Value::from(now_ms);
            vec![
                (DEPART, [vec![when], who.to_vec()].concat()),
                (REMOVE, who.to_vec()),
            ]
        }
    }
}

const ENTER: &str = "
INSERT INTO handover_generations
    (generation, knows, needs, awaits, lease_ms, reads, writes_from, writes_to, backfills, host, process, state)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
ON CONFLICT (host, process) DO UPDATE SET awaits = excluded.awaits, lease_ms = excluded.lease_ms, state = excluded.state";

const DEPART: &str = "
INSERT INTO handover_departures (knows, at_ms)
SELECT knows, CAST($1 AS BIGINT) FROM handover_generations WHERE host = $2 AND process = $3
ON CONFLICT (knows) DO UPDATE SET at_ms = excluded.at_ms";

const SEE: &str = "
INSERT INTO handover_departures (knows, at_ms) VALUES ($1, $2)
ON CONFLICT (knows) DO UPDATE SET at_ms = excluded.at_ms";

const REMOVE: &str = "DELETE FROM handover_generations WHERE host = $1 AND process = $2";

fn columns(generation: &Generation) -> Vec<Value> {
    let Generation {
        host,
        process,
        generation,
        declared,
        state,
        awaits,
        lease_ms,
    } = generation;
    let form =
        |of: fn(&Forms) -> Version| Value::Number(declared.forms.as_ref().map(of).map(i64::from));
    let state = match state {
        State::NotYet => "not_yet",
        State::Active => "active",
        State::Warm => "warm",
        State::Draining => "draining",
    };
    vec![
        Value::from(*generation),
        Value::from(declared.knows),
        Value::from(declared.needs),
        Value::Number(awaits.map(i64::from)),
        Value::from(*lease_ms),
        form(|forms| forms.reads),
        form(|forms| forms.writes_from),
        form(|forms| forms.writes_to),
        form(|forms| forms.backfills.into()),
        Value::Text(host.clone()),
        Value::Text(process.clone()),
        Value::Text(state.to_owned()),
    ]
}

impl From<Version> for Value {
    fn from(version: Version) -> Self {
        Self::Number(Some(version.into()))
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(Some(i64::try_from(number).unwrap_or(i64::MAX)))
    }
}
