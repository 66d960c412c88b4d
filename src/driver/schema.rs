//! The schema of this generation: its entry in the record follows what happens to it, and nothing is flipped to, or gone
//! back to, that does not fit.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};

use super::Driver;
use super::rollout::Examined;
use super::shared::{Shared, lock};
use crate::drain::Guard;
use crate::error::Result;
use crate::event::{Event, Phase};
use crate::rollout::Stage;
use crate::schema::{Registration, State};

/// The class of work that leaving the record is. It is not shown: nobody has asked for it.
pub(super) const CLASS: &str = "schema";

/// What this generation has to do with a schema, if it has declared one.
#[derive(Debug, Default)]
pub(crate) struct Declared(OnceLock<Entered>);

#[derive(Debug)]
struct Entered {
    registration: Registration,
    /// What keeps the process until its entry is gone.
    leaving: Mutex<Option<oneshot::Sender<Guard>>>,
}

impl Declared {
    /// Once: says what to do with a second one.
    pub(crate) fn set(&self, shared: &Arc<Shared>, registration: &Registration) -> bool {
        let (leaving, left) = oneshot::channel();
        let entered = Entered {
            registration: registration.clone(),
            leaving: Mutex::new(Some(leaving)),
        };
        let is_first = self.0.set(entered).is_ok();
        if is_first {
            tokio::spawn(follow(Arc::clone(shared), registration.clone(), left));
        }
        is_first
    }

    pub(crate) fn registration(&self) -> Option<&Registration> {
        self.0.get().map(|entered| &entered.registration)
    }

    /// What happens to a generation says what it is to the store.
    pub(crate) fn follow(&self, event: &Event) {
        let state = match event {
            Event::Serving { .. } | Event::RolledBack { .. } => State::Active,
            Event::Phase {
                phase: Phase::Baking,
                ..
            } => State::Warm,
            Event::Draining { .. } => State::Draining,
            _ => return,
        };
        if let Some(registration) = self.registration() {
            registration.become_now(state);
        }
    }

    /// Why this generation must not serve, if that is so, as far as is known.
    pub(crate) fn misfit(&self) -> Option<String> {
        self.registration()?.misfit(None)
    }
}

/// Renews the lease, at once when the generation becomes something else, until nothing of it is left.
async fn follow(
    shared: Arc<Shared>,
    registration: Registration,
    leaving: oneshot::Receiver<Guard>,
) {
    let mut telling = Telling::new(&shared);
    let renewing = async {
        let mut renewal = renewals(registration.renewal_interval());
        let mut state = registration.state();
        loop {
            tokio::select! {
                // The sender lives as long as the registration.
                _ = state.changed() => {}
                _ = renewal.tick() => {}
            }
            let renewed = registration.renew().await;
            let is_warm = *state.borrow() == State::Warm;
            telling.tell(renewed, registration.misfit(None), is_warm);
        }
    };
    let drained = async {
        // Without anybody who could leave, nothing does.
        let guard = leaving.await.ok()?;
        shared.drain.drained_beside(&guard).await;
        Some(guard)
    };
    let guard = tokio::select! {
        guard = drained => guard,
        () = renewing => return,
    };
    if let Err(error) = registration.leave().await {
        shared.warn(format!(
            "the record of the schema has this generation still: {error:?}"
        ));
    }
    drop(guard);
}

fn renewals(every: Duration) -> tokio::time::Interval {
    // An interval of nothing would panic.
    let mut renewals = interval(every.max(Duration::from_millis(1)));
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    renewals
}

/// Says once that the store cannot be asked, and once that it can be again; and once that it does not fit any more, which
/// somebody has brought about who went past the gates.
struct Telling<'a> {
    shared: &'a Shared,
    is_lost: bool,
    is_misfit: bool,
}

impl<'a> Telling<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            is_lost: false,
            is_misfit: false,
        }
    }

    fn tell(&mut self, renewed: Result<()>, misfit: Option<String>, is_warm: bool) {
        let was_misfit = std::mem::replace(&mut self.is_misfit, misfit.is_some());
        if let Some(misfit) = misfit.filter(|_| !was_misfit) {
            self.shared.warn(match is_warm {
                true => format!("no rollback goes back to this generation any more: it {misfit}"),
                false => format!("this generation serves on, but {misfit}"),
            });
        }
        match renewed {
            Err(error) if !self.is_lost => {
                self.is_lost = true;
                self.shared.warn(format!(
                    "the store of the schema cannot be asked: {error:?}; this generation serves on, and nothing is expanded, \
                     contracted or flipped to meanwhile"
                ));
            }
            Ok(()) if self.is_lost => {
                self.is_lost = false;
                tracing::info!("the store of the schema answers again");
            }
            _ => {}
        }
    }
}

impl Driver {
    /// The other generations that are alive on this host, whatever they say of a schema.
    pub(crate) fn others(&self) -> Vec<(u64, State)> {
        let elders = self.elders.iter();
        let mut others: Vec<_> = elders.map(|it| (it.generation, State::Draining)).collect();
        if let Some(up) = self.up.as_ref().filter(|up| up.process.is_some()) {
            others.push((up.generation, State::Warm));
        }
        if let Some(down) = self.down.as_ref().filter(|down| down.link.is_some()) {
            others.push((down.generation, State::NotYet));
        }
        others
    }

    /// Whether the candidate fits what the store has now. None if there is nobody to ask.
    ///
    /// The question ends by its own deadline, or when nobody waits for the answer any more.
    pub(super) fn check_schema(&self) -> Option<oneshot::Receiver<Examined>> {
        let candidate = self.down.as_ref()?.generation;
        let registration = self.shared.schema.registration()?.clone();
        let (mut examined, result) = oneshot::channel();
        tokio::spawn(async move {
            let fits = tokio::select! {
                fits = registration.check_candidate(candidate) => fits,
                () = examined.closed() => return,
            };
            // Whoever waited may have stopped just now.
            let _ = examined.send(fits);
        });
        Some(result)
    }

    /// Why this generation cannot take over again from the one that it has handed over to, if it cannot.
    pub(super) fn no_way_back(&self) -> Option<String> {
        let stage = self.down.as_ref()?.controller.stage();
        let misfit = matches!(stage, Stage::Verifying | Stage::Baking)
            .then(|| self.shared.schema.misfit())??;
        Some(format!("generation {} {misfit}", self.generation))
    }

    /// What a guard finds does not undo a rollout that there is no way back from.
    pub(super) fn tell_way_back(&mut self) {
        let is_closed = self.no_way_back().is_some();
        if let Some(down) = &mut self.down {
            down.controller.handle_way_back(!is_closed);
        }
    }

    /// From now on the process stays until its entry in the record is gone.
    pub(super) fn leave_schema(&self) {
        let Some(entered) = self.shared.schema.0.get() else {
            return;
        };
        if let Some(leaving) = lock(&entered.leaving).take() {
            let class = self.shared.drain.class_with_deadline(CLASS, Duration::MAX);
            // Without a task that takes it there is nothing to be waited for.
            let _ = leaving.send(class.guard("leaving the record of the schema"));
        }
    }
}
