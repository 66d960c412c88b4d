//! Strangers on the socket of notifications, whose address every process of the host can see.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use handover_load::Signal;

use crate::rig::{Pool, QUICK};
use crate::support::{DEADLINE, freeze, number_at_the_end, settled, signal, thaw};

const SENDERS: usize = 4;

/// Sends for as long as it is there.
struct Flood {
    is_over: Arc<AtomicBool>,
    senders: Vec<JoinHandle<u64>>,
}

impl Flood {
    fn on(address: &SocketAddr) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let senders = (0..SENDERS).map(|_| {
            let (is_over, socket) = (Arc::clone(&is_over), UnixDatagram::unbound().unwrap());
            socket.connect_addr(address).unwrap();
            thread::spawn(move || {
                let mut sent = 0;
                // Until the supervisor is gone, at the latest.
                while !is_over.load(Ordering::Relaxed) && socket.send(b"READY=1").is_ok() {
                    sent += 1;
                }
                sent
            })
        });
        Self {
            senders: senders.collect(),
            is_over,
        }
    }

    fn end(self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        let senders = self.senders.into_iter();
        senders.map(|sender| sender.join().unwrap()).sum()
    }
}

fn address_told_to(worker: u32) -> SocketAddr {
    let environment = fs::read(format!("/proc/{worker}/environ")).unwrap();
    let mut variables = environment.split(|byte| *byte == 0);
    let name = variables.find_map(|it| it.strip_prefix(b"NOTIFY_SOCKET=@"));
    SocketAddr::from_abstract_name(name.unwrap()).unwrap()
}

/// Which is why who floods the socket keeps nobody from it.
#[tokio::test]
async fn a_signal_is_heard_before_words_that_have_come_before_it() {
    let mut pool = Pool::start(1, &QUICK).await;
    pool.release("echo before-ready=hold >bad; export TESTD_PLAN=bad");
    pool.run(&["upgrade", "--no-wait"]).await.assert_code(0);
    let line = pool.line("held before-ready pid ").await;
    let candidate = number_at_the_end(&line);
    freeze(pool.server.pid()).await;
    signal(candidate, Signal::USR1);
    pool.line(&format!("ready 1 pid {candidate}")).await;
    settled(candidate).await;
    pool.signal(Signal::TERM);
    thaw(pool.server.pid());
    let ended = pool.server.exit_status(DEADLINE).await.unwrap();
    let log = pool.server.log();
    assert_eq!(ended.code(), Some(0), "{log}");
    let place = |text: &str| log.find(text).expect(text);
    let ready = format!("(release 2, pid {candidate}) ready");
    assert!(place("in flight: stopping") < place(&ready), "{log}");
}

#[tokio::test]
async fn a_supervisor_that_strangers_flood_answers_replaces_the_dead_and_stops() {
    let mut pool = Pool::start(2, &QUICK).await;
    let before = pool.pids().await;
    let flood = Flood::on(&address_told_to(before[0]));
    signal(before[0], Signal::KILL);
    pool.line("; 1 of 2 ready").await;
    pool.run(&["scale", "1"]).await.assert_code(0);
    assert_eq!(pool.pool().await.wanted, 1);
    pool.signal(Signal::TERM);
    let ended = pool.server.exit_status(DEADLINE).await.unwrap();
    let sent = flood.end();
    println!("{sent} words of strangers");
    assert_eq!(ended.code(), Some(0), "{}", pool.server.log());
    assert!(sent > 1000, "{sent}");
}
