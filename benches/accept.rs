//! What a gate costs: connections accepted per second through each contender, and the ratio to a bare tokio listener.
//!
//! Every round fills a listener's queue and then times how long the contender takes to empty it, so that the cost of
//! connecting stays out. Contenders take turns round by round, so that the machine's moods meet all of them; a second
//! bare listener shows how much of the ratio is noise.
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
const BUDGET: Duration = Duration::from_secs(20);

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
    let medians = compare(&contenders).await?;
    for (name, rate) in [
        "bare tokio listener",
        "another bare one (the noise)",
        "open gate",
    ]
    .into_iter()
    .zip(&medians)
    {
        println!("{name:<30} {rate:>10.0}/s   x{:.4}", rate / medians[0]);
    }
    Ok(())
}

async fn bare() -> io::Result<Contender> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    SockRef::from(&listener).listen(i32::MAX)?;
    Ok(Contender::Bare(listener))
}

/// Median rates in connections per second.
async fn compare(contenders: &[Contender]) -> io::Result<Vec<f64>> {
    let mut rates = vec![Vec::new(); contenders.len()];
    let begin = Instant::now();
    while begin.elapsed() < BUDGET {
        // Whoever goes later finds warmer caches, so each goes as often early as late.
        for index in (0..contenders.len()).chain((0..contenders.len()).rev()) {
            rates[index].push(round(&contenders[index]).await?);
        }
    }
    Ok(rates.into_iter().map(median).collect())
}

async fn round(contender: &Contender) -> io::Result<f64> {
    let address = contender.address()?;
    let clients = tokio::task::spawn_blocking(move || fill(address)).await??;
    let mut accepted = Vec::with_capacity(QUEUE);
    let begin = Instant::now();
    for _ in 0..QUEUE {
        accepted.push(contender.accept().await?);
    }
    let rate = QUEUE as f64 / begin.elapsed().as_secs_f64();
    drop(clients);
    Ok(rate)
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

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
