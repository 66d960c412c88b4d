//! The one error type: what was being done to what, why it failed, and who serves now.

use std::error::Error as StdError;
use std::fmt;

use crate::event::Phase;

/// Why a call of this crate failed.
///
/// [`Display`](fmt::Display) says what was being done to what, without its cause; walk
/// [`source`](StdError::source) for that. [`incumbent_serving`](Self::incumbent_serving) answers the question that an
/// operator has first: a failed handover is never a failed service.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    doing: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
    phase: Option<Phase>,
    peer_pid: Option<u32>,
    incumbent_serving: bool,
    has_begun: bool,
    exit: Option<String>,
    stderr_tail: String,
}

/// What class of failure an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A socket could not be bound, claimed or configured.
    Listen,
    /// The successor could not be started: no such program, not executable, out of descriptors or memory.
    Launch,
    /// The other generation said something that this one cannot accept, or speaks no common protocol version.
    Protocol,
    /// The upgrade was not begun, because another is under way or too many generations are alive.
    Refused,
    /// The upgrade ended before the flip; nothing changed for any client.
    Aborted,
    /// The successor had taken over and the accept right went back to the incumbent.
    RolledBack,
    /// The schema of the store does not fit this release, or the store cannot be asked.
    Schema,
    /// This generation is stopping, or was told to leave.
    Stopping,
    /// A system call failed outside the cases above.
    Io,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, doing: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            doing: doing.into(),
            source: None,
            phase: None,
            peer_pid: None,
            incumbent_serving: false,
            has_begun: false,
            exit: None,
            stderr_tail: String::new(),
        }))
    }

    pub(crate) fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    pub(crate) fn in_phase(mut self, phase: Phase) -> Self {
        self.0.phase = Some(phase);
        self
    }

    pub(crate) fn with_peer(mut self, pid: u32) -> Self {
        self.0.peer_pid = Some(pid);
        self
    }

    pub(crate) fn while_incumbent_serves(mut self) -> Self {
        self.0.incumbent_serving = true;
        self
    }

    /// Something may have changed.
    pub(crate) fn having_begun(mut self) -> Self {
        self.0.has_begun = true;
        self
    }

    /// Whether something may have changed, though it failed.
    pub(crate) fn has_begun(&self) -> bool {
        self.0.has_begun
    }

    pub(crate) fn with_last_words(mut self, exit: Option<String>, stderr_tail: String) -> Self {
        self.0.exit = exit;
        self.0.stderr_tail = stderr_tail;
        self
    }

    /// What class of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// How far the upgrade had come, if this is the verdict of one.
    pub fn phase(&self) -> Option<Phase> {
        self.0.phase
    }

    /// The process at the other end of the handover, if there was one.
    pub fn peer_pid(&self) -> Option<u32> {
        self.0.peer_pid
    }

    /// Whether the generation that served before still serves, as if nothing had happened.
    pub fn incumbent_serving(&self) -> bool {
        self.0.incumbent_serving
    }

    /// How the successor's process ended, in words, if it ended.
    pub fn exit(&self) -> Option<&str> {
        self.0.exit.as_deref()
    }

    /// The last lines that the successor wrote to its standard error before it was given up.
    pub fn stderr_tail(&self) -> &str {
        &self.0.stderr_tail
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.doing)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        write!(f, "{} ({:?}", inner.doing, inner.kind)?;
        if let Some(phase) = inner.phase {
            write!(f, ", phase {phase}")?;
        }
        if let Some(pid) = inner.peer_pid {
            write!(f, ", pid {pid}")?;
        }
        if let Some(exit) = &inner.exit {
            write!(f, ", {exit}")?;
        }
        f.write_str(")")?;
        let mut cause = inner
            .source
            .as_ref()
            .map(|source| &**source as &dyn StdError);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        if inner.incumbent_serving {
            f.write_str("; the incumbent serves on")?;
        }
        if !inner.stderr_tail.is_empty() {
            write!(
                f,
                "\nlast words of the successor:\n{}",
                inner.stderr_tail.trim_end()
            )?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0
            .source
            .as_ref()
            .map(|source| &**source as &(dyn StdError + 'static))
    }
}

/// The result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_does_not_repeat_its_source() {
        let error = Error::new(ErrorKind::Listen, "binding \"web\" to 127.0.0.1:80")
            .because(std::io::Error::from_raw_os_error(libc::EACCES));
        assert_eq!(error.to_string(), "binding \"web\" to 127.0.0.1:80");
        assert!(
            error
                .source()
                .is_some_and(|source| source.to_string().contains("denied"))
        );
    }

    #[test]
    fn debug_tells_the_chain_the_last_words_and_who_serves() {
        let error = Error::new(ErrorKind::Aborted, "upgrading to generation 2")
            .because("it exited before it was ready")
            .in_phase(Phase::Warming)
            .with_peer(77)
            .while_incumbent_serves()
            .with_last_words(Some("exit status: 3".into()), "no such database\n".into());
        assert_eq!(
            format!("{error:?}"),
            "upgrading to generation 2 (Aborted, phase warming, pid 77, exit status: 3): \
             it exited before it was ready; the incumbent serves on\n\
             last words of the successor:\nno such database"
        );
    }
}
