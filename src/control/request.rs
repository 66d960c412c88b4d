//! What an operator's client and the incumbent say to each other.
//!
//! Client and service are different builds as a rule. A reader ignores fields that it does not know and takes words that
//! it does not know for `unknown`, so both may be added; a request that must be understood has a name of its own, and one
//! whose name is not known is refused.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::counts::SideState;
use super::drill::{Drill, Fault};
use super::schema::{SchemaState, SchemaWish};
use super::verification::Verification;
use super::workers::PoolState;
use crate::event::Event;
use crate::protocol::message::millis;
use crate::rollout::{By, Explanation, Pause, Share, Stage};

/// The newest version of this language that this build speaks.
pub const VERSION: u32 = 1;
/// The oldest version of this language that this build speaks.
pub const VERSION_MIN: u32 = 1;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Request {
    /// How the service is. Answered with [`Reply::Status`].
    Status,
    /// Hand over to a successor. Answered with [`Reply::Begun`], or, if it waits, with [`Reply::Verdict`],
    /// [`Reply::Standby`] or [`Reply::Paused`].
    Upgrade {
        /// Whether the answer is the verdict, or only that it has begun.
        #[serde(default)]
        wait: bool,
        /// How it is done. Default: as the builder says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        strategy: Option<Strategy>,
        /// Fields of the [`Rollout`](crate::rollout::Rollout) that are to be others, as it is serialized.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        plan: Option<serde_json::Map<String, serde_json::Value>>,
        /// Whether nobody has looked at how the last ones ended: refused after too many failures.
        #[serde(default)]
        automatic: bool,
    },
    /// Pass what holds the rollout: the next step, the flip, or the end of the bake. Answered like
    /// [`Upgrade`](Self::Upgrade). Without a rollout, declare what serves to be good: the service is no longer
    /// [degraded](Condition::Degraded).
    Promote {
        /// As in [`Upgrade`](Self::Upgrade).
        #[serde(default)]
        wait: bool,
        /// All the way: no further steps and no bake.
        #[serde(default)]
        full: bool,
    },
    /// Let the rollout stay where it is; guards stay armed. Answered with [`Reply::Done`].
    Pause,
    /// Let a paused rollout go on; without one, let automatic ones begin again after too many failures. Answered with
    /// [`Reply::Done`].
    Resume,
    /// Give the candidate this share of the traffic, and pause there. Answered with [`Reply::Done`].
    Share {
        /// In hundredths of a percent.
        share: Share,
    },
    /// Give the upgrade under way up, if it is before its flip. Answered with its [`Reply::Verdict`].
    Abort {
        /// For the history.
        #[serde(default)]
        reason: String,
    },
    /// Undo the upgrade under way, be it before or after its flip; or, if it is cold, go back to the release before, which
    /// is started again. Answered with the [`Reply::Verdict`], or, if it does not wait, with [`Reply::Begun`].
    Rollback {
        /// For the history.
        #[serde(default)]
        reason: String,
        /// Whether the release before is to be started again from its held image, as an upgrade that takes over as soon
        /// as it is ready. Refused while an upgrade is under way.
        #[serde(default, skip_serializing_if = "is_false")]
        cold: bool,
        /// As in [`Upgrade`](Self::Upgrade), but it is meant unless somebody says otherwise.
        #[serde(default = "yes")]
        wait: bool,
    },
    /// Hand over to the process that asks. Answered with [`Reply::Takeover`], which comes with a descriptor (`SCM_RIGHTS`,
    /// unix(7)): the successor's end of a channel, on which docs/PROTOCOL.md goes on. See
    /// [`Client::takeover`](super::Client::takeover).
    Takeover,
    /// Who is alive. Answered with [`Reply::Generations`].
    Generations,
    /// The last upgrades. Answered with [`Reply::History`].
    History,
    /// The upgrade under way and the last one in full. Answered with [`Reply::Explain`].
    Explain,
    /// What is in flight. Answered with [`Reply::Drain`].
    Drain {
        /// Whether to answer when every older generation has left.
        #[serde(default)]
        wait: bool,
    },
    /// Stop the service, as SIGTERM does. Answered with [`Reply::Stopping`].
    Stop {
        /// Not to wait for work in flight: as a second SIGTERM. Without it, a stop that is under way is left alone.
        #[serde(default)]
        now: bool,
    },
    /// Ask fresh connections to every public address who answers them. Answered with [`Reply::Verified`].
    Verify,
    /// Let the release that serves take over from itself on the real listeners, and go back; no rollout may be under way.
    /// Answered with [`Reply::Begun`], or, if it waits, with [`Reply::Drilled`].
    Drill {
        /// What the candidate is to do wrong. Refused by a service that was built without the feature `inject`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        inject: Option<Fault>,
        /// As in [`Upgrade`](Self::Upgrade), but it is meant unless somebody says otherwise.
        #[serde(default = "yes")]
        wait: bool,
    },
    /// Have another number of workers from now on; for a [pool](crate::control::PoolState). Answered with
    /// [`Reply::Done`].
    Scale {
        /// How many.
        workers: usize,
    },
    /// Look at the schema of a service that declares one, or change it. Answered with [`Reply::Schema`].
    Schema {
        /// What is asked.
        wish: SchemaWish,
    },
    /// What happens from now on. Answered with [`Reply::Events`] and one [`Happened`] in each line after it, until this
    /// generation has handed over or is gone.
    Events,
}

