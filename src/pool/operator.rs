//! What operators ask of a pool, and what they are told.

use std::time::Instant;

use tokio::sync::oneshot;

use super::controller::{Controller, ReleaseId, Stage, UpdateStage};
use super::plan::Plan;
use super::sockets::is_slotted;
use super::supervisor::{Ask, Supervisor};
use crate::control::{
    Condition, Generation, PoolState, Reply, Request, Role, Rollback, RollbackKind, Socket, Status,
    Underway, UpdateState, WorkerState, unix_ms,
};
use crate::error::Result;
use crate::protocol::message::millis;

impl Supervisor {
    pub(super) fn answer(&mut self, Ask { request, reply }: Ask) {
        let answer = match request {
            Request::Upgrade {
                wait,
                strategy: None,
                plan,
                ..
            } => {
                let begun = self.plan_of(plan).and_then(|plan| self.roll(plan));
                return self.answer_when_done(begun, wait, reply);
            }
            Request::Upgrade { .. } => Err(Reply::refused("a pool knows rolling updates only")),
            Request::Rollback {
                cold: true, wait, ..
            } => {
                let begun = self.roll_back();
                return self.answer_when_done(begun, wait, reply);
            }
            Request::Abort { reason } | Request::Rollback { reason, .. } => {
                let reason = match reason.as_str() {
                    "" => "by an operator".to_owned(),
                    reason => format!("by an operator: {reason}"),
                };
                let begun = self.operate(|machine, now| machine.abort(reason, now));
                return self.answer_when_done(begun, true, reply);
            }
            Request::Pause => self.operate(Controller::pause).map(done),
            Request::Resume => self.resume_update().map(done),
            Request::Scale { workers } => self
                .operate(|machine, now| machine.scale(workers, now))
                .map(done),
            Request::UpgradeSupervisor => return self.upgrade_supervisor(Some(reply)),
            Request::Stop { now } => {
                if !now && self.stopping_since.is_some() {
                    Err(Reply::refused("the pool is stopping already"))
                } else {
                    self.stop();
                    if now {
                        self.stop();
                    }
                    Ok(Reply::Stopping)
                }
            }
            Request::Status => Ok(Reply::Status(Box::new(self.status()))),
            Request::Generations => Ok(Reply::Generations {
                generations: self.generations(),
            }),
            Request::History => Ok(Reply::History {
                upgrades: self.history.iter().cloned().collect(),
            }),
            Request::Explain => Ok(Reply::Explain {
                upgrade: self.history.last().cloned().map(Box::new),
                underway: self.underway().map(Box::new),
            }),
            _ => Err(Reply::refused("the supervisor of a pool has no such thing")),
        };
        // Who has gone needs none.
        let _ = reply.send(answer.unwrap_or_else(|refusal| refusal));
    }

    fn plan_of(
        &self,
        changes: Option<serde_json::Map<String, serde_json::Value>>,
    ) -> Result<Option<Plan>, Reply> {
        let Some(changes) = changes else {
            return Ok(None);
        };
        let wrong = |error: serde_json::Error| Reply::refused(format!("the plan: {error}"));
        let mut plan = serde_json::to_value(self.parts.machine.plan()).map_err(wrong)?;
        if let Some(plan) = plan.as_object_mut() {
            plan.extend(changes);
        }
        serde_json::from_value(plan).map(Some).map_err(wrong)
    }

    fn answer_when_done(
        &mut self,
        begun: Result<ReleaseId, Reply>,
        wait: bool,
        reply: oneshot::Sender<Reply>,
    ) {
        let now = match begun {
            Ok(_) if wait => return self.waiting.push(reply),
            Ok(generation) => Reply::Begun { generation },
            Err(refusal) => refusal,
        };
        // Who has gone needs none.
        let _ = reply.send(now);
    }

    /// With what has halted it forgiven.
    fn resume_update(&mut self) -> Result<ReleaseId, Reply> {
        let resumed = self.operate(Controller::resume)?;
        if let Some(judge) = &mut self.judge {
            judge.begin_again(&self.counted, Instant::now());
        }
        Ok(resumed)
    }

    /// The number of the release that it is about.
    fn operate<R: ToString>(
        &mut self,
        command: impl FnOnce(&mut Controller, Instant) -> Result<(), R>,
    ) -> Result<ReleaseId, Reply> {
        if self.stopping_since.is_some() {
            return Err(Reply::refused("the pool is stopping"));
        }
        let machine = &mut self.parts.machine;
        let about = machine
            .progress()
            .map_or_else(|| machine.stable(), |update| update.candidate);
        match command(machine, Instant::now()) {
            Ok(()) => Ok(about),
            Err(refusal) => Err(Reply::refused(refusal.to_string())),
        }
    }

