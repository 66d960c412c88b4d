//! A running load.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time;

use crate::client::Client;
use crate::kind::Kind;
use crate::mix::Mix;
use crate::recorder::{Progress, Recorder};
use crate::report::Report;
use crate::timeline::MarkKind;

/// Clients at work, until [`stop`](Self::stop).
///
/// They live on the runtime that started them: one that is blocked delays them, and their latencies say so. Dropping a
/// load ends its clients wherever they are, without a report.
#[derive(Debug)]
pub struct Load {
    recorder: Arc<Recorder>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
}

impl Load {
    /// Starts the clients of `mix` against the server at `server`.
    ///
    /// # Panics
    ///
    /// If `server` is not a loopback address, and outside a tokio runtime.
    pub fn start(server: SocketAddr, mix: Mix) -> Self {
        assert!(server.ip().is_loopback(), "{server} is not on loopback");
        let (stop, stopping) = watch::channel(false);
        let recorder = Arc::new(Recorder::new());
        let mix = Arc::new(mix);
        let mut clients = JoinSet::new();
        for (index, kind) in each_client(&mix).enumerate() {
            let client = Client::new(index, kind, server, &mix, &recorder, stopping.clone());
            clients.spawn(client.run());
        }
        Self {
            recorder,
            stop,
            clients,
        }
    }

    /// Puts a mark on the timeline, now.
    pub fn mark(&self, kind: MarkKind, label: impl Into<String>) {
        self.recorder.mark(kind, label.into());
    }

    /// The time since the start, on which all times of the report count.
    pub fn elapsed(&self) -> Duration {
        self.recorder.elapsed()
    }

    /// How far the clients have come, for a display that is refreshed often.
    pub fn progress(&self) -> Progress {
        self.recorder.progress().borrow().clone()
    }

    /// What was seen so far. Requests in flight are not in it.
    pub fn snapshot(&self) -> Report {
        self.recorder.report()
    }

    /// Waits until `generation` has answered `count` requests.
    ///
    /// # Errors
    ///
    /// `TimedOut` with the report so far when `deadline` has passed.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when this is dropped.
    pub async fn until_answers(
        &self,
        generation: u64,
        count: u64,
        deadline: Duration,
    ) -> io::Result<()> {
        let enough =
            |progress: &Progress| progress.answers.get(&generation).copied() >= Some(count);
        let what = format!("{count} answers of generation {generation}");
        self.until(enough, &what, deadline).await
    }

    /// Waits until `count` requests have failed.
    ///
    /// # Errors
    ///
    /// `TimedOut` with the report so far when `deadline` has passed.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when this is dropped.
    pub async fn until_failures(&self, count: u64, deadline: Duration) -> io::Result<()> {
        let enough = |progress: &Progress| progress.failures >= count;
        self.until(enough, &format!("{count} failures"), deadline)
            .await
    }

    /// Waits until servers have ended `count` connections in a way that cost no request.
    ///
    /// # Errors
    ///
    /// `TimedOut` with the report so far when `deadline` has passed.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when this is dropped.
    pub async fn until_reconnects(&self, count: u64, deadline: Duration) -> io::Result<()> {
        let enough = |progress: &Progress| progress.reconnects >= count;
        self.until(enough, &format!("{count} reconnects"), deadline)
            .await
    }

    /// Lets every client finish the request it is in, and reports.
    ///
    /// A request in flight is counted as it ends: well, or badly, or [`TimedOut`](crate::Failure::TimedOut) at its own
    /// deadline, which is what bounds this wait.
    ///
    /// # Cancel safety
    ///
    /// When this is dropped, the clients end wherever they are and the report is lost.
    pub async fn stop(self) -> Report {
        self.recorder.stop();
        self.stop.send_replace(true);
        self.clients.join_all().await;
        self.recorder.report()
    }

    async fn until(
        &self,
        enough: impl Fn(&Progress) -> bool,
        what: &str,
        deadline: Duration,
    ) -> io::Result<()> {
        let mut progress = self.recorder.progress();
        let reached = time::timeout(deadline, progress.wait_for(enough)).await;
        if reached.is_ok() {
            return Ok(());
        }
        let what = format!("no {what} within {deadline:?}:\n{}", self.snapshot());
        Err(io::Error::new(io::ErrorKind::TimedOut, what))
    }
}

fn each_client(mix: &Mix) -> impl Iterator<Item = Kind> {
    Kind::ALL
        .into_iter()
        .flat_map(|kind| std::iter::repeat_n(kind, mix.count(kind)))
}
