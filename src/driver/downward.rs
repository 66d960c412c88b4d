//! The link to the successor that takes over from this generation.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use super::drill::{self, Rehearsal};
use super::elders::{Elder, collect, kill_at};
use super::link::{Heard, is_hangup};
use super::looks::Looks;
use super::parts::{Part, Parts};
use super::release::Release;
use super::rollout::Examining;
use super::shared::{Collected, Command, Upgraded, lock};
use super::sharing::{self, Sharing};
use super::{Driver, activity, deadlines, preview};
use crate::channel::Channel;
use crate::control::{
    self, ForwardingState, RolloutState, SideState, Verdict as Outcome, Verification,
};
use crate::director::Watched;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Phase};
use crate::launch::{ColdRollback, Launched, Relay};
use crate::protocol::incumbent::Output;
use crate::protocol::message::{
    self, Hello, Message, Preview, Slot, Tally, Timings, VERSION, VERSION_MIN, micros, millis,
};
use crate::rollout::controller::Controller;
use crate::rollout::{self, Explanation, Rollout, Share};
use crate::state::{self, Offer as Outgoing};
use crate::sys::process::{Pidfd, discard};

/// One upgrade, from the request to its verdict.
#[derive(Debug)]
pub(crate) struct Downward {
    pub(crate) generation: u64,
    pub(crate) asked_at: Instant,
    /// The same for other processes, in milliseconds since 1970.
    pub(crate) asked_at_ms: u64,
    pub(crate) plan: Rollout,
    pub(super) controller: Controller,
    /// What the successor has said of itself before it was ready.
    pub(super) reported: Option<Tally>,
    pub(super) looks: Option<Looks>,
    pub(super) examining: Option<Examining>,
    /// What came of those that are over.
    pub(super) verifications: Arc<Mutex<Vec<Verification>>>,
    /// From the offer on, until the successor is given up or has the role.
    pub(super) director: Option<Sharing>,
    /// What became of its connections; outlives it.
    pub(super) forwarding: Option<Watched>,
    /// Where the successor is reached before the flip.
    pub(super) previews: Vec<Preview>,
    /// How far the handover had come when it failed, and why.
    pub(super) failed: Option<(Phase, String)>,
    pub(crate) reply: Option<oneshot::Sender<Result<Upgraded>>>,
    /// What it is to run.
    release: Release,
    pub(crate) link: Option<Link>,
    pid: u32,
    /// Of the protocol; none until the successor's greeting.
    pub(super) version: u32,
    pub(crate) hooks: Option<oneshot::Receiver<Collected>>,
    state: Option<Outgoing>,
    ready_at: Option<Instant>,
    flip_at: Option<Instant>,
    pub(super) flip_took: Duration,
    /// Since when the accept right is to come back.
    pub(super) rollback_at: Option<Instant>,
    pub(super) rollback_took: Option<Duration>,
    pub(super) span: tracing::Span,
}

/// The successor's process and what belongs to it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) channel: Option<Channel>,
    pub(crate) process: Pidfd,
    pid: u32,
    is_child: bool,
    ended: Option<String>,
    relay: Option<Relay>,
    passing: Passing,
    slots: Vec<Slot>,
}

/// What goes with descriptors, each from its first chunk on.
#[derive(Debug, Default)]
struct Passing {
    offer: Option<Parts<Slot>>,
    start: Option<Parts<Slot>>,
    commit: Option<Parts<message::Elder>>,
}

impl Downward {
    pub(crate) fn new(
        generation: u64,
        reply: Option<oneshot::Sender<Result<Upgraded>>>,
        release: Release,
        plan: Rollout,
        asked_at: Instant,
    ) -> Self {
        Self {
            generation,
            asked_at,
            asked_at_ms: control::unix_ms(SystemTime::now()),
            controller: match &release {
                Release::Same(..) => Controller::rehearsing(plan.clone()),
                _ => Controller::new(plan.clone()),
            },
            plan,
            reported: None,
            looks: None,
            examining: None,
            verifications: Arc::default(),
            director: None,
            forwarding: None,
            previews: Vec::new(),
            failed: None,
            reply,
            release,
            link: None,
            pid: 0,
            version: 0,
            hooks: None,
            state: None,
            ready_at: None,
            flip_at: None,
            flip_took: Duration::ZERO,
            rollback_at: None,
            rollback_took: None,
            span: tracing::info_span!(
                "upgrade",
                successor = generation,
                pid = tracing::field::Empty
            ),
        }
    }

