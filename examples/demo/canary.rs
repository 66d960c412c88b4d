//! The clients whom a canary is for, and what its guards make of it, step by step.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use handover::control::{Client, Reply, Request, RolloutState, Strategy};
use handover::rollout::guard::Reading;
use handover::rollout::{Rollout, Share};
use handover_load::routes::GENERATION;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};

/// How many clients there are, with an address each.
const CLIENTS: u8 = 100;
/// How long a client waits between its requests.
const PACE: Duration = Duration::from_millis(50);
/// How long a client waits for an answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often somebody looks at the guards.
const LOOK: Duration = Duration::from_millis(50);
/// What one step takes at least.
const STEP: Duration = Duration::from_millis(1_500);
/// What is other than in every canary of the service.
const CHANGES: [&str; 4] = ["steps", "step_min", "units_min", "exclude"];
/// How long the canary may take in all.
const VERDICT_DEADLINE: Duration = Duration::from_secs(30);
/// By what factor the evidence has to grow to be shown again.
const GROWTH: f64 = 1.5;

/// What a person would type for the upgrade that [`upgrade`] asks for.
pub(crate) const COMMAND: &str = "handover upgrade --strategy canary --steps 10,25,50 --step-min 1500ms --units-min 20 --exclude 127.0.0.1";

/// Asks for a canary, and waits until it is said what decided it. The clients of the standard load, who all have one
/// address, are not for it.
pub(crate) async fn upgrade(control: &Path) -> Result<String, Box<dyn Error>> {
    let others = "127.0.0.1".parse()?;
    let plan = Rollout::canary([10, 25, 50])
        .step_min(STEP)
        .units_min(20)
        .exclude(others);
    let mut plan = serde_json::to_value(&plan)?;
    let changes = CHANGES.map(|name| (name.to_owned(), plan[name].take()));
    let request = Request::Upgrade {
        wait: true,
        strategy: Some(Strategy::Canary),
        plan: Some(changes.into_iter().collect()),
        automatic: false,
    };
    let client = Client::new(control).deadline(VERDICT_DEADLINE);
    match client.ask(&request).await? {
        Reply::Verdict { upgrade } => Ok(upgrade
            .explanation
            .map_or(upgrade.reason, |explanation| explanation.to_string())),
        other => Err(format!("asking for a canary: {other:?}").into()),
    }
}

/// Clients who come from an address each, and remember who has answered them, and how.
#[derive(Debug)]
pub(crate) struct Crowd {
    seen: Seen,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
}

type Seen = Arc<Mutex<Vec<BTreeMap<u64, Met>>>>;

/// What a generation has answered to one client.
#[derive(Clone, Copy, Debug, Default)]
struct Met {
    answers: u64,
    errors: u64,
}

/// What the crowd has seen of a release.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meeting {
    /// Clients whom it has answered.
    pub(crate) clients: usize,
    pub(crate) clients_all: usize,
    /// Errors among its answers.
    pub(crate) errors: u64,
    /// Answers to those who have never met it.
    pub(crate) elsewhere: u64,
    /// Errors that are not its own, and requests that were not answered at all.
    pub(crate) other_errors: u64,
}

impl Crowd {
    pub(crate) fn start(server: SocketAddr) -> Self {
        let seen = Seen::new(Mutex::new(vec![BTreeMap::new(); CLIENTS.into()]));
        let stop = watch::Sender::new(false);
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            clients.spawn(ask_all_the_time(
                server,
                client,
                seen.clone(),
                stop.subscribe(),
            ));
        }
        Self {
            seen,
            stop,
            clients,
        }
    }

    /// Lets every client finish what it asks.
    pub(crate) async fn stop(mut self, release: u64) -> Meeting {
        self.stop.send_replace(true);
        while self.clients.join_next().await.is_some() {}
        self.meeting(release)
    }

    pub(crate) fn meeting(&self, release: u64) -> Meeting {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut meeting = Meeting {
            clients_all: seen.len(),
            ..Meeting::default()
        };
        for client in seen.iter() {
            meeting.clients += usize::from(client.contains_key(&release));
            for (generation, met) in client {
                match *generation == release {
                    true => meeting.errors += met.errors,
                    false => meeting.other_errors += met.errors,
                }
                if !client.contains_key(&release) {
                    meeting.elsewhere += met.answers;
                }
            }
        }
        meeting
    }
}

async fn ask_all_the_time(server: SocketAddr, client: u8, seen: Seen, stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        let own = Ipv4Addr::new(127, 0, 1, client + 1);
        let asked = timeout(DEADLINE, ask(server, own)).await;
        // Nobody has answered: counted as an error of generation 0, which there is not.
        let (generation, is_error) = asked.ok().and_then(Result::ok).unwrap_or((0, true));
        {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let met = seen[usize::from(client)].entry(generation).or_default();
            met.answers += 1;
            met.errors += u64::from(is_error);
        }
        sleep(PACE).await;
    }
}

/// Who has answered, and whether it was an error.
async fn ask(server: SocketAddr, own: Ipv4Addr) -> io::Result<(u64, bool)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((own, 0).into())?;
    let mut stream = socket.connect(server).await?;
    stream.write_all(REQUEST).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let field = format!("{GENERATION}: ");
    let generation = answer.lines().find_map(|line| line.strip_prefix(&field));
    let generation = generation.and_then(|value| value.trim().parse().ok());
    let generation = generation.ok_or(io::ErrorKind::InvalidData)?;
    Ok((generation, !answer.starts_with("HTTP/1.1 200 ")))
}

/// What the incumbent makes of the canary, as often as it changes.
#[derive(Debug)]
pub(crate) struct Looks {
    client: Client,
    ticks: Interval,
    share: Share,
    evidence: f64,
}

/// Something new.
#[derive(Debug)]
pub(crate) enum Look {
    Share(Share),
    /// What the guard of errors says.
    Evidence(String),
}

impl Looks {
    pub(crate) fn new(control: &Path) -> Self {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            client: Client::new(control),
            ticks,
            share: Share::NONE,
            evidence: 1.0,
        }
    }

    /// The next thing that is new. Nothing is lost when it is dropped.
    pub(crate) async fn next(&mut self) -> Look {
        loop {
            self.ticks.tick().await;
            // While the role changes hands there may be nobody to ask.
            let Ok(Reply::Status(status)) = self.client.ask(&Request::Status).await else {
                continue;
            };
            let rollout = status.upgrade.and_then(|upgrade| upgrade.rollout);
            if let Some(look) = rollout.and_then(|rollout| self.look(&rollout)) {
                return look;
            }
        }
    }

    fn look(&mut self, rollout: &RolloutState) -> Option<Look> {
        let explanation = &rollout.explanation;
        if explanation.share > self.share {
            self.share = explanation.share;
            return Some(Look::Share(self.share));
        }
        let errors = explanation
            .guards
            .iter()
            .find(|guard| guard.guard == "errors")?;
        let evidence = figure(errors, "evidence");
        if evidence < self.evidence * GROWTH {
            return None;
        }
        self.evidence = evidence;
        Some(Look::Evidence(errors.text.clone()))
    }
}

fn figure(reading: &Reading, name: &str) -> f64 {
    let figure = reading.figures.iter().find(|figure| figure.name == name);
    figure.map_or(0.0, |figure| figure.value)
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: demo\r\nconnection: close\r\n\r\n";
