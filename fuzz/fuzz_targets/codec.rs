//! Any datagram is a message or an error, and what was read is written to something that reads the same.
//!
//! `cargo +nightly fuzz run codec`; `cargo test` replays the corpus.

#![no_main]

libfuzzer_sys::fuzz_target!(|body: &[u8]| handover::fuzz_codec(body));