    /// The successor's process, once there is one.
    pub(super) fn pid(&self) -> Option<u32> {
        (self.pid != 0).then_some(self.pid)
    }

    fn cold_rollback(&self) -> Option<&ColdRollback> {
        match &self.release {
            Release::Before(_, rollback) => Some(rollback),
            Release::Next | Release::Same(..) | Release::Theirs(_) => None,
        }
    }

    /// What is to be known of it if it is a drill.
    pub(super) fn rehearsal(&self) -> Option<&Rehearsal> {
        match &self.release {
            Release::Same(_, rehearsal) => Some(rehearsal),
            _ => None,
        }
    }

    /// How the successor's process has ended, if it has.
    pub(super) fn ended(&self) -> Option<String> {
        self.link.as_ref()?.ended.clone()
    }

    /// Nothing that the successor says matters any more.
    pub(super) fn close_channel(&mut self) {
        if let Some(link) = &mut self.link {
            link.channel = None;
        }
    }

    /// As an operator sees it.
    pub(super) fn rollout_state(&self, now: Instant) -> RolloutState {
        let (candidate, stable) = self.sides();
        RolloutState {
            by: self.plan.by,
            pause: self.controller.pause(),
            explanation: self.controller.standing(now),
            forwarding: None,
            takes_ms: self.controller.takes().map(millis),
            candidate,
            stable,
            is_drill: self.rehearsal().is_some(),
        }
    }

    /// What the candidate and the stable generation have counted. Which one that is it does not know.
    pub(super) fn sides(&self) -> (Option<SideState>, Option<SideState>) {
        let sides = self.looks.as_ref().map(Looks::sides);
        let (candidate, stable) = sides.map(|[candidate, stable]| (candidate, stable)).unzip();
        let candidate = candidate.map(|side| SideState {
            generation: self.generation,
            ..side
        });
        (candidate, stable)
    }

    /// What became of the connections of which the candidate had a share, if it had one.
    pub(super) fn forwarded(&self) -> Option<ForwardingState> {
        let standing = self.forwarding.as_ref()?.standing();
        standing.as_ref().map(sharing::state_of)
    }

    fn ready_after(&self) -> Option<Duration> {
        self.ready_at.map(|ready_at| ready_at - self.asked_at)
    }

    fn timings(&self) -> Timings {
        Timings {
            asked_at_ms: self.asked_at_ms,
            ready_after_ms: self.ready_after().map_or(0, millis),
            flip_took_us: micros(self.flip_took),
        }
    }

    /// As the history has it; who serves, and what the successor said, is for a failure to add.
    fn outcome(&self, from: u64, verdict: Outcome) -> control::Upgrade {
        let rollback = self.cold_rollback();
        let (candidate, stable) = self.sides();
        control::Upgrade {
            generation: self.generation,
            from,
            verdict,
            reason: rollback.map(|it| it.reason.clone()).unwrap_or_default(),
            rollback_to: rollback.map(|rollback| rollback.to),
            phase: None,
            pid: self.pid(),
            incumbent_serves: false,
            exit: None,
            last_words: String::new(),
            asked_at_ms: self.asked_at_ms,
            ready_after_ms: self.ready_after().map(millis),
            flip_took_us: (!self.flip_took.is_zero()).then(|| micros(self.flip_took)),
            rollback_took_us: self.rollback_took.map(micros),
            explanation: None,
            candidate,
            stable: stable.map(|side| SideState {
                generation: from,
                ..side
            }),
            forwarding: self.forwarded(),
            drill: None,
            took_ms: millis(self.asked_at.elapsed()),
        }
    }
}