/// How an upgrade is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Strategy {
    /// The successor takes over as soon as it is ready.
    Immediate,
    /// The successor stands by, ready with its gates shut, until it is promoted; then it bakes with the guards armed.
    BlueGreen,
    /// The successor gets growing shares of the traffic, and is judged by how it does.
    Canary,
}

/// What a client is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reply {
    /// How the service is.
    Status(Box<Status>),
    /// It goes on without whoever asked.
    Begun {
        /// The successor's number.
        generation: u64,
    },
    /// The successor is ready and stands by: somebody has to promote it or to abort.
    Standby {
        /// Its number.
        generation: u64,
        /// Its process.
        pid: Option<u32>,
    },
    /// The rollout does not go on by itself: somebody has to decide.
    Paused {
        /// The successor's number.
        generation: u64,
        /// How the rollout stands.
        rollout: Box<RolloutState>,
    },
    /// The rolling update of a pool does not go on by itself: somebody has to resume it or to abort.
    Held {
        /// The candidate's number.
        generation: u64,
        /// Why.
        reason: String,
    },
    /// It is done; the upgrade that it is about goes on.
    Done {
        /// The successor's number, or that of whoever answers.
        generation: u64,
    },
    /// How it ended.
    Verdict {
        /// All about it.
        upgrade: Box<Upgrade>,
    },
    /// The process that asks is the successor from now on.
    Takeover {
        /// Its number.
        generation: u64,
        /// The incumbent's process.
        incumbent: u32,
    },
    /// Who is alive.
    Generations {
        /// Oldest first.
        generations: Vec<Generation>,
    },
    /// The last upgrades.
    History {
        /// Oldest first, [`HISTORY_MAX`](crate::config::HISTORY_MAX) at most.
        upgrades: Vec<Upgrade>,
    },
    /// The last upgrade in full.
    Explain {
        /// `None` if there has been none, as far as this generation knows.
        upgrade: Option<Box<Upgrade>>,
        /// The one that has no verdict yet.
        #[serde(default)]
        underway: Option<Box<Underway>>,
    },
    /// What is in flight.
    Drain(DrainState),
    /// Who answers fresh connections.
    Verified {
        /// Address by address.
        verification: Verification,
    },
    /// How a drill went.
    Drilled {
        /// All about it.
        drill: Box<Drill>,
    },
    /// How the schema stands, and what came of the wish.
    Schema {
        /// All about it.
        schema: Box<SchemaState>,
    },
    /// The service stops.
    Stopping,
    /// Events follow.
    Events,
    /// It was not done.
    Error(Refusal),
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Refusal {
    /// What kind of reason.
    pub kind: RefusalKind,
    /// In words.
    pub message: String,
}

