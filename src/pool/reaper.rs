//! Ends of processes that nobody else collects: what workers have left behind becomes a child of the first process of its
//! PID namespace, or of a subreaper (pid_namespaces(7), PR_SET_CHILD_SUBREAPER), and would stay a zombie for ever.

use nix::sys::prctl::get_child_subreaper;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// Whether they become this process's.
pub(super) fn is_needed() -> bool {
    std::process::id() == 1 || get_child_subreaper().unwrap_or(false)
}

/// Collects those that have ended, but for `ours`, whom somebody waits for. The kernel shows one at a time: who comes
/// behind one of ours has to wait until that is collected, so ask again then. Says how many it were.
pub(super) fn reap_orphans(ours: impl Fn(u32) -> bool) -> usize {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    let mut count = 0;
    // No child is an error.
    while let Some(pid) = waitid(Id::All, look).ok().and_then(|found| ended(&found)) {
        let take = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        if ours(pid.as_raw().unsigned_abs()) || waitid(Id::Pid(pid), take).is_err() {
            break;
        }
        count += 1;
    }
    count
}

fn ended(found: &WaitStatus) -> Option<Pid> {
    match found {
        WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) => Some(*pid),
        _ => None,
    }
}
