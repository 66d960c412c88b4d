//! Checks of a candidate that is ready and has no clients yet.
//!
//! They run in the generation that serves, and reach the candidate by its private endpoints: see
//! [`Builder::preview`](crate::Builder::preview).

mod command;
mod http;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::time::timeout_at;

use crate::protocol::message::Preview;

/// One check, which has to pass before a candidate gets any clients.
///
/// ```no_run
/// use handover::Check;
///
/// let builder = handover::builder()
///     .preview("/run/app")
///     .pre_flip(Check::http("web", "/readyz"))
///     .pre_flip(Check::command("/usr/lib/app/smoke-test", ["--quick"]));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Http {
        listener: String,
        path: String,
    },
    Command {
        program: OsString,
        arguments: Vec<OsString>,
    },
}

impl Check {
    /// A GET request of HTTP/1.1 to the candidate's listener of this name, for a path such as `/readyz`, has to be
    /// answered with a status of 200 to 299. It gets [`CHECK_TRIES`](crate::config::CHECK_TRIES) tries.
    ///
    /// A listener that speaks TLS, or HTTP/2 alone, needs a [command](Self::command).
    pub fn http(listener: impl Into<String>, path: impl Into<String>) -> Self {
        Self(Kind::Http {
            listener: listener.into(),
            path: path.into(),
        })
    }

    /// A program has to exit with status 0 in time; at the deadline it is killed with its process group. It finds the
    /// candidate's number in `HANDOVER_GENERATION`, and for each listener the path of its private Unix socket in
    /// `HANDOVER_PREVIEW_` and the listener's name, in capitals and with `_` for whatever is neither letter nor digit;
    /// the port, if there is one, in `HANDOVER_PREVIEW_PORT_` and the name.
    ///
    /// A program without a slash is searched in the `PATH` of this process. The last lines of its standard output and
    /// error go into the reason if it fails.
    pub fn command(
        program: impl Into<OsString>,
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Self {
        Self(Kind::Command {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
        })
    }

    async fn run(&self, candidate: &Candidate) -> Result<(), String> {
        match &self.0 {
            Kind::Http { listener, path } => http::check(candidate.preview(listener)?, path).await,
            Kind::Command { program, arguments } => {
                command::check(program, arguments, candidate.variables()).await
            }
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Http { listener, path } => write!(f, "GET {path} of {listener:?}"),
            Kind::Command { program, .. } => write!(f, "command {}", program.display()),
        }
    }
}

/// Whom the checks are about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Candidate {
    pub(crate) generation: u64,
    pub(crate) previews: Vec<Preview>,
}

impl Candidate {
    fn preview(&self, listener: &str) -> Result<PathBuf, String> {
        let mut previews = self.previews.iter();
        let preview = previews.find(|preview| preview.name == listener);
        preview
            .map(|preview| PathBuf::from(&preview.path))
            .ok_or_else(|| format!("the candidate has no private endpoint for {listener:?}"))
    }

    fn variables(&self) -> Vec<(String, String)> {
        let generation = (
            "HANDOVER_GENERATION".to_owned(),
            self.generation.to_string(),
        );
        let mut variables = vec![generation];
        for Preview { name, path, port } in &self.previews {
            let name = name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
            let name = name.to_ascii_uppercase();
            variables.push((format!("HANDOVER_PREVIEW_{name}"), path.clone()));
            if let Some(port) = port {
                variables.push((format!("HANDOVER_PREVIEW_PORT_{name}"), port.to_string()));
            }
        }
        variables
    }
}

/// Runs the checks one after another, until one fails or `limit` is over; the reason names it.
///
/// # Cancel safety
///
/// A command that runs is killed with its group when the future is dropped.
pub(crate) async fn run(
    checks: &[Check],
    candidate: &Candidate,
    limit: Duration,
) -> Result<(), String> {
    let until = Instant::now() + limit;
    for check in checks {
        let result = timeout_at(until.into(), check.run(candidate)).await;
        result
            .unwrap_or_else(|_| Err(format!("it was not done when {limit:?} were over")))
            .map_err(|reason| format!("{check}: {reason}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing a test waits for takes longer than this.
    const DEADLINE: Duration = Duration::from_secs(20);

    fn candidate() -> Candidate {
        let preview = |name: &str, port| Preview {
            name: name.into(),
            path: format!("/run/{name}"),
            port,
        };
        Candidate {
            generation: 7,
            previews: vec![preview("web-1.a", Some(80)), preview("admin", None)],
        }
    }

    fn shell(script: &str) -> Check {
        Check::command("sh", ["-c", script])
    }

    #[tokio::test]
    async fn a_command_finds_the_candidate_in_its_environment() {
        let script = r#"test "$HANDOVER_GENERATION:$HANDOVER_PREVIEW_WEB_1_A" = 7:/run/web-1.a &&
            test "$HANDOVER_PREVIEW_PORT_WEB_1_A:$HANDOVER_PREVIEW_ADMIN" = 80:/run/admin &&
            test -z "$HANDOVER_PREVIEW_PORT_ADMIN""#;
        run(&[shell(script)], &candidate(), DEADLINE).await.unwrap();
    }

    #[tokio::test]
    async fn the_first_that_fails_is_named_with_its_last_words_and_ends_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let after = shell(&format!("echo after > {}", file.path().display()));
        let words = shell("echo one; echo two >&2; exit 3");
        let checks = [shell("exit 0"), words, after];
        let reason = run(&checks, &candidate(), DEADLINE).await.unwrap_err();
        assert_eq!(reason, "command sh: exit status: 3; it said: one; two");
        assert_eq!(std::fs::read(file.path()).unwrap(), b"");
    }

    #[tokio::test]
    async fn a_listener_without_an_endpoint_fails_and_nothing_hangs() {
        let check = Check::http("dns", "/readyz");
        let reason = run(&[check], &candidate(), DEADLINE).await.unwrap_err();
        assert!(
            reason.contains("no private endpoint for \"dns\""),
            "{reason}"
        );
    }

    #[tokio::test]
    async fn what_is_not_done_in_time_is_named() {
        let limit = Duration::from_millis(100);
        let checks = [shell("sleep 1000")];
        let reason = run(&checks, &candidate(), limit).await.unwrap_err();
        assert_eq!(reason, "command sh: it was not done when 100ms were over");
    }
}
