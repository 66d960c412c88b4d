//! Which process a generation is, so that another one on the same host can tell that it is gone.

use std::fs;
use std::io;
use std::process;

use crate::sys::process::has_started_at;

/// The boot, the namespaces of PIDs and of time, the process and when it was started (proc_pid_stat(5)): no other process is ever the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    boot: String,
    namespace: String,
    pid: u32,
    started: u64,
}

impl Identity {
    pub(super) fn own() -> io::Result<Self> {
        let pid = process::id();
        let started = has_started_at(pid)?.ok_or(io::ErrorKind::NotFound)?;
        let boot = fs::read_to_string(BOOT)?.trim().to_owned();
        let pids = fs::read_link(PID_NAMESPACE)?.display().to_string();
        // A kernel without any has one time for all.
        let times = fs::read_link(TIME_NAMESPACE).unwrap_or_default();
        let namespace = format!("{pids},{}", times.display());
        Ok(Self {
            boot,
            namespace,
            pid,
            started,
        })
    }

    pub(super) fn to_text(&self) -> String {
        let Self {
            boot,
            namespace,
            pid,
            started,
        } = self;
        format!("{boot} {namespace} {pid} {started}")
    }

    fn from_text(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        let (boot, namespace) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        let (pid, started) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let whole = Self {
            boot,
            namespace,
            pid,
            started,
        };
        parts.next().is_none().then_some(whole)
    }

    /// Whether a process of this host is known to be gone. One that cannot be seen from here is not. That of another boot
    /// may be another machine's of the same name, for as long as it is heard of.
    pub(super) fn knows_gone(&self, other: &str, has_lapsed: bool) -> bool {
        let Some(other) = Self::from_text(other) else {
            return false;
        };
        if other.boot != self.boot {
            return has_lapsed;
        }
        other.namespace == self.namespace
            && has_started_at(other.pid).is_ok_and(|started| started != Some(other.started))
    }
}

/// proc_sys_kernel(5).
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// pid_namespaces(7).
const PID_NAMESPACE: &str = "/proc/self/ns/pid";
/// time_namespaces(7): when a process was started reads differently in another one.
const TIME_NAMESPACE: &str = "/proc/self/ns/time";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_another_boot_or_start_is_gone() {
        let own = Identity::own().unwrap();
        let read = Identity::from_text(&own.to_text());
        assert_eq!(read.as_ref(), Some(&own));
        assert!(!own.knows_gone(&own.to_text(), true));
        let rebooted = Identity {
            boot: "before".to_owned(),
            ..own.clone()
        };
        assert!(own.knows_gone(&rebooted.to_text(), true));
        assert!(!own.knows_gone(&rebooted.to_text(), false));
        let replaced = Identity {
            started: own.started + 1,
            ..own.clone()
        };
        assert!(own.knows_gone(&replaced.to_text(), false));
    }

    #[test]
    fn what_cannot_be_seen_is_not_known_to_be_gone() {
        let own = Identity::own().unwrap();
        let elsewhere = Identity {
            namespace: "pid:[1]".to_owned(),
            started: own.started + 1,
            ..own.clone()
        };
        assert!(!own.knows_gone(&elsewhere.to_text(), true));
        for garbage in ["", "a b c d", "a b 1", "a b 1 2 3"] {
            assert!(!own.knows_gone(garbage, true), "{garbage:?}");
        }
    }
}
