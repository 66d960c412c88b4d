//! State that workers keep for those that are started after them, as the store of a service manager keeps it
//! (`FDSTORE=1`, sd_pid_notify_with_fds(3)): by sealed memory files, passed behind the sockets.
//!
//! All workers share the names, and the last one that has kept something under a name is whose it is. Nothing but state is
//! kept: the sockets are the supervisor's anyway.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::readiness::Notification;
use crate::sys::memory;
use crate::systemd::names::{Owner, owner};

/// By name.
#[derive(Debug, Default)]
pub(super) struct Kept(Vec<(String, OwnedFd)>);

impl Kept {
    /// Does what a worker wants kept or forgotten. What is not kept is closed, by which it knows.
    pub(super) fn hear(&mut self, word: &mut Notification) {
        let Some(name) = word.value("FDNAME").map(str::to_owned) else {
            return;
        };
        if word.value("FDSTOREREMOVE") == Some("1") {
            self.0.retain(|(kept, _)| *kept != name);
        }
        if word.value("FDSTORE") == Some("1") {
            let mut sent = word.descriptors.drain(..);
            if let Some(descriptor) = sent.next() {
                self.keep(name, descriptor);
            }
        }
    }

    /// What a new worker is passed.
    pub(super) fn state(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        let state = self.0.iter().filter(|(name, _)| is_state(name));
        state.map(|(name, file)| (name.as_str(), file.as_fd()))
    }

    /// All of it, for the next supervisor.
    pub(super) fn all(&self) -> &[(String, OwnedFd)] {
        &self.0
    }

    /// As it was kept before.
    pub(super) fn resume(kept: Vec<(String, OwnedFd)>) -> Self {
        Self(kept)
    }

    fn keep(&mut self, name: String, descriptor: OwnedFd) {
        // Whoever asks for room by a pipe learns from its being open that there is some.
        self.0
            .retain(|(name, kept)| is_state(name) || is_awaited(kept.as_fd()));
        let fits = match owner(&name) {
            Owner::Blob(_) => memory::is_sealed(descriptor.as_fd()),
            Owner::Probe => !memory::is_memory(descriptor.as_fd()),
            Owner::Unit | Owner::Socket(_) => false,
        };
        if fits && self.0.len() < KEPT_MAX {
            self.0.push((name, descriptor));
        }
    }
}

/// Whether somebody still has the reading end: POLLERR says that nobody has (poll(2)).
fn is_awaited(pipe: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(pipe, PollFlags::empty())];
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
    let found = poll(&mut polled, PollTimeout::ZERO)
        .ok()
        .and_then(|_| polled[0].revents());
    found.is_some_and(|found| !found.intersects(gone))
}

fn is_state(name: &str) -> bool {
    matches!(owner(name), Owner::Blob(_))
}

/// More is not kept.
const KEPT_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::sys::descriptors::is_hung_up;

    fn word(text: &str, descriptors: Vec<OwnedFd>) -> Notification {
        Notification {
            pid: 1,
            text: text.to_owned(),
            descriptors,
        }
    }

    #[test]
    fn sealed_state_is_kept_by_name_until_it_is_forgotten_and_nothing_else_is() {
        let mut kept = Kept::default();
        let blob = || memory::sealed(c"keys", b"secret").unwrap();
        let store = |name: &str| format!("FDSTORE=1\nFDNAME={name}\n");
        kept.hear(&mut word(&store("handover.state.keys"), vec![blob()]));
        kept.hear(&mut word(&store("web"), vec![blob()]));
        kept.hear(&mut word(
            &store("handover.state.pipe"),
            vec![io::pipe().unwrap().0.into()],
        ));
        kept.hear(&mut word(&store("handover.state.none"), Vec::new()));
        let names: Vec<&str> = kept.state().map(|(name, _)| name).collect();
        assert_eq!(names, ["handover.state.keys"]);
        let (_, file) = kept.state().next().unwrap();
        assert_eq!(memory::read(file).unwrap(), b"secret");
        kept.hear(&mut word(
            "FDSTOREREMOVE=1\nFDNAME=handover.state.keys\n",
            Vec::new(),
        ));
        assert_eq!(kept.state().count(), 0);
    }

    #[test]
    fn who_asks_for_room_sees_that_there_is_some_until_there_is_none() {
        let mut kept = Kept::default();
        let text = "FDSTORE=1\nFDNAME=handover.probe\n";
        let mut readers = Vec::new();
        for _ in 0..=KEPT_MAX {
            let (reader, writer) = io::pipe().unwrap();
            kept.hear(&mut word(text, vec![writer.into()]));
            readers.push(reader);
        }
        let open = readers
            .iter()
            .filter(|reader| !is_hung_up(reader.as_fd()).unwrap());
        assert_eq!(open.count(), KEPT_MAX);
        assert_eq!(kept.state().count(), 0);
        // Those of a worker that has gone make room.
        drop(readers);
        let blob = memory::sealed(c"keys", b"").unwrap();
        kept.hear(&mut word(
            "FDSTORE=1\nFDNAME=handover.state.a\n",
            vec![blob],
        ));
        assert_eq!(kept.state().count(), 1);
    }
}
