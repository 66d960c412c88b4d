//! What an upgrade costs, with real processes: the figures that the documentation names.
//!
//! Each figure has a goal beside it. Rounds that are compared with each other take turns, so that the machine's moods
//! meet both. Medians, unless a figure says otherwise.
//!
//! `cargo bench --bench upgrade --features axum`

#![expect(clippy::print_stdout, reason = "a benchmark's purpose is its report")]

use std::error::Error;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use handover_load::process::{self, wait_gone};
use handover_load::{Failure, Load, Mix, Server, Signal};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const DEADLINE: Duration = Duration::from_secs(20);
/// How long the rounds of one figure may take.
const BUDGET: Duration = Duration::from_secs(8);
const LISTENERS: usize = 1000;
/// Connections in a queue that nobody empties.
const WAITING: usize = 32;

#[tokio::main]
async fn main() -> Outcome {
    first_answer().await?;
    back_to_back().await?;
    for megabytes in [10, 1024] {
        heap(megabytes).await?;
    }
    crash_in_bake().await?;
    crash_with_a_queue().await?;
    last_request().await?;
    many_listeners().await
}

/// From the request to the successor's first answer, against starting the same program without the crate.
async fn first_answer() -> Outcome {
    let (mut upgraded, mut bare, mut heard) = (Vec::new(), Vec::new(), Vec::new());
    let begin = Instant::now();
    while begin.elapsed() < BUDGET {
        // What it would print of its events is work that the bare one does not have. The bake is short but there, as it
        // is by default: the incumbent does not leave before the successor has answered.
        let quiet = [("TESTD_BAKE_MS", "20"), ("TESTD_QUIET", "all")];
        let mut testd = Testd::start(&quiet).await?;
        for round in 0..10 {
            // Whoever goes second finds warmer caches, so each goes second as often.
            if round % 2 == 0 {
                upgraded.push(testd.upgrade().await?);
                bare.push(bare_start().await?);
            } else {
                bare.push(bare_start().await?);
                upgraded.push(testd.upgrade().await?);
            }
        }
        heard.extend(signals_heard().await?);
    }
    let rounds = upgraded.len();
    let (upgraded, bare) = (median(upgraded), median(bare));
    let ratio = upgraded.as_secs_f64() / bare.as_secs_f64();
    report(
        "SIGHUP to the successor's first answer",
        brief(upgraded),
        "",
    );
    report("start of the same without the crate", brief(bare), "");
    report(
        &format!("their ratio, {rounds} rounds"),
        format!("{ratio:.3}"),
        "at most 1.15",
    );
    report(
        "a signal to the bare one and a line back",
        brief(median(heard)),
        "",
    );
    Ok(())
}

/// What a signal alone costs on this machine, which an upgrade begins with and a start does not.
async fn signals_heard() -> Outcome<Vec<Duration>> {
    let server = Server::spawn(testd(&[("TESTD_BARE", "1")]))?;
    server.wait_for_line("ready 1 ", DEADLINE).await?;
    let mut heard = Vec::new();
    for round in 1..=10 {
        let begin = Instant::now();
        process::signal(server.pid(), Signal::HUP)?;
        server.wait_for_lines("hangup", round, DEADLINE).await?;
        heard.push(begin.elapsed());
    }
    Ok(heard)
}

async fn bare_start() -> Outcome<Duration> {
    let begin = Instant::now();
    let server = Server::spawn(testd(&[("TESTD_BARE", "1")]))?;
    let address = server.address("web", DEADLINE).await?;
    ask(address)?;
    Ok(begin.elapsed())
}

async fn back_to_back() -> Outcome {
    let mut testd = Testd::start(&[("TESTD_BAKE_MS", "0")]).await?;
    let begin = Instant::now();
    let mut count = 0;
    while begin.elapsed() < BUDGET / 2 {
        testd.switch().await?;
        count += 1;
    }
    let rate = f64::from(count) / begin.elapsed().as_secs_f64();
    report(
        "handovers back to back",
        format!("{rate:.0}/s"),
        "at least 50/s",
    );
    Ok(())
}

