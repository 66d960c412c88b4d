//! What a canary costs the stable generation: connections accepted per second at each share, and the processor time that
//! a forwarded connection takes.
//!
//! Stable and candidate are this program in two processes. Every round fills the listener's queue and times how long
//! stable takes to empty it, so that the cost of connecting stays out. Then it waits until every client has seen its end,
//! which a forwarded one does once the candidate has begun it and stable has heard so: the processor time of stable's
//! one thread until then is what accepting and forwarding take in all. Shares take turns round by round, so that the
//! machine's moods meet all of them, and what is reported is the median of the ratios within one cycle of turns; a second
//! contender without a share shows how much of it is noise. Each cycle also passes single descriptors to somebody who
//! sleeps until then and answers with a byte: the bare operation that a single forwarded connection consists of.
//!
//! `cargo bench --bench canary`

use std::error::Error;
use std::fs::File;
use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::net::{SocketAddr, TcpStream as Client};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram as Blocking;
use std::path::PathBuf;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use handover::control::{self, Reply, Request};
use handover::rollout::{By, Rollout, Share, Stage};
use handover::{ListenOptions, Serving, TcpListener};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, send, sendmsg};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::close;
use socket2::SockRef;
use tokio::net::UnixDatagram;
use tokio::task::{spawn_blocking, unconstrained};

/// Connections in the queue when a round's clock starts.
const QUEUE: usize = 250;
/// How long all rounds together may take.
const BUDGET: Duration = Duration::from_secs(40);
/// In percent; the first is what the others are compared with.
const SHARES: [u8; 5] = [0, 0, 1, 10, 50];
/// Descriptors that are passed one by one in each cycle: about as many as are at 1 %.
const SINGLES: u32 = 3;
/// Where the candidate finds the control socket.
const CONTROL: &str = "HANDOVER_BENCH_CONTROL";
/// How long the upgrade may take to be a canary.
const DEADLINE: Duration = Duration::from_secs(20);

/// What one round took.
#[derive(Clone, Copy, Default)]
struct Round {
    accepting: Duration,
    processor: Duration,
    forwarded: usize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let room = tempfile::tempdir()?;
    let control = match std::env::var_os(CONTROL) {
        Some(control) => PathBuf::from(control),
        None => room.path().join("control"),
    };
    let mut starting = handover::builder()
        .rollout(plan())
        .control(&control)
        .env(CONTROL, &control)
        .start()
        .await?;
    // A bare listener does not set this option, which costs a little on every connection.
    let options = ListenOptions::new().nodelay(false);
    let web = starting
        .listen_tcp_with("web", "127.0.0.1:0", &options)
        .await?;
    let generation = starting.ready().await?;
    match generation.number() {
        1 => measure(&generation, &web, control::Client::new(control)).await,
        _ => serve(&generation, &web).await,
    }
}

/// One step, as long as the measurement.
fn plan() -> Rollout {
    let long = Duration::from_secs(3_600);
    Rollout::canary([1])
        .by(By::Connection)
        .unguarded()
        .units_min(0)
        .step_min(long)
        .step_deadline(long)
}

/// The candidate: has seen its client, and leaves.
async fn serve(generation: &Serving, web: &TcpListener) -> Result<(), Box<dyn Error>> {
    loop {
        tokio::select! {
            accepted = web.accept() => drop(accepted?),
            () = generation.draining() => return Ok(()),
        }
    }
}

async fn measure(
    generation: &Serving,
    web: &TcpListener,
    client: control::Client,
) -> Result<(), Box<dyn Error>> {
    let upgrade = tokio::spawn({
        let generation = generation.clone();
        async move { generation.upgrade().await }
    });
    tokio::time::timeout(DEADLINE, until_shifting(&client)).await??;
    let mut cycles: Vec<[Round; SHARES.len()]> = Vec::new();
    let (bare, mut singles) = (Bare::begin()?, Vec::new());
    let begin = Instant::now();
    while begin.elapsed() < BUDGET {
        let mut cycle = [Round::default(); SHARES.len()];
        for turn in 0..SHARES.len() {
            // Each begins in turn, and comes behind each other one: caches remember who was before.
            let index = (turn * (1 + cycles.len() % 4) + cycles.len()) % SHARES.len();
            let share = Share::percent(SHARES[index]);
            let reply = client.ask(&Request::Share { share }).await?;
            assert!(matches!(reply, Reply::Done { .. }), "{reply:?}");
            cycle[index] = round(web).await?;
        }
        cycles.push(cycle);
        singles.push(bare.pass_singles().await?);
    }
    let reason = "measured".to_owned();
    client.ask(&Request::Abort { reason }).await?;
    // Undone as it was asked for.
    let _ = upgrade.await?;
    report(&cycles);
    println!(
        "bare: {:.2} us for one descriptor passed to who sleeps, and its answer",
        median(singles.into_iter().map(micros))
    );
    Ok(())
}

