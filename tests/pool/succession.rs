//! Supervisors that become their next release, and next releases that are none.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Instant;

use handover_load::process::eventually;
use handover_load::{Kind, Load, Mix, Signal};
use tokio::time::timeout;

use crate::rig::{ACCEPTS, Pool, QUICK, SUPERVISOR, mix};
use crate::support::{DEADLINE, assert_no_failure, free_address, get, more_answers};

const ROUNDS: u64 = 20;

/// What the supervisor is started as from now on, put in its place by a rename.
fn release(pool: &Pool, draft: impl FnOnce(&Path)) {
    let path = pool.file("draft-supervisor");
    draft(&path);
    fs::rename(path, pool.file(SUPERVISOR)).unwrap();
}

fn script(pool: &Pool, text: &str) {
    release(pool, |path| {
        let program = env!("CARGO_BIN_EXE_handover");
        let text = format!("#!/bin/sh\nprogram={program}\n{text}\n");
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    });
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// No more descriptors than before, but for that of a client who is just leaving.
async fn holds(pid: u32, before: usize) {
    let holds = || descriptors(pid) <= before + 1;
    eventually("descriptors as before", holds, true, DEADLINE)
        .await
        .unwrap();
}

/// Whether the process has become another program by now.
fn is_next(pid: u32) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mut variables = environment.split(|byte| *byte == 0);
    variables.any(|variable| variable.starts_with(b"HANDOVER_SUPERVISOR=next:"))
}

fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let children = children.split_whitespace();
    children.map(|it| it.parse().unwrap()).collect()
}

/// Children that have ended and that nobody has collected (proc_pid_stat(5)).
fn zombies(pid: u32) -> Vec<u32> {
    let is_zombie = |child: &u32| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('Z'))
    };
    children(pid).into_iter().filter(is_zombie).collect()
}

async fn until_supervisor(pool: &Pool, number: u64) {
    // A status that was asked of a program that is no more has no answer.
    let client = handover::control::Client::new(pool.file("control.sock"));
    let is_there = async {
        loop {
            let reply = client.ask(&handover::control::Request::Status).await;
            if let Ok(handover::control::Reply::Status(status)) = reply
                && status.pool.unwrap().supervisor == number
            {
                return;
            }
        }
    };
    timeout(DEADLINE, is_there).await.unwrap();
}

#[tokio::test]
async fn twenty_upgrades_of_the_supervisor_under_load_keep_pid_workers_and_descriptors_and_lose_nothing()
 {
    let pool = Pool::start(4, &QUICK).await;
    let load = Load::start(pool.web, mix());
    load.until_answers(1, 200, DEADLINE).await.unwrap();
    let (supervisor, workers) = (pool.server.pid(), pool.pids().await);
    let open = descriptors(supervisor);
    for round in 0..ROUNDS {
        // By turns what ps(1) shows as the program itself and as an interpreter's script.
        match round % 2 {
            0 => script(&pool, "exec \"$program\" \"$@\""),
            _ => release(&pool, |path| {
                symlink(env!("CARGO_BIN_EXE_handover"), path).unwrap();
            }),
        }
        let ran = pool.run(&["upgrade", "--supervisor"]).await;
        ran.assert_code(0);
        assert_eq!(pool.pool().await.supervisor, round + 2);
    }
    assert_eq!(pool.status().await.pid, supervisor);
    assert_eq!(pool.pids().await, workers);
    holds(supervisor, open).await;
    let name = fs::read_to_string(format!("/proc/{supervisor}/comm")).unwrap();
    assert_eq!(name.trim(), SUPERVISOR);
    more_answers(&load, 1).await;
    let report = load.stop().await;
    println!("{report}");
    assert_no_failure(&report);
    // It still is a supervisor.
    let (code, reply) = pool.json(&["upgrade"]).await;
    assert_eq!(code, 0, "{reply}");
    pool.until_rests_on(2, 4).await;
    pool.run(&["stop"]).await.assert_code(0);
}

