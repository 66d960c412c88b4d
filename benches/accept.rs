//! What a gate costs: connections accepted per second through each contender, and the ratio to a bare tokio listener.
//!
//! Every round fills a listener's queue and then times how long the contender takes to empty it, so that the cost of
//! connecting stays out. Contenders take turns round by round, so that the machine's moods meet all of them, and what is
//! reported is the median of the ratios within one cycle of turns; a second bare listener shows how much of it is noise.
//!
//! `cargo bench --bench accept`

use std::error::Error;
use std::io;
use std::net::{SocketAddr, TcpStream as Client};
use std::time::{Duration, Instant};

use handover::ListenOptions;
use socket2::SockRef;
use tokio::net::TcpStream;

/// Connections in the queue when a round's clock starts.
const QUEUE: usize = 250;
/// How long all rounds together may take.
const BUDGET: Duration = Duration::from_secs(30);
/// One cycle of turns. Each contender comes once after each other one: caches remember who was before.
const TURNS: [usize; 6] = [0, 1, 2, 0, 2, 1];

enum Contender {
    Bare(tokio::net::TcpListener),
    Gated(handover::TcpListener),
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut starting = handover::start().await?;
    // A bare listener does not set this option, which costs a little on every connection.
    let options = ListenOptions::new().nodelay(false);
    let gated = starting
        .listen_tcp_with("web", "127.0.0.1:0", &options)
        .await?;
    let _generation = starting.ready().await?;
    let contenders = [bare().await?, bare().await?, Contender::Gated(gated)];
    let cycles = compare(&contenders).await?;
    for (index, name) in [
        "bare tokio listener",
        "another bare one (the noise)",
        "open gate",
    ]
    .into_iter()
    .enumerate()
    {
        let rate = median(cycles.iter().map(|rates| rates[index]));
        let ratio = median(cycles.iter().map(|rates| rates[index] / rates[0]));
        println!("{name:<30} {rate:>10.0}/s   x{ratio:.4}");
    }
    println!("of {} cycles; the gate's goal is x0.98", cycles.len());
    Ok(())
}

async fn bare() -> io::Result<Contender> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    SockRef::from(&listener).listen(i32::MAX)?;
    Ok(Contender::Bare(listener))
}

/// The contenders' rates in connections per second, cycle by cycle.
async fn compare(contenders: &[Contender; 3]) -> io::Result<Vec<[f64; 3]>> {
    let mut cycles = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < BUDGET {
        let mut took = [Duration::ZERO; 3];
        for index in TURNS {
            took[index] += round(&contenders[index]).await?;
        }
        let accepted = (QUEUE * TURNS.len() / 3) as f64;
        cycles.push(took.map(|took| accepted / took.as_secs_f64()));
    }
    Ok(cycles)
}

/// How long a contender takes to empty its queue.
async fn round(contender: &Contender) -> io::Result<Duration> {
    let address = contender.address()?;
    let clients = tokio::task::spawn_blocking(move || fill(address)).await??;
    let mut accepted = Vec::with_capacity(QUEUE);
    let begin = Instant::now();
    for _ in 0..QUEUE {
        accepted.push(contender.accept().await?);
    }
    let took = begin.elapsed();
    drop(clients);
    Ok(took)
}

impl Contender {
    async fn accept(&self) -> io::Result<TcpStream> {
        match self {
            Self::Bare(listener) => listener.accept().await.map(|(stream, _)| stream),
            Self::Gated(listener) => listener.accept().await.map(|(stream, _)| stream),
        }
    }

    fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Bare(listener) => listener.local_addr(),
            Self::Gated(listener) => Ok(listener.local_addr()),
        }
    }
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

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