/// What kind of reason there is not to do a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RefusalKind {
    /// It cannot be done now; nothing has changed.
    Refused,
    /// Whoever asks is neither the service's user nor root.
    Forbidden,
    /// Too many clients are being talked to.
    Busy,
    /// The request cannot be understood, or did not come in time.
    Malformed,
    /// It was begun, and did not come to its end: somebody has to look.
    Failed,
    /// Another generation answers by now: connect again.
    Moved,
    /// Something that a newer build knows.
    #[serde(other)]
    Unknown,
}

/// How the service is, as its incumbent sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// The generation that answers.
    pub generation: u64,
    /// Its process.
    pub pid: u32,
    /// What it is to the service.
    pub role: Role,
    /// How the service is in one word.
    #[serde(default)]
    pub condition: Condition,
    /// Why somebody has to look, if somebody has: until they promote what serves, or upgrade it.
    #[serde(default)]
    pub degraded: Option<String>,
    /// What [`Builder::build_id`](crate::Builder::build_id) was given.
    #[serde(default)]
    pub build: String,
    /// The version of this crate in it.
    #[serde(default)]
    pub crate_version: String,
    /// What it says at `/readyz`.
    #[serde(default)]
    pub health: String,
    /// How long its process has been running since it called `start`, in milliseconds.
    #[serde(default)]
    pub uptime_ms: u64,
    /// Since when it is the incumbent, in milliseconds since 1970.
    #[serde(default)]
    pub incumbent_since_ms: Option<u64>,
    /// The upgrade under way.
    #[serde(default)]
    pub upgrade: Option<Underway>,
    /// The way back, if there is one. `None` from an older build.
    #[serde(default)]
    pub rollback: Option<Rollback>,
    /// Older generations that still drain, oldest first.
    #[serde(default)]
    pub elders: Vec<Elder>,
    /// What is in flight in the generation that answers.
    #[serde(default)]
    pub classes: Vec<ClassWork>,
    /// What it listens on, in the order of the claims.
    #[serde(default)]
    pub sockets: Vec<Socket>,
    /// The last upgrade, as far as this generation knows. A drill is one.
    #[serde(default)]
    pub last: Option<Upgrade>,
    /// What the generation that answers has counted.
    #[serde(default)]
    pub counts: Option<SideState>,
    /// What came of the last verification, be it of a flip, of a rollback or by hand, as far as this generation knows.
    #[serde(default)]
    pub verification: Option<Verification>,
    /// The last drill of the service, as far as this generation knows.
    #[serde(default)]
    pub drill: Option<Drill>,
    /// Its workers, if the one that answers is the supervisor of a pool. Generations are releases then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolState>,
    /// How the schema stands, as the generation that answers has last heard, if it declares one.
    #[serde(default)]
    pub schema: Option<Box<SchemaState>>,
}

/// How a service is, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Condition {
    /// One generation serves, and nothing is under way.
    Healthy,
    /// An upgrade is under way.
    Progressing,
    /// An upgrade is under way and waits, for somebody or for something to pass.
    Paused,
    /// Somebody has to look: [`Status::degraded`] says why.
    Degraded,
    /// Something that a newer build knows, or an older one does not say.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What a generation is to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// It has not been committed.
    Starting,
    /// It answers for the service.
    Incumbent,
    /// The one that an upgrade under way is to.
    Successor,
    /// It still serves, and stops soon.
    LameDuck,
    /// It finishes what it has begun.
    Draining,
    /// It keeps the workers of a pool, and serves nobody itself.
    Supervisor,
    /// Something that a newer build knows.
    #[serde(other)]
    Unknown,
}

/// An upgrade that has no verdict yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Underway {
    /// The successor's number.
    pub generation: u64,
    /// The successor's process, once there is one.
    #[serde(default)]
    pub pid: Option<u32>,
    /// The phase, as docs/OPERATIONS.md lists them; `waiting` for an older generation to leave.
    pub phase: String,
    /// Since it was asked for, in milliseconds.
    #[serde(default)]
    pub for_ms: u64,
    /// How the rollout stands, once it has begun.
    #[serde(default)]
    pub rollout: Option<RolloutState>,
}

