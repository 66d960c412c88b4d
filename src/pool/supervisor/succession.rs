//! The supervisor's own upgrade: its process becomes the program that its name leads to by then.
//!
//! 1. A trial comes first: that program is started as a process of its own, gets the state and a copy of every
//!    descriptor, and has to show within a deadline that it can take over. It accepts nothing and starts nobody.
//! 2. Up to the exec nothing is given away: whatever fails leaves this supervisor as it was.
//! 3. A program that fails after the exec all the same becomes the image again that was there before, which nobody can
//!    take away: it is held as a descriptor.
//! 4. While an update is under way, or the pool stops, there is no upgrade: the machine is saved at rest only.
//!
//! 5. A signal is heard by the one or the other, in a runtime with a single thread.
//!
//! Workers notice nothing: they are children of the same process, and hold the sockets themselves. One that ends in the
//! meantime waits as a zombie until its pidfd is asked again.

use std::fs::{File, OpenOptions};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::Interest;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::super::inheritance::{self, Heir, leave_to, seal, variable};
use super::super::readiness::random;
use super::super::release::{Command, Release};
use super::super::worker::Worker;
use super::{Reply, Supervisor, What};
use crate::config::EXIT_DEADLINE;
use crate::sys::activated::{Activated, Group, Program, signal_group, spawn_activated};
use crate::sys::descriptors::{self, watched};
use crate::sys::environment::SUPERVISOR;

/// A trial under way.
pub(super) struct Trial {
    pub(super) program: Release,
    pub(super) pid: u32,
    pub(super) reply: Option<oneshot::Sender<Reply>>,
    pub(super) outcome: std::pin::Pin<Box<dyn Future<Output = Result<(), String>> + Send>>,
}

impl Trial {
    /// Nobody needs it any more. It still has to be collected.
    pub(super) fn kill(&self) {
        // Its number is still its own; one that has ended is about to be collected.
        let _ = signal_group(self.pid, Group::Kill);
    }
}

impl Supervisor {
    /// Begins a trial.
    pub(in super::super) fn upgrade_supervisor(&mut self, reply: Option<oneshot::Sender<Reply>>) {
        let begun = match self.trial {
            Some(_) => Err("a trial of the next supervisor is under way".to_owned()),
            None => self.try_next(),
        };
        match begun {
            Ok(trial) => self.trial = Some(Trial { reply, ..trial }),
            Err(reason) => self.refuse_upgrade(reply, reason),
        }
    }

    /// The trial has ended: this process becomes the program, or says why not.
    pub(super) async fn tried(&mut self, outcome: Result<(), String>) {
        let Some(trial) = self.trial.take() else {
            return;
        };
        let reason = match outcome {
            Ok(()) => self.become_next(&trial.program).await,
            Err(reason) => reason,
        };
        // Others may have waited behind it.
        self.reap_orphans();
        self.refuse_upgrade(trial.reply, reason);
    }

    fn refuse_upgrade(&self, reply: Option<oneshot::Sender<Reply>>, reason: String) {
        let message = format!("the supervisor stays as it is: {reason}");
        if let Some(reply) = reply {
            // Who has gone needs none.
            let _ = reply.send(Reply::refused(message.clone()));
        }
        self.tell(What::Refused { reason: message });
    }

    fn try_next(&self) -> Result<Trial, String> {
        let command = Command {
            argv: self.parts.called.clone(),
            env: self.parts.snapshot.env.clone(),
            cwd: self.parts.snapshot.cwd.clone(),
        };
        let named = command.argv.first().cloned().unwrap_or_default();
        let failed = |error: io::Error| format!("starting {named:?}: {error}");
        let program = Release::find(self.parts.number + 1, &command).map_err(failed)?;
        let (word, saved) = (random(), self.save()?);
        let started = || {
            let (state, image) = (seal(&saved, self.parts.snapshot, word)?, own_image()?);
            let (ours, theirs) = descriptors::pair()?;
            let files = self.with_files(&state, &image, Some(&theirs));
            // They get the numbers of passed sockets (sd_listen_fds(3)).
            let numbers = (3..).take(files.len());
            let mut env = inheritance::environment(self.parts.snapshot);
            env.retain(|(name, _)| name != "NOTIFY_SOCKET");
            env.push((SUPERVISOR.into(), variable(&Heir::OnTrial, numbers)));
            let pid = spawn_activated(&Activated {
                program: program.program()?,
                argv: &command.argv,
                env: &env,
                cwd: None,
                sockets: &files,
                streams: None,
            })?;
            let process = Worker::watch(pid, program.number, std::time::Instant::now())?;
            Ok((ours, process))
        };
        let (ours, process) = started().map_err(failed)?;
        let within = self.parts.trial_within;
        Ok(Trial {
            pid: process.pid,
            program,
            reply: None,
            outcome: Box::pin(outcome(process, ours, word, within)),
        })
    }

