//! The link to the incumbent that this generation takes over from.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Driver;
use super::downward::HISTORY;
use super::drill;
use super::elders::{Elder, kill_at};
use super::link::{Heard, is_hangup};
use super::shared::lock;
use super::sharing::begin_adopting;
use crate::channel::Channel;
use crate::control::History;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::health::Readiness;
use crate::launch::{self, ColdRollback, OwnStderr};
use crate::protocol::message::{self, Message, Slot, Timings, Watch};
use crate::protocol::successor::{Output, Successor};
use crate::state::State;
use crate::sys::environment::Snapshot;
use crate::sys::process::{Pidfd, set_name};

/// One handover, seen from its starting end.
#[derive(Debug)]
pub(crate) struct Upward {
    pub(crate) machine: Successor,
    pub(crate) channel: Option<Channel>,
    pub(crate) process: Option<Pidfd>,
    pub(crate) pid: u32,
    /// Of the protocol; none until the incumbent's greeting.
    pub(super) version: u32,
    pub(super) generation: u64,
    offered: Vec<(Slot, OwnedFd)>,
    /// How many milliseconds the incumbent may live once this generation has the role.
    millis: u64,
    elders: Vec<(message::Elder, OwnedFd)>,
    timings: Option<Timings>,
    /// How the incumbent wants this generation to count.
    pub(super) watched: Option<Watch>,
    /// What this generation is to undo, if it is the release before once more.
    pub(super) cold_rollback: Option<ColdRollback>,
    stderr: Option<OwnStderr>,
    /// What it says once its hooks have made it inactive.
    pub(super) held: Option<Vec<Message>>,
    /// Why this generation will never serve, once that is so.
    failed: Option<String>,
}

impl Upward {
    pub(crate) fn new(
        machine: Successor,
        channel: Channel,
        process: Option<Pidfd>,
        pid: u32,
    ) -> Self {
        Self {
            machine,
            channel: Some(channel),
            process,
            pid,
            version: 0,
            generation: 0,
            offered: Vec::new(),
            millis: 0,
            elders: Vec::new(),
            timings: None,
            watched: None,
            cold_rollback: None,
            stderr: None,
            held: None,
            failed: None,
        }
    }
}

impl Driver {
    pub(super) fn heard_from_incumbent(&mut self, heard: Heard) {
        let Some(up) = &mut self.up else { return };
        match heard {
            Heard::Message(message, descriptors) => {
                self.handle_incumbent_message(message, descriptors)
            }
            Heard::Closed => {
                up.channel = None;
                up.machine.handle_closed(Instant::now());
                if up.machine.is_committed() {
                    self.become_main();
                }
            }
            Heard::Broken(reason) => {
                up.machine.handle_broken(Instant::now(), reason);
                return self.hang_up();
            }
        }
        self.perform_upward();
    }

    /// Everything it had said is handled before its death is.
    pub(super) fn incumbent_ended(&mut self) {
        self.hear_rest_of_incumbent();
        let Some(up) = &mut self.up else { return };
        (up.channel, up.process) = (None, None);
        up.machine.handle_incumbent_exit();
        self.restore_stderr();
        self.perform_upward();
        self.become_main();
        if let Err(error) = launch::rescue_stderr() {
            self.shared
                .warn(format!("standard error may have no reader: {error}"));
        }
    }

    /// What it has said and nobody has read yet.
    pub(super) fn hear_rest_of_incumbent(&mut self) {
        while let Some(heard) = self
            .up
            .as_mut()
            .and_then(|up| Heard::rest(up.channel.as_mut()?))
        {
            self.heard_from_incumbent(heard);
        }
    }

