//! What users hold: a builder, a generation that starts, and the same generation once it serves.

use std::error::Error as StdError;
use std::ffi::{OsStr, OsString};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::ToSocketAddrs;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::check::Check;
use crate::config::{self, Config, Image};
use crate::control;
#[cfg(feature = "http")]
use crate::director::Splitter;
use crate::drain::{Class, Drain, Report};
use crate::driver::Driver;
use crate::driver::manager::{KeptState, ServiceManager, shares_our_unit};
use crate::driver::membership::join_pool;
use crate::driver::operator::Operator;
use crate::driver::shared::{Command, Shared, Status, Upgraded, gone, lock};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::health::Health;
#[cfg(feature = "http")]
use crate::inject::Injected;
use crate::launch::{self, Images, Inherited, Launcher};
use crate::listen::{ListenOptions, Table, TcpListener, UdpSocket, UnixListener};
use crate::observe::Observed;
use crate::rollout::guard::Guard;
use crate::rollout::{Promotion, Rollout};
use crate::schema::{self, Registration, Schema};
use crate::state::{Offer, State};
use crate::sys::descriptors;
use crate::sys::environment::Snapshot;
use crate::sys::signals;
use crate::trigger::Signals;

/// Begins this process's life as a server: fresh, or as the successor of a running generation.
///
/// The same as [`builder`]`().start()`, with every default.
///
/// # Errors
///
/// See [`Builder::start`].
pub async fn start() -> Result<Starting> {
    builder().start().await
}

/// Options of a generation, every one with a default.
pub fn builder() -> Builder {
    Builder {
        config: Config::default(),
        checks: Vec::new(),
    }
}

/// What a generation is told before it starts. Each setter names its default.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `start`"]
pub struct Builder {
    config: Config,
    checks: Vec<Check>,
}

/// Far enough in the future to mean for ever, and near enough to be added to any instant.
const LIMIT_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

