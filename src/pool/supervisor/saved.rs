//! A supervisor's state on its way to the next one in this process, and back.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::super::controller::{self, ReleaseId, WorkerId};
use super::super::inheritance::Files;
use super::super::kept::{self, Kept};
use super::super::logs::{self, Outlets};
use super::super::readiness::NotifySocket;
use super::super::release::{self, Release};
use super::super::worker::{self, Worker};
use super::{Counted, Ears, PROBED_MAX, Parts, Supervisor};
use crate::control::{History, Upgrade};
use crate::protocol::message::{Slot, millis};

/// All of it but the descriptors, which come in the order of the fields: the sockets, that of notifications, the files of
/// the releases, what workers have kept, for each worker its pidfd and its probe, and what the logs have.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in super::super) struct Saved {
    /// Which supervisor the next one is.
    pub(in super::super) supervisor: u64,
    pub(in super::super) called: Vec<OsString>,
    /// How many workers the program wanted from the start, whatever operators have made of it.
    pub(in super::super) workers_at_start: usize,
    pub(in super::super) machine: controller::Saved,
    pub(in super::super) sockets: Vec<Slot>,
    notify: String,
    releases: Vec<release::Saved>,
    #[serde(default)]
    kept: Vec<kept::Label>,
    before: Option<ReleaseId>,
    last_release: ReleaseId,
    workers: Vec<(WorkerId, worker::Saved)>,
    #[serde(default)]
    logs: logs::Saved,
    history: Vec<Upgrade>,
    up_ms: u64,
    #[serde(default)]
    pub(in super::super) has_told_ready: bool,
    stable_since: SystemTime,
}

impl Supervisor {
    /// What the next supervisor needs, or why there is none now.
    pub(super) fn save(&self) -> Result<Saved, String> {
        if self.stopping_since.is_some() {
            return Err("the pool is stopping".to_owned());
        }
        if !self.parts.orphans.is_empty() {
            return Err(
                "workers of a supervisor that was killed are still to be relieved".to_owned(),
            );
        }
        if !self.untold.is_empty() {
            return Err("a worker is about to leave".to_owned());
        }
        if let Some(decided) = &self.decided {
            return Err(format!(
                "the update to release {} is about to end",
                decided.release
            ));
        }
        let machine = self.parts.machine.save(Instant::now());
        let machine = machine.map_err(|refusal| refusal.to_string())?;
        let slots = self.held.iter().map(|(slot, _)| slot.clone());
        Ok(Saved {
            supervisor: self.parts.number + 1,
            called: self.parts.called.clone(),
            workers_at_start: self.parts.workers_at_start,
            machine,
            sockets: slots.collect(),
            notify: self.notify.name().to_owned(),
            releases: self.releases.values().map(Release::save).collect(),
            kept: self.kept.save(),
            before: self.before,
            last_release: self.last_release,
            workers: self
                .workers
                .iter()
                .map(|(id, it)| (*id, it.save()))
                .collect(),
            logs: self.outlets.save(),
            history: self.history.iter().cloned().collect(),
            up_ms: millis(self.began.elapsed()),
            has_told_ready: self.parts.service.has_told_ready(),
            stable_since: self.stable_since,
        })
    }

    /// The descriptors, in the order in which [`Saved`] has them.
    pub(super) fn files(&self) -> Vec<BorrowedFd<'_>> {
        let sockets = self.held.iter().map(|(_, socket)| socket.as_fd());
        let releases = self.releases.values().map(Release::file);
        let first = sockets.chain([self.notify.as_fd()]);
        let mut files: Vec<_> = first.chain(releases).chain(self.kept.files()).collect();
        for worker in self.workers.values() {
            files.push(worker.process());
            files.extend(worker.probe.as_ref().map(AsFd::as_fd));
        }
        files.extend(self.outlets.files());
        files
    }

    /// Goes on where a supervisor was, whose sockets and machine are in `parts` already.
    pub(in super::super) fn resume(
        parts: Parts,
        saved: Saved,
        files: &mut Files<'_>,
    ) -> io::Result<Self> {
        let notify = NotifySocket::resume(files.take()?, saved.notify)?;
        let mut releases = BTreeMap::new();
        for release in saved.releases {
            let release = Release::resume(release, files.take()?);
            releases.insert(release.number, release);
        }
        let kept = Kept::resume(saved.kept, || files.take())?;
        let (mut workers, now) = (BTreeMap::new(), Instant::now());
        for (id, worker) in saved.workers {
            let process = files.take()?;
            let probe = worker.has_probe.then(|| files.take()).transpose()?;
            let worker = Worker::resume(worker, process, probe, now)?;
            workers.insert(id, worker);
        }
        let outlets = Outlets::new(parts.logs, parts.snapshot);
        let outlets = outlets.resume(saved.logs, files, now)?;
        let mut history = History::default();
        saved.history.into_iter().for_each(|it| history.add(it));
        let up = Duration::from_millis(saved.up_ms);
        let held = parts.sockets.table().offer();
        let this = Self {
            shared: parts.by_slot(),
            slots: parts.own_slots(),
            untold: BTreeSet::new(),
            emptied: mpsc::channel(PROBED_MAX),
            held,
            notify,
            last_release: saved.last_release,
            releases,
            before: saved.before,
            workers,
            outlets,
            probed: mpsc::channel(PROBED_MAX),
            update: None,
            failed: None,
            decided: None,
            counted: Counted::default(),
            ears: Ears::default(),
            kept,
            judge: None,
            history,
            waiting: Vec::new(),
            giving_up: None,
            relieving: None,
            trial: None,
            began: now.checked_sub(up).unwrap_or(now),
            stable_since: saved.stable_since,
            stopping_since: None,
            is_stopped: false,
            parts,
        };
        Ok(this)
    }

    /// Whoever was not ready goes on to be awaited, by what it does not say itself.
    pub(super) fn await_those_before(&self) {
        for (id, worker) in &self.workers {
            self.await_ready(*id, worker);
        }
    }
}
