//! The server of the process tests: behaves, or misbehaves in its next generation as a plan file says.
//!
//! Settings come from the environment, which every generation inherits; faults come from the file that `TESTD_PLAN`
//! names, which each generation reads when it starts, so that a test can spoil the next one and heal the one after.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the tests wait for what it says"
)]

mod app;
mod bare;
mod faults;
mod heap;
mod passed;
mod plan;
mod release;
#[cfg(feature = "schema-sqlite")]
mod schema;
mod singleton;

use std::error::Error;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use handover::config::Image;
use handover::http::Server;
use handover::rollout::Rollout;
use handover::{
    Builder, Check, Event, Events, Health, Serving, Starting, TcpListener, UdpSocket, UnixListener,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use self::passed::Passed;
use self::plan::Plan;

type SetDuration = fn(Builder, Duration) -> Builder;
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
    let mut starting = builder(&plan).start().await?;
    plan.act("after-start").await;
    if let Some(extension) = plan.millis("extend") {
        starting.extend(extension);
    }
    singleton::run(&starting, &plan);
    let sockets = Sockets::claim(&mut starting, &plan).await?;
    #[cfg(feature = "schema-sqlite")]
    schema::declare(&mut starting, &plan).await?;
    serve_admin(starting.health()).await?;
    let passed = Arc::new(Passed::receive(&mut starting)?);
    if let Some(reason) = plan.get("degraded") {
        starting.health().degraded(reason);
    }
    plan.act("before-ready").await;
    if plan.get("give-up").is_some() {
        drop(starting);
        return pending().await;
    }
    if let Some(kept) = starting.state().blob("kept")? {
        println!("found {}", String::from_utf8_lossy(&kept));
    }
    let events = starting.events();
    let generation = starting.ready().await?;
    if setting("TESTD_KEEP").is_some() {
        tokio::spawn(keep(generation.clone()));
    }
    passed.take_part(&generation)?;
    let number = generation.number();
    let telling = match setting("TESTD_QUIET").as_deref() {
        Some("all") => tokio::spawn(async {}),
        None => tokio::spawn(tell(number, events, stall_of(is_successor))),
        Some(_) => tokio::spawn(tell_briefly(number, events)),
    };
    let told = signal(SignalKind::user_defined2())?;
    tokio::spawn(roll_back_when_told(generation.clone(), told));
    println!("ready {} pid {}", generation.number(), std::process::id());
    tokio::spawn({
        let plan = plan.clone();
        async move { plan.act("after-ready").await }
    });
    if plan.get("deaf").is_some() {
        generation.draining().await;
    }
    sockets
        .serve(&generation, &app::app(&generation, passed, &plan))
        .await;
    plan.act("before-leave").await;
    // The verdict by which it leaves is told before it does.
    telling.await?;
    println!("left {}", generation.number());
    Ok(())
}

/// For whoever starts after this service has crashed.
async fn keep(generation: Serving) {
    let number = generation.number();
    let kept = generation
        .keep_state("kept", format!("what {number} has kept"))
        .await;
    println!("kept by {number}: {kept:?}");
}