    fn handle_incumbent_message(&mut self, message: Message, descriptors: Vec<OwnedFd>) {
        let Some(up) = &mut self.up else { return };
        match &message {
            Message::Hello(hello) if up.generation == 0 => {
                up.version = hello.version();
                up.generation = hello.generation;
                self.generation = hello.successor;
                self.next_generation = hello.successor + 1;
                self.raise_descriptor_limit(hello.descriptors);
            }
            Message::Offer(chunk) => up
                .offered
                .extend(chunk.slots.iter().cloned().zip(descriptors)),
            Message::Start(chunk) => self.accept_flip_state(chunk.slots.clone(), descriptors),
            Message::Commit {
                millis,
                elders,
                timings,
                ..
            } => {
                up.millis = *millis;
                up.timings = up.timings.or(*timings);
                up.elders.extend(elders.iter().cloned().zip(descriptors));
            }
            Message::Watch(watch) => return self.answer_watch(*watch),
            // It comes behind the commit when the service is to stop in that very moment.
            Message::Stop { .. } if up.machine.is_committed() => self.stop_with_incumbent(),
            Message::Expect {
                nonce,
                from,
                millis,
            } => return self.expect(nonce, from, Duration::from_millis(*millis)),
            _ => {}
        }
        if let Some(up) = &mut self.up {
            up.machine.handle_message(Instant::now(), message);
        }
    }

    pub(super) fn perform_upward(&mut self) {
        while let Some(output) = self.up.as_mut().and_then(|up| up.machine.poll_output()) {
            match output {
                Output::Send(message) => {
                    self.tell_incumbent_in_turn(self.with_preview(message));
                }
                Output::Claim => self.begin_claim(),
                Output::OpenGates { regardless } => self.open_gates(regardless),
                Output::ShutGates => self.shut_all_gates(),
                Output::Promote => self.promote(),
                Output::Drain { reason } => {
                    self.restore_stderr();
                    match self.shared.health.readiness() {
                        // It had a share, and nobody came.
                        Readiness::Starting => self.never_serve(reason),
                        _ => self.drain(reason, false),
                    }
                }
                Output::Fail { reason } => self.never_serve(reason),
            }
        }
        self.publish();
    }

    /// A channel that fails once may fail for ever, and is never readable again only once it is closed.
    fn hang_up(&mut self) {
        self.perform_upward();
        if let Some(up) = &mut self.up {
            up.channel = None;
        }
    }

    pub(super) fn tell_incumbent(&mut self, message: &Message) {
        let Some(up) = &mut self.up else { return };
        let Some(channel) = &up.channel else { return };
        if let Err(error) = channel.try_send(message, &[])
            && !is_hangup(&error)
        {
            let reason = format!("telling the incumbent {:?}: {error}", message.name());
            up.machine.handle_broken(Instant::now(), reason);
        }
    }

    fn begin_claim(&mut self) {
        let adopted = self.adopt_offer();
        if self.up.as_ref().is_some_and(|up| up.process.is_none()) {
            self.restore_stderr();
        }
        match adopted {
            Ok(()) => self.answer = Some(Ok(())),
            Err(error) => {
                if let Some(up) = &mut self.up {
                    up.machine.handle_stop(Instant::now(), format!("{error:?}"));
                }
            }
        }
    }

    fn adopt_offer(&mut self) -> Result<()> {
        let Some(up) = &mut self.up else {
            return Ok(());
        };
        let others = self.shared.table.adopt(std::mem::take(&mut up.offered))?;
        let mut state = state_of(
            others
                .into_iter()
                .map(|(_, slot, descriptor)| (slot, descriptor)),
        );
        up.stderr = OwnStderr::take(&mut state);
        begin_adopting(&mut state, &self.shared.table)?;
        if let Some(history) = state.take_blob(HISTORY) {
            self.shared
                .history
                .send_replace(History::from_bytes(&history));
        }
        up.cold_rollback = lock(&self.shared.images).inherit(&mut state);
        let is_drill = drill::take(&mut state, &self.shared);
        if (up.cold_rollback.is_some() || is_drill)
            && let Err(error) = restore_name()
        {
            self.shared
                .warn(format!("this process has a number for a name: {error}"));
        }
        if let (Some(stderr), Some(process)) = (&up.stderr, &up.process) {
            stderr.restore_after(process).map_err(|error| {
                Error::new(ErrorKind::Io, "watching the incumbent").because(error)
            })?;
        }
        *lock(&self.shared.offered) = state;
        Ok(())
    }

    fn accept_flip_state(&mut self, slots: Vec<Slot>, descriptors: Vec<OwnedFd>) {
        let more = state_of(slots.into_iter().zip(descriptors));
        lock(&self.shared.flipped).extend(more);
    }

