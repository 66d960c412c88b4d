//! Workers with sockets of their own on one port.

use std::collections::BTreeSet;

use handover_load::process::signal;
use handover_load::{Kind, Load, Mix, Signal};

use crate::rig::{Pool, QUICK};
use crate::support::{DEADLINE, assert_no_failure, assert_only_cut_off, get, more_answers};

fn mix() -> Mix {
    Mix::none()
        .with(Kind::Fresh, 12)
        .with(Kind::KeepAlive, 4)
        .with(Kind::Slow, 4)
}

#[tokio::test]
async fn ten_rolling_updates_of_workers_with_sockets_of_their_own_lose_nothing() {
    let pool = Pool::start(4, &[&QUICK[..], &["--reuseport"]].concat()).await;
    let load = Load::start(pool.web, mix());
    load.until_answers(1, 200, DEADLINE).await.unwrap();
    for to in 2..12 {
        let (code, reply) = pool.json(&["upgrade"]).await;
        assert_eq!(code, 0, "{reply}");
        pool.until_rests_on(to, 4).await;
        pool.run(&["upgrade", "--supervisor"]).await.assert_code(0);
    }
    assert_eq!(pool.fewest_ready(), 4);
    more_answers(&load, 1).await;
    let report = load.stop().await;
    println!("{report}");
    assert_no_failure(&report);
    let inodes = listening(&pool).await;
    assert_eq!(inodes.len(), 4, "{inodes:?}");
}

#[tokio::test]
async fn who_waits_for_a_worker_that_is_killed_is_served_by_the_next_in_its_slot() {
    let flags = ["--reuseport", "--backoff-max", "50ms"];
    let pool = Pool::start(4, &[&QUICK[..], &flags].concat()).await;
    let load = Load::start(pool.web, mix());
    load.until_answers(1, 200, DEADLINE).await.unwrap();
    for round in 0..12 {
        let pids = pool.pids().await;
        signal(pids[round % pids.len()], Signal::KILL).unwrap();
        pool.until_rests_on(1, 4).await;
        get(pool.web, "/").await.unwrap();
    }
    more_answers(&load, 1).await;
    let report = load.stop().await;
    println!("{report}");
    assert_only_cut_off(&report);
    assert!(report.failures() <= 20 * 12, "{report}");
}

/// The sockets on descriptor 3 of all workers.
async fn listening(pool: &Pool) -> BTreeSet<String> {
    let pids = pool.pids().await;
    let of = |pid: &u32| std::fs::read_link(format!("/proc/{pid}/fd/3")).unwrap();
    pids.iter()
        .map(|pid| of(pid).display().to_string())
        .collect()
}
