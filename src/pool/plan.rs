//! How workers are replaced, and what becomes of those that die: plain options with documented defaults.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How many workers more than wanted an update may have at a time: 1.
pub const SURGE: usize = 1;
/// How many workers fewer than wanted may be ready during an update: 0.
pub const UNAVAILABLE: usize = 0;
/// How long a candidate worker must have been ready before it counts: 10 s.
pub const MIN_HEALTHY: Duration = Duration::from_secs(10);
/// How long a worker may take to be ready: 60 s.
pub const HEALTHY_DEADLINE: Duration = Duration::from_secs(60);
/// How long an update may go on without a further candidate worker that counts, and how long undoing it may take: 10 min.
pub const PROGRESS_DEADLINE: Duration = Duration::from_secs(10 * 60);
/// How many candidate workers have to fail before an update is halted: 1.
pub const HALT_ON_FAILURES: usize = 1;
/// How long the replacement of a worker waits that has crashed for the second time in a row: 100 ms. The first one does
/// not wait.
pub const BACKOFF: Duration = Duration::from_millis(100);
/// How long the replacement of a crashed worker waits at most, before jitter: 30 s.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How long it waits at most while no other worker lives, and clients wait with it: 1 s.
pub const BACKOFF_ALONE: Duration = Duration::from_secs(1);
/// How many crashes in a row are a crash loop: 5.
pub const LOOP_AFTER: u32 = 5;
/// How long a worker must have been ready for its crashes before to be forgotten: 10 s.
pub const FORGIVEN_AFTER: Duration = Duration::from_secs(10);
/// How long a worker that was told to stop may take until it is killed, and a stop of the pool in all: 28 s, for a platform
/// that kills the supervisor after 30 s. A worker that is written with this crate takes [`STOP_DEADLINE`](crate::config::STOP_DEADLINE) at most.
pub const WORKER_STOP: Duration = Duration::from_secs(28);

/// How a rolling update goes.
///
/// ```
/// use std::time::Duration;
/// use handover::pool::Plan;
///
/// let plan = Plan { unavailable: 1, min_healthy: Duration::from_secs(30), ..Plan::default() };
/// assert_eq!(plan.check(), Ok(()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plan {
    /// How many workers there may be beyond those wanted, draining ones not counted. Default: [`SURGE`], 1. With 0 the
    /// memory of one more is never needed, and [`unavailable`](Self::unavailable) must be more than 0.
    pub surge: usize,
    /// How many of the wanted workers may be missing. Default: [`UNAVAILABLE`], 0.
    pub unavailable: usize,
    /// How long a candidate must have been ready before it counts, and a stable worker leaves for it. Default:
    /// [`MIN_HEALTHY`], 10 s.
    pub min_healthy: Duration,
    /// How long any worker may take to be ready. Default: [`HEALTHY_DEADLINE`], 60 s.
    pub healthy_deadline: Duration,
    /// How long the update may go on without a further candidate that counts; pauses are not counted. Undoing the update
    /// may take as long, before it is given up for degraded. Default: [`PROGRESS_DEADLINE`], 10 min.
    pub progress_deadline: Duration,
    /// How many candidates have to fail before the update is halted. One that has failed is never started again. Default:
    /// [`HALT_ON_FAILURES`], 1.
    pub halt_on_failures: usize,
    /// What becomes of a halted update. Default: [`OnFailure::Revert`].
    pub on_failure: OnFailure,
    /// How many workers may be on their way out at a time. Default: `None`, as many as are wanted.
    pub draining_max: Option<usize>,
    /// Whether candidates are judged by what they answer, where they say: errors and slow requests are compared with those
    /// of the stable workers, which serve at the same time, by the [`guard`](crate::rollout::guard)s of rollouts with their
    /// defaults: they abort one of 100 updates without a regression ([`FALSE_ABORTS`](crate::rollout::FALSE_ABORTS)), leave
    /// out the first requests of each worker ([`WARM_UP_UNITS`](crate::rollout::WARM_UP_UNITS),
    /// [`WARM_UP`](crate::rollout::WARM_UP)), and count one error for each connection and minute
    /// ([`CLIENT_WINDOW`](crate::rollout::CLIENT_WINDOW)). Slow is what takes longer than 99 of 100 requests did on the
    /// median stable worker in the minutes before the update. Default: `true`.
    pub guards: bool,
}

/// What becomes of a halted update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// The candidates leave, and stable workers take their places, started from the image that ran before.
    #[default]
    Revert,
    /// The mix stays as it is, to be looked at, until an operator resumes the update or aborts it.
    Halt,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            surge: SURGE,
            unavailable: UNAVAILABLE,
            min_healthy: MIN_HEALTHY,
            healthy_deadline: HEALTHY_DEADLINE,
            progress_deadline: PROGRESS_DEADLINE,
            halt_on_failures: HALT_ON_FAILURES,
            on_failure: OnFailure::default(),
            draining_max: None,
            guards: true,
        }
    }
}

