//! Workers whose supervisor was killed: they serve on, and a supervisor that is started again takes the sockets back from
//! them by pidfd_getfd(2), so that nobody is refused, and lets them go once its own workers are ready.
//!
//! They are known by the variable that their supervisor gave to them and by its not being their parent any more. The
//! kernel lets a process take another's descriptors that could trace it (ptrace(2), PTRACE_MODE_ATTACH_REALCREDS): root, and
//! the same user where Yama does not restrict it (`kernel.yama.ptrace_scope`).

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::timeout;

use super::sockets::{Listen, Sockets};
use crate::protocol::message::Slot;
use crate::sys::descriptors;
use crate::sys::environment::WORKER;
use crate::sys::process::Pidfd;
use crate::systemd::activation;

/// What a look at all processes has found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) orphans: Orphans,
    /// How many processes this one may not look at, as those of other users.
    pub(super) hidden: usize,
}

/// Workers of a supervisor that is gone.
#[derive(Debug, Default)]
pub(super) struct Orphans(Vec<Orphan>);

#[derive(Debug)]
struct Orphan {
    pid: u32,
    process: Pidfd,
    /// Of the descriptors from 3 on.
    names: Vec<String>,
}

impl Orphans {
    /// Those that have all of these sockets by name, of which there is one at least, as far as this process may see them.
    pub(super) fn find(wanted: &[Listen]) -> Found {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut hidden = 0;
        let found = pids.filter_map(|pid| {
            let looked = Orphan::look(pid);
            looked.unwrap_or_else(|Hidden| {
                hidden += 1;
                None
            })
        });
        let has_all = |orphan: &Orphan| {
            wanted
                .iter()
                .all(|it| orphan.names.iter().any(|name| name == it.name()))
        };
        let orphans = Self(found.filter(has_all).collect());
        Found { orphans, hidden }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.0.iter().map(|orphan| orphan.pid).collect()
    }

    /// Only those that have the very same sockets: another pool may have the same names.
    pub(super) fn that_have(self, sockets: &Sockets) -> Self {
        let wanted = sockets.all().into_iter();
        let wanted: Option<Vec<String>> = wanted.map(|(_, socket)| link_of(&socket)).collect();
        let Some(wanted) = wanted else {
            return Self::default();
        };
        let has_all = |orphan: &Orphan| {
            let passed = orphan.passed();
            wanted.iter().all(|socket| passed.contains(socket))
        };
        Self(self.0.into_iter().filter(has_all).collect())
    }

    /// Duplicates of the sockets, from the first one that gives them.
    ///
    /// # Errors
    ///
    /// In words, if none may be asked.
    pub(super) fn sockets(&self) -> Result<Vec<(Slot, OwnedFd)>, String> {
        let mut reason = "there is none".to_owned();
        for orphan in &self.0 {
            match orphan.sockets() {
                Ok(sockets) => return Ok(sockets),
                Err(error) => reason = orphan.refused(&error),
            }
        }
        Err(reason)
    }

    /// Tells them to leave, and kills those that have not within `limit`.
    pub(super) fn relieve(self, limit: Duration) {
        for orphan in self.0 {
            // One that is gone has left.
            let _ = orphan.process.signal(Signal::SIGTERM as i32);
            tokio::spawn(async move {
                if timeout(limit, orphan.process.exited()).await.is_err() {
                    let _ = orphan.process.kill();
                }
            });
        }
    }
}

/// It may be anybody.
#[derive(Debug)]
struct Hidden;

impl Orphan {
    /// None if it is somebody else, or gone.
    fn look(pid: u32) -> Result<Option<Self>, Hidden> {
        // Held first, so that all that is read below is of one process.
        let Ok(process) = Pidfd::open(pid) else {
            return Ok(None);
        };
        match fs::read(format!("/proc/{pid}/environ")) {
            Ok(environment) => Ok(Self::of(pid, process, &environment)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(Hidden),
            Err(_) => Ok(None),
        }
    }

    fn of(pid: u32, process: Pidfd, environment: &[u8]) -> Option<Self> {
        let value = |name: &str| {
            let mut variables = environment.split(|byte| *byte == 0);
            let value =
                variables.find_map(|it| it.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
            value.and_then(|value| OsStr::from_bytes(value).to_str())
        };
        let (_, supervisor) = value(WORKER)?.split_once(':')?;
        // What it has started has its variables as well, and another number.
        let is_itself = value("LISTEN_PID") == Some(&pid.to_string());
        let is_orphan = parent_of(pid)?.to_string() != supervisor;
        let names = value("LISTEN_FDNAMES")?.split(':').map(str::to_owned);
        (is_itself && is_orphan).then(|| Self {
            pid,
            process,
            names: names.collect(),
        })
    }

    /// What its descriptors from 3 on lead to.
    fn passed(&self) -> Vec<String> {
        let numbers = (FIRST..).take(self.names.len());
        let links = numbers.map(|number| fs::read_link(format!("/proc/{}/fd/{number}", self.pid)));
        let links = links.filter_map(|link| link.ok()?.into_os_string().into_string().ok());
        links.collect()
    }

    /// Why it did not give them, and what is to be done about it.
    fn refused(&self, error: &io::Error) -> String {
        let advice = match error.kind() {
            io::ErrorKind::PermissionDenied => ADVICE,
            _ => "",
        };
        format!("those of worker process {}: {error}{advice}", self.pid)
    }

    fn sockets(&self) -> io::Result<Vec<(Slot, OwnedFd)>> {
        let mut sockets = Vec::new();
        for (name, number) in self.names.iter().zip(FIRST..) {
            let descriptor = self.process.duplicate_of(number)?;
            // State, or what only that worker had.
            let Ok(kind) = activation::kind_of(&descriptor) else {
                continue;
            };
            let slot = Slot {
                name: name.clone(),
                kind,
                inode: None,
                keeper: None,
            };
            sockets.push((slot, descriptor));
        }
        Ok(sockets)
    }
}

/// As /proc names a socket (proc_pid_fd(5)).
fn link_of(socket: &OwnedFd) -> Option<String> {
    let inode = descriptors::inode(socket.as_fd()).ok()?;
    Some(format!("socket:[{inode}]"))
}

fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line?.trim().parse().ok()
}

/// Who may take them (ptrace(2), pidfd_getfd(2)).
const ADVICE: &str = " (start as root with CAP_SYS_PTRACE, or as the workers' own user where kernel.yama.ptrace_scope is 0, \
                      and where no seccomp filter forbids pidfd_getfd)";
/// Where passed descriptors begin (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;
