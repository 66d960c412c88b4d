//! The starting end of a handover.
//!
//! The same four kinds of methods as [`super::incumbent`]. The machine upholds:
//!
//! - I1: if the incumbent dies, a ready successor opens its gates without being told; so does one that has just shut
//!   them again, until the incumbent has said that its own are open.
//! - I3: its gates open only when told to start, or when the incumbent is dead. A closed channel alone proves nothing:
//!   an incumbent that lives has given this successor up and serves on.
//! - I6: a wait for the incumbent ends with the incumbent's process; every other wait has a deadline.

use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, Instant};

use super::deadlines::Deadlines;
use super::message::{Message, VERSION, VERSION_MIN, millis};

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Successor {
    deadlines: Deadlines,
    state: State,
    /// When a closed channel must have been explained by the incumbent's death.
    unexplained: Option<Instant>,
    /// The incumbent is dead: nobody to ask, nobody to answer.
    alone: bool,
    outputs: VecDeque<Output>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    AwaitHello {
        deadline: Instant,
    },
    AwaitOffer {
        chunk: u32,
        deadline: Instant,
    },
    /// The application claims sockets and warms up.
    Warming,
    AwaitStart {
        chunk: u32,
    },
    AwaitOpen,
    /// Serving, and the incumbent is warm until the last chunk of the commit is here.
    Baking {
        chunk: u32,
    },
    /// Serving, and nobody can take that back.
    Committed,
    /// Its gates are shut again, but the incumbent may die before it has opened its own.
    AwaitReopened {
        reason: String,
        /// Whether the service is to end with this generation, should it be the only one left.
        ends_service: bool,
        deadline: Instant,
    },
    /// Its gates are shut for good; it finishes what it has begun and leaves.
    Stopped,
    /// It never served and never will.
    Failed,
}

/// What the driver has to do, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Output {
    /// Send this.
    Send(Message),
    /// The table is complete, or as complete as it will be: the application may claim.
    Claim,
    /// Open every gate, then `handle_gates_open` or `handle_gates_failed`.
    OpenGates {
        /// Nobody else is left to serve: open them whatever it takes.
        regardless: bool,
    },
    /// Shut every gate, and keep the sockets; this has happened when the next output is asked for.
    ShutGates,
    /// This generation is the incumbent now, and watches over the elders that it has been told of.
    Promote,
    /// Finish what is in flight and leave.
    Drain {
        /// Why.
        reason: String,
    },
    /// Tell the application that it will never serve.
    Fail {
        /// Why.
        reason: String,
    },
}

impl Successor {
    pub(crate) fn new(deadlines: Deadlines, now: Instant) -> Self {
        Self {
            deadlines,
            state: State::AwaitHello {
                deadline: now + deadlines.start,
            },
            unexplained: None,
            alone: false,
            outputs: VecDeque::new(),
        }
    }

    /// Whether this generation can start upgrades itself.
    pub(crate) fn is_committed(&self) -> bool {
        self.state == State::Committed
    }

    /// Whether its gates are open by the machine's word.
    #[cfg(test)]
    pub(crate) fn is_serving(&self) -> bool {
        matches!(self.state, State::Baking { .. } | State::Committed)
    }

    #[cfg(test)]
    pub(crate) fn awaits_start(&self) -> bool {
        matches!(self.state, State::AwaitStart { .. })
    }

    /// Whether it would serve again, if the incumbent died.
    #[cfg(test)]
    pub(crate) fn awaits_reopened(&self) -> bool {
        matches!(self.state, State::AwaitReopened { .. })
    }

    #[cfg(test)]
    pub(crate) fn is_warming(&self) -> bool {
        self.state == State::Warming
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let awaited = match self.state {
            State::AwaitHello { deadline }
            | State::AwaitOffer { deadline, .. }
            | State::AwaitReopened { deadline, .. } => Some(deadline),
            _ => None,
        };
        awaited.into_iter().chain(self.unexplained).min()
    }

