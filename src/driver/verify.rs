//! Verification of a flip or a rollback: who asks, and that both sides know whom to expect.

use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use super::preview::to_speak_of;
use super::rollout::Examined;
use super::shared::{Command, Shared, lock};
use super::{Driver, Role};
use crate::config::{PROBE_PATIENCE_MAX, VERIFY_BY_HAND};
use crate::control::{self, Found, Verification, VerifiedAddress};
use crate::listen::{Caller, answer};
use crate::protocol::message::{Message, micros, millis};
use crate::rollout::{Side, Stage};
use crate::verify::{Announcement, Asked, Skipped, Unverified, Verified, verify};

/// The names of the sockets at which the expected side cannot answer, or why it could not be told.
pub(crate) type Announced = Result<Vec<String>, String>;

/// A round of connections that the successor has not confirmed yet.
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
        let limit = to_speak_of(down.plan.verify_limit());
        let verifications = Arc::clone(&down.verifications);
        let told = move |verification: Verification| {
            lock(&verifications).push(verification.clone());
            verification.into_result()
        };
        match self.can_answer(side) {
            Ok(generation) => Some(self.begin_verifying(side, generation, limit, told)),
            Err(reason) => {
                self.shared
                    .warn(format!("the flip is not verified: {reason}"));
                None
            }
        }
    }

    /// Whoever is to serve now is asked at every address, or nobody, for the reason that is returned.
    pub(super) fn verify_by_hand(&self) -> Result<oneshot::Receiver<Verification>, String> {
        if !matches!(self.role, Role::Incumbent | Role::LameDuck) {
            return Err("this generation does not answer for the service".to_owned());
        }
        let side = match self.down.as_ref().map(|down| down.controller.stage()) {
            None | Some(Stage::Starting | Stage::Preview | Stage::Shifting) => Side::Stable,
            Some(Stage::Baking) => Side::Candidate,
            Some(stage) => return Err(format!("the rollout is {stage}: that ends by itself")),
        };
        let generation = self.can_answer(side)?;
        Ok(self.begin_verifying(side, generation, VERIFY_BY_HAND, |it| it))
    }

    /// The number of that side's generation, or why it cannot say it.
    fn can_answer(&self, side: Side) -> Result<u64, String> {
        match (side, &self.down) {
            (Side::Stable, _) => Ok(self.generation),
            (Side::Candidate, Some(down)) if down.version >= EXPECTS_FROM => Ok(down.generation),
            // It would take those who ask for its clients.
            (Side::Candidate, _) => Err("the successor's build cannot say who it is".to_owned()),
        }
    }

    fn begin_verifying<T: Send + 'static>(
        &self,
        side: Side,
        generation: u64,
        limit: Duration,
        told: impl FnOnce(Verification) -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        // What the candidate did not claim is stable's whatever happens.
        let addresses = self.shared.table.public(&self.unclaimed);
        let shared = Arc::clone(&self.shared);
        let (mut verified, result) = oneshot::channel();
        let asked = Arc::clone(&shared);
        let asking = Asking::new(&shared);
        let verifying = verify(addresses, generation, limit, move |announcement| {
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
        let (at_ms, begun) = (control::unix_ms(SystemTime::now()), Instant::now());
        tokio::spawn(async move {
            let outcome = tokio::select! {
                outcome = verifying => outcome,
                () = verified.closed() => return,
            };
            if let Ok(verified) = &outcome {
                tracing::info!(%side, generation, %verified, "handover: verified");
            }
            let verification = Verification {
                at_ms,
                generation,
                took_us: micros(begun.elapsed()),
                ..verification_of(outcome)
            };
            shared.verified.send_replace(Some(verification.clone()));
            // Whoever waited may have stopped just now.
            let _ = verified.send(told(verification));
        });
        result
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
                // The rounds of those that have given up are confirmed to nobody.
                self.unconfirmed.retain(|round| !round.reply.is_closed());
                self.unconfirmed.push(Unconfirmed { nonce, reply });
                self.tell_successor(&expect);
                self.perform_downward();
            }
        }
    }

    /// The successor expects them too.
    pub(super) fn confirmed(&mut self, nonce: &str, ungated: Vec<String>) {
        let rounds = self.unconfirmed.iter();
        let round = rounds.enumerate().find(|(_, round)| round.nonce == nonce);
        if let Some(index) = round.map(|(index, _)| index) {
            let Unconfirmed { reply, .. } = self.unconfirmed.swap_remove(index);
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

fn verification_of(outcome: Result<Verified, Unverified>) -> Verification {
    let (verified, failed, reason) = match outcome {
        Ok(verified) => (verified, Vec::new(), None),
        Err(Unverified {
            verified,
            failed,
            reason,
        }) => (verified, failed, Some(reason)),
    };
    let failed = failed
        .into_iter()
        .map(|(asked, why)| address_of(asked, Found::Failed, why));
    let passed = verified.passed.into_iter();
    let passed = passed.map(|asked| address_of(asked, Found::Passed, String::new()));
    let skipped = verified.skipped.into_iter();
    let skipped = skipped.map(|Skipped { name, address, why }| VerifiedAddress {
        name,
        address,
        result: Found::Skipped,
        connections: 0,
        missed: 0,
        took_us: 0,
        why,
    });
    Verification {
        passed: reason.is_none(),
        reason: reason.unwrap_or_default(),
        addresses: failed.chain(passed).chain(skipped).collect(),
        ..Verification::default()
    }
}

fn address_of(asked: Asked, result: Found, why: String) -> VerifiedAddress {
    VerifiedAddress {
        name: asked.name,
        address: asked.address,
        result,
        connections: asked.connections,
        missed: asked.missed,
        took_us: micros(asked.took),
        why,
    }
}

/// The version of the protocol that brought `expect`.
const EXPECTS_FROM: u32 = 2;
/// Bytes in a nonce that is repeated to whoever asks.
const NONCE_MAX: usize = 64;
