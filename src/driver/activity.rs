//! What an application does in one generation only, and nowhere else: its hooks run as this generation becomes and
//! ceases to be the active one.
//!
//! 1. Activations and deactivations alternate, whatever is wished in between; an activation is the first.
//! 2. One hook runs at a time, on a thread of its own, where it may block; a wish never waits.
//! 3. A deactivation has returned before it is told to have happened.

use std::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::oneshot;

use super::Driver;
use super::downward::Link;
use super::shared::{Collected, Command, Shared};
use crate::state::Offer;

/// A hook of the application's.
pub(crate) type Change = Arc<dyn Fn() -> Result<(), Box<dyn Error + Send + Sync>> + Send + Sync>;

/// What the hooks have come to, or which of them failed.
pub(crate) type Changed = Result<(), String>;

/// The hooks of one generation, and whether it is active by them.
#[derive(Clone, Default)]
pub(crate) struct Activity(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    activate: Vec<Change>,
    deactivate: Vec<Change>,
    /// What the driver wants.
    wished: bool,
    /// What the hooks that have run have made of it.
    is_active: bool,
    /// A thread looks after the wish.
    is_running: bool,
    /// Whoever waits for the wish at hand.
    told: Vec<oneshot::Sender<Changed>>,
    /// Hooks that came when this generation was active already.
    late: Vec<Change>,
}

impl Activity {
    /// Adds a hook for when this generation becomes active. It runs soon if that is so already.
    pub(crate) fn on_activate(&self, hook: Change) {
        let mut state = self.lock();
        if state.wished && state.is_active {
            state.late.push(hook.clone());
        }
        state.activate.push(hook);
        self.look_after(state);
    }

    /// Adds a hook for when it ceases to be.
    pub(crate) fn on_deactivate(&self, hook: Change) {
        self.lock().deactivate.push(hook);
    }

    /// Wishes this generation active or not. Answered when it is so by its hooks; dropped when the wish is taken back,
    /// or when no thread can be had.
    pub(crate) fn wish(&self, active: bool) -> oneshot::Receiver<Changed> {
        let (tell, told) = oneshot::channel();
        let mut state = self.lock();
        if state.wished != active {
            state.wished = active;
            state.told.clear();
        }
        state.told.push(tell);
        self.look_after(state);
        told
    }

    fn look_after(&self, mut state: MutexGuard<'_, State>) {
        if state.is_running {
            return;
        }
        if !state.is_settled() && state.hooks().is_empty() {
            state.next();
        }
        if state.is_settled() {
            return state.tell(&Ok(()));
        }
        let activity = self.clone();
        let thread = thread::Builder::new().name("handover-activity".to_owned());
        state.is_running = thread.spawn(move || activity.run()).is_ok();
        if !state.is_running {
            // Whoever waits sees that the answer never comes.
            state.told.clear();
        }
    }

    /// Until what is wished is so.
    fn run(&self) {
        let mut outcome = Ok(());
        loop {
            let mut state = self.lock();
            if state.is_settled() {
                state.is_running = false;
                state.tell(&outcome);
                return;
            }
            let hooks = state.next();
            drop(state);
            // All of them, whichever fails.
            let results: Vec<Changed> = hooks.iter().map(run).collect();
            outcome = results.into_iter().collect();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_settled(&self) -> bool {
        self.wished == self.is_active && self.late.is_empty()
    }

    /// The hooks to run now. What they lead to counts from their begin: one that fails has run as well.
    fn next(&mut self) -> Vec<Change> {
        if self.wished == self.is_active {
            return std::mem::take(&mut self.late);
        }
        let hooks = self.hooks().clone();
        self.late.clear();
        self.is_active = self.wished;
        hooks
    }

    fn hooks(&self) -> &Vec<Change> {
        match (self.wished == self.is_active, self.wished) {
            (true, _) => &self.late,
            (false, true) => &self.activate,
            (false, false) => &self.deactivate,
        }
    }

    fn tell(&mut self, outcome: &Changed) {
        for told in self.told.drain(..) {
            // Whoever wished may not wait.
            let _ = told.send(outcome.clone());
        }
    }
}

impl Driver {
    /// The gates are open.
    pub(super) fn activate(&mut self) {
        self.activation_due = false;
        let (activated, shared) = (self.shared.activity.wish(true), Arc::clone(&self.shared));
        tokio::spawn(async move {
            if let Ok(Err(reason)) = activated.await {
                shared.warn(reason);
            }
        });
    }

    /// Two generations are never active at once: one that was given up may be, until it has ended.
    pub(super) fn activate_if_due(&mut self) {
        let is_alone = match &self.down {
            Some(down) => down.link.as_ref().is_none_or(Link::has_ended),
            None => *self.shared.at_large.borrow() == 0,
        };
        let is_serving = self.answers_for_the_service();
        if std::mem::take(&mut self.activation_due) && is_serving {
            match is_alone {
                true => self.activate(),
                false => self.activation_due = true,
            }
        }
    }

    /// As a successor whose gates are shut again: what it says to the incumbent waits for the hooks, which the
    /// incumbent's patience bounds.
    pub(super) fn deactivate(&mut self) {
        let mut deactivated = self.shared.activity.wish(false);
        let Some(up) = &mut self.up else { return };
        if let Ok(Ok(())) = deactivated.try_recv() {
            return;
        }
        up.held = Some(Vec::new());
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            if let Ok(Err(reason)) = deactivated.await {
                shared.warn(reason);
            }
            // A driver that has ended has nobody to tell.
            let _ = shared.command(Command::Deactivated);
        });
    }