macro_rules! durations {
    ($($(#[$doc:meta])* $name:ident => $field:ident;)*) => {
        $($(#[$doc])*
        pub fn $name(mut self, limit: Duration) -> Self {
            self.config.$field = limit.min(LIMIT_MAX);
            self
        })*
    };
}

impl Builder {
    durations! {
        /// How long a successor of this generation may take from its launch to being ready.
        /// Default: [`START_DEADLINE`](crate::config::START_DEADLINE), 60 s.
        start_deadline => start;
        /// The most that a successor's extensions of its start deadline can add up to, from its launch.
        /// Default: [`START_MAX`](crate::config::START_MAX), 15 min.
        start_max => start_max;
        /// How long each half of a flip may take before it is taken back.
        /// Default: [`FLIP_DEADLINE`](crate::config::FLIP_DEADLINE), 1 s.
        flip_deadline => flip;
        /// How long a candidate may leave a connection waiting that this generation has passed to it as its share,
        /// before it counts as stalled and this generation serves it.
        /// Default: [`FORWARD_DEADLINE`](crate::config::FORWARD_DEADLINE), 1 s.
        forward_deadline => forward;
        /// How long in-flight work may take once this generation drains, where its class says nothing else.
        /// Default: [`DRAIN_DEADLINE`](crate::config::DRAIN_DEADLINE), 10 min.
        drain_deadline => drain;
        /// When this generation leaves whatever is still in flight, counted from the begin of its drain.
        /// Default: [`HARD_STOP`](crate::config::HARD_STOP), 15 min.
        hard_stop => hard_stop;
        /// How long an upgrade waits for an older generation to leave when too many are alive.
        /// Default: [`CAPACITY_DEADLINE`](crate::config::CAPACITY_DEADLINE), 60 s.
        capacity_deadline => capacity;
        /// How long a killed successor may take to be gone, and a closed channel to be explained by a death.
        /// Default: [`EXIT_DEADLINE`](crate::config::EXIT_DEADLINE), 5 s.
        exit_deadline => exit;
        /// How long a stop of the service only says so, in [`Health`], before anybody is refused: until every load
        /// balancer has asked and sends its clients elsewhere. A handover has none.
        /// Presets: [`LAME_DUCK_HAPROXY`](crate::config::LAME_DUCK_HAPROXY),
        /// [`LAME_DUCK_KUBERNETES`](crate::config::LAME_DUCK_KUBERNETES),
        /// [`LAME_DUCK_ALB`](crate::config::LAME_DUCK_ALB). Default: zero.
        lame_duck => lame_duck;
        /// How long a stop of the service goes on accepting once it refuses new connections, counted from the last one
        /// that came: as long as the handshake of a client far away may be under way.
        /// Default: [`STOP_SETTLE`](crate::config::STOP_SETTLE), 100 ms.
        stop_settle => stop_settle;
        /// How long a stop of the service waits for its accept queues to be emptied before it closes them all the same.
        /// Default: [`STOP_EMPTY`](crate::config::STOP_EMPTY), 5 s.
        stop_empty_deadline => stop_empty;
    }

    /// How long a stop of the service may take in all, lame duck included: what is in flight then is cut, whatever its
    /// class may take. Keep it below the platform's time until SIGKILL.
    ///
    /// Default: [`STOP_DEADLINE`](crate::config::STOP_DEADLINE), 25 s, after the [lame duck](Self::lame_duck).
    pub fn stop_deadline(mut self, limit: Duration) -> Self {
        self.config.stop = Some(limit.min(LIMIT_MAX));
        self
    }

    /// How a successor takes over: at once, blue/green, or as a canary. [`bake`](Self::bake) and
    /// [`standby`](Self::standby) change it, so they come after it.
    ///
    /// Default: [`Rollout::immediate`].
    pub fn rollout(mut self, plan: Rollout) -> Self {
        self.config.rollout = plan;
        self
    }

    /// A guard of your own, which watches each rollout that this generation is the stable side of, whatever its plan says of
    /// guards. `make` is called as soon as a candidate is ready, on the task that drives this generation: neither it nor
    /// the guard's looks, which come every [`LOOK_INTERVAL`](crate::config::LOOK_INTERVAL), may block.
    ///
    /// Default: none. May be called more than once.
    ///
    /// ```
    /// use handover::rollout::guard::{Finding, Guard, Reading, Sides};
    ///
    /// #[derive(Debug)]
    /// struct NoErrorAtAll;
    ///
    /// impl Guard for NoErrorAtAll {
    ///     fn name(&self) -> &str {
    ///         "no error at all"
    ///     }
    ///
    ///     fn look(&mut self, sides: &Sides) -> Reading {
    ///         let errors = sides.candidate.errors;
    ///         Reading {
    ///             guard: self.name().to_owned(),
    ///             finding: if errors > 0 { Finding::Failed } else { Finding::Fine },
    ///             text: format!("{errors} errors"),
    ///             figures: Vec::new(),
    ///         }
    ///     }
    /// }
    ///
    /// let builder = handover::builder().guard(|| NoErrorAtAll);
    /// ```
    pub fn guard<G: Guard + 'static>(
        mut self,
        make: impl Fn() -> G + Send + Sync + 'static,
    ) -> Self {
        self.config.guards.add(make);
        self
    }

    /// How long this generation stays warm after a flip, ready to take over again at once. Zero commits with the flip.
    ///
    /// Default: as the [rollout](Self::rollout) says; [`BAKE_IMMEDIATE`](crate::rollout::BAKE_IMMEDIATE), 10 s, if it is
    /// immediate.
    pub fn bake(mut self, limit: Duration) -> Self {
        self.config.rollout = self.config.rollout.bake(limit.min(LIMIT_MAX));
        self
    }

    /// Holds a successor that is ready in standby, gates shut, until [`Serving::flip`]; gives it up after `limit`.
    ///
    /// Default: it takes over as soon as it is ready.
    pub fn standby(mut self, limit: Duration) -> Self {
        let limit = limit.min(LIMIT_MAX);
        let plan = self.config.rollout.promotion(Promotion::ByHand);
        self.config.rollout = plan.promotion_deadline(limit);
        self
    }

    /// How many generations may be alive at once, the successor and those that drain included; at least 2.
    ///
    /// Default: [`GENERATIONS_MAX`](crate::config::GENERATIONS_MAX), 3.
    pub fn generations_max(mut self, count: usize) -> Self {
        self.config.generations_max = count;
        self
    }

    /// The program that an upgrade starts.
    ///
    /// Default: this process's `argv[0]` as it was given, so that a path through a `current` symlink leads to the new
    /// release; searched in the `PATH` of the start if it has no slash.
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.program = Some(path.into());
        self
    }

    /// Adds a variable to a successor's environment, or replaces one.
    ///
    /// Default: the environment of this process as it was at its start, without the variables that a service manager
    /// gave to this process only.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.config.extra_env.push((name.into(), value.into()));
        self
    }

    /// Whether a successor's standard error is kept for the verdict until it is committed. It reaches this process's
    /// standard error either way. Default: yes.
    pub fn capture_stderr(mut self, capture: bool) -> Self {
        self.config.capture_stderr = capture;
        self
    }

    /// A name for this build, such as a version or commit, for the logs of both ends. Default: empty.
    pub fn build_id(mut self, build: impl Into<String>) -> Self {
        self.config.build = build.into();
        self
    }

    /// A file that always holds the process number of the incumbent. Written by temp file and rename. Default: none.
    pub fn pid_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.pid_file = Some(path.into());
        self
    }

    /// A Unix socket by which operators ask the service how it is, and upgrade and stop it: see [`control`]
    /// and the program `handover`. The incumbent answers, whichever generation that is.
    ///
    /// The path is created with mode 0600 and handed over with the other sockets; a path that begins with `@` is an
    /// abstract name, which has no mode. Whoever connects must be the user of this process, or root. Default: none.
    pub fn control(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.control = Some(path.into());
        self
    }

    /// Where this generation, as a successor that is ready, can be reached before it has any clients: by the Unix socket
    /// `preview-GENERATION-LISTENER.sock` in this directory for each of its TCP and Unix listeners, with mode 0600, and
    /// for the user of this process and root alone. What is neither letter, digit, dot, hyphen nor underscore in the name
    /// of a listener is an underscore there.
    ///
    /// Whoever connects comes to `accept` of that listener; with the first of them [`Starting::ready`] returns, gates
    /// still shut. TCP listeners see such a client come from the loopback address. The sockets go at the flip, and
    /// when the successor is given up. One that cannot be bound is an error of [`Starting::ready`]. Default: none.
    pub fn preview(mut self, directory: impl Into<PathBuf>) -> Self {
        self.config.preview = Some(directory.into());
        self
    }

    /// Beside the [private socket](Self::preview) of this TCP listener, a port on 127.0.0.1, 0 for any: **every user of
    /// the machine** can connect to it. May be called once for each listener. Default: none.
    pub fn preview_port(mut self, listener: impl Into<String>, port: u16) -> Self {
        self.config.preview_ports.push((listener.into(), port));
        self
    }

    /// Adds a check that a successor of this generation has to pass once it is ready, before it has any clients. They run
    /// in this process, one after another, and have [`Rollout::checks_deadline`] together; one that fails aborts the
    /// upgrade. The successor needs [private endpoints](Self::preview), if the checks are to reach it.
    ///
    /// Default: none.
    pub fn pre_flip(mut self, check: Check) -> Self {
        self.checks.push(check);
        self
    }

    /// Whether systemd is to keep the sockets for a start after a crash or a restart of this service
    /// (`FileDescriptorStoreMax=`, systemd.service(5)): connections wait in their queues until then.
    ///
    /// Default: if the unit has room for some, as far as systemd says so: from version 254 on, in `FDSTORE`.
    pub fn fd_store(mut self, keep: bool) -> Self {
        self.config.fd_store = Some(keep);
        self
    }

    /// How this generation holds the file that it runs, so that the release after it can be rolled back to it when it is
    /// gone and the file was replaced: `handover rollback --cold`, [`control::Request::Rollback`].
    ///
    /// The next generation gets it, with the arguments, directory and environment of this one, and holds it until it has
    /// a successor of another release itself. It costs one descriptor here and one there. What is loaded by name is not
    /// held: shared libraries, and the script that an interpreter runs. Default: [`Image::Descriptor`].
    pub fn image(mut self, image: Image) -> Self {
        self.config.image = image;
        self
    }

    /// Whether this process takes over from the generation that answers at the path of its [control socket](Self::control),
    /// if one does and did not start it: the way for a person, a container or another unit to hand over by starting a
    /// process. Where nobody answers it starts fresh. Default: no.
    pub fn takeover(mut self, take_over: bool) -> Self {
        self.config.takeover = take_over;
        self
    }

    /// The signal that asks for an upgrade, or none. Default: SIGHUP.
    pub fn upgrade_signal(mut self, number: Option<i32>) -> Self {
        self.config.upgrade_signal = number;
        self
    }

    /// The signals that stop this generation; a second one stops it at once. Default: SIGTERM and SIGINT.
    pub fn stop_signals(mut self, numbers: impl IntoIterator<Item = i32>) -> Self {
        self.config.stop_signals = numbers.into_iter().collect();
        self
    }

    /// Begins this process's life as a server.
    ///
    /// As a successor it returns when the incumbent's sockets have arrived. The incumbent serves meanwhile, and until
    /// [`Starting::ready`].
    ///
    /// Call it once, early in `main`: it records arguments, directory and environment for later upgrades, and removes
    /// from the environment what is meant for this process alone (`LISTEN_*`, `NOTIFY_SOCKET`, `WATCHDOG_*` and this
    /// crate's own variable), so that no helper process inherits it. While it removes them, C code in another thread
    /// that reads the environment may miss a variable.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Protocol`] if the incumbent cannot be understood, [`ErrorKind::Aborted`] if it has given this
    /// successor up, [`ErrorKind::Refused`] if the generation that it is to [take over](Self::takeover) from would not,
    /// [`ErrorKind::Listen`] if the [control socket](Self::control) cannot be had, [`ErrorKind::Launch`] if
    /// this process was started as a successor but got no channel, and
    /// [`ErrorKind::Io`] if a signal cannot be listened to. Leave `main` with it: the incumbent serves on and reports
    /// it to whoever asked for the upgrade.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future of a successor makes the incumbent give it up.
    pub async fn start(self) -> Result<Starting> {
        let Self { mut config, checks } = self;
        let snapshot = Snapshot::take();
        join_pool(&mut config, snapshot);
        let mut own_signals = Signals::default();
        let listening = own_signals.listen_upgrade(config.upgrade_signal);
        listening.map_err(|error| {
            Error::new(ErrorKind::Io, "listening for the upgrade signal").because(error)
        })?;
        let blocked: Vec<i32> = config.upgrade_signal.into_iter().collect();
        signals::unblock(&blocked).map_err(|error| {
            Error::new(ErrorKind::Io, "unblocking the upgrade signal").because(error)
        })?;
        let (channel, is_launched) = match snapshot.channel.as_deref().map(launch::inherited) {
            None | Some(Inherited::NotForUs) if config.takeover => {
                (take_over(config.control.as_deref()).await?, false)
            }
            None | Some(Inherited::NotForUs) => (None, false),
            Some(Inherited::Channel {
                channel,
                is_launched,
            }) => (Some(channel), is_launched),
            Some(Inherited::Missing(reason)) => {
                let doing = "taking over from the incumbent that started this process";
                return Err(Error::new(ErrorKind::Launch, doing).because(reason));
            }
        };

        let (commands, inbox) = mpsc::unbounded_channel();
        let drain = Drain::new(config.drain, config.hard_stop);
        let shared = Shared::new(Table::default(), drain, commands);
        let launcher = Launcher::new(snapshot, &config);
        *lock(&shared.images) = Images::hold(snapshot, &config);
        let (path, operator) = (
            config.control.clone(),
            Operator::new(shared.clone(), &config),
        );
        // One of the incumbent's unit becomes its main process by the incumbent's word, whoever has started it.
        let is_main = channel.as_ref().is_none_or(|channel| {
            let incumbent = descriptors::peer_pid(channel.as_fd());
            !is_launched && !incumbent.is_ok_and(shares_our_unit)
        });
        let manager = ServiceManager::of(snapshot, &config, is_main);
        let driver = Driver::new(
            shared.clone(),
            config,
            launcher,
            inbox,
            own_signals,
            manager,
        )
        .with_checks(checks);
        // It is moved to a task of its own later, and is not small.
        let mut driver = Box::new(driver);
        match channel {
            Some(channel) => driver.succeed(channel).await?,
            None => driver.take_activation(snapshot),
        }
        let mut starting = Starting {
            shared,
            driver: Some(Mutex::new(driver)),
            control: None,
        };
        if let Some(path) = path {
            let socket = starting.shared.table.control(&path).await?;
            starting.control = Some((socket, operator));
        }
        Ok(starting)
    }
}

