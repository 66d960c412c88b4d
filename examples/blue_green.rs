//! Blue/green: a release is looked at in private, takes over in one flip when somebody says so, and can be sent back in
//! one flip for as long as the one before is warm. A job runs in one generation only, whichever serves.
//!
//! ```sh
//! cargo run --example blue_green          # rebuild before an upgrade, and the new build is the candidate
//!
//! # in a second shell
//! cargo install --path . --features cli && export HANDOVER_CONTROL=/tmp/blue_green/control.sock
//! handover upgrade                        # exit code 6: generation 2 has passed its check and stands by
//! curl http://127.0.0.1:8080              # hello from generation 1
//! curl --unix-socket /tmp/blue_green/preview-2-web.sock http://localhost    # hello from generation 2
//! handover promote --no-wait              # flips; generation 1 stays warm for a minute
//! handover rollback                       # exit code 0: generation 1 serves again, and has its job back
//! handover upgrade; handover promote --full    # exit code 0: generation 3 is committed, without a bake
//! handover history; handover stop
//! ```

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::{Router, routing::get};
use handover::rollout::{Promotion, Rollout};
use handover::{Check, Serving};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let setting = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.into());
    let directory = PathBuf::from(setting("DIRECTORY", "/tmp/blue_green"));
    std::fs::create_dir_all(&directory)?;

    // Five minutes and 300 requests are the defaults of the bake; these are for trying this out.
    let rollout = Rollout::blue_green()
        .promotion(Promotion::ByHand)
        .bake(Duration::from_secs(60))
        .units_min(0);
    let builder = handover::builder()
        .control(directory.join("control.sock"))
        .rollout(rollout)
        .preview(&directory)
        .pre_flip(Check::http("web", "/readyz"));
    let mut starting = builder.start().await?;
    let web = starting
        .listen_tcp("web", setting("LISTEN", "127.0.0.1:8080"))
        .await?;
    println!("listening on {}", web.local_addr());
    let health = starting.health();
    // As a candidate it is back with the first who comes in private: here that is the check.
    let generation = starting.ready().await?;

    let number = generation.number();
    run_in_one_generation_only(&generation);
    let app = Router::new()
        .route("/", get(move || hello(number)))
        .route_service("/readyz", health);
    handover::http::serve(&generation, web, app).await?;
    Ok(())
}

async fn hello(generation: u64) -> String {
    format!("hello from generation {generation}\n")
}

/// The flip waits until the job has stopped here, and a rollback begins it here again.
fn run_in_one_generation_only(generation: &Serving) {
    let number = generation.number();
    let running = Arc::new(Mutex::new(None::<Job>));
    let to_end = Arc::clone(&running);
    generation.on_activate(move || {
        let job = Job::begin(number)?;
        *running.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
        Ok(())
    });
    generation.on_deactivate(move || {
        let job = to_end.lock().unwrap_or_else(PoisonError::into_inner).take();
        job.map_or(Ok(()), Job::end)
    });
}

/// Whatever must never run twice at once: cron, the consumer of a queue.
struct Job {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Job {
    fn begin(generation: u64) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let thread = thread::Builder::new().name("job".into()).spawn(move || {
            println!("job: begun by generation {generation}");
            // Nothing is ever sent: the channel is closed when it is time to end.
            while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                println!("job: tick of generation {generation}");
            }
            println!("job: ended by generation {generation}");
        })?;
        Ok(Self { stop, thread })
    }

    /// Comes back when it has ended: only then another generation may begin.
    fn end(self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        drop(self.stop);
        self.thread
            .join()
            .map_err(|_| "the job has panicked".into())
    }
}

const TICK: Duration = Duration::from_secs(1);
