//! What a supervisor costs.

use std::fs;
use std::time::Duration;

use crate::logs::{PREFIXED, relay};
use crate::rig::{Pool, QUICK};

/// Over which no work may be measured.
const IDLE: Duration = Duration::from_secs(2);
/// A debug build's text is several times as long, and the kernel counts what was read of it.
const RESIDENT_MAX_KIB: u64 = if cfg!(debug_assertions) {
    16 * 1024
} else {
    8 * 1024
};

/// After which everything that is kept of past updates is as large as it gets.
const UPDATES_WARM: u64 = 40;
const UPDATES_MORE: u64 = 40;
/// What the allocator's moods take; two kilobytes for each update would be more.
const GROWTH_MAX_KIB: u64 = 64;

#[tokio::test]
async fn a_supervisor_is_small_has_one_thread_and_does_nothing_while_nothing_happens() {
    let pool = Pool::start(4, &QUICK).await;
    // The last of the start: candidates' trials and crash counts are forgotten once.
    pool.run(&["status"]).await.assert_code(0);
    rests(&[pool.server.pid()]).await;
}

#[tokio::test]
async fn a_relay_of_logs_is_as_small_and_makes_the_supervisor_no_larger() {
    let pool = Pool::start(4, &[&QUICK[..], &PREFIXED].concat()).await;
    pool.run(&["status"]).await.assert_code(0);
    let supervisor = pool.server.pid();
    rests(&[supervisor, relay(supervisor)]).await;
}

async fn rests(pids: &[u32]) {
    pids.iter().for_each(|pid| is_small(*pid));
    let before: Vec<u64> = pids.iter().map(|pid| ticks(*pid)).collect();
    tokio::time::sleep(IDLE).await;
    let after: Vec<u64> = pids.iter().map(|pid| ticks(*pid)).collect();
    assert_eq!(after, before, "it has worked");
}

fn is_small(pid: u32) {
    let resident = number(pid, "VmRSS:");
    println!(
        "{resident} KiB resident, {} KiB of its own",
        number(pid, "RssAnon:")
    );
    assert!(resident <= RESIDENT_MAX_KIB, "{resident} KiB");
    assert_eq!(number(pid, "Threads:"), 1);
}

#[tokio::test]
async fn a_supervisor_does_not_grow_from_update_to_update() {
    let pool = Pool::start(1, &QUICK).await;
    let pid = pool.server.pid();
    let mut own = Vec::new();
    for updates in [UPDATES_WARM, UPDATES_MORE] {
        for _ in 0..updates {
            pool.run(&["upgrade"]).await.assert_code(0);
        }
        own.push(number(pid, "RssAnon:"));
    }
    let resident = number(pid, "VmRSS:");
    println!("{own:?} KiB of its own, {resident} KiB resident");
    assert!(own[1] <= own[0] + GROWTH_MAX_KIB, "{own:?} KiB");
    assert!(resident <= RESIDENT_MAX_KIB, "{resident} KiB");
}

fn number(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What it has run for, in user and system mode, in hundredths of a second (proc_pid_stat(5)).
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = fields.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