impl Driver {
    pub(super) fn heard_from_successor(&mut self, heard: Heard) {
        let now = Instant::now();
        match heard {
            Heard::Message(Message::Expecting { nonce, ungated }, _) => {
                self.confirmed(&nonce, ungated);
            }
            Heard::Message(Message::Counts(tally), _) => self.hear_counts(tally),
            Heard::Message(message, _) => {
                let offered = self.offered();
                let takes_longer = matches!(message, Message::Extend { .. });
                self.note(&message, now);
                self.incumbent.handle_message(now, message, offered);
                if takes_longer {
                    self.announce_phase();
                }
            }
            Heard::Closed => {
                self.with_link(|link| link.channel = None);
                if let Some(down) = &mut self.down {
                    // Its end may be seen here first.
                    down.rollback_at.get_or_insert(now);
                }
                self.incumbent.handle_closed(now);
            }
            Heard::Broken(reason) => {
                self.with_link(|link| link.channel = None);
                self.incumbent.handle_broken(now, reason);
            }
        }
        self.perform_downward();
    }

    /// Everything it had said is handled before its death is.
    pub(super) fn successor_ended(&mut self) {
        let now = Instant::now();
        self.hear_rest_of_successor();
        if let Some(down) = &mut self.down {
            down.rollback_at.get_or_insert(now);
        }
        let mut how = "nobody knows how".to_owned();
        self.with_link(|link| {
            link.channel = None;
            how = collect(&link.process).unwrap_or_else(|| how.clone());
            link.ended = Some(how.clone());
        });
        self.incumbent.handle_exit(Instant::now(), &how);
        self.perform_downward();
    }

    /// What it has said and nobody has read yet.
    pub(super) fn hear_rest_of_successor(&mut self) {
        while let Some(heard) = self.rest_of_successor() {
            self.heard_from_successor(heard);
        }
    }

    fn rest_of_successor(&mut self) -> Option<Heard> {
        let link = self.down.as_mut()?.link.as_mut()?;
        Heard::rest(link.channel.as_mut()?)
    }

    /// The hooks that contribute state have run.
    pub(super) fn hooks_done(&mut self, result: Collected) {
        let now = Instant::now();
        let flipping = self.incumbent.phase() == Some(Phase::Flipping);
        if let Some(down) = &mut self.down {
            down.hooks = None;
        }
        match result {
            Ok(state) => {
                if let Some(down) = &mut self.down {
                    down.state = Some(state);
                }
                if flipping {
                    self.incumbent.handle_gates_shut(now);
                } else if self
                    .incumbent
                    .phase()
                    .is_some_and(|phase| phase < Phase::Warming)
                {
                    self.send_chunk();
                }
            }
            Err(reason) => self.incumbent.handle_broken(now, reason),
        }
        self.perform_downward();
    }

    pub(super) fn perform_incumbent(&mut self, output: Output) {
        match output {
            Output::Launch => self.launch(),
            Output::Send(message) => self.tell_successor(&message),
            Output::SendChunk => self.send_chunk(),
            Output::Ready => self.successor_ready(),
            Output::ShutGates { unclaimed } => self.shut_gates(&unclaimed),
            Output::SendStart => self.send_start(),
            Output::OpenGates => self.reopen_gates(),
            Output::SendCommit => self.send_commit(),
            Output::Kill => self.kill_successor(),
            Output::Release { millis } => self.release_successor(millis),
            Output::Phase(phase) => self.enter(phase),
            Output::Verdict(verdict) => self.handed_over(verdict),
            Output::Drain { handed_over: true } => self.drain("handed over".to_owned(), true),
            Output::Drain { handed_over: false } => {
                self.stop_examining();
                self.drain("stopping".to_owned(), false);
            }
        }
    }

    fn launch(&mut self) {
        let Some(down) = &mut self.down else { return };
        let launched = match &mut down.release {
            Release::Next => self.launcher.launch(down.generation),
            Release::Before(image, _) | Release::Same(image, _) => {
                self.launcher.launch_image(image, down.generation)
            }
            Release::Theirs(launched) => launched.take().map(|it| *it).ok_or_else(|| {
                Error::new(ErrorKind::Launch, "handing over to a process once more")
            }),
        };
        match launched.and_then(Link::new) {
            Ok(link) => {
                down.span.record("pid", link.pid);
                down.pid = link.pid;
                down.link = Some(link);
                down.hooks = self.shared.at_offer.run();
                self.greet();
                self.incumbent.handle_launched(Instant::now());
            }
            Err(error) => self.incumbent.handle_launch_failed(format!("{error:?}")),
        }
    }