/// How long the spawn takes, and how long it keeps another thread from its memory.
async fn heap(megabytes: usize) -> Outcome {
    let directory = tempfile::tempdir()?;
    let (plan, clock) = (
        directory.path().join("plan"),
        directory.path().join("clock"),
    );
    let testd = Testd::start(&[
        ("TESTD_HEAP_MB", &megabytes.to_string()),
        ("TESTD_PLAN", &plan.to_string_lossy()),
        ("LD_PRELOAD", &shim(directory.path())?.to_string_lossy()),
        ("SPAWN_CLOCK", &clock.to_string_lossy()),
    ])
    .await?;
    // From the second generation on.
    fs::write(&plan, "before-ready=exit:0\n")?;
    const ROUNDS: usize = 60;
    for round in 1..=ROUNDS {
        process::signal(testd.pid, Signal::HUP)?;
        testd
            .server
            .wait_for_lines("stall 1 ", round, DEADLINE)
            .await?;
    }
    let stalls = testd
        .server
        .wait_for_lines("stall 1 ", ROUNDS, DEADLINE)
        .await?;
    // The first window has the start in it.
    let stalls = stalls.iter().skip(1).map(|line| nanos(line, 2)).collect();
    let spawns = fs::read_to_string(&clock)?
        .lines()
        .map(|line| nanos(line, 1))
        .collect();
    let (spawn, longest) = spread(spawns);
    report(&format!("spawn at {megabytes} MiB of heap"), spawn, "2 ms");
    report(
        &format!("spawn at {megabytes} MiB of heap, longest"),
        brief(longest),
        "",
    );
    let (stall, longest) = spread(stalls);
    report(
        &format!("longest stall of a writer in an upgrade, {megabytes} MiB"),
        stall,
        "5 ms",
    );
    report(
        &format!("longest stall of a writer in any, {megabytes} MiB"),
        brief(longest),
        "",
    );
    Ok(())
}

/// A successor is killed in its bake, under load: from there to the next answer of the incumbent.
async fn crash_in_bake() -> Outcome {
    let testd = Testd::start(&[("TESTD_BAKE_MS", "60000")]).await?;
    let load = Load::start(testd.address, Mix::standard());
    let mut gaps = Vec::new();
    for successor in 2..22 {
        process::signal(testd.pid, Signal::HUP)?;
        let pid = testd.ready(successor).await?;
        load.until_answers(successor, 20, DEADLINE).await?;
        process::signal(pid, Signal::KILL)?;
        let killed_at = Instant::now();
        // Those that the successor had accepted are lost with it.
        while !matches!(ask(testd.address), Ok(1)) {}
        gaps.push(killed_at.elapsed());
        testd.line(&format!("rolled-back {successor} ")).await?;
    }
    let seen = load.stop().await;
    let refused =
        |report: &handover_load::KindReport| report.failures.get(&Failure::ConnectRefused).copied();
    let refused: u64 = seen.kinds.iter().filter_map(refused).sum();
    let (gap, longest) = spread(gaps);
    report(
        "killed successor to the incumbent's next answer",
        gap,
        "5 ms",
    );
    report("the same, longest of 20", brief(longest), "");
    report(
        &format!("connections refused, of {} requests", seen.requests()),
        refused.to_string(),
        "0",
    );
    Ok(())
}

/// A successor that accepts nobody any more is killed while connections wait in the queue that it shares with the
/// incumbent: from there to the incumbent's first answer to one of them. It answers all of them.
async fn crash_with_a_queue() -> Outcome {
    let testd = Testd::start(&[("TESTD_BAKE_MS", "60000")]).await?;
    let (mut gaps, mut lost) = (Vec::new(), 0);
    for successor in 2..22 {
        process::signal(testd.pid, Signal::HUP)?;
        let pid = testd.ready(successor).await?;
        while ask(testd.address)? != successor {}
        process::signal(pid, Signal::STOP)?;
        while !is_stopped(pid)? {}
        let waiting = (0..WAITING).map(|_| begin(testd.address));
        let waiting: Vec<_> = waiting.collect::<io::Result<_>>()?;
        process::signal(pid, Signal::KILL)?;
        let killed_at = Instant::now();
        let mut first = None;
        for stream in waiting {
            match answer(stream) {
                Ok(1) => drop(first.get_or_insert_with(|| killed_at.elapsed())),
                _ => lost += 1,
            }
        }
        gaps.extend(first);
        testd.line(&format!("rolled-back {successor} ")).await?;
    }
    let (gap, longest) = spread(gaps);
    report(
        "killed successor to the first answer to who waited",
        gap,
        "5 ms",
    );
    report("the same, longest of 20", brief(longest), "");
    report(
        &format!("connections lost, of 20 times {WAITING} that waited"),
        lost.to_string(),
        "0",
    );
    Ok(())
}

/// Every thread of it has stopped.
fn is_stopped(pid: u32) -> io::Result<bool> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
    let mut states = tasks.map(|task| fs::read_to_string(task.path().join("stat")));
    Ok(states.all(|stat| stat.is_ok_and(|stat| stat.contains(") T "))))
}

