//! Pools of workers under the program `handover`, with real processes under load.

#![expect(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

mod crashes;
mod faults;
mod first;
mod flood;
mod foreign;
mod logs;
mod misuse;
#[allow(dead_code, reason = "the tests of the program need more of it")]
#[path = "../cli/operated.rs"]
mod operated;
mod orphans;
mod ready;
mod reuseport;
mod rig;
mod rolling;
#[allow(dead_code, reason = "the handovers' faults need more of it")]
#[path = "../faults/shim.rs"]
mod shim;
mod small;
mod stops;
mod succession;
#[allow(dead_code, reason = "the process tests need more of it")]
#[path = "../it/support.rs"]
mod support;
mod undone;
mod unread;
