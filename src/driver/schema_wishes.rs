//! What operators want of the schema, done in the control socket's tasks.

use crate::control::{RefusalKind, Reply, SchemaGate, SchemaGeneration, SchemaState, SchemaWish};
use crate::error::ErrorKind;
use crate::schema::{Changed, Confirmed, Declared, Record, Registration, State, Version};

/// Does it, and says how the schema stands then, or why it was not done.
///
/// `way_back` is the generation that a cold rollback goes back to, and what its release says.
pub(super) async fn grant(
    schema: Registration,
    wish: SchemaWish,
    way_back: Option<(u64, Declared)>,
) -> Result<SchemaState, Reply> {
    let granted = attempt(&schema, wish, way_back).await;
    match granted {
        Ok(state) => Ok(state),
        Err(error) => {
            let kind = match error.kind() {
                ErrorKind::Schema if error.has_begun() => RefusalKind::Failed,
                _ => RefusalKind::Refused,
            };
            Err(Reply::error(kind, format!("{error:?}")))
        }
    }
}

async fn attempt(
    schema: &Registration,
    wish: SchemaWish,
    way_back: Option<(u64, Declared)>,
) -> crate::error::Result<SchemaState> {
    let done = match wish {
        SchemaWish::Status => String::new(),
        SchemaWish::Expand => {
            let versions = schema.expand().await?;
            match versions.last() {
                Some(version) => format!("expanded to schema {version}"),
                None => "it was expanded already, as far as the release that serves can".to_owned(),
            }
        }
        SchemaWish::Activate { version } => {
            let changed = schema.activate(version).await?;
            let done = in_words(changed, &format!("schema {version}"), "activated");
            match changed {
                Changed::Done => done + &way_back_lost(way_back, version),
                _ => done,
            }
        }
        SchemaWish::Contract { version, confirm } => {
            let changed = schema.contract(version, confirmed(confirm)).await?;
            let done = in_words(changed, &format!("schema {version}"), "contracted to");
            match changed {
                Changed::Would => done + &way_back_lost(way_back, version),
                _ => done,
            }
        }
        SchemaWish::Expunge { host, confirm } => {
            let changed = schema.expunge(&host, confirmed(confirm)).await?;
            in_words(changed, &format!("host {host}"), "expunged")
        }
    };
    let record = match schema.look().await {
        // What was done has been done.
        Err(_) if !done.is_empty() => schema.known(),
        looked => looked?,
    };
    Ok(state(schema, &record, done))
}

/// What an operator is told who does this, if anything.
fn way_back_lost(way_back: Option<(u64, Declared)>, version: Version) -> String {
    let lost = way_back.filter(|(_, release)| release.knows < version);
    lost.map_or_else(String::new, |(generation, release)| {
        format!(
            "; the cold rollback to the release of generation {generation}, which knows schema {}, is blocked from then on",
            release.knows
        )
    })
}

fn confirmed(confirm: bool) -> Confirmed {
    match confirm {
        true => Confirmed::Yes,
        false => Confirmed::DryRun,
    }
}

fn in_words(changed: Changed, what: &str, done: &str) -> String {
    match changed {
        Changed::Done => format!("{what} is {done} now"),
        Changed::Already => format!("{what} was {done} already"),
        Changed::Would => format!(
            "{what} would be {done}: nothing speaks against it; there is no way back, so confirm it"
        ),
    }
}

/// As it stands in a record.
pub(super) fn state(schema: &Registration, record: &Record, done: String) -> SchemaState {
    let (own, now) = (schema.entry(), schema.now(record));
    let generations = now.generations.iter().map(|it| SchemaGeneration {
        host: it.host.clone(),
        generation: it.generation,
        knows: it.declared.knows,
        needs: it.declared.needs,
        state: match it.state {
            State::NotYet => "not_yet",
            State::Active => "active",
            State::Warm => "warm",
            State::Draining => "draining",
        }
        .to_owned(),
        lapsed_ms: record.lapsed_ms(it),
    });
    SchemaState {
        done,
        host: own.host,
        knows: own.declared.knows,
        needs: own.declared.needs,
        version: record.version,
        floor: record.floor,
        active: record.active,
        expanding: record.expanding,
        contracting: record.contracting,
        generations: generations.collect(),
        activations: gates(schema.activations(record)),
        contractions: gates(schema.contractions(record)),
    }
}

fn gates(of: Vec<(Version, Vec<String>)>) -> Vec<SchemaGate> {
    let gate = |(version, blockers)| SchemaGate { version, blockers };
    of.into_iter().map(gate).collect()
}
