//! Whatever call of a handover fails, and however often: somebody serves, nobody else does, and nothing is left over.
//!
//! The servers are real processes with a preloaded library that makes the n-th call of a function fail, for n = 1, 2, 3
//! and so on until no call is reached any more.

#![expect(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

mod limits;
mod rig;
mod shim;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::process::{Child, Command};
use std::sync::Arc;

use handover_load::Signal;
use handover_load::process::{self, descriptors, eventually};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::limits::{Exhausted, limit_successors};
use self::rig::{
    DEADLINE, Generation, Rig, Verdict, ask, assert_descriptors, assert_kinds, assert_nothing_lost,
    assert_only_its_own_lost, kinds,
};
use self::shim::{Fault, Mode, Role, Switch, library};

/// The calls of a function in one role, each of which fails in its turn.
#[derive(Clone, Copy, Debug)]
struct Series {
    function: &'static str,
    errno: i32,
    role: Role,
    mode: Mode,
}

#[derive(Debug)]
struct Row {
    series: Series,
    reached: u32,
    outcomes: BTreeMap<&'static str, u32>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_call_fails_one_generation_serves_and_nothing_is_left_over() {
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = JoinSet::new();
    for series in all_series() {
        let at_once = Arc::clone(&at_once);
        running.spawn(async move {
            let _turn = at_once.acquire().await.unwrap();
            run(series).await
        });
    }
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    while let Some(ended) = running.join_next().await {
        match ended {
            Ok(row) => rows.push(row),
            Err(error) => failed.push(error),
        }
    }
    print_table(rows);
    assert!(failed.is_empty(), "{failed:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_cannot_say_a_word_is_not_waited_for() {
    // Its greeting, the receipt, that it is ready, that it serves.
    for nth in 1..=4 {
        let series = Series {
            function: "sendmsg",
            errno: libc::ENOBUFS,
            role: Role::Successor,
            mode: Mode::Once,
        };
        let verdict = scenario(series.fault(nth)).await.unwrap();
        assert!(!verdict.line().contains("in time"), "{nth}: {verdict:?}");
        assert!(!verdict.line().contains("SIGKILL"), "{nth}: {verdict:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_that_is_too_much_in_flight_goes_on_in_smaller_chunks() {
    let series = Series::too_many_references(Mode::Once);
    let verdict = scenario_with(series.fault(OFFER), MORE).await.unwrap();
    assert!(matches!(verdict, Verdict::Committed(_)), "{verdict:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_or_commit_that_is_too_much_in_flight_goes_on_in_smaller_chunks() {
    for message in [START, COMMIT] {
        let fault = Series::too_many_references(Mode::Once).fault(message);
        let (rig, first, switch) = Rig::start(|server, directory| {
            server.env("TESTD_FLIP_BLOBS", "9");
            Switch::install(&fault, directory.path(), server)
        })
        .await;
        switch.arm();
        rig.ask_for_upgrade(first);
        let verdict = rig.verdict(first, 2).await;
        assert!(
            matches!(verdict, Verdict::Committed(_)),
            "{fault}: {verdict:?}"
        );
        assert_eq!(switch.failed(), 1, "{fault}");
        let second = rig.ready(2).await;
        let whole = "9 of 9 blobs were passed";
        rig.server.wait_for_line(whole, DEADLINE).await.unwrap();
        rig.assert_served_by(second).await;
        rig.stop(second).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_of_which_nothing_can_be_in_flight_is_given_up_with_the_reason() {
    let series = Series::too_many_references(Mode::Ever);
    let verdict = scenario_with(series.fault(OFFER), MORE).await.unwrap();
    assert!(matches!(verdict, Verdict::Aborted(_)), "{verdict:?}");
    assert!(verdict.line().contains("passing sockets"), "{verdict:?}");
    assert!(
        verdict.line().contains("Too many references"),
        "{verdict:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_cannot_hold_all_sockets_is_refused_with_the_reason() {
    let (rig, first, ()) = Rig::start(|server, directory| {
        server.env("TESTD_MORE", MORE);
        limit_successors(server, directory.path(), "-n 40");
    })
    .await;
    let before = descriptors(first.pid).unwrap();
    let load = rig.load();
    rig.ask_for_upgrade(first);
    let verdict = rig.verdict(first, 2).await;
    assert!(matches!(verdict, Verdict::Aborted(_)), "{verdict:?}");
    assert!(
        verdict.line().contains("descriptors arrived"),
        "{verdict:?}"
    );
    rig.assert_served_by(first).await;
    assert_nothing_lost(&load.stop().await);
    rig.assert_alone(first).await;
    assert_descriptors(first, &before).await;
    rig.stop(first).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_raises_a_low_limit_as_far_as_its_sockets_need() {
    let (rig, first, ()) = Rig::start(|server, directory| {
        server.env("TESTD_MORE", MORE);
        limit_successors(server, directory.path(), "-S -n 40");
    })
    .await;
    let second = rig.upgrade_well(first, 2).await;
    rig.assert_alone(second).await;
    rig.stop(second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incumbent_out_of_descriptors_starts_no_upgrade_and_loses_nothing() {
    let (rig, first, ()) = Rig::start(|_, _| ()).await;
    let before = descriptors(first.pid).unwrap();
    let load = rig.load();
    load.until_answers(1, 10, DEADLINE).await.unwrap();
    let exhausted = Exhausted::new(first);
    rig.ask_for_upgrade(first);
    let verdict = rig.verdict(first, 2).await;
    drop(exhausted);
    assert!(matches!(verdict, Verdict::Aborted(_)), "{verdict:?}");
    assert!(
        verdict.line().contains("Too many open files"),
        "{verdict:?}"
    );
    rig.assert_served_by(first).await;
    assert_nothing_lost(&load.stop().await);
    assert_descriptors(first, &before).await;
    let second = rig.upgrade_well(first, 3).await;
    rig.stop(second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incumbent_out_of_descriptors_serves_after_a_rollback_as_soon_as_it_has_one() {
    let (rig, first, ()) = Rig::start(|server, _| {
        server.env("TESTD_BAKE_MS", "60000");
        // Nor does it find out that it serves before then.
        server.env("TESTD_VERIFY_MS", "500");
    })
    .await;
    let before = descriptors(first.pid).unwrap();
    let load = rig.load();
    load.until_answers(1, 10, DEADLINE).await.unwrap();
    rig.ask_for_upgrade(first);
    let second = rig.ready(2).await;
    load.until_answers(2, 10, DEADLINE).await.unwrap();
    let exhausted = Exhausted::new(first);
    process::signal(second.pid, Signal::KILL).unwrap();
    let verdict = rig.verdict(first, 2).await;
    assert!(matches!(verdict, Verdict::RolledBack(_)), "{verdict:?}");
    // An open gate has a second descriptor of its socket, and there was none to be had.
    let deaf = descriptors(first.pid).unwrap();
    assert_eq!(duplicates(&before), duplicates(&deaf) + 1, "{deaf:#?}");
    let answer = tokio::spawn(ask(rig.address));
    drop(exhausted);
    assert_eq!(answer.await.unwrap(), 1);
    rig.assert_served_by(first).await;
    assert_only_its_own_lost(&load.stop().await);
    assert_descriptors(first, &before).await;
    rig.stop(first).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_whose_dead_incumbent_s_number_is_a_stranger_s_serves_at_once() {
    let mut stranger = Stranger::new();
    let (rig, first, [plan, passed]) = Rig::start(|server, directory| {
        let [plan, passed] = ["plan", "passed"].map(|name| directory.path().join(name));
        server
            .env("LD_PRELOAD", library())
            .env("PEER", stranger.0.id().to_string())
            .env("PASSED_LOG", &passed)
            .env("TESTD_PLAN", &plan)
            // Beyond every deadline of this test.
            .env("TESTD_EXIT_MS", "60000");
        [plan, passed]
    })
    .await;
    fs::write(&plan, "before-start=hold").unwrap();
    rig.ask_for_upgrade(first);
    let held = "held before-start pid ";
    let held = rig.server.wait_for_line(held, DEADLINE).await.unwrap();
    let successor = held.rsplit(' ').next().unwrap().parse().unwrap();
    let offered = eventually("an offer", || passed.exists(), true, DEADLINE);
    offered.await.unwrap();
    process::signal(first.pid, Signal::KILL).unwrap();
    process::wait_gone(first.pid, DEADLINE).await.unwrap();
    process::signal(successor, Signal::USR1).unwrap();
    let second = rig.ready(2).await;
    assert_eq!(second.pid, successor);
    assert_eq!(ask(rig.address).await, 2);
    rig.stop(second).await;
    // It was neither waited for nor killed.
    assert!(stranger.0.try_wait().unwrap().is_none());
}

fn all_series() -> Vec<Series> {
    use Role::{Incumbent, Successor};
    let both = [
        ("posix_spawn", libc::EAGAIN, Incumbent),
        ("socketpair", libc::EMFILE, Incumbent),
        ("pipe2", libc::EMFILE, Incumbent),
        ("pidfd_open", libc::EMFILE, Incumbent),
        ("pidfd_open", libc::EMFILE, Successor),
        ("memfd_create", libc::EMFILE, Incumbent),
        ("dup", libc::EMFILE, Incumbent),
        ("dup", libc::EMFILE, Successor),
        ("epoll_ctl", libc::ENOSPC, Incumbent),
        ("epoll_ctl", libc::ENOSPC, Successor),
        ("sendmsg", libc::ENOBUFS, Incumbent),
        ("sendmsg", libc::ENOBUFS, Successor),
        ("recvmsg", libc::ENOMEM, Incumbent),
        ("recvmsg", libc::ENOMEM, Successor),
    ];
    // A generation that can never accept again has no handover to blame.
    let once = [
        ("accept4", libc::EMFILE, Incumbent),
        ("accept4", libc::EMFILE, Successor),
    ];
    let series = |mode| {
        move |(function, errno, role)| Series {
            function,
            errno,
            role,
            mode,
        }
    };
    let ever = both.into_iter().map(series(Mode::Ever));
    let once = both.into_iter().chain(once).map(series(Mode::Once));
    once.chain(ever).collect()
}

async fn run(series: Series) -> Row {
    let mut outcomes = BTreeMap::new();
    for nth in 1..=calls_max(series) {
        let Some(verdict) = scenario(series.fault(nth)).await else {
            assert!(nth > 1, "{series:?} was never reached");
            return Row {
                series,
                reached: nth - 1,
                outcomes,
            };
        };
        *outcomes.entry(verdict.name()).or_default() += 1;
    }
    assert_eq!(series.function, "accept4", "{series:?} never ends");
    Row {
        series,
        reached: calls_max(series),
        outcomes,
    }
}

/// Clients come for as long as a server lives, but a handover has an end.
fn calls_max(series: Series) -> u32 {
    match series.function {
        "accept4" => 3,
        _ => CALLS_MAX,
    }
}

/// An upgrade under load with this fault, and one without it. `None` if the call was not reached.
async fn scenario(fault: Fault) -> Option<Verdict> {
    scenario_with(fault, "0").await
}

/// The same with so many more listeners.
async fn scenario_with(fault: Fault, more: &str) -> Option<Verdict> {
    let (rig, first, switch) = Rig::start(|server, directory| {
        server.env("TESTD_MORE", more);
        Switch::install(&fault, directory.path(), server)
    })
    .await;
    let before = descriptors(first.pid).unwrap();
    let load = rig.load();
    load.until_answers(1, 10, DEADLINE).await.unwrap();
    switch.arm();
    if (fault.function, fault.role) == ("accept4", Role::Incumbent) {
        // The flip may be over before one of the clients connects again.
        ask(rig.address).await;
    }
    rig.ask_for_upgrade(first);
    let verdict = rig.verdict(first, 2).await;
    let active = serving(&rig, first, &verdict).await;
    rig.assert_served_by(active).await;
    load.until_answers(active.number, 10, DEADLINE)
        .await
        .unwrap();
    let report = load.stop().await;
    switch.disarm();
    match verdict.line().contains("SIGKILL") {
        true => assert_only_its_own_lost(&report),
        false => assert_nothing_lost(&report),
    }
    rig.assert_alone(active).await;
    assert_same_descriptors(first, active, &before).await;
    let errors = &descriptors(active.pid).unwrap()[STDERR];
    assert_eq!(errors, &before[STDERR], "standard error has moved");
    let second = rig.upgrade_well(active, 3).await;
    rig.assert_alone(second).await;
    let failed = switch.failed();
    rig.stop(second).await;
    assert!(failed <= FAILURES_MAX, "{fault} was tried {failed} times");
    assert!(
        failed <= 1 || fault.mode == Mode::Ever,
        "{fault} failed {failed} times"
    );
    (failed > 0).then_some(verdict)
}

/// A process that has nothing to do with anything.
struct Stranger(Child);

impl Stranger {
    fn new() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().unwrap())
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// How many sockets are in a table twice.
fn duplicates(table: &[String]) -> usize {
    let sockets = table.iter().filter(|target| target.starts_with("socket:"));
    let different: BTreeSet<_> = sockets.clone().collect();
    sockets.count() - different.len()
}

async fn serving(rig: &Rig, first: Generation, verdict: &Verdict) -> Generation {
    match verdict {
        Verdict::Committed(_) => rig.ready(2).await,
        Verdict::Aborted(_) | Verdict::RolledBack(_) => first,
    }
}

/// The first generation's own, if it survived; else as many of each kind, and the two blobs that it was passed.
async fn assert_same_descriptors(first: Generation, active: Generation, before: &[String]) {
    if active == first {
        return assert_descriptors(first, before).await;
    }
    let blobs = [
        "/memfd:handover (deleted)".to_owned(),
        "/memfd:handover (deleted)".to_owned(),
    ];
    assert_kinds(active, &kinds(&[before, &blobs].concat())).await;
}

impl Series {
    /// What unix(7) says of a user with too many descriptors in flight.
    fn too_many_references(mode: Mode) -> Self {
        Self {
            function: "sendmsg",
            errno: libc::ETOOMANYREFS,
            role: Role::Incumbent,
            mode,
        }
    }

    fn fault(self, nth: u32) -> Fault {
        let Self {
            function,
            errno,
            role,
            mode,
        } = self;
        Fault {
            function,
            nth,
            mode,
            errno,
            role,
        }
    }
}

/// Not by `print!`, which is shown of a failed test only.
fn print_table(mut rows: Vec<Row>) {
    rows.sort_by_key(|row| {
        (
            row.series.function,
            row.series.role.to_string(),
            row.series.mode.to_string(),
        )
    });
    let mut table = format!(
        "\n{:<14}{:<11}{:<6}{:>7}  outcomes\n",
        "function", "role", "fails", "reached"
    );
    for Row {
        series,
        reached,
        outcomes,
    } in rows
    {
        let outcomes: Vec<_> = outcomes
            .iter()
            .map(|(what, count)| format!("{count} {what}"))
            .collect();
        let Series {
            function,
            role,
            mode,
            ..
        } = series;
        table += &format!(
            "{function:<14}{role:<11}{mode:<6}{reached:>7}  {}\n",
            outcomes.join(", ")
        );
    }
    let _ = std::io::stderr().write_all(table.as_bytes());
}

/// Where standard error is in a table of descriptors.
const STDERR: usize = 2;
/// A call that cannot succeed is given up long before it has been tried so often.
const FAILURES_MAX: usize = 50;
/// Listeners beside the one that is asked: more than the limits of the tests leave room for.
const MORE: &str = "60";
/// The message of an incumbent that carries its sockets, after its greeting.
const OFFER: u32 = 2;
/// Those behind it, in a handover of one offer. Two without descriptors come between them.
const START: u32 = 3;
const COMMIT: u32 = 6;
/// Scenarios at a time.
const AT_ONCE: usize = 3;
/// A handover with more calls than this is one that never ends.
const CALLS_MAX: u32 = 60;
