//! Where the story is played: the service, the load on it, and what becomes of each upgrade.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use handover_load::process::{self, Server};
use handover_load::{Load, MarkKind, Mix, Report, Signal, brief};
use tokio::time::{self, Interval};

use crate::canary::{self, Crowd, Look, Looks};
use crate::news::{self, News, What};
use crate::probe;
use crate::release::{Ending, Release, Site};
use crate::screen::{REFRESH, Screen, Style};
use crate::server;
use crate::upgrade::{Crash, Upgrade};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) screen: Screen,
    server: Server,
    load: Load,
    begun: Instant,
    ticks: Interval,
    site: Site,
    address: SocketAddr,
    /// Lines of news that were read.
    read: usize,
    incumbent: Generation,
    upgrades: Vec<Upgrade>,
}

#[derive(Clone, Copy, Debug)]
struct Generation {
    number: u64,
    pid: u32,
}

/// Everything that was seen.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) screen: Screen,
    pub(crate) upgrades: Vec<Upgrade>,
    pub(crate) report: Report,
    pub(crate) stop: Stop,
}

/// The final stop.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    /// Whether the last generation told that it leaves, which one that dies does not.
    pub(crate) has_left: bool,
    pub(crate) in_flight: usize,
    pub(crate) stragglers: Vec<String>,
    pub(crate) took: Duration,
}

impl Stage {
    /// Starts the first release and puts the load on it.
    pub(crate) async fn open(mut screen: Screen, first: Release, mix: Mix) -> Outcome<Self> {
        let site = Site::new()?;
        site.deploy(first)?;
        let mut command = Command::new(site.current());
        command.env(server::MODE, "1");
        command.env(server::CONTROL, site.control());
        let server = Server::spawn(command)?;
        let address = server.address("web", DEADLINE).await?;
        let load = Load::start(address, mix);
        let begun = Instant::now() - load.elapsed();
        load.until_answers(first.version, 1, DEADLINE).await?;
        let pid = server.pid();
        let text = format!("release {first} serves on {address} as generation 1 (pid {pid})");
        screen.log(begun.elapsed(), Style::Plain, &text);
        screen.activity(IDLE);
        let number = first.version;
        Ok(Self {
            screen,
            server,
            load,
            begun,
            ticks: time::interval(REFRESH),
            site,
            address,
            read: 0,
            incumbent: Generation { number, pid },
            upgrades: Vec::new(),
        })
    }

    /// Lets the load go on for a while, and hears what the generations still have to tell.
    pub(crate) async fn pause(&mut self, pause: Duration) -> Outcome<()> {
        let end = time::Instant::now() + pause;
        while let Ok(news) = time::timeout_at(end, self.news()).await {
            let news = news?;
            self.aside(&news);
        }
        Ok(())
    }

    /// Deploys a release, asks the incumbent to hand over to it, and waits for the verdict.
    pub(crate) async fn upgrade(&mut self, release: Release) -> Outcome<()> {
        self.site.deploy(release)?;
        let Generation { number, pid } = self.incumbent;
        let text =
            format!("ln -sfn releases/{release} current; kill -HUP {pid}   (generation {number})");
        let asked = self.begun.elapsed();
        self.screen.log(asked, Style::Plain, &text);
        self.screen.activity(format!("to {release}: asked for"));
        process::signal(pid, Signal::HUP)?;
        let mut upgrade = Upgrade::new(release, asked);
        while upgrade.ending.is_none() {
            let news = self.news().await?;
            self.hear(&mut upgrade, news).await?;
        }
        self.screen.activity(IDLE);
        self.upgrades.push(upgrade);
        Ok(())
    }

