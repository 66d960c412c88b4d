//! A bad release is undone by itself, and says by which numbers.

use handover_load::{Failure, Report};
use serde_json::Value;

use crate::loaded::{BAKE, Loaded, assert_failed_only_as, canary_at, figure, first_failure};
use crate::support::{Setup, assert_no_failure};

fn only_500(report: &Report) {
    assert_failed_only_as(report, Failure::Status5xx);
}

/// Begins an upgrade to such a release and waits until it is undone; why it was.
async fn undone(loaded: &Loaded, release: &str, plan: &[&str], verdict: &str) -> Value {
    loaded.operated.service.plan(release);
    let line = format!("event 1 {} 2 ", verdict.replace('_', "-"));
    let undone_at = async {
        loaded.operated.service.line(&line).await;
        loaded.load.elapsed()
    };
    let (ran, undone_at) = tokio::join!(loaded.upgrade(plan), undone_at);
    ran.assert_code(3);
    let upgrade = &ran.json()["upgrade"];
    assert_eq!(upgrade["verdict"], verdict, "{upgrade}");
    assert_eq!(upgrade["incumbent_serves"], true, "{upgrade}");
    let report = loaded.load.snapshot();
    if report.failures() > 0 {
        let after = undone_at - first_failure(&report);
        println!(
            "{plan:?} {verdict} {after:.1?} after the first of {} bad answers",
            report.failures()
        );
    }
    loaded.explained().await
}

fn assert_found_by(explanation: &Value, guard: &str) {
    assert_eq!(
        explanation["cause"]["guard_failed"]["guard"], guard,
        "{explanation}"
    );
}

#[tokio::test]
async fn a_candidate_that_answers_500_at_5_percent_is_aborted_with_3_and_explain_gives_the_numbers()
{
    let loaded = Loaded::start(Setup::new()).await;
    let why = undone(&loaded, "errors=50", &canary_at("5"), "aborted").await;
    assert_found_by(&why, "errors");
    assert_eq!(
        (&why["share"], &why["stage"]),
        (&500.into(), &"shifting".into())
    );
    let read = |name| figure(&why, "errors", name);
    assert!(
        read("candidate") >= 2.0 && read("candidate") <= read("candidate_requests"),
        "{why}"
    );
    assert!(
        read("stable") == 0.0 && read("stable_requests") > 0.0,
        "{why}"
    );
    assert!(read("evidence") >= read("evidence_limit"), "{why}");
    let said = [
        "1 -> 2 aborted".to_owned(),
        "decided     the guard \"errors\" found the candidate worse".to_owned(),
        "rollout     shifting at 5 %, step 1 of 1".to_owned(),
        format!(
            "guard       errors failed: candidate {}/{}",
            read("candidate"),
            read("candidate_requests")
        ),
        format!("stable 0/{}", read("stable_requests")),
        "serving     generation 1, as before".to_owned(),
    ];
    let ran = loaded.operated.run(&["explain"]).await;
    ran.assert_code(0);
    ran.assert_says(&said.each_ref().map(String::as_str));
    loaded.stable_serves_alone(only_500).await;
}

#[tokio::test]
async fn a_candidate_that_answers_500_to_one_request_in_20_at_5_percent_is_aborted_with_3() {
    let loaded = Loaded::start(Setup::new()).await;
    let why = undone(&loaded, "errors=5", &canary_at("5"), "aborted").await;
    assert_found_by(&why, "errors");
    loaded.stable_serves_alone(only_500).await;
}

#[tokio::test]
async fn a_candidate_that_answers_500_in_its_bake_is_rolled_back_with_3_and_explain_gives_the_numbers()
 {
    let loaded = Loaded::start(Setup::new()).await;
    let why = undone(&loaded, "errors=50", &BAKE, "rolled_back").await;
    assert_found_by(&why, "errors");
    assert_eq!(
        (&why["share"], &why["stage"]),
        (&10_000.into(), &"baking".into())
    );
    let read = |name| figure(&why, "errors", name);
    assert!(
        read("candidate") >= 2.0 && read("candidate") <= read("candidate_requests"),
        "{why}"
    );
    assert!(read("expected_rate") < read("worst_rate"), "{why}");
    assert!(read("sum") >= read("sum_limit"), "{why}");
    let ran = loaded.operated.run(&["explain"]).await;
    let said = format!(
        "errors failed: candidate {}/{}, expected ",
        read("candidate"),
        read("candidate_requests")
    );
    ran.assert_says(&["1 -> 2 rolled back", &said, "rollback "]);
    loaded.stable_serves_alone(only_500).await;
}

#[tokio::test]
async fn a_candidate_with_a_slow_tail_is_aborted_with_3_though_it_answers_everything() {
    let loaded = Loaded::start(Setup::new()).await;
    let why = undone(&loaded, "slow=25:300", &canary_at("50"), "aborted").await;
    assert_found_by(&why, "slow");
    let read = |name| figure(&why, "slow", name);
    assert!(read("evidence") >= read("evidence_limit"), "{why}");
    assert!(
        read("candidate") / read("candidate_requests") > read("stable") / read("stable_requests"),
        "{why}"
    );
    loaded.stable_serves_alone(assert_no_failure).await;
}

#[tokio::test]
async fn a_candidate_with_a_slow_tail_in_its_bake_is_rolled_back_with_3_though_it_answers_everything()
 {
    let loaded = Loaded::start(Setup::new()).await;
    let why = undone(&loaded, "slow=25:300", &BAKE, "rolled_back").await;
    assert_found_by(&why, "slow");
    loaded.stable_serves_alone(assert_no_failure).await;
}

#[tokio::test]
async fn a_candidate_that_fails_its_check_is_aborted_with_3_and_the_checks_words() {
    let script = "echo the database is not migrated >&2; exit 1";
    let loaded = Loaded::start(Setup::new().with("TESTD_CHECK_COMMAND", script)).await;
    let ran = loaded.upgrade(&canary_at("50")).await;
    ran.assert_code(3);
    assert_eq!(ran.json()["upgrade"]["verdict"], "aborted");
    let why = loaded.explained().await;
    let words = why["cause"]["check_failed"]["reason"].as_str().unwrap();
    assert!(words.contains("the database is not migrated"), "{why}");
    assert_eq!(
        (&why["stage"], &why["units"]),
        (&"preview".into(), &0.into())
    );
    assert_eq!(loaded.load.snapshot().generation(2), None);
    assert_no_failure(&loaded.load.stop().await);
}

#[tokio::test]
async fn a_candidate_that_does_not_accept_after_the_flip_is_rolled_back_with_3_and_nobody_is_lost()
{
    let loaded = Loaded::start(Setup::new().with("TESTD_VERIFY_MS", 500)).await;
    let why = undone(&loaded, "deaf=yes", &BAKE, "rolled_back").await;
    let words = why["cause"]["verify_failed"]["reason"].as_str().unwrap();
    assert!(words.contains("nobody accepted"), "{why}");
    loaded.stable_serves_alone(assert_no_failure).await;
}
