//! What the application itself hands to its successor beside sockets: bytes and descriptors, by name.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::error::{Error, ErrorKind, Result};
use crate::protocol::message::{Slot, SlotKind};
use crate::sys::memory;

/// The longest name of a blob or descriptor: 255 bytes.
pub const NAME_MAX: usize = 255;
/// Names that begin like this are the library's own.
const RESERVED: &str = "handover.";

/// What an incumbent offers to its successor: session keys, caches, an open log.
///
/// A name is any text up to [`NAME_MAX`] bytes that does not begin with `handover.`; what is offered under a name for a
/// second time replaces what was offered before. Nothing fails here: an item that cannot be offered fails the handover,
/// with the incumbent serving on.
#[derive(Default)]
pub struct Offer(BTreeMap<String, Item>);

/// What a successor got from its incumbent's [`Offer`]. Whatever it does not take is closed when this is dropped.
#[derive(Debug, Default)]
pub struct State(BTreeMap<String, (SlotKind, OwnedFd)>);

struct Item {
    kind: SlotKind,
    content: io::Result<OwnedFd>,
}

impl Offer {
    /// Offers bytes. They are copied now, to a memory file that neither side can change any more (memfd_create(2)).
    pub fn blob(&mut self, name: impl Into<String>, bytes: impl AsRef<[u8]>) -> &mut Self {
        let content = memory::sealed(c"handover", bytes.as_ref());
        self.insert(name.into(), SlotKind::Blob, content)
    }

    /// Offers a descriptor. Both generations hold what it refers to, its position and flags included.
    pub fn descriptor(
        &mut self,
        name: impl Into<String>,
        descriptor: impl Into<OwnedFd>,
    ) -> &mut Self {
        self.insert(name.into(), SlotKind::Descriptor, Ok(descriptor.into()))
    }

    /// The table to send; an error for the first item that cannot be.
    pub(crate) fn into_slots(self) -> Result<Vec<(Slot, OwnedFd)>> {
        self.0.into_iter().map(slot_of).collect()
    }

    fn insert(&mut self, name: String, kind: SlotKind, content: io::Result<OwnedFd>) -> &mut Self {
        self.0.insert(name, Item { kind, content });
        self
    }
}

impl State {
    /// The bytes offered under this name, if there are any.
    ///
    /// # Errors
    ///
    /// If the memory file cannot be read, or is not sealed.
    pub fn blob(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self.0.get(name) {
            Some((SlotKind::Blob, file)) => memory::read(file.as_fd())
                .map(Some)
                .map_err(|error| failure(format!("reading blob {name:?}"), error)),
            _ => Ok(None),
        }
    }

    /// Takes the descriptor offered under this name, if there is one.
    pub fn take_descriptor(&mut self, name: &str) -> Option<OwnedFd> {
        let (kind, _) = self.0.get(name)?;
        if *kind != SlotKind::Descriptor {
            return None;
        }
        self.0.remove(name).map(|(_, descriptor)| descriptor)
    }

    /// Takes the library's own bytes out, which are nothing to the application. What cannot be read is as good as none.
    pub(crate) fn take_blob(&mut self, name: &str) -> Option<Vec<u8>> {
        let bytes = self.blob(name).ok().flatten();
        self.0.remove(name);
        bytes
    }

    /// The names of everything that is here, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Takes in what came in another message.
    pub(crate) fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// Takes in one slot of an offer. Gives back what is no state: a socket, or something of a newer build.
    pub(crate) fn insert(&mut self, slot: Slot, descriptor: OwnedFd) -> Option<(Slot, OwnedFd)> {
        match slot.kind {
            SlotKind::Blob | SlotKind::Descriptor => {
                self.0.insert(slot.name, (slot.kind, descriptor));
                None
            }
            _ => Some((slot, descriptor)),
        }
    }
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = self.0.iter().map(|(name, item)| (name, item.kind));
        f.debug_map().entries(kinds).finish()
    }
}

