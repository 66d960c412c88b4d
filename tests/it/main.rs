//! Real processes, their successors and their ends, as clients and operators see them.

#![expect(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

mod activity;
mod bad_successor;
mod canary;
mod frozen;
mod generations;
mod guards;
mod health;
mod killed;
mod listeners;
mod load;
mod manager;
mod preview;
mod requests;
mod signals;
mod start;
mod state;
mod stop;
mod support;
mod verify;
