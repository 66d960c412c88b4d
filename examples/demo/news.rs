//! What the servers tell the demo: lines of JSON on the standard output that all generations share.

use std::time::{Duration, SystemTime};

use handover::{Event, Events, Phase, Serving};
use serde::{Deserialize, Serialize};

/// What each line of news begins with.
pub(crate) const MARK: &str = "news: ";

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct News {
    /// The clock that all processes share.
    pub(crate) at: SystemTime,
    /// The generation that tells it.
    pub(crate) from: u64,
    pub(crate) what: What,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum What {
    Phase {
        successor: u64,
        name: String,
        after: Duration,
        is_flip: bool,
        is_baking: bool,
    },
    Committed {
        successor: u64,
        pid: u32,
        after: Duration,
    },
    Aborted {
        successor: u64,
        reason: String,
        after: Duration,
    },
    RolledBack {
        successor: u64,
        reason: String,
        after: Duration,
    },
    Refused {
        reason: String,
    },
    /// This generation crashes now.
    Crashes {
        /// Connections that it had accepted and that were open.
        held: usize,
    },
    Draining {
        in_flight: usize,
    },
    /// This generation has served its last request.
    Leaves {
        stragglers: Vec<String>,
        took: Duration,
    },
    Warning {
        message: String,
    },
}

impl News {
    pub(crate) fn parse(line: &str) -> Result<Self, String> {
        let json = line.split_once(MARK).map_or("", |(_, json)| json);
        serde_json::from_str(json).map_err(|error| format!("{line:?} is no news: {error}"))
    }
}

impl What {
    fn of(event: Event) -> Option<Self> {
        Some(match event {
            Event::Phase {
                successor,
                phase,
                after,
            } => Self::Phase {
                successor,
                name: phase.to_string(),
                after,
                is_flip: phase == Phase::Flipping,
                is_baking: phase == Phase::Baking,
            },
            Event::Committed {
                successor,
                pid,
                after,
            } => Self::Committed {
                successor,
                pid,
                after,
            },
            Event::Aborted {
                successor,
                reason,
                after,
            } => Self::Aborted {
                successor,
                reason,
                after,
            },
            Event::RolledBack {
                successor,
                reason,
                after,
            } => Self::RolledBack {
                successor,
                reason,
                after,
            },
            Event::Refused { reason } => Self::Refused { reason },
            Event::Draining { in_flight, .. } => Self::Draining { in_flight },
            Event::Warning { message } => Self::Warning { message },
            _ => return None,
        })
    }
}

/// Tells everything that happens to a generation, as long as it lives.
pub(crate) async fn tell(generation: Serving, mut events: Events) {
    while let Some(event) = events.next().await {
        if let Some(what) = What::of(event) {
            say(generation.number(), what);
        }
    }
}

/// Tells how a generation's drain has ended.
pub(crate) async fn tell_end(generation: &Serving) {
    let report = generation.drained().await;
    let stragglers = report.stragglers.iter().map(ToString::to_string).collect();
    let took = report.took;
    say(generation.number(), What::Leaves { stragglers, took });
}

pub(crate) fn say(from: u64, what: What) {
    let at = SystemTime::now();
    match serde_json::to_string(&News { at, from, what }) {
        Ok(json) => println!("{MARK}{json}"),
        Err(error) => eprintln!("news that cannot be told: {error}"),
    }
}