    fn greet(&mut self) {
        let Some(down) = &self.down else { return };
        let hello = Message::Hello(Hello {
            version_min: VERSION_MIN,
            version_max: VERSION,
            crate_version: env!("CARGO_PKG_VERSION").to_owned(),
            build: self.config.build.clone(),
            generation: self.generation,
            successor: down.generation,
            pid: std::process::id(),
            descriptors: u32::try_from(self.shared.table.names().len()).unwrap_or(u32::MAX),
        });
        self.tell_successor(&hello);
    }

    fn send_chunk(&mut self) {
        if self.down.as_ref().is_some_and(|down| down.hooks.is_some()) {
            return;
        }
        if let Err(error) = self.prepare_offer() {
            let reason = format!("{error:?}");
            return self.incumbent.handle_broken(Instant::now(), reason);
        }
        let Some((passing, channel)) = self.passing() else {
            return;
        };
        let sent = passing
            .offer
            .as_mut()
            .map(|offer| offer.send_next(channel, |part| Message::Offer(part.into())));
        self.chunk_sent("passing sockets to it", sent);
    }

    fn prepare_offer(&mut self) -> Result<()> {
        let Some(down) = &mut self.down else {
            return Ok(());
        };
        let rollback = down.cold_rollback().cloned();
        let rehearsal = down.rehearsal().cloned();
        if down
            .link
            .as_ref()
            .is_none_or(|link| link.passing.offer.is_some())
        {
            return Ok(());
        }
        let failed =
            |error| Error::new(ErrorKind::Io, "collecting what is to be passed").because(error);
        let mut table = self.shared.table.offer();
        let (sharing, slot) = Sharing::begin(
            &self.shared.table,
            &self.shared.splitter,
            &self.config,
            down,
        )?;
        table.extend(shareable([slot]));
        down.forwarding = Some(sharing.watched());
        down.director = Some(sharing);
        let Some(link) = &mut down.link else {
            return Ok(());
        };
        if let Some(state) = down.state.take() {
            table.extend(shareable(state.into_slots()?));
        }
        if let Some(relay) = &link.relay {
            table.extend(shareable(relay.slots().map_err(failed)?));
        }
        match lock(&self.shared.images).offer(self.generation, rollback.as_ref()) {
            Ok(images) => table.extend(images),
            // A successor without a way back is better than none.
            Err(error) => self.shared.warn(format!(
                "generation {} cannot be rolled back to: passing its image: {error}",
                self.generation
            )),
        }
        if self.config.control.is_some() {
            let history = self.shared.history.borrow().to_bytes();
            table.extend(shareable(vec![
                state::own_blob(HISTORY, &history).map_err(failed)?,
            ]));
        }
        let drills = drill::slots(&self.shared, rehearsal.as_ref());
        table.extend(shareable(drills.map_err(failed)?));
        link.slots = table.iter().map(|(slot, _)| slot.clone()).collect();
        link.passing.offer = Some(Parts::new(table));
        Ok(())
    }

    fn shut_gates(&mut self, unclaimed: &[u32]) {
        let Some(down) = &mut self.down else { return };
        let slots = down.link.as_ref().map_or(&[][..], |link| &link.slots);
        self.unclaimed = unclaimed
            .iter()
            .filter_map(|index| slots.get(usize::try_from(*index).ok()?))
            .map(|slot| slot.name.clone())
            .collect();
        down.flip_at = Some(Instant::now());
        self.shared.table.shut_all_except(&self.unclaimed);
        // Not before: whoever is the candidate's already would meet this generation once more.
        self.set_share(Share::NONE);
        let hooks = activity::retire(&self.shared);
        let has_none = hooks.is_none();
        if let Some(down) = &mut self.down {
            down.hooks = hooks;
        }
        if has_none {
            self.incumbent.handle_gates_shut(Instant::now());
        }
    }

    fn send_start(&mut self) {
        if let Err(error) = self.prepare_start() {
            let reason = format!("passing the state of the flip: {error:?}");
            return self.incumbent.handle_broken(Instant::now(), reason);
        }
        let Some((passing, channel)) = self.passing() else {
            return;
        };
        let sent = passing
            .start
            .as_mut()
            .map(|start| start.send_next(channel, |part| Message::Start(part.into())));
        self.chunk_sent("passing the state of the flip", sent);
        // After the word that others wait for, since it wakes every connection.
        self.shared.drain.quiesce();
    }

