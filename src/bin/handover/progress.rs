//! How far something is, on a terminal, while its end is waited for.

use std::convert::Infallible;
use std::io::{self, IsTerminal};
use std::time::Duration;

use handover::control::{Client, Reply, Request, Status, Underway};
use handover::rollout::Stage;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{MissedTickBehavior, interval};

use crate::output::Output;
use crate::text;

/// How often the service is asked how far it is.
const LOOK: Duration = Duration::from_millis(250);

/// Does the work, and shows how far it is where a person looks on.
pub(crate) async fn with_progress<T>(
    output: Output,
    client: &Client,
    work: impl Future<Output = T>,
) -> T {
    if output.json || !io::stderr().is_terminal() {
        return work.await;
    }
    let bar = ProgressBar::new(PARTS);
    // A template that cannot be read would be the default's.
    if let Ok(style) = ProgressStyle::with_template("{spinner} [{bar:24}] {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    let telling = async {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut drained_from = 0;
        loop {
            looks.tick().await;
            // Without an answer there is only no progress to be seen.
            if let Ok(Reply::Status(status)) = client.ask(&Request::Status).await {
                drained_from = in_flight(&status).max(drained_from);
                let (part, message) = progress(&status, drained_from);
                bar.set_position((part * PARTS as f64) as u64);
                bar.set_message(message);
            }
        }
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        never = telling => as_is(never),
    };
    bar.finish_and_clear();
    outcome
}

fn as_is<T>(never: Infallible) -> T {
    match never {}
}

/// What part of it is done, and in words. `drained_from` is the most that was ever in flight.
fn progress(status: &Status, drained_from: usize) -> (f64, String) {
    match &status.upgrade {
        Some(upgrade) => rollout_progress(upgrade),
        None => {
            let left = in_flight(status);
            let part = match drained_from {
                0 => 0.0,
                from => 1.0 - left as f64 / from as f64,
            };
            let elders = status.elders.len();
            let classes = text::classes(&status.classes);
            let message = format!("{elders} older generations drain; in flight here: {classes}");
            (part, message)
        }
    }
}

/// Elders count too: what is in flight there only they know.
fn in_flight(status: &Status) -> usize {
    let own: usize = status.classes.iter().map(|class| class.in_flight).sum();
    own + status.elders.len()
}

/// Of the step or the bake, which is over when both its time and its requests have come.
fn rollout_progress(upgrade: &Underway) -> (f64, String) {
    let to = format!("generation {}", upgrade.generation);
    let Some(rollout) = &upgrade.rollout else {
        return (0.0, format!("{to}: {}", upgrade.phase));
    };
    let now = &rollout.explanation;
    let mut message = format!("{to}: {}", now.stage);
    if now.stage == Stage::Starting {
        message = format!("{to}: {}", upgrade.phase);
    }
    if now.share.parts() > 0 {
        message.push_str(&format!(" at {}", now.share));
    }
    let mut parts = Vec::new();
    if matches!(now.stage, Stage::Shifting | Stage::Baking) {
        if now.units_min > 0 {
            message.push_str(&format!(", {} of {} requests", now.units, now.units_min));
            parts.push(now.units as f64 / now.units_min as f64);
        }
        if let Some(takes_ms) = rollout.takes_ms.filter(|takes_ms| *takes_ms > 0) {
            let left_ms = takes_ms.saturating_sub(now.elapsed_ms);
            message.push_str(&format!(", {} left", text::millis(left_ms)));
            parts.push(now.elapsed_ms as f64 / takes_ms as f64);
        }
    }
    if let Some(pause) = &rollout.pause {
        message.push_str(&format!(", paused: {}", pause.reason));
    }
    let part = parts.into_iter().reduce(f64::min).unwrap_or(0.0);
    (part.min(1.0), message)
}

/// As fine as the bar can be.
const PARTS: u64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn status(text: &str) -> Status {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_bake_is_as_far_as_the_one_that_lags_of_its_time_and_its_requests() {
        let baking = |units: u64, elapsed_ms: u64| {
            status(&format!(
                r#"{{"generation":1,"pid":1,"role":"incumbent","upgrade":{{"generation":2,"phase":"baking","rollout":{{
                    "by":"client","takes_ms":10000,"explanation":{{"cause":"underway","stage":"baking","step":[0,0],
                    "share":10000,"units":{units},"units_min":300,"elapsed_ms":{elapsed_ms},"guards":[],
                    "stable_unverified":null}}}}}}}}"#
            ))
        };
        let (part, message) = progress(&baking(150, 9_000), 0);
        assert_eq!(part, 0.5);
        assert_eq!(
            message,
            "generation 2: baking at 100 %, 150 of 300 requests, 1.0s left"
        );
        assert_eq!(progress(&baking(900, 2_500), 0).0, 0.25);
    }

    #[test]
    fn a_drain_is_as_far_as_what_has_left() {
        let status = status(
            r#"{"generation":2,"pid":1,"role":"incumbent","classes":[{"name":"http1","in_flight":1}],
                "elders":[{"generation":1,"pid":7}]}"#,
        );
        let (part, message) = progress(&status, 8);
        assert_eq!(part, 0.75);
        assert!(
            message.starts_with("1 older generations drain"),
            "{message}"
        );
    }
}