    /// The incumbent said something; its descriptors are in the driver's table already.
    pub(crate) fn handle_message(&mut self, now: Instant, message: Message) {
        match (&mut self.state, message) {
            (State::Committed | State::Stopped | State::Failed, _) => {}
            (State::AwaitHello { deadline }, Message::Hello(hello)) => {
                let deadline = *deadline;
                if hello.version_max < VERSION_MIN || hello.version_min > VERSION {
                    return self.fail(format!(
                        "the incumbent speaks protocol versions {} to {}, this build {VERSION_MIN} to {VERSION}",
                        hello.version_min, hello.version_max
                    ));
                }
                self.state = State::AwaitOffer { chunk: 0, deadline };
            }
            (State::AwaitOffer { chunk, deadline }, Message::Offer(offer))
                if offer.chunk == *chunk =>
            {
                let (chunk, deadline) = (*chunk, *deadline);
                self.push(Output::Send(Message::Received { chunk: offer.chunk }));
                if offer.last {
                    self.claim();
                } else {
                    self.state = State::AwaitOffer {
                        chunk: chunk + 1,
                        deadline,
                    };
                }
            }
            (State::AwaitStart { chunk }, Message::Start(start)) if start.chunk == *chunk => {
                if start.last {
                    self.open();
                } else {
                    *chunk += 1;
                    self.push(Output::Send(Message::Received { chunk: start.chunk }));
                }
            }
            (
                State::Baking { chunk: next },
                Message::Commit {
                    chunk, last: false, ..
                },
            ) if chunk == *next => {
                *next += 1;
                self.push(Output::Send(Message::Received { chunk }));
            }
            (State::Baking { chunk: next }, Message::Commit { chunk, .. }) if chunk == *next => {
                // The role's tokens move before the answer: the incumbent may leave the moment it has it.
                self.promote();
                self.push(Output::Send(Message::Committed));
            }
            (
                // In standby too it may have begun something, if it had a share.
                State::AwaitStart { .. } | State::AwaitOpen | State::Baking { .. },
                Message::Stop {
                    reason,
                    ends_service,
                },
            ) => self.revert(now, reason, ends_service),
            (State::AwaitReopened { reason, .. }, Message::Reopened) => {
                let reason = mem::take(reason);
                self.leave(reason);
            }
            (
                State::AwaitReopened { ends_service, .. },
                Message::Stop {
                    ends_service: ends, ..
                },
            ) => *ends_service |= ends,
            // What it said before it learned that the gates are shut.
            (State::AwaitReopened { .. }, _) => {}
            (_, Message::Abort { reason }) => self.handle_broken(now, reason),
            (_, message) => {
                let reason = format!("the incumbent said {:?} out of turn", message.name());
                self.handle_broken(now, reason);
            }
        }
    }

    /// The channel brought something that is no message, or lost descriptors.
    pub(crate) fn handle_broken(&mut self, now: Instant, reason: String) {
        match self.state {
            State::Committed | State::AwaitReopened { .. } | State::Stopped | State::Failed => {}
            // The incumbent has its reasons to believe us dead as well; it opens its gates when we say that we stop.
            State::AwaitOpen | State::Baking { .. } => self.revert(now, reason, false),
            _ => self.fail(reason),
        }
    }

    /// The incumbent's end of the channel is closed. Whether it died is not known yet.
    pub(crate) fn handle_closed(&mut self, now: Instant) {
        // Once the gates are shut again, the one wait covers both: a death, and a channel closed by one who lives.
        let waits_already = matches!(self.state, State::AwaitReopened { .. });
        if !self.alone && !self.is_settled() && !waits_already && self.unexplained.is_none() {
            self.unexplained = Some(now + self.deadlines.exit);
        }
    }

    /// The incumbent's process has ended, and everything it had sent has been handled.
    pub(crate) fn handle_incumbent_exit(&mut self) {
        self.unexplained = None;
        if self.is_settled() {
            return;
        }
        self.alone = true;
        match &mut self.state {
            State::AwaitHello { .. } | State::AwaitOffer { .. } => self.claim(),
            State::AwaitStart { .. } => self.open(),
            State::Baking { .. } => self.promote(),
            State::AwaitReopened {
                ends_service: true,
                reason,
                ..
            } => {
                let reason = mem::take(reason);
                self.end_service(reason);
            }
            State::AwaitReopened { .. } => self.open(),
            _ => {}
        }
    }

