//! A release: the file that its workers run, held so that they can be started again whatever has become of its name.
//!
//! While its path still leads to the held file, workers are started by the path, so that ps(1) shows what an operator
//! expects. Else they are started by the descriptor: a program as it is, a script by a name in /proc that its interpreter
//! opens again. What a script imports, and shared libraries, are found by name all the same. A file that was overwritten
//! in place is refused: its bytes are others.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::controller::ReleaseId;
use crate::launch::{Identity, identity, resolve};
use crate::sys::activated::{Activated, Program, spawn_activated};
use crate::sys::environment::Snapshot;

/// What a release's workers are started with.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    /// The program as given: a path is never resolved, so that a link is followed anew by each release.
    pub(crate) argv: Vec<OsString>,
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) cwd: Option<PathBuf>,
}

/// A release that can be started.
#[derive(Debug)]
pub(crate) struct Release {
    pub(crate) number: ReleaseId,
    path: PathBuf,
    file: OwnedFd,
    is_script: bool,
    held: Identity,
}

/// What is left of a release to the next supervisor in this process, beside its file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    number: ReleaseId,
    /// Bytes, since a path need not be text.
    path: Vec<u8>,
    is_script: bool,
    held: Identity,
}

impl Release {
    /// The program that the command means by now.
    ///
    /// # Errors
    ///
    /// If there is none, or nobody may execute it.
    pub(crate) fn find(number: ReleaseId, command: &Command) -> io::Result<Self> {
        let snapshot = Snapshot {
            argv: command.argv.clone(),
            env: command.env.clone(),
            cwd: command.cwd.clone(),
            ..Snapshot::default()
        };
        let path = resolve(None, &snapshot);
        let place = command.cwd.clone().unwrap_or_default();
        let path = place.join(path);
        let file = point_to(&path)?;
        Ok(Self {
            number,
            is_script: is_script(file.as_fd()),
            held: identity(file.as_fd())?,
            path,
            file,
        })
    }

    /// The same under another number.
    pub(crate) fn again(&self, number: ReleaseId) -> io::Result<Self> {
        Ok(Self {
            number,
            path: self.path.clone(),
            file: self.file.try_clone()?,
            ..*self
        })
    }

    pub(crate) fn save(&self) -> Saved {
        Saved {
            number: self.number,
            path: self.path.as_os_str().as_bytes().to_vec(),
            is_script: self.is_script,
            held: self.held,
        }
    }

    /// The same release as it was saved, with the file that came with it.
    pub(crate) fn resume(saved: Saved, file: OwnedFd) -> Self {
        Self {
            number: saved.number,
            path: OsString::from_vec(saved.path).into(),
            file,
            is_script: saved.is_script,
            held: saved.held,
        }
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Starts one worker, with these sockets from descriptor 3 on, and these for standard output and standard error if not
    /// this process's.
    pub(crate) fn start(
        &self,
        command: &Command,
        extra: &[(OsString, OsString)],
        sockets: &[BorrowedFd<'_>],
        streams: Option<[BorrowedFd<'_>; 2]>,
    ) -> io::Result<u32> {
        spawn_activated(&Activated {
            program: self.program()?,
            argv: &command.argv,
            env: &[&command.env, extra].concat(),
            cwd: command.cwd.as_deref().filter(|cwd| cwd.is_dir()),
            sockets,
            streams,
        })
    }

    /// How it is executed: by its path while that leads to it.
    pub(crate) fn program(&self) -> io::Result<Program<'_>> {
        Ok(match (self.is_in_place(), self.is_script) {
            (true, _) => Program::Path(&self.path),
            (false, _) if identity(self.file.as_fd())? != self.held => {
                let text = format!("{} has been overwritten in place", self.path.display());
                return Err(io::Error::other(text));
            }
            (false, false) => Program::File(self.file.as_fd()),
            (false, true) => Program::Script(self.file.as_fd()),
        })
    }

    /// Whether its path leads to it, as it was.
    fn is_in_place(&self) -> bool {
        let found = point_to(&self.path).and_then(|file| identity(file.as_fd()));
        found.is_ok_and(|found| found == self.held)
    }
}

/// By O_PATH, which needs no permission to read the file (open(2)).
fn point_to(path: &Path) -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_PATH).open(path)?;
    Ok(file.into())
}

/// Whether an interpreter will read it (execve(2)). What may not be read is no script: nobody could run it.
///
/// It is the held file that is read, whatever its path leads to by now, and nobody waits for somebody to write to a pipe.
fn is_script(file: BorrowedFd<'_>) -> bool {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let opened = options.open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let mut begin = [0; 2];
    let read = opened.and_then(|mut file| file.read_exact(&mut begin));
    read.is_ok() && begin == *b"#!"
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::sys::process::discard;

    fn script(path: &Path, says: &str) {
        fs::write(path, format!("#!/bin/sh\necho {says} >&3\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn words_of(release: &Release, command: &Command) -> io::Result<String> {
        let (mut reader, writer) = io::pipe()?;
        let pid = release.start(command, &[], &[writer.as_fd()], None)?;
        drop(writer);
        let mut words = String::new();
        reader.read_to_string(&mut words)?;
        discard(pid);
        Ok(words)
    }

    #[test]
    fn a_release_starts_what_ran_before_after_its_file_was_replaced_and_refuses_other_bytes() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("app");
        script(&path, "one");
        let command = Command {
            argv: vec!["./app".into()],
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            cwd: Some(room.path().into()),
        };
        let one = Release::find(1, &command).unwrap();
        assert_eq!(words_of(&one, &command).unwrap(), "one\n");
        script(&room.path().join("next"), "two");
        fs::rename(room.path().join("next"), &path).unwrap();
        let two = Release::find(2, &command).unwrap();
        assert_eq!(words_of(&one, &command).unwrap(), "one\n");
        assert_eq!(words_of(&two, &command).unwrap(), "two\n");
        script(&path, "longer than before");
        let error = words_of(&two, &command).unwrap_err();
        assert!(error.to_string().contains("overwritten"), "{error}");
    }

    #[test]
    fn what_is_held_is_looked_at_and_a_pipe_is_not_waited_for() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("app");
        script(&path, "one");
        let held = point_to(&path).unwrap();
        fs::write(room.path().join("next"), "no script").unwrap();
        fs::rename(room.path().join("next"), &path).unwrap();
        assert!(is_script(held.as_fd()));
        assert!(!is_script(point_to(&path).unwrap().as_fd()));
        let pipe = room.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let held = point_to(&pipe).unwrap();
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(is_script(held.as_fd())));
        let patience = std::time::Duration::from_secs(20);
        assert_eq!(is_done.recv_timeout(patience), Ok(false));
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let command = Command {
            argv: vec!["/no/such/app".into()],
            env: Vec::new(),
            cwd: None,
        };
        let error = Release::find(1, &command).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
