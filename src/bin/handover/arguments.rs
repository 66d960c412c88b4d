//! What the program can be asked, and its help, completions and man pages.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use handover::control::{Fault, Strategy};
use handover::pool::{self, HALT_ON_FAILURES, Listen, Readiness, SURGE, UNAVAILABLE};
use handover::rollout::{By, Network, Promotion, Share};
use serde_json::{Map, Value};

use crate::exit;
use crate::schema::SchemaCommand;

/// Asks a running service how it is; upgrades, rolls back and stops it.
#[derive(Debug, Parser)]
#[command(name = "handover", version, after_help = exit::TABLE)]
pub(crate) struct Arguments {
    /// The service's control socket. HANDOVER_CONTROL says it where this is not given.
    #[arg(long, global = true, value_name = "PATH", env = "HANDOVER_CONTROL")]
    pub(crate) control: Option<PathBuf>,
    /// Answers in JSON, one object in a line.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows how the service is.
    Status,
    /// Hands over to a successor, and says how that ended.
    Upgrade {
        /// How it is done. Default: as the service is built.
        #[arg(long, value_enum)]
        strategy: Option<StrategyName>,
        #[command(flatten)]
        plan: Box<Plan>,
        /// Says that nobody has looked how the last ones ended: refused after too many failures.
        #[arg(long)]
        automatic: bool,
        /// Upgrades the supervisor of a pool itself, in its own process, and leaves the workers alone. Ends with 2 if a trial
        /// of the next one has failed, and with 3 if that one has come and gone.
        #[arg(long, conflicts_with_all = ["strategy", "automatic", "no_wait"])]
        supervisor: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Passes what holds the rollout (a step, the flip, the bake), and says how it ended.
    Promote {
        /// All the way: no further steps and no bake.
        #[arg(long)]
        full: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Lets the rollout stay where it is; the guards stay armed.
    Pause,
    /// Lets a paused rollout go on, or automatic upgrades after too many failed ones.
    Resume,
    /// Gives the candidate a share of the traffic, and pauses there.
    Share {
        /// In percent, such as 5 or 0.25.
        #[arg(value_name = "PERCENT", value_parser = share)]
        share: Share,
    },
    /// Gives the upgrade under way up, before its flip.
    Abort {
        #[command(flatten)]
        undo: Undo,
    },
    /// Undoes the upgrade under way, before or after its flip; or goes back to the release before.
    Rollback {
        #[command(flatten)]
        undo: Undo,
        /// Starts the release before again, from the image that is held of it, and hands over to it: when no upgrade is
        /// under way any more. `status` says whether there is one.
        #[arg(long)]
        cold: bool,
        /// Waits for the verdict (the default).
        #[arg(long, overrides_with = "no_wait")]
        wait: bool,
        /// Comes back as soon as it has begun.
        #[arg(long, overrides_with = "wait")]
        no_wait: bool,
    },
    /// Asks fresh connections to every public address who answers them, and ends with 4 if it is not who should.
    Verify,
    /// Rehearses flip and rollback on the real listeners: the release that serves takes over from itself, and goes back.
    /// Ends with 0 if all was as it should be, and with 4 if not.
    Drill {
        /// What the candidate is to do wrong: passed if the rollout undoes itself. Only for a service that was built with
        /// the feature `inject`.
        #[arg(long, value_enum, value_name = "FAULT")]
        inject: Option<FaultName>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Keeps workers of a program, as a supervisor that holds their sockets: replaces them one by one on SIGHUP, stops
    /// them on SIGTERM, and starts those that crash again.
    Run(Box<Run>),
    /// Has another number of workers from now on.
    Scale {
        /// How many.
        workers: usize,
    },
    /// Becomes a program that takes over from the service, as if the service had started it.
    Takeover {
        /// The program and its arguments, behind `--`.
        #[arg(last = true, required = true, value_name = "PROGRAM")]
        program: Vec<OsString>,
    },
    /// Lists the generations that are alive.
    Generations,
    /// Lists the last upgrades and how they ended.
    History,
    /// Shows what is in flight, and which older generations still drain.
    Drain {
        /// Waits until every older generation has left.
        #[arg(long)]
        wait: bool,
        /// How long to wait, such as 90s, 5m or 1h.
        #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
        timeout: Duration,
    },
    /// Looks at the schema of the service's store, expands and contracts it.
    #[command(subcommand)]
    Schema(SchemaCommand),
    /// Stops the service: nobody follows.
    Stop {
        /// Without waiting for what is in flight.
        #[arg(long)]
        now: bool,
    },
    /// Prints what happens, until the service stops.
    Events,
    /// Tells the last upgrade in full, with the last words of a successor that failed.
    Explain,
    /// Shows all of it live, on a terminal.
    Watch,
    /// Prints the completions for a shell.
    Completions { shell: Shell },
    /// Prints the man page, or writes one for each command to a directory.
    Man {
        /// Where to write them.
        directory: Option<PathBuf>,
    },
}

/// A pool, and how it is kept.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// A socket that every worker gets, such as web=0.0.0.0:8080, app=unix:/run/app.sock or dns=udp:[::]:53.
    #[arg(long, value_name = "NAME=ADDRESS")]
    listen: Vec<Listen>,
    /// How many workers there are to be.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    workers: usize,
    /// Gives each worker a TCP socket of its own on the shared port, for an even balance of connections.
    #[arg(long)]
    reuseport: bool,
    /// When a worker is ready: when it says READY=1 on NOTIFY_SOCKET (notify), when it accepts a connection on a private
    /// socket that it gets besides, named probe (accepts), or when it has lived for so long (5s).
    #[arg(long, value_name = "HOW", default_value = "notify", value_parser = readiness)]
    ready: Readiness,
    /// How many workers more than wanted an update may have.
    #[arg(long, value_name = "NUMBER", default_value_t = SURGE)]
    surge: usize,
    /// How many workers fewer than wanted may be ready during an update.
    #[arg(long, value_name = "NUMBER", default_value_t = UNAVAILABLE)]
    unavailable: usize,
    /// How long a candidate must have been ready before it counts.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    min_healthy: Duration,
    /// How long a worker may take to be ready.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    healthy_deadline: Duration,
    /// How long an update may go on without a further candidate that counts.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    progress_deadline: Duration,
    /// How many candidates have to fail before an update is halted.
    #[arg(long, value_name = "NUMBER", default_value_t = HALT_ON_FAILURES)]
    halt_on_failures: usize,
    /// What becomes of a halted update.
    #[arg(long, value_enum, value_name = "WHAT", default_value = "revert")]
    on_failure: OnFailureName,
    /// How many workers may be on their way out at a time; as many as are wanted where this is not given.
    #[arg(long, value_name = "NUMBER")]
    draining_max: Option<usize>,
    /// Lets candidates be judged by nobody; deaths and missed deadlines undo an update in any case.
    #[arg(long)]
    unguarded: bool,
    /// How long the replacement of a crashed worker waits at most.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    backoff_max: Duration,
    /// How long a worker that was told to stop may take until it is killed, and a stop of the pool in all.
    #[arg(long, value_name = "TIME", default_value = "28s", value_parser = duration)]
    stop_within: Duration,
    /// A signal that every worker is to have too, by its name or number, such as USR1 or WINCH.
    #[arg(long, value_name = "SIGNAL", value_delimiter = ',', value_parser = signal)]
    forward: Vec<i32>,
    /// How long the next supervisor may take to show in its trial that it can take over.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    trial_within: Duration,
    /// Where the lines go that workers write.
    #[arg(long, value_enum, value_name = "HOW", default_value = "plain")]
    logs: LogsName,
    /// How long the last lines of workers that are gone are waited for, where they are prefixed.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    logs_within: Duration,
    /// The program and its arguments, behind `--`.
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

impl Run {
    /// The pool that it describes; none without a program.
    pub(crate) fn builder(self) -> Option<pool::Builder> {
        let mut program = self.program.into_iter();
        let plan = pool::Plan {
            surge: self.surge,
            unavailable: self.unavailable,
            min_healthy: self.min_healthy,
            healthy_deadline: self.healthy_deadline,
            progress_deadline: self.progress_deadline,
            halt_on_failures: self.halt_on_failures,
            on_failure: self.on_failure.into(),
            draining_max: self.draining_max,
            guards: !self.unguarded,
        };
        let care = pool::Care {
            backoff_max: self.backoff_max,
            ..pool::Care::default()
        };
        let builder = pool::builder(program.next()?)
            .args(program)
            .workers(self.workers)
            .reuseport(self.reuseport)
            .plan(plan)
            .care(care)
            .readiness(self.ready)
            .stop_within(self.stop_within)
            .trial_within(self.trial_within)
            .logs(self.logs.into())
            .logs_within(self.logs_within);
        let builder = self
            .forward
            .into_iter()
            .fold(builder, pool::Builder::forward);
        Some(self.listen.into_iter().fold(builder, pool::Builder::listen))
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnFailureName {
    /// Stable workers come back.
    Revert,
    /// The mix stays until somebody resumes the update or aborts it.
    Halt,
}

impl From<OnFailureName> for pool::OnFailure {
    fn from(name: OnFailureName) -> Self {
        match name {
            OnFailureName::Revert => Self::Revert,
            OnFailureName::Halt => Self::Halt,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogsName {
    /// To the supervisor's standard output and standard error, as they are.
    Plain,
    /// There too, each behind `worker 2 release 3 | `; a candidate's last words are in `explain`.
    Prefixed,
}

impl From<LogsName> for pool::Logs {
    fn from(name: LogsName) -> Self {
        match name {
            LogsName::Plain => Self::Plain,
            LogsName::Prefixed => Self::Prefixed,
        }
    }
}

/// Those that a supervisor could have no other use for, or may be told to forgo.
fn signal(text: &str) -> Result<i32, String> {
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let named = FORWARDED.iter().find(|(known, _)| *known == name);
    let numbered = || {
        FORWARDED
            .iter()
            .find(|(_, number)| name.parse() == Ok(*number))
    };
    let found = named.or_else(numbered);
    found.map(|(_, number)| *number).ok_or_else(|| {
        let names: Vec<&str> = FORWARDED.iter().map(|(name, _)| *name).collect();
        format!("one of {}", names.join(", "))
    })
}

const FORWARDED: [(&str, i32); 10] = [
    ("HUP", libc::SIGHUP),
    ("QUIT", libc::SIGQUIT),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("ALRM", libc::SIGALRM),
    ("CONT", libc::SIGCONT),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("WINCH", libc::SIGWINCH),
];

fn readiness(text: &str) -> Result<Readiness, String> {
    match text {
        "notify" => Ok(Readiness::Notify),
        "accepts" => Ok(Readiness::Accepts),
        time => duration(time)
            .map(Readiness::Alive)
            .map_err(|_| "notify, accepts or a time such as 5s".to_owned()),
    }
}

/// What is to be other than the service's own plan, or the strategy's.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// The shares of a canary in percent, such as 1,5,25,50; the flip follows by itself.
    #[arg(long, value_name = "PERCENT", value_delimiter = ',', value_parser = share)]
    steps: Option<Vec<Share>>,
    /// What a share is a share of.
    #[arg(long, value_enum)]
    by: Option<ByName>,
    /// Who decides on the flip.
    #[arg(long, value_enum)]
    promotion: Option<PromotionName>,
    /// How long each step takes at least.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    step_min: Option<Duration>,
    /// How many requests the candidate answers in each step and in the bake at least.
    #[arg(long, value_name = "NUMBER")]
    units_min: Option<u64>,
    /// How long a step waits for them before the rollout pauses.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    step_deadline: Option<Duration>,
    /// How long the generation before stays warm after the flip.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    bake: Option<Duration>,
    /// Clients that are the candidate's from the first step on, such as 10.1.0.0/16.
    #[arg(long, value_name = "NETWORK")]
    include: Option<Vec<Network>>,
    /// Clients that stay until the flip, such as health checkers.
    #[arg(long, value_name = "NETWORK")]
    exclude: Option<Vec<Network>>,
    /// Lets traffic be judged by nobody; deaths and failed checks undo it in any case.
    #[arg(long)]
    unguarded: bool,
}

impl Plan {
    /// As the control socket takes it; none if nothing is to be changed.
    pub(crate) fn changes(&self) -> serde_json::Result<Option<Map<String, Value>>> {
        let mut changes = Map::new();
        let mut change = |name: &str, value: Value| {
            if !value.is_null() {
                changes.insert(name.to_owned(), value);
            }
        };
        change("steps", serde_json::to_value(&self.steps)?);
        change("by", serde_json::to_value(self.by.map(By::from))?);
        let promotion = self.promotion.map(Promotion::from);
        change("promotion", serde_json::to_value(promotion)?);
        change("step_min", serde_json::to_value(self.step_min)?);
        change("units_min", serde_json::to_value(self.units_min)?);
        change("step_deadline", serde_json::to_value(self.step_deadline)?);
        change("bake", serde_json::to_value(self.bake)?);
        change("include", serde_json::to_value(&self.include)?);
        change("exclude", serde_json::to_value(&self.exclude)?);
        change(
            "guards",
            serde_json::to_value(self.unguarded.then_some(false))?,
        );
        Ok((!changes.is_empty()).then_some(changes))
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ByName {
    /// Each connection by itself.
    Connection,
    /// Each client, who stays where they are.
    Client,
    /// Each request, for HTTP behind a proxy.
    Request,
}

impl From<ByName> for By {
    fn from(name: ByName) -> Self {
        match name {
            ByName::Connection => Self::Connection,
            ByName::Client => Self::Client,
            ByName::Request => Self::Request,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PromotionName {
    /// The rollout itself, once steps and checks have passed.
    Automatic,
    /// The operator.
    ByHand,
}

impl From<PromotionName> for Promotion {
    fn from(name: PromotionName) -> Self {
        match name {
            PromotionName::Automatic => Self::Automatic,
            PromotionName::ByHand => Self::ByHand,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Waits for the verdict (the default).
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Comes back as soon as it has begun.
    #[arg(long, overrides_with = "wait")]
    no_wait: bool,
    /// How long to wait, such as 90s, 5m or 1h.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Undo {
    /// Why, for the history.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) reason: String,
    /// How long to wait until it is done, such as 90s, 5m or 1h.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub(crate) timeout: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum StrategyName {
    /// The successor takes over as soon as it is ready.
    Immediate,
    /// The successor stands by until it is promoted, and then bakes with the guards armed.
    BlueGreen,
    /// The successor gets growing shares of the traffic and is judged by how it does.
    Canary,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum FaultName {
    /// It dies soon after the flip.
    Crash,
    /// It accepts nobody after the flip.
    Hang,
    /// It answers a part of its requests with 500.
    Errors,
    /// It takes longer for each of its requests.
    Slow,
    /// It never says that it is ready.
    NeverReady,
}

impl From<FaultName> for Fault {
    fn from(name: FaultName) -> Self {
        match name {
            FaultName::Crash => Self::Crash,
            FaultName::Hang => Self::Hang,
            FaultName::Errors => Self::Errors,
            FaultName::Slow => Self::Slow,
            FaultName::NeverReady => Self::NeverReady,
        }
    }
}

impl Wait {
    pub(crate) fn is_wanted(&self) -> bool {
        !self.no_wait
    }
}

impl From<StrategyName> for Strategy {
    fn from(name: StrategyName) -> Self {
        match name {
            StrategyName::Immediate => Self::Immediate,
            StrategyName::BlueGreen => Self::BlueGreen,
            StrategyName::Canary => Self::Canary,
        }
    }
}

/// A number and its unit: ms, s, m or h. Nothing is longer than a year, so that it can be added to any instant.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit());
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let number: u64 = number
        .parse()
        .map_err(|_| "a number and a unit, such as 90s, 5m or 1h".to_owned())?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("the unit is one of ms, s, m, h".to_owned()),
    };
    let millis = number.saturating_mul(unit_ms).min(YEAR_MS);
    Ok(Duration::from_millis(millis))
}

/// Percent with up to two decimals.
fn share(text: &str) -> Result<Share, String> {
    let wrong = || "a number of percent, such as 5 or 0.25".to_owned();
    let (whole, hundredths) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(hundredths) || hundredths.len() > 2 {
        return Err(wrong());
    }
    let whole: u16 = whole.parse().map_err(|_| wrong())?;
    let hundredths: u16 = format!("{hundredths:0<2}").parse().map_err(|_| wrong())?;
    match whole
        .checked_mul(100)
        .and_then(|parts| parts.checked_add(hundredths))
    {
        Some(parts) if parts <= Share::FULL.parts() => Ok(Share::per_10000(parts)),
        _ => Err("there is nothing beyond 100 percent".to_owned()),
    }
}

const YEAR_MS: u64 = 365 * 24 * 3_600_000;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_time_has_a_number_and_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(
            duration("18446744073709551615h"),
            Ok(Duration::from_millis(YEAR_MS))
        );
        for wrong in ["", "5", "m", "5 m", "5d", "-5s", "1.5s"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_share_is_a_number_of_percent() {
        assert_eq!(share("5"), Ok(Share::percent(5)));
        assert_eq!(share("0.25"), Ok(Share::per_10000(25)));
        assert_eq!(share("0.5"), Ok(Share::per_10000(50)));
        assert_eq!(share("100"), Ok(Share::FULL));
        for wrong in ["", "5 %", "0.125", "101", "-1", "1.", ".5", "99999"] {
            assert!(share(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_plan_has_what_was_given_and_nothing_else() {
        let given = [
            "handover",
            "upgrade",
            "--steps",
            "1,25",
            "--bake",
            "5s",
            "--by",
            "connection",
        ];
        let Command::Upgrade { plan, .. } = Arguments::try_parse_from(given).unwrap().command
        else {
            panic!("no upgrade");
        };
        let changes = serde_json::to_string(&plan.changes().unwrap()).unwrap();
        assert_eq!(
            changes,
            r#"{"bake":{"nanos":0,"secs":5},"by":"connection","steps":[100,2500]}"#
        );
        let Command::Upgrade { plan, .. } = Arguments::try_parse_from(&given[..2]).unwrap().command
        else {
            panic!("no upgrade");
        };
        assert_eq!(plan.changes().unwrap(), None);
    }

    #[test]
    fn it_waits_unless_it_is_told_not_to() {
        for (given, waits) in [
            (&["upgrade"][..], true),
            (&["upgrade", "--wait"], true),
            (&["upgrade", "--no-wait"], false),
            (&["upgrade", "--no-wait", "--wait"], true),
        ] {
            let arguments = Arguments::try_parse_from([&["handover"], given].concat()).unwrap();
            let Command::Upgrade { wait, .. } = arguments.command else {
                panic!("no upgrade");
            };
            assert_eq!(wait.is_wanted(), waits, "{given:?}");
        }
    }
}