    /// The application needs longer than the incumbent would wait.
    pub(crate) fn handle_extend(&mut self, by: Duration) {
        if self.state == State::Warming {
            self.tell(Message::extend(by));
        }
    }

    /// The application is warmed up.
    pub(crate) fn handle_ready(&mut self, unclaimed: Vec<u32>) {
        if self.state != State::Warming {
            return;
        }
        if self.alone {
            return self.open();
        }
        self.state = State::AwaitStart { chunk: 0 };
        // Where it can be reached is the driver's to add.
        let preview = Vec::new();
        self.push(Output::Send(Message::Ready { unclaimed, preview }));
    }

    /// Every gate is open.
    pub(crate) fn handle_gates_open(&mut self) {
        if self.state != State::AwaitOpen {
            return;
        }
        self.state = State::Baking { chunk: 0 };
        if self.alone {
            self.promote();
        } else {
            self.push(Output::Send(Message::Started));
        }
    }

    /// The gates could not be opened; none is.
    pub(crate) fn handle_gates_failed(&mut self, reason: String) {
        if self.state == State::AwaitOpen {
            self.fail(reason);
        }
    }

    /// The application gives up, or is told to stop, before or after the flip.
    pub(crate) fn handle_stop(&mut self, now: Instant, reason: String) {
        match &mut self.state {
            State::Stopped | State::Failed => {}
            State::AwaitOpen | State::Baking { .. } if self.alone => self.end_service(reason),
            State::AwaitOpen | State::Baking { .. } => self.revert(now, reason, true),
            State::AwaitReopened { ends_service, .. } => *ends_service = true,
            State::Committed => {
                self.push(Output::ShutGates);
                self.leave(reason);
            }
            _ => self.fail(reason),
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.unexplained.is_some_and(|deadline| now >= deadline) {
            self.unexplained = None;
            self.handle_broken(now, CLOSED.to_owned());
        } else if self.poll_timeout().is_some_and(|deadline| now >= deadline) {
            self.on_timeout();
        }
    }

    fn on_timeout(&mut self) {
        match &self.state {
            // It lives and has the sockets: it serves when it goes on.
            State::AwaitReopened { reason, .. } => {
                let reason = format!("{reason}; the incumbent did not say in time that it serves");
                self.leave(reason);
            }
            _ => self.fail("the incumbent did not offer its sockets in time".to_owned()),
        }
    }

    fn is_settled(&self) -> bool {
        matches!(
            self.state,
            State::Committed | State::Stopped | State::Failed
        )
    }

    fn claim(&mut self) {
        self.state = State::Warming;
        self.push(Output::Claim);
    }

    fn open(&mut self) {
        self.state = State::AwaitOpen;
        self.push(Output::OpenGates {
            regardless: self.alone,
        });
    }

    fn promote(&mut self) {
        self.state = State::Committed;
        self.unexplained = None;
        self.push(Output::Promote);
    }

    /// Shuts the gates, and keeps the sockets until the incumbent says that it serves.
    fn revert(&mut self, now: Instant, reason: String, ends_service: bool) {
        self.state = State::AwaitReopened {
            reason: reason.clone(),
            ends_service,
            deadline: now + self.deadlines.exit,
        };
        self.unexplained = None;
        self.push(Output::ShutGates);
        let millis = millis(self.deadlines.life());
        self.push(Output::Send(Message::Stopped { reason, millis }));
    }

    /// The only one left, and nobody is to serve: what waits in the queues is the last that it takes.
    fn end_service(&mut self, reason: String) {
        self.promote();
        self.leave(reason);
    }

    fn leave(&mut self, reason: String) {
        self.state = State::Stopped;
        self.unexplained = None;
        self.push(Output::Drain { reason });
    }

    fn fail(&mut self, reason: String) {
        self.state = State::Failed;
        self.unexplained = None;
        self.tell(Message::Failed {
            reason: reason.clone(),
        });
        self.push(Output::Fail { reason });
    }

    fn tell(&mut self, message: Message) {
        if !self.alone {
            self.push(Output::Send(message));
        }
    }

    fn push(&mut self, output: Output) {
        self.outputs.push_back(output);
    }
}

const CLOSED: &str = "the incumbent closed the channel and lives on";

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn baking() -> Successor {
        let deadlines = Deadlines {
            start: SECOND,
            start_max: SECOND,
            flip: SECOND,
            exit: SECOND,
            hard_stop: SECOND,
        };
        let mut machine = Successor::new(deadlines, Instant::now());
        machine.state = State::Baking { chunk: 0 };
        machine
    }