/// A generation that claims its sockets and warms up. Nothing that reaches its sockets is accepted yet.
///
/// Dropping it before [`ready`](Self::ready) gives the handover up; the incumbent serves on.
#[derive(Debug)]
#[must_use = "a generation that is not made ready never serves"]
pub struct Starting {
    shared: Arc<Shared>,
    /// None once it has a task of its own.
    driver: Option<Mutex<Box<Driver>>>,
    control: Option<(std::os::unix::net::UnixListener, Operator)>,
}

impl Starting {
    /// A TCP listener by name: inherited from the incumbent if it has one of this name and address, bound otherwise.
    ///
    /// An address with port 0 inherits by name and IP address alone. If the address has changed, the new one is bound
    /// now, and the incumbent serves and closes the old socket once the upgrade is committed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Listen`], with the name and the address.
    pub async fn listen_tcp(
        &mut self,
        name: &str,
        address: impl ToSocketAddrs,
    ) -> Result<TcpListener> {
        self.listen_tcp_with(name, address, &ListenOptions::default())
            .await
    }

    /// [`listen_tcp`](Self::listen_tcp) with options; those that the kernel can change on a bound socket are applied to
    /// an inherited one as well.
    ///
    /// # Errors
    ///
    /// As [`listen_tcp`](Self::listen_tcp).
    pub async fn listen_tcp_with(
        &mut self,
        name: &str,
        address: impl ToSocketAddrs,
        options: &ListenOptions,
    ) -> Result<TcpListener> {
        self.shared
            .table
            .tcp(name, &resolve(name, address).await?, options)
    }

