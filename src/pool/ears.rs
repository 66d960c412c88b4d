//! How workers are to count, told to each of them by a socket of which it has sent the other end.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use socket2::SockRef;

use super::controller::WorkerId;
use crate::protocol::codec::encode;
use crate::protocol::message::{Message, Watch, millis};
use crate::rollout::CLIENT_WINDOW;
use crate::sys::descriptors::send;

/// Who hears it.
#[derive(Debug, Default)]
pub(super) struct Ears {
    slow_us: Option<u64>,
    of: BTreeMap<WorkerId, OwnedFd>,
}

impl Ears {
    /// A worker listens at the other end of this, and hears at once what holds now.
    pub(super) fn listen(&mut self, worker: WorkerId, end: OwnedFd) {
        // Whatever it has sent, nobody is to wait for it.
        let waits = SockRef::from(&end).set_nonblocking(true).is_err();
        if !waits && self.say(&end) {
            self.of.insert(worker, end);
        }
    }

    pub(super) fn forget(&mut self, worker: WorkerId) {
        self.of.remove(&worker);
    }

    /// From now on this is slow, in microseconds; `None` is nothing. Who cannot be told has gone, or does not read: it sees
    /// the end, and sends another one if it is there.
    pub(super) fn tell(&mut self, slow_us: Option<u64>) {
        self.slow_us = slow_us;
        let mut of = std::mem::take(&mut self.of);
        of.retain(|_, end| self.say(end));
        self.of = of;
    }

    /// Whether it could be said.
    fn say(&self, end: &OwnedFd) -> bool {
        send(end.as_fd(), &self.word(), &[]).is_ok()
    }

    /// As an incumbent says it to a successor.
    fn word(&self) -> Vec<u8> {
        encode(&Message::Watch(Watch {
            slow_us: self.slow_us,
            window_ms: millis(CLIENT_WINDOW),
            by_connection: true,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;
    use std::os::unix::net::UnixDatagram;
    use std::path::Path;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::protocol::codec::decode;
    use crate::sys::descriptors::{is_hung_up, pair, recv};

    const PATIENCE: Duration = Duration::from_secs(20);

    fn heard(end: &OwnedFd) -> Option<u64> {
        let mut buffer = [0; 256];
        let received = recv(end.as_fd(), &mut buffer).unwrap().unwrap();
        match decode(&buffer[..received.length]).unwrap() {
            Message::Watch(watch) => watch.slow_us,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn whoever_listens_hears_what_holds_and_what_follows_and_whoever_does_not_read_is_let_go() {
        let mut ears = Ears::default();
        ears.tell(Some(7));
        let (ours, theirs) = pair().unwrap();
        ears.listen(1, theirs);
        ears.tell(None);
        assert_eq!([heard(&ours), heard(&ours)], [Some(7), None]);
        for _ in 0..10_000 {
            ears.tell(None);
        }
        assert!(is_hung_up(ours.as_fd()).unwrap());
    }

    #[test]
    fn what_is_said_is_said_byte_for_byte() {
        let mut ears = Ears::default();
        ears.tell(Some(118_000));
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire/pool/watch.json");
        assert_eq!(ears.word(), fs::read(golden).unwrap());
    }

    #[test]
    fn a_worker_that_does_not_read_is_not_waited_for_whatever_it_has_sent() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let (done, is_done) = mpsc::channel();
        thread::spawn(move || {
            let mut ears = Ears::default();
            ears.listen(1, theirs.into());
            (0..10_000).for_each(|slow| ears.tell(Some(slow)));
            done.send(()).unwrap();
        });
        is_done.recv_timeout(PATIENCE).unwrap();
        drop(ours);
    }

    #[test]
    fn what_nobody_can_listen_by_is_closed() {
        let (reader, writer) = io::pipe().unwrap();
        let mut ears = Ears::default();
        ears.listen(1, writer.into());
        assert!(is_hung_up(reader.as_fd()).unwrap());
    }
}
