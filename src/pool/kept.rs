//! State that workers keep for those that are started after them, as the store of a service manager keeps it
//! (`FDSTORE=1`, sd_pid_notify_with_fds(3)): by sealed memory files, passed behind the sockets.
//!
//! All workers share the names, and what was kept last under a name is what is kept. Nothing but state is kept: the sockets
//! are the supervisor's anyway. The pipes by which workers measure the room share one name too, and each is its worker's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::readiness::Notification;
use crate::sys::memory;
use crate::systemd::names::{Owner, owner};

/// In the order in which it was kept.
#[derive(Debug, Default)]
pub(super) struct Kept(Vec<Item>);

#[derive(Debug)]
struct Item {
    label: Label,
    file: OwnedFd,
}

/// What is left of an item to the next supervisor in this process, beside its file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Label {
    name: String,
    /// The process that has kept it.
    by: u32,
}

impl Kept {
    /// Does what a worker wants kept or forgotten. What is not kept is closed, by which it knows.
    pub(super) fn hear(&mut self, word: &mut Notification) {
        let Some(name) = word.value("FDNAME").map(str::to_owned) else {
            return;
        };
        let by = word.pid;
        let label = Label { name, by };
        if word.value("FDSTOREREMOVE") == Some("1") {
            self.0.retain(|item| !label.replaces(&item.label));
        }
        if word.value("FDSTORE") == Some("1") {
            let mut sent = word.descriptors.drain(..);
            if let Some(file) = sent.next() {
                self.keep(Item { label, file });
            }
        }
    }

    /// What a new worker is passed.
    pub(super) fn state(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        let state = self.0.iter().filter(|item| item.label.is_state());
        state.map(|item| (item.label.name.as_str(), item.file.as_fd()))
    }

    /// All of it, for the next supervisor.
    pub(super) fn save(&self) -> Vec<Label> {
        self.0.iter().map(|item| item.label.clone()).collect()
    }

    /// The files, in the order in which they are saved.
    pub(super) fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|item| item.file.as_fd())
    }

    /// As it was saved, with the files that came with it.
    pub(super) fn resume(
        saved: Vec<Label>,
        mut file: impl FnMut() -> io::Result<OwnedFd>,
    ) -> io::Result<Self> {
        let items = saved.into_iter().map(|label| {
            let file = file()?;
            Ok(Item { label, file })
        });
        items.collect::<io::Result<_>>().map(Self)
    }

    fn keep(&mut self, item: Item) {
        // Whoever asks for room by a pipe learns from its being open that there is some.
        self.0
            .retain(|kept| kept.label.is_state() || is_awaited(kept.file.as_fd()));
        let fits = match owner(&item.label.name) {
            Owner::Blob(_) => memory::is_sealed(item.file.as_fd()),
            Owner::Probe => !memory::is_memory(item.file.as_fd()),
            Owner::Unit | Owner::Socket(_) => false,
        };
        if !fits {
            return;
        }
        if item.label.is_state() {
            // Workers that keep the same at the same time have all asked for it to be forgotten before.
            self.0.retain(|kept| !item.label.replaces(&kept.label));
        }
        if self.0.len() < KEPT_MAX {
            self.0.push(item);
        }
    }
}

impl Label {
    fn is_state(&self) -> bool {
        matches!(owner(&self.name), Owner::Blob(_))
    }

    /// Whether one of them takes the other's place: state is everybody's, and anything else its worker's.
    fn replaces(&self, other: &Self) -> bool {
        self.name == other.name && (self.is_state() || self.by == other.by)
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

/// More is not kept.
const KEPT_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::descriptors::is_hung_up;

    fn word(text: &str, descriptors: Vec<OwnedFd>) -> Notification {
        word_of(1, text, descriptors)
    }

    fn word_of(pid: u32, text: &str, descriptors: Vec<OwnedFd>) -> Notification {
        Notification {
            pid,
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

    #[test]
    fn what_is_kept_under_a_name_that_is_taken_takes_its_place_whoever_keeps_it() {
        let mut kept = Kept::default();
        let (forget, store) = (
            "FDSTOREREMOVE=1\nFDNAME=handover.state.keys\n",
            "FDSTORE=1\nFDNAME=handover.state.keys\n",
        );
        let blob = |bytes: &[u8]| memory::sealed(c"keys", bytes).unwrap();
        // As two workers do at the same time.
        kept.hear(&mut word_of(1, forget, Vec::new()));
        kept.hear(&mut word_of(2, forget, Vec::new()));
        kept.hear(&mut word_of(1, store, vec![blob(b"one")]));
        kept.hear(&mut word_of(2, store, vec![blob(b"two")]));
        let all: Vec<_> = kept.state().map(|(_, file)| memory::read(file)).collect();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].as_ref().unwrap(), b"two");
    }

    #[test]
    fn a_worker_forgets_its_own_pipes_and_nobody_else_s_by_the_next_supervisor_too() {
        let mut kept = Kept::default();
        let mut lend = |pid| {
            let (reader, writer) = io::pipe().unwrap();
            let text = "FDSTORE=1\nFDNAME=handover.probe\n";
            kept.hear(&mut word_of(pid, text, vec![writer.into()]));
            reader
        };
        let (one, two) = (lend(1), lend(2));
        let files: Vec<OwnedFd> = kept
            .files()
            .map(|file| file.try_clone_to_owned().unwrap())
            .collect();
        let (mut files, saved) = (files.into_iter(), kept.save());
        drop(kept);
        let mut next = Kept::resume(saved, || Ok(files.next().unwrap())).unwrap();
        let forget = "FDSTOREREMOVE=1\nFDNAME=handover.probe\n";
        next.hear(&mut word_of(1, forget, Vec::new()));
        assert!(is_hung_up(one.as_fd()).unwrap());
        assert!(!is_hung_up(two.as_fd()).unwrap());
    }
}