    /// A listener on a Unix socket by name; a path that begins with `@` is an abstract name.
    ///
    /// A stale path, one whose socket nobody listens on any more, is replaced. A live one is an error.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Listen`], with the name and the path.
    pub async fn listen_unix(
        &mut self,
        name: &str,
        path: impl AsRef<Path>,
    ) -> Result<UnixListener> {
        self.listen_unix_with(name, path, &ListenOptions::default())
            .await
    }

    /// [`listen_unix`](Self::listen_unix) with options, such as the path's permissions.
    ///
    /// # Errors
    ///
    /// As [`listen_unix`](Self::listen_unix).
    pub async fn listen_unix_with(
        &mut self,
        name: &str,
        path: impl AsRef<Path>,
        options: &ListenOptions,
    ) -> Result<UnixListener> {
        self.shared.table.unix(name, path.as_ref(), options).await
    }

    /// A UDP socket by name. It receives while this generation serves, and sends at any time.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Listen`], with the name and the address.
    pub async fn bind_udp(&mut self, name: &str, address: impl ToSocketAddrs) -> Result<UdpSocket> {
        let addresses = resolve(name, address).await?;
        self.shared
            .table
            .udp(name, &addresses, &ListenOptions::default())
    }

    /// A TCP listener by name for a server that has its own accept loop: a plain non-blocking socket without a gate.
    ///
    /// Begin to accept after [`ready`](Self::ready), and stop at [`Serving::draining`]; between flip and commit both
    /// generations accept. Never clear its `O_NONBLOCK`: the other generation shares it. A stop of the service refuses
    /// new connections on it before it drains, and a shared port ([`ListenOptions::reuse_port`]) cannot be refused.
    ///
    /// # Errors
    ///
    /// As [`listen_tcp`](Self::listen_tcp).
    pub async fn std_tcp(
        &mut self,
        name: &str,
        address: impl ToSocketAddrs,
        options: &ListenOptions,
    ) -> Result<std::net::TcpListener> {
        self.shared
            .table
            .std_tcp(name, &resolve(name, address).await?, options)
    }