/// How a rollout stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RolloutState {
    /// What its shares are shares of.
    pub by: By,
    /// Why it does not go on by itself, if it does not.
    #[serde(default)]
    pub pause: Option<Pause>,
    /// Where it is, in numbers.
    pub explanation: Explanation,
    /// What became of the connections (or requests) of which the candidate has a share, if it knows to take one.
    #[serde(default)]
    pub forwarding: Option<ForwardingState>,
    /// How long the step or the bake takes at least, in milliseconds.
    #[serde(default)]
    pub takes_ms: Option<u64>,
    /// What the candidate has counted, as it last said.
    #[serde(default)]
    pub candidate: Option<SideState>,
    /// What the stable generation has counted since the candidate was ready.
    #[serde(default)]
    pub stable: Option<SideState>,
    /// Whether it is a drill: it goes back by itself, and is never committed.
    #[serde(default)]
    pub is_drill: bool,
}

/// Connections that one generation accepts and another one serves, or such requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ForwardingState {
    /// The share that the candidate is to have.
    pub desired: Share,
    /// The part of the connections or requests that was picked for it since then, from 0 to 1. Few clients, or clients that come
    /// unequally often, keep it from the share.
    #[serde(default)]
    pub assigned: Option<f64>,
    /// The part of them that it has begun.
    #[serde(default)]
    pub begun: Option<f64>,
    /// What became of them in the whole rollout.
    pub total: ForwardedCounts,
    /// The same, listener by listener.
    #[serde(default)]
    pub listeners: BTreeMap<String, ForwardedCounts>,
    /// How many were passed to the candidate, and its application has not accepted yet.
    #[serde(default)]
    pub on_the_way: u64,
}

/// What became of connections, or of requests in a rollout [`By::Request`]: each picked one was forwarded or kept; each
/// forwarded one was begun, taken back or lost, or is on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ForwardedCounts {
    /// Accepted while the candidate had a share.
    pub accepted: u64,
    /// The candidate's by its share.
    pub picked: u64,
    /// Picked, and served by the stable generation all the same, since the candidate had no room.
    pub kept: u64,
    /// Passed to the candidate.
    pub forwarded: u64,
    /// Accepted by the candidate's application. Of requests: answered by it.
    pub begun: u64,
    /// Passed to the candidate, and served by the stable generation after all.
    pub taken_back: u64,
    /// Taken back when nobody accepted any more. Of requests: begun by the candidate and not answered, which is a 502.
    pub lost: u64,
}

/// The way back that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Rollback {
    /// Which one.
    pub kind: RollbackKind,
    /// The generation that it goes back to: itself, or its release.
    #[serde(default)]
    pub generation: Option<u64>,
    /// What that one calls its build.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub build: String,
    /// Why there is none, or it is blocked; empty if there is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// Which way back there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RollbackKind {
    /// An upgrade is under way: the incumbent is warm, and serves again after one flip.
    Instant,
    /// The release before is started again and takes over, by an upgrade of its own.
    Cold,
    /// There would be one, but the schema does not fit it any more.
    Blocked,
    /// None.
    None,
    /// Something that a newer build knows.
    #[serde(other)]
    Unknown,
}

/// An older generation that still drains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Elder {
    /// Its number.
    pub generation: u64,
    /// Its process.
    pub pid: u32,
    /// How long until it is killed for having outstayed its own hard stop, in milliseconds.
    #[serde(default)]
    pub killed_in_ms: u64,
}

/// One generation that is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Generation {
    /// Its number.
    pub generation: u64,
    /// Its process, if there is one yet.
    #[serde(default)]
    pub pid: Option<u32>,
    /// What it is to the service.
    pub role: Role,
    /// The phase of the upgrade to it, for a successor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
}

/// One listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Socket {
    /// The name that the application gave it.
    pub name: String,
    /// `tcp`, `unix` or `udp`.
    pub kind: String,
    /// Where it is bound.
    pub address: String,
}

