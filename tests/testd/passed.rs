//! What one generation leaves to the next beside sockets, if `TESTD_STATE` is set.

use std::error::Error;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use handover::{Serving, Starting};

use crate::{millis, setting};

/// A counter, as it was at the offer and exact at the flip, and a pipe with a note in it.
pub(crate) struct Passed {
    count: AtomicU64,
    offered: Option<u64>,
    note: Option<String>,
}

impl Passed {
    pub(crate) fn receive(starting: &mut Starting) -> Result<Self, Box<dyn Error>> {
        let mut state = starting.state();
        let pipe = state.take_descriptor("note");
        Ok(Self {
            count: AtomicU64::new(0),
            offered: number(state.blob("count")?)?,
            note: pipe.map(|pipe| read_note(File::from(pipe))).transpose()?,
        })
    }

    /// Goes on counting where the incumbent stopped, and passes on what is to be passed.
    pub(crate) fn take_part(self: &Arc<Self>, generation: &Serving) -> Result<(), Box<dyn Error>> {
        let flipped = number(generation.state().blob("count")?)?;
        self.count.store(flipped.unwrap_or(0), Ordering::Relaxed);
        let (offered, note) = (self.offered, &self.note);
        if setting("TESTD_QUIET").is_none() {
            println!("passed offered {offered:?} flipped {flipped:?} note {note:?}");
        }
        if let Some(count) = setting("TESTD_FLIP_BLOBS").and_then(|count| count.parse().ok()) {
            pass_many(generation, count)?;
        }
        if let Some(hold) = millis("TESTD_FLIP_HOLD_MS") {
            generation.on_flip(move |_| {
                pause(hold);
                Ok(())
            });
        }
        if setting("TESTD_STATE").is_some() {
            self.pass_on(generation);
        }
        Ok(())
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn pass_on(self: &Arc<Self>, generation: &Serving) {
        let number = generation.number();
        let passed = Arc::clone(self);
        generation.on_offer(move |offer| {
            let (reader, writer): (PipeReader, PipeWriter) = io::pipe()?;
            (&writer).write_all(format!("a note from {number}").as_bytes())?;
            offer.descriptor("note", reader);
            offer.blob("count", passed.text());
            Ok(())
        });
        let passed = Arc::clone(self);
        generation.on_flip(move |offer| {
            offer.blob("count", passed.text());
            Ok(())
        });
    }

    fn text(&self) -> String {
        self.count.load(Ordering::Relaxed).to_string()
    }
}

/// Blobs at the flip, each with a name as long as a name can be and its number in it.
fn pass_many(generation: &Serving, count: usize) -> Result<(), Box<dyn Error>> {
    let name = |n: usize| format!("{n:0>255}");
    let state = generation.state();
    let mut whole = 0;
    for n in 0..count {
        whole += usize::from(number(state.blob(&name(n))?)? == Some(n as u64));
    }
    drop(state);
    println!("{whole} of {count} blobs were passed");
    generation.on_flip(move |offer| {
        for n in 0..count {
            offer.blob(name(n), n.to_string());
        }
        Ok(())
    });
    Ok(())
}

fn number(blob: Option<Vec<u8>>) -> Result<Option<u64>, Box<dyn Error>> {
    let parse = |bytes| Ok(String::from_utf8(bytes)?.parse()?);
    blob.map(parse).transpose()
}

fn read_note(mut pipe: File) -> io::Result<String> {
    let mut note = String::new();
    pipe.read_to_string(&mut note)?;
    Ok(note)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a hook that takes its time is what is wanted"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
