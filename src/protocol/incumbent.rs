//! The serving end of a handover.
//!
//! Inputs are `handle_*`, what to do about them is `poll_output`, the next deadline is `poll_timeout`. One input, then
//! all its outputs, then the next input. The machine upholds:
//!
//! - I1: after its gates were shut they are open again, or the successor has said that its own are, within `flip`.
//! - I3: its gates open only after the successor stopped, ended, or was given up for dead by killing it.
//! - I4: the only way to [`Output::Drain`] by an upgrade is a `committed` from the successor.
//! - I6: every state that waits for somebody else has a deadline. In standby and in the bake it waits for the rollout of its
//!   own process, which has its own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::deadlines::Deadlines;
use super::message::{Hello, Message, VERSION, VERSION_MIN};
use crate::event::Phase;

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Incumbent {
    deadlines: Deadlines,
    state: State,
    launched_at: Option<Instant>,
    outputs: VecDeque<Output>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    /// No upgrade is under way.
    Serving,
    AwaitLaunch,
    /// The offer is on its way already: a successor reads it as soon as it has understood the greeting.
    AwaitHello {
        chunk: u32,
        last: bool,
        deadline: Instant,
    },
    AwaitReceived {
        chunk: u32,
        last: bool,
        deadline: Instant,
    },
    AwaitReady {
        offered: u32,
        deadline: Instant,
    },
    Standby {
        unclaimed: Vec<u32>,
        /// The successor serves connections that this generation has accepted.
        shares: bool,
    },
    AwaitShut {
        shares: bool,
        deadline: Instant,
    },
    /// State of the flip that does not fit into one message goes on with each receipt.
    AwaitStarted {
        chunk: u32,
        last: bool,
        deadline: Instant,
    },
    Baking,
    /// The successor may have the role already: there is no way back but its death.
    AwaitCommitted {
        chunk: u32,
        last: bool,
        stopping: bool,
        deadline: Instant,
    },
    /// Rollback asked for: the successor shuts its gates first, but availability beats exclusivity.
    AwaitStopped {
        why: Why,
        deadline: Instant,
    },
    /// The successor is being ended, or is ending; the verdict waits for its last words.
    AwaitExit {
        why: Why,
        killed: bool,
        deadline: Instant,
    },
    /// This generation has handed over or stops; nothing that a peer says matters any more.
    Leaving,
}

/// How an upgrade that failed will be reported.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Why {
    phase: Phase,
    reason: String,
    /// Whether the successor had been told to start.
    flipped: bool,
    /// Whether this generation stops as well.
    stopping: bool,
}

/// What the driver has to do, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Output {
    /// Start the successor's process, then `handle_launched` or `handle_launch_failed`.
    Launch,
    /// Send this.
    Send(Message),
    /// Send the next chunk of the offer, then `handle_chunk_sent`.
    SendChunk,
    /// Shut every gate but those of unclaimed sockets, then `handle_gates_shut`.
    ShutGates {
        /// Indexes of the offered slots that the successor does not want.
        unclaimed: Vec<u32>,
    },
    /// Send the next chunk of the start with the state of the flip, then `handle_chunk_sent`.
    SendStart,
    /// Open every gate, whatever it takes.
    OpenGates,
    /// Send the next chunk of the role with the list of elders, then `handle_chunk_sent`.
    SendCommit,
    /// SIGKILL the successor.
    Kill,
    /// Stop watching over the successor: it drains and leaves by itself.
    Release {
        /// How many milliseconds it may still live.
        millis: u64,
    },
    /// The successor stands by: `handle_flip` lets it take over.
    Ready,
    /// A phase begins.
    Phase(Phase),
    /// The upgrade has ended.
    Verdict(Verdict),
    /// Finish what is in flight and leave.
    Drain {
        /// Whether the sockets live on in a successor.
        handed_over: bool,
    },
}

/// How an upgrade ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verdict {
    /// The successor has the role.
    Committed,
    /// Before the flip; nothing changed.
    Aborted {
        /// How far it had come.
        phase: Phase,
        /// Why.
        reason: String,
    },
    /// After the flip; this generation has its gates open again, unless it stops.
    RolledBack {
        /// How far it had come.
        phase: Phase,
        /// Why.
        reason: String,
    },
}

impl Incumbent {
    pub(crate) fn new(deadlines: Deadlines) -> Self {
        Self {
            deadlines,
            state: State::Serving,
            launched_at: None,
            outputs: VecDeque::new(),
        }
    }

