//! What came of asking fresh connections who answers them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Fresh connections to each public address, and whether the generation that was expected has answered them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Verification {
    /// When it began, in milliseconds since 1970.
    #[serde(default)]
    pub at_ms: u64,
    /// The generation that was expected.
    pub generation: u64,
    /// Whether it has answered at every address where somebody could be asked.
    pub passed: bool,
    /// Why it has not, in words; empty if it has.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// How long that took, in microseconds.
    #[serde(default)]
    pub took_us: u64,
    /// Address by address.
    #[serde(default)]
    pub addresses: Vec<VerifiedAddress>,
}

/// What was found at one public address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct VerifiedAddress {
    /// The name that the application gave the socket.
    pub name: String,
    /// Where it is bound.
    pub address: String,
    /// What was found.
    pub result: Found,
    /// Connections that were made.
    #[serde(default)]
    pub connections: u32,
    /// Those of them that the expected generation did not answer: nobody did in time, or another one.
    #[serde(default)]
    pub missed: u32,
    /// How long it took until enough were answered in a row, in microseconds.
    #[serde(default)]
    pub took_us: u64,
    /// Why it has not passed; empty if it has.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// What was found at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Found {
    /// The expected generation has answered enough connections in a row.
    Passed,
    /// It has not.
    Failed,
    /// Nobody could be asked there.
    Skipped,
    /// Something that a newer build knows.
    #[serde(other)]
    Unknown,
}

impl Verification {
    /// How long it took.
    pub fn took(&self) -> Duration {
        Duration::from_micros(self.took_us)
    }

    /// Connections that the expected generation did not answer, at all addresses.
    pub fn missed(&self) -> u32 {
        self.addresses.iter().map(|address| address.missed).sum()
    }

    pub(crate) fn into_result(self) -> Result<(), String> {
        match self.passed {
            true => Ok(()),
            false => Err(self.reason),
        }
    }
}
