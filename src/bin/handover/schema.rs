//! `handover schema`: what of a schema's gates can be asked, and how it is said.

use std::time::Duration;

use clap::Subcommand;
use handover::control::{Request, SchemaGate, SchemaGeneration, SchemaState, SchemaWish};

use crate::arguments::duration;
use crate::output::Paint;

#[derive(Debug, Subcommand)]
pub(crate) enum SchemaCommand {
    /// Shows the store's version and floor, who is alive, and what blocks a contraction.
    Status,
    /// Expands the store as far as the release that serves has steps for.
    Expand {
        /// How long to wait until it is done, such as 90s, 5m or 1h.
        #[arg(long, value_name = "TIME", default_value = "15m", value_parser = duration)]
        timeout: Duration,
    },
    /// Lets everybody write the form of a version, once everybody who is alive knows it.
    Activate {
        /// Which.
        #[arg(value_name = "VERSION")]
        version: u32,
    },
    /// Drops what releases need that know less than a version, if nobody can miss it. Without `--confirm` it only says
    /// whether it would.
    Contract {
        /// Which.
        #[arg(value_name = "VERSION")]
        version: u32,
        /// Does it. There is no way back.
        #[arg(long)]
        confirm: bool,
        /// How long to wait until it is done, such as 90s, 5m or 1h.
        #[arg(long, value_name = "TIME", default_value = "15m", value_parser = duration)]
        timeout: Duration,
    },
    /// Strikes a host that is gone for good out of the record. Without `--confirm` it only says whether it would.
    Expunge {
        /// Which.
        #[arg(value_name = "HOST")]
        host: String,
        /// Does it: you know that nothing of it is alive.
        #[arg(long)]
        confirm: bool,
    },
}

impl SchemaCommand {
    /// What to ask, and how long to wait for the answer if it may take its time.
    pub(crate) fn request(self) -> (Request, Option<Duration>) {
        let (wish, timeout) = match self {
            Self::Status => (SchemaWish::Status, None),
            Self::Expand { timeout } => (SchemaWish::Expand, Some(timeout)),
            Self::Activate { version } => (SchemaWish::Activate { version }, None),
            Self::Contract {
                version,
                confirm,
                timeout,
            } => (SchemaWish::Contract { version, confirm }, Some(timeout)),
            Self::Expunge { host, confirm } => (SchemaWish::Expunge { host, confirm }, None),
        };
        (Request::Schema { wish }, timeout)
    }
}

/// In one line of the status.
pub(crate) fn line(state: &SchemaState) -> String {
    let SchemaState {
        version,
        floor,
        knows,
        needs,
        ..
    } = state;
    format!("{version}, contracted to {floor}; the release knows {knows} and needs {needs}")
}

pub(crate) fn state(state: &SchemaState, paint: Paint) -> String {
    let mut lines = Vec::new();
    if !state.done.is_empty() {
        lines.push(paint.strong(&state.done));
    }
    lines.push(format!(
        "store       schema {}, contracted to {}, active {}",
        state.version, state.floor, state.active
    ));
    lines.push(format!(
        "release     knows {}, needs {}, on {}",
        state.knows, state.needs, state.host
    ));
    if let Some(version) = state.expanding {
        let text = format!("the expansion to schema {version} has not been finished");
        lines.push(paint.bad(&text));
    }
    if let Some(version) = state.contracting {
        let text = format!("the contraction to schema {version} has not been finished");
        lines.push(paint.bad(&text));
    }
    let generations = state.generations.iter();
    lines.extend(generations.map(|generation| alive(generation, paint)));
    let gates = state.activations.iter();
    lines.extend(gates.map(|gate| self::gate("activate", gate, paint)));
    let gates = state.contractions.iter();
    lines.extend(gates.map(|gate| self::gate("contract", gate, paint)));
    lines.join("\n")
}

fn alive(generation: &SchemaGeneration, paint: Paint) -> String {
    let SchemaGeneration {
        host,
        generation,
        knows,
        needs,
        state,
        lapsed_ms,
        ..
    } = generation;
    let lapsed = lapsed_ms.map(|millis| {
        let seconds = Duration::from_millis(millis).as_secs();
        paint.bad(&format!(", unknown: not heard of since {seconds} s"))
    });
    format!(
        "  {host} generation {generation}  {state}, knows {knows}, needs {needs}{}",
        lapsed.unwrap_or_default()
    )
}

fn gate(verb: &str, gate: &SchemaGate, paint: Paint) -> String {
    match gate.blockers.is_empty() {
        true => format!("{verb} {}  {}", gate.version, paint.good("may be done")),
        false => format!(
            "{verb} {}  {}: {}",
            gate.version,
            paint.bad("blocked"),
            gate.blockers.join("; ")
        ),
    }
}