/// What is in flight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DrainState {
    /// The generation that answers.
    pub generation: u64,
    /// Whether it drains itself.
    pub draining: bool,
    /// Its units of work, by class.
    #[serde(default)]
    pub classes: Vec<ClassWork>,
    /// Older generations that still drain, oldest first. What is in flight there only they know.
    #[serde(default)]
    pub elders: Vec<Elder>,
}

/// One class's work in flight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ClassWork {
    /// The class.
    pub name: String,
    /// Units in flight.
    pub in_flight: usize,
    /// Age of the oldest one, in milliseconds.
    #[serde(default)]
    pub oldest_ms: Option<u64>,
    /// How long they may still take, in milliseconds, if the generation drains.
    #[serde(default)]
    pub left_ms: Option<u64>,
}

/// An upgrade and how it ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Upgrade {
    /// The successor's number.
    pub generation: u64,
    /// The number of the generation that it was to take over from.
    pub from: u64,
    /// How it ended.
    pub verdict: Verdict,
    /// Why it did not end otherwise, or why there was a cold rollback; empty where there is nothing to say.
    #[serde(default)]
    pub reason: String,
    /// For a cold rollback: the generation whose image was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_to: Option<u64>,
    /// How far it came, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The successor's process, if there was one.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Whether the generation that it was to take over from serves on.
    #[serde(default)]
    pub incumbent_serves: bool,
    /// How the successor's process ended, if it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<String>,
    /// The last lines that the successor wrote to its standard error, if it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub last_words: String,
    /// When it was asked for, in milliseconds since 1970.
    #[serde(default)]
    pub asked_at_ms: u64,
    /// From then until the successor was ready, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_after_ms: Option<u64>,
    /// From the incumbent's gates being shut until the successor's were open, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flip_took_us: Option<u64>,
    /// From the rollback's begin, or the successor's end, until the incumbent's gates were open again, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_took_us: Option<u64>,
    /// From the request to the verdict, in milliseconds.
    #[serde(default)]
    pub took_ms: u64,
    /// What decided it, in numbers, for whoever did not die before the verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
    /// What the successor had counted, as it last said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<SideState>,
    /// What the generation before had counted since the successor was ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<SideState>,
    /// What became of the connections of which the successor had a share before the flip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwarding: Option<ForwardingState>,
    /// What came of it as a drill, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill: Option<Box<Drill>>,
}

/// How an upgrade ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// The successor is the incumbent.
    Committed,
    /// It ended before the flip; nothing changed for any client.
    Aborted,
    /// The successor had taken over, and the accept right went back.
    RolledBack,
    /// The accept right went back, and still fresh connections were not answered as they should be.
    Degraded,
    /// It was not begun, though it had its number: it waited for an older generation to leave.
    Refused,
    /// Something that a newer build knows.
    #[serde(other)]
    Unknown,
}

/// Something that happened: a line of an event stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Happened {
    /// The generation that it happened to.
    pub to: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened. See [`Event`], whose names these are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is documented where the events are")]
pub enum What {
    Phase {
        successor: u64,
        phase: String,
        after_ms: u64,
    },
    Stage {
        successor: u64,
        stage: Stage,
        after_ms: u64,
    },
    Paused {
        successor: u64,
        pause: Pause,
        explanation: String,
    },
    Resumed {
        successor: u64,
    },
    Refused {
        reason: String,
    },
    Aborted {
        successor: u64,
        reason: String,
        after_ms: u64,
    },
    RolledBack {
        successor: u64,
        reason: String,
        after_ms: u64,
    },
    Committed {
        successor: u64,
        pid: u32,
        after_ms: u64,
    },
    Serving {
        generation: u64,
    },
    Incumbent {
        generation: u64,
    },
    ElderGone {
        generation: u64,
        pid: u32,
    },
    LameDuck {
        lasts_ms: u64,
    },
    Draining {
        in_flight: usize,
        reason: String,
    },
    Drained {
        stragglers: Vec<String>,
        took_ms: u64,
    },
    Warning {
        message: String,
    },
    /// Something happened to a worker of a pool.
    Worker {
        /// Its number.
        worker: u64,
        /// Its process, if it has one.
        pid: Option<u32>,
        /// The release that it runs.
        release: u64,
        /// `started`, `ready`, `stopping`, `killed`, or `ended`.
        now: String,
        /// Why, or how.
        reason: String,
        /// How many workers are ready by now.
        ready: usize,
        /// How many are wanted.
        wanted: usize,
    },
    /// The rolling update of a pool does not go on by itself.
    Held {
        successor: u64,
        reason: String,
    },
    /// It is being undone.
    Reverting {
        successor: u64,
        reason: String,
    },
    /// The reader was too slow for this many events.
    Missed {
        count: u64,
    },
    /// Something that a newer build knows.
    #[serde(other)]
    Unknown,
}

