//! What a worker of a pool does otherwise: it is upgraded and stopped by its supervisor, and tells it what it counts.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use super::Driver;
use super::link::Heard;
use super::looks::rules_of;
use crate::channel::Channel;
use crate::config::{COUNTS_REPORT, Config, Image};
use crate::observe::{Counted, Observed, Rules};
use crate::protocol::message::{Message, Tally, Watch};
use crate::rollout::CLIENT_WINDOW;
use crate::sys::descriptors;
use crate::sys::environment::{Snapshot, WORKER};
use crate::systemd::notify::Notice;

/// A worker's word to its supervisor, and the supervisor's on how to count.
#[derive(Debug)]
pub(super) struct Membership {
    next: Instant,
    told: Tally,
    /// See [`Tally::slow_us`].
    slow_us: Option<u64>,
    ear: Ear,
}

/// Where the supervisor says how to count.
#[derive(Debug)]
enum Ear {
    /// Its other end goes out with the next report.
    Due,
    /// Nothing has been heard. A supervisor that knows what it is for says something at once.
    Offered(Channel),
    Heard(Channel),
    /// The supervisor has closed it without a word, as one does that does not know what it is for.
    Useless,
}

impl Membership {
    /// Of this process, if it is a worker. It counts by connection then: which worker gets one is chance, whoever comes.
    pub(super) fn of(config: &Config, observed: &Observed) -> Option<Self> {
        if !config.is_worker {
            return None;
        }
        observed.apply(Rules {
            slow_above: None,
            window: CLIENT_WINDOW,
            by: Counted::Connection,
        });
        Some(Self {
            next: Instant::now(),
            told: Tally::default(),
            slow_us: None,
            ear: Ear::Due,
        })
    }

    /// Where the supervisor may have said something.
    pub(super) fn channel(&mut self) -> Option<&mut Channel> {
        match &mut self.ear {
            Ear::Offered(channel) | Ear::Heard(channel) => Some(channel),
            Ear::Due | Ear::Useless => None,
        }
    }

    /// The end of it that is the supervisor's, if that is due.
    fn offer(&mut self) -> Option<io::Result<OwnedFd>> {
        let Ear::Due = self.ear else {
            return None;
        };
        self.ear = Ear::Useless;
        let made = descriptors::pair().and_then(|(ours, theirs)| {
            self.ear = Ear::Offered(Channel::new(ours)?);
            Ok(theirs)
        });
        Some(made)
    }

    fn handle_watch(&mut self, watch: Watch) {
        self.slow_us = watch.slow_us;
        self.ear = match std::mem::replace(&mut self.ear, Ear::Useless) {
            Ear::Offered(channel) | Ear::Heard(channel) => Ear::Heard(channel),
            other => other,
        };
    }

    /// Whoever has spoken there once is another program by now, which is to have an end of its own.
    fn handle_end(&mut self) {
        self.ear = match self.ear {
            Ear::Heard(_) => Ear::Due,
            _ => Ear::Useless,
        };
    }

    /// What is news to the supervisor, for as long as it knows of nothing else.
    fn news(&mut self, tally: &Tally) -> bool {
        let known = |tally: &Tally| {
            let Tally {
                requests,
                errors,
                shed,
                slow_us,
                ..
            } = *tally;
            (requests, errors, shed, slow_us, tally.degraded.clone())
        };
        let is_news = known(tally) != known(&self.told);
        if is_news {
            self.told = tally.clone();
        }
        is_news
    }
}

/// Whether this process is a worker of a pool. What the supervisor has for the service is not the worker's then.
pub(crate) fn join_pool(config: &mut Config, snapshot: &Snapshot) {
    if snapshot.service_manager(WORKER).is_none() {
        return;
    }
    config.is_worker = true;
    config.control = None;
    config.pid_file = None;
    config.preview = None;
    config.preview_ports.clear();
    config.fd_store = Some(false);
    config.takeover = false;
    config.image = Image::Nothing;
}

impl Driver {
    pub(super) fn next_report(&self) -> Option<Instant> {
        self.membership.as_ref().map(|member| member.next)
    }

    /// Tells the supervisor what has been counted, if that is more than it knows.
    pub(super) fn report_if_due(&mut self, now: Instant) {
        if self.next_report().is_none_or(|at| now < at) {
            return;
        }
        let mut tally = self.tally(&self.shared.observed);
        let Some(member) = &mut self.membership else {
            return;
        };
        member.next = now + COUNTS_REPORT;
        match member.offer() {
            Some(Ok(theirs)) => self.manager.tell(Notice::new().listen(theirs)),
            Some(Err(error)) => self
                .shared
                .warn(format!("the supervisor cannot say what is slow: {error}")),
            None => {}
        }
        tally.slow_us = member.slow_us;
        if member.news(&tally) {
            self.manager.tell(Notice::new().counts(&tally));
        }
    }

    /// The supervisor has said how to count, or says nothing there any more.
    pub(super) fn heard_from_supervisor(&mut self, heard: Heard) {
        let Some(member) = &mut self.membership else {
            return;
        };
        match heard {
            Heard::Message(Message::Watch(watch), _) => {
                self.shared.observed.apply(rules_of(watch));
                member.handle_watch(watch);
            }
            // Of a supervisor that has more to say.
            Heard::Message(..) => {}
            Heard::Closed | Heard::Broken(_) => member.handle_end(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> Membership {
        let config = Config {
            is_worker: true,
            ..Config::default()
        };
        Membership::of(&config, &Observed::new()).unwrap()
    }

    const WATCH: Watch = Watch {
        slow_us: Some(7),
        window_ms: 60_000,
        by_connection: true,
    };

    #[tokio::test]
    async fn whoever_spoke_and_is_gone_gets_a_new_end_and_whoever_closed_it_without_a_word_none() {
        let mut member = member();
        let theirs = member.offer().unwrap().unwrap();
        assert!(member.offer().is_none());
        drop(theirs);
        let heard = Heard::next(member.channel().unwrap()).await;
        assert!(matches!(heard, Heard::Closed), "{heard:?}");
        member.handle_end();
        assert!(member.offer().is_none() && member.channel().is_none());

        let mut member = self::member();
        let _theirs = member.offer().unwrap().unwrap();
        member.handle_watch(WATCH);
        member.handle_end();
        assert!(member.offer().is_some());
    }

    #[tokio::test]
    async fn by_what_it_counts_is_news_even_if_nobody_has_come() {
        let mut member = member();
        assert!(!member.news(&Tally::default()));
        let told = Tally {
            slow_us: Some(7),
            ..Tally::default()
        };
        assert!(member.news(&told));
        assert!(!member.news(&told));
    }
}
