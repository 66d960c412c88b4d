//! Workers whose supervisor was killed: they serve on, and a supervisor that is started again takes the sockets back from
//! them by pidfd_getfd(2), so that nobody is refused, and lets them go once its own workers are ready.
//!
//! They are known by the variable that their supervisor gave to them and by its not being their parent any more. Anybody
//! can have such a variable, so they are believed only if they are this process's own user's or root's, and so are the
//! sockets, which are known by where they are bound: a server may have them under other numbers by now.
//!
//! The kernel lets a process take another's descriptors that could trace it (ptrace(2), PTRACE_MODE_ATTACH_REALCREDS): root,
//! and the same user where Yama does not restrict it (`kernel.yama.ptrace_scope`).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use super::sockets::Listen;
use crate::config::EXIT_DEADLINE;
use crate::listen::{Address, socket_inode};
use crate::protocol::message::{Slot, SlotKind};
use crate::sys::descriptors;
use crate::sys::environment::WORKER;
use crate::sys::process::{Pidfd, is_own_user_or_root};

/// What a look at all processes has found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) orphans: Orphans,
    /// Processes of other users that say that they are such workers too.
    pub(super) strangers: Vec<u32>,
    /// How many processes this one may not look at, as those of other users.
    pub(super) hidden: usize,
}

/// Workers of a supervisor that is gone.
#[derive(Clone, Debug, Default)]
pub(super) struct Orphans(Vec<Arc<Orphan>>);

#[derive(Debug)]
struct Orphan {
    pid: u32,
    process: Pidfd,
    /// Of the sockets that it was passed.
    names: Vec<String>,
}

/// Where a socket is wanted, and under which name.
struct Wanted<'a> {
    name: &'a str,
    kind: SlotKind,
    places: Vec<Address>,
}

impl Orphans {
    /// Those that have all of these sockets by name, of which there is one at least, as far as this process may see them.
    pub(super) fn find(wanted: &[Listen]) -> Found {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let (mut orphans, mut strangers, mut hidden) = (Vec::new(), Vec::new(), 0);
        for pid in pids {
            match Orphan::look(pid) {
                Ok(Some(orphan)) if !orphan.has_all(wanted) => {}
                Ok(Some(orphan)) if orphan.is_own_or_roots() => orphans.push(Arc::new(orphan)),
                Ok(Some(_)) => strangers.push(pid),
                Ok(None) => {}
                Err(Hidden) => hidden += 1,
            }
        }
        Found {
            orphans: Self(orphans),
            strangers,
            hidden,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.0.iter().map(|orphan| orphan.pid).collect()
    }

    /// Duplicates of those of their sockets that are bound where sockets are wanted, each of them once.
    ///
    /// # Errors
    ///
    /// In words, if none of them gives any and one of them may not be asked.
    pub(super) fn sockets(&self, wanted: &[Listen]) -> Result<Vec<(Slot, OwnedFd)>, String> {
        let wanted = wanted.iter().map(Wanted::of);
        let wanted: Vec<Wanted<'_>> = wanted
            .collect::<crate::error::Result<_>>()
            .map_err(|error| error.to_string())?;
        let (mut taken, mut seen, mut refused) = (Vec::new(), BTreeSet::new(), None);
        for orphan in &self.0 {
            if let Err(error) = orphan.give(&wanted, &mut seen, &mut taken) {
                refused = Some(orphan.refused(&error));
            }
        }
        match refused {
            Some(reason) if taken.is_empty() => Err(reason),
            _ => Ok(taken),
        }
    }

    /// Only those that have one of these very sockets: another pool may have the same names.
    pub(super) fn that_have(&self, sockets: &[(Slot, OwnedFd)]) -> Self {
        let links = sockets.iter().filter_map(|(_, socket)| link_of(socket));
        let links: Vec<String> = links.collect();
        let has_one = |orphan: &&Arc<Orphan>| {
            let held = orphan.sockets().unwrap_or_default();
            links.iter().any(|link| held.contains_key(link))
        };
        Self(self.0.iter().filter(has_one).cloned().collect())
    }

    /// Tells them to leave, kills those that have not by `kill_at`, and waits for their ends, [`EXIT_DEADLINE`] at most.
    /// Says who lives on, and why if somebody knows.
    pub(super) fn relieve(
        &self,
        kill_at: Instant,
    ) -> impl Future<Output = Vec<String>> + Send + use<> {
        let orphans = self.0.clone();
        async move {
            for orphan in &orphans {
                // Whoever may not be told may not be killed either, and that is reported.
                let _ = orphan.process.signal(libc::SIGTERM);
            }
            let late = there_at(kill_at, orphans).await;
            let refused: BTreeMap<u32, io::Error> = late
                .iter()
                .filter_map(|orphan| Some((orphan.pid, orphan.process.kill().err()?)))
                .collect();
            let left = there_at(Instant::now() + EXIT_DEADLINE, late).await;
            let told = left.iter().map(|orphan| match refused.get(&orphan.pid) {
                Some(error) => format!("process {}: {error}", orphan.pid),
                None => format!("process {}", orphan.pid),
            });
            told.collect()
        }
    }

    /// Ends them at once, as far as they are still there.
    pub(super) fn kill(&self) {
        for orphan in &self.0 {
            // Whoever waits for their ends reports those that do not come.
            let _ = orphan.process.kill();
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

    fn has_all(&self, wanted: &[Listen]) -> bool {
        let has = |it: &Listen| self.names.iter().any(|name| name == it.name());
        wanted.iter().all(has)
    }

    /// The directory of a process is its effective user's, or root's if nobody may look into it (proc_pid(5)).
    fn is_own_or_roots(&self) -> bool {
        let found = fs::metadata(format!("/proc/{}", self.pid));
        found.is_ok_and(|found| is_own_user_or_root(found.uid()))
    }

    /// Its sockets, and the number of a descriptor of each (proc_pid_fd(5)).
    fn sockets(&self) -> io::Result<BTreeMap<String, RawFd>> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid))?.flatten();
        let sockets = entries.filter_map(|entry| {
            let link = fs::read_link(entry.path()).ok()?;
            let link = link.into_os_string().into_string().ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            link.starts_with(SOCKET).then_some((link, number))
        });
        Ok(sockets.collect())
    }

