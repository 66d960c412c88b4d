//! What the two ends of a handover say to each other, version 2.
//!
//! One message is one datagram: a JSON object whose `type` names the message, and the descriptors it counts. A reader
//! ignores fields it does not know, so a field can be added; a message or field that the other side must understand
//! needs a new version number on the day it is added. docs/PROTOCOL.md lists them all.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::codec;

/// The newest protocol version this build speaks.
pub(crate) const VERSION: u32 = 2;
/// The oldest protocol version this build speaks.
pub(crate) const VERSION_MIN: u32 = 1;
/// Descriptors in one message: the kernel's SCM_MAX_FD (unix(7)).
pub(crate) const DESCRIPTORS_MAX: usize = 253;
/// Bytes of slots in one chunk, so that its datagram has room for them and for fields of the future.
const CHUNK_BYTES_MAX: usize = 100 * 1024;

/// One datagram of the channel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Message {
    /// The first message each way.
    Hello(Hello),
    /// Incumbent to successor: one chunk of the table; its descriptors travel with it, one for each slot, in order.
    Offer(Chunk),
    /// Successor to incumbent: the chunk and all its descriptors have arrived, the sender need not keep them for it. Not
    /// said of the last chunk of a `start` or `commit`, which has an answer of its own.
    Received {
        /// Which chunk.
        chunk: u32,
    },
    /// Successor to incumbent: give me this long from now before you give me up.
    Extend {
        /// Milliseconds from the arrival of this message.
        millis: u64,
    },
    /// Successor to incumbent: warmed up, gates shut; may serve.
    Ready {
        /// Indexes, over all chunks, of the offered slots that it does not want; its copies are closed already.
        unclaimed: Vec<u32>,
        /// Where it can be reached already, by nobody but those who check it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        preview: Vec<Preview>,
    },
    /// Incumbent to successor, from version 2: whoever accepts a connection from one of these addresses answers it with
    /// its number and the nonce, and closes it.
    Expect {
        /// What tells one round of connections from another.
        nonce: String,
        /// The addresses; a Unix socket's abstract name is `@` and its bytes in hexadecimal.
        from: Vec<String>,
        /// For how many milliseconds.
        millis: u64,
    },
    /// Successor to incumbent, from version 2: the answer to `expect`. They may come now.
    Expecting {
        /// That of the round.
        nonce: String,
        /// Names of sockets at which its application accepts by itself, so that nobody can answer there.
        ungated: Vec<String>,
    },
    /// Incumbent to successor, from version 2: what have you counted? Count by these rules from now on.
    Watch(Watch),
    /// Successor to incumbent, from version 2: the answer to `watch`.
    Counts(Tally),
    /// Incumbent to successor: my gates are shut, open yours once the last one of these is here. State of the flip
    /// travels with it.
    Start(Chunk),
    /// Successor to incumbent: my gates are open.
    Started,
    /// Incumbent to successor: shut your gates again, finish what you have begun and leave.
    Stop {
        /// For the successor's log.
        reason: String,
        /// Whether nobody is to serve any more, whoever is left.
        #[serde(default)]
        ends_service: bool,
    },
    /// Successor to incumbent: my gates are shut again, and I keep my sockets until I hear `reopened`.
    Stopped {
        /// Why, where it was the successor's own decision.
        reason: String,
        /// Milliseconds that it may still live.
        millis: u64,
    },
    /// Incumbent to successor: my gates are open again; let go of your sockets.
    Reopened,
    /// Incumbent to successor: the role is yours, once the last one of these is here. A pidfd of each elder travels
    /// with it, in order.
    Commit {
        /// Position of this part of the list, from 0.
        chunk: u32,
        /// Whether this is the last one.
        last: bool,
        /// Milliseconds that the speaker may still live once it has handed over.
        millis: u64,
        /// Older generations that still drain.
        elders: Vec<Elder>,
        /// How the upgrade went so far, for the history that the successor goes on with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timings: Option<Timings>,
    },
    /// Successor to incumbent: I have the role; you may leave.
    Committed,
    /// Incumbent to successor: before the flip, go away; a process that stays will be killed.
    Abort {
        /// For the successor's log.
        reason: String,
    },
    /// Successor to incumbent: I cannot go on; I am about to exit.
    Failed {
        /// The whole chain of causes in words.
        reason: String,
    },
}

