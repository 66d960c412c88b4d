//! Rollouts by dice: traffic that is split by chance, errors that happen by chance, and guards that look at every event.

use std::time::Duration;

use handover::rollout::guard::{
    Absolute, Clients, Counts, Finding, Relative, Sides, slow_threshold,
};
use handover::rollout::{Share, WORST_RATE};

/// SplitMix64 (Steele, Lea and Flood, 2014): the same dice in every run.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn happens(&mut self, probability: f64) -> bool {
        ((self.roll() >> 11) as f64) < probability * (1_u64 << 53) as f64
    }

    fn below(&mut self, end: usize) -> usize {
        (self.roll() % end as u64) as usize
    }
}

/// What came of many rollouts.
pub(crate) struct Tally {
    runs: usize,
    /// Requests of the candidate when it was undone, in order.
    pub(crate) undone_at: Vec<u64>,
}

impl Tally {
    pub(crate) fn of(runs: usize, mut run: impl FnMut() -> Option<u64>) -> Self {
        let mut undone_at: Vec<_> = (0..runs).filter_map(|_| run()).collect();
        undone_at.sort_unstable();
        Self { runs, undone_at }
    }

    /// In what part of the runs the candidate was undone before so many requests of its own.
    pub(crate) fn within(&self, requests: u64) -> f64 {
        let early = self.undone_at.partition_point(|at| *at <= requests);
        early as f64 / self.runs as f64
    }
}

/// A canary whose requests are independent of each other.
#[derive(Clone, Copy)]
pub(crate) struct Independent {
    pub(crate) percent: u8,
    pub(crate) stable_rate: f64,
    pub(crate) candidate_rate: f64,
    pub(crate) candidate_requests: u64,
}

impl Independent {
    /// Whether the guard undoes it, and after how many requests of the candidate.
    pub(crate) fn run(self, mut guard: Relative, dice: &mut Dice) -> Option<u64> {
        let share = Share::percent(self.percent);
        let mut sides = Sides {
            share,
            ..Sides::default()
        };
        while sides.candidate.requests < self.candidate_requests {
            let (counts, rate) = if dice.happens(share.fraction()) {
                (&mut sides.candidate, self.candidate_rate)
            } else {
                (&mut sides.stable, self.stable_rate)
            };
            let failed = dice.happens(rate);
            answer(counts, failed);
            if guard.observe(&sides) == Finding::Failed {
                return Some(sides.candidate.requests);
            }
        }
        None
    }
}

/// A canary of clients that stay where they are, some of which retry what fails; the releases are equally good.
#[derive(Clone, Copy)]
pub(crate) struct Bursts {
    pub(crate) percent: u8,
    pub(crate) clients: usize,
    pub(crate) requests: usize,
    pub(crate) rate: f64,
    pub(crate) bursts: usize,
    /// Errors of a burst, a second apart.
    pub(crate) burst: usize,
    /// The time in which a client counts once; none: every error counts.
    pub(crate) window: Option<Duration>,
}

impl Bursts {
    /// Whether the guard undoes it, and after how many requests of the candidate. A hundred requests in a second.
    pub(crate) fn run(self, mut guard: Relative, dice: &mut Dice) -> Option<u64> {
        let share = Share::percent(self.percent);
        let mut sides = Sides {
            share,
            ..Sides::default()
        };
        let on_candidate: Vec<_> = (0..self.clients)
            .map(|_| dice.happens(share.fraction()))
            .collect();
        let mut counted = self
            .window
            .map(|window| [Clients::new(window), Clients::new(window)]);
        let mut events = self.events(dice);
        events.sort_unstable();
        for (at, client, failed) in events {
            let side = usize::from(on_candidate[client]);
            let now = Duration::from_millis(10 * at as u64);
            let counts = failed
                && counted
                    .as_mut()
                    .is_none_or(|sides| sides[side].count(client as u64, now));
            answer([&mut sides.stable, &mut sides.candidate][side], counts);
            if guard.observe(&sides) == Finding::Failed {
                return Some(sides.candidate.requests);
            }
        }
        None
    }

    /// When, who, and whether it fails.
    fn events(self, dice: &mut Dice) -> Vec<(usize, usize, bool)> {
        let mut events: Vec<_> = (0..self.requests)
            .map(|at| (at, dice.below(self.clients), dice.happens(self.rate)))
            .collect();
        for _ in 0..self.bursts {
            let (begun, client) = (dice.below(self.requests), dice.below(self.clients));
            events.extend((0..self.burst).map(|retry| (begun + 100 * retry, client, true)));
        }
        events
    }
}

/// A candidate that serves alone.
#[derive(Clone, Copy)]
pub(crate) struct Alone {
    pub(crate) expected: f64,
    pub(crate) worst: Share,
    pub(crate) rate: f64,
    /// Where it ends, at the latest.
    pub(crate) requests: u64,
}

impl Alone {
    /// Whether the guard undoes it, and after how many requests.
    pub(crate) fn run(self, dice: &mut Dice) -> Option<u64> {
        self.follow(dice, |_| false)
    }

    /// Whether the guard undoes it before it has passed the first round.
    pub(crate) fn first_round(self, dice: &mut Dice) -> Option<u64> {
        self.follow(dice, |guard| guard.rounds_passed() > 0)
    }

    fn follow(self, dice: &mut Dice, is_over: impl Fn(&Absolute) -> bool) -> Option<u64> {
        let requests = 10_000_000;
        let errors = (self.expected * requests as f64) as u64;
        let history = Counts {
            requests,
            errors,
            slow: 0,
        };
        let mut guard = Absolute::errors(history, self.worst, 0.01);
        let mut counts = Counts::default();
        while counts.requests < self.requests && !is_over(&guard) {
            let failed = dice.happens(self.rate);
            answer(&mut counts, failed);
            if guard.observe(counts) == Finding::Failed {
                return Some(counts.requests);
            }
        }
        None
    }
}

/// A candidate that serves alone, as fast as stable was, whose 99th percentile is told of some of its requests.
#[derive(Clone, Copy)]
pub(crate) struct AsFast {
    pub(crate) known: usize,
    pub(crate) requests: u64,
}

impl AsFast {
    /// Whether the guard undoes it, and after how many requests.
    pub(crate) fn run(self, alpha: f64, dice: &mut Dice) -> Option<u64> {
        let mut latencies: Vec<_> = (0..self.known)
            .map(|_| Duration::from_nanos(dice.roll() >> 32))
            .collect();
        let threshold = slow_threshold(&mut latencies)?;
        let history = Counts {
            requests: self.known as u64,
            ..Counts::default()
        };
        let mut guard = Absolute::slow(history, WORST_RATE, alpha);
        let mut counts = Counts::default();
        while counts.requests < self.requests {
            counts.requests += 1;
            counts.slow += u64::from(Duration::from_nanos(dice.roll() >> 32) > threshold);
            if guard.observe(counts) == Finding::Failed {
                return Some(counts.requests);
            }
        }
        None
    }
}

fn answer(counts: &mut Counts, failed: bool) {
    counts.requests += 1;
    counts.errors += u64::from(failed);
}
