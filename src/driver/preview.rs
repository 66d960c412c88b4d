//! A candidate in preview: its private endpoints, and the checks that reach it there.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Driver;
use super::rollout::Examined;
use crate::check::{self, Candidate};
use crate::error::{Error, ErrorKind, Result};
use crate::listen::{self, Adopted};
use crate::preview::{Adopt, Endpoints};
use crate::protocol::message::{Message, Preview};

impl Driver {
    /// As a candidate that is about to be ready. Without an incumbent there is nobody to check it.
    pub(super) async fn open_preview(&mut self) -> Result<()> {
        let (Some(directory), Some(up)) = (&self.config.preview, &self.up) else {
            return Ok(());
        };
        if up.process.is_none() {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let adopt: Adopt = Arc::new(move |name, connection| {
            let adopted = shared
                .table
                .adopt_connection(name, Adopted::new(connection));
            adopted.is_ok()
        });
        let ports = &self.config.preview_ports;
        let listeners = self.shared.table.public(&[]);
        let opened = Endpoints::open(directory, ports, self.generation, listeners, &adopt).await;
        let doing = || format!("opening private endpoints in {}", directory.display());
        let opened =
            opened.map_err(|error| Error::new(ErrorKind::Listen, doing()).because(error))?;
        self.preview = Some(opened);
        Ok(())
    }

    /// What the machine says, and where this generation is reached if it says that it is ready.
    pub(super) fn with_preview(&self, mut message: Message) -> Message {
        if let (Message::Ready { preview, .. }, Some(endpoints)) = (&mut message, &self.preview) {
            *preview = endpoints.known().to_vec();
        }
        message
    }

    /// It has clients now. Nobody waits while its endpoints go.
    pub(super) fn close_preview(&mut self) {
        if let Some(endpoints) = self.preview.take() {
            tokio::spawn(async move { drop(endpoints) });
        }
    }

    /// Runs the checks of the candidate, that of its schema first. `None` if there are none.
    ///
    /// They end when nobody waits for the result any more.
    pub(super) fn check_candidate(&self) -> Option<oneshot::Receiver<Examined>> {
        let down = self.down.as_ref()?;
        let schema = self.shared.schema.registration().cloned();
        if self.checks.is_empty() && schema.is_none() {
            return None;
        }
        let candidate = Candidate {
            generation: down.generation,
            previews: down.previews.clone(),
        };
        let (limit, checks) = (to_speak_of(down.plan.checks_limit()), self.checks.clone());
        let (mut examined, result) = oneshot::channel();
        tokio::spawn(async move {
            let passing = async {
                if let Some(schema) = schema {
                    schema.check_candidate(candidate.generation).await?;
                }
                check::run(&checks, &candidate, limit).await
            };
            let passed = tokio::select! {
                passed = passing => passed,
                () = examined.closed() => return,
            };
            // Whoever waited may have stopped just now.
            let _ = examined.send(passed);
        });
        Some(result)
    }
}

/// What an examination may take, for its own reason to be known before its deadline is over.
pub(super) fn to_speak_of(limit: Duration) -> Duration {
    limit - (limit / 10).min(MARGIN_MAX)
}

/// Removes the private endpoints of a candidate that had no time to do so. Only where they belong, and only dead ones.
pub(super) async fn clear(previews: &[Preview], directory: Option<&Path>) {
    for preview in previews {
        let path = Path::new(&preview.path);
        if path.parent() == directory
            && let Err(error) = listen::clear(path).await
        {
            tracing::debug!(path = %path.display(), %error, "a private socket's path stays");
        }
    }
}

const MARGIN_MAX: Duration = Duration::from_secs(1);
