//! Bad releases: halted, undone, and told by exit code 3.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use handover::control::PoolState;
use handover_load::process::signal;
use handover_load::{Failure, Kind, Load, Mix, Signal};
use tokio::time::timeout;

use crate::rig::{Pool, QUICK};
use crate::support::{
    DEADLINE, assert_lost_only_what_was_in_flight, assert_no_failure, get, more_answers,
};

fn mix() -> Mix {
    Mix::none().with(Kind::Fresh, 8).with(Kind::KeepAlive, 4)
}

#[tokio::test]
async fn a_release_whose_second_worker_crashes_is_halted_and_undone_and_costs_what_that_one_had() {
    let pool = Pool::start(4, &["--min-healthy", "300ms"]).await;
    let load = Load::start(pool.web, mix());
    load.until_answers(1, 100, DEADLINE).await.unwrap();
    pool.release("mkdir first 2>/dev/null || { echo after-ready=abort-after:100 >bad; export TESTD_PLAN=bad; }");
    let (code, reply) = pool.json(&["upgrade"]).await;
    assert_eq!(code, 3, "{reply}");
    let upgrade = &reply["upgrade"];
    assert_eq!(upgrade["verdict"], "rolled_back", "{reply}");
    let reason = upgrade["reason"].as_str().unwrap();
    assert!(reason.contains("SIGABRT"), "{reason}");
    pool.until_rests_on(1, 4).await;
    let log = pool.server.log();
    let tried = log
        .lines()
        .filter(|line| line.contains("(release 2, ") && line.contains("started"));
    assert_eq!(tried.count(), 2, "a candidate was started again");
    more_answers(&load, 1).await;
    assert_lost_only_what_was_in_flight(&load.stop().await);
}

#[tokio::test]
async fn a_release_that_is_never_ready_is_undone_at_its_deadline_and_nobody_notices() {
    let flags = ["--min-healthy", "50ms", "--healthy-deadline", "1s"];
    let pool = Pool::start(4, &flags).await;
    let load = Load::start(pool.web, mix());
    load.until_answers(1, 100, DEADLINE).await.unwrap();
    pool.release("echo before-ready=hang >bad; export TESTD_PLAN=bad");
    let (code, reply) = pool.json(&["upgrade"]).await;
    assert_eq!(code, 3, "{reply}");
    let reason = reply["upgrade"]["reason"].as_str().unwrap();
    assert!(reason.contains("was not ready within 1s"), "{reason}");
    pool.until_rests_on(1, 4).await;
    assert_eq!(pool.fewest_ready(), 4);
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
}

/// Says how often it has asked.
async fn ask_until(enough: Arc<AtomicBool>, web: SocketAddr) -> u64 {
    let mut count = 0;
    while !enough.load(Ordering::Relaxed) {
        let asked = (0..8).map(|_| get(web, "/work"));
        // An answer with 500 is an error here, and is what the guard is to see.
        count += futures_util::future::join_all(asked).await.len() as u64;
    }
    count
}

/// The supervisor has heard of this many requests, of all workers together.
async fn until_counted(pool: &Pool, requests: u64) {
    let counted = async {
        let all = |state: PoolState| -> u64 {
            let workers = state.workers.iter();
            workers.filter_map(|worker| worker.requests).sum()
        };
        while all(pool.pool().await) != requests {}
    };
    timeout(DEADLINE, counted).await.unwrap();
}

