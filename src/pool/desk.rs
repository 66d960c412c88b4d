//! The supervisor's end of the control socket.

use std::io;

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::supervisor::Ask;
use crate::config::CONTROL_DEADLINE;
use crate::control::{Answering, Asked, Happened, Lines, Reply, Request, What};
use crate::drain::{Drain, Guard};

/// Passes requests to the supervisor's task, and its answers back.
#[derive(Clone, Debug)]
pub(super) struct Desk {
    pub(super) asks: mpsc::Sender<Ask>,
    pub(super) events: broadcast::Sender<What>,
    pub(super) asked: watch::Sender<Asked>,
    /// Answers that are on their way, which the process stays for.
    pub(super) answers: Drain,
}

impl Desk {
    /// Asks the supervisor, and waits for its answer.
    pub(super) async fn ask(&self, request: Request) -> Reply {
        let (reply, answer) = oneshot::channel();
        let asked = self.asks.send(Ask { request, reply }).await;
        match asked {
            Ok(()) => answer.await.unwrap_or_else(|_| gone()),
            Err(_) => gone(),
        }
    }

    async fn tell_events(&self, lines: &mut Lines) -> io::Result<()> {
        let mut events = self.events.subscribe();
        lines.say(&Reply::Events).await?;
        loop {
            let what = match events.recv().await {
                Ok(what) => what,
                Err(broadcast::error::RecvError::Lagged(count)) => What::Missed { count },
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            };
            let is_last = matches!(what, What::Drained { .. });
            lines.say(&Happened::now(SUPERVISOR, what)).await?;
            if is_last {
                return Ok(());
            }
        }
    }
}

impl Answering for Desk {
    fn asked(&self) -> watch::Receiver<Asked> {
        self.asked.subscribe()
    }

    fn keep(&self) -> Guard {
        let class = self.answers.class_with_deadline(CLASS, CONTROL_DEADLINE);
        class.guard("answering an operator")
    }

    async fn answer(&self, request: Request, lines: &mut Lines) -> io::Result<()> {
        let _kept = self.keep();
        match request {
            Request::Events => self.tell_events(lines).await,
            request => lines.say(&self.ask(request).await).await,
        }
    }
}

fn gone() -> Reply {
    Reply::refused("the pool has stopped")
}

const CLASS: &str = "control";
/// Whom events of a pool happen to: to no release in particular.
pub(super) const SUPERVISOR: u64 = 0;
