//! Answers that are as bad as the plan says, to every route that all servers under test have.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};

use crate::plan::Plan;
use crate::setting;

/// `errors=PERCENT` of the answers are 500, and `slow=PERCENT:MS` come so much later. All of them are 500, in whatever
/// generation, for as long as there is a file where `TESTD_TROUBLE` says.
#[derive(Clone, Debug)]
pub(crate) struct Faults(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    answers: AtomicU64,
    errors: u64,
    slow: u64,
    slow_for: Duration,
    trouble: Option<PathBuf>,
}

impl Faults {
    pub(crate) fn of(plan: &Plan) -> Self {
        let number = |text: &str| text.parse().unwrap_or(0);
        let (slow, slow_ms) = plan
            .get("slow")
            .and_then(|slow| slow.split_once(':'))
            .unwrap_or(("0", "0"));
        Self(Arc::new(Inner {
            answers: AtomicU64::new(0),
            errors: plan.get("errors").map_or(0, number),
            slow: number(slow),
            slow_for: Duration::from_millis(number(slow_ms)),
            trouble: setting("TESTD_TROUBLE").map(PathBuf::from),
        }))
    }

    pub(crate) fn spoil(self, app: Router) -> Router {
        app.layer(from_fn_with_state(self, answer))
    }
}

async fn answer(State(Faults(faults)): State<Faults>, request: Request, next: Next) -> Response {
    let number = faults.answers.fetch_add(1, Ordering::Relaxed);
    let is_in_trouble = faults.trouble.as_deref().is_some_and(|path| path.exists());
    if is_one_of(number, faults.slow) {
        tokio::time::sleep(faults.slow_for).await;
    }
    let response = next.run(request).await;
    match is_in_trouble || is_one_of(number, faults.errors) {
        true => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        false => response,
    }
}

/// So many of a hundred, evenly.
fn is_one_of(number: u64, percent: u64) -> bool {
    number * percent / 100 != (number + 1) * percent / 100
}
