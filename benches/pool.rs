//! What a supervisor costs: from its start to the first answer of its workers, against starting as many without it, and
//! what it takes while nothing happens, and after updates. Rounds that are compared take turns, so that the machine's moods meet both.
//!
//! `cargo build --release --features axum,cli --bins --example testd && cargo bench --bench pool --features axum,cli`

#![expect(clippy::print_stdout, reason = "a benchmark's purpose is its report")]

use std::error::Error;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use handover_load::{Server, Signal};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const DEADLINE: Duration = Duration::from_secs(20);
const WORKERS: usize = 4;
const ROUNDS: usize = 40;
const UPDATES: usize = 20;
const RESIDENT_MAX_KIB: u64 = 8 * 1024;
/// Over which a supervisor is watched that has nothing to do.
const IDLE: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Outcome {
    first_answer().await?;
    idle().await?;
    updated().await
}

/// From the start of the first process to the first answer, and to the last worker being ready.
async fn first_answer() -> Outcome {
    let (mut pooled, mut bare) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // Whoever goes second finds warmer caches, so each goes second as often.
        if round % 2 == 0 {
            pooled.push(pool_start().await?);
            bare.push(bare_start().await?);
        } else {
            bare.push(bare_start().await?);
            pooled.push(pool_start().await?);
        }
    }
    for (what, index) in [("first answer", 0), ("all four ready", 1)] {
        let pooled = median(pooled.iter().map(|times| times[index]).collect());
        let bare = median(bare.iter().map(|times| times[index]).collect());
        let ratio = pooled.as_secs_f64() / bare.as_secs_f64();
        println!(
            "{what:<18} pool {:>8.2} ms   four bare {:>8.2} ms   ratio {ratio:.3}   {ROUNDS} rounds",
            pooled.as_secs_f64() * 1e3,
            bare.as_secs_f64() * 1e3,
        );
    }
    Ok(())
}

async fn pool_start() -> Outcome<[Duration; 2]> {
    let web = free_address()?;
    let begin = Instant::now();
    let server = Server::spawn(pool(web))?;
    ask_until_answered(web, begin)?;
    let first = begin.elapsed();
    let all = format!("; {WORKERS} of {WORKERS} ready");
    server.wait_for_line(&all, DEADLINE).await?;
    Ok([first, begin.elapsed()])
}

async fn bare_start() -> Outcome<[Duration; 2]> {
    let addresses: Vec<SocketAddr> = (0..WORKERS)
        .map(|_| free_address())
        .collect::<io::Result<_>>()?;
    let begin = Instant::now();
    let servers = addresses.iter().map(|address| {
        let mut command = testd(*address);
        command.env("TESTD_BARE", "1");
        Server::spawn(command)
    });
    let servers: Vec<Server> = servers.collect::<io::Result<_>>()?;
    ask_until_answered(addresses[0], begin)?;
    let first = begin.elapsed();
    for server in &servers {
        server.wait_for_line("ready 1 ", DEADLINE).await?;
    }
    Ok([first, begin.elapsed()])
}

async fn idle() -> Outcome {
    let server = Server::spawn(pool(free_address()?))?;
    let all = format!("; {WORKERS} of {WORKERS} ready");
    server.wait_for_line(&all, DEADLINE).await?;
    let before = ticks(server.pid())?;
    tokio::time::sleep(IDLE).await;
    let worked = ticks(server.pid())? - before;
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid()))?;
    let lines = status.lines();
    for line in lines.filter(|line| {
        ["VmRSS", "RssAnon", "Threads"]
            .iter()
            .any(|name| line.starts_with(name))
    }) {
        println!("supervisor         {line}");
    }
    println!(
        "supervisor         worked for {worked} hundredths of a second in {IDLE:?} without an event"
    );
    Ok(())
}

/// Fails if it takes more than it may.
async fn updated() -> Outcome {
    let server = Server::spawn(pool(free_address()?))?;
    let all = format!("; {WORKERS} of {WORKERS} ready");
    server.wait_for_line(&all, DEADLINE).await?;
    for update in 1..=UPDATES {
        server.signal(Signal::HUP)?;
        let committed = format!("upgrade to {} committed", update + 1);
        server.wait_for_line(&committed, DEADLINE).await?;
    }
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid()))?;
    let mut lines = status.lines();
    let resident = lines.find_map(|line| line.strip_prefix("VmRSS:"));
    let resident: u64 = resident
        .ok_or("no VmRSS")?
        .trim_matches([' ', '\t', 'k', 'B'])
        .parse()?;
    println!("supervisor         {resident} KiB resident after {UPDATES} updates");
    match resident <= RESIDENT_MAX_KIB {
        true => Ok(()),
        false => Err(format!("more than {RESIDENT_MAX_KIB} KiB").into()),
    }
}

fn pool(web: SocketAddr) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handover"));
    let workers = WORKERS.to_string();
    command
        .args([
            "run",
            "--listen",
            &format!("web={web}"),
            "--workers",
            &workers,
            "--min-healthy",
            "50ms",
            "--",
        ])
        .arg(built("examples/testd"))
        .env("TESTD_LISTEN", web.to_string())
        .env("TESTD_QUIET", "all");
    command
}

fn testd(web: SocketAddr) -> Command {
    let mut command = Command::new(built("examples/testd"));
    command.env("TESTD_LISTEN", web.to_string());
    command
}

/// Beside this program, where cargo has put them.
fn built(name: &str) -> PathBuf {
    let handover = PathBuf::from(env!("CARGO_BIN_EXE_handover"));
    handover.with_file_name(name)
}

fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// As soon as anybody answers: until the address is bound, connections are refused at once.
fn ask_until_answered(address: SocketAddr, begin: Instant) -> io::Result<()> {
    loop {
        match ask(address) {
            Err(error)
                if error.kind() == io::ErrorKind::ConnectionRefused
                    && begin.elapsed() < DEADLINE =>
            {
                std::thread::yield_now();
            }
            asked => return asked,
        }
    }
}

fn ask(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.starts_with("HTTP/1.1 200 ") {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, answer)),
    }
}

/// What a process has run for, in hundredths of a second (proc_pid_stat(5)).
fn ticks(pid: u32) -> Outcome<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").ok_or("no fields")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort_unstable();
    durations[durations.len() / 2]
}