    /// Deploys a release as a canary, for clients of its own beside the load, and watches its guards until the verdict.
    pub(crate) async fn canary(&mut self, release: Release) -> Outcome<()> {
        let control = self.site.control();
        let crowd = Crowd::start(self.address);
        self.site.deploy(release)?;
        let asked = self.begun.elapsed();
        let text = format!("ln -sfn releases/{release} current; {}", canary::COMMAND);
        self.screen.log(asked, Style::Plain, &text);
        let mut asking = std::pin::pin!(canary::upgrade(&control));
        let mut explanation = None;
        let mut upgrade = Upgrade::new(release, asked);
        let mut looks = Looks::new(&control);
        while upgrade.ending.is_none() || explanation.is_none() {
            tokio::select! {
                told = &mut asking, if explanation.is_none() => explanation = Some(told?),
                news = self.news() => self.hear(&mut upgrade, news?).await?,
                look = looks.next() => self.looked(release, &crowd, look),
            }
        }
        let explanation = explanation.unwrap_or_default();
        let text = format!("handover explain: {explanation}");
        self.screen.more(Style::Faint, &text);
        let meeting = crowd.stop(release.version).await;
        let text = format!(
            "{} of {} clients have met {release}; the {} others have not, and got {} errors",
            meeting.clients,
            meeting.clients_all,
            meeting.clients_all - meeting.clients,
            meeting.other_errors
        );
        self.screen.more(Style::Plain, &text);
        upgrade.meeting = Some(meeting);
        self.screen.activity(IDLE);
        self.upgrades.push(upgrade);
        Ok(())
    }

    fn looked(&mut self, release: Release, crowd: &Crowd, look: Look) {
        let at = self.begun.elapsed();
        let meeting = crowd.meeting(release.version);
        match look {
            Look::Share(share) => {
                let text = format!(
                    "{release} gets {share} of the clients; so far {} of {} have met it",
                    meeting.clients, meeting.clients_all
                );
                self.screen.log(at, Style::Plain, &text);
            }
            Look::Evidence(text) => {
                let text = format!("guard of errors: {text}");
                self.screen.log(at, Style::Warm, &text);
            }
        }
    }

    /// The final stop, with requests in flight: the clients begin nothing more, and every answer is still to come.
    pub(crate) async fn stop(mut self) -> Outcome<Seen> {
        let Generation { number, pid } = self.incumbent;
        self.load.mark(MarkKind::Note, "final stop");
        let text = format!("kill -TERM {pid}   (generation {number}, with requests in flight)");
        self.screen.log(self.begun.elapsed(), Style::Plain, &text);
        self.screen.close();
        let stop = async {
            // A request that was begun before the clients heard of the end is on its way by then.
            time::sleep(ON_ITS_WAY).await;
            process::signal(pid, Signal::TERM)
        };
        let (report, sent) = tokio::join!(self.load.stop(), stop);
        sent?;
        self.server.wait_all_gone(DEADLINE).await?;
        let stop = Stop::told(&self.server.log(), self.read, number)?;
        let text = format!(
            "generation {number} finished what was in flight and left after {}",
            brief(stop.took)
        );
        self.screen.log(self.begun.elapsed(), Style::Good, &text);
        Ok(Seen {
            screen: self.screen,
            upgrades: self.upgrades,
            report,
            stop,
        })
    }

    async fn hear(&mut self, upgrade: &mut Upgrade, news: News) -> Outcome<()> {
        let at = self.time_of(&news);
        match news.what {
            What::Phase {
                successor,
                name,
                after,
            } if upgrade.is_to(successor) => self.entered(upgrade, name, after),
            What::Crashes { held } => self.crashed(upgrade, at, held).await?,
            What::Committed {
                successor,
                pid,
                after,
            } => {
                self.incumbent = Generation {
                    number: successor,
                    pid,
                };
                self.ended(upgrade, at, Ending::Committed, after, "");
            }
            What::Aborted { reason, after, .. } => {
                let label = format!("{} aborted", upgrade.release);
                self.load.mark(MarkKind::Note, label);
                self.ended(upgrade, at, Ending::Aborted, after, &reason);
            }
            What::RolledBack { reason, after, .. } => {
                self.ended(upgrade, at, Ending::RolledBack, after, &reason);
            }
            What::Refused { reason } => {
                self.ended(upgrade, at, Ending::Refused, Duration::ZERO, &reason);
            }
            _ => self.aside(&news),
        }
        Ok(())
    }

    fn entered(&mut self, upgrade: &mut Upgrade, phase: String, after: Duration) {
        let release = upgrade.release;
        if phase == "baking" {
            let label = format!("{release} takes over");
            self.load.mark(MarkKind::Handover, label);
        }
        upgrade.entered(phase, after);
        self.screen
            .activity(format!("to {release}: {}", upgrade.course()));
    }

