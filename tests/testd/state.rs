//! State that every generation hands to the next, once with the offer and once at the flip.

use handover::{Serving, Starting};

use super::{Outcome, setting};

const OFFERED: &str = "testd.offered";
const FLIPPED: &str = "testd.flipped";

/// A successor refuses to serve without what was offered.
pub(crate) fn check_offered(starting: &mut Starting, is_successor: bool) -> Outcome {
    let Some(text) = setting("TESTD_STATE").filter(|_| is_successor) else {
        return Ok(());
    };
    match starting.state().blob(OFFERED)? {
        Some(found) if found == text.as_bytes() => Ok(()),
        other => Err(format!("offered {other:?} instead of {text:?}").into()),
    }
}

pub(crate) fn pass_on(generation: &Serving) -> Outcome {
    let Some(text) = setting("TESTD_STATE") else {
        return Ok(());
    };
    let flipped = generation.state().blob(FLIPPED)?.unwrap_or_default();
    println!(
        "flipped {} {}",
        generation.number(),
        String::from_utf8_lossy(&flipped)
    );
    for (is_flip, name) in [(false, OFFERED), (true, FLIPPED)] {
        let text = text.clone();
        let hook = move |offer: &mut handover::state::Offer| {
            offer.blob(name, &text);
            Ok(())
        };
        match is_flip {
            true => generation.on_flip(hook),
            false => generation.on_offer(hook),
        }
    }
    Ok(())
}
