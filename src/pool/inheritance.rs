//! What a supervisor leaves to the program that its process becomes: a sealed memory file with its state, and every
//! descriptor that it holds, left open over the exec under the numbers that a variable lists.
//!
//! 1. Nothing is taken out: whoever resumes works with duplicates, so that all of it can be left once more if he fails.
//! 2. Only the process that it was left to takes it; or, in a trial, a process that this one has started.
//! 3. The list begins with the state and the image of the program that has left it. The rest is in the order in which
//!    the state names it, and in a trial the way back to the supervisor is the last of all.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::process;

use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::time::timeout;

use crate::config::SUPERVISOR_TRIAL;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::descriptors::{self, watched};
use crate::sys::environment::{SUPERVISOR, Snapshot};
use crate::sys::exec::become_program;
use crate::sys::memory;

/// Who this process is to its inheritance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heir {
    /// A process that only shows whether it could take over.
    OnTrial,
    /// The next supervisor.
    Next,
    /// The one that has left it, because the next one could not go on, for this reason.
    Back(String),
}

/// All of it.
#[derive(Debug)]
pub(super) struct Inheritance<S> {
    pub(super) heir: Heir,
    pub(super) state: S,
    word: u64,
    files: Vec<OwnedFd>,
}

/// The state, and what is the same whatever else is in it.
#[derive(Debug, Serialize, Deserialize)]
struct Envelope<S> {
    version: u32,
    /// The process that it is left to.
    pid: u32,
    /// How the program that has left it was started, which it is again if it comes back.
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    /// What a program on trial repeats, to show that it has read this.
    word: u64,
    state: S,
}

/// What is read first, since the rest may be of another version.
#[derive(Deserialize)]
struct Version {
    version: u32,
    pid: u32,
    #[serde(default)]
    argv: Vec<OsString>,
    #[serde(default)]
    env: Vec<(OsString, OsString)>,
}

/// The duplicates of inherited descriptors, one after another.
pub(super) struct Files<'a>(std::slice::Iter<'a, OwnedFd>);

impl Files<'_> {
    /// The next one.
    pub(super) fn take(&mut self) -> io::Result<OwnedFd> {
        let missing = || io::Error::other("fewer descriptors were left than are needed");
        self.0.next().ok_or_else(missing)?.try_clone()
    }
}

/// Puts a state into a memory file for this process, with the word that shows that it was read.
pub(super) fn seal(state: &impl Serialize, snapshot: &Snapshot, word: u64) -> io::Result<OwnedFd> {
    let envelope = Envelope {
        version: VERSION,
        pid: process::id(),
        argv: snapshot.argv.clone(),
        env: environment(snapshot),
        word,
        state,
    };
    memory::sealed(c"handover-supervisor", &serde_json::to_vec(&envelope)?)
}

/// The value of [`SUPERVISOR`], for these numbers.
pub(super) fn variable(heir: &Heir, numbers: impl Iterator<Item = RawFd>) -> OsString {
    let (who, reason) = match heir {
        Heir::OnTrial => ("trial", ""),
        Heir::Next => ("next", ""),
        Heir::Back(reason) => ("back", reason.as_str()),
    };
    let numbers: Vec<String> = numbers.map(|number| number.to_string()).collect();
    // A null ends a variable.
    let reason = reason.replace('\0', " ");
    format!("{who}:{}:{reason}", numbers.join(",")).into()
}

/// Becomes a program that is left these descriptors, in this order, and finds them by the variable. Returns only the
/// reason if it did not, and everything is as before then.
pub(super) fn leave_to(
    program: &Path,
    argv: &[OsString],
    mut env: Vec<(OsString, OsString)>,
    heir: &Heir,
    files: &[BorrowedFd<'_>],
) -> io::Error {
    let left: io::Result<Vec<OwnedFd>> = files
        .iter()
        .map(|file| descriptors::leave_copy_to_exec(*file))
        .collect();
    match left {
        Ok(left) => {
            let value = variable(heir, left.iter().map(AsRawFd::as_raw_fd));
            env.push((SUPERVISOR.into(), value));
            become_program(program, argv, &env)
        }
        Err(error) => error,
    }
}

/// What this process was started with, and what the service manager tells the process, which stays the same.
pub(super) fn environment(snapshot: &Snapshot) -> Vec<(OsString, OsString)> {
    let manager = snapshot.service_manager.iter();
    let manager = manager.filter(|(name, _)| MANAGER.iter().any(|it| name == it));
    snapshot.env.iter().chain(manager).cloned().collect()
}

impl<S: for<'de> Deserialize<'de>> Inheritance<S> {
    /// What was left to this process, if it is a supervisor's heir.
    ///
    /// # Errors
    ///
    /// If it was left something and cannot read it. The program that has left it goes on then, unless it is gone.
    pub(super) fn take(snapshot: &Snapshot) -> Option<Result<Self>> {
        let value = snapshot.service_manager(SUPERVISOR)?;
        Some(Self::read(value))
    }

    fn read(value: &OsStr) -> Result<Self> {
        let Some((heir, numbers)) = parsed(value) else {
            return Err(inheriting(format!("{SUPERVISOR} is {value:?}")));
        };
        let files: io::Result<Vec<OwnedFd>> = numbers.into_iter().map(descriptors::adopt).collect();
        let files = files.map_err(inheriting)?;
        match opened::<S>(&heir, &files) {
            Ok(envelope) => Ok(Self {
                heir,
                state: envelope.state,
                word: envelope.word,
                files,
            }),
            Err(error) if heir == Heir::Next => Err(back(&files, &error.to_string())),
            Err(error) => Err(inheriting(error)),
        }
    }

    /// The descriptors, in the order in which they were left.
    pub(super) fn files(&self) -> Files<'_> {
        let end = self.files.len() - usize::from(self.heir == Heir::OnTrial);
        Files(
            self.files
                .get(BEFORE_OTHERS..end)
                .unwrap_or_default()
                .iter(),
        )
    }

    /// Lets the program that has left it go on instead of this one. Returns only if it cannot.
    pub(super) fn go_back(&self, why: &Error) -> Error {
        back(&self.files, &told(why))
    }

    /// Shows that this program can take over, and waits for its end, since there is nothing else for it to do: the error
    /// is for a supervisor that is gone or has forgotten it.
    pub(super) async fn tried(&self) -> Error {
        let ended = async {
            let last = self.files.last().ok_or(io::ErrorKind::NotFound)?;
            let way = watched(last.try_clone()?, Interest::READABLE)?;
            descriptors::send(way.as_fd(), self.word.to_string().as_bytes(), &[])?;
            way.readable().await.map(drop)
        };
        // It is an error in any case.
        let _: std::result::Result<io::Result<()>, _> = timeout(SUPERVISOR_TRIAL, ended).await;
        inheriting("this was a trial, and it is over")
    }
}

