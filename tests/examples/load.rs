//! Clients that ask an example without end, while it is upgraded.

use std::collections::BTreeSet;
use std::error::Error;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Somebody who asks, and takes what is answered as the service means it.
pub(crate) trait Client: Send + 'static {
    /// One question and its answer, whose last word names who answered. An error fails the test.
    fn ask(&mut self) -> impl Future<Output = Result<String, String>> + Send;
}

/// Clients at work. Nothing they do is tried again.
pub(crate) struct Load {
    seen: watch::Sender<Seen>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) answers: Vec<String>,
    pub(crate) failures: Vec<String>,
}

impl Load {
    pub(crate) fn new() -> Self {
        Self {
            seen: watch::Sender::default(),
            stop: watch::Sender::default(),
            clients: JoinSet::new(),
        }
    }

    pub(crate) fn with<C: Client>(mut self, count: usize, client: impl Fn() -> C) -> Self {
        for _ in 0..count {
            let work = work(client(), self.seen.clone(), self.stop.subscribe());
            self.clients.spawn(work);
        }
        self
    }

    /// Who has answered so far.
    pub(crate) fn answerers(&self) -> BTreeSet<String> {
        let seen = self.seen.borrow();
        let answerers = seen.answers.iter().map(|answer| answerer(answer));
        answerers.map(str::to_owned).collect()
    }

    /// Waits until `who` has given some answers.
    pub(crate) async fn until_answers_of(&self, who: &str) {
        self.until_answers_after(0, who).await;
    }

    /// Waits until `who` has given some answers from now on.
    pub(crate) async fn until_newer_answers_of(&self, who: &str) {
        let known = self.seen.borrow().answers.len();
        self.until_answers_after(known, who).await;
    }

    async fn until_answers_after(&self, known: usize, who: &str) {
        let mut seen = self.seen.subscribe();
        let enough = |seen: &Seen| {
            let newer = seen.answers.iter().skip(known);
            let its = newer.filter(|answer| answerer(answer) == who);
            its.take(ENOUGH).count() == ENOUGH
        };
        if timeout(DEADLINE, seen.wait_for(enough)).await.is_err() {
            let seen = self.seen.borrow().clone();
            panic!("no {ENOUGH} answers of {who:?}: {}", seen.summary());
        }
    }

    /// Lets every client finish what it asks.
    pub(crate) async fn stop(mut self) -> Seen {
        self.stop.send_replace(true);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        self.seen.borrow().clone()
    }
}

impl Seen {
    pub(crate) fn summary(&self) -> String {
        let last = self.answers.last();
        let count = self.answers.len();
        format!(
            "{count} answers, the last {last:?}, failures {:#?}",
            self.failures
        )
    }
}

pub(crate) fn answerer(answer: &str) -> &str {
    answer.split_whitespace().last().unwrap_or_default()
}

/// Whether a request has certainly not been processed, so that its client is free to ask again.
///
/// hyper calls it canceled if it was never given to a connection. The other is a stream above the last one that a GOAWAY
/// names (RFC 9113, section 6.8): h2's client answers the PING of a graceful shutdown ahead of requests that it has
/// queued but not written, so that the server learns of them too late.
pub(crate) fn was_not_processed(error: &(dyn Error + 'static)) -> bool {
    let is_crossed = |error: &h2::Error| {
        error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
    };
    let is_unsent = |error: &hyper::Error| error.is_canceled();
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref().is_some_and(is_unsent)
            || error.downcast_ref().is_some_and(is_crossed)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

async fn work(mut client: impl Client, seen: watch::Sender<Seen>, stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        let asked = timeout(DEADLINE, client.ask()).await;
        let outcome = asked.unwrap_or_else(|_| Err("no answer".to_owned()));
        let is_failed = outcome.is_err();
        seen.send_modify(|seen| match outcome {
            Ok(answer) => seen.answers.push(answer),
            Err(failure) => seen.failures.push(failure),
        });
        if is_failed {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Longer than the ten seconds for which the plainest example bakes.
pub(crate) const DEADLINE: Duration = Duration::from_secs(40);
const PAUSE: Duration = Duration::from_millis(5);
const ENOUGH: usize = 20;