    /// Adds to `taken` those that are wanted and were not `seen` yet.
    fn give(
        &self,
        wanted: &[Wanted<'_>],
        seen: &mut BTreeSet<String>,
        taken: &mut Vec<(Slot, OwnedFd)>,
    ) -> io::Result<()> {
        for (link, number) in self.sockets()? {
            if seen.contains(&link) {
                continue;
            }
            let socket = match self.process.duplicate_of(number) {
                Ok(socket) => socket,
                // A connection that has ended in the meantime.
                Err(error) if error.raw_os_error() == Some(libc::EBADF) => continue,
                Err(error) => return Err(error),
            };
            seen.insert(link);
            let is_trusted = descriptors::owner(socket.as_fd()).is_ok_and(is_own_user_or_root);
            let mut slots = wanted.iter().filter_map(|wanted| wanted.slot(&socket));
            if let Some(slot) = slots.next().filter(|_| is_trusted) {
                taken.push((slot, socket));
            }
        }
        Ok(())
    }

    /// Why it did not give them, and what is to be done about it.
    fn refused(&self, error: &io::Error) -> String {
        let advice = match error.kind() {
            io::ErrorKind::PermissionDenied => ADVICE,
            _ => "",
        };
        format!("those of worker process {}: {error}{advice}", self.pid)
    }
}

impl<'a> Wanted<'a> {
    fn of(listen: &'a Listen) -> crate::error::Result<Self> {
        Ok(Self {
            name: listen.name(),
            kind: listen.kind(),
            places: listen.places()?,
        })
    }

    /// What this socket is here, if it is bound just where one is wanted, and clients find it there.
    fn slot(&self, socket: &OwnedFd) -> Option<Slot> {
        let bound = Address::of(socket, self.kind).ok()?;
        let inode = match bound.path() {
            Some(path) => Some(socket_inode(path).ok()?),
            None => None,
        };
        let is_wanted = self.places.iter().any(|place| bound.is(place));
        is_wanted.then(|| Slot {
            name: self.name.to_owned(),
            kind: self.kind,
            inode,
            keeper: None,
        })
    }
}

/// Those that are still there by then.
async fn there_at(by: Instant, orphans: Vec<Arc<Orphan>>) -> Vec<Arc<Orphan>> {
    let mut there = Vec::new();
    for orphan in orphans {
        if timeout_at(by, orphan.process.exited()).await.is_err() {
            there.push(orphan);
        }
    }
    there
}

fn link_of(socket: &OwnedFd) -> Option<String> {
    let inode = descriptors::inode(socket.as_fd()).ok()?;
    Some(format!("{SOCKET}{inode}]"))
}

fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line?.trim().parse().ok()
}

/// How /proc names a socket, before its inode and a bracket (proc_pid_fd(5)).
const SOCKET: &str = "socket:[";
/// Who may take them (ptrace(2), pidfd_getfd(2)).
const ADVICE: &str = " (start as root with CAP_SYS_PTRACE, or as the workers' own user where kernel.yama.ptrace_scope is 0, \
                      and where no seccomp filter forbids pidfd_getfd)";