    /// [`std_tcp`](Self::std_tcp) for a Unix socket.
    ///
    /// # Errors
    ///
    /// As [`listen_unix`](Self::listen_unix).
    pub async fn std_unix(
        &mut self,
        name: &str,
        path: impl AsRef<Path>,
        options: &ListenOptions,
    ) -> Result<std::os::unix::net::UnixListener> {
        self.shared
            .table
            .std_unix(name, path.as_ref(), options)
            .await
    }

    /// [`std_tcp`](Self::std_tcp) for UDP.
    ///
    /// # Errors
    ///
    /// As [`bind_udp`](Self::bind_udp).
    pub async fn std_udp(
        &mut self,
        name: &str,
        address: impl ToSocketAddrs,
        options: &ListenOptions,
    ) -> Result<std::net::UdpSocket> {
        self.shared
            .table
            .std_udp(name, &resolve(name, address).await?, options)
    }

    /// What the incumbent's [`Serving::on_offer`] hooks have passed. Empty in a fresh generation.
    pub fn state(&mut self) -> MutexGuard<'_, State> {
        lock(&self.shared.offered)
    }

    /// A variable that the service manager meant for this process alone, such as `NOTIFY_SOCKET`.
    ///
    /// [`Builder::start`] has removed these from the environment, so that helpers and successors do not inherit them.
    pub fn service_manager(&self, name: &str) -> Option<&'static OsStr> {
        Snapshot::take().service_manager(name)
    }

    /// Asks the incumbent to wait this long from now before it gives this successor up.
    ///
    /// It never waits for less than it would have before. The sum is limited by the incumbent's [`Builder::start_max`]. A fresh generation has nobody to ask.
    pub fn extend(&self, by: Duration) {
        if let Some(driver) = &self.driver {
            let mut driver = driver.lock().unwrap_or_else(PoisonError::into_inner);
            driver.extend(by);
        }
    }

    /// How this generation answers when it is asked whether it is alive and ready; the same as [`Serving::health`].
    ///
    /// Until [`ready`](Self::ready) it says `starting`, to those who can ask: on a socket of the application's own.
    pub fn health(&self) -> Health {
        self.shared.health.clone()
    }

    /// What this generation has answered; the same as [`Serving::observed`].
    pub fn observed(&self) -> &Observed {
        &self.shared.observed
    }

    /// The work in flight; the same as [`Serving::drain`].
    pub fn drain(&self) -> &Drain {
        &self.shared.drain
    }

    /// What happens to this generation from now on; the same as [`Serving::events`], early enough to miss nothing.
    pub fn events(&self) -> Events {
        Events(self.shared.events.subscribe())
    }

    /// Adds a hook for when this generation becomes the active one: its gates open, at a fresh start, a flip or a
    /// rollback. For what must run in one generation only, such as a scheduler or the consumer of a queue.
    ///
    /// It runs on a thread where it may block. It and [`on_deactivate`](Self::on_deactivate) alternate, beginning with
    /// this one. After a rollback it waits until the other generation has stopped or ended. An error or a panic is a
    /// warning: this generation serves.
    pub fn on_activate<F>(&self, hook: F)
    where
        F: Fn() -> Result<(), Box<dyn StdError + Send + Sync>> + Send + Sync + 'static,
    {
        self.shared.activity.on_activate(Arc::new(hook));
    }

    /// Adds a hook for when this generation ceases to be the active one: at a flip, at a rollback, and when it leaves.
    ///
    /// The other generation opens its gates only once this has returned, and connections wait in the kernel's queue
    /// meanwhile: be quick. At a flip, an error, a panic or more time than the [flip
    /// deadline](Builder::flip_deadline) aborts the upgrade, and [`on_activate`](Self::on_activate) runs again; at a
    /// rollback, a successor that takes so long is killed.
    pub fn on_deactivate<F>(&self, hook: F)
    where
        F: Fn() -> Result<(), Box<dyn StdError + Send + Sync>> + Send + Sync + 'static,
    {
        self.shared.activity.on_deactivate(Arc::new(hook));
    }

    /// Declares the schema of this release: [expands](Schema::expand) the store as far as this release can, checks that
    /// this release and what is alive beside it fit, and enters this generation in the record until nothing of it is left.
    /// Call it before [`ready`](Self::ready), once, and before anything that needs the schema. The deadline of the start
    /// is [extended](Self::extend) by what the steps may take, as far as the incumbent's [`Builder::start_max`] goes: 15 min, for
    /// all steps of a start together, unless it says otherwise. A contraction that was begun and not finished
    /// is finished, if that can be done; if not, there is a [warning](crate::event::Event::Warning), and the start goes on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Schema`] if this release does not fit, with the reason, if a step fails, or if the store cannot be asked:
    /// leave `main` with it. A release that does not fit has changed nothing.
    ///
    /// # Cancel safety
    ///
    /// Steps that were done stay done. Call it again.
    pub async fn schema(&mut self, schema: Schema) -> Result<Registration> {
        let doing = "declaring the schema";
        if self.shared.schema.registration().is_some() {
            let reason = "it has been declared already";
            return Err(Error::new(ErrorKind::Schema, doing).because(reason));
        }
        let number = self.shared.status.borrow().generation;
        let declared = schema.declared();
        let others = self.others();
        // What comes after the steps has its own time.
        let start = self.start_deadline();
        let extend = |by: Duration| self.extend(by.saturating_add(start));
        let entered = Registration::enter(schema, number, others, extend).await;
        let is_successor = self.is_successor();
        let registration = entered.map_err(|error| match is_successor {
            true => error.while_incumbent_serves(),
            false => error,
        })?;
        let finished = registration.finish_contraction(extend).await;
        if let Err(error) = finished {
            self.shared
                .warn(format!("{error:?}; this generation goes on without"));
        }
        self.shared.schema.set(&self.shared, &registration);
        lock(&self.shared.images).declare(declared);
        Ok(registration)
    }

    fn is_successor(&self) -> bool {
        self.driver().is_some_and(|driver| driver.has_incumbent())
    }

    fn others(&self) -> Vec<(u64, schema::State)> {
        let driver = self.driver();
        driver.map_or_else(Vec::new, |driver| driver.others())
    }

    fn driver(&self) -> Option<MutexGuard<'_, Box<Driver>>> {
        let driver = self.driver.as_ref()?;
        Some(driver.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn start_deadline(&self) -> Duration {
        let driver = self.driver();
        driver.map_or(config::START_DEADLINE, |driver| driver.start_deadline())
    }

    /// Warmed up: takes over from the incumbent, or begins to serve in a fresh generation.
    ///
    /// Returns when this generation has the accept right: its gates are open. As the candidate of a canary it returns with
    /// the first connection that the stable generation passes to it, gates still shut. From now on SIGTERM and SIGINT stop it
    /// gracefully, and, once it is committed, SIGHUP upgrades it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Aborted`] if the incumbent has given this successor up or its gates could not be opened; leave
    /// `main` with it. [`ErrorKind::Listen`] in a fresh generation whose sockets cannot be watched. [`ErrorKind::Schema`] if
    /// a [schema](Self::schema) was declared that does not fit any more, or the store cannot be asked.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the handover up, like dropping a [`Starting`].
    pub async fn ready(mut self) -> Result<Serving> {
        self.shared.injected.until_ready().await;
        if let Some(schema) = self.shared.schema.registration() {
            // It may have taken its time to warm up.
            schema.check_own().await?;
        }
        if let Some(driver) = &mut self.driver {
            let driver = driver.get_mut().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = driver.ready().await {
                if let Some(schema) = self.shared.schema.registration() {
                    // Nobody is told twice: whoever looks finds that the process is gone.
                    let _ = schema.leave().await;
                }
                return Err(error);
            }
        }
        if let Some(driver) = self.driver.take() {
            let driver = driver.into_inner().unwrap_or_else(PoisonError::into_inner);
            tokio::spawn(driver.run());
        }
        if let Some((socket, operator)) = self.control.take() {
            tokio::spawn(control::serve(socket, operator));
        }
        Ok(Serving {
            shared: Arc::clone(&self.shared),
        })
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(driver) = self.driver.take() {
            let mut driver = driver.into_inner().unwrap_or_else(PoisonError::into_inner);
            driver.abandon();
        }
    }
}

