//! What this process was started with, read once.
//!
//! A successor is started from this snapshot and not from the process as it is later: threads change variables, and
//! helpers must never see the ones that were meant for one process only.

#![expect(
    unsafe_code,
    reason = "removing a variable is unsafe since edition 2024"
)]

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::descriptors;

/// The variable that names a successor's channel.
pub(crate) const CHANNEL: &str = "HANDOVER_CHANNEL";
/// The variable by which a process knows that it is a worker of a pool, whose supervisor does the rest.
pub(crate) const WORKER: &str = "HANDOVER_WORKER";
/// The variable by which the supervisor of a pool knows what the one before it has left to it, in the same process.
pub(crate) const SUPERVISOR: &str = "HANDOVER_SUPERVISOR";
/// The variable by which a process knows that it relays what workers write: the inode of its way to their supervisor.
pub(crate) const RELAY: &str = "HANDOVER_RELAY";
/// What a service manager tells one process, and that process only (sd_listen_fds(3), sd_notify(3)).
const SERVICE_MANAGER: [&str; 10] = [
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    WORKER,
    SUPERVISOR,
    RELAY,
];

/// What this process was started with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// The arguments, the program's own name first.
    pub(crate) argv: Vec<OsString>,
    /// The variables that every generation gets.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// The directory by the name under which it was entered; none if it was gone already.
    pub(crate) cwd: Option<PathBuf>,
    /// The executable as the kernel resolved it: the last resort for finding the next one.
    pub(crate) exe: Option<PathBuf>,
    /// The variables that the service manager meant for this process.
    pub(crate) service_manager: Vec<(OsString, OsString)>,
    /// The value of [`CHANNEL`], if somebody started this process as a successor.
    pub(crate) channel: Option<OsString>,
}

impl Snapshot {
    /// Reads everything and removes the variables that were meant for this process only; later calls get what the
    /// first one read.
    pub(crate) fn take() -> &'static Self {
        static FIRST: OnceLock<Snapshot> = OnceLock::new();
        FIRST.get_or_init(|| {
            let snapshot = Self::read();
            remove_private_variables();
            snapshot
        })
    }

    /// The service manager's variable of this name.
    pub(crate) fn service_manager(&self, name: &str) -> Option<&OsStr> {
        value(&self.service_manager, name)
    }

    /// The variable of this name among those that every generation gets.
    pub(crate) fn var(&self, name: &str) -> Option<&OsStr> {
        value(&self.env, name)
    }

    fn read() -> Self {
        Self {
            argv: env::args_os().collect(),
            cwd: working_directory(env::var_os("PWD").map(PathBuf::from)),
            exe: fs::read_link("/proc/self/exe").ok(),
            ..Self::sorted(env::vars_os())
        }
    }

    fn sorted(variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let mut snapshot = Self::default();
        for (name, value) in variables {
            if name == CHANNEL {
                snapshot.channel = Some(value);
            } else if SERVICE_MANAGER.iter().any(|private| name == *private) {
                snapshot.service_manager.push((name, value));
            } else {
                snapshot.env.push((name, value));
            }
        }
        snapshot
    }
}

/// What [`CHANNEL`] says to the process that inherits this descriptor: its number and inode, and the incumbent's process.
pub(crate) fn channel_value(channel: &OwnedFd, incumbent: u32) -> io::Result<OsString> {
    let number = channel.as_raw_fd();
    let inode = descriptors::inode(channel.as_fd())?;
    Ok(format!("{number}:{inode}:{incumbent}").into())
}

fn value<'a>(variables: &'a [(OsString, OsString)], name: &str) -> Option<&'a OsStr> {
    let (_, value) = variables.iter().find(|(key, _)| key == name)?;
    Some(value)
}

/// The shell's name for the directory, if it still leads there: it keeps `current` in `/srv/app/current`, so that the
/// next generation follows the link to wherever it points by then.
fn working_directory(logical: Option<PathBuf>) -> Option<PathBuf> {
    let is_here = |path: &PathBuf| path.is_absolute() && same_file(path, Path::new("."));
    logical.filter(is_here).or_else(|| env::current_dir().ok())
}

fn same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|it| (it.dev(), it.ino())).ok();
    identity(one).is_some_and(|it| identity(other) == Some(it))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place where the environment changes: these must not reach helpers"
)]
fn remove_private_variables() {
    for name in SERVICE_MANAGER.into_iter().chain([CHANNEL]) {
        // SAFETY: std keeps its own readers out by a lock. C code that reads at the same time may miss a variable for
        // a moment and nothing worse: neither glibc nor musl frees or moves the memory of a variable that exec put
        // there when it is removed. `handover::start` documents that it is to be called early.
        unsafe { env::remove_var(name) };
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::testing::ran_in_its_own_process;
    use super::*;

    #[test]
    fn variables_are_sorted_by_whom_they_were_meant_for() {
        let variables = [
            ("PATH", "/bin"),
            ("LISTEN_FDS", "2"),
            (CHANNEL, "7:1:2"),
            ("NOTIFY_SOCKET", "@n"),
            ("LISTEN", "mine"),
        ];
        let snapshot = Snapshot::sorted(
            variables
                .map(|(name, value)| (name.into(), value.into()))
                .into_iter(),
        );
        assert_eq!(snapshot.var("PATH"), Some(OsStr::new("/bin")));
        assert_eq!(snapshot.var("LISTEN"), Some(OsStr::new("mine")));
        assert_eq!(snapshot.env.len(), 2);
        assert_eq!(
            snapshot.service_manager("LISTEN_FDS"),
            Some(OsStr::new("2"))
        );
        assert_eq!(snapshot.service_manager.len(), 2);
        assert_eq!(snapshot.channel, Some("7:1:2".into()));
    }

    #[test]
    fn a_snapshot_hides_private_variables_from_helpers_and_remembers_them() {
        let name = "sys::environment::tests::a_snapshot_hides_private_variables_from_helpers_and_remembers_them";
        let variables = SERVICE_MANAGER.map(|name| (name, "1"));
        let variables = [&variables[..], &[(CHANNEL, "7:1:2"), ("LANG", "C")]].concat();
        if ran_in_its_own_process(name, &variables) {
            return;
        }
        let first = Snapshot::take();
        assert_eq!(first.service_manager("WATCHDOG_PID"), Some(OsStr::new("1")));
        assert_eq!(first.channel, Some("7:1:2".into()));
        let second = Snapshot::take();
        assert_eq!(second.channel, Some("7:1:2".into()));
        let helper = Command::new("env").output().unwrap();
        let seen = String::from_utf8(helper.stdout).unwrap();
        assert!(seen.contains("LANG=C"));
        for name in SERVICE_MANAGER.into_iter().chain([CHANNEL]) {
            assert!(!seen.contains(name), "{name} leaked");
        }
    }

    #[test]
    fn a_link_to_the_directory_is_kept_and_a_wrong_name_is_not() {
        let room = tempfile::tempdir().unwrap();
        let here = env::current_dir().unwrap();
        let current = room.path().join("current");
        std::os::unix::fs::symlink(&here, &current).unwrap();
        assert_eq!(working_directory(Some(current.clone())), Some(current));
        assert_eq!(
            working_directory(Some(room.path().into())),
            Some(here.clone())
        );
        assert_eq!(working_directory(Some(".".into())), Some(here.clone()));
        assert_eq!(working_directory(None), Some(here));
    }
}