/// From the end of an old generation's last request to its own.
async fn last_request() -> Outcome {
    let mut testd = Testd::start(&[("TESTD_BAKE_MS", "0")]).await?;
    let mut rests = Vec::new();
    for _ in 0..10 {
        let (old, address) = (testd.pid, testd.address);
        let mut slow = TcpStream::connect(address)?;
        slow.write_all(b"GET /slow?ms=300 HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
        let answered =
            thread::spawn(move || slow.read_to_end(&mut Vec::new()).map(|_| Instant::now()));
        let gone =
            tokio::spawn(async move { wait_gone(old, DEADLINE).await.map(|()| Instant::now()) });
        testd.switch().await?;
        let gone_at = gone.await??;
        let answered_at = answered.join().map_err(|_| "the client panicked")??;
        rests.push(gone_at.saturating_duration_since(answered_at));
    }
    let (rest, longest) = spread(rests);
    report(
        "last answer of the old generation to its end",
        rest,
        "10 ms",
    );
    report("the same, longest of 10", brief(longest), "");
    Ok(())
}

async fn many_listeners() -> Outcome {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let mut flips = Vec::new();
    for _ in 0..5 {
        let testd = Testd::start(&[
            ("TESTD_MORE", &LISTENERS.to_string()),
            ("TESTD_BAKE_MS", "0"),
        ])
        .await?;
        process::signal(testd.pid, Signal::HUP)?;
        testd.line("event 1 phase 2 flipping").await?;
        let begin = Instant::now();
        while ask(testd.address)? != 2 {}
        flips.push(begin.elapsed());
        testd.line("event 1 committed 2 ").await?;
    }
    let (flip, longest) = spread(flips);
    report(
        &format!("flip of {LISTENERS} listeners to the first answer"),
        flip,
        "50 ms",
    );
    report("the same, longest of 5", brief(longest), "");
    Ok(())
}

/// A server, and which of its generations is the incumbent.
struct Testd {
    server: Server,
    address: SocketAddr,
    generation: u64,
    pid: u32,
}

impl Testd {
    async fn start(settings: &[(&str, &str)]) -> Outcome<Self> {
        let server = Server::spawn(testd(settings))?;
        let address = server.address("web", DEADLINE).await?;
        let pid = server.pid();
        let started = Self {
            server,
            address,
            generation: 1,
            pid,
        };
        started.ready(1).await?;
        Ok(started)
    }

    /// How long the successor's first answer takes. Returns when its predecessor is gone.
    async fn upgrade(&mut self) -> Outcome<Duration> {
        let old = self.pid;
        let begin = Instant::now();
        process::signal(old, Signal::HUP)?;
        let next = self.generation + 1;
        let pid = self.ready(next).await?;
        assert_eq!(ask(self.address)?, next);
        let took = begin.elapsed();
        wait_gone(old, DEADLINE).await?;
        (self.generation, self.pid) = (next, pid);
        Ok(took)
    }

    async fn switch(&mut self) -> Outcome {
        process::signal(self.pid, Signal::HUP)?;
        self.committed().await
    }

    async fn committed(&mut self) -> Outcome {
        let next = self.generation + 1;
        self.line(&format!("event {} committed {next} ", self.generation))
            .await?;
        (self.generation, self.pid) = (next, self.ready(next).await?);
        Ok(())
    }

    async fn ready(&self, generation: u64) -> Outcome<u32> {
        let line = self.line(&format!("ready {generation} pid ")).await?;
        Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
    }

    async fn line(&self, pattern: &str) -> io::Result<String> {
        self.server.wait_for_line(pattern, DEADLINE).await
    }
}

fn testd(settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(built("examples/testd"));
    command.envs(settings.iter().copied());
    command
}

/// Something that cargo has built beside this program, whose own place is `deps`.
fn built(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let directory = own.ancestors().nth(2).map(|directory| directory.join(name));
    let path = directory.unwrap_or_default();
    assert!(
        path.exists(),
        "first: cargo build --release --features axum --example testd"
    );
    path
}

/// The library that times the spawn.
fn shim(directory: &Path) -> Outcome<PathBuf> {
    let (source, library) = (directory.join("shim.c"), directory.join("shim.so"));
    fs::write(&source, include_str!("../tests/faults/shim.c"))?;
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .status()?;
    assert!(compiled.success());
    Ok(library)
}

/// The generation that answers a fresh connection.
fn ask(address: SocketAddr) -> io::Result<u64> {
    answer(begin(address)?)
}

/// A connection with a request in it.
fn begin(address: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
    Ok(stream)
}

/// The generation that answers it.
fn answer(mut stream: TcpStream) -> io::Result<u64> {
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    let generation = body.split(' ').next().unwrap_or_default();
    generation.parse().map_err(io::Error::other)
}

/// The number of nanoseconds that is so many words into a line.
fn nanos(line: &str, word: usize) -> Duration {
    let number = line
        .split(' ')
        .nth(word)
        .and_then(|number| number.parse().ok());
    Duration::from_nanos(number.unwrap_or(u64::MAX))
}

fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort_unstable();
    durations[durations.len() / 2]
}

/// Median in words, and the longest.
fn spread(durations: Vec<Duration>) -> (String, Duration) {
    let longest = durations.iter().max().copied().unwrap_or_default();
    (brief(median(durations)), longest)
}

fn brief(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1000.0)
}

fn report(what: &str, figure: impl std::fmt::Display, goal: &str) {
    let goal = match goal {
        "" => String::new(),
        goal => format!("  goal {goal}"),
    };
    println!("{what:<52}{figure:>12}{goal}");
}
