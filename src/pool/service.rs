//! What the service manager hears of a pool (sd_notify(3)): that it is ready, reloads and stops. Its main process never
//! changes, so it hears nothing of that.

use tokio::sync::{broadcast, mpsc};

use crate::control::What;
use crate::sys::environment::Snapshot;
use crate::systemd::notify::{Manager, Notice};

/// The way there, and what it has been told.
#[derive(Debug)]
pub(super) struct Service {
    manager: Option<Manager>,
    has_told_ready: bool,
    is_reloading: bool,
    told: (usize, usize),
}

impl Service {
    /// The manager that has started this process, if one has. What goes wrong with it becomes a warning.
    pub(super) fn of(
        snapshot: &Snapshot,
        has_told_ready: bool,
        events: &broadcast::Sender<What>,
    ) -> Self {
        let (sender, mut problems) = mpsc::unbounded_channel();
        let manager = snapshot.service_manager("NOTIFY_SOCKET").map(|socket| {
            let connected = Manager::connect(socket, sender.clone());
            connected.map_err(|error| sender.send(format!("{error:?}")))
        });
        drop(sender);
        let events = events.clone();
        tokio::spawn(async move {
            while let Some(message) = problems.recv().await {
                // Nobody has to listen.
                let _ = events.send(What::Warning { message });
            }
        });
        Self {
            manager: manager.and_then(Result::ok),
            has_told_ready,
            is_reloading: false,
            told: (0, 0),
        }
    }

    pub(super) fn has_told_ready(&self) -> bool {
        self.has_told_ready
    }

    /// So many are ready of those wanted: the service is, once all of them are for the first time.
    pub(super) fn stands(&mut self, ready: usize, wanted: usize) {
        if self.told == (ready, wanted) || self.manager.is_none() {
            return;
        }
        // A supervisor that has just taken over says it again: the last word of the one before may not have been sent.
        let is_new = !self.has_told_ready || self.told == (0, 0);
        self.told = (ready, wanted);
        let notice = Notice::new().status(&format!("{ready} of {wanted} workers ready"));
        let is_first = ready >= wanted && is_new;
        self.has_told_ready |= is_first;
        self.tell(if is_first { notice.ready() } else { notice });
    }

    /// An update begins.
    pub(super) fn reloading(&mut self, release: u64) {
        self.is_reloading = true;
        let status = format!("updating to release {release}");
        self.tell(Notice::new().reloading().status(&status));
    }

    /// It has ended, or waits for an operator.
    pub(super) fn reloaded(&mut self, status: &str, is_reached: bool) {
        if !std::mem::take(&mut self.is_reloading) {
            return;
        }
        let notice = Notice::new().ready().status(status);
        self.tell(match is_reached {
            true => notice,
            false => notice.errno(libc::ECANCELED),
        });
    }

    /// An update was asked for by a signal, and does not begin: the reload is over.
    pub(super) fn refused(&mut self, reason: &str) {
        if !self.is_reloading {
            let notice = Notice::new().reloading();
            self.tell(notice);
            self.is_reloading = true;
            self.reloaded(&format!("refused: {reason}"), false);
        }
    }

    pub(super) fn stopping(&mut self) {
        self.is_reloading = false;
        self.tell(Notice::new().stopping());
    }

    fn tell(&self, notice: Notice) {
        if let Some(manager) = &self.manager {
            manager.tell(notice);
        }
    }
}
