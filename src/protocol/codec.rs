//! Messages to bytes and back. Any bytes are either a message or an error; memory is bounded by the datagram.

use super::message::Message;

/// The longest datagram either side sends. A chunk of 253 slots with names of 255 bytes stays below it.
pub(crate) const DATAGRAM_MAX: usize = 128 * 1024;

/// Writes a message as the body of one datagram.
pub(crate) fn encode(message: &Message) -> Vec<u8> {
    // Serialising these types to memory cannot fail: no maps with odd keys, no user code. An empty body would be
    // refused by the reader, which is the right end for a bug here.
    serde_json::to_vec(message).unwrap_or_default()
}

/// Reads the body of one datagram.
pub(crate) fn decode(body: &[u8]) -> Result<Message, serde_json::Error> {
    serde_json::from_slice(body)
}