    /// The phase of the upgrade under way, if any.
    pub(crate) fn phase(&self) -> Option<Phase> {
        Some(match &self.state {
            State::Serving | State::Leaving => return None,
            State::AwaitLaunch | State::AwaitHello { .. } => Phase::Launching,
            State::AwaitReceived { .. } => Phase::Offering,
            State::AwaitReady { .. } => Phase::Warming,
            State::Standby { .. } => Phase::Standby,
            State::AwaitShut { .. } | State::AwaitStarted { .. } => Phase::Flipping,
            State::Baking => Phase::Baking,
            State::AwaitCommitted { .. } => Phase::Committing,
            State::AwaitStopped { .. } | State::AwaitExit { .. } => Phase::Reverting,
        })
    }

    /// Whether this generation has handed over or stops.
    pub(crate) fn is_leaving(&self) -> bool {
        self.state == State::Leaving
    }

    /// Whether its gates are shut, or about to be, until the other side has spoken.
    #[cfg(test)]
    pub(crate) fn awaits_other_side(&self) -> bool {
        matches!(
            self.state,
            State::AwaitShut { .. } | State::AwaitStarted { .. } | State::AwaitStopped { .. }
        )
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Serving
            | State::AwaitLaunch
            | State::Standby { .. }
            | State::Baking
            | State::Leaving => None,
            State::AwaitHello { deadline, .. }
            | State::AwaitReceived { deadline, .. }
            | State::AwaitReady { deadline, .. }
            | State::AwaitShut { deadline, .. }
            | State::AwaitStarted { deadline, .. }
            | State::AwaitCommitted { deadline, .. }
            | State::AwaitStopped { deadline, .. }
            | State::AwaitExit { deadline, .. } => Some(*deadline),
        }
    }

    /// Somebody wants an upgrade. Refused with the phase of the one that is under way.
    pub(crate) fn handle_upgrade(&mut self, now: Instant) -> Result<(), Phase> {
        match self.phase() {
            Some(phase) => return Err(phase),
            None if self.is_leaving() => return Err(Phase::Committing),
            None => {}
        }
        self.launched_at = Some(now);
        self.state = State::AwaitLaunch;
        self.enter(Phase::Launching);
        self.push(Output::Launch);
        Ok(())
    }

    pub(crate) fn handle_launched(&mut self, now: Instant) {
        debug_assert_eq!(self.state, State::AwaitLaunch);
        self.state = State::AwaitHello {
            chunk: 0,
            last: false,
            deadline: now + self.deadlines.start,
        };
        self.push(Output::SendChunk);
    }

    pub(crate) fn handle_launch_failed(&mut self, reason: String) {
        debug_assert_eq!(self.state, State::AwaitLaunch);
        self.state = State::Serving;
        self.push(Output::Verdict(Verdict::Aborted {
            phase: Phase::Launching,
            reason,
        }));
    }

    /// A chunk of the offer, of the start or of the commit is on its way.
    pub(crate) fn handle_chunk_sent(&mut self, index: u32, is_last: bool) {
        if let State::AwaitHello { chunk, last, .. }
        | State::AwaitReceived { chunk, last, .. }
        | State::AwaitStarted { chunk, last, .. }
        | State::AwaitCommitted { chunk, last, .. } = &mut self.state
        {
            (*chunk, *last) = (index, is_last);
        }
    }

    /// The successor said something. `offered` is how many slots were offered in all.
    pub(crate) fn handle_message(&mut self, now: Instant, message: Message, offered: u32) {
        match (&self.state, message) {
            (State::Serving | State::AwaitLaunch | State::Leaving, _) => {}
            (State::AwaitHello { .. }, Message::Hello(hello)) => self.on_hello(now, &hello),
            (
                State::AwaitReceived {
                    chunk,
                    last,
                    deadline,
                },
                Message::Received { chunk: received },
            ) if *chunk == received => {
                self.on_received(*last, offered, *deadline);
            }
            (
                State::AwaitStarted {
                    chunk, last: false, ..
                },
                Message::Received { chunk: received },
            ) if *chunk == received => self.push(Output::SendStart),
            (
                State::AwaitCommitted {
                    chunk, last: false, ..
                },
                Message::Received { chunk: received },
            ) if *chunk == received => self.push(Output::SendCommit),
            (State::AwaitReady { offered, .. }, Message::Ready { unclaimed, .. })
                if unclaimed.iter().all(|slot| slot < offered) =>
            {
                let shares = false;
                self.state = State::Standby { unclaimed, shares };
                self.push(Output::Ready);
            }
            (State::AwaitStarted { .. }, Message::Started) => {
                self.state = State::Baking;
                self.enter(Phase::Baking);
            }
            (State::AwaitCommitted { .. }, Message::Committed) => {
                self.state = State::Leaving;
                self.push(Output::Verdict(Verdict::Committed));
                self.push(Output::Drain { handed_over: true });
            }
            (State::AwaitStopped { .. }, Message::Stopped { millis, .. }) => {
                self.on_stopped(None, millis);
            }
            (
                State::AwaitStarted { .. } | State::Baking | State::AwaitCommitted { .. },
                Message::Stopped { reason, millis },
            ) => self.on_stopped(Some(reason), millis),
            (State::AwaitStopped { .. }, Message::Failed { reason }) => {
                self.give_up(now, reason, Ending::ByItself);
            }
            // What it said before it learned that it is to stop or to end.
            (State::AwaitStopped { .. } | State::AwaitExit { .. }, _) => {}
            (_, Message::Extend { millis }) => self.on_extend(now, millis),
            (_, Message::Failed { reason }) => self.give_up(now, reason, Ending::ByItself),
            (_, message) => {
                let reason = format!("it said {:?} out of turn", message.name());
                self.give_up(now, reason, Ending::Killed);
            }
        }
    }

    /// The channel cannot be used any more: garbage arrived, descriptors were lost, or a send failed.
    pub(crate) fn handle_broken(&mut self, now: Instant, reason: String) {
        self.give_up(now, reason, Ending::Killed);
    }

    /// The successor's end of the channel is closed. Its process may have more to say by the way it ends.
    pub(crate) fn handle_closed(&mut self, now: Instant) {
        self.give_up(now, "it closed the channel".to_owned(), Ending::ByItself);
    }

    /// The successor's process has ended, and everything it had sent has been handled.
    pub(crate) fn handle_exit(&mut self, now: Instant, how: &str) {
        match &self.state {
            State::Serving | State::AwaitLaunch | State::Leaving => {}
            State::AwaitExit { .. } => self.conclude(),
            _ => {
                self.give_up(now, format!("it ended ({how})"), Ending::ByItself);
                self.conclude();
            }
        }
    }

    /// No accept of this generation will succeed any more, except on unclaimed sockets.
    pub(crate) fn handle_gates_shut(&mut self, now: Instant) {
        if let State::AwaitShut { .. } = self.state {
            self.state = State::AwaitStarted {
                chunk: 0,
                last: false,
                deadline: now + self.deadlines.flip,
            };
            self.push(Output::SendStart);
        }
    }

    /// The successor that stands by gets connections that this generation accepts, from now on.
    pub(crate) fn handle_share(&mut self) {
        if let State::Standby { shares, .. } = &mut self.state {
            *shares = true;
        }
    }

    /// The successor that stands by is to take over.
    pub(crate) fn handle_flip(&mut self, now: Instant) {
        if let State::Standby { unclaimed, shares } = &mut self.state {
            let (unclaimed, shares) = (std::mem::take(unclaimed), *shares);
            self.state = State::AwaitShut {
                shares,
                deadline: now + self.deadlines.flip,
            };
            self.enter(Phase::Flipping);
            self.push(Output::ShutGates { unclaimed });
        }
    }

    /// The successor has baked: it is to have the role.
    pub(crate) fn handle_commit(&mut self, now: Instant) {
        if self.state == State::Baking {
            self.state = State::AwaitCommitted {
                chunk: 0,
                last: false,
                stopping: false,
                deadline: now + self.deadlines.flip,
            };
            self.enter(Phase::Committing);
            self.push(Output::SendCommit);
        }
    }

    /// Somebody wants the upgrade undone: an abort before the flip, a rollback after it.
    pub(crate) fn handle_rollback(&mut self, now: Instant, reason: String) {
        self.revert(now, reason, false);
    }

    /// This generation is to stop, and the service with it.
    pub(crate) fn handle_stop(&mut self, now: Instant) {
        match &mut self.state {
            State::Serving | State::AwaitLaunch => self.leave(),
            State::Leaving => {}
            State::AwaitStopped {
                why: Why { stopping, .. },
                ..
            }
            // Behind the commit, so it is the new incumbent that is told.
            | State::AwaitCommitted { stopping, .. } => {
                if !std::mem::replace(stopping, true) {
                    self.push(Output::Send(stop(STOPPING.to_owned(), true)));
                }
            }
            State::AwaitExit { why, killed, .. } => {
                let (why, killed) = (
                    Why {
                        stopping: true,
                        ..why.clone()
                    },
                    *killed,
                );
                if !killed {
                    self.push(Output::Kill);
                }
                self.report(why);
            }
            _ => self.revert(now, STOPPING.to_owned(), true),
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|deadline| now < deadline) {
            return;
        }
        match &self.state {
            State::AwaitExit {
                killed: false, why, ..
            } => {
                let why = why.clone();
                self.kill(now, why);
            }
            State::AwaitExit {
                killed: true, why, ..
            } => {
                let reason = format!("{}; it would not die", why.reason);
                let why = Why {
                    reason,
                    ..why.clone()
                };
                self.report(why);
            }
            State::AwaitStopped { why, .. } => {
                let why = why.clone();
                self.reopen(&why);
                self.kill(now, why);
            }
            _ => {
                let reason = format!("it did not {} in time", self.awaited());
                self.give_up(now, reason, Ending::Killed);
            }
        }
    }

    fn on_hello(&mut self, now: Instant, hello: &Hello) {
        if hello.version_max < VERSION_MIN || hello.version_min > VERSION {
            let reason = format!(
                "it speaks protocol versions {} to {}, this generation {VERSION_MIN} to {VERSION}",
                hello.version_min, hello.version_max
            );
            return self.give_up(now, reason, Ending::Killed);
        }
        if let State::AwaitHello {
            chunk,
            last,
            deadline,
        } = self.state
        {
            self.state = State::AwaitReceived {
                chunk,
                last,
                deadline,
            };
            self.enter(Phase::Offering);
        }
    }

    fn on_received(&mut self, last: bool, offered: u32, deadline: Instant) {
        if last {
            self.state = State::AwaitReady { offered, deadline };
            self.enter(Phase::Warming);
        } else {
            self.push(Output::SendChunk);
        }
    }

    fn on_extend(&mut self, now: Instant, millis: u64) {
        let Some(launched_at) = self.launched_at else {
            return;
        };
        let latest = launched_at + self.deadlines.start_max;
        let wanted = now
            .checked_add(Duration::from_millis(millis))
            .unwrap_or(latest);
        if let State::AwaitHello { deadline, .. }
        | State::AwaitReceived { deadline, .. }
        | State::AwaitReady { deadline, .. } = &mut self.state
        {
            *deadline = wanted.min(latest).max(*deadline);
        }
    }

    /// The successor's gates are shut and it finishes by itself what it has begun.
    fn on_stopped(&mut self, own_decision: Option<String>, millis: u64) {
        let why = match (&self.state, own_decision) {
            (State::AwaitStopped { why, .. }, _) => why.clone(),
            (_, reason) => self.why(reason.unwrap_or_default(), false),
        };
        self.reopen(&why);
        // Only now: until it hears this, the successor would serve again if this process died. A generation that stops
        // serves whatever waits in its queues without the successor, too.
        self.push(Output::Send(Message::Reopened));
        self.push(Output::Release { millis });
        self.report(why);
    }

    fn revert(&mut self, now: Instant, reason: String, stopping: bool) {
        let why = self.why(reason, stopping);
        match &self.state {
            State::Serving | State::AwaitLaunch | State::Leaving => {}
            State::AwaitStopped { .. } | State::AwaitExit { .. } => {}
            State::AwaitCommitted { .. } => {}
            _ if self.successor_serves() => {
                if let State::AwaitShut { .. } = self.state {
                    self.reopen(&why);
                }
                self.push(Output::Send(stop(why.reason.clone(), why.stopping)));
                self.state = State::AwaitStopped {
                    why,
                    deadline: now + self.deadlines.flip,
                };
                self.enter(Phase::Reverting);
            }
            _ => {
                self.reopen(&why);
                self.kill(now, why);
            }
        }
    }

    /// The successor is no good. This generation serves again at once; the verdict waits for the process's end.
    fn give_up(&mut self, now: Instant, reason: String, ending: Ending) {
        let why = match &self.state {
            State::Serving | State::AwaitLaunch | State::Leaving | State::AwaitExit { .. } => {
                return;
            }
            State::AwaitStopped { why, .. } => why.clone(),
            _ => self.why(reason, false),
        };
        self.reopen(&why);
        match ending {
            Ending::Killed => self.kill(now, why),
            Ending::ByItself => self.await_exit(now, why, false),
        }
    }

    fn kill(&mut self, now: Instant, why: Why) {
        if !why.flipped {
            // For one that cannot be killed from here, and for the log of one that is quick.
            self.push(Output::Send(Message::Abort {
                reason: why.reason.clone(),
            }));
        }
        self.push(Output::Kill);
        self.await_exit(now, why, true);
    }

    fn await_exit(&mut self, now: Instant, why: Why, killed: bool) {
        if self.phase() != Some(Phase::Reverting) {
            self.enter(Phase::Reverting);
        }
        self.state = State::AwaitExit {
            why,
            killed,
            deadline: now + self.deadlines.exit,
        };
    }

    fn reopen(&mut self, why: &Why) {
        let shut = why.flipped || matches!(self.state, State::AwaitShut { .. });
        if shut && !why.stopping {
            self.push(Output::OpenGates);
        }
    }

    fn conclude(&mut self) {
        if let State::AwaitExit { why, .. } = &self.state {
            let why = why.clone();
            self.report(why);
        }
    }

    fn report(&mut self, why: Why) {
        let Why {
            phase,
            reason,
            flipped,
            stopping,
        } = why;
        self.push(Output::Verdict(if flipped {
            Verdict::RolledBack { phase, reason }
        } else {
            Verdict::Aborted { phase, reason }
        }));
        if stopping {
            self.leave();
        } else {
            self.state = State::Serving;
        }
    }

    fn leave(&mut self) {
        self.state = State::Leaving;
        self.push(Output::Drain { handed_over: false });
    }

    fn why(&self, reason: String, stopping: bool) -> Why {
        let flipped = matches!(
            self.state,
            State::AwaitStarted { .. } | State::Baking | State::AwaitCommitted { .. }
        );
        let stops_already = matches!(self.state, State::AwaitCommitted { stopping: true, .. });
        Why {
            phase: self.phase().unwrap_or(Phase::Launching),
            reason,
            flipped,
            stopping: stopping || stops_already,
        }
    }

    /// Whether it may have begun something for a client, which it is to finish.
    fn successor_serves(&self) -> bool {
        matches!(
            self.state,
            State::Standby { shares: true, .. }
                | State::AwaitShut { shares: true, .. }
                | State::AwaitStarted { .. }
                | State::Baking
        )
    }

    fn awaited(&self) -> &'static str {
        match self.state {
            State::AwaitHello { .. } => "say hello",
            State::AwaitReceived { .. } => "acknowledge the sockets",
            State::AwaitReady { .. } => "get ready",
            State::AwaitStarted { .. } => "start to serve",
            State::AwaitCommitted { .. } => "take the role over",
            _ => "go on",
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.push(Output::Phase(phase));
    }

    fn push(&mut self, output: Output) {
        self.outputs.push_back(output);
    }
}