/// Bytes of the library's own, to send beside what the application offers.
pub(crate) fn own_blob(name: &str, bytes: &[u8]) -> io::Result<(Slot, OwnedFd)> {
    let slot = Slot {
        name: name.to_owned(),
        kind: SlotKind::Blob,
        inode: None,
        keeper: None,
    };
    Ok((slot, memory::sealed(c"handover", bytes)?))
}

fn slot_of((name, Item { kind, content }): (String, Item)) -> Result<(Slot, OwnedFd)> {
    let doing = || format!("offering {name:?}");
    if name.len() > NAME_MAX {
        return Err(failure(doing(), "the name is longer than 255 bytes"));
    }
    if name.starts_with(RESERVED) {
        return Err(failure(
            doing(),
            "names that begin with \"handover.\" are reserved",
        ));
    }
    let descriptor = content.map_err(|error| failure(doing(), error))?;
    let slot = Slot {
        name,
        kind,
        inode: None,
        keeper: None,
    };
    Ok((slot, descriptor))
}

fn failure(doing: String, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Io, doing).because(cause)
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::fs::File;
    use std::io::Write;

    use super::*;

    #[test]
    fn what_was_offered_arrives_under_its_name() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut offer = Offer::default();
        offer
            .blob("keys", "secret")
            .blob("empty", "")
            .descriptor("pipe", reader);
        let mut state = received(offer);
        assert_eq!(state.names().collect::<Vec<_>>(), ["empty", "keys", "pipe"]);
        assert_eq!(state.blob("keys").unwrap().as_deref(), Some(&b"secret"[..]));
        assert_eq!(state.blob("empty").unwrap().as_deref(), Some(&b""[..]));

        let pipe = File::from(state.take_descriptor("pipe").unwrap());
        writer.write_all(b"through").unwrap();
        drop(writer);
        assert_eq!(io::read_to_string(pipe).unwrap(), "through");
        assert!(state.take_descriptor("pipe").is_none());
    }

    #[test]
    fn a_name_of_another_kind_or_of_nothing_is_nothing() {
        let mut offer = Offer::default();
        offer.blob("keys", "secret").descriptor("null", null());
        let mut state = received(offer);
        assert!(state.take_descriptor("keys").is_none());
        assert!(state.blob("keys").unwrap().is_some());
        assert!(state.blob("null").unwrap().is_none());
        assert!(state.blob("other").unwrap().is_none());
    }

    #[test]
    fn the_second_of_a_name_replaces_the_first() {
        let mut offer = Offer::default();
        offer
            .descriptor("it", null())
            .blob("it", "1")
            .blob("it", "2");
        let state = received(offer);
        assert_eq!(state.names().count(), 1);
        assert_eq!(state.blob("it").unwrap().as_deref(), Some(&b"2"[..]));
    }

    #[test]
    fn names_too_long_or_reserved_fail_the_offer() {
        for name in ["n".repeat(NAME_MAX + 1), "handover.stderr".into()] {
            let mut offer = Offer::default();
            offer.blob(name.as_str(), "");
            let error = offer.into_slots().unwrap_err();
            assert!(error.to_string().contains(&name) && error.source().is_some());
        }
        let mut offer = Offer::default();
        offer.blob("n".repeat(NAME_MAX), "");
        assert!(offer.into_slots().is_ok());
    }

    #[test]
    fn a_blob_that_a_peer_could_still_change_is_an_error() {
        let mut state = State::default();
        let slot = Slot {
            name: "keys".into(),
            kind: SlotKind::Blob,
            inode: None,
            keeper: None,
        };
        assert!(state.insert(slot, null()).is_none());
        assert!(state.blob("keys").is_err());
    }

    #[test]
    fn a_socket_is_no_state() {
        let slot = Slot {
            name: "web".into(),
            kind: SlotKind::Tcp,
            inode: None,
            keeper: None,
        };
        let mut state = State::default();
        assert!(state.insert(slot, null()).is_some());
        assert_eq!(state.names().count(), 0);
    }

    fn received(offer: Offer) -> State {
        let mut state = State::default();
        for (slot, descriptor) in offer.into_slots().unwrap() {
            assert!(state.insert(slot, descriptor).is_none());
        }
        state
    }

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }
}
