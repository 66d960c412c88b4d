//! A candidate is reached by those who check it before anybody else reaches it.

use std::fs;
use std::path::PathBuf;

use handover_load::Signal;

use crate::support::{
    Service, Setup, answer, assert_no_failure, eventually, get_unix, gone, more_answers, signal,
};

fn setup() -> Setup {
    let setup = Setup::new();
    let directory = setup.room.path().join("preview");
    fs::create_dir(&directory).unwrap();
    setup.with("TESTD_PREVIEW", directory.display())
}

fn endpoint(service: &Service, generation: u64) -> PathBuf {
    let name = format!("preview-{generation}-web.sock");
    service.room.path().join("preview").join(name)
}

async fn nothing_left(service: &Service) {
    let directory = service.room.path().join("preview");
    let left = || fs::read_dir(&directory).unwrap().count();
    eventually("private endpoints", left, 0).await;
}

#[tokio::test]
async fn a_candidate_in_preview_answers_there_while_the_public_address_is_the_incumbents() {
    let service = setup().standby().start().await;
    let load = service.load(1).await;
    signal(service.pid(), Signal::HUP);
    service.line("phase 2 standby").await;
    let path = endpoint(&service, 2);
    for _ in 0..5 {
        let there = get_unix(path.to_str().unwrap()).await.unwrap();
        assert_eq!(there, answer(2, "hello\n"));
        service.assert_serving(1).await;
    }
    service.get("/flip").await;
    service.line("event 1 committed 2 ").await;
    more_answers(&load, 2).await;
    assert_no_failure(&load.stop().await);
    nothing_left(&service).await;
}

#[tokio::test]
async fn a_candidate_that_is_given_up_leaves_no_endpoint_however_it_ends() {
    let service = setup().standby().start().await;
    for generation in [2, 3] {
        signal(service.pid(), Signal::HUP);
        service.line(&format!("phase {generation} standby")).await;
        let path = endpoint(&service, generation);
        assert!(path.exists());
        let live = service.server.live();
        let candidate = live.into_iter().find(|pid| *pid != service.pid()).unwrap();
        match generation {
            2 => signal(candidate, Signal::KILL),
            _ => signal(service.pid(), Signal::USR2),
        }
        service
            .line(&format!("event 1 aborted {generation} "))
            .await;
        gone(candidate).await;
        nothing_left(&service).await;
    }
}

#[tokio::test]
async fn a_check_that_fails_aborts_before_anybody_notices() {
    let service = setup().with("TESTD_CHECK_HTTP", "/nope").start().await;
    let load = service.load(1).await;
    signal(service.pid(), Signal::HUP);
    let verdict = service.line("event 1 aborted 2 ").await;
    let reason = "GET /nope of \"web\": it was answered with 404, at the last of 3 tries";
    assert!(verdict.contains(reason), "{verdict}");
    more_answers(&load, 1).await;
    let report = load.stop().await;
    assert_no_failure(&report);
    assert!(report.generation(2).is_none(), "{report}");
    nothing_left(&service).await;
}

#[tokio::test]
async fn checks_that_pass_let_the_candidate_take_over() {
    let service = setup()
        .with("TESTD_CHECK_HTTP", "/readyz")
        .with(
            "TESTD_CHECK_COMMAND",
            "test -S \"$HANDOVER_PREVIEW_WEB\" && test \"$HANDOVER_GENERATION\" = 2",
        )
        .start()
        .await;
    let load = service.load(1).await;
    service.upgrade(1, 2).await;
    more_answers(&load, 2).await;
    assert_no_failure(&load.stop().await);
}

#[tokio::test]
async fn a_check_that_hangs_is_killed_with_what_it_started_and_aborts() {
    let setup = setup().with("TESTD_CHECKS_MS", 500);
    let pids = setup.room.path().join("pids");
    let script = format!("sleep 1000 & echo $$ $! > {}; wait", pids.display());
    let service = setup.with("TESTD_CHECK_COMMAND", script).start().await;
    signal(service.pid(), Signal::HUP);
    let verdict = service.line("event 1 aborted 2 ").await;
    assert!(verdict.contains("command sh: it was not done"), "{verdict}");
    for pid in fs::read_to_string(pids).unwrap().split_whitespace() {
        gone(pid.parse().unwrap()).await;
    }
    service.assert_serving(1).await;
}