#[tokio::test]
async fn a_release_that_answers_500_is_undone_by_the_guard() {
    let pool = Pool::start(4, &["--min-healthy", "15s", "--healthy-deadline", "20s"]).await;
    // Slow ones are under way at any time, and lost with whoever ends too early.
    let mix = Mix {
        slow_for: Duration::from_millis(300),
        ..mix().with(Kind::Slow, 8)
    };
    let load = Load::start(pool.web, mix);
    load.until_answers(1, 100, DEADLINE).await.unwrap();
    pool.release("echo errors=100 >bad; export TESTD_PLAN=bad");
    let (code, reply) = pool.json(&["upgrade"]).await;
    assert_eq!(code, 3, "{reply}");
    let reason = reply["upgrade"]["reason"].as_str().unwrap();
    assert!(reason.contains("errors"), "{reason}");
    pool.until_rests_on(1, 4).await;
    more_answers(&load, 1).await;
    let report = load.stop().await;
    assert!(report.failures() > 0, "{report}");
    for kind in &report.kinds {
        // What the guard has seen, and nothing else.
        let ill = report.failed(kind.kind, Failure::Status5xx);
        assert_eq!(kind.failed(), ill, "{report}");
    }
}

#[tokio::test]
async fn a_release_that_answers_slowly_is_undone_by_the_guard_and_explained_in_numbers() {
    let pool = Pool::start(4, &["--min-healthy", "15s", "--healthy-deadline", "20s"]).await;
    let load = Load::start(pool.web, mix());
    pool.until_all_answered(ENOUGH).await;
    pool.release("echo slow=30:600 >bad; export TESTD_PLAN=bad");
    let (code, reply) = pool.json(&["upgrade"]).await;
    assert_eq!(code, 3, "{reply}");
    let upgrade = &reply["upgrade"];
    let reason = upgrade["reason"].as_str().unwrap();
    assert!(reason.starts_with("slow: candidate "), "{reason}");
    let slow = |side: &str| upgrade[side]["slow"].as_u64().unwrap();
    let requests = |side: &str| upgrade[side]["requests"].as_u64().unwrap();
    let rate = |side: &str| slow(side) as f64 / requests(side) as f64;
    assert!(rate("candidate") > 3.0 * rate("stable"), "{upgrade}");
    let explained = pool.run(&["explain"]).await;
    explained.assert_says(&[
        "the guard \"slow\" found the candidate worse",
        "guard       errors fine: candidate 0/",
        "guard       slow failed: candidate ",
        "(undone at 200)",
        &format!("candidate   {} requests", requests("candidate")),
        &format!("stable      {} requests", requests("stable")),
    ]);
    pool.until_rests_on(1, 4).await;
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
}

#[tokio::test]
async fn a_release_that_is_as_good_is_not_undone_by_guards_that_know_what_is_slow() {
    let pool = Pool::start(4, &["--min-healthy", "1s"]).await;
    // What is slow is so for its clients' sake, and no moment of the machine's.
    let load = Load::start(pool.web, mix().with(Kind::Slow, 4));
    pool.until_all_answered(ENOUGH).await;
    let (code, reply) = pool.json(&["upgrade"]).await;
    assert_eq!(code, 0, "{reply}");
    let judged = reply["upgrade"]["candidate"]["requests"].as_u64().unwrap();
    assert!(judged > 100, "{reply}");
    // All of them have been told.
    let workers = pool.pool().await.workers;
    assert!(
        workers.iter().all(|worker| worker.slow.is_some()),
        "{workers:?}"
    );
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
}

/// So much that each worker knows its own 99th percentile.
const ENOUGH: u64 = 200;

/// Three workers, one of which does not leave when it is told to; and as long as it is there, no other is told to.
async fn stuck() -> (Pool, u32) {
    let flags = "--min-healthy 50ms --healthy-deadline 4s --progress-deadline 5s --draining-max 1";
    let pool = Pool::start(3, &flags.split(' ').collect::<Vec<_>>()).await;
    // The youngest is the first to leave.
    let last = pool.pids().await[2];
    signal(last, Signal::STOP).unwrap();
    (pool, last)
}