/// One line: the version, and the fields of what is said.
#[derive(Serialize, Deserialize)]
struct Line<T> {
    #[serde(default = "first")]
    version: u32,
    #[serde(flatten)]
    content: T,
}

/// Who writes a request by hand means the language of the documentation.
fn first() -> u32 {
    VERSION
}

/// As one line, its end included.
pub(super) fn to_line<T: Serialize>(content: &T) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(&Line {
        version: VERSION,
        content,
    })?;
    line.push(b'\n');
    Ok(line)
}

/// What one line says, or in words why it cannot be understood.
pub(super) fn from_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    let Line { version, content } = serde_json::from_slice(line)
        .map_err(|error| format!("this is no line that version {VERSION} has: {error}"))?;
    if version < VERSION_MIN {
        return Err(format!(
            "it speaks version {version}, this build {VERSION_MIN} to {VERSION}"
        ));
    }
    Ok(content)
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn yes() -> bool {
    true
}

/// As a line says when something happened.
pub(crate) fn unix_ms(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, millis)
}

impl Reply {
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::error(RefusalKind::Refused, message)
    }

    /// Whoever has handed over does not answer any more.
    pub(crate) fn moved() -> Self {
        Self::error(RefusalKind::Moved, "another generation answers by now")
    }

    pub(crate) fn error(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self::Error(Refusal {
            kind,
            message: message.into(),
        })
    }
}

impl Rollback {
    pub(crate) fn to(kind: RollbackKind, generation: u64, build: String) -> Self {
        Self {
            kind,
            generation: Some(generation),
            build,
            why: String::new(),
        }
    }

    /// Unless this speaks against it.
    pub(crate) fn unless(self, misfit: Option<String>) -> Self {
        match misfit {
            None => self,
            Some(why) => Self {
                kind: RollbackKind::Blocked,
                why,
                ..self
            },
        }
    }

    pub(crate) fn none(why: String) -> Self {
        Self {
            kind: RollbackKind::None,
            generation: None,
            build: String::new(),
            why,
        }
    }
}

impl Happened {
    pub(crate) fn now(to: u64, what: What) -> Self {
        let at_ms = unix_ms(SystemTime::now());
        Self { to, at_ms, what }
    }
}

impl From<Event> for What {
    fn from(event: Event) -> Self {
        match event {
            Event::Phase {
                successor,
                phase,
                after,
            } => Self::Phase {
                successor,
                phase: phase.to_string(),
                after_ms: millis(after),
            },
            Event::Stage {
                successor,
                stage,
                after,
            } => Self::Stage {
                successor,
                stage,
                after_ms: millis(after),
            },
            Event::Paused {
                successor,
                pause,
                explanation,
            } => Self::Paused {
                successor,
                pause,
                explanation,
            },
            Event::Resumed { successor } => Self::Resumed { successor },
            Event::Refused { reason } => Self::Refused { reason },
            Event::Aborted {
                successor,
                reason,
                after,
            } => Self::Aborted {
                successor,
                reason,
                after_ms: millis(after),
            },
            Event::RolledBack {
                successor,
                reason,
                after,
            } => Self::RolledBack {
                successor,
                reason,
                after_ms: millis(after),
            },
            Event::Committed {
                successor,
                pid,
                after,
            } => Self::Committed {
                successor,
                pid,
                after_ms: millis(after),
            },
            Event::Serving { generation } => Self::Serving { generation },
            Event::Incumbent { generation } => Self::Incumbent { generation },
            Event::ElderGone { generation, pid } => Self::ElderGone { generation, pid },
            Event::LameDuck { lasts } => Self::LameDuck {
                lasts_ms: millis(lasts),
            },
            Event::Draining { in_flight, reason } => Self::Draining { in_flight, reason },
            Event::Drained { stragglers, took } => Self::Drained {
                stragglers,
                took_ms: millis(took),
            },
            Event::Warning { message } => Self::Warning { message },
        }
    }
}

