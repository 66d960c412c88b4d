//! What a gate costs: connections accepted per second through each contender, and the ratio to a bare tokio listener.
//!
//! Every round fills a listener's queue and then times how long the contender takes to empty it, so that the cost of
//! connecting stays out. Contenders take turns round by round, so that the machine's moods meet all of them.
//!
//! `cargo bench --bench accept`

use std::error::Error;
use std::io;
use std::net::{SocketAddr, TcpStream as Client};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};

/// Connections in the queue when a round's clock starts.
const QUEUE: usize = 250;
/// How long all rounds together may take.
const BUDGET: Duration = Duration::from_secs(10);

type Accepted = io::Result<(TcpStream, SocketAddr)>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let bare = listener().await?;
    let other = listener().await?;
    let (bare_address, other_address) = (bare.local_addr()?, other.local_addr()?);
    let rates = compare(
        (bare_address, async || bare.accept().await),
        (other_address, async || other.accept().await),
    );
    let (bare, other) = rates.await?;
    report("bare tokio listener", bare, bare);
    report("another of them (the noise)", other, bare);
    Ok(())
}

async fn listener() -> io::Result<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    SockRef::from(&listener).listen(i32::MAX)?;
    Ok(listener)
}

/// Median rates of two contenders, in connections per second.
async fn compare(
    (a_address, a): (SocketAddr, impl AsyncFn() -> Accepted),
    (b_address, b): (SocketAddr, impl AsyncFn() -> Accepted),
) -> io::Result<(f64, f64)> {
    let (mut a_rates, mut b_rates) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    while begin.elapsed() < BUDGET {
        // Whoever goes second finds warmer caches, so each goes second as often.
        a_rates.push(round(a_address, &a).await?);
        b_rates.push(round(b_address, &b).await?);
        b_rates.push(round(b_address, &b).await?);
        a_rates.push(round(a_address, &a).await?);
    }
    Ok((median(a_rates), median(b_rates)))
}

async fn round(address: SocketAddr, accept: &impl AsyncFn() -> Accepted) -> io::Result<f64> {
    let clients = tokio::task::spawn_blocking(move || fill(address)).await??;
    let mut accepted = Vec::with_capacity(QUEUE);
    let begin = Instant::now();
    for _ in 0..QUEUE {
        accepted.push(accept().await?);
    }
    let rate = QUEUE as f64 / begin.elapsed().as_secs_f64();
    drop(clients);
    Ok(rate)
}

fn fill(address: SocketAddr) -> io::Result<Vec<Client>> {
    (0..QUEUE).map(|_| client(address)).collect()
}

/// A client that leaves with a reset: thousands of lingering connections would use up the ports.
fn client(address: SocketAddr) -> io::Result<Client> {
    let client = Client::connect(address)?;
    SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
    Ok(client)
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

#[expect(clippy::print_stdout, reason = "a benchmark's purpose is its report")]
fn report(name: &str, rate: f64, bare: f64) {
    println!("{name:<30} {rate:>10.0}/s   x{:.4}", rate / bare);
}
