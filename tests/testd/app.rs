//! What testd answers beside the routes that all servers under test have.

use std::process::Stdio;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use handover::Serving;
use handover_load::routes;
use tokio::process::Command;

use crate::faults::Faults;
use crate::passed::Passed;
use crate::plan::Plan;

/// | route | answer, after the generation's number and a space |
/// |---|---|
/// | `GET /count` | how often this has been asked, over all generations |
/// | `GET /say?TEXT` | `said`, once the text is in standard error |
/// | `GET /helper` | what a helper process finds: variables, blocked signals, descriptors |
/// | `GET /release` | what the release is called |
/// | `GET /flip` | `flips`, and lets the successor in standby take over |
/// | `GET /upgrade` | the verdict of an upgrade |
/// | `GET /work` | `done`, or 500 if its plan says `ill` |
/// | `GET /livez`, `GET /readyz` | how it is, without the number |
/// | `GET /degraded` | `degraded`, and says so to who asks how it is until `GET /restored` |
pub(crate) fn app(generation: &Serving, passed: Arc<Passed>, plan: &Plan) -> Router {
    let is_ill = plan.get("ill").is_some();
    let number = generation.number();
    let draining = {
        let generation = generation.clone();
        move || generation.draining()
    };
    Router::new()
        .route(
            "/count",
            get(move || async move { format!("{number} {}", passed.count()) }),
        )
        .route(
            "/say",
            get(move |Query(text): Query<Vec<(String, String)>>| say(number, text)),
        )
        .route("/work", get(move || work(number, is_ill)))
        .route("/helper", get(move || helper(number)))
        .route("/release", get(move || release(number)))
        .route("/flip", get(flip))
        .route("/upgrade", get(upgrade))
        .route("/degraded", get(degraded))
        .route("/restored", get(restored))
        .with_state(generation.clone())
        .route_service("/livez", generation.health())
        .route_service("/readyz", generation.health())
        .merge(Faults::of(plan).spoil(routes::app_with(number, draining)))
}

async fn work(number: u64, is_ill: bool) -> Result<String, StatusCode> {
    match is_ill {
        true => Err(StatusCode::INTERNAL_SERVER_ERROR),
        false => Ok(format!("{number} done")),
    }
}

async fn say(number: u64, text: Vec<(String, String)>) -> String {
    for (text, _) in text {
        eprintln!("{text}");
    }
    format!("{number} said")
}

async fn helper(number: u64) -> String {
    let mut shell = Command::new("/bin/sh");
    shell
        .args([
            "-c",
            "env; grep SigBlk /proc/self/status; exec ls -l /proc/self/fd",
        ])
        .stdin(Stdio::null());
    match shell.output().await {
        Ok(output) => format!("{number} {}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => format!("{number} no helper: {error}"),
    }
}

async fn release(number: u64) -> String {
    let label = crate::release::label().unwrap_or_default();
    format!("{number} {label}")
}

async fn flip(State(generation): State<Serving>) -> String {
    match generation.flip() {
        Ok(()) => format!("{} flips", generation.number()),
        Err(error) => format!("{} {error:?}", generation.number()),
    }
}

async fn degraded(State(generation): State<Serving>) -> String {
    generation.health().degraded("as asked");
    format!("{} degraded", generation.number())
}

async fn restored(State(generation): State<Serving>) -> String {
    generation.health().restored();
    format!("{} restored", generation.number())
}

async fn upgrade(State(generation): State<Serving>) -> String {
    let number = generation.number();
    match generation.upgrade().await {
        Ok(upgraded) => format!("{number} {upgraded:?}"),
        Err(error) => format!("{number} {:?} {error:?}", error.kind()),
    }
}