    fn prepare_start(&mut self) -> Result<()> {
        let Some(down) = &mut self.down else {
            return Ok(());
        };
        let Some(link) = down
            .link
            .as_mut()
            .filter(|link| link.passing.start.is_none())
        else {
            return Ok(());
        };
        let state = down.state.take().unwrap_or_default();
        link.passing.start = Some(Parts::new(shareable(state.into_slots()?)));
        Ok(())
    }

    /// A service without its list of elders is better than no upgrade: each of them leaves by its own deadline.
    fn send_commit(&mut self) {
        if let Err(error) = self.prepare_commit() {
            let reason = format!("naming its elders: {error}");
            return self.incumbent.handle_broken(Instant::now(), reason);
        }
        let millis = millis(deadlines(&self.config).life());
        let timings = self.down.as_ref().map(Downward::timings);
        let message = |part: Part<message::Elder>| Message::Commit {
            chunk: part.chunk,
            last: part.last,
            millis,
            elders: part.items,
            timings,
        };
        let Some((passing, channel)) = self.passing() else {
            return;
        };
        let Some(commit) = &mut passing.commit else {
            return;
        };
        let mut unsent = Vec::new();
        let mut sent = commit.send_next(channel, message);
        if is_over_quota(&sent) {
            unsent = commit.cut_short();
            sent = commit.send_next(channel, message);
        }
        for elder in unsent {
            let generation = elder.generation;
            self.shared.warn(format!(
                "generation {generation} drains unwatched: too many descriptors are in flight"
            ));
        }
        self.chunk_sent("telling it \"commit\"", Some(sent));
    }

    fn prepare_commit(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let Some(link) = self.down.as_mut().and_then(|down| down.link.as_mut()) else {
            return Ok(());
        };
        if link.passing.commit.is_some() {
            return Ok(());
        }
        let named = self.elders.iter().map(|elder| message::Elder {
            generation: elder.generation,
            pid: elder.pid,
            millis: millis(elder.kill_at.saturating_duration_since(now)),
        });
        let descriptors = self.elders.descriptors()?.into_iter().map(Arc::new);
        link.passing.commit = Some(Parts::new(named.zip(descriptors)));
        Ok(())
    }

    fn passing(&mut self) -> Option<(&mut Passing, &Channel)> {
        let link = self.down.as_mut()?.link.as_mut()?;
        Some((&mut link.passing, link.channel.as_ref()?))
    }

    fn chunk_sent(&mut self, doing: &str, sent: Option<io::Result<(u32, bool)>>) {
        match sent {
            Some(Ok((chunk, last))) => self.incumbent.handle_chunk_sent(chunk, last),
            // A dead successor is explained better by its end than by a broken pipe.
            Some(Err(error)) if !is_hangup(&error) => {
                let reason = format!("{doing}: {error}");
                self.incumbent.handle_broken(Instant::now(), reason);
            }
            Some(Err(_)) | None => {}
        }
    }

    pub(super) fn tell_successor(&mut self, message: &Message) {
        let Some(channel) = self
            .down
            .as_ref()
            .and_then(|down| down.link.as_ref()?.channel.as_ref())
        else {
            return;
        };
        if let Err(error) = channel.try_send(message, &[])
            && !is_hangup(&error)
        {
            let reason = format!("telling it {:?}: {error}", message.name());
            self.incumbent.handle_broken(Instant::now(), reason);
        }
    }

    fn reopen_gates(&mut self) {
        self.shared.table.open_all_regardless();
        self.activation_due = true;
        if let Some(down) = &mut self.down {
            down.rollback_took = down.rollback_at.map(|begin| begin.elapsed());
        }
        self.shared.drain.resume();
        self.unclaimed.clear();
    }

    fn kill_successor(&mut self) {
        self.with_link(|link| {
            // It may have ended by itself just now; its end arrives either way.
            let _ = link.process.kill();
        });
    }

