//! The signals that a supervisor listens to.

use std::future::{poll_fn, ready};
use std::io;
use std::task::{Context, Poll};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::yield_now;

use super::reaper;
use crate::sys::signals;
use crate::trigger::{self, Trigger};

/// What a signal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// What it means to any service.
    Trigger(Trigger),
    /// The supervisor is to become its own next release.
    Supervisor,
    /// Somebody has ended who may be nobody's.
    Ended,
    /// Every worker is to have this one.
    Forward(i32),
}

/// All of them.
#[derive(Debug)]
pub(super) struct Signals {
    common: trigger::Signals,
    /// None if it is forwarded.
    supervisor: Option<Signal>,
    /// None where nobody's processes are somebody else's.
    ended: Option<Signal>,
    forwarded: Vec<(i32, Signal)>,
}

impl Signals {
    /// Takes them over for good, and lets those through that have waited since the supervisor before this one.
    pub(super) fn listen(forwarded: &[i32]) -> io::Result<Self> {
        let mut common = trigger::Signals::default();
        let is_forwarded = |number: &i32| forwarded.contains(number);
        common.listen_upgrade(Some(UPDATE).filter(|number| !is_forwarded(number)))?;
        common.listen_stop(&STOP)?;
        let supervisor = Some(SUPERVISOR).filter(|number| !is_forwarded(number));
        let ended = reaper::is_needed().then_some(libc::SIGCHLD);
        let forwarded = forwarded
            .iter()
            .map(|number| Ok((*number, listen(*number)?)));
        let this = Self {
            common,
            supervisor: supervisor.map(listen).transpose()?,
            ended: ended.map(listen).transpose()?,
            forwarded: forwarded.collect::<io::Result<_>>()?,
        };
        signals::unblock(&this.numbers())?;
        Ok(this)
    }

    /// Lets them wait for the program that this process becomes: those that come from now on, and those that have come and
    /// that nobody has heard of yet.
    ///
    /// All of them only in a runtime with a single thread: others have masks of their own, and look at other times.
    pub(super) async fn hold_back(&mut self) -> io::Result<()> {
        signals::block(&self.numbers())?;
        // What has come before is in the runtime's hands, which looks at least once before this goes on.
        yield_now().await;
        for heard in self.heard_so_far().await {
            match heard {
                Heard::Trigger(Trigger::Upgrade) => signals::raise(UPDATE)?,
                Heard::Trigger(Trigger::Stop) => signals::raise(STOP[0])?,
                Heard::Supervisor => signals::raise(SUPERVISOR)?,
                Heard::Forward(signal) => signals::raise(signal)?,
                // Whoever takes over looks for them.
                Heard::Ended => {}
            }
        }
        Ok(())
    }

    /// No longer.
    pub(super) fn let_through(&self) -> io::Result<()> {
        signals::unblock(&self.numbers())
    }

    /// The next one.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: tokio keeps one pending notification for each signal.
    pub(super) async fn next(&mut self) -> Heard {
        tokio::select! {
            biased;
            trigger = self.common.next() => Heard::Trigger(trigger),
            other = poll_fn(|context| poll_others(
                &mut self.supervisor, &mut self.ended, &mut self.forwarded, context,
            )) => other,
        }
    }

    async fn heard_so_far(&mut self) -> Vec<Heard> {
        let mut all = Vec::new();
        loop {
            tokio::select! {
                biased;
                heard = self.next() => all.push(heard),
                () = ready(()) => return all,
            }
        }
    }

    fn numbers(&self) -> Vec<i32> {
        let forwarded = self.forwarded.iter().map(|(number, _)| *number);
        STOP.into_iter()
            .chain([UPDATE, SUPERVISOR])
            .chain(forwarded)
            .collect()
    }
}

fn poll_others(
    supervisor: &mut Option<Signal>,
    ended: &mut Option<Signal>,
    forwarded: &mut [(i32, Signal)],
    context: &mut Context<'_>,
) -> Poll<Heard> {
    let mut is_there = |signal: &mut Signal| signal.poll_recv(context).is_ready();
    if supervisor.as_mut().is_some_and(&mut is_there) {
        return Poll::Ready(Heard::Supervisor);
    }
    if ended.as_mut().is_some_and(&mut is_there) {
        return Poll::Ready(Heard::Ended);
    }
    let mut forwarded = forwarded.iter_mut();
    let found = forwarded.find_map(|(number, signal)| is_there(signal).then_some(*number));
    found.map_or(Poll::Pending, |number| Poll::Ready(Heard::Forward(number)))
}

fn listen(number: i32) -> io::Result<Signal> {
    signal(SignalKind::from_raw(number))
}

/// Begins a rolling update.
const UPDATE: i32 = libc::SIGHUP;
/// Stop the pool.
const STOP: [i32; 2] = [libc::SIGTERM, libc::SIGINT];
/// Upgrades the supervisor itself.
const SUPERVISOR: i32 = libc::SIGUSR2;
