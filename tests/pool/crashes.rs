//! Workers and supervisors that die.

use std::time::{Duration, Instant};

use handover_load::process::{is_alive, signal, wait_gone};
use handover_load::{Kind, Load, Mix, Signal};

use crate::rig::{Pool, QUICK};
use crate::support::{
    DEADLINE, assert_no_failure, assert_only_cut_off, connections, freeze, get, more_answers,
};

/// How long workers are killed.
const KILLING: Duration = Duration::from_secs(10);
const EVERY: Duration = Duration::from_millis(200);
/// Less than a worker lives on average.
const SLOW_FOR: Duration = Duration::from_millis(300);

#[tokio::test]
async fn workers_killed_five_times_a_second_cost_what_they_had_in_flight_and_nobody_is_refused() {
    let flags = ["--backoff-max", "200ms"];
    let pool = Pool::start(4, &[&QUICK[..], &flags].concat()).await;
    // Slow ones are on some worker nearly all the time, and most of them on others than the one that is killed.
    let mix = Mix::none().with(Kind::Fresh, 4).with(Kind::KeepAlive, 4);
    let mix = Mix {
        slow_for: SLOW_FOR,
        ..mix.with(Kind::Slow, 12)
    };
    let load = Load::start(pool.web, mix);
    load.until_answers(1, 100, DEADLINE).await.unwrap();
    let (begun, mut killed, mut held) = (Instant::now(), 0_u64, 0_u64);
    let mut ticks = tokio::time::interval(EVERY);
    while begun.elapsed() < KILLING {
        ticks.tick().await;
        let pids = pool.pids().await;
        if let Some(pid) = pids.get(random(killed) % pids.len().max(1)) {
            // It accepts nobody more, so what it has is all that it can take along.
            freeze(*pid).await;
            held += connections(*pid) as u64;
            signal(*pid, Signal::KILL).unwrap();
            wait_gone(*pid, DEADLINE).await.unwrap();
            killed += 1;
        }
    }
    pool.until_rests_on(1, 4).await;
    more_answers(&load, 1).await;
    let report = load.stop().await;
    println!("{killed} killed, which had {held} connections\n{report}");
    assert!(killed > 10, "{killed}");
    assert_only_cut_off(&report);
    assert!(report.failures() <= held, "{held} held: {report}");
    // Twenty clients are on four workers.
    assert!(held < 10 * killed, "{held} held by {killed}");
    let log = pool.server.log();
    let ended = log.lines().filter(|line| line.contains(") ended"));
    assert_eq!(ended.count() as u64, killed, "{log}");
}

/// The same numbers in each run (SplitMix64).
fn random(step: u64) -> usize {
    let mut mixed = (step + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) as usize
}

#[tokio::test]
async fn a_crash_loop_is_told_and_leaves_the_others_alone() {
    let pool = Pool::start(3, &["--backoff-max", "50ms"]).await;
    let before = pool.pids().await;
    // Whoever is started from now on crashes.
    std::fs::write(pool.file("plan"), "after-start=exit:9").unwrap();
    signal(before[0], Signal::KILL).unwrap();
    pool.line("a crash loop: workers have crashed 5 times in a row")
        .await;
    let status = pool.run(&["status"]).await;
    status.assert_says(&["2 of 3 ready", "degraded"]);
    for pid in &before[1..] {
        assert!(is_alive(*pid));
    }
    assert_eq!(get(pool.web, "/").await.unwrap().text, "hello\n");
}

#[tokio::test]
async fn workers_of_a_killed_supervisor_serve_on_and_leave_when_told() {
    let pool = Pool::start(2, &QUICK).await;
    let mix = Mix::none().with(Kind::Fresh, 4).with(Kind::KeepAlive, 4);
    let load = Load::start(pool.web, mix);
    load.until_answers(1, 50, DEADLINE).await.unwrap();
    let workers = pool.pids().await;
    pool.signal(Signal::KILL);
    wait_gone(pool.server.pid(), DEADLINE).await.unwrap();
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
    for pid in workers {
        signal(pid, Signal::TERM).unwrap();
        wait_gone(pid, DEADLINE).await.unwrap();
    }
}

#[tokio::test]
async fn a_worker_that_does_not_leave_is_killed_at_its_deadline() {
    let pool = Pool::start(1, &[&QUICK[..], &["--stop-within", "300ms"]].concat()).await;
    // It listens to the signal, and one that is stopped hears of nothing.
    let stubborn = pool.pids().await[0];
    signal(stubborn, Signal::STOP).unwrap();
    pool.run(&["upgrade"]).await.assert_code(0);
    pool.line("killed: it had not left in time").await;
    wait_gone(stubborn, DEADLINE).await.unwrap();
}

#[tokio::test]
async fn a_worker_does_not_upgrade_itself() {
    let pool = Pool::start(2, &QUICK).await;
    let before = pool.pids().await;
    signal(before[0], Signal::HUP).unwrap();
    for _ in 0..20 {
        get(pool.web, "/").await.unwrap();
    }
    assert_eq!(pool.pids().await, before);
    assert_eq!(pool.server.live().len(), 3);
}