    /// It drains by itself from here on; it still counts, and is still collected.
    fn release_successor(&mut self, millis: u64) {
        let Some(down) = &mut self.down else { return };
        let (generation, kill_at) = (down.generation, kill_at(Instant::now(), millis));
        if let Some(Link {
            process,
            pid,
            ended: None,
            ..
        }) = down.link.take()
        {
            self.elders.add(Elder {
                generation,
                pid,
                process,
                kill_at,
            });
        }
    }

    pub(super) fn enter(&mut self, phase: Phase) {
        let Some(down) = &mut self.down else { return };
        let now = Instant::now();
        if let (Phase::Baking, Some(flip_at)) = (phase, down.flip_at) {
            down.flip_took = now - flip_at;
        }
        let (successor, after) = (down.generation, now - down.asked_at);
        self.announce_phase();
        if phase == Phase::Committing {
            // Nobody asks this generation any more when the successor hears that it is the one to ask.
            self.publish();
        }
        self.shared.emit(Event::Phase {
            successor,
            phase,
            after,
        });
        if let (Phase::Baking, Some(down)) = (phase, &mut self.down) {
            down.controller.handle_flipped(now);
            if let Some(looks) = &mut down.looks {
                let accepted = self.shared.table.accepted().count;
                looks.handle_flipped(self.accepts.expect(now, accepted));
            }
        }
    }

    pub(super) fn committed(&mut self, explanation: Explanation) {
        let Some(mut down) = self.down.take() else {
            return;
        };
        if let Some(sharing) = down.director.take() {
            sharing.release();
        }
        let (generation, pid, now) = (down.generation, down.pid, Instant::now());
        let after = now - down.asked_at;
        self.shared.remember(control::Upgrade {
            explanation: Some(explanation),
            ..down.outcome(self.generation, Outcome::Committed)
        });
        self.shared.emit(Event::Committed {
            successor: generation,
            pid,
            after,
        });
        if let Some(reply) = down.reply.take() {
            // Whoever asked may have stopped waiting.
            let _ = reply.send(Ok(Upgraded {
                generation,
                pid,
                ready_after: down.ready_after().unwrap_or(after),
                flip_took: down.flip_took,
                committed_after: after,
            }));
        }
        if let Some(mut link) = down.link {
            let channel = link.channel.take();
            self.announce_successor(generation, pid, channel, link.is_child);
            // As long as this process lives it is the parent, and nobody else can collect the successor.
            tokio::spawn(link.collect_when_gone());
        }
    }

    /// The machine is free for the next upgrade at once; only the telling waits for the successor's last words.
    pub(super) fn failed(&mut self, outcome: rollout::Outcome, explanation: Explanation) {
        let Some(mut down) = self.down.take() else {
            return;
        };
        let (kind, verdict) = match outcome {
            rollout::Outcome::Degraded => (ErrorKind::RolledBack, Outcome::Degraded),
            rollout::Outcome::RolledBack => (ErrorKind::RolledBack, Outcome::RolledBack),
            _ => (ErrorKind::Aborted, Outcome::Aborted),
        };
        let (phase, mut reason) = down.failed.take().unwrap_or_default();
        if let Some(unverified) = &explanation.stable_unverified {
            reason = format!("{reason}; and after the rollback: {unverified}");
        }
        if phase >= Phase::Committing {
            self.write_pid_file();
        }
        let serving = !self.incumbent.is_leaving();
        let (successor, after) = (down.generation, down.asked_at.elapsed());
        let error = Error::new(kind, format!("upgrading to generation {successor}"))
            .because(reason.clone())
            .in_phase(phase)
            .with_peer(down.pid);
        let error = if serving {
            error.while_incumbent_serves()
        } else {
            error
        };
        let drill = down.drilled(outcome, &explanation, &reason);
        let outcome = control::Upgrade {
            reason,
            phase: Some(phase.to_string()),
            incumbent_serves: serving,
            drill: drill.map(Box::new),
            explanation: Some(explanation),
            ..down.outcome(self.generation, verdict)
        };
        let (shared, patience) = (self.shared.clone(), self.config.flip);
        let directory = self.config.preview.clone();
        let is_at_large = down.link.as_ref().is_some_and(|link| !link.has_ended());
        if is_at_large {
            shared.at_large.send_modify(|count| *count += 1);
        }
        tokio::spawn(async move {
            let error = match &mut down.link {
                Some(link) => link.last_words(error, patience).await,
                None => error,
            };
            shared.remember(control::Upgrade {
                exit: error.exit().map(str::to_owned),
                last_words: error.stderr_tail().to_owned(),
                ..outcome
            });
            let reason = format!("{error:?}");
            // A driver that has ended has nobody to tell.
            let _ = shared.command(Command::AnnounceFailure {
                reason: reason.clone(),
            });
            shared.emit(match kind {
                ErrorKind::RolledBack => Event::RolledBack {
                    successor,
                    reason,
                    after,
                },
                _ => Event::Aborted {
                    successor,
                    reason,
                    after,
                },
            });
            if let Some(reply) = down.reply.take() {
                // Whoever asked may have stopped waiting.
                let _ = reply.send(Err(error));
            }
            if let Some(link) = down.link.filter(|link| !link.has_ended()) {
                link.collect_when_gone().await;
            }
            preview::clear(&down.previews, directory.as_deref()).await;
            if is_at_large {
                shared.at_large.send_modify(|count| *count -= 1);
                // A driver that has ended has nothing to activate.
                let _ = shared.command(Command::SuccessorGone);
            }
        });
    }

