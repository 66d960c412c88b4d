//! A canary: a new release gets the connections of a few clients, then of half of them, and then of all, if it does as
//! well as the one before. One that does not is given up by itself, and nobody else has ever met it.
//!
//! ```sh
//! BAD=3 cargo run --example canary        # generation 3 will answer one request in five with 500
//!
//! # in a second shell: a hundred clients with an address each, without end
//! while true; do for i in $(seq 100); do curl --interface 127.0.0.$((i + 1)) http://127.0.0.1:8080; done; done
//!
//! # in a third one
//! cargo install --path . --features cli && export HANDOVER_CONTROL=/tmp/canary/control.sock
//! handover upgrade        # exit code 0: generation 2 has had 10, 50 and 100 % of the clients, and is good
//! handover upgrade        # exit code 3: generation 3 was undone by the guard of errors, at 10 %
//! handover explain        # the numbers; `handover status` and `handover watch` have them while it goes on
//! handover stop
//! ```
//!
//! Whoever asks from 127.0.0.1 is taken for a health checker, and stays with generation 2 until the flip.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::http::StatusCode;
use axum::{Router, routing::get};
use handover::http::ShedLayer;
use handover::rollout::Rollout;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let setting = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.into());
    let directory = PathBuf::from(setting("DIRECTORY", "/tmp/canary"));
    std::fs::create_dir_all(&directory)?;

    let builder = handover::builder()
        .control(directory.join("control.sock"))
        .rollout(rollout()?);
    let mut starting = builder.start().await?;
    let web = starting
        .listen_tcp("web", setting("LISTEN", "127.0.0.1:8080"))
        .await?;
    println!("listening on {}", web.local_addr());
    let generation = starting.ready().await?;

    let number = generation.number();
    let release = Arc::new(Release {
        number,
        is_bad: setting("BAD", "") == number.to_string(),
        requests: AtomicU64::new(0),
    });
    // What is turned away counts as an error, so a candidate that can take less than the one before is worse.
    let shed = ShedLayer::new(generation.observed(), IN_FLIGHT_MAX);
    let app = Router::new()
        .route("/", get(move || async move { release.answer().await }))
        .layer(shed);
    // It counts requests, errors and latency for the guards.
    handover::http::serve(&generation, web, app).await?;
    Ok(())
}

/// The defaults are steps of 1, 5, 25 and 50 %, two minutes and 300 requests for each, and a bake of five minutes; these
/// are for trying this out.
fn rollout() -> Result<Rollout, Box<dyn std::error::Error>> {
    let health_checkers = "127.0.0.1/32".parse()?;
    Ok(Rollout::canary([10, 50])
        .exclude(health_checkers)
        .warm_up(Duration::from_secs(1), 20)
        .step_min(Duration::from_secs(2))
        .units_min(50)
        .bake(Duration::from_secs(2)))
}

struct Release {
    number: u64,
    is_bad: bool,
    requests: AtomicU64,
}

impl Release {
    async fn answer(&self) -> (StatusCode, String) {
        let request = self.requests.fetch_add(1, Relaxed);
        if request.is_multiple_of(50) {
            tokio::time::sleep(LONG).await;
        }
        let number = self.number;
        match self.is_bad && request % 5 == 4 {
            true => (
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("not answered by generation {number}\n"),
            ),
            false => (StatusCode::OK, format!("hello from generation {number}\n")),
        }
    }
}

const IN_FLIGHT_MAX: usize = 1_000;
/// What one request in fifty takes. The guards look for those that are slower than 99 of 100 were before: where no
/// request takes any time, each disturbance of the machine makes some.
const LONG: Duration = Duration::from_millis(250);
