//! What a release does to the data to come to a version, or to leave what lies below it.

use std::ffi::OsString;
use std::fmt;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;

use crate::config::SCHEMA_STEP_DEADLINE;
use crate::sys::group::Group;

/// What a closure of the application is to come to.
type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;
type Run = dyn Fn() -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send + Sync;

/// One step of a migration: statements, code or a command.
///
/// ```
/// use handover::schema::Step;
///
/// let plain = Step::sql("ALTER TABLE person ADD COLUMN full_name TEXT");
/// let tool = Step::command("sqlx", ["migrate", "run", "--target-version", "7"]);
/// let code = Step::run(|| async { Ok(()) });
/// ```
#[derive(Clone)]
pub struct Step {
    pub(super) how: How,
    pub(super) deadline: Duration,
}

#[derive(Clone)]
pub(super) enum How {
    Sql(String),
    Run(Arc<Run>),
    Command {
        program: OsString,
        arguments: Vec<OsString>,
    },
}

impl Step {
    /// Statements that run in the transaction that moves the version: after a crash all of it is there, or nothing.
    ///
    /// They are separated by semicolons, and must not end the transaction. What cannot run in one (`CREATE INDEX
    /// CONCURRENTLY`, `VACUUM`) is a [command](Self::command) or [code](Self::run).
    pub fn sql(statements: impl Into<String>) -> Self {
        Self::new(How::Sql(statements.into()))
    }

    /// Nothing has to be done: a version that only says that its releases live without what those before it need.
    pub fn nothing() -> Self {
        Self::sql("")
    }

    /// Code of the application, such as `refinery` or `sqlx::migrate!`, on connections of its own.
    ///
    /// It runs outside of a transaction, one process at a time. After a crash it runs once more, so it must find what it
    /// has done: migration tools do. It is dropped when its deadline is over, or when another process may begin it since
    /// the connection was lost that claimed it.
    pub fn run<F, W>(code: F) -> Self
    where
        F: Fn() -> W + Send + Sync + 'static,
        W: Future<Output = Outcome> + Send + 'static,
    {
        Self::new(How::Run(Arc::new(move || Box::pin(code()))))
    }

    /// A program that has to exit with status 0, as [`run`](Self::run) otherwise. One without a slash is searched in the
    /// `PATH` of this process. Its output goes where this process's goes.
    ///
    /// It is killed, with the process group that it leads, when its deadline is over. If this process is killed meanwhile it
    /// goes on alone, and whoever starts next may run it once more beside it: tools that take a lock of their own in the
    /// database, as `sqlx` does, are safe from that.
    pub fn command(
        program: impl Into<OsString>,
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Self {
        Self::new(How::Command {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
        })
    }

    /// How long it may take. What takes longer is given up: undone if it is [`sql`](Self::sql), killed if it is a command.
    /// Default: [`SCHEMA_STEP_DEADLINE`], 10 min.
    #[must_use]
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.deadline = limit;
        self
    }

    fn new(how: How) -> Self {
        Self {
            how,
            deadline: SCHEMA_STEP_DEADLINE,
        }
    }
}

impl How {
    /// Outside of a transaction. Statements have nothing to do there.
    pub(super) async fn run(&self) -> Outcome {
        match self {
            Self::Sql(_) => Ok(()),
            Self::Run(code) => code().await,
            Self::Command { program, arguments } => {
                let mut command = Command::new(program);
                command.args(arguments).stdin(Stdio::null());
                let mut child = command.process_group(0).kill_on_drop(true).spawn()?;
                let mut group = Group::led_by(&child);
                let status = child.wait().await;
                group.collected();
                let status = status?;
                match status.success() {
                    true => Ok(()),
                    false => Err(format!("{}: {status}", program.display()).into()),
                }
            }
        }
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.how {
            How::Sql(statements) => write!(out, "Step::sql({statements:?})"),
            How::Run(_) => out.write_str("Step::run(..)"),
            How::Command { program, arguments } => {
                write!(out, "Step::command({program:?}, {arguments:?})")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::task::yield_now;

    use super::*;
    use crate::sys::process::has_started_at;

    /// Nothing a test waits for takes longer than this.
    const DEADLINE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_command_that_is_given_up_is_killed_with_whatever_it_has_started() {
        let room = tempfile::tempdir().unwrap();
        let told = room.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", told.display());
        let step = Step::command("sh", ["-c", &script]);
        let started = async {
            loop {
                let text = fs::read_to_string(&told).unwrap_or_default();
                if let Some(pid) = text.strip_suffix('\n') {
                    break pid.parse().unwrap();
                }
                yield_now().await;
            }
        };
        let pid = tokio::select! {
            pid = tokio::time::timeout(DEADLINE, started) => pid.unwrap(),
            ended = step.how.run() => panic!("{ended:?}"),
        };
        let ended = async {
            while has_started_at(pid).unwrap().is_some() {
                yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, ended).await.unwrap();
    }
}
