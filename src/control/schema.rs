//! What operators ask of the schema, and what they are told.

use serde::{Deserialize, Serialize};

/// What is asked of the schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
#[non_exhaustive]
pub enum SchemaWish {
    /// How it stands.
    Status,
    /// Expand the store as far as the release that serves has steps for.
    Expand,
    /// Let everybody write the form of a version.
    Activate {
        /// Which.
        version: u32,
    },
    /// Drop what releases need that know less than a version.
    Contract {
        /// Which.
        version: u32,
        /// Whether to do it; without it, only whether it would be done.
        #[serde(default)]
        confirm: bool,
    },
    /// Strike the generations of a host out of the record, for whoever knows that they are gone.
    Expunge {
        /// Which.
        host: String,
        /// As in [`Contract`](Self::Contract).
        #[serde(default)]
        confirm: bool,
    },
}

/// How a schema stands, and what came of the wish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SchemaState {
    /// What came of the wish, in words; empty for one that only looks.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub done: String,
    /// What the host of the generation that answers is called.
    pub host: String,
    /// The newest version that the release which answers understands.
    pub knows: u32,
    /// The oldest version that it works on.
    pub needs: u32,
    /// The version that the store has been expanded to.
    pub version: u32,
    /// The version that it has been contracted to.
    pub floor: u32,
    /// The newest version whose form is written by those who wait for that to be said.
    pub active: u32,
    /// An expansion that has begun and is not known to be done.
    #[serde(default)]
    pub expanding: Option<u32>,
    /// A contraction whose floor has risen and whose drop is not known to be done.
    #[serde(default)]
    pub contracting: Option<u32>,
    /// Who may be alive.
    #[serde(default)]
    pub generations: Vec<SchemaGeneration>,
    /// The activations that the release waits for, and what speaks against each.
    #[serde(default)]
    pub activations: Vec<SchemaGate>,
    /// The contractions that it has a step for, and what speaks against each.
    #[serde(default)]
    pub contractions: Vec<SchemaGate>,
}

/// A generation that may be alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SchemaGeneration {
    /// Its host.
    pub host: String,
    /// Its number there.
    pub generation: u64,
    /// The newest version that it understands.
    pub knows: u32,
    /// The oldest version that it works on.
    pub needs: u32,
    /// What it is: `not_yet`, `active`, `warm` or `draining`.
    pub state: String,
    /// For how long nobody has heard of it beyond its lease, in milliseconds. One that this is said of may be alive or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lapsed_ms: Option<u64>,
}

/// What would be done for a version, and what speaks against it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SchemaGate {
    /// Which.
    pub version: u32,
    /// All reasons; none if it may be done.
    #[serde(default)]
    pub blockers: Vec<String>,
}