fn stop(reason: String, ends_service: bool) -> Message {
    Message::Stop {
        reason,
        ends_service,
    }
}

const STOPPING: &str = "the service is stopping";

/// Whether a successor that is given up gets the time to end by itself and to say why.
enum Ending {
    ByItself,
    Killed,
}

#[cfg(test)]
mod tests {

    use super::*;

    fn committing(now: Instant) -> Incumbent {
        let second = Duration::from_secs(1);
        let mut machine = Incumbent::new(Deadlines {
            start: second,
            start_max: second,
            flip: second,
            exit: second,
            hard_stop: second,
        });
        machine.state = State::AwaitCommitted {
            chunk: 0,
            last: true,
            stopping: false,
            deadline: now + second,
        };
        machine
    }

    fn outputs(machine: &mut Incumbent) -> Vec<Output> {
        std::iter::from_fn(|| machine.poll_output()).collect()
    }

    #[test]
    fn an_extension_never_shortens_the_time_that_is_left() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut machine = committing(now);
        machine.deadlines.start_max = 60 * second;
        machine.launched_at = Some(now);
        machine.state = State::AwaitReady {
            offered: 1,
            deadline: now + 10 * second,
        };
        for (millis, left) in [(5_000, 10), (20_000, 20), (3_600_000, 60), (1_000, 60)] {
            machine.on_extend(now, millis);
            assert_eq!(
                machine.poll_timeout(),
                Some(now + left * second),
                "{millis}"
            );
        }
    }

    #[test]
    fn a_stop_at_the_commit_goes_to_the_new_incumbent_and_kills_nobody() {
        let now = Instant::now();
        let mut machine = committing(now);
        machine.handle_stop(now);
        machine.handle_stop(now);
        let told = outputs(&mut machine);
        assert!(matches!(&told[..], [Output::Send(Message::Stop { .. })]));
        machine.handle_message(now, Message::Committed, 0);
        let end = [
            Output::Verdict(Verdict::Committed),
            Output::Drain { handed_over: true },
        ];
        assert_eq!(outputs(&mut machine), end);
    }

    #[test]
    fn a_rollback_at_the_commit_comes_too_late() {
        let now = Instant::now();
        let mut machine = committing(now);
        machine.handle_rollback(now, String::new());
        assert!(outputs(&mut machine).is_empty());
        assert_eq!(machine.phase(), Some(Phase::Committing));
    }
}