#[tokio::test]
async fn a_next_supervisor_that_cannot_take_over_changes_nothing_and_says_why() {
    let flags = ["--trial-within", "500ms"];
    let pool = Pool::start(2, &[&QUICK[..], &flags].concat()).await;
    let load = Load::start(pool.web, Mix::none().with(Kind::Fresh, 4));
    load.until_answers(1, 20, DEADLINE).await.unwrap();
    let (workers, open) = (pool.pids().await, descriptors(pool.server.pid()));
    type Draft = fn(&Path);
    let plain: Draft = |path| fs::write(path, "#!/bin/sh\n").unwrap();
    let garbage: Draft = |path| {
        fs::write(path, "no program").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let directory: Draft = |path| fs::create_dir(path).unwrap();
    let wrong: Draft = |path| symlink("/bin/true", path).unwrap();
    let dangling: Draft = |path| symlink("/no/such/program", path).unwrap();
    for (draft, why) in [
        (dangling, "No such file"),
        (plain, "Permission denied"),
        (garbage, "Exec format error"),
        (wrong, "without a word: exit status: 0"),
        (directory, "Permission denied"),
    ] {
        fs::remove_file(pool.file(SUPERVISOR)).unwrap();
        release(&pool, draft);
        refused(&pool, why).await;
    }
    fs::remove_dir(pool.file(SUPERVISOR)).unwrap();
    for (text, why) in [
        ("exit 9", "exit status: 9"),
        ("kill -SEGV $$", "SIGSEGV"),
        ("exec sleep 60", "said nothing within 500ms"),
        ("exec \"$program\" run --nonsense", "exit status: 1"),
        // It has another pool to keep, which cannot be.
        (
            "exec \"$program\" run --surge 0 --unavailable 0 -- true",
            "exit status",
        ),
    ] {
        script(&pool, text);
        refused(&pool, why).await;
    }
    assert_eq!(pool.pids().await, workers);
    holds(pool.server.pid(), open).await;
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
}

async fn refused(pool: &Pool, why: &str) {
    let ran = pool.run(&["upgrade", "--supervisor"]).await;
    ran.assert_code(2);
    ran.assert_says(&["the supervisor stays as it is", why]);
    assert_eq!(pool.pool().await.supervisor, 1);
    assert!(zombies(pool.server.pid()).is_empty());
}

#[tokio::test]
async fn a_stop_ends_a_trial_that_hangs() {
    let mut pool = Pool::start(1, &[&QUICK[..], &["--trial-within", "1h"]].concat()).await;
    script(&pool, "echo on trial; exec sleep 3600");
    pool.signal(Signal::USR2);
    pool.line("on trial").await;
    pool.run(&["stop"]).await.assert_code(0);
    let ended = pool.server.exit_status(DEADLINE).await.unwrap();
    assert_eq!(ended.code(), Some(0), "{}", pool.server.log());
    assert!(pool.server.live().is_empty());
}

#[tokio::test]
async fn a_next_supervisor_that_would_give_up_sockets_of_workers_stays_outside() {
    let pool = Pool::start(3, &[&QUICK[..], &["--reuseport"]].concat()).await;
    let load = Load::start(pool.web, Mix::none().with(Kind::Fresh, 4));
    load.until_answers(1, 20, DEADLINE).await.unwrap();
    for change in ["s/--workers 3/--workers 1/", "s/--reuseport//"] {
        let text = format!("set -- $(echo \"$@\" | sed '{change}')\nexec \"$program\" \"$@\"");
        script(&pool, &text);
        refused(&pool, "exit status: 1").await;
    }
    pool.line("there are 4 for each address, and would be 2")
        .await;
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
}

#[tokio::test]
async fn a_next_supervisor_that_passes_its_trial_and_fails_then_becomes_the_one_before_again() {
    let pool = Pool::start(2, &QUICK).await;
    let load = Load::start(pool.web, mix());
    load.until_answers(1, 50, DEADLINE).await.unwrap();
    let (supervisor, workers) = (pool.server.pid(), pool.pids().await);
    script(
        &pool,
        "case $HANDOVER_SUPERVISOR in next:*) set -- run --surge 0 --unavailable 0 -- /bin/true ;; esac\nexec \"$program\" \"$@\"",
    );
    for _ in 0..3 {
        let ran = pool.run(&["upgrade", "--supervisor"]).await;
        ran.assert_code(3);
        let state = pool.pool().await;
        assert_eq!((state.supervisor, state.ready), (1, 2));
    }
    pool.line("the supervisor is the one before again").await;
    assert_eq!(
        (pool.status().await.pid, pool.pids().await),
        (supervisor, workers)
    );
    let name = fs::read_to_string(format!("/proc/{supervisor}/comm")).unwrap();
    assert_eq!(name.trim(), SUPERVISOR);
    more_answers(&load, 1).await;
    assert_no_failure(&load.stop().await);
    script(&pool, "exec \"$program\" \"$@\"");
    pool.run(&["upgrade", "--supervisor"]).await.assert_code(0);
    assert_eq!(pool.pool().await.supervisor, 2);
}

#[tokio::test]
async fn workers_that_end_while_the_supervisor_changes_are_collected_and_replaced() {
    let pool = Pool::start(3, &[&QUICK[..], &["--backoff-max", "50ms"]].concat()).await;
    let mut seen = BTreeSet::new();
    for round in 0..10 {
        let pids = pool.pids().await;
        seen.extend(pids.iter().copied());
        pool.signal(Signal::USR2);
        // Before the trial, in it, or after the exec, as it comes.
        handover_load::process::signal(pids[round % pids.len()], Signal::KILL).unwrap();
        until_supervisor(&pool, round as u64 + 2).await;
        pool.until_rests_on(1, 3).await;
    }
    assert!(zombies(pool.server.pid()).is_empty());
    assert!(seen.len() >= 10, "{seen:?}");
    assert_eq!(get(pool.web, "/").await.unwrap().text, "hello\n");
}

#[tokio::test]
async fn a_stop_that_comes_while_the_supervisor_changes_stops_one_of_the_two() {
    for _ in 0..ROUNDS {
        let mut pool = Pool::start(1, &QUICK).await;
        let (supervisor, worker) = (pool.server.pid(), pool.pids().await);
        pool.signal(Signal::USR2);
        // The trial has begun, and has ended: the exec comes next.
        let is_tried = || children(supervisor).len() > worker.len();
        let begun = Instant::now();
        for expected in [true, false] {
            // A trial that nobody has seen is over as well.
            while is_tried() != expected && !is_next(supervisor) {
                assert!(begun.elapsed() < DEADLINE, "{}", pool.server.log());
            }
        }
        pool.signal(Signal::TERM);
        let ended = pool.server.exit_status(DEADLINE).await.unwrap();
        assert_eq!(ended.code(), Some(0), "{}", pool.server.log());
    }
}

#[tokio::test]
async fn what_operators_have_asked_for_survives_and_a_supervisor_with_an_update_stays() {
    let flags = ["--min-healthy", "50ms", "--healthy-deadline", "30s"];
    let pool = Pool::start(1, &flags).await;
    pool.run(&["upgrade"]).await.assert_code(0);
    pool.run(&["scale", "3"]).await.assert_code(0);
    pool.until_rests_on(2, 3).await;
    pool.run(&["upgrade", "--supervisor"]).await.assert_code(0);
    let status = pool.status().await;
    let state = status.pool.unwrap();
    assert_eq!((state.wanted, state.stable, state.supervisor), (3, 2, 2));
    assert_eq!(status.last.unwrap().generation, 2);
    // The release before is still there to go back to.
    pool.run(&["rollback", "--cold"]).await.assert_code(0);
    pool.until_rests_on(3, 3).await;
    pool.release("echo before-ready=hang >bad; export TESTD_PLAN=bad");
    pool.run(&["upgrade", "--no-wait"]).await.assert_code(0);
    let ran = pool.run(&["upgrade", "--supervisor"]).await;
    ran.assert_code(2);
    ran.assert_says(&["an update to release 4 is under way"]);
    pool.run(&["abort"]).await.assert_code(0);
    pool.run(&["upgrade", "--supervisor"]).await.assert_code(0);
    pool.until_rests_on(3, 3).await;
}

#[tokio::test]
async fn a_worker_that_is_not_ready_yet_is_awaited_by_the_next_supervisor_too() {
    for how in ["accepts", "3s"] {
        let (room, web) = (tempfile::tempdir().unwrap(), free_address());
        let gate = room.path().join("gate");
        let flags = [&QUICK[..], &["--ready", how]].concat();
        let program = ["python3", "-c", ACCEPTS, gate.to_str().unwrap()];
        let pool = Pool::of(room, web, 1, &flags, &program);
        pool.line("started").await;
        pool.run(&["upgrade", "--supervisor"]).await.assert_code(0);
        assert_eq!(pool.pool().await.ready, 0);
        fs::write(&gate, "").unwrap();
        pool.until_ready(1).await;
        assert_eq!(pool.pool().await.workers[0].worker, 1);
    }
}
