//! A program and whatever it starts, which are killed together.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Child;

/// The process group (setpgid(2)) of a child that was started as its leader. It is killed when this is dropped before the
/// child was collected.
#[derive(Debug)]
pub(crate) struct Group(Option<Pid>);

impl Group {
    pub(crate) fn led_by(child: &Child) -> Self {
        let leader = child.id().and_then(|pid| i32::try_from(pid).ok());
        Self(leader.map(Pid::from_raw))
    }

    /// The child was collected, so that its number may come to mean somebody else.
    pub(crate) fn collected(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended in this very moment; then there is nobody to kill.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}