    fn stop(ends_service: bool) -> Message {
        Message::Stop {
            reason: "why".into(),
            ends_service,
        }
    }

    fn commit(chunk: u32, last: bool) -> Message {
        Message::Commit {
            chunk,
            last,
            millis: 0,
            elders: Vec::new(),
            timings: None,
        }
    }

    #[test]
    fn the_role_is_taken_with_the_last_chunk_of_the_commit_and_not_before() {
        let now = Instant::now();
        let mut machine = baking();
        machine.handle_message(now, commit(0, false));
        let received = Output::Send(Message::Received { chunk: 0 });
        assert_eq!(outputs(&mut machine), [received]);
        assert!(!machine.is_committed());
        machine.handle_message(now, commit(1, true));
        let taken = [Output::Promote, Output::Send(Message::Committed)];
        assert_eq!(outputs(&mut machine), taken);
    }

    fn reverting(now: Instant, ends_service: bool) -> Successor {
        let mut machine = baking();
        machine.handle_message(now, stop(ends_service));
        let reason = "why".into();
        let told = [
            Output::ShutGates,
            Output::Send(Message::Stopped {
                reason,
                millis: 2_000,
            }),
        ];
        assert_eq!(outputs(&mut machine), told);
        machine
    }

    fn drain(reason: &str) -> Output {
        let reason = reason.into();
        Output::Drain { reason }
    }

    fn outputs(machine: &mut Successor) -> Vec<Output> {
        std::iter::from_fn(|| machine.poll_output()).collect()
    }

    #[test]
    fn a_successor_that_is_rolled_back_lets_go_when_the_incumbent_serves_and_not_before() {
        let now = Instant::now();
        let mut machine = reverting(now, false);
        // The incumbent had said this before it heard that the gates are shut.
        machine.handle_message(now, commit(0, true));
        machine.handle_message(now, stop(false));
        machine.handle_closed(now);
        machine.handle_broken(now, "garbage".into());
        assert_eq!(outputs(&mut machine), []);
        machine.handle_message(now, Message::Reopened);
        assert_eq!(outputs(&mut machine), [drain("why")]);
    }

    #[test]
    fn a_successor_that_is_rolled_back_does_not_wait_for_ever() {
        let now = Instant::now();
        let mut machine = reverting(now, false);
        assert_eq!(machine.poll_timeout(), Some(now + SECOND));
        machine.handle_timeout(now + SECOND);
        let reason = "why; the incumbent did not say in time that it serves";
        assert_eq!(outputs(&mut machine), [drain(reason)]);
        machine.handle_incumbent_exit();
        assert_eq!(outputs(&mut machine), []);
    }

    #[test]
    fn a_service_that_is_to_end_ends_with_its_last_generation() {
        let now = Instant::now();
        let end = [Output::Promote, drain("why")];

        let mut told_at_first = reverting(now, true);
        told_at_first.handle_incumbent_exit();
        assert_eq!(outputs(&mut told_at_first), end);

        let mut told_later = reverting(now, false);
        told_later.handle_message(now, stop(true));
        told_later.handle_message(now, stop(false));
        told_later.handle_incumbent_exit();
        assert_eq!(outputs(&mut told_later), end);

        let mut told_by_itself = reverting(now, false);
        told_by_itself.handle_stop(now, "signal".into());
        told_by_itself.handle_incumbent_exit();
        assert_eq!(outputs(&mut told_by_itself), end);
    }
}
