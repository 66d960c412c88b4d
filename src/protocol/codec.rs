//! Messages to bytes and back. Any bytes are either a message or an error; memory is bounded by the datagram.

use serde::Serialize;

use super::message::Message;

/// The longest datagram either side sends; what is cut to be [fitting](super::message::fitting) stays below it.
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

/// How many bytes a slot or elder adds to a chunk.
pub(super) fn length(item: &impl Serialize) -> usize {
    // One more for the comma. What cannot be written takes no room; see `encode` for why that does not happen.
    serde_json::to_vec(item).map_or(0, |text| text.len() + 1)
}

/// Panics if these bytes show the codec to be wrong: what is read must be written to something that reads the same.
#[cfg(any(test, fuzzing))]
pub(crate) fn examine(body: &[u8]) {
    if let Ok(message) = decode(body) {
        let again = decode(&encode(&message));
        assert!(
            again.is_ok_and(|again| again == message),
            "reads differently once written: {message:?}"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::PathBuf;

    use super::super::message::{
        Chunk, Elder, Hello, Keeper, Slot, SlotKind, Tally, VERSION, Watch,
    };
    use super::*;

    #[test]
    fn a_message_survives_the_wire() {
        for message in samples() {
            assert_eq!(decode(&encode(&message)).unwrap(), message);
        }
    }

    #[test]
    fn there_is_a_sample_and_a_golden_file_of_every_message() {
        let sampled: BTreeSet<String> = samples().iter().map(name).collect();
        let golden: BTreeSet<String> = golden().iter().map(|(stem, _)| sample_of(stem)).collect();
        assert_eq!(sampled, every_name());
        assert_eq!(golden, every_name());
    }

    #[test]
    fn the_samples_are_written_as_the_version_that_brought_them_wrote_them() {
        let golden = golden();
        for message in samples() {
            let first = golden.iter().find(|(stem, _)| *stem == name(&message));
            let (stem, body) = first.expect("a file with the plain name of each message");
            assert_eq!(encode(&message), *body, "{stem}");
        }
    }

    #[test]
    fn golden_files_are_read_and_written_byte_for_byte() {
        for (stem, body) in golden() {
            let message = decode(&body).unwrap();
            assert_eq!(sample_of(&stem), name(&message));
            assert_eq!(encode(&message), body, "{stem}");
        }
    }

    #[test]
    fn a_slot_without_a_keeper_is_nobody_elses_and_one_of_a_newer_kind_is_somebodys() {
        let keepers = |stem: &str| {
            let body = fs::read(repository(&format!("tests/wire/v1/{stem}.json"))).unwrap();
            let Ok(Message::Offer(chunk)) = decode(&body) else {
                panic!("not an offer");
            };
            let slots = chunk.slots.into_iter();
            slots.map(|slot| slot.keeper).collect::<Vec<_>>()
        };
        assert_eq!(keepers("offer"), [None; 5]);
        let kept = [Some(Keeper::Unit), Some(Keeper::Store), None];
        assert_eq!(keepers("offer-kept"), kept);
        let body = br#"{"type":"offer","chunk":0,"last":true,"slots":[{"name":"a","kind":"tcp","keeper":"cloud"}]}"#;
        let Ok(Message::Offer(chunk)) = decode(body) else {
            panic!("not an offer");
        };
        assert_eq!(chunk.slots[0].keeper, Some(Keeper::Unknown));
    }

    #[test]
    fn fields_of_a_newer_build_are_ignored() {
        for (_, body) in golden() {
            let mut newer: serde_json::Value = serde_json::from_slice(&body).unwrap();
            newer["tomorrow"] = serde_json::json!({ "of": ["any", "shape"] });
            let newer = serde_json::to_vec(&newer).unwrap();
            assert_eq!(decode(&newer).unwrap(), decode(&body).unwrap());
        }
    }

    #[test]
    fn a_slot_of_a_newer_kind_is_read_as_unknown() {
        let body =
            br#"{"type":"offer","chunk":0,"last":true,"slots":[{"name":"a","kind":"sctp"}]}"#;
        let Ok(Message::Offer(chunk)) = decode(body) else {
            panic!("not an offer");
        };
        assert_eq!(chunk.slots[0].kind, SlotKind::Unknown);
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error() {
        let corpus = repository("fuzz/corpus/codec");
        if !corpus.exists() {
            return; // The published package leaves the corpus out.
        }
        let bodies: Vec<Vec<u8>> = fs::read_dir(corpus)
            .unwrap()
            .map(|entry| fs::read(entry.unwrap().path()).unwrap())
            .collect();
        assert!(bodies.len() >= 20);
        assert!(bodies.iter().any(|body| decode(body).is_ok()));
        assert!(bodies.iter().any(|body| decode(body).is_err()));
        bodies.iter().for_each(|body| examine(body));
    }

    #[test]
    fn the_protocol_document_describes_every_message() {
        let document = fs::read_to_string(repository("docs/PROTOCOL.md")).unwrap();
        for name in every_name() {
            assert!(document.contains(&format!("\n### `{name}`")), "{name}");
        }
    }

    fn samples() -> Vec<Message> {
        let slot = |name: &str, kind, inode| Slot {
            name: name.into(),
            kind,
            inode,
            keeper: None,
        };
        vec![
            Message::Hello(Hello {
                version_min: 1,
                version_max: 1,
                crate_version: "0.1.0".into(),
                build: "2026-11-23 a1b2c3".into(),
                generation: 2,
                successor: 3,
                pid: 4242,
                descriptors: 3,
            }),
            Message::Offer(Chunk {
                chunk: 0,
                last: false,
                slots: vec![
                    slot("web", SlotKind::Tcp, None),
                    slot(
                        "admin \"quoted\" ü",
                        SlotKind::Unix,
                        Some((66306, u64::MAX)),
                    ),
                    slot("dns", SlotKind::Udp, None),
                    slot("keys", SlotKind::Blob, None),
                    slot("log", SlotKind::Descriptor, None),
                ],
            }),
            Message::Received { chunk: 7 },
            Message::Extend { millis: 90_000 },
            Message::Ready {
                unclaimed: vec![1, 4],
                preview: Vec::new(),
            },
            Message::Expect {
                nonce: "8c0f3ab1d2e4f567".into(),
                from: vec!["127.0.0.1:40112".into(), "@3030316161".into()],
                millis: 60_000,
            },
            Message::Expecting {
                nonce: "8c0f3ab1d2e4f567".into(),
                ungated: vec!["metrics".into()],
            },
            Message::Watch(Watch {
                slow_us: Some(120_000),
                window_ms: 60_000,
                by_connection: false,
            }),
            Message::Counts(Tally {
                requests: 4_200,
                errors: 3,
                slow: 41,
                shed: 2,
                in_flight: 17,
                accepted: Some(1_300),
                degraded: Some("the cache is cold".into()),
                p50_us: None,
                p99_us: None,
                slow_us: None,
            }),
            Message::Start(Chunk {
                chunk: 0,
                last: true,
                slots: vec![slot("sessions", SlotKind::Blob, None)],
            }),
            Message::Started,
            Message::Stop {
                reason: "an operator asked for it".into(),
                ends_service: false,
            },
            Message::Stopped {
                reason: String::new(),
                millis: 905_000,
            },
            Message::Reopened,
            Message::Commit {
                chunk: 0,
                last: true,
                millis: 905_000,
                elders: vec![Elder {
                    generation: 1,
                    pid: 4100,
                    millis: 61_500,
                }],
                timings: None,
            },
            Message::Committed,
            Message::Abort {
                reason: "not ready within 60s".into(),
            },
            Message::Failed {
                reason: "binding \"web\": address in use".into(),
            },
        ]
    }

    /// The message that a file is an example of; what follows a hyphen is what is special about it.
    fn sample_of(stem: &str) -> String {
        stem.split('-').next().unwrap_or_default().to_owned()
    }

    fn name(message: &Message) -> String {
        let value = serde_json::to_value(message).unwrap();
        value["type"].as_str().unwrap().to_owned()
    }

    /// serde lists the names it knows when it is asked for one that it does not.
    fn every_name() -> BTreeSet<String> {
        let refusal = decode(br#"{"type":"?"}"#).unwrap_err().to_string();
        let (_, names) = refusal.split_once("expected one of").unwrap();
        names
            .split('`')
            .skip(1)
            .step_by(2)
            .map(String::from)
            .collect()
    }

    fn golden() -> Vec<(String, Vec<u8>)> {
        let versions = (1..=VERSION).map(|version| repository(&format!("tests/wire/v{version}")));
        let entries = versions
            .filter(|version| version.exists())
            .flat_map(|version| fs::read_dir(version).unwrap());
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .map(|path| {
                let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
                (stem, fs::read(path).unwrap())
            })
            .collect()
    }

    fn repository(path: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
    }
}
