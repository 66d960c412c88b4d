//! Plain options and their documented defaults.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::rollout::Rollout;
use crate::rollout::guard::OwnGuards;

/// How long a successor may take from its launch to being ready: 60 s. It can ask for more.
pub const START_DEADLINE: Duration = Duration::from_secs(60);
/// The most that a successor's extensions of its start deadline can add up to, counted from its launch: 15 min.
pub const START_MAX: Duration = Duration::from_secs(15 * 60);
/// How long each step of a flip may take before it is taken back: 1 s.
pub const FLIP_DEADLINE: Duration = Duration::from_secs(1);
/// How long in-flight work may take to finish once a generation drains: 10 min, unless its class says otherwise.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(10 * 60);
/// When a draining generation leaves whatever is still in flight, counted from the drain's begin: 15 min.
pub const HARD_STOP: Duration = Duration::from_secs(15 * 60);
/// How many generations may be alive at once, the successor included: 3.
pub const GENERATIONS_MAX: usize = 3;
/// How long an upgrade waits for an older generation to leave when too many are alive, before it is refused: 60 s.
pub const CAPACITY_DEADLINE: Duration = Duration::from_secs(60);
/// How long one fresh connection of a verification may wait for its answer before another is tried: 1 s.
pub const VERIFY_ANSWER: Duration = Duration::from_secs(1);
/// How long a verification waits before it tries the addresses that have not passed again: 50 ms.
pub const VERIFY_RETRY: Duration = Duration::from_millis(50);
/// How many fresh connections in a row the right generation must answer at each address: 3.
pub const VERIFY_PASSES: u32 = 3;
/// How many answers in a row from another generation are proof that it accepts: 3.
pub const VERIFY_WRONG_MAX: u32 = 3;
/// At how many addresses it asks at the same time: 32, with as many sockets each as have to pass.
pub const VERIFY_TOGETHER_MAX: usize = 32;
/// How many connections of a verification a generation remembers to answer itself: 4,096.
pub const PROBES_MAX: usize = 4_096;
/// How long it remembers them at most, since they may wait in a queue that nobody empties: 5 min.
pub const PROBE_PATIENCE_MAX: Duration = Duration::from_secs(5 * 60);
/// How many connections there may be at the private endpoints of a candidate: 64. More wait.
pub const PREVIEW_CLIENTS_MAX: usize = 64;
/// How long such a connection may take to reach the listener that it is for: 1 s.
pub const PREVIEW_CONNECT: Duration = Duration::from_secs(1);
/// How many tries an HTTP check of a candidate gets: 3.
pub const CHECK_TRIES: u32 = 3;
/// How long each of them may wait for its answer: 5 s.
pub const CHECK_ANSWER: Duration = Duration::from_secs(5);
/// How long an HTTP check waits before its next try: 500 ms.
pub const CHECK_RETRY: Duration = Duration::from_millis(500);
/// How long a killed process may take to be gone, and a closed channel or an incumbent that is silent after a rollback to
/// be explained by its death: 5 s.
pub const EXIT_DEADLINE: Duration = Duration::from_secs(5);
/// How long an idle HTTP/1 connection is kept open for one more request once its generation is on its way out: 5 s.
pub const IDLE_GRACE: Duration = Duration::from_secs(5);
/// How long a TLS (or other) handshake of an accepted connection may take: 10 s.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long until a gate whose socket the kernel would not watch tries again: 5 ms.
pub const DEAF_RETRY: Duration = Duration::from_millis(5);
/// How long binding or unlinking a Unix socket's path waits for the lock on its directory: 5 s.
pub const PATH_LOCK_DEADLINE: Duration = Duration::from_secs(5);
/// How long the queue of a socket that refuses new connections must have been empty before it is closed, for handshakes
/// under way: 100 ms.
pub const STOP_SETTLE: Duration = Duration::from_millis(100);
/// How long the service manager may take to read a notice, and to answer that it has read all: 5 s.
pub const NOTIFY_DEADLINE: Duration = Duration::from_secs(5);
/// How long a final stop may take in all, for a platform that sends SIGKILL 30 s after SIGTERM: 25 s, after the lame duck.
pub const STOP_DEADLINE: Duration = Duration::from_secs(25);
/// How long a final stop waits for its accept queues to be emptied before it closes them all the same: 5 s.
pub const STOP_EMPTY: Duration = Duration::from_secs(5);
/// How long it is a lame duck behind HAProxy: 8 s, three checks of 2 s that fail (`fall 3`), and their timeout.
pub const LAME_DUCK_HAPROXY: Duration = Duration::from_secs(8);
/// How long it is a lame duck in Kubernetes: 35 s, three probes of 10 s that fail, and the propagation to every node.
/// Raise `terminationGracePeriodSeconds` to it and the stop deadline: 65.
pub const LAME_DUCK_KUBERNETES: Duration = Duration::from_secs(35);
/// How long it is a lame duck behind an AWS application load balancer: 65 s, two checks of 30 s that fail, and their
/// timeout.
pub const LAME_DUCK_ALB: Duration = Duration::from_secs(65);
/// How long a final stop waits for systemctl to say whether the unit is being restarted: 1 s.
pub const JOB_DEADLINE: Duration = Duration::from_secs(1);
/// How long until a queue in which somebody waits is looked at again, if the settle time is shorter: 5 ms.
pub const STOP_LOOK: Duration = Duration::from_millis(5);
/// How often the service manager hears again how long an upgrade may take: 5 s. One that begins to measure anew forgets.
pub const EXTEND_AGAIN: Duration = Duration::from_secs(5);
/// How long until a directory that somebody else has locked is tried again: 5 ms.
pub const PATH_LOCK_RETRY: Duration = Duration::from_millis(5);
/// How long a closing connection reads and discards what its client still sends, so that the last answer reaches it: 1 s.
pub const LINGER_DEADLINE: Duration = Duration::from_secs(1);
/// How often a busy connection on its way out is looked at, in case its last request ended without waking it: 1 s.
pub const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long accepting pauses when the system has no descriptor or memory for another connection: 50 ms.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a server on its way out waits for requests that an HTTP/2 client sent before it saw that: 100 ms.
pub const GOAWAY_SETTLE: Duration = Duration::from_millis(100);
/// How long the end of event streams whose time is up may take to be written before their connection is cut: 100 ms.
pub const STREAM_SETTLE: Duration = Duration::from_millis(100);
/// How many requests of a client that pipelines without end are answered on its connection on the way out: 1,000.
pub const PIPELINED_MAX: u32 = 1_000;
/// How long a client of the control socket may take to say what it wants, and to read each line of the answer: 5 s.
pub const CONTROL_DEADLINE: Duration = Duration::from_secs(5);
/// How long a generation that has handed over stays for a client that has connected to it and not said what it wants: 500
/// ms. One that speaks later is not answered, and asks the next generation.
pub const CONTROL_KEPT: Duration = Duration::from_millis(500);
/// How long [`control::Client`](crate::control::Client) waits for an answer, unless it is told otherwise: 10 s.
pub const CONTROL_ANSWER: Duration = Duration::from_secs(10);
/// How many clients of the control socket are talked to at once; more are told so and sent away: 128.
pub const CONTROL_CLIENTS_MAX: usize = 128;
/// How many of them may wait for something that takes its time, such as a verdict or events: 64. So an answer about the
/// moment, and an abort, can always be had.
pub const CONTROL_WAITING_MAX: usize = 64;
/// The longest request that the control socket takes: 16 KiB.
pub const CONTROL_REQUEST_MAX: usize = 16 * 1024;
/// The longest line that [`control::Client`](crate::control::Client) takes for an answer: 4 MiB.
pub const CONTROL_REPLY_MAX: usize = 4 * 1024 * 1024;
/// How many upgrades the history keeps: 20.
pub const HISTORY_MAX: usize = 20;
/// How long a successor stands by that an operator has asked for (`blue-green`), where the rollout has no limit: 1 h.
pub const STANDBY: Duration = Duration::from_secs(60 * 60);
/// How long a stretch of a generation's answers is what its history is made of, the current one and the one before: 5 min.
pub const OBSERVED_WINDOW: Duration = Duration::from_secs(5 * 60);
/// How many requests there must have been in such a stretch before it replaces the one before: 1,000. So that a quiet night
/// does not erase what the day has shown.
pub const OBSERVED_REQUESTS_MIN: u64 = 1_000;
/// When a client that was turned away because there were too many is to try again: 1 s.
pub const SHED_RETRY_AFTER: Duration = Duration::from_secs(1);
/// How often the incumbent looks at what both sides of a rollout have counted, and at its accept queues: 50 ms.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How long a successor may take to say what it has counted before a look counts as one that could not measure, and each
/// further time as another one: 1 s.
pub const COUNTS_DEADLINE: Duration = Duration::from_secs(1);
/// How often a worker of a pool tells its supervisor what it has counted, if that has changed: 200 ms.
pub const COUNTS_REPORT: Duration = Duration::from_millis(200);
/// How long the next supervisor of a pool may take to show in a trial that it can take over: 10 s.
pub const SUPERVISOR_TRIAL: Duration = Duration::from_secs(10);
/// How long a verification may take that an operator asks for: 5 s.
pub const VERIFY_BY_HAND: Duration = Duration::from_secs(5);
/// How long a verification may take in a drill, which is one of a release that is known to serve: 5 s.
pub const DRILL_VERIFY: Duration = Duration::from_secs(5);
/// How long a drill serves from its candidate before it goes back: 5 s.
pub const DRILL_BAKE: Duration = Duration::from_secs(5);
/// How long the guards of a drill leave its candidate alone, or for [`WARM_UP_UNITS`](crate::rollout::WARM_UP_UNITS): 2 s.
pub const DRILL_WARM_UP: Duration = Duration::from_secs(2);
/// How long a drill whose candidate has a fault may go on before that should have undone it: 60 s.
pub const DRILL_FAULT_BAKE: Duration = Duration::from_secs(60);
/// How long after the flip a candidate dies that is to crash in a drill: 200 ms.
pub const FAULT_CRASH_AFTER: Duration = Duration::from_millis(200);
/// Which of its requests a candidate answers with 500 that is to err in a drill: each 5th.
pub const FAULT_ERROR_EVERY: u64 = 5;
/// How much longer each of its requests takes at a candidate that is to be slow in a drill: 500 ms.
pub const FAULT_SLOW_BY: Duration = Duration::from_millis(500);