#[tokio::test]
async fn an_update_that_gets_no_further_is_undone_at_its_progress_deadline() {
    let (pool, stuck) = stuck().await;
    let thawed = async {
        pool.line("no further worker was healthy within 5s").await;
        signal(stuck, Signal::CONT).unwrap();
    };
    let ((code, reply), ()) = tokio::join!(pool.json(&["upgrade"]), thawed);
    assert_eq!(
        (code, &reply["upgrade"]["verdict"]),
        (3, &"rolled_back".into()),
        "{reply}"
    );
    pool.until_rests_on(1, 3).await;
}

#[tokio::test]
async fn an_update_that_cannot_be_undone_in_time_is_degraded_with_exit_code_4_and_undone_later() {
    let (pool, stuck) = stuck().await;
    let (code, reply) = pool.json(&["upgrade"]).await;
    assert_eq!(
        (code, &reply["upgrade"]["verdict"]),
        (4, &"degraded".into()),
        "{reply}"
    );
    let reason = reply["upgrade"]["reason"].as_str().unwrap();
    for part in [
        "no further worker was healthy within 5s",
        "could not be undone in time",
    ] {
        assert!(reason.contains(part), "{reason}");
    }
    signal(stuck, Signal::CONT).unwrap();
    pool.until_rests_on(1, 3).await;
}

#[tokio::test]
async fn what_ran_before_comes_back_though_its_file_is_another_by_now() {
    let pool = Pool::start(2, &QUICK).await;
    pool.release("mkdir first 2>/dev/null || exit 7");
    let (code, reply) = pool.json(&["upgrade"]).await;
    assert_eq!(
        (code, &reply["upgrade"]["verdict"]),
        (3, &"rolled_back".into()),
        "{reply}"
    );
    pool.until_rests_on(1, 2).await;
    assert_eq!(get(pool.web, "/").await.unwrap().text, "hello\n");
}

#[tokio::test]
async fn a_mix_that_is_to_stay_waits_for_an_operator_with_exit_code_6() {
    let flags = ["--on-failure", "halt"];
    let pool = Pool::start(2, &[&QUICK[..], &flags].concat()).await;
    pool.release("mkdir first 2>/dev/null || exit 7");
    let (code, reply) = pool.json(&["upgrade"]).await;
    assert_eq!((code, &reply["reply"]), (6, &"held".into()), "{reply}");
    let releases: Vec<u64> = pool
        .pool()
        .await
        .workers
        .iter()
        .map(|it| it.release)
        .collect();
    assert!(
        releases.contains(&1) && releases.contains(&2),
        "{releases:?}"
    );
    pool.run(&["abort"]).await.assert_code(0);
    pool.until_rests_on(1, 2).await;
}

#[tokio::test]
async fn an_update_that_the_guard_has_halted_goes_on_once_it_is_resumed() {
    let flags = ["--min-healthy", "3s", "--on-failure", "halt"];
    let pool = Pool::start(2, &flags).await;
    let enough = Arc::new(AtomicBool::new(false));
    let asking = tokio::spawn(ask_until(Arc::clone(&enough), pool.web));
    pool.release("echo ill=yes >bad; export TESTD_PLAN=bad");
    let (code, reply) = pool.json(&["upgrade"]).await;
    enough.store(true, Ordering::Relaxed);
    until_counted(&pool, asking.await.unwrap()).await;
    assert_eq!((code, &reply["reply"]), (6, &"held".into()), "{reply}");
    let reason = reply["reason"].as_str().unwrap();
    assert!(reason.contains("errors"), "{reason}");
    // Nobody asks any more, so nothing speaks against it but what did before.
    pool.run(&["resume"]).await.assert_code(0);
    pool.until_rests_on(2, 2).await;
}

#[tokio::test]
async fn a_program_that_is_gone_is_refused_and_changes_nothing() {
    let pool = Pool::start(2, &QUICK).await;
    std::fs::remove_file(pool.file("app")).unwrap();
    let before = pool.pids().await;
    let ran = pool.run(&["upgrade"]).await;
    ran.assert_code(2);
    ran.assert_says(&["No such file"]);
    assert_eq!(pool.pids().await, before);
}
