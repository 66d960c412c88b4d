//! Verification of a flip or a rollback: who asks, and that both sides know whom to expect.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::Driver;
use super::shared::Command;
use crate::config::PROBE_PATIENCE_MAX;
use crate::listen::{Caller, answer};
use crate::protocol::message::{Message, millis};
use crate::rollout::Side;
use crate::verify::{Announcement, Verified, verify};

/// The names of the sockets at which the expected side cannot answer, or why it could not be told.
pub(crate) type Announced = Result<Vec<String>, String>;

/// A verification under way; it ends with this.
#[derive(Debug)]
pub(super) struct Verifying {
    side: Side,
    asking: AbortHandle,
    /// The round that the candidate has not confirmed yet.
    unconfirmed: Option<(String, oneshot::Sender<Announced>)>,
}

impl Drop for Verifying {
    fn drop(&mut self) {
        self.asking.abort();
    }
}

impl Driver {
    /// Fresh connections to each public address have to be answered by this side. The result comes as
    /// [`Command::Verified`], within `limit`. One that is under way is given up.
    pub(super) fn begin_verify(&mut self, side: Side, limit: Duration) {
        self.verifying = None;
        let generation = match (side, &self.down) {
            (Side::Candidate, Some(down)) if down.version >= EXPECTS_FROM => down.generation,
            (Side::Candidate, _) => return self.skip_verify(side),
            (Side::Stable, _) => self.generation,
        };
        // Those that the candidate did not claim are stable's whatever happens.
        let addresses = self.shared.table.public(&self.unclaimed);
        let shared = Arc::clone(&self.shared);
        let asking = tokio::spawn(async move {
            let result = verify(addresses, generation, limit, |announcement| {
                let (reply, announced) = oneshot::channel();
                let told = shared.command(Command::Announce {
                    announcement,
                    reply,
                });
                async move {
                    told.map_err(|error| error.to_string())?;
                    announced
                        .await
                        .map_err(|_| "it has been given up".to_owned())?
                }
            });
            let result = result.await;
            // A driver that has ended has nothing to verify.
            let _ = shared.command(Command::Verified { side, result });
        });
        self.verifying = Some(Verifying {
            side,
            asking: asking.abort_handle(),
            unconfirmed: None,
        });
    }

    /// A candidate of version 1 would take those who ask for its clients.
    fn skip_verify(&self, side: Side) {
        self.shared
            .warn("the flip is not verified: the successor cannot say who it is");
        let result = Ok(Verified::default());
        // A driver that has ended has nothing to verify.
        let _ = self.shared.command(Command::Verified { side, result });
    }

    /// One round of connections is about to come.
    pub(super) fn announce_probes(
        &mut self,
        announcement: Announcement,
        reply: oneshot::Sender<Announced>,
    ) {
        let Some(verifying) = &mut self.verifying else {
            return;
        };
        let Announcement { nonce, callers } = announcement;
        let from = callers.iter().map(Caller::to_string).collect();
        let own = answer(self.generation, &nonce);
        self.shared.table.expect(callers, &own, PROBE_PATIENCE_MAX);
        if verifying.side == Side::Stable {
            // Whoever asked may have been given up.
            let _ = reply.send(Ok(Vec::new()));
            return;
        }
        verifying.unconfirmed = Some((nonce.clone(), reply));
        self.tell_successor(&Message::Expect {
            nonce,
            from,
            millis: millis(PROBE_PATIENCE_MAX),
        });
    }

    /// The candidate expects them too.
    pub(super) fn confirmed(&mut self, nonce: &str, ungated: Vec<String>) {
        let Some(verifying) = &mut self.verifying else {
            return;
        };
        let is_this_round = |(unconfirmed, _): &mut (String, _)| unconfirmed == nonce;
        if let Some((_, reply)) = verifying.unconfirmed.take_if(is_this_round) {
            // Whoever asked may have been given up.
            let _ = reply.send(Ok(ungated));
        }
    }

    /// It has been found out who accepts.
    pub(super) fn verified(&mut self, side: Side, result: Result<Verified, String>) {
        self.verifying = None;
        match result {
            Ok(verified) => tracing::info!(%side, %verified, "verified"),
            Err(reason) => self
                .shared
                .warn(format!("{side} does not verify: {reason}")),
        }
    }

    /// As the candidate: the incumbent is about to ask who accepts.
    pub(super) fn expect(&mut self, nonce: &str, from: &[String], patience: Duration) {
        let is_harmless = nonce.len() <= NONCE_MAX && nonce.bytes().all(is_letter_or_digit);
        if is_harmless {
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

fn is_letter_or_digit(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

/// The version of the protocol that brought `expect`.
const EXPECTS_FROM: u32 = 2;
/// Bytes in a nonce that is repeated to whoever asks.
const NONCE_MAX: usize = 64;