    /// The drain may be taken back as well, until the incumbent has said that it serves.
    fn shut_all_gates(&mut self) {
        self.shared.table.shut_all_except(&[]);
        self.shared.drain.quiesce();
        self.deactivate();
    }

    /// What follows on shut gates waits until this generation is inactive.
    fn tell_incumbent_in_turn(&mut self, message: Message) {
        match self.up.as_mut().and_then(|up| up.held.as_mut()) {
            Some(held) => held.push(message),
            None => self.tell_incumbent(&message),
        }
    }

    fn open_gates(&mut self, regardless: bool) {
        self.shared.drain.resume();
        let opened = match regardless {
            _ if self.shared.injected.accepts_nobody() => Ok(()),
            true => {
                self.shared.table.open_all_regardless();
                Ok(())
            }
            false => self.shared.table.open_all(),
        };
        let Some(up) = &mut self.up else { return };
        match opened {
            Ok(()) => {
                up.machine.handle_gates_open();
                let generation = self.generation;
                self.shared.injected.arm();
                self.activate();
                self.close_preview();
                self.shared.health.serving();
                self.shared.emit(Event::Serving { generation });
                self.answer = Some(Ok(()));
            }
            Err(error) => up.machine.handle_gates_failed(format!("{error:?}")),
        }
    }

    /// Everything that says "this is the service" moves here before the incumbent hears that it may leave.
    fn promote(&mut self) {
        let Some(up) = &mut self.up else { return };
        let now = Instant::now();
        for (elder, descriptor) in up.elders.drain(..) {
            if let Ok(process) = Pidfd::adopt(descriptor) {
                self.elders.add(Elder {
                    generation: elder.generation,
                    pid: elder.pid,
                    process,
                    kill_at: kill_at(now, elder.millis),
                });
            }
        }
        let rescued = up.process.is_none();
        if let Some(process) = up.process.take() {
            let (generation, pid) = (up.generation, up.pid);
            let kill_at = kill_at(now, up.millis);
            self.elders.add(Elder {
                generation,
                pid,
                process,
                kill_at,
            });
        }
        let (from, timings) = (up.generation, up.timings);
        self.restore_stderr();
        if rescued {
            self.remember_rescue(from);
        }
        self.remember_own_upgrade(from, timings);
        self.become_incumbent();
        self.announce_takeover();
    }

    fn restore_stderr(&mut self) {
        let Some(stderr) = self.up.as_ref().and_then(|up| up.stderr.as_ref()) else {
            return;
        };
        if let Err(error) = stderr.restore() {
            self.shared
                .warn(format!("standard error stays with the incumbent: {error}"));
        }
    }

    /// This generation has not served and will not: whoever waits for it is told why.
    fn never_serve(&mut self, reason: String) {
        if let Some(up) = &mut self.up {
            up.failed = Some(reason);
        }
        self.preview = None;
        self.answer_failed();
        self.shared.table.retire();
        self.shared.drain.begin();
    }

    /// To an application that was still warming up when that became known, too, once it asks.
    pub(super) fn answer_failed(&mut self) {
        let Some(up) = &self.up else { return };
        let Some(reason) = &up.failed else { return };
        let error = Error::new(ErrorKind::Aborted, "taking over from the incumbent")
            .because(reason.clone())
            .with_peer(up.pid);
        self.answer = Some(Err(match up.process.is_some() {
            true => error.while_incumbent_serves(),
            false => error,
        }));
    }
}

/// The kernel names a process for the file that it is started from: here that is the number of a descriptor.
fn restore_name() -> std::io::Result<()> {
    let argv = &Snapshot::take().argv;
    let name = argv.first().and_then(|name| Path::new(name).file_name());
    name.map_or(Ok(()), set_name)
}

pub(super) fn state_of(slots: impl IntoIterator<Item = (Slot, OwnedFd)>) -> State {
    let mut state = State::default();
    for (slot, descriptor) in slots {
        // What a newer incumbent means by it is not known here, so it is closed.
        let _ = state.insert(slot, descriptor);
    }
    state
}