    async fn crashed(
        &mut self,
        upgrade: &mut Upgrade,
        at: Duration,
        held: BTreeMap<String, usize>,
    ) -> Outcome<()> {
        let label = format!("{} crashes", upgrade.release);
        self.load.mark(MarkKind::Kill, label);
        let probe = probe::next_answer(self.address);
        let generation = time::timeout(DEADLINE, probe).await??;
        let took = self.begun.elapsed().saturating_sub(at);
        let next = (generation, took);
        let crash = upgrade.crash.insert(Crash { at, held, next });
        let text = format!(
            "generation {} crashes and takes {} connections with it; the next new connection is answered by \
             generation {generation}, {} after the crash",
            upgrade.release.version,
            crash.connections(),
            brief(took)
        );
        self.screen.log(at, Style::Bad, &text);
        Ok(())
    }

    fn ended(
        &mut self,
        upgrade: &mut Upgrade,
        at: Duration,
        ending: Ending,
        after: Duration,
        reason: &str,
    ) {
        upgrade.ending = Some((ending, after));
        self.screen.more(Style::Faint, &upgrade.course());
        let style = match ending {
            Ending::Committed => Style::Good,
            _ => Style::Warm,
        };
        let serving = self.incumbent.number;
        let text = format!(
            "{ending} after {}: generation {serving} serves",
            brief(after)
        );
        self.screen.log(at, style, &text);
        self.tell_reason(reason);
        if ending != upgrade.release.conduct.expected() {
            let text = format!("expected: {}", upgrade.release.conduct.expected());
            self.screen.more(Style::Bad, &text);
        }
    }

    fn tell_reason(&mut self, reason: &str) {
        let mut lines = reason.lines();
        if let Some(first) = lines.next() {
            self.screen.more(Style::Plain, &format!("reason: {first}"));
        }
        for line in lines {
            self.screen.more(Style::Faint, &format!("  {line}"));
        }
    }

    /// What has nothing to do with the upgrade under way.
    fn aside(&mut self, news: &News) {
        let at = self.time_of(news);
        let from = news.from;
        match &news.what {
            What::Leaves { stragglers, took } => {
                let text = format!(
                    "generation {from} has drained in {}; cut off: {}",
                    brief(*took),
                    stragglers.len()
                );
                self.screen.log(at, Style::Faint, &text);
            }
            What::Warning { message } => {
                let text = format!("generation {from} warns: {message}");
                self.screen.log(at, Style::Warm, &text);
            }
            _ => {}
        }
    }

    /// The next line of news; the block is drawn anew meanwhile.
    async fn news(&mut self) -> Outcome<News> {
        let count = self.read + 1;
        let wait = self.server.wait_for_lines(news::MARK, count, DEADLINE);
        let lines = meanwhile(&mut self.screen, &mut self.ticks, &self.load, wait).await?;
        self.read = count;
        Ok(News::parse(lines.last().map_or("", String::as_str))?)
    }

    /// When something was told, on the load's clock.
    fn time_of(&self, news: &News) -> Duration {
        let ago = news.at.elapsed().unwrap_or_default();
        self.begun.elapsed().saturating_sub(ago)
    }
}

impl Stop {
    /// What the last generation told after the first `read` news.
    fn told(log: &str, read: usize, last: u64) -> Outcome<Self> {
        let mut stop = Self::default();
        let news = log.lines().filter(|line| line.contains(news::MARK));
        for line in news.skip(read) {
            match News::parse(line)? {
                news if news.from != last => {}
                News {
                    what: What::Draining { in_flight },
                    ..
                } => stop.in_flight = in_flight,
                News {
                    what: What::Leaves { stragglers, took },
                    ..
                } => {
                    stop.has_left = true;
                    stop.stragglers = stragglers;
                    stop.took = took;
                }
                _ => {}
            }
        }
        Ok(stop)
    }
}

/// Waits for something and draws the block anew until it comes.
async fn meanwhile<T>(
    screen: &mut Screen,
    ticks: &mut Interval,
    load: &Load,
    wait: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let mut wait = std::pin::pin!(wait);
    loop {
        tokio::select! {
            done = &mut wait => return done,
            _ = ticks.tick() => screen.refresh(load.progress()),
        }
    }
}

const IDLE: &str = "none under way";
const DEADLINE: Duration = Duration::from_secs(30);
const ON_ITS_WAY: Duration = Duration::from_millis(50);
