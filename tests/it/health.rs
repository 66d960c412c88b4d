//! What a load balancer sees of a service: nothing of its upgrades, and its end in time.

use std::net::SocketAddr;

use handover_load::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{DEADLINE, Service, Setup, Upload, gone, signal};

const LONG_MS: u32 = 60_000;

/// A connection that is kept alive.
struct Prober(TcpStream);

impl Prober {
    async fn connect(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    /// The status and the body.
    async fn ask(&mut self, path: &str) -> (u16, String) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: it\r\n\r\n");
        self.0.write_all(request.as_bytes()).await.unwrap();
        let mut received = String::new();
        loop {
            if let Some(answer) = parsed(&received) {
                return answer;
            }
            let mut part = [0; 1024];
            let read = timeout(DEADLINE, self.0.read(&mut part)).await.unwrap();
            let read = read.unwrap();
            assert_ne!(read, 0, "closed after {received:?}");
            received.push_str(std::str::from_utf8(&part[..read]).unwrap());
        }
    }
}

/// An answer that is complete.
fn parsed(received: &str) -> Option<(u16, String)> {
    let (head, body) = received.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))?;
    (length.parse() == Ok(body.len())).then(|| (status, body.to_owned()))
}

async fn ask(address: SocketAddr, path: &str) -> (u16, String) {
    Prober::connect(address).await.ask(path).await
}

async fn assert_not_ready(service: &Service, word: &str) {
    let (status, body) = ask(service.web, "/readyz").await;
    assert_eq!(status, 503);
    assert!(body.starts_with(word), "{body}");
    assert_eq!(ask(service.web, "/livez").await.0, 200);
}

fn ready() -> (u16, String) {
    (200, "ready\n".to_owned())
}

#[tokio::test]
async fn readiness_does_not_flicker_over_upgrades() {
    let service = Setup::new().start().await;
    let web = service.web;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let probing = tokio::spawn(async move {
        let mut answers = 0;
        while stopped.try_recv().is_err() {
            assert_eq!(ask(web, "/readyz").await, ready());
            answers += 1;
        }
        answers
    });
    for generation in 1..=3 {
        let mut before = Prober::connect(web).await;
        // Keeps it from leaving.
        let _busy = Upload::begin(web).await;
        assert_eq!(before.ask("/readyz").await, ready());
        service.upgrade(generation, generation + 1).await;
        service
            .line(&format!("event {generation} Draining {{ in_flight: "))
            .await;
        assert_eq!(before.ask("/readyz").await, ready());
    }
    stop.send(()).unwrap();
    assert!(probing.await.unwrap() > 10);
}

#[tokio::test]
async fn a_generation_is_starting_until_it_serves() {
    let setup = Setup::new().with("TESTD_ADMIN", "127.0.0.1:0");
    let service = setup.start().await;
    service.plan("before-ready=hold");
    signal(service.pid(), Signal::HUP);
    let successor = service.held("before-ready").await;
    let listening = service
        .server
        .wait_for_lines("listening admin ", 2, DEADLINE);
    let admins = listening.await.unwrap().into_iter();
    let admins: Vec<SocketAddr> = admins
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(ask(admins[0], "/readyz").await, ready());
    let (status, body) = ask(admins[1], "/readyz").await;
    assert_eq!((status, &body[..9]), (503, "starting:"));
    assert_eq!(ask(admins[1], "/livez").await.0, 200);
    signal(successor, Signal::USR1);
    service.ready(2).await;
    assert_eq!(ask(admins[1], "/readyz").await, ready());
}

#[tokio::test]
async fn a_degraded_generation_serves_and_says_why_it_should_not_be_asked() {
    let service = Setup::new().start().await;
    let mut kept = Prober::connect(service.web).await;
    service.get("/degraded").await;
    assert_not_ready(&service, "degraded: as asked\n").await;
    service.assert_serving(1).await;
    service.get("/restored").await;
    assert_eq!(ask(service.web, "/readyz").await, ready());
    service.get("/degraded").await;
    service.upgrade(1, 2).await;
    service.line("event 1 Draining").await;
    assert_eq!(ask(service.web, "/readyz").await, ready());
    // The one that was degraded speaks for its successor now.
    assert_eq!(kept.ask("/readyz").await, ready());
}

#[tokio::test]
async fn a_lame_duck_is_alive_and_not_ready() {
    let setup = Setup::new().with("TESTD_LAME_DUCK_MS", LONG_MS);
    let service = setup.start().await;
    let mut kept = Prober::connect(service.web).await;
    assert_eq!(kept.ask("/readyz").await, ready());
    signal(service.pid(), Signal::TERM);
    service.line("event 1 LameDuck").await;
    assert_not_ready(&service, "lame duck: ").await;
    assert_eq!(kept.ask("/readyz").await.0, 503);
}

#[tokio::test]
async fn the_end_of_a_service_is_seen_on_a_connection_that_is_kept_alive() {
    let service = Setup::new().start().await;
    let mut kept = Prober::connect(service.web).await;
    let _busy = Upload::begin(service.web).await;
    signal(service.pid(), Signal::TERM);
    service.line("event 1 Draining").await;
    let (status, body) = kept.ask("/readyz").await;
    assert_eq!((status, &body[..9]), (503, "stopping:"));
    signal(service.pid(), Signal::TERM);
    gone(service.pid()).await;
}