    /// Returns only the reason if it did not. A signal that comes in the meantime is the next one's then, or comes now.
    async fn become_next(&mut self, next: &Release) -> String {
        let failed = |error: io::Error| format!("becoming the next supervisor: {error}");
        let reason = match self.parts.signals.hold_back().await {
            Ok(()) => self.leave_to(next).unwrap_or_else(failed),
            Err(error) => failed(error),
        };
        match self.parts.signals.let_through() {
            Ok(()) => reason,
            Err(error) => format!("{reason}, and signals are held back for good: {error}"),
        }
    }

    /// The same, while signals are held back.
    fn leave_to(&self, next: &Release) -> io::Result<String> {
        let saved = match self.save() {
            Ok(saved) => saved,
            Err(reason) => return Ok(reason),
        };
        let (state, image) = (seal(&saved, self.parts.snapshot, random())?, own_image()?);
        let files = self.with_files(&state, &image, None);
        // An interpreter opens its script again, so that the process keeps it; what is executed needs no name.
        let (path, kept): (PathBuf, Option<OwnedFd>) = match next.program()? {
            Program::Path(path) => (path.into(), None),
            Program::File(file) => (by_number(file), None),
            Program::Script(file) => {
                let kept = descriptors::leave_copy_to_exec(file)?;
                (by_number(kept.as_fd()), Some(kept))
            }
        };
        let env = inheritance::environment(self.parts.snapshot);
        let error = leave_to(&path, &self.parts.called, env, &Heir::Next, &files);
        drop(kept);
        Err(error)
    }

    fn with_files<'a>(
        &'a self,
        state: &'a OwnedFd,
        image: &'a OwnedFd,
        way_back: Option<&'a OwnedFd>,
    ) -> Vec<BorrowedFd<'a>> {
        let first = [state.as_fd(), image.as_fd()].into_iter();
        let last = way_back.map(AsFd::as_fd);
        first.chain(self.files()).chain(last).collect()
    }
}

/// How a trial ends. Its process is gone then.
async fn outcome(process: Worker, way: OwnedFd, word: u64, within: Duration) -> Result<(), String> {
    let answered = timeout(within, answer(way)).await;
    let gone = || poll_fn(|context| process.poll_exited(context));
    if let Ok(Ok(None)) = answered {
        // It closes before it has ended, and how it ends is the reason.
        let _ = timeout(within, gone()).await;
    }
    // It has nothing more to do, whatever it was. One that has ended by itself is about to be collected.
    let _ = process.kill();
    let is_gone = timeout(EXIT_DEADLINE, gone()).await.is_ok();
    let how = match is_gone {
        true => process.reap().to_string(),
        false => "and could not be killed".to_owned(),
    };
    match answered {
        Ok(Ok(Some(answer))) if answer == word.to_string().as_bytes() => Ok(()),
        Ok(Ok(Some(_))) => Err("a trial of it has misread the state".to_owned()),
        Ok(Ok(None)) => Err(format!("a trial of it has ended without a word: {how}")),
        Ok(Err(error)) => Err(format!("a trial of it could not be heard: {error}")),
        Err(_) => Err(format!("a trial of it has said nothing within {within:?}")),
    }
}

async fn answer(way: OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let way = watched(way, Interest::READABLE)?;
    let mut buffer = [0; 32];
    loop {
        let mut ready = way.readable().await?;
        match ready.try_io(|way| descriptors::recv(way.as_fd(), &mut buffer)) {
            Ok(Ok(received)) => return Ok(received.map(|it| buffer[..it.length].to_vec())),
            // A process that has ended with something unread.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
}

/// What this process runs, whatever its name leads to by now (proc_pid_exe(5)).
fn own_image() -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    let file: File = options
        .read(true)
        .custom_flags(libc::O_PATH)
        .open("/proc/self/exe")?;
    Ok(file.into())
}

fn by_number(file: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}