fn opened<S: for<'de> Deserialize<'de>>(heir: &Heir, files: &[OwnedFd]) -> io::Result<Envelope<S>> {
    let state = files.first().ok_or(io::ErrorKind::NotFound)?;
    let bytes = memory::read(state.as_fd())?;
    let Version { version, pid, .. } = serde_json::from_slice(&bytes)?;
    if version != VERSION {
        let text = format!("a state of version {version}, and this program knows {VERSION}");
        return Err(io::Error::other(text));
    }
    let ours = match heir {
        Heir::OnTrial => parent_id(),
        Heir::Next | Heir::Back(_) => process::id(),
    };
    if pid != ours {
        return Err(io::Error::other(format!("it was left to process {pid}")));
    }
    Ok(serde_json::from_slice(&bytes)?)
}

/// Becomes the program that has left it, once more. Returns only if it cannot.
fn back(files: &[OwnedFd], why: &str) -> Error {
    let [state, image, ..] = files else {
        return inheriting(why);
    };
    let bytes = memory::read(state.as_fd()).unwrap_or_default();
    let Ok(before) = serde_json::from_slice::<Version>(&bytes) else {
        return inheriting(format!("{why}, and nobody knows what to go back to"));
    };
    let program = PathBuf::from(format!("/proc/self/fd/{}", image.as_raw_fd()));
    let left: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    let heir = Heir::Back(why.to_owned());
    let error = leave_to(&program, &before.argv, before.env, &heir, &left);
    inheriting(format!("{why}, and there is no way back: {error}"))
}

fn parsed(value: &OsStr) -> Option<(Heir, Vec<RawFd>)> {
    let text = value.to_string_lossy();
    let mut parts = text.splitn(3, ':');
    let (who, numbers, reason) = (parts.next()?, parts.next()?, parts.next()?);
    let heir = match who {
        "trial" => Heir::OnTrial,
        "next" => Heir::Next,
        "back" => Heir::Back(reason.to_owned()),
        _ => return None,
    };
    let numbers: std::result::Result<Vec<RawFd>, _> = numbers.split(',').map(str::parse).collect();
    Some((heir, numbers.ok()?))
}

/// The whole chain in one line.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

fn inheriting(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Launch, "taking over from a supervisor").because(why)
}

/// The only one so far. Fields that a program does not know it ignores, so this rises only when it must not.
const VERSION: u32 = 1;
/// The state, and the image of the program that has left it.
const BEFORE_OTHERS: usize = 2;
/// What the service manager tells a process, and not one program of it (sd_notify(3)).
const MANAGER: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_says_who_gets_what_and_why() {
        for heir in [
            Heir::OnTrial,
            Heir::Next,
            Heir::Back("no such file: b:c".into()),
        ] {
            let value = variable(&heir, [3, 7, 12].into_iter());
            assert_eq!(parsed(&value), Some((heir, vec![3, 7, 12])));
        }
        for wrong in ["", "next", "next:3", "next::", "next:x:", "other:3:"] {
            assert_eq!(parsed(OsStr::new(wrong)), None, "{wrong}");
        }
    }

    #[test]
    fn a_state_is_for_one_process_and_of_a_known_version() {
        let sealed = seal(&"state", &Snapshot::default(), 7).unwrap();
        let envelope = opened::<String>(&Heir::Next, &[sealed]).unwrap();
        assert_eq!((envelope.word, envelope.state.as_str()), (7, "state"));
        let wrong = |text: &str| {
            let file = memory::sealed(c"test", text.as_bytes()).unwrap();
            let opened = opened::<String>(&Heir::Next, &[file]);
            opened.unwrap_err().to_string()
        };
        let newer = format!(r#"{{"version":2,"pid":{}}}"#, process::id());
        assert!(wrong(&newer).contains("version 2"));
        assert!(wrong(r#"{"version":1,"pid":1}"#).contains("process 1"));
        assert!(opened::<String>(&Heir::Next, &[]).is_err());
    }
}
