//! The server of the process tests: behaves, or misbehaves in its next generation as a plan file says.
//!
//! Settings come from the environment, which every generation inherits; faults come from the file that `TESTD_PLAN`
//! names, which each generation reads when it starts, so that a test can spoil the next one and heal the one after.

mod bare;
mod heap;
mod state;

use std::error::Error;
use std::fs;
use std::time::Duration;

use handover::{Builder, Event, Events, Serving, Starting};

type Outcome = Result<(), Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcome {
    if setting("TESTD_BARE").is_some() {
        return bare::serve().await;
    }
    // The start removes the variable.
    let is_successor = setting("HANDOVER_CHANNEL").is_some();
    let plan = Plan::read();
    plan.act("before-start").await;
    let mut starting = builder().start().await?;
    plan.act("after-start").await;
    if let Some(extension) = plan.millis("extend") {
        starting.extend(extension);
    }
    let address = setting("TESTD_LISTEN").unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let web = starting
        .listen_tcp("web", plan.get("listen").unwrap_or(&address))
        .await?;
    println!("listening web {}", web.local_addr());
    claim_more(&mut starting, &plan).await?;
    state::check_offered(&mut starting, is_successor)?;
    plan.act("before-ready").await;
    let events = starting.events();
    let generation = starting.ready().await?;
    state::pass_on(&generation)?;
    let telling = tokio::spawn(tell(generation.clone(), events, stall_of(is_successor)));
    println!("ready {} pid {}", generation.number(), std::process::id());
    tokio::spawn({
        let plan = plan.clone();
        async move { plan.act("after-ready").await }
    });
    let app = {
        let generation = generation.clone();
        handover_load::routes::app_with(generation.number(), move || generation.draining())
    };
    let grace = millis("TESTD_IDLE_GRACE_MS").unwrap_or(handover::config::IDLE_GRACE);
    let server = handover::http::Server::new().idle_grace(grace);
    server.serve(&generation, web, app).await;
    // The verdict by which it leaves is told before it does.
    telling.await?;
    println!("left {}", generation.number());
    Ok(())
}

fn builder() -> Builder {
    let mut builder = handover::builder();
    if let Some(bake) = millis("TESTD_BAKE_MS") {
        builder = builder.bake(bake);
    }
    if let Some(start) = millis("TESTD_START_MS") {
        builder = builder.start_deadline(start);
    }
    if let Some(drain) = millis("TESTD_DRAIN_MS") {
        builder = builder.drain_deadline(drain);
    }
    if let Some(count) = setting("TESTD_GENERATIONS").and_then(|count| count.parse().ok()) {
        builder = builder.generations_max(count);
    }
    if let Some(path) = setting("TESTD_PID_FILE") {
        builder = builder.pid_file(path);
    }
    if let Some(path) = setting("TESTD_PROGRAM") {
        builder = builder.program(path);
    }
    builder
}

async fn claim_more(starting: &mut Starting, plan: &Plan) -> Outcome {
    let count: usize = setting("TESTD_MORE")
        .and_then(|count| count.parse().ok())
        .unwrap_or(0);
    for index in 0..count {
        let listener = starting
            .listen_tcp(&format!("more-{index}"), "127.0.0.1:0")
            .await?;
        std::mem::forget(listener);
    }
    if let Some(twice) = plan.get("claim-again") {
        starting.listen_tcp(twice, "127.0.0.1:0").await?;
    }
    Ok(())
}

/// Only the first generation's heap is measured: a successor would spend its start on filling its own.
fn stall_of(is_successor: bool) -> Option<heap::Stall> {
    let megabytes = setting("TESTD_HEAP_MB").filter(|_| !is_successor)?;
    megabytes.parse().ok().map(heap::Stall::watch)
}

async fn tell(generation: Serving, mut events: Events, stall: Option<heap::Stall>) {
    while let Some(event) = events.next().await {
        let number = generation.number();
        if let (Event::Aborted { .. }, Some(stall)) = (&event, &stall) {
            println!("stall {number} {} ns", stall.take());
        }
        match event {
            Event::Phase {
                successor, phase, ..
            } => println!("event {number} phase {successor} {phase}"),
            Event::Aborted {
                successor, reason, ..
            } => {
                println!("event {number} aborted {successor} {}", one_line(&reason));
            }
            Event::RolledBack {
                successor, reason, ..
            } => {
                println!(
                    "event {number} rolled-back {successor} {}",
                    one_line(&reason)
                );
            }
            Event::Committed { successor, pid, .. } => {
                println!("event {number} committed {successor} pid {pid}")
            }
            Event::Refused { reason } => println!("event {number} refused {}", one_line(&reason)),
            Event::Drained { .. } => return println!("event {number} {event:?}"),
            event => println!("event {number} {event:?}"),
        }
    }
}

fn one_line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join(" | ")
}

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn millis(name: &str) -> Option<Duration> {
    setting(name)
        .and_then(|value| value.parse().ok())
        .map(Duration::from_millis)
}

/// What this generation is to do wrong: lines of `key=value`.
#[derive(Clone, Debug, Default)]
struct Plan(String);

impl Plan {
    fn read() -> Self {
        let text = setting("TESTD_PLAN").and_then(|path| fs::read_to_string(path).ok());
        Self(text.unwrap_or_default())
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }

    fn millis(&self, key: &str) -> Option<Duration> {
        self.get(key)?.parse().ok().map(Duration::from_millis)
    }

    /// `exit:CODE`, `abort`, `panic`, `hang`, `wait:MS` or `abort-after:MS`.
    async fn act(&self, point: &str) {
        let Some(action) = self.get(point) else {
            return;
        };
        let (action, number) = action.split_once(':').unwrap_or((action, "0"));
        let number: u64 = number.parse().unwrap_or(0);
        eprintln!("testd: {point}: {action}");
        match action {
            "exit" => exit(i32::try_from(number).unwrap_or(1)),
            "abort" => std::process::abort(),
            "panic" => panic!("as planned"),
            "hang" => std::future::pending().await,
            "wait" => tokio::time::sleep(Duration::from_millis(number)).await,
            "abort-after" => {
                tokio::time::sleep(Duration::from_millis(number)).await;
                std::process::abort();
            }
            other => panic!("testd cannot {other}"),
        }
    }
}

#[expect(
    clippy::exit,
    clippy::disallowed_methods,
    reason = "it misbehaves on purpose"
)]
fn exit(code: i32) -> ! {
    std::process::exit(code)
}
