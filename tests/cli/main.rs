//! The program `handover` and the control socket that it talks to, against real services.

#![expect(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

mod cold;
mod commands;
mod drill;
mod flips;
mod generated;
mod handing_over;
mod misuse;
mod operated;
mod releases;
mod rollouts;
#[allow(dead_code, reason = "the process tests need more of it")]
#[path = "../it/support.rs"]
mod support;
mod takeover;
mod terminal;
mod verify;