/// How many connections that another generation has accepted may wait at a listener to be accepted there: 1,024.
pub const ADOPTED_MAX: usize = 1_024;
/// How many connections the stable generation passes to a candidate in one message: 32, if as many are there at once.
pub const FORWARDED_TOGETHER_MAX: usize = 32;
/// How long a candidate may leave a connection waiting that the stable generation has passed to it, before that serves it
/// and passes on no more: 1 s.
pub const FORWARD_DEADLINE: Duration = Duration::from_secs(1);

/// How long a request that was picked for the candidate may wait until a new connection has reached the candidate's
/// application, before the stable generation answers it itself: 1 s.
pub const CARRIER_DEADLINE: Duration = Duration::from_secs(1);
/// How many connections that carry requests to the candidate each server keeps open while they are idle: 64.
pub const CARRIERS_IDLE_MAX: usize = 64;

/// How long a question to the store of a schema may take: 5 s.
pub const SCHEMA_DEADLINE: Duration = Duration::from_secs(5);
/// How long an instant rollback waits to hear whether the store of a schema has changed: 200 ms.
pub const SCHEMA_GLANCE: Duration = Duration::from_millis(200);
/// How long another transaction on the record of a schema, or another process's step, is waited for: 10 s.
pub const SCHEMA_LOCK_DEADLINE: Duration = Duration::from_secs(10);
/// How long one step of a migration may take: 10 min.
pub const SCHEMA_STEP_DEADLINE: Duration = Duration::from_secs(10 * 60);
/// For how long a generation says to the store of its schema that it is alive, each time: 30 s.
pub const SCHEMA_LEASE: Duration = Duration::from_secs(30);
/// How often it does: every 10 s.
pub const SCHEMA_RENEW: Duration = Duration::from_secs(10);
/// How long whoever needs what a contraction drops must have been gone: 24 h.
pub const SCHEMA_CONTRACT_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// How long until a claim on a SQLite file that somebody else has is tried again: 20 ms.
pub const SCHEMA_CLAIM_RETRY: Duration = Duration::from_millis(20);
/// How often whoever is at a step outside of a transaction asks PostgreSQL whether it still has the claim on it: every 1 s.
pub const SCHEMA_CLAIM_CHECK: Duration = Duration::from_secs(1);