impl Upgrade {
    /// How long the flip took, if there was one.
    pub fn flip_took(&self) -> Option<Duration> {
        self.flip_took_us.map(Duration::from_micros)
    }

    /// How long the rollback took, if there was one.
    pub fn rollback_took(&self) -> Option<Duration> {
        self.rollback_took_us.map(Duration::from_micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Vec<Request> {
        vec![
            Request::Status,
            Request::Upgrade {
                wait: true,
                strategy: Some(Strategy::Canary),
                plan: serde_json::from_str(r#"{"steps":[100,2500]}"#).unwrap(),
                automatic: true,
            },
            Request::Promote {
                wait: false,
                full: true,
            },
            Request::Pause,
            Request::Resume,
            Request::Share {
                share: Share::percent(5),
            },
            Request::Abort {
                reason: "no".into(),
            },
            Request::Rollback {
                reason: "slow".into(),
                cold: true,
                wait: false,
            },
            Request::Takeover,
            Request::Generations,
            Request::History,
            Request::Explain,
            Request::Drain { wait: true },
            Request::Stop { now: false },
            Request::Verify,
            Request::Drill {
                inject: Some(Fault::NeverReady),
                wait: false,
            },
            Request::Scale { workers: 6 },
            Request::Events,
        ]
    }

    #[test]
    fn every_request_is_one_line_and_comes_back() {
        for request in requests() {
            let line = to_line(&request).unwrap();
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert_eq!(from_line::<Request>(&line).unwrap(), request);
        }
    }

    #[test]
    fn a_request_can_be_written_by_hand_and_by_a_newer_client() {
        let by_hand = br#"{"request":"upgrade"}"#;
        let plain = Request::Upgrade {
            wait: false,
            strategy: None,
            plan: None,
            automatic: false,
        };
        assert_eq!(from_line::<Request>(by_hand).unwrap(), plain);
        let back = br#"{"request":"rollback"}"#;
        let instant = Request::Rollback {
            reason: String::new(),
            cold: false,
            wait: true,
        };
        assert_eq!(from_line::<Request>(back).unwrap(), instant);
        let newer = br#"{"version":9,"request":"status","depth":3}"#;
        assert_eq!(from_line::<Request>(newer).unwrap(), Request::Status);
    }

    #[test]
    fn what_cannot_be_understood_is_told_in_words() {
        for line in [
            &b"GET / HTTP/1.1"[..],
            b"",
            b"[]",
            br#"{"version":1}"#,
            br#"{"version":1,"request":"dance"}"#,
            br#"{"version":0,"request":"status"}"#,
        ] {
            let refusal = from_line::<Request>(line).unwrap_err();
            assert!(refusal.contains("version"), "{refusal}");
        }
    }

    #[test]
    fn words_of_a_newer_service_are_unknown_and_no_error() {
        let line = br#"{"version":2,"reply":"generations","generations":[{"generation":4,"role":"oracle","mood":1}]}"#;
        let Reply::Generations { generations } = from_line(line).unwrap() else {
            panic!("no generations");
        };
        assert_eq!(generations[0].role, Role::Unknown);
        let line = br#"{"to":1,"at_ms":2,"event":"eclipse","of":"the sun"}"#;
        assert_eq!(from_line::<Happened>(line).unwrap().what, What::Unknown);
    }
}
