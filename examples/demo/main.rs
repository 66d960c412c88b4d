//! One service, ten releases, and clients that forgive nothing: `cargo run --release --example demo`.
//!
//! `server.rs` is the service, `release.rs` what is wrong with some of its releases. The program starts itself as that
//! service, puts load on it, and replaces it again and again. It exits with 1 if a single request fails that was not in
//! flight on a release that crashed, or was not one of the canary's. `DEMO_PAUSE_MS` changes the pauses between the acts.

mod canary;
mod losses;
mod news;
mod probe;
mod release;
mod report;
mod screen;
mod server;
mod stage;
mod upgrade;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use handover_load::Mix;
use tokio::signal::unix::{SignalKind, signal};

use crate::release::{Conduct, Release};
use crate::screen::{Screen, Style};
use crate::stage::{Outcome, Stage};

/// What happens, in order.
const ACTS: [Act; 7] = [
    act("a good release", &[Conduct::Good]),
    act("a release that never gets ready", &[Conduct::NeverReady]),
    act("a good release", &[Conduct::Good]),
    act(
        "a release that crashes one second after it took over",
        &[Conduct::Crashes],
    ),
    act(
        "a release that does not even start",
        &[Conduct::DoesNotStart],
    ),
    act(
        "a canary that begins to answer one request in twenty with 500",
        &[Conduct::Fails],
    ),
    act("three good releases, back to back", &[Conduct::Good; 3]),
];

struct Act {
    title: &'static str,
    releases: &'static [Conduct],
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match std::env::var_os(server::MODE) {
        Some(_) => server::run().await.map(|()| ExitCode::SUCCESS),
        // What is dropped then ends every generation.
        None => tokio::select! {
            outcome = play() => outcome,
            error = interrupted() => Err(error),
        },
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

async fn play() -> Outcome<ExitCode> {
    let pause = pause()?;
    let mix = Mix::standard().websockets(4);
    let mut screen = Screen::open();
    introduce(&mut screen, &mix);
    let mut version = 1;
    let first = Release {
        version,
        conduct: Conduct::Good,
    };
    let mut stage = Stage::open(screen, first, mix.clone()).await?;
    stage.pause(pause).await?;
    for act in ACTS {
        title(&mut stage.screen, act.title);
        for conduct in act.releases.iter().copied() {
            version += 1;
            let release = Release { version, conduct };
            match conduct {
                Conduct::Fails => stage.canary(release).await?,
                _ => stage.upgrade(release).await?,
            }
        }
        stage.pause(pause).await?;
    }
    title(&mut stage.screen, "the final stop");
    let mut seen = stage.stop().await?;
    let picture = picture();
    std::fs::write(&picture, seen.report.timeline.svg())?;
    let broken = report::print(&mut seen, &mix, &picture);
    Ok(ExitCode::from(u8::from(broken > 0)))
}

fn introduce(screen: &mut Screen, mix: &Mix) {
    let clients: usize = mix.clients.iter().map(|clients| clients.count).sum();
    screen.line(
        Style::Bold,
        "One service, ten releases: does a handover ever lose a request?",
    );
    screen.line(
        Style::Faint,
        &format!(
            "{clients} clients ask all the time and never retry. Release vN runs as generation N."
        ),
    );
    title(screen, "the first release");
}

fn title(screen: &mut Screen, title: &str) {
    screen.space();
    screen.line(Style::Bold, &format!("● {title}"));
}

/// Whoever ends the demo ends its servers too.
async fn interrupted() -> Box<dyn std::error::Error> {
    let listen = |kind| signal(kind);
    let all = (
        listen(SignalKind::interrupt()),
        listen(SignalKind::terminate()),
        listen(SignalKind::hangup()),
    );
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) = all else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    "interrupted".into()
}

fn pause() -> Outcome<Duration> {
    let millis = std::env::var("DEMO_PAUSE_MS").map_or(Ok(PAUSE_MS), |text| text.parse())?;
    Ok(Duration::from_millis(millis))
}

/// In the target directory that this program was built in.
fn picture() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let target = program.ancestors().nth(3).unwrap_or_else(|| Path::new("."));
    let picture = target.join("handover-demo.svg");
    // Shorter for a reader who is in the repository.
    let here = std::env::current_dir().unwrap_or_default();
    let relative = picture.strip_prefix(here).map(Path::to_owned);
    relative.unwrap_or(picture)
}

const fn act(title: &'static str, releases: &'static [Conduct]) -> Act {
    Act { title, releases }
}

const PAUSE_MS: u64 = 500;
