//! What the servers tell the demo: lines of JSON on the standard output that all generations share.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

use handover::{Event, Events, Serving};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

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
        /// Open connections that it had accepted, by class.
        held: BTreeMap<String, usize>,
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
            Event::Drained { stragglers, took } => Self::Leaves { stragglers, took },
            Event::Warning { message } => Self::Warning { message },
            _ => return None,
        })
    }
}

/// Tells everything that happens to a generation, until it has drained. Wait for this before leaving `main`, which does
/// not wait for events. A generation that nobody listens to any more stops.
pub(crate) async fn tell(generation: Serving, events: Events) {
    tokio::select! {
        () = tell_all(generation.number(), events) => {}
        _ = demo_gone() => {
            // A generation that is on its way out already needs no telling.
            let _ = generation.stop();
        }
    }
}

async fn tell_all(from: u64, mut events: Events) {
    while let Some(event) = events.next().await {
        let is_last = matches!(event, Event::Drained { .. });
        if let Some(what) = What::of(event) {
            say(from, what);
        }
        if is_last {
            return;
        }
    }
}

/// Resolves when the reading end of the standard output is closed, however the demo came to its end: pipe(7).
async fn demo_gone() -> io::Result<()> {
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    #[allow(
        deprecated,
        reason = "its successor is unsafe for types whose descriptor may change; an `OwnedFd` keeps its own"
    )]
    let output = AsyncFd::with_interest(output, Interest::ERROR)?;
    output.ready(Interest::ERROR).await.map(drop)
}

pub(crate) fn say(from: u64, what: What) {
    let at = SystemTime::now();
    match serde_json::to_string(&News { at, from, what }) {
        // A demo that is gone misses nothing.
        Ok(json) => drop(writeln!(io::stdout(), "{MARK}{json}")),
        Err(error) => eprintln!("news that cannot be told: {error}"),
    }
}
