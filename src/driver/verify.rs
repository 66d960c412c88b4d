//! Verification of a flip or a rollback: who asks, and that both sides know whom to expect.

use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;

use super::Driver;
use super::preview::to_speak_of;
use super::rollout::Examined;
use super::shared::{Command, Shared, lock};
use crate::config::PROBE_PATIENCE_MAX;
use crate::listen::{Caller, answer};
use crate::protocol::message::{Message, millis};
use crate::rollout::Side;
use crate::verify::{Announcement, verify};

/// The names of the sockets at which the expected side cannot answer, or why it could not be told.
pub(crate) type Announced = Result<Vec<String>, String>;

/// The round of connections that the successor has not confirmed yet.
#[derive(Debug)]
pub(super) struct Unconfirmed {
    nonce: String,
    reply: oneshot::Sender<Announced>,
}

/// The connections of one verification. When it is over, however it ends, this generation forgets them: clients of
/// this machine who get the addresses of those that the other one has answered would be taken for them.
struct Asking {
    shared: Arc<Shared>,
    callers: Mutex<Vec<Caller>>,
}

impl Asking {
    fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            callers: Mutex::default(),
        }
    }

    fn add(&self, callers: &[Caller]) {
        lock(&self.callers).extend_from_slice(callers);
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.shared.table.forget(&lock(&self.callers));
    }
}

impl Driver {
    /// Fresh connections to each public address have to be answered by this side. None if it could not answer.
    ///
    /// It ends when nobody waits for the result any more.
    pub(super) fn verify(&self, side: Side) -> Option<oneshot::Receiver<Examined>> {
        let down = self.down.as_ref()?;
        let generation = match side {
            Side::Stable => self.generation,
            Side::Candidate if down.version >= EXPECTS_FROM => down.generation,
            // It would take those who ask for its clients.
            Side::Candidate => {
                self.shared
                    .warn("the flip is not verified: the successor's build cannot say who it is");
                return None;
            }
        };
        // What the candidate did not claim is stable's whatever happens.
        let addresses = self.shared.table.public(&self.unclaimed);
        let (limit, shared) = (
            to_speak_of(down.plan.verify_limit()),
            Arc::clone(&self.shared),
        );
        let (mut examined, result) = oneshot::channel();
        let asked = Arc::clone(&shared);
        let asking = Asking::new(&shared);
        let verified = verify(addresses, generation, limit, move |announcement| {
            asking.add(&announcement.callers);
            let (reply, announced) = oneshot::channel();
            let told = asked.command(Command::Announce {
                side,
                announcement,
                reply,
            });
            async move {
                told.map_err(|error| error.to_string())?;
                announced.await.map_err(|_| "it is gone".to_owned())?
            }
        });
        tokio::spawn(async move {
            let verified = tokio::select! {
                verified = verified => verified,
                () = examined.closed() => return,
            };
            let verdict = verified.map(|verified| {
                tracing::info!(%side, generation, %verified, "handover: verified");
            });
            // Whoever waited may have stopped just now.
            let _ = examined.send(verdict);
        });
        Some(result)
    }

    /// One round of connections is about to come.
    pub(super) fn announce_probes(
        &mut self,
        side: Side,
        announcement: Announcement,
        reply: oneshot::Sender<Announced>,
    ) {
        let Announcement { nonce, callers } = announcement;
        let from = callers.iter().map(Caller::to_string).collect();
        let own = answer(self.generation, &nonce);
        self.shared.table.expect(callers, &own, PROBE_PATIENCE_MAX);
        match side {
            Side::Stable => {
                // Whoever asked may have been given up.
                let _ = reply.send(Ok(Vec::new()));
            }
            Side::Candidate => {
                let expect = Message::Expect {
                    nonce: nonce.clone(),
                    from,
                    millis: millis(PROBE_PATIENCE_MAX),
                };
                self.unconfirmed = Some(Unconfirmed { nonce, reply });
                self.tell_successor(&expect);
                self.perform_downward();
            }
        }
    }

    /// The successor expects them too.
    pub(super) fn confirmed(&mut self, nonce: &str, ungated: Vec<String>) {
        let unconfirmed = self
            .unconfirmed
            .take_if(|unconfirmed| unconfirmed.nonce == nonce);
        if let Some(Unconfirmed { reply, .. }) = unconfirmed {
            // Whoever asked may have been given up.
            let _ = reply.send(Ok(ungated));
        }
    }

    /// As the successor: the incumbent is about to ask who accepts.
    pub(super) fn expect(&mut self, nonce: &str, from: &[String], patience: Duration) {
        let is_harmless = |byte: u8| byte.is_ascii_alphanumeric();
        if nonce.len() <= NONCE_MAX && nonce.bytes().all(is_harmless) {
            let callers = from.iter().map(|from| Caller::from_str(from));
            let callers = callers.filter_map(Result::ok).collect();
            let own = answer(self.generation, nonce);
            self.shared.table.expect(callers, &own, patience);
        }
        self.tell_incumbent(&Message::Expecting {
            nonce: nonce.to_owned(),
            ungated: self.shared.table.ungated(),
        });
    }
}

/// The version of the protocol that brought `expect`.
const EXPECTS_FROM: u32 = 2;
/// Bytes in a nonce that is repeated to whoever asks.
const NONCE_MAX: usize = 64;