/// How a generation holds the file that it runs, so that a later one can go back to it after the file was replaced: see
/// [`Builder::image`](crate::Builder::image).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Image {
    /// By a descriptor of the file. Safe against a rename over its name, the usual way to replace a release; a file that
    /// is overwritten in place, or truncated, once nobody runs it is noticed and not started.
    #[default]
    Descriptor,
    /// By a sealed copy in memory (memfd_create(2)), made at the start: about 2 ms and 1 MiB for each MiB of the file.
    /// Safe against everything. Where the kernel has no executable memory files (`vm.memfd_noexec=2`) nothing is held.
    Copy,
    /// Not at all: there is no cold rollback to this generation.
    Nothing,
}

/// Everything a generation can be told before it starts.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) start: Duration,
    pub(crate) start_max: Duration,
    pub(crate) flip: Duration,
    pub(crate) forward: Duration,
    pub(crate) rollout: Rollout,
    pub(crate) guards: OwnGuards,
    pub(crate) drain: Duration,
    pub(crate) hard_stop: Duration,
    pub(crate) capacity: Duration,
    pub(crate) exit: Duration,
    pub(crate) lame_duck: Duration,
    /// In all, if it was given.
    pub(crate) stop: Option<Duration>,
    pub(crate) stop_settle: Duration,
    pub(crate) stop_empty: Duration,
    pub(crate) generations_max: usize,
    pub(crate) program: Option<PathBuf>,
    pub(crate) extra_env: Vec<(OsString, OsString)>,
    pub(crate) capture_stderr: bool,
    pub(crate) build: String,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) control: Option<PathBuf>,
    /// Where a candidate has its private endpoints, if it has any, and the ports beside them.
    pub(crate) preview: Option<PathBuf>,
    pub(crate) preview_ports: Vec<(String, u16)>,
    pub(crate) fd_store: Option<bool>,
    pub(crate) image: Image,
    pub(crate) takeover: bool,
    /// This process is a worker of a pool.
    pub(crate) is_worker: bool,
    pub(crate) upgrade_signal: Option<i32>,
    pub(crate) stop_signals: Vec<i32>,
}

impl Config {
    /// How long a final stop may take in all.
    pub(crate) fn stop_deadline(&self) -> Duration {
        self.stop.unwrap_or(self.lame_duck + STOP_DEADLINE)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            start: START_DEADLINE,
            start_max: START_MAX,
            flip: FLIP_DEADLINE,
            forward: FORWARD_DEADLINE,
            rollout: Rollout::default(),
            guards: OwnGuards::default(),
            drain: DRAIN_DEADLINE,
            hard_stop: HARD_STOP,
            capacity: CAPACITY_DEADLINE,
            exit: EXIT_DEADLINE,
            lame_duck: Duration::ZERO,
            stop: None,
            stop_settle: STOP_SETTLE,
            stop_empty: STOP_EMPTY,
            generations_max: GENERATIONS_MAX,
            program: None,
            extra_env: Vec::new(),
            capture_stderr: true,
            build: String::new(),
            pid_file: None,
            control: None,
            preview: None,
            preview_ports: Vec::new(),
            fd_store: None,
            image: Image::default(),
            takeover: false,
            is_worker: false,
            upgrade_signal: Some(libc::SIGHUP),
            stop_signals: vec![libc::SIGTERM, libc::SIGINT],
        }
    }
}