    pub(super) fn deactivated(&mut self) {
        let held = self.up.as_mut().and_then(|up| up.held.take());
        for message in held.into_iter().flatten() {
            self.tell_incumbent(&message);
        }
        self.perform_upward();
    }
}

/// What is to be done when the gates are shut for a flip: this generation becomes inactive, and then its state is
/// collected. `None` if there is nothing to run.
pub(super) fn retire(shared: &Arc<Shared>) -> Option<oneshot::Receiver<Collected>> {
    let mut deactivated = shared.activity.wish(false);
    if let Ok(Ok(())) = deactivated.try_recv() {
        return shared.at_flip.run();
    }
    let (reply, retired) = oneshot::channel();
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let collected = match deactivated.await {
            Ok(Ok(())) => collect(&shared).await,
            Ok(Err(reason)) => Err(reason),
            Err(_) => Err("this generation could not be made inactive".to_owned()),
        };
        // A flip that was taken back waits for nothing.
        let _ = reply.send(collected);
    });
    Some(retired)
}

async fn collect(shared: &Shared) -> Collected {
    match shared.at_flip.run() {
        Some(collecting) => collecting
            .await
            .unwrap_or_else(|_| Err("a state hook panicked".to_owned())),
        None => Ok(Offer::default()),
    }
}

fn run(hook: &Change) -> Changed {
    match catch_unwind(AssertUnwindSafe(|| hook())) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("an activation hook failed: {error}")),
        Err(_) => Err("an activation hook panicked".to_owned()),
    }
}

impl fmt::Debug for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Activity")
            .field("wished", &state.wished)
            .field("is_active", &state.is_active)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// Nothing a test waits for takes longer than this.
    const DEADLINE: Duration = Duration::from_secs(20);

    /// The hooks say what they do; a deactivation takes until it is let go.
    struct Rig {
        activity: Activity,
        said: mpsc::Receiver<&'static str>,
        let_go: mpsc::Sender<()>,
    }

    impl Rig {
        fn new() -> Self {
            let activity = Activity::default();
            let (say, said) = mpsc::channel();
            let (let_go, wait) = mpsc::channel();
            let wait = Mutex::new(wait);
            let begin = say.clone();
            activity.on_activate(Arc::new(move || Ok(begin.send("active")?)));
            activity.on_deactivate(Arc::new(move || {
                say.send("deactivating")?;
                wait.lock().unwrap().recv_timeout(DEADLINE)?;
                Ok(say.send("inactive")?)
            }));
            Self {
                activity,
                said,
                let_go,
            }
        }

        fn hears(&self, expected: &[&str]) {
            for expected in expected {
                assert_eq!(self.said.recv_timeout(DEADLINE).unwrap(), *expected);
            }
            assert!(self.said.try_recv().is_err());
        }
    }

    async fn done(told: oneshot::Receiver<Changed>) -> Changed {
        timeout(DEADLINE, told).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_deactivation_is_told_once_it_has_returned() {
        let rig = Rig::new();
        done(rig.activity.wish(true)).await.unwrap();
        rig.hears(&["active"]);
        let mut told = rig.activity.wish(false);
        rig.hears(&["deactivating"]);
        assert!(told.try_recv().is_err());
        rig.let_go.send(()).unwrap();
        done(told).await.unwrap();
        rig.hears(&["inactive"]);
    }

    #[tokio::test]
    async fn a_wish_that_is_taken_back_while_a_hook_runs_is_made_up_for_by_the_other_hook() {
        let rig = Rig::new();
        done(rig.activity.wish(true)).await.unwrap();
        let taken_back = rig.activity.wish(false);
        rig.hears(&["active", "deactivating"]);
        let back = rig.activity.wish(true);
        assert!(timeout(DEADLINE, taken_back).await.unwrap().is_err());
        rig.let_go.send(()).unwrap();
        done(back).await.unwrap();
        rig.hears(&["inactive", "active"]);
    }

    #[tokio::test]
    async fn the_same_wish_twice_runs_nothing_twice_and_the_first_is_never_a_deactivation() {
        let rig = Rig::new();
        done(rig.activity.wish(false)).await.unwrap();
        done(rig.activity.wish(true)).await.unwrap();
        done(rig.activity.wish(true)).await.unwrap();
        rig.hears(&["active"]);
    }

    #[tokio::test]
    async fn a_hook_that_comes_late_runs_alone_and_at_once() {
        let rig = Rig::new();
        done(rig.activity.wish(true)).await.unwrap();
        rig.hears(&["active"]);
        let (say, said) = mpsc::channel();
        rig.activity
            .on_activate(Arc::new(move || Ok(say.send("late")?)));
        assert_eq!(said.recv_timeout(DEADLINE).unwrap(), "late");
        rig.hears(&[]);
    }

    #[tokio::test]
    async fn a_hook_that_fails_or_panics_is_told_and_has_run_all_the_same() {
        for fail in [
            (|| Err("no".into())) as fn() -> Result<(), Box<dyn Error + Send + Sync>>,
            || panic!("as planned"),
        ] {
            let rig = Rig::new();
            rig.activity.on_deactivate(Arc::new(fail));
            done(rig.activity.wish(true)).await.unwrap();
            rig.let_go.send(()).unwrap();
            let reason = done(rig.activity.wish(false)).await.unwrap_err();
            assert!(reason.contains("failed") || reason.contains("panicked"));
            done(rig.activity.wish(true)).await.unwrap();
            rig.hears(&["active", "deactivating", "inactive", "active"]);
        }
    }

    #[tokio::test]
    async fn without_hooks_a_wish_is_so_at_once() {
        let activity = Activity::default();
        for active in [true, false, true] {
            assert_eq!(activity.wish(active).try_recv(), Ok(Ok(())));
        }
    }
}