/// How a successor that is ready is reached before the flip.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Preview {
    /// The listener whose connections come from there too.
    pub(crate) name: String,
    /// A Unix socket of the successor's own.
    pub(crate) path: String,
    /// A TCP port on the loopback address, if one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<u16>,
}

/// Who speaks, and what it understands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Oldest protocol version spoken.
    pub(crate) version_min: u32,
    /// Newest protocol version spoken.
    pub(crate) version_max: u32,
    /// Version of this crate, for logs.
    pub(crate) crate_version: String,
    /// The application's own name for its build, for logs.
    #[serde(default)]
    pub(crate) build: String,
    /// The speaker's generation number. 0 from a successor, which learns it from the incumbent.
    pub(crate) generation: u64,
    /// From the incumbent: the successor's generation number.
    #[serde(default)]
    pub(crate) successor: u64,
    /// The speaker's process.
    pub(crate) pid: u32,
    /// How many descriptors the offer will carry in all, so that the receiver can see to its limit.
    #[serde(default)]
    pub(crate) descriptors: u32,
}

/// How a successor is to count, so that both sides count alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Watch {
    /// Requests that take longer than so many microseconds are slow; none is if there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) slow_us: Option<u64>,
    /// For how many milliseconds further errors of the same client count as the one that was counted.
    pub(crate) window_ms: u64,
    /// Whether each connection is a client of its own.
    #[serde(default)]
    pub(crate) by_connection: bool,
}

/// What a successor has counted since its start, and how it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// Requests answered.
    pub(crate) requests: u64,
    /// Errors among them, one for each client and window.
    pub(crate) errors: u64,
    /// Slow ones among them, one for each client and window.
    pub(crate) slow: u64,
    /// Those that were turned away.
    #[serde(default)]
    pub(crate) shed: u64,
    /// Those under way.
    #[serde(default)]
    pub(crate) in_flight: u64,
    /// Connections accepted, if all of them are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) accepted: Option<u64>,
    /// Why it does not serve as it should, if its application says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) degraded: Option<String>,
    /// What half of the requests took at most, in microseconds, lately. Nothing is decided by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) p50_us: Option<u64>,
    /// What 99 of 100 did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) p99_us: Option<u64>,
    /// What slow ones took longer than, in microseconds. Only workers of a pool say so, who hear of it at different times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) slow_us: Option<u64>,
}

/// A part of a table of named descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Chunk {
    /// Position of this chunk, from 0.
    pub(crate) chunk: u32,
    /// Whether this is the last one.
    pub(crate) last: bool,
    /// One entry for each descriptor that travels with the message, in order.
    pub(crate) slots: Vec<Slot>,
}

/// One named descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Slot {
    /// The name that the application gave it.
    pub(crate) name: String,
    /// What it is.
    pub(crate) kind: SlotKind,
    /// For a Unix socket with a path: device and inode of the path when it was bound, so that only its owner unlinks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) inode: Option<(u64, u64)>,
    /// Why the service manager holds the socket too, if it does: nobody may refuse its clients, even at a final stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) keeper: Option<Keeper>,
}

/// Why the service manager holds a socket too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Keeper {
    /// A unit of its own says where the socket is bound; its path is the manager's.
    Unit,
    /// A generation bound it and has the manager keep it under this name.
    Store,
    /// Something that a newer build knows.
    #[serde(other)]
    Unknown,
}

/// What a slot's descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SlotKind {
    /// A listening TCP socket.
    Tcp,
    /// A listening Unix stream socket.
    Unix,
    /// A bound UDP socket.
    Udp,
    /// A sealed memory file whose bytes are the application's.
    Blob,
    /// Any descriptor of the application's.
    Descriptor,
    /// Something that a newer build knows; never claimed, so closed.
    #[serde(other)]
    Unknown,
}

/// An older generation that still drains.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Elder {
    /// Its number.
    pub(crate) generation: u64,
    /// Its process.
    pub(crate) pid: u32,
    /// Milliseconds that it may still live: by its own deadlines, which are not those of whoever watches over it.
    pub(crate) millis: u64,
}