fn builder(plan: &Plan) -> Builder {
    let mut rollout = match setting("TESTD_ROLLOUT").map(|plan| serde_json::from_str(&plan)) {
        None => Rollout::immediate(),
        Some(Ok(plan)) => plan,
        Some(Err(error)) => panic!("TESTD_ROLLOUT: {error}"),
    };
    if let Some(limit) = millis("TESTD_VERIFY_MS") {
        rollout = rollout.verify_deadline(limit);
    }
    if let Some(limit) = millis("TESTD_CHECKS_MS") {
        rollout = rollout.checks_deadline(limit);
    }
    if let Some(count) = setting("TESTD_FAILURES_MAX").and_then(|count| count.parse().ok()) {
        rollout = rollout.failures_max(count);
    }
    let mut builder = handover::builder().rollout(rollout);
    let durations: [(&str, SetDuration); 11] = [
        ("TESTD_BAKE_MS", Builder::bake),
        ("TESTD_START_MS", Builder::start_deadline),
        ("TESTD_STANDBY_MS", Builder::standby),
        ("TESTD_FLIP_MS", Builder::flip_deadline),
        ("TESTD_FORWARD_MS", Builder::forward_deadline),
        ("TESTD_DRAIN_MS", Builder::drain_deadline),
        ("TESTD_HARD_STOP_MS", Builder::hard_stop),
        ("TESTD_CAPACITY_MS", Builder::capacity_deadline),
        ("TESTD_EXIT_MS", Builder::exit_deadline),
        ("TESTD_LAME_DUCK_MS", Builder::lame_duck),
        ("TESTD_STOP_MS", Builder::stop_deadline),
    ];
    for (name, set) in durations {
        if let Some(duration) = millis(name) {
            builder = set(builder, duration);
        }
    }
    if let Some(directory) = setting("TESTD_PREVIEW") {
        builder = builder.preview(directory);
    }
    if let Some(path) = setting("TESTD_CHECK_HTTP") {
        builder = builder.pre_flip(Check::http("web", path));
    }
    if let Some(script) = setting("TESTD_CHECK_COMMAND") {
        builder = builder.pre_flip(Check::command("sh", ["-c", &script]));
    }
    if let Some(duration) = plan.millis("hard-stop") {
        builder = builder.hard_stop(duration);
    }
    if let Some(count) = setting("TESTD_GENERATIONS").and_then(|count| count.parse().ok()) {
        builder = builder.generations_max(count);
    }
    if let Some(path) = setting("TESTD_PID_FILE") {
        builder = builder.pid_file(path);
    }
    if let Some(path) = setting("TESTD_CONTROL").filter(|_| plan.get("control") != Some("none")) {
        builder = builder.control(path);
    }
    if let Some(build) = setting("TESTD_BUILD").or_else(release::label) {
        builder = builder.build_id(build);
    }
    match setting("TESTD_IMAGE").as_deref() {
        Some("copy") => builder = builder.image(Image::Copy),
        Some("nothing") => builder = builder.image(Image::Nothing),
        _ => {}
    }
    builder = builder.takeover(setting("TESTD_TAKEOVER").is_some());
    if setting("TESTD_FD_STORE").is_some() {
        builder = builder.fd_store(true);
    }
    if let Some(path) = setting("TESTD_PROGRAM") {
        builder = builder.program(path);
    }
    builder
}

/// What this generation listens on.
struct Sockets {
    tcp: Vec<TcpListener>,
    unix: Vec<UnixListener>,
    udp: Option<UdpSocket>,
}

impl Sockets {
    async fn claim(starting: &mut Starting, plan: &Plan) -> Result<Self, Box<dyn Error>> {
        let mut tcp = vec![Self::web(starting, plan).await?];
        if let Some(address) = setting("TESTD_SIDE").filter(|_| plan.get("side") != Some("none")) {
            let side = starting.listen_tcp("side", &address).await?;
            println!("listening side {}", side.local_addr());
            tcp.push(side);
        }
        let mut unix = Vec::new();
        for (index, path) in setting("TESTD_UNIX")
            .iter()
            .flat_map(|paths| paths.split(','))
            .enumerate()
        {
            unix.push(starting.listen_unix(&format!("unix-{index}"), path).await?);
        }
        let udp = match setting("TESTD_UDP") {
            Some(address) => Some(starting.bind_udp("udp", &address).await?),
            None => None,
        };
        if let Some(udp) = &udp {
            println!("listening udp {}", udp.local_addr());
        }
        claim_more(starting, plan).await?;
        Ok(Self { tcp, unix, udp })
    }