impl Plan {
    /// Whether it can be carried out; if not, why.
    ///
    /// # Errors
    ///
    /// Without surge and with nobody missing no worker could ever be replaced. And each wait must be shorter than the one
    /// around it: `min_healthy`, `healthy_deadline`, `progress_deadline`.
    pub fn check(&self) -> Result<(), String> {
        if self.surge == 0 && self.unavailable == 0 {
            let text =
                "nobody could be replaced with a surge of 0 and 0 unavailable: allow 1 of either";
            return Err(text.to_owned());
        }
        let waits = [
            ("min_healthy", self.min_healthy),
            ("healthy_deadline", self.healthy_deadline),
            ("progress_deadline", self.progress_deadline),
        ];
        let wrong = waits.windows(2).find(|pair| pair[0].1 >= pair[1].1);
        wrong.map_or(Ok(()), |pair| {
            let [(short, is), (long, limit)] = [pair[0], pair[1]];
            Err(format!(
                "{short} ({is:?}) must be shorter than {long} ({limit:?})"
            ))
        })
    }

    /// How many candidates are tried at once, after the first one alone.
    pub(super) fn batch(&self) -> usize {
        (self.surge + self.unavailable).max(1)
    }
}

/// What becomes of workers that die without having been told to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Care {
    /// How long the second replacement in a row waits; each further one twice as long. Default: [`BACKOFF`], 100 ms.
    pub backoff: Duration,
    /// How long a replacement waits at most. Default: [`BACKOFF_MAX`], 30 s.
    pub backoff_max: Duration,
    /// How long it waits at most if no worker lives. Default: [`BACKOFF_ALONE`], 1 s.
    pub backoff_alone: Duration,
    /// How many crashes in a row are a crash loop. Default: [`LOOP_AFTER`], 5.
    pub loop_after: u32,
    /// How long a worker must have been ready for the crashes before it to be forgotten. Default: [`FORGIVEN_AFTER`],
    /// 10 s.
    pub forgiven_after: Duration,
}

impl Default for Care {
    fn default() -> Self {
        Self {
            backoff: BACKOFF,
            backoff_max: BACKOFF_MAX,
            backoff_alone: BACKOFF_ALONE,
            loop_after: LOOP_AFTER,
            forgiven_after: FORGIVEN_AFTER,
        }
    }
}

impl Care {
    /// How long the replacement waits after so many crashes in a row. `jitter` is a random number from 0 to 1: workers
    /// that crash for the same reason are not to come back at the same instant. It takes away up to a half.
    pub(super) fn delay(&self, crashes: u32, jitter: f64) -> Duration {
        let Some(doublings) = crashes.checked_sub(2) else {
            return Duration::ZERO;
        };
        let factor = 2_u32.saturating_pow(doublings);
        let delay = self.backoff.saturating_mul(factor).min(self.backoff_max);
        delay.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_plan_can_be_carried_out_and_impossible_ones_say_why() {
        assert_eq!(Plan::default().check(), Ok(()));
        let nobody = Plan {
            surge: 0,
            ..Plan::default()
        };
        assert!(nobody.check().unwrap_err().contains("allow 1"));
        let late = Plan {
            min_healthy: HEALTHY_DEADLINE,
            ..Plan::default()
        };
        assert!(late.check().unwrap_err().starts_with("min_healthy (60s)"));
        let endless = Plan {
            healthy_deadline: Duration::from_secs(3600),
            ..Plan::default()
        };
        assert!(
            endless
                .check()
                .unwrap_err()
                .contains("progress_deadline (600s)")
        );
    }

    #[test]
    fn the_first_crash_costs_no_wait_and_the_others_ever_more_up_to_the_limit() {
        let care = Care::default();
        let delays: Vec<u128> = (0..12)
            .map(|crashes| care.delay(crashes, 0.0).as_millis())
            .collect();
        assert_eq!(
            delays,
            [
                0, 0, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000
            ]
        );
        assert_eq!(care.delay(u32::MAX, 0.0), BACKOFF_MAX);
        assert_eq!(care.delay(2, 1.0), BACKOFF / 2);
        assert_eq!(care.delay(2, f64::INFINITY), BACKOFF / 2);
    }

    #[test]
    fn a_plan_is_changed_field_by_field_and_a_field_that_nobody_knows_is_an_error() {
        let plan: Plan = serde_json::from_str(r#"{"surge":3,"on_failure":"halt"}"#).unwrap();
        assert_eq!((plan.surge, plan.on_failure), (3, OnFailure::Halt));
        assert_eq!(plan.min_healthy, MIN_HEALTHY);
        assert!(serde_json::from_str::<Plan>(r#"{"steps":[1]}"#).is_err());
    }
}
