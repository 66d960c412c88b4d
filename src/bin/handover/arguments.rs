//! What the program can be asked, and its help, completions and man pages.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use handover::control::Strategy;

use crate::exit;

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
        wait: Wait,
    },
    /// Lets the successor that stands by take over, and says how that ended.
    Promote {
        #[command(flatten)]
        wait: Wait,
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
    /// The successor stands by until it is promoted.
    BlueGreen,
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
        }
    }
}

/// A number and its unit: ms, s, m or h. Nothing is longer than a year, so that it can be added to any instant.
fn duration(text: &str) -> Result<Duration, String> {
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