    fn status(&self) -> Status {
        let machine = &self.parts.machine;
        let looping = machine.looping();
        let condition = match (machine.progress().map(|update| update.stage), looping) {
            (Some(UpdateStage::Paused | UpdateStage::Halted(_)), _) => Condition::Paused,
            (Some(_), _) => Condition::Progressing,
            (None, Some(_)) => Condition::Degraded,
            (None, None) => Condition::Healthy,
        };
        let health = match (self.stopping_since, machine.ready()) {
            (Some(_), _) => "stopping",
            (None, 0) => "starting",
            (None, _) => "ready",
        };
        let before = self.before.map(|before| {
            let (kind, build) = (RollbackKind::Cold, self.parts.build.clone());
            Rollback::to(kind, before, build)
        });
        Status {
            generation: machine.stable(),
            pid: std::process::id(),
            role: Role::Supervisor,
            condition,
            degraded: looping
                .map(|crashes| format!("workers have crashed {crashes} times in a row")),
            build: self.parts.build.clone(),
            crate_version: env!("CARGO_PKG_VERSION").to_owned(),
            health: health.to_owned(),
            uptime_ms: millis(self.began.elapsed()),
            incumbent_since_ms: Some(unix_ms(self.stable_since)),
            upgrade: self.underway(),
            rollback: before,
            elders: Vec::new(),
            classes: Vec::new(),
            sockets: self.sockets(),
            last: self.history.last().cloned(),
            counts: None,
            verification: None,
            drill: None,
            schema: None,
            pool: Some(self.pool()),
        }
    }

    fn pool(&self) -> PoolState {
        let machine = &self.parts.machine;
        PoolState {
            wanted: machine.wanted(),
            ready: machine.ready(),
            supervisor: self.parts.number,
            stable: machine.stable(),
            looping: machine.looping(),
            update: machine.progress().map(|update| {
                let (stage, reason) = match update.stage {
                    UpdateStage::Rolling => ("rolling", String::new()),
                    UpdateStage::Paused => ("paused", String::new()),
                    UpdateStage::Halted(reason) => ("halted", reason),
                    UpdateStage::Reverting(reason) => ("reverting", reason),
                };
                UpdateState {
                    candidate: update.candidate,
                    stage: stage.to_owned(),
                    reason,
                    replaced: update.replaced,
                    failures: update.failures,
                }
            }),
            workers: self.worker_states(),
        }
    }

    fn worker_states(&self) -> Vec<WorkerState> {
        let workers = self.workers.iter().filter_map(|(id, worker)| {
            let (stage, crashes) = self.parts.machine.stage(*id)?;
            Some(WorkerState {
                worker: *id,
                pid: worker.pid,
                release: worker.release,
                stage: stage.to_string(),
                age_ms: millis(worker.started.elapsed()),
                crashes,
                requests: worker.tally.as_ref().map(|tally| tally.requests),
                errors: worker.tally.as_ref().map(|tally| tally.errors),
            })
        });
        workers.collect()
    }

    fn underway(&self) -> Option<Underway> {
        let (underwent, pool) = (self.update.as_ref()?, self.pool().update?);
        Some(Underway {
            generation: pool.candidate,
            pid: None,
            phase: pool.stage,
            for_ms: millis(underwent.since.elapsed()),
            rollout: None,
        })
    }

    /// Every worker is a process of its release.
    fn generations(&self) -> Vec<Generation> {
        let candidate = self.parts.machine.progress().map(|update| update.candidate);
        let workers = self.workers.iter().map(|(id, worker)| {
            let stage = self.parts.machine.stage(*id).map(|(stage, _)| stage);
            Generation {
                generation: worker.release,
                pid: Some(worker.pid),
                role: match stage {
                    Some(Stage::Stopping | Stage::Killed) => Role::Draining,
                    _ if candidate == Some(worker.release) => Role::Successor,
                    Some(Stage::Starting) => Role::Starting,
                    _ => Role::Incumbent,
                },
                phase: stage.map(|stage| stage.to_string()),
            }
        });
        workers.collect()
    }

    fn sockets(&self) -> Vec<Socket> {
        let described = self.parts.sockets.table().describe().into_iter();
        let described = described.filter(|(name, ..)| !is_slotted(name));
        let sockets = described.map(|(name, kind, address)| Socket {
            name,
            kind,
            address,
        });
        sockets.collect()
    }
}

fn done(generation: ReleaseId) -> Reply {
    Reply::Done { generation }
}
