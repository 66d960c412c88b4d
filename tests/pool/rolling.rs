//! Releases that are as good as the one before.

use handover_load::{Kind, Load, Mix, Signal};

use crate::rig::{Pool, QUICK, mix};
use crate::support::{DEADLINE, assert_no_failure, free_address, more_answers, testd};

const ROUNDS: u64 = 50;
const ROUNDS_OF_STATE: usize = 5;

#[tokio::test]
async fn fifty_rolling_updates_under_mixed_load_lose_nothing_and_four_are_always_ready() {
    let pool = Pool::start(4, &QUICK).await;
    let load = Load::start(pool.web, mix());
    load.until_answers(1, 200, DEADLINE).await.unwrap();
    let lookout = pool.lookout().await;
    for to in 2..2 + ROUNDS {
        let (code, reply) = pool.json(&["upgrade"]).await;
        assert_eq!(code, 0, "{reply}");
        assert_eq!(reply["upgrade"]["generation"], to, "{reply}");
    }
    assert_eq!(pool.fewest_ready(), 4);
    let (looks, fewest) = lookout.fewest();
    println!("{looks} looks, {fewest} accept at least");
    assert!(looks as u64 > ROUNDS && fewest >= 4, "{looks}, {fewest}");
    more_answers(&load, 1).await;
    let report = load.stop().await;
    println!("{report}");
    assert_no_failure(&report);
}

#[tokio::test]
async fn with_one_unavailable_three_are_always_ready_and_never_are_there_five() {
    let flags = ["--surge", "0", "--unavailable", "1"];
    let pool = Pool::start(4, &[&QUICK[..], &flags].concat()).await;
    let load = Load::start(pool.web, mix());
    load.until_answers(1, 200, DEADLINE).await.unwrap();
    let lookout = pool.lookout().await;
    for _ in 0..ROUNDS {
        let (code, reply) = pool.json(&["upgrade"]).await;
        assert_eq!(code, 0, "{reply}");
    }
    assert_eq!(pool.fewest_ready(), 3);
    let (looks, fewest) = lookout.fewest();
    assert!(looks > 5 && fewest == 3, "{looks}, {fewest}");
    assert!(!pool.server.log().contains("; 5 of 4 ready"));
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
}

#[tokio::test]
async fn a_signal_updates_and_a_stop_under_load_cuts_nobody_off() {
    let mut pool = Pool::start(3, &QUICK).await;
    let mix = Mix::none().with(Kind::Slow, 8);
    let load = Load::start(pool.web, mix);
    load.until_answers(1, 20, DEADLINE).await.unwrap();
    pool.signal(Signal::HUP);
    pool.line("upgrade to 2 committed").await;
    pool.signal(Signal::TERM);
    let status = pool.server.exit_status(DEADLINE).await.unwrap();
    assert!(status.success(), "{status}");
    pool.server.wait_all_gone(DEADLINE).await.unwrap();
    let report = load.stop().await;
    let slow = report.kind(Kind::Slow).unwrap();
    // Who comes after the stop is told so at once; who was let in is answered.
    let refused = report.failed(Kind::Slow, handover_load::Failure::ConnectRefused);
    assert_eq!(slow.failed(), refused, "{report}");
}

#[tokio::test]
async fn the_number_of_workers_changes_at_run_time() {
    let pool = Pool::start(2, &QUICK).await;
    let load = Load::start(pool.web, mix());
    load.until_answers(1, 100, DEADLINE).await.unwrap();
    pool.run(&["scale", "5"]).await.assert_code(0);
    pool.until_rests_on(1, 5).await;
    pool.run(&["scale", "1"]).await.assert_code(0);
    pool.until_rests_on(1, 1).await;
    pool.run(&["scale", "0"]).await.assert_code(2);
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
}

#[tokio::test]
async fn a_paused_update_stays_where_it_is_until_it_is_resumed_and_an_aborted_one_goes_back() {
    let pool = Pool::start(3, &["--min-healthy", "300ms"]).await;
    pool.run(&["upgrade", "--no-wait"]).await.assert_code(0);
    pool.run(&["pause"]).await.assert_code(0);
    pool.run(&["pause"]).await.assert_code(2);
    let held = pool.run(&["status"]).await;
    held.assert_says(&["paused to release 2", "worker 1"]);
    pool.run(&["upgrade"]).await.assert_code(2);
    pool.run(&["resume"]).await.assert_code(0);
    pool.line("upgrade to 2 committed").await;

    pool.run(&["upgrade", "--no-wait"]).await.assert_code(0);
    pool.line("(release 3, ").await;
    pool.run(&["abort", "--reason", "no"]).await.assert_code(0);
    pool.until_rests_on(2, 3).await;
    let (_, history) = pool.json(&["history"]).await;
    assert_eq!(history["upgrades"][1]["verdict"], "aborted", "{history}");
    assert_eq!(history["upgrades"][1]["reason"], "by an operator: no");
}

#[tokio::test]
async fn what_a_worker_has_kept_is_found_by_those_that_come_after_it() {
    let pool = Pool::start(1, &QUICK).await;
    pool.release("export TESTD_KEEP=yes");
    pool.run(&["upgrade"]).await.assert_code(0);
    pool.line("kept by 1: Ok(())").await;
    pool.run(&["scale", "2"]).await.assert_code(0);
    pool.line("found what 1 has kept").await;
}

#[tokio::test]
async fn workers_that_keep_the_same_at_the_same_time_all_have_room_for_it() {
    let (room, web) = (tempfile::tempdir().unwrap(), free_address());
    let (testd, workers) = (testd(), 4);
    let script = format!("export TESTD_KEEP=yes; exec {}", testd.display());
    let program = ["/bin/sh", "-c", &script];
    let flags = [&QUICK[..], &["--surge", "4"]].concat();
    let pool = Pool::of(room, web, workers, &flags, &program);
    pool.until_ready(workers).await;
    for round in 1..=ROUNDS_OF_STATE {
        // By those that keep, and not only by one of them.
        let said = pool
            .server
            .wait_for_lines("kept by 1: ", round * workers, DEADLINE);
        let said = said.await.unwrap();
        assert!(said.iter().all(|it| it.ends_with("Ok(())")), "{said:?}");
        if round < ROUNDS_OF_STATE {
            pool.run(&["upgrade"]).await.assert_code(0);
        }
    }
}
