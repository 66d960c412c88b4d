//! Flips and rollbacks under load: how long the accept right takes to move, who accepts meanwhile, and what fails.
//!
//! Each round launches a candidate, flips to it, and rolls back. `FLIP_ROUNDS` makes it shorter.
//!
//! `cargo bench --bench flip --features axum`, after `cargo build --release --features axum --example testd`

#![expect(clippy::print_stdout, reason = "a benchmark's purpose is its report")]

use std::error::Error;
use std::process::Command;
use std::time::Duration;

use handover::control::{Client, EventStream, Reply, Request, Upgrade, What};
use handover_load::{Server, Sides};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const DEADLINE: Duration = Duration::from_secs(20);
const CLIENTS: usize = 8;
/// Answers that are waited for on each side of a flip.
const ANSWERS: u64 = 50;

#[tokio::main]
async fn main() -> Outcome {
    let rounds: u32 = std::env::var("FLIP_ROUNDS").map_or(Ok(200), |rounds| rounds.parse())?;
    let directory = tempfile::tempdir()?;
    let control = directory.path().join("control.sock");
    let server = Server::spawn(testd(&control))?;
    let address = server.address("web", DEADLINE).await?;
    server.wait_for_line("ready 1 pid", DEADLINE).await?;
    let client = Client::new(&control).deadline(DEADLINE);
    let mut events = client.events().await?;
    let sides = Sides::start(address, CLIENTS);
    let (mut flips, mut rollbacks) = (Vec::new(), Vec::new());
    for candidate in 2..2 + rounds {
        sides.anybody();
        client.ask(&request(r#"{"request":"upgrade"}"#)?).await?;
        until_baking(&mut events).await?;
        sides.only(candidate);
        sides.until_judged(ANSWERS, DEADLINE).await?;
        sides.anybody();
        let verdict = client.ask(&request(r#"{"request":"rollback"}"#)?).await?;
        sides.only(1);
        let upgrade = verdict_of(verdict)?;
        flips.extend(upgrade.flip_took());
        rollbacks.extend(upgrade.rollback_took());
        sides.until_judged(ANSWERS, DEADLINE).await?;
    }
    let report = sides.stop();
    print(&format!("{rounds} flips"), flips);
    print(&format!("{rounds} rollbacks"), rollbacks);
    println!("{report}");
    match (report.wrong, report.failures()) {
        (0, 0) => Ok(()),
        _ => Err(format!("{report}\n{}", server.log()).into()),
    }
}

fn testd(control: &std::path::Path) -> Command {
    let own = std::env::current_exe().unwrap_or_default();
    let built = own
        .ancestors()
        .nth(2)
        .map(|built| built.join("examples/testd"));
    let mut command = Command::new(built.unwrap_or_default());
    command.env("TESTD_CONTROL", control);
    command.env("TESTD_BAKE_MS", "60000");
    command.env("TESTD_QUIET", "all");
    command
}

fn request(text: &str) -> serde_json::Result<Request> {
    serde_json::from_str(text)
}

async fn until_baking(events: &mut EventStream) -> Outcome {
    while let Some(happened) = events.next().await? {
        if matches!(happened.what, What::Phase { phase, .. } if phase == "baking") {
            return Ok(());
        }
    }
    Err("the events have ended".into())
}

fn verdict_of(reply: Reply) -> Outcome<Upgrade> {
    match reply {
        Reply::Verdict { upgrade } => Ok(*upgrade),
        other => Err(format!("no verdict: {other:?}").into()),
    }
}

fn print(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |index: usize| took.get(index).copied().unwrap_or_default();
    let (median, most) = (at(took.len() / 2), at(took.len().saturating_sub(1)));
    println!("{what:<20} median {median:.3?} (goal 1 ms), longest {most:.3?} (goal 5 ms)");
}