    fn note(&mut self, message: &Message, now: Instant) {
        let Some(down) = &mut self.down else { return };
        match message {
            Message::Hello(hello) => down.version = hello.version(),
            Message::Ready { preview, .. } => {
                down.ready_at = Some(now);
                down.previews.clone_from(preview);
            }
            Message::Received { .. } => {
                if let Some(link) = &mut down.link {
                    link.passing.arrived();
                }
            }
            Message::Started => {
                if let Some(link) = &mut down.link {
                    link.passing.start = None;
                }
            }
            _ => {}
        }
    }

    fn offered(&self) -> u32 {
        let slots = self
            .down
            .as_ref()
            .and_then(|down| Some(down.link.as_ref()?.slots.len()));
        u32::try_from(slots.unwrap_or(0)).unwrap_or(u32::MAX)
    }

    fn with_link(&mut self, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.down.as_mut().and_then(|down| down.link.as_mut()) {
            change(link);
        }
    }
}

impl Passing {
    /// Only one of them is on its way at a time.
    fn arrived(&mut self) {
        self.offer.iter_mut().for_each(Parts::arrived);
        self.start.iter_mut().for_each(Parts::arrived);
        self.commit.iter_mut().for_each(Parts::arrived);
    }
}

impl Link {
    fn new(launched: Launched) -> Result<Self> {
        let channel = Channel::new(launched.channel).map_err(|error| {
            // Nobody will ever talk to it, or learn of its end. Another's child is its parent's to collect.
            match launched.is_child {
                true => discard(launched.pid),
                false => drop(launched.pidfd.kill()),
            }
            Error::new(ErrorKind::Launch, "watching the successor's channel").because(error)
        })?;
        Ok(Self {
            channel: Some(channel),
            process: launched.pidfd,
            pid: launched.pid,
            is_child: launched.is_child,
            ended: None,
            relay: launched.stderr,
            passing: Passing::default(),
            slots: Vec::new(),
        })
    }

    /// Whether its end has been collected; a pidfd stays readable after that.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    async fn collect_when_gone(self) {
        if self.process.exited().await.is_ok() {
            collect(&self.process);
        }
    }

    async fn last_words(&mut self, error: Error, patience: Duration) -> Error {
        self.channel = None;
        let tail = match &mut self.relay {
            Some(relay) => relay.last_words(patience).await,
            None => String::new(),
        };
        error.with_last_words(self.ended.take(), tail)
    }
}

/// The state that the history of upgrades is to a successor.
pub(super) const HISTORY: &str = "handover.history";

fn is_over_quota<T>(sent: &io::Result<T>) -> bool {
    let error = sent.as_ref().err();
    error.and_then(io::Error::raw_os_error) == Some(libc::ETOOMANYREFS)
}

fn shareable(
    slots: impl IntoIterator<Item = (Slot, OwnedFd)>,
) -> impl Iterator<Item = (Slot, Arc<OwnedFd>)> {
    slots
        .into_iter()
        .map(|(slot, descriptor)| (slot, Arc::new(descriptor)))
}
