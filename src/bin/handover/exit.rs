//! What the program's exit code says.

use std::error::Error as _;
use std::io;
use std::process::ExitCode;

use handover::control::{Upgrade, Verdict};
use handover::{Error, ErrorKind};

/// One of the seven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// What was asked for is so.
    Reached = 0,
    /// The arguments are wrong, or the service cannot be asked.
    Usage = 1,
    /// The service would not, and nothing has changed.
    Refused = 2,
    /// The upgrade was aborted or rolled back; the generation before it serves.
    Back = 3,
    /// Nobody serves as they should, nobody knows how it ended, or a migration is half done: have a look.
    Degraded = 4,
    /// The time to wait is over; it goes on.
    GoesOn = 5,
    /// Somebody has to decide: promote it, resume it or abort.
    Decide = 6,
}

/// What the man page says about them.
pub(crate) const TABLE: &str = "Exit codes:\n  \
    0  what was asked for is so\n  \
    1  wrong arguments, or the service cannot be asked\n  \
    2  refused, nothing has changed\n  \
    3  aborted or rolled back, the generation before serves\n  \
    4  degraded: nobody serves, nobody knows how it ended, or a step of a migration failed\n  \
    5  the time to wait is over, it goes on\n  \
    6  paused, a decision is needed: promote, resume or abort";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// Of whoever wanted the upgrade to succeed.
    pub(crate) fn of(upgrade: &Upgrade) -> Self {
        match upgrade.verdict {
            Verdict::Committed => Self::Reached,
            Verdict::Refused => Self::Refused,
            Verdict::Aborted | Verdict::RolledBack if upgrade.incumbent_serves => Self::Back,
            Verdict::Aborted | Verdict::RolledBack | Verdict::Degraded => Self::Degraded,
            _ => Self::Usage,
        }
    }

    /// Of whoever wanted the upgrade undone.
    pub(crate) fn of_undoing(upgrade: &Upgrade) -> Self {
        match Self::of(upgrade) {
            Self::Back => Self::Reached,
            // It was never begun, as was wanted.
            Self::Refused => Self::Reached,
            // Too late.
            Self::Reached => Self::Refused,
            other => other,
        }
    }

    /// Of a question that was not answered.
    pub(crate) fn of_error(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::Refused => Self::Refused,
            ErrorKind::Schema => Self::Degraded,
            _ => Self::Usage,
        }
    }
}

/// What kind of system error is behind it, if it is one.
pub(crate) fn io_kind(error: &Error) -> Option<io::ErrorKind> {
    let source = error.source()?.downcast_ref::<io::Error>()?;
    Some(source.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upgrade(verdict: &str, serves: bool) -> Upgrade {
        let text = format!(
            r#"{{"generation":2,"from":1,"verdict":"{verdict}","incumbent_serves":{serves}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_verdict_is_what_its_asker_wanted_or_not() {
        for (verdict, serves, wanted, undoing) in [
            ("committed", false, Exit::Reached, Exit::Refused),
            ("refused", true, Exit::Refused, Exit::Reached),
            ("aborted", true, Exit::Back, Exit::Reached),
            ("rolled_back", true, Exit::Back, Exit::Reached),
            ("rolled_back", false, Exit::Degraded, Exit::Degraded),
            ("degraded", true, Exit::Degraded, Exit::Degraded),
            ("of a newer build", true, Exit::Usage, Exit::Usage),
        ] {
            let upgrade = upgrade(verdict, serves);
            assert_eq!(Exit::of(&upgrade), wanted, "{verdict}");
            assert_eq!(Exit::of_undoing(&upgrade), undoing, "{verdict}");
        }
    }
}
