//! Schema gates with real processes: who may start, flip and roll back, and what is dropped when.

#![expect(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

mod crashes;
mod encrypted;
mod fleet;
mod frozen;
mod gates;
mod namespaces;
#[allow(dead_code, reason = "the tests of the program need more of it")]
#[path = "../cli/operated.rs"]
mod operated;
mod postgres;
mod refused;
#[allow(dead_code, reason = "the tests of cold rollbacks need more of it")]
#[path = "../cli/releases.rs"]
mod releases;
mod rig;
#[allow(dead_code, reason = "the process tests need more of it")]
#[path = "../it/support.rs"]
mod support;
