//! Handovers under the mixed load: a hundred, one every two seconds, then half a minute of them back to back.
//!
//! Prints what was asked and what failed, and fails if anything did. `SOAK_HANDOVERS` and `SOAK_BURST_S` make it shorter.
//!
//! `cargo bench --bench soak --features axum`, after `cargo build --release --features axum --example testd`

#![expect(clippy::print_stdout, reason = "a benchmark's purpose is its report")]

use std::error::Error;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use handover_load::process::signal;
use handover_load::{Load, Mix, Server, Signal};
use tokio::time::{MissedTickBehavior, interval};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const DEADLINE: Duration = Duration::from_secs(20);
const PACE: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> Outcome {
    let (handovers, burst) = (setting("SOAK_HANDOVERS", 100), setting("SOAK_BURST_S", 30));
    let spaced = run("one every 2 s, bake 300 ms", "300", async |service| {
        let mut ticks = interval(PACE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for _ in 0..handovers {
            ticks.tick().await;
            service.upgrade().await?;
        }
        Ok(handovers)
    });
    let spaced = spaced.await?;
    let back_to_back = run("back to back, bake 0", "0", async |service| {
        let begin = Instant::now();
        let mut count = 0;
        while begin.elapsed() < Duration::from_secs(burst) {
            service.upgrade().await?;
            count += 1;
        }
        Ok(count)
    });
    match spaced + back_to_back.await? {
        0 => Ok(()),
        failures => Err(format!("{failures} requests failed").into()),
    }
}

/// The number of requests that failed.
async fn run(
    name: &str,
    bake: &str,
    handovers: impl AsyncFnOnce(&mut Service) -> Outcome<u64>,
) -> Outcome<u64> {
    let mut service = Service::start(bake).await?;
    let started = Instant::now();
    let load = Load::start(service.address, Mix::standard());
    load.until_answers(1, 1000, DEADLINE).await?;
    let begin = Instant::now();
    let count = handovers(&mut service).await?;
    let rate = count as f64 / begin.elapsed().as_secs_f64();
    let last = service.generation;
    load.until_answers(last, 1000, DEADLINE).await?;
    let report = load.stop().await;
    let mut firsts: Vec<Duration> = service
        .asked
        .iter()
        .filter_map(|(generation, asked)| {
            let first = report.generation(*generation)?.first;
            Some(first.saturating_sub(asked.duration_since(started)))
        })
        .collect();
    firsts.sort_unstable();
    let first = firsts.get(firsts.len() / 2);
    println!(
        "{name}: {count} handovers, {rate:.1}/s, first answer of the successor after {first:.1?} (median)\n"
    );
    // The table of generations would have a line for each.
    println!(
        "{}",
        report
            .to_string()
            .split("\ngeneration ")
            .next()
            .unwrap_or_default()
    );
    println!(
        "{} requests, {} failed\n",
        report.requests(),
        report.failures()
    );
    Ok(report.failures())
}

/// A server, and which of its generations is the incumbent.
struct Service {
    server: Server,
    address: SocketAddr,
    generation: u64,
    pid: u32,
    /// When each generation was asked for.
    asked: Vec<(u64, Instant)>,
}

impl Service {
    async fn start(bake: &str) -> Outcome<Self> {
        let own = std::env::current_exe()?;
        let profile = own.ancestors().nth(2).ok_or("no target directory")?;
        let mut command = Command::new(profile.join("examples/testd"));
        command.envs([
            ("TESTD_QUIET", "1"),
            ("TESTD_BAKE_MS", bake),
            ("TESTD_IDLE_GRACE_MS", "1000"),
            // Slow requests of two seconds keep as many generations alive as there are handovers in that time.
            ("TESTD_GENERATIONS", "1000"),
        ]);
        let server = Server::spawn(command)?;
        let address = server.address("web", DEADLINE).await?;
        server.wait_for_line("incumbent 1", DEADLINE).await?;
        let pid = server.pid();
        Ok(Self {
            server,
            address,
            generation: 1,
            pid,
            asked: Vec::new(),
        })
    }

    async fn upgrade(&mut self) -> Outcome {
        self.generation += 1;
        self.asked.push((self.generation, Instant::now()));
        signal(self.pid, Signal::HUP)?;
        let pattern = format!("incumbent {} pid ", self.generation);
        let line = self.server.wait_for_line(&pattern, DEADLINE).await?;
        self.pid = line.rsplit(' ').next().unwrap_or_default().parse()?;
        Ok(())
    }
}

fn setting(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.and_then(|value| value.parse().ok()).unwrap_or(default)
}