/// When what happened in an upgrade, as its incumbent has seen it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Timings {
    /// When it was asked for, in milliseconds since 1970.
    pub(crate) asked_at_ms: u64,
    /// From then until the successor was ready, in milliseconds.
    pub(crate) ready_after_ms: u64,
    /// From the incumbent's gates being shut until the successor's were open, in microseconds.
    pub(crate) flip_took_us: u64,
}

impl Hello {
    /// The version that both ends speak, if this is what the other one has said of itself.
    pub(crate) fn version(&self) -> u32 {
        self.version_max.min(VERSION)
    }
}

impl Message {
    /// How many descriptors must travel with this message.
    pub(crate) fn descriptors(&self) -> usize {
        match self {
            Self::Offer(chunk) | Self::Start(chunk) => chunk.slots.len(),
            Self::Commit { elders, .. } => elders.len(),
            _ => 0,
        }
    }

    /// The message's name on the wire.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Offer(_) => "offer",
            Self::Received { .. } => "received",
            Self::Extend { .. } => "extend",
            Self::Ready { .. } => "ready",
            Self::Expect { .. } => "expect",
            Self::Expecting { .. } => "expecting",
            Self::Watch(_) => "watch",
            Self::Counts(_) => "counts",
            Self::Start(_) => "start",
            Self::Started => "started",
            Self::Stop { .. } => "stop",
            Self::Stopped { .. } => "stopped",
            Self::Reopened => "reopened",
            Self::Commit { .. } => "commit",
            Self::Committed => "committed",
            Self::Abort { .. } => "abort",
            Self::Failed { .. } => "failed",
        }
    }

    pub(crate) fn extend(by: Duration) -> Self {
        Self::Extend { millis: millis(by) }
    }
}

/// As a message says how long something takes.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The same in microseconds.
#[inline]
pub(crate) fn micros(duration: Duration) -> u64 {
    // `Duration::as_micros` would multiply 128 bits.
    let seconds = duration.as_secs().saturating_mul(1_000_000);
    seconds.saturating_add(u64::from(duration.subsec_micros()))
}

/// How many of these items, from the first on, go into one message; at least one, if there is any.
pub(crate) fn fitting<'a, T: Serialize + 'a>(
    items: impl IntoIterator<Item = &'a T>,
    per_chunk: usize,
) -> usize {
    let items_max = per_chunk.clamp(1, DESCRIPTORS_MAX);
    let sums = items.into_iter().scan(0, |bytes, item| {
        *bytes += codec::length(item);
        Some(*bytes)
    });
    let fitting = (0..items_max).zip(sums);
    fitting
        .take_while(|(index, bytes)| *index == 0 || *bytes <= CHUNK_BYTES_MAX)
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_fit_as_are_asked_for_and_as_one_message_can_have_descriptors() {
        let slots: Vec<Slot> = (0..600).map(|n| slot(&n.to_string())).collect();
        assert_eq!(fitting(&slots, 7), 7);
        assert_eq!(fitting(&slots, 0), 1);
        assert_eq!(fitting(&slots, usize::MAX), DESCRIPTORS_MAX);
        assert_eq!(fitting(&slots[..3], DESCRIPTORS_MAX), 3);
        assert_eq!(fitting(&slots[..0], DESCRIPTORS_MAX), 0);
    }

    #[test]
    fn names_that_grow_when_written_still_fit_into_a_datagram() {
        let slots = vec![slot(&"\u{1}".repeat(255)); DESCRIPTORS_MAX];
        let count = fitting(&slots, DESCRIPTORS_MAX);
        assert!((1..DESCRIPTORS_MAX).contains(&count));
        let chunk = Chunk {
            slots: slots[..count].to_vec(),
            ..Chunk::default()
        };
        let length = codec::encode(&Message::Offer(chunk)).len();
        assert!((codec::DATAGRAM_MAX / 2..=codec::DATAGRAM_MAX).contains(&length));
    }

    fn slot(name: &str) -> Slot {
        Slot {
            name: name.into(),
            kind: SlotKind::Tcp,
            inode: None,
            keeper: None,
        }
    }
}
