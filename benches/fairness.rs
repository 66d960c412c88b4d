//! How evenly four workers of a pool share the connections, and how many they serve per second: with one socket for all, and
//! with a socket for each (`SO_REUSEPORT`).
//!
//! This program is the supervisor of both pools, and each of their workers. A worker says who it is to whoever connects. As
//! many clients as there are threads connect, listen and leave, one after another. Pools take turns, so that the machine's
//! moods meet both, and what is reported is the median turn of each: connections per second, the smallest and the largest
//! share of a worker in hundredths of an even one, and Jain's index, which is 1 for equal shares and 1/4 if one worker gets
//! them all.
//!
//! `cargo bench --all-features --bench fairness`

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use handover::control::{Reply, Request};
use handover::pool::{self, Pool};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;

const WORKERS: usize = 4;
const CLIENTS: usize = 16;
/// How many turns each pool has.
const TURNS: usize = 9;
const TURN: Duration = Duration::from_secs(1);
/// How long a pool may take to be ready.
const DEADLINE: Duration = Duration::from_secs(20);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    match std::env::var_os("HANDOVER_WORKER") {
        Some(_) => work().await,
        None => measure().await,
    }
}

async fn work() -> Outcome<()> {
    let mut starting = handover::start().await?;
    let web = starting.listen_tcp("web", "127.0.0.1:0").await?;
    let generation = starting.ready().await?;
    let own = std::process::id().to_ne_bytes();
    loop {
        tokio::select! {
            // A client that has gone wants no answer.
            accepted = web.accept() => drop(accepted?.0.write_all(&own).await),
            () = generation.draining() => return Ok(()),
        }
    }
}

async fn measure() -> Outcome<()> {
    let contenders = [("one socket", false), ("one each", true)];
    let mut pools = Vec::new();
    for (_, reuseport) in contenders {
        let own = std::env::current_exe()?;
        let pool = pool::builder(own)
            .listen("web=127.0.0.1:0".parse()?)
            .workers(WORKERS)
            .reuseport(reuseport)
            .start()
            .await?;
        let address = tokio::time::timeout(DEADLINE, ready(&pool)).await??;
        pools.push((pool, address));
    }
    let mut turns = [const { Vec::new() }; 2];
    for _ in 0..TURNS {
        for (index, (_, address)) in pools.iter().enumerate() {
            let address = *address;
            turns[index].push(tokio::task::spawn_blocking(move || turn(address)).await??);
        }
    }
    println!(
        "{:<12} {:>10} {:>6} {:>6} {:>6} {:>8}",
        "", "per second", "min", "mean", "max", "Jain"
    );
    for ((name, _), turns) in contenders.iter().zip(&turns) {
        let of = |figure: fn(&Turn) -> f64| median(turns.iter().map(figure));
        println!(
            "{name:<12} {:>10.0} {:>6.1} {:>6.1} {:>6.1} {:>8.4}",
            of(Turn::rate),
            of(|turn| 100.0 * turn.share(0)),
            100.0,
            of(|turn| 100.0 * turn.share(WORKERS - 1)),
            of(Turn::jain),
        );
    }
    for (mut pool, _) in pools {
        pool.stop().await;
    }
    Ok(())
}

/// Where it listens, once every worker is ready.
async fn ready(pool: &Pool) -> Outcome<SocketAddr> {
    loop {
        if let Reply::Status(status) = pool.ask(Request::Status).await?
            && status.pool.is_some_and(|pool| pool.ready == WORKERS)
        {
            let socket = status.sockets.first().ok_or("no socket")?;
            return Ok(socket.address.parse()?);
        }
        tokio::task::yield_now().await;
    }
}

/// Connections by worker, fewest first.
struct Turn {
    counts: Vec<u64>,
    took: Duration,
}

impl Turn {
    fn total(&self) -> f64 {
        self.counts.iter().sum::<u64>() as f64
    }

    fn rate(&self) -> f64 {
        self.total() / self.took.as_secs_f64()
    }

    /// Of an even one.
    fn share(&self, rank: usize) -> f64 {
        self.counts[rank] as f64 * WORKERS as f64 / self.total()
    }

    fn jain(&self) -> f64 {
        let squares: f64 = self
            .counts
            .iter()
            .map(|count| (*count as f64).powi(2))
            .sum();
        self.total().powi(2) / (WORKERS as f64 * squares)
    }
}

fn turn(address: SocketAddr) -> io::Result<Turn> {
    let begun = Instant::now();
    let clients = (0..CLIENTS).map(|_| std::thread::spawn(move || client(address, begun)));
    let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
    for client in clients.collect::<Vec<_>>() {
        let seen = client
            .join()
            .map_err(|_| io::Error::other("a client has panicked"))??;
        seen.into_iter()
            .for_each(|(worker, count)| *counts.entry(worker).or_default() += count);
    }
    let mut counts: Vec<u64> = counts.into_values().collect();
    counts.resize(WORKERS, 0);
    counts.sort_unstable();
    let took = begun.elapsed();
    Ok(Turn { counts, took })
}

fn client(address: SocketAddr, begun: Instant) -> io::Result<BTreeMap<u32, u64>> {
    let mut seen = BTreeMap::new();
    while begun.elapsed() < TURN {
        let mut stream = TcpStream::connect(address)?;
        // With a reset: thousands of lingering connections would use up the ports.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        let mut worker = [0; 4];
        stream.read_exact(&mut worker)?;
        *seen.entry(u32::from_ne_bytes(worker)).or_default() += 1;
    }
    Ok(seen)
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