/// Passes descriptors to a thread that closes and acknowledges each.
struct Bare {
    socket: UnixDatagram,
    passed: File,
}

impl Bare {
    fn begin() -> io::Result<Self> {
        let (ours, theirs) = Blocking::pair()?;
        thread::spawn(move || acknowledge(&theirs));
        ours.set_nonblocking(true)?;
        Ok(Self {
            socket: UnixDatagram::from_std(ours)?,
            passed: File::open("/dev/null")?,
        })
    }

    /// The processor time of this thread that each takes.
    async fn pass_singles(&self) -> io::Result<Duration> {
        let begin = thread_time()?;
        for _ in 0..SINGLES {
            let (socket, passed) = (self.socket.as_raw_fd(), [self.passed.as_raw_fd()]);
            let rights = [ControlMessage::ScmRights(&passed)];
            let body = [IoSlice::new(b"f")];
            sendmsg::<()>(socket, &body, &rights, MsgFlags::empty(), None)?;
            self.socket.recv(&mut [0]).await?;
        }
        Ok((thread_time()? - begin) / SINGLES)
    }
}

fn acknowledge(socket: &Blocking) -> nix::Result<()> {
    let mut rights = nix::cmsg_space!([i32; 1]);
    loop {
        let mut byte = [0];
        let mut body = [IoSliceMut::new(&mut byte)];
        let flags = MsgFlags::empty();
        let received = recvmsg::<()>(socket.as_raw_fd(), &mut body, Some(&mut rights), flags)?;
        for message in received.cmsgs()? {
            let ControlMessageOwned::ScmRights(passed) = message else {
                continue;
            };
            for descriptor in passed {
                close(descriptor)?;
            }
        }
        send(socket.as_raw_fd(), b"b", flags)?;
    }
}

async fn until_shifting(client: &control::Client) -> Result<(), Box<dyn Error>> {
    loop {
        let reply = client.ask(&Request::Status).await?;
        let Reply::Status(status) = reply else {
            return Err(format!("{reply:?}").into());
        };
        let rollout = status.upgrade.and_then(|upgrade| upgrade.rollout);
        if rollout.is_some_and(|rollout| rollout.explanation.stage == Stage::Shifting) {
            return Ok(());
        }
    }
}

/// Empties a queue, and waits until every client has seen its end.
async fn round(web: &TcpListener) -> Result<Round, Box<dyn Error>> {
    let address = web.local_addr();
    let clients = spawn_blocking(move || fill(address)).await??;
    let processor = thread_time()?;
    let begin = Instant::now();
    let mut accepted = vec![web.accept().await.map(|(stream, _)| stream)];
    unconstrained(poll_fn(|cx| {
        while let Poll::Ready(stream) = web.poll_accept(cx) {
            accepted.push(stream.map(|(stream, _)| stream));
        }
        Poll::Ready(())
    }))
    .await;
    let accepting = begin.elapsed();
    let forwarded = QUEUE - accepted.len();
    drop(accepted.into_iter().collect::<io::Result<Vec<_>>>()?);
    spawn_blocking(move || see_the_end(clients)).await?;
    Ok(Round {
        accepting,
        processor: thread_time()? - processor,
        forwarded,
    })
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

fn see_the_end(clients: Vec<Client>) {
    for mut client in clients {
        // An end or a reset, all the same.
        let _ = client.read(&mut [0]);
    }
}

fn thread_time() -> nix::Result<Duration> {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from)
}

fn report(cycles: &[[Round; SHARES.len()]]) {
    println!(
        "share  accepted per second     ratio  processor time of stable per forwarded connection"
    );
    for (index, percent) in SHARES.iter().enumerate() {
        let of = |figure: fn(&Round, &Round) -> f64| {
            median(cycles.iter().map(|cycle| figure(&cycle[index], &cycle[0])))
        };
        let rate = of(|round, _| round.rate());
        let ratio = of(|round, none| round.rate() / none.rate());
        let forwarded: usize = cycles.iter().map(|cycle| cycle[index].forwarded).sum();
        let extra = cycles
            .iter()
            .map(|cycle| micros(cycle[index].processor) - micros(cycle[0].processor));
        let cost = match forwarded {
            0 => String::new(),
            _ => format!(
                "{:+.2} us ({forwarded} forwarded)",
                extra.sum::<f64>() / forwarded as f64
            ),
        };
        println!("{percent:>3} %  {rate:>18.0}/s   x{ratio:.4}  {cost}");
    }
    println!(
        "of {} cycles; the goals are x0.95 at 1 %, and 10 us",
        cycles.len()
    );
}

impl Round {
    fn rate(&self) -> f64 {
        QUEUE as f64 / self.accepting.as_secs_f64()
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
