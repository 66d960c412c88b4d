//! A table on its way to the successor, in parts that fit into one message each.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::Serialize;

use crate::channel::Channel;
use crate::protocol::message::{Chunk, DESCRIPTORS_MAX, Message, Slot, fitting};

/// What is still to be passed, each with its descriptor.
#[derive(Debug)]
pub(crate) struct Parts<T> {
    rest: VecDeque<(T, Arc<OwnedFd>)>,
    /// Kept until the successor has them for certain.
    in_flight: Vec<(T, Arc<OwnedFd>)>,
    chunk: u32,
    per_chunk: usize,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Part<T> {
    pub(crate) chunk: u32,
    pub(crate) last: bool,
    pub(crate) items: Vec<T>,
}

impl<T: Clone + Serialize> Parts<T> {
    pub(crate) fn new(table: impl IntoIterator<Item = (T, Arc<OwnedFd>)>) -> Self {
        Self {
            rest: table.into_iter().collect(),
            in_flight: Vec::new(),
            chunk: 0,
            per_chunk: DESCRIPTORS_MAX,
        }
    }

    /// Sends the next part, and returns which one it was and whether it is the last.
    ///
    /// A full in-flight quota (ETOOMANYREFS, unix(7)) is met with smaller parts; it is an error once one is too much.
    pub(crate) fn send_next(
        &mut self,
        channel: &Channel,
        message: impl Fn(Part<T>) -> Message,
    ) -> io::Result<(u32, bool)> {
        self.take_next();
        loop {
            let part = self.part();
            let sent = (part.chunk, part.last);
            match channel.try_send(&message(part), &self.descriptors()) {
                Ok(()) => {
                    self.chunk += 1;
                    return Ok(sent);
                }
                Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) && self.shrink() => {
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The successor has what was in flight.
    pub(crate) fn arrived(&mut self) {
        self.in_flight.clear();
    }

    /// Leaves out what has not been sent; returns what that is. The next part is empty, and the last.
    pub(crate) fn cut_short(&mut self) -> Vec<T> {
        let unsent = self.in_flight.drain(..).chain(self.rest.drain(..));
        unsent.map(|(item, _)| item).collect()
    }

    fn take_next(&mut self) {
        let fitting = fitting(self.rest.iter().map(|(item, _)| item), self.per_chunk);
        self.in_flight = self.rest.drain(..fitting).collect();
    }

    fn part(&self) -> Part<T> {
        Part {
            chunk: self.chunk,
            last: self.rest.is_empty(),
            items: self.in_flight.iter().map(|(it, _)| it.clone()).collect(),
        }
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.in_flight
            .iter()
            .map(|(_, descriptor)| descriptor.as_fd())
            .collect()
    }

    /// Halves the part at hand and those to come. `false` if it cannot get smaller.
    fn shrink(&mut self) -> bool {
        let half = self.in_flight.len() / 2;
        if half == 0 {
            return false;
        }
        self.per_chunk = half;
        for item in self.in_flight.drain(half..).rev() {
            self.rest.push_front(item);
        }
        true
    }
}

impl From<Part<Slot>> for Chunk {
    fn from(part: Part<Slot>) -> Self {
        Self {
            chunk: part.chunk,
            last: part.last,
            slots: part.items,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::task::Poll;

    use super::*;
    use crate::protocol::message::SlotKind;
    use crate::sys::descriptors::pair;

    fn table(count: usize) -> Vec<(Slot, Arc<OwnedFd>)> {
        let null: Arc<OwnedFd> = Arc::new(File::open("/dev/null").unwrap().into());
        let slot = |n| Slot {
            name: format!("{n:0>250}"),
            kind: SlotKind::Blob,
            inode: None,
            keeper: None,
        };
        (0..count).map(|n| (slot(n), Arc::clone(&null))).collect()
    }

    fn start(part: Part<Slot>) -> Message {
        Message::Start(part.into())
    }

    #[tokio::test]
    async fn a_table_that_no_channel_holds_at_once_passes_part_by_part() {
        let (left, right) = pair().unwrap();
        let (left, mut right) = (Channel::new(left).unwrap(), Channel::new(right).unwrap());
        let table = table(3_000);
        let wanted: Vec<Slot> = table.iter().map(|(slot, _)| slot.clone()).collect();
        let mut parts = Parts::new(table);
        let mut got = Vec::new();
        for number in 0.. {
            let (chunk, last) = parts.send_next(&left, start).unwrap();
            let Poll::Ready(Ok(Some((Message::Start(part), descriptors)))) = right.try_recv()
            else {
                panic!("no part {number}");
            };
            assert_eq!((part.chunk, part.last), (chunk, last));
            assert_eq!((chunk, descriptors.len()), (number, part.slots.len()));
            got.extend(part.slots);
            parts.arrived();
            if last {
                break;
            }
        }
        assert_eq!(got, wanted);
    }

    #[tokio::test]
    async fn what_is_too_much_is_left_out_and_the_rest_still_ends() {
        let (left, right) = pair().unwrap();
        let (left, mut right) = (Channel::new(left).unwrap(), Channel::new(right).unwrap());
        let mut parts = Parts::new(table(DESCRIPTORS_MAX + 7));
        assert_eq!(parts.send_next(&left, start).unwrap(), (0, false));
        parts.arrived();
        assert_eq!(parts.cut_short().len(), 7);
        assert_eq!(parts.send_next(&left, start).unwrap(), (1, true));
        assert!(right.try_recv().is_ready());
        let Poll::Ready(Ok(Some((Message::Start(end), _)))) = right.try_recv() else {
            panic!("no end");
        };
        assert!(end.slots.is_empty());
    }

    #[test]
    fn a_part_shrinks_to_one_and_no_further() {
        let mut parts = Parts::new(table(5));
        let mut order = Vec::new();
        parts.take_next();
        while parts.shrink() {
            order.push(parts.in_flight.len());
        }
        assert_eq!(order, [2, 1]);
        let rest = parts.in_flight.iter().chain(&parts.rest);
        let names: Vec<_> = rest.map(|(slot, _)| slot.name.clone()).collect();
        assert!(names.is_sorted() && names.len() == 5);
    }
}
