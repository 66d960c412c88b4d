//! Who answers fresh connections, while it is known who must.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fmt, io};

/// Clients that open one connection after the other, each for one request.
///
/// While [`only`](Self::only) names a generation, an answer to a connection that was begun and ended in that time must be
/// that generation's: who is known to have acknowledged that it accepts no more must not answer.
#[derive(Debug)]
pub struct Sides {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

/// What the clients have seen.
#[derive(Clone, Debug, Default)]
pub struct SidesReport {
    /// Requests answered.
    pub answered: u64,
    /// Those of them that were begun and ended while it was known who must answer.
    pub judged: u64,
    /// Judged answers of somebody else.
    pub wrong: u64,
    /// Requests that failed, by kind.
    pub failed: BTreeMap<io::ErrorKind, u64>,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    stop: AtomicBool,
    /// Counts up with each change, in the upper half; who must answer, in the lower half, 0 for anybody.
    epoch: AtomicU64,
    /// How many answers of the present epoch there are.
    in_epoch: AtomicU64,
    report: Mutex<SidesReport>,
}

impl Sides {
    /// Begins with `clients` clients, and anybody may answer.
    pub fn start(address: SocketAddr, clients: usize) -> Self {
        let shared = Arc::new(Shared {
            address,
            stop: AtomicBool::new(false),
            epoch: AtomicU64::new(1 << 32),
            in_epoch: AtomicU64::new(0),
            report: Mutex::default(),
        });
        let clients = (0..clients).map(|_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.ask_until_told())
        });
        Self {
            clients: clients.collect(),
            shared,
        }
    }

    /// From now on only `generation` may answer whoever connects anew.
    pub fn only(&self, generation: u32) {
        self.shared.change(generation);
    }

    /// From now on anybody may.
    pub fn anybody(&self) {
        self.shared.change(0);
    }

    /// Waits for so many judged answers since the last change.
    ///
    /// # Errors
    ///
    /// `TimedOut` with the deadline.
    pub async fn until_judged(&self, count: u64, deadline: Duration) -> io::Result<()> {
        let until = Instant::now() + deadline;
        while self.shared.in_epoch.load(Ordering::Relaxed) < count {
            if Instant::now() > until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        Ok(())
    }

    /// Stops the clients, and tells what they have seen.
    pub fn stop(self) -> SidesReport {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            // One that panicked has counted nothing wrong.
            let _ = client.join();
        }
        self.shared.report().clone()
    }
}

impl SidesReport {
    /// How many requests have failed.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }
}

impl fmt::Display for SidesReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            answered,
            judged,
            wrong,
            failed,
        } = self;
        write!(
            f,
            "{answered} answered, {judged} judged, {wrong} by the wrong side, failed: {failed:?}"
        )
    }
}

impl Shared {
    fn change(&self, generation: u32) {
        let number = (self.epoch.load(Ordering::Acquire) >> 32) + 1;
        self.in_epoch.store(0, Ordering::Relaxed);
        self.epoch
            .store(number << 32 | u64::from(generation), Ordering::Release);
    }

    fn ask_until_told(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let before = self.epoch.load(Ordering::Acquire);
            let answer = ask(self.address);
            let after = self.epoch.load(Ordering::Acquire);
            let expected =
                (after as u32 != 0 && before == after).then_some(u64::from(after as u32));
            let mut report = self.report();
            match (answer, expected) {
                (Ok(generation), Some(expected)) => {
                    report.answered += 1;
                    report.judged += 1;
                    report.wrong += u64::from(generation != expected);
                    self.in_epoch.fetch_add(1, Ordering::Relaxed);
                }
                (Ok(_), None) => report.answered += 1,
                (Err(error), _) => *report.failed.entry(error.kind()).or_default() += 1,
            }
        }
    }

    fn report(&self) -> std::sync::MutexGuard<'_, SidesReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The generation that answers a fresh connection: its number is the first word of the body.
fn ask(address: SocketAddr) -> io::Result<u64> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: load\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    let generation = body.split(' ').next().unwrap_or_default();
    generation
        .parse()
        .map_err(|_| io::ErrorKind::InvalidData.into())
}

const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
