//! Clients that connect as fast as they can, one request each time, until they are refused.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

/// What bounds every wait.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// How many clients connect at once.
pub(crate) const CLIENTS: usize = 128;
/// How late a slow client's last packet of the handshake is, in place of a round trip that loopback does not have.
const LATE: Duration = Duration::from_millis(2);
/// How long until a fact without an event is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// When a client's kernel sends the last packet of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ack {
    AtOnce,
    Late,
}

/// What became of the connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) answered: u64,
    /// Connected, and not answered.
    pub(crate) lost: u64,
    /// Neither connected nor refused.
    pub(crate) other: u64,
}

#[derive(Debug, Default)]
struct Counts {
    answered: AtomicU64,
    lost: AtomicU64,
    other: AtomicU64,
}

/// Clients at work.
pub(crate) struct Flood {
    counts: Arc<Counts>,
    clients: Vec<JoinHandle<()>>,
}

impl Flood {
    pub(crate) fn begin(target: &SockAddr, ack: Ack) -> Self {
        let counts = Arc::new(Counts::default());
        let clients = (0..CLIENTS).map(|_| {
            let (target, counts) = (target.clone(), Arc::clone(&counts));
            thread::spawn(move || until_refused(&target, ack, &counts))
        });
        Self {
            clients: clients.collect(),
            counts,
        }
    }

    /// Until so many were answered, so that every client is at work.
    pub(crate) async fn answered(&self, count: u64) {
        let begun = Instant::now();
        while self.counts.answered.load(Ordering::Relaxed) < count {
            assert!(begun.elapsed() < DEADLINE, "{:?}", self.counts);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Until every client was refused.
    pub(crate) fn end(self) -> Outcome {
        for client in self.clients {
            client.join().unwrap();
        }
        Outcome {
            answered: self.counts.answered.load(Ordering::Relaxed),
            lost: self.counts.lost.load(Ordering::Relaxed),
            other: self.counts.other.load(Ordering::Relaxed),
        }
    }
}

fn until_refused(target: &SockAddr, ack: Ack, counts: &Counts) {
    let begun = Instant::now();
    while begun.elapsed() < DEADLINE {
        let counted = match connect(target, ack) {
            Ok(socket) => match exchange(socket, ack) {
                Ok(()) => &counts.answered,
                Err(_) => &counts.lost,
            },
            Err(error) if is_refusal(&error) => return,
            Err(_) => &counts.other,
        };
        counted.fetch_add(1, Ordering::Relaxed);
    }
    panic!("nobody refuses: {counts:?}");
}

fn connect(target: &SockAddr, ack: Ack) -> io::Result<Socket> {
    let socket = Socket::new(Domain::from(i32::from(target.family())), Type::STREAM, None)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.set_write_timeout(Some(DEADLINE))?;
    if ack == Ack::Late {
        // The kernel then keeps the last packet of the handshake back until there is data to go with it (tcp(7)).
        socket.set_tcp_quickack(false)?;
    }
    socket.connect(target)?;
    Ok(socket)
}

fn exchange(mut socket: Socket, ack: Ack) -> io::Result<()> {
    if ack == Ack::Late {
        be_late();
    }
    socket.write_all(b"GET / HTTP/1.1\r\nhost: stop\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer)?;
    let is_whole = answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b" hello\n");
    is_whole
        .then_some(())
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn is_refusal(error: &io::Error) -> bool {
    // A path is gone at the end.
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
    )
}

#[expect(
    clippy::disallowed_methods,
    reason = "a client far away is what is wanted"
)]
fn be_late() {
    thread::sleep(LATE);
}
