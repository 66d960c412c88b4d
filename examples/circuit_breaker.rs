//! What a service has learned about a dependency: the circuit breaker and the retry budget of its outgoing calls go over
//! to the successor. A fresh one, with its circuit closed and its budget full, would fall upon a backend that is down.
//!
//! ```sh
//! BACKEND=127.0.0.1:9 cargo run --example circuit_breaker      # nobody is there
//! nc 127.0.0.1 8080     # the backend failed, 2 retries left, says generation 1
//! nc 127.0.0.1 8080     # the backend was not asked, the circuit is open, 2 retries left, says generation 1
//! kill -HUP $(pgrep -n circuit_break)
//! nc 127.0.0.1 8080     # the backend was not asked, the circuit is open, 2 retries left, says generation 2
//! kill -TERM $(pgrep -n circuit_break)
//! ```

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Failures in a row that open the circuit.
const FAILURES_MAX: u32 = 5;
/// How long it stays open; one call is let through then, and closes it or not.
const OPEN: Duration = Duration::from_secs(30);
/// Retries that may be saved up, and what each call adds to them.
const RETRIES: (f64, f64) = (10.0, 0.2);

/// What is known of the backend.
struct Backend {
    failures: u32,
    open_until: Option<Instant>,
    retries: f64,
}

impl Backend {
    fn new() -> Self {
        let (failures, open_until, retries) = (0, None, 5.0);
        Self {
            failures,
            open_until,
            retries,
        }
    }

    /// Processes share no clock that can be written down, so what travels is how long the circuit is to stay open.
    fn to_text(&self) -> String {
        let open = self
            .open_until
            .map(|until| until - Instant::now().min(until));
        let open = open.map_or(-1.0, |open| open.as_secs_f64());
        format!("{} {open} {}", self.failures, self.retries)
    }

    fn from_text(text: &str) -> Option<Self> {
        let mut fields = text.split(' ');
        let failures = fields.next()?.parse().ok()?;
        let open = Duration::try_from_secs_f64(fields.next()?.parse().ok()?).ok();
        let open_until = open.map(|open| Instant::now() + open.min(OPEN));
        let retries = fields.next()?.parse().ok()?;
        Some(Self {
            failures,
            open_until,
            retries,
        })
    }

    fn may_be_called(&mut self) -> bool {
        let now = Instant::now();
        if self.open_until.is_some_and(|until| now < until) {
            return false;
        }
        // While this call is under way no other one is let through.
        self.open_until = self.open_until.map(|_| now + OPEN);
        true
    }

    fn called(&mut self, has_answered: bool) {
        self.failures = if has_answered { 0 } else { self.failures + 1 };
        self.open_until = (self.failures >= FAILURES_MAX).then(|| Instant::now() + OPEN);
        self.retries = (self.retries + RETRIES.1).min(RETRIES.0);
    }

    fn may_be_retried(&mut self) -> bool {
        let may = self.retries >= 1.0 && self.open_until.is_none();
        self.retries -= if may { 1.0 } else { 0.0 };
        may
    }
}

async fn ask(backend: &Mutex<Backend>, address: &str) -> &'static str {
    let known = || backend.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if !known().may_be_called() {
            return "was not asked, the circuit is open";
        }
        let connecting = timeout(Duration::from_secs(1), TcpStream::connect(address)).await;
        let has_answered = connecting.is_ok_and(|connected| connected.is_ok());
        known().called(has_answered);
        if has_answered {
            return "answered";
        }
        if !known().may_be_retried() {
            return "failed";
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let setting = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.into());
    let address: Arc<str> = setting("BACKEND", "127.0.0.1:9").into();
    // The default is ten seconds; one is for trying this out.
    let bake = Duration::from_secs(1);
    let mut starting = handover::builder().bake(bake).start().await?;
    let front = starting
        .listen_tcp("front", setting("LISTEN", "127.0.0.1:8080"))
        .await?;
    println!("listening on {}", front.local_addr());
    let generation = starting.ready().await?;

    let passed = generation.state().blob("backend")?.unwrap_or_default();
    let known = Backend::from_text(&String::from_utf8(passed)?).unwrap_or_else(Backend::new);
    let backend = Arc::new(Mutex::new(known));
    let to_pass = Arc::clone(&backend);
    // At the flip and not at the offer: what is learned while the successor warms up counts too.
    generation.on_flip(move |offer| {
        let known = to_pass.lock().map_err(|_| "a request has panicked")?;
        offer.blob("backend", known.to_text());
        Ok(())
    });

    let (class, number) = (generation.class("request"), generation.number());
    let mut draining = std::pin::pin!(generation.draining());
    loop {
        let (mut stream, peer) = tokio::select! {
            accepted = front.accept() => accepted?,
            () = &mut draining => break,
        };
        let (backend, address) = (Arc::clone(&backend), Arc::clone(&address));
        tokio::spawn(class.track(peer.to_string(), async move {
            let outcome = ask(&backend, &address).await;
            let retries = backend.lock().map_or(0.0, |known| known.retries.floor());
            let text = format!(
                "the backend {outcome}, {retries} retries left, says generation {number}\n"
            );
            stream.write_all(text.as_bytes()).await
        }));
    }
    generation.drained().await;
    Ok(())
}
