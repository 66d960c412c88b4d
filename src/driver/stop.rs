//! The stop of the service: nobody follows. Lame duck, refusal, drain, leaving.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::shared::Shared;
use super::{Driver, Role, leave};
use crate::config::Config;
use crate::event::Event;
use crate::listen::FinalStop;
use crate::systemd::job::{self, Job};
use crate::systemd::notify::Manager;
use crate::systemd::store;

/// When what happens, from the first request on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stop {
    /// When this generation leaves, whatever is left.
    until: Instant,
    /// Somebody asked twice.
    is_hurried: bool,
    lame_duck: Duration,
    lame_duck_until: Option<Instant>,
}

impl Stop {
    fn new(config: &Config, now: Instant) -> Self {
        Self {
            until: now + config.stop_deadline(),
            is_hurried: false,
            lame_duck: config.lame_duck,
            lame_duck_until: None,
        }
    }

    /// How long it is a lame duck from now on, if it is one at all and has not been one.
    fn begin_lame_duck(&mut self, now: Instant) -> Option<Duration> {
        let until = self.until.min(now + self.lame_duck);
        let lasts = until.saturating_duration_since(now);
        if self.is_hurried || lasts.is_zero() || self.lame_duck_until.is_some() {
            return None;
        }
        self.lame_duck_until = Some(until);
        Some(lasts)
    }

    fn left(&self, now: Instant) -> Duration {
        self.until.saturating_duration_since(now)
    }
}

impl Driver {
    /// The first stop finishes what is in flight, the second one does not wait.
    pub(super) fn stop(&mut self) {
        let again = std::mem::replace(&mut self.stop_asked, true);
        match self.role {
            // One that has handed over is told for the first time as well: it has as long as the service's last one.
            Role::Leaving if !again => self.shared.drain.begin_within(self.config.stop_deadline()),
            // So is one whose incumbent was told.
            Role::LameDuck if !again => {}
            Role::Leaving => self.leave_now(),
            Role::LameDuck => {
                self.end_lame_duck();
                self.leave_now();
            }
            Role::Starting | Role::Incumbent => {
                if let Some(stop) = self.stop.as_mut().filter(|_| again) {
                    stop.is_hurried = true;
                }
                self.begin_stop();
            }
        }
    }

    /// The incumbent had given the role away when it was told to stop the service.
    pub(super) fn stop_with_incumbent(&mut self) {
        if self.role == Role::Incumbent {
            self.begin_stop();
        }
    }

    fn begin_stop(&mut self) {
        match &mut self.up {
            Some(up) if !up.machine.is_committed() => {
                up.machine
                    .handle_stop(Instant::now(), "it was told to stop".to_owned());
                self.perform_upward();
            }
            _ => {
                if let Some((waiting, _)) = self.waiting.take() {
                    self.refuse_waiting(waiting, "the service is stopping".to_owned());
                }
                let now = Instant::now();
                let config = &self.config;
                self.stop.get_or_insert_with(|| Stop::new(config, now));
                match self.config.lame_duck.is_zero() {
                    true => self.shared.health.stopping(),
                    // From now on, though a successor may have to give the accept right back first.
                    false => self.shared.health.lame_duck(),
                }
                self.incumbent.handle_stop(now);
                self.perform_downward();
            }
        }
    }

    pub(super) fn lame_duck_until(&self) -> Option<Instant> {
        let until = self.stop.as_ref()?.lame_duck_until;
        until.filter(|_| self.role == Role::LameDuck)
    }

    /// Ends the service, by way of the lame duck if there is to be one.
    pub(super) fn stop_service(&mut self) {
        let now = Instant::now();
        let config = &self.config;
        let stop = self.stop.get_or_insert_with(|| Stop::new(config, now));
        let stop_left = stop.left(now);
        // A stop in the middle of an upgrade finds them shut, and connections waiting.
        self.shared.table.open_all_regardless();
        let lame_duck = stop.begin_lame_duck(now);
        let stop = *stop;
        self.announce_stop(stop_left);
        if let Some(lasts) = lame_duck {
            self.role = Role::LameDuck;
            self.shared.drain.resume();
            self.shared.emit(Event::LameDuck { lasts });
            return self.publish();
        }
        self.end_service(stop);
    }

    pub(super) fn end_lame_duck(&mut self) {
        let now = Instant::now();
        let stop = self.stop.unwrap_or_else(|| Stop::new(&self.config, now));
        self.end_service(stop);
    }

    /// Refuses who comes now, serves who came before, then drains.
    fn end_service(&mut self, stop: Stop) {
        self.shared.health.stopping();
        self.ends_service = true;
        self.begin_leaving("stopping".to_owned());
        let (shared, pid_file) = (self.shared.clone(), self.config.pid_file.clone());
        let manager = self.manager.listening().cloned();
        let patience = Patience {
            exit: self.config.exit,
            settle: self.config.stop_settle,
            empty: self.config.stop_empty,
        };
        tokio::spawn(async move {
            let finishing = give_up_sockets(shared.clone(), manager, stop, patience);
            let left = || stop.left(Instant::now());
            leave(&shared, finishing, pid_file.as_deref(), left).await;
        });
        if stop.is_hurried {
            self.leave_now();
        }
    }
}