/// A generation that serves, from [`Starting::ready`] to its end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Serving {
    shared: Arc<Shared>,
}

impl Serving {
    /// This generation's number: 1 for a fresh start, then counting up with every successor that was launched.
    pub fn number(&self) -> u64 {
        self.shared.status.borrow().generation
    }

    /// This generation as it stands: its role, the upgrade under way, and the older ones that still drain.
    pub fn status(&self) -> Status {
        self.shared.status.borrow().clone()
    }

    /// What the incumbent's [`on_flip`](Self::on_flip) hooks have passed. Empty in a fresh generation.
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.flipped)
    }

    /// Adds a hook that contributes state when a successor is launched, for what may be a little old when the successor
    /// serves: TLS ticket keys, caches. The successor finds it in [`Starting::state`].
    ///
    /// It runs on a thread where it may block, while this generation serves. An error or a panic aborts the upgrade.
    pub fn on_offer<F>(&self, hook: F)
    where
        F: Fn(&mut Offer) -> Result<(), Box<dyn StdError + Send + Sync>> + Send + Sync + 'static,
    {
        self.shared.at_offer.add(Arc::new(hook));
    }

    /// Adds a hook that contributes state at the flip, when this generation has stopped accepting: counters, session
    /// tables. The successor finds it in [`Serving::state`].
    ///
    /// Connections wait in the kernel's queue while it runs, and after the flip deadline the upgrade is aborted: be
    /// quick. An error or a panic aborts it as well.
    pub fn on_flip<F>(&self, hook: F)
    where
        F: Fn(&mut Offer) -> Result<(), Box<dyn StdError + Send + Sync>> + Send + Sync + 'static,
    {
        self.shared.at_flip.add(Arc::new(hook));
    }

    /// Adds a hook for when this generation becomes the active one: its gates open, at a fresh start, a flip or a
    /// rollback. For what must run in one generation only, such as a scheduler or the consumer of a queue.
    ///
    /// It runs on a thread where it may block. It and [`on_deactivate`](Self::on_deactivate) alternate, beginning with
    /// this one. After a rollback it waits until the other generation has stopped or ended. An error or a panic is a
    /// warning: this generation serves. It runs at once if this generation is active already.
    pub fn on_activate<F>(&self, hook: F)
    where
        F: Fn() -> Result<(), Box<dyn StdError + Send + Sync>> + Send + Sync + 'static,
    {
        self.shared.activity.on_activate(Arc::new(hook));
    }

    /// Adds a hook for when this generation ceases to be the active one: at a flip, at a rollback, and when it leaves.
    ///
    /// The other generation opens its gates only once this has returned, and connections wait in the kernel's queue
    /// meanwhile: be quick. At a flip, an error, a panic or more time than the [flip
    /// deadline](Builder::flip_deadline) aborts the upgrade, and [`on_activate`](Self::on_activate) runs again; at a
    /// rollback, a successor that takes so long is killed.
    pub fn on_deactivate<F>(&self, hook: F)
    where
        F: Fn() -> Result<(), Box<dyn StdError + Send + Sync>> + Send + Sync + 'static,
    {
        self.shared.activity.on_deactivate(Arc::new(hook));
    }

    /// Hands over to a successor, as SIGHUP does, and waits for the verdict.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] if an upgrade is under way or too many generations are alive, [`ErrorKind::Aborted`] if the
    /// successor did not get as far as the flip, [`ErrorKind::RolledBack`] if it had taken over. The error has the
    /// successor's exit status and last words, and says that this generation serves on.
    ///
    /// # Cancel safety
    ///
    /// The upgrade goes on without the one who asked; its verdict is an [`Event`] as well.
    pub async fn upgrade(&self) -> Result<Upgraded> {
        self.upgrade_by(None).await
    }

    /// As [`upgrade`](Self::upgrade), by another plan than [`Builder::rollout`] has.
    ///
    /// # Errors
    ///
    /// As [`upgrade`](Self::upgrade); [`ErrorKind::Refused`] also after too many rollouts have failed, see
    /// [`Rollout::failures_max`].
    ///
    /// # Cancel safety
    ///
    /// The upgrade goes on.
    pub async fn upgrade_with(&self, plan: Rollout) -> Result<Upgraded> {
        self.upgrade_by(Some(Box::new(plan))).await
    }

    async fn upgrade_by(&self, plan: Option<Box<Rollout>>) -> Result<Upgraded> {
        let (reply, verdict) = oneshot::channel();
        self.shared.command(Command::Upgrade { plan, reply })?;
        verdict.await.map_err(|_| gone())?
    }

    /// Lets a successor that is held in [standby](Builder::standby) take over. Does nothing if there is none.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Stopping`] if this generation's runtime is shutting down.
    pub fn flip(&self) -> Result<()> {
        self.shared.command(Command::Flip)
    }

    /// Undoes the upgrade that is under way, if there is one: an abort before the flip, a rollback after it.
    ///
    /// After the flip the successor finishes what it has begun and leaves; this generation serves again at once. The
    /// verdict goes to whoever asked for the upgrade.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Stopping`] if this generation's runtime is shutting down.
    pub fn rollback(&self, reason: impl Into<String>) -> Result<()> {
        self.shared.command(Command::Rollback {
            reason: reason.into(),
        })
    }

    /// Has systemd keep some bytes for the next fresh start of this service, after a crash or a restart, in the place of
    /// those it has kept under this name. They are found in [`Starting::state`] then. A successor does not get them: it
    /// gets what the hooks pass.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if there is no systemd that listens to this generation, or no room in its store
    /// (`FileDescriptorStoreMax=`, systemd.service(5)). [`ErrorKind::Stopping`] if this generation's runtime is shutting
    /// down.
    ///
    /// # Cancel safety
    ///
    /// They may be kept or not when the future is dropped.
    pub async fn keep_state(
        &self,
        name: impl Into<String>,
        bytes: impl Into<Vec<u8>>,
    ) -> Result<()> {
        let (reply, kept) = oneshot::channel();
        self.shared.command(Command::KeepState(KeptState {
            name: name.into(),
            bytes: bytes.into(),
            reply,
        }))?;
        kept.await.map_err(|_| gone())?
    }

    /// Stops this generation, as SIGTERM does, and the service with it: a successor that has not been committed is told
    /// to stop as well. A second call does not wait for work in flight.
    ///
    /// In this order: [lame duck](Builder::lame_duck), new connections refused while those that wait are accepted, drain,
    /// all of it within [`Builder::stop_deadline`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Stopping`] if this generation's runtime is shutting down.
    pub fn stop(&self) -> Result<()> {
        self.shared.command(Command::Stop)
    }

    /// How this generation answers when it is asked whether it is alive and ready. It stays ready over a handover.
    pub fn health(&self) -> Health {
        self.shared.health.clone()
    }

    /// What this generation does wrong, as the candidate of a drill.
    #[cfg(feature = "http")]
    pub(crate) fn injected(&self) -> &Injected {
        &self.shared.injected
    }

    /// What this generation has answered, for the guards of a rollout. [`http::serve`](crate::http::serve) counts into
    /// it; a service that is not HTTP does so itself, see [`observe`](crate::observe).
    pub fn observed(&self) -> &Observed {
        &self.shared.observed
    }

    /// Which of its requests another generation is to answer.
    #[cfg(feature = "http")]
    pub(crate) fn splitter(&self) -> &Splitter {
        &self.shared.splitter
    }

    /// What this generation has to do with its [schema](Starting::schema), if it has declared one.
    pub fn schema(&self) -> Option<Registration> {
        self.shared.schema.registration().cloned()
    }

    /// What happens to this generation from now on.
    pub fn events(&self) -> Events {
        Events(self.shared.events.subscribe())
    }

    /// The work in flight, for [progress](Drain::progress) and [signals](Drain::signal).
    pub fn drain(&self) -> &Drain {
        &self.shared.drain
    }

    /// A class of work that is waited for before this generation leaves, with the generation's drain deadline.
    pub fn class(&self, name: &'static str) -> Class {
        self.shared.drain.class(name)
    }

    /// A class of work whose units are cut off `deadline` after the drain began.
    pub fn class_with_deadline(&self, name: &'static str, deadline: Duration) -> Class {
        self.shared.drain.class_with_deadline(name, deadline)
    }

    /// Resolves when this generation has handed over, or stops: stop accepting, finish what is in flight.
    ///
    /// For `axum::serve(..).with_graceful_shutdown(generation.draining())` and loops of your own.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        let signal = self.shared.drain.signal();
        async move { signal.draining().await }
    }

    /// Waits until this generation drains and nothing is left in flight, or its time is up. Leave `main` then.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn drained(&self) -> Report {
        self.shared.drain.drained().await
    }
}

/// A reader of one generation's [`Event`]s.
///
/// The last one is [`Event::Drained`]; a process that leaves `main` before a task has read so far loses the rest. The log
/// has them all.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// The next event; a reader that falls 64 events behind misses the oldest. `None` when the generation is gone.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match self.0.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// The channel to whoever serves at the path of the control socket, if anybody does.
async fn take_over(path: Option<&Path>) -> Result<Option<OwnedFd>> {
    let Some(path) = path else { return Ok(None) };
    match control::Client::new(path).takeover().await {
        Ok(takeover) => Ok(Some(takeover.into_channel())),
        Err(error) if nobody_answers(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A path that is not there, or whose listener is gone (unix(7)).
fn nobody_answers(error: &Error) -> bool {
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| {
        matches!(
            cause.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
        )
    })
}

async fn resolve(name: &str, address: impl ToSocketAddrs) -> Result<Vec<SocketAddr>> {
    let resolved = tokio::net::lookup_host(address).await;
    let addresses = resolved.map_err(|error| {
        Error::new(
            ErrorKind::Listen,
            format!("resolving the address of {name:?}"),
        )
        .because(error)
    })?;
    Ok(addresses.collect())
}
