//! What the two ends say to each other, one JSON object in each datagram. docs/PROTOCOL.md describes it.

use serde::{Deserialize, Serialize};

/// One datagram.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Word {
    /// Stable to candidate: serve these connections, whose descriptors travel with it.
    Forward {
        /// The listener that accepted them.
        listener: String,
        /// The number of the first; each further one is one more.
        first: u64,
        /// How many there are.
        count: u32,
    },
    /// Stable to candidate: what you have not begun is served here.
    Revoked,
    /// Candidate to stable: the application has this connection.
    Begun {
        /// Its number.
        id: u64,
    },
    /// Candidate to stable: this connection will not be served here.
    Declined {
        /// Its number.
        id: u64,
        /// Nor will any other of its listener.
        #[serde(default)]
        for_good: bool,
    },
}

impl Word {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        // Strings and numbers: there is nothing in it that could fail to be written.
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }
}

/// Bytes that every word fits into: a listener's name has 255, each of which may take six.
pub(super) const WORD_MAX: usize = 2 * 1024;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn golden_files_are_read_and_written_byte_for_byte() {
        let samples = [
            (
                "forward",
                Word::Forward {
                    listener: "web".into(),
                    first: 17,
                    count: 2,
                },
            ),
            ("revoked", Word::Revoked),
            ("begun", Word::Begun { id: 17 }),
            (
                "declined",
                Word::Declined {
                    id: 18,
                    for_good: true,
                },
            ),
        ];
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire/director-v2");
        assert_eq!(fs::read_dir(&golden).unwrap().count(), samples.len());
        for (name, word) in samples {
            let body = fs::read(golden.join(format!("{name}.json"))).unwrap();
            assert_eq!(Word::from_bytes(&body).unwrap(), word);
            assert_eq!(word.to_bytes(), body);
        }
    }

    #[test]
    fn fields_of_a_newer_build_are_ignored() {
        let word = br#"{"type":"begun","id":1,"new":true}"#;
        assert_eq!(Word::from_bytes(word).unwrap(), Word::Begun { id: 1 });
    }

    #[test]
    fn the_longest_word_fits() {
        let word = Word::Forward {
            listener: "\u{1}".repeat(255),
            first: u64::MAX,
            count: u32::MAX,
        };
        assert!(word.to_bytes().len() <= WORD_MAX);
    }
}