    async fn web(starting: &mut Starting, plan: &Plan) -> Result<TcpListener, Box<dyn Error>> {
        let address = setting("TESTD_LISTEN").unwrap_or_else(|| "127.0.0.1:0".to_owned());
        let address = plan.get("listen").unwrap_or(&address);
        let name = setting("TESTD_WEB_NAME").unwrap_or_else(|| "web".to_owned());
        let web = starting.listen_tcp(&name, address).await?;
        println!("listening web {}", web.local_addr());
        Ok(web)
    }

    /// Until this generation has drained.
    async fn serve(self, generation: &Serving, app: &Router) {
        let grace = millis("TESTD_IDLE_GRACE_MS").unwrap_or(handover::config::IDLE_GRACE);
        let server = Server::new().idle_grace(grace).split_key(|request| {
            let client = request.headers.get("x-client")?;
            Some(client.to_str().ok()?.to_owned())
        });
        let mut serving = JoinSet::new();
        for listener in self.tcp {
            let (server, generation, app) = (server.clone(), generation.clone(), app.clone());
            serving.spawn(async move { server.serve(&generation, listener, app).await });
        }
        for listener in self.unix {
            let (server, generation, app) = (server.clone(), generation.clone(), app.clone());
            serving.spawn(async move { server.serve(&generation, listener, app).await });
        }
        if let Some(udp) = self.udp {
            tokio::spawn(echo(generation.number(), udp));
        }
        serving.join_all().await;
    }
}

/// A socket of this generation's own, which answers before it is ready.
async fn serve_admin(health: Health) -> Outcome {
    let Some(address) = setting("TESTD_ADMIN") else {
        return Ok(());
    };
    let admin = tokio::net::TcpListener::bind(address).await?;
    println!("listening admin {}", admin.local_addr()?);
    let app = Router::new().fallback_service(health);
    tokio::spawn(async move { axum::serve(admin, app).await });
    Ok(())
}

async fn claim_more(starting: &mut Starting, plan: &Plan) -> Outcome {
    let count: usize = setting("TESTD_MORE")
        .and_then(|count| count.parse().ok())
        .unwrap_or(0);
    for index in 0..count {
        let listener = starting
            .listen_tcp(&format!("more-{index}"), "127.0.0.1:0")
            .await?;
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    }
    if let Some(twice) = plan.get("claim-again") {
        starting.listen_tcp(twice, "127.0.0.1:0").await?;
    }
    Ok(())
}

async fn echo(number: u64, udp: UdpSocket) {
    let mut datagram = [0; 2048];
    while let Ok((length, peer)) = udp.recv_from(&mut datagram).await {
        let text = String::from_utf8_lossy(&datagram[..length]);
        // What cannot be sent is lost, as datagrams are.
        let _ = udp
            .send_to(format!("{number} {text}").as_bytes(), peer)
            .await;
    }
}

/// SIGUSR2 undoes the upgrade under way.
async fn roll_back_when_told(generation: Serving, mut told: Signal) {
    while told.recv().await.is_some() {
        // Where the runtime shuts down there is nothing to undo.
        let _ = generation.rollback("an operator asked for it");
    }
}

/// Only the first generation's heap is measured: a successor would spend its start on filling its own.
fn stall_of(is_successor: bool) -> Option<heap::Stall> {
    let megabytes = setting("TESTD_HEAP_MB").filter(|_| !is_successor)?;
    megabytes.parse().ok().map(heap::Stall::watch)
}

/// What a benchmark must know, and nothing that it would have to wait for.
async fn tell_briefly(number: u64, mut events: Events) {
    while let Some(event) = events.next().await {
        match event {
            Event::Incumbent { .. } => println!("incumbent {number} pid {}", std::process::id()),
            Event::Drained { .. } => return,
            _ => {}
        }
    }
}

/// Until the last event of a generation.
async fn tell(number: u64, mut events: Events, stall: Option<heap::Stall>) {
    while let Some(event) = events.next().await {
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