/// How long the steps of giving up the sockets may take, within what is left of the stop.
struct Patience {
    exit: Duration,
    settle: Duration,
    empty: Duration,
}

async fn give_up_sockets(
    shared: Arc<Shared>,
    manager: Option<Manager>,
    stop: Stop,
    patience: Patience,
) -> Vec<String> {
    leave_to_manager(&shared, manager).await;
    // Others that are alive have shut their gates for good, or were never told to open them; all but one that was
    // given up in the middle of it, and is being killed.
    let exit = patience.exit.min(stop.left(Instant::now()));
    let mut at_large = shared.at_large.subscribe();
    let none_at_large = at_large.wait_for(|count| *count == 0);
    let is_alone = tokio::time::timeout(exit, none_at_large).await.is_ok();
    if !is_alone {
        shared.warn("a successor that was given up is alive, so new connections are not refused");
    }
    let empty = patience.empty.min(stop.left(Instant::now()));
    shared.table.adopted_accepted(empty).await;
    let stopping = shared.table.final_stop(FinalStop {
        is_alone,
        settle: patience.settle,
        deadline: patience.empty.min(stop.left(Instant::now())),
    });
    stopping.await
}

/// What the service manager holds too waits for the next start of the service, if there is to be one.
async fn leave_to_manager(shared: &Shared, manager: Option<Manager>) {
    let stored = shared.table.stored();
    if let Some(manager) = manager.filter(|_| !stored.is_empty())
        && job::pending().await == Job::Stop
    {
        // It closes its own when this process has gone: whoever came until then would be cut off. So they are refused,
        // which is for good, and a start that comes after all must not be given them.
        match store::let_go(&manager, &stored).await {
            Ok(()) => shared.table.set_stored(&[]),
            Err(error) => shared.warn(format!("new connections are not refused: {error:?}")),
        }
    }
    shared.table.leave_to_manager();
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use tokio::sync::mpsc;

    use super::*;
    use crate::listen::{ListenOptions, Table};

    const LAME_DUCK: Duration = Duration::from_secs(8);

    fn stop(now: Instant, lame_duck: Duration, deadline: Option<Duration>) -> Stop {
        let config = Config {
            lame_duck,
            stop: deadline,
            ..Config::default()
        };
        Stop::new(&config, now)
    }

    fn shared() -> Arc<Shared> {
        let drain = crate::drain::Drain::new(LAME_DUCK, LAME_DUCK);
        Shared::new(Table::default(), drain, mpsc::unbounded_channel().0)
    }

    fn patience() -> Patience {
        Patience {
            exit: Duration::from_secs(5),
            settle: Duration::ZERO,
            empty: Duration::from_secs(5),
        }
    }

    async fn is_refused_beside_a_successor_at_large(is_seen_to_end: bool) -> bool {
        let shared = shared();
        let address = "127.0.0.1:0".parse().unwrap();
        let options = ListenOptions::new();
        let web = shared.table.std_tcp("web", &[address], &options).unwrap();
        shared.at_large.send_replace(1);
        let stop = stop(Instant::now(), Duration::ZERO, None);
        let mut giving_up = pin!(give_up_sockets(shared.clone(), None, stop, patience()));
        let mut context = Context::from_waker(Waker::noop());
        assert!(giving_up.as_mut().poll(&mut context).is_pending());
        // Whatever becomes of it, nobody is refused while it lives.
        let address = web.local_addr().unwrap();
        std::net::TcpStream::connect(address).unwrap();
        if is_seen_to_end {
            shared.at_large.send_replace(0);
        }
        giving_up.await;
        std::net::TcpStream::connect(address).is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_refused_while_a_successor_that_was_given_up_may_accept() {
        assert!(is_refused_beside_a_successor_at_large(true).await);
        assert!(!is_refused_beside_a_successor_at_large(false).await);
    }

    #[test]
    fn it_is_a_lame_duck_once_and_not_at_all_if_it_is_in_a_hurry() {
        let now = Instant::now();
        let mut once = stop(now, LAME_DUCK, None);
        assert_eq!(once.begin_lame_duck(now), Some(LAME_DUCK));
        assert_eq!(once.begin_lame_duck(now), None);
        let mut hurried = stop(now, LAME_DUCK, None);
        hurried.is_hurried = true;
        assert_eq!(hurried.begin_lame_duck(now), None);
        assert_eq!(stop(now, Duration::ZERO, None).begin_lame_duck(now), None);
    }

    #[test]
    fn the_default_deadline_comes_after_the_lame_duck_and_a_given_one_bounds_both() {
        let now = Instant::now();
        let by_default = stop(now, LAME_DUCK, None);
        assert_eq!(
            by_default.left(now),
            LAME_DUCK + crate::config::STOP_DEADLINE
        );
        let total = Duration::from_secs(5);
        let mut given = stop(now, LAME_DUCK, Some(total));
        assert_eq!(given.left(now), total);
        assert_eq!(given.begin_lame_duck(now), Some(total));
        assert_eq!(given.left(now + LAME_DUCK), Duration::ZERO);
    }
}
