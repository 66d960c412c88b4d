//! All guards of one rollout: which of them are armed when, and what they are shown.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::{Absolute, Counts, Finding, Guard, Reading, Relative, Sides, Trouble};
use crate::rollout::plan::Rollout;
use crate::rollout::share::Share;

/// How the application's own guards are made: each rollout has new ones, which have seen nothing yet.
#[derive(Clone, Default)]
pub(crate) struct OwnGuards(Vec<Arc<dyn Fn() -> Box<dyn Guard> + Send + Sync>>);

impl OwnGuards {
    pub(crate) fn add<G: Guard + 'static>(&mut self, make: impl Fn() -> G + Send + Sync + 'static) {
        self.0.push(Arc::new(move || Box::new(make())));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for OwnGuards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnGuards").field(&self.0.len()).finish()
    }
}

/// All guards of one rollout.
///
/// While both sides serve, errors and slow requests are compared; from the flip on they are judged by stable's history,
/// for there is nothing left to compare with. The allowance for false aborts is divided among those that are armed at
/// the same time. The first requests of a candidate are kept from all of them, and so
/// are the first after its flip.
#[derive(Debug)]
pub struct Guards {
    plan: Rollout,
    warm_up: WarmUp,
    /// How many requests the candidate had answered when it began to warm up.
    warm_from: u64,
    last: Sides,
    /// What had been counted when the guards that are armed now began to watch.
    base: Sides,
    armed: Armed,
    own: Vec<Box<dyn Guard>>,
    trouble: Trouble,
    shared: bool,
}

#[derive(Debug)]
enum WarmUp {
    /// The candidate has answered nothing yet.
    Ahead,
    Since(Duration),
    Over,
}

#[derive(Debug)]
enum Armed {
    /// The plan wants none.
    Nothing,
    Shift(Box<[Relative; ARMED]>),
    Bake(Box<[Absolute; ARMED]>),
}

impl Guards {
    /// For a rollout by this plan. Without guards if it is unguarded, but for those that are added.
    pub fn new(plan: &Rollout) -> Self {
        let alpha = alpha(plan);
        let armed = if plan.guards {
            Armed::Shift(Box::new([Relative::errors(alpha), Relative::slow(alpha)]))
        } else {
            Armed::Nothing
        };
        Self {
            plan: plan.clone(),
            warm_up: WarmUp::Ahead,
            warm_from: 0,
            last: Sides::default(),
            base: Sides::default(),
            armed,
            own: Vec::new(),
            trouble: Trouble::new(plan.worst_rate),
            shared: false,
        }
    }

    /// One more, armed all the time. How often it may abort is its own affair.
    pub fn add(&mut self, guard: impl Guard + 'static) {
        self.own.push(Box::new(guard));
    }

    /// One more of each of these.
    pub(crate) fn add_new(&mut self, own: &OwnGuards) {
        let made = own.0.iter().map(|make| {
            let made = catch_unwind(AssertUnwindSafe(|| make()));
            made.unwrap_or_else(|_| Box::new(Unmade))
        });
        self.own.extend(made);
    }

    /// All traffic goes to the candidate from now on. `history` is what stable has answered before the rollout.
    pub fn begin_bake(&mut self, history: Counts) {
        if let Armed::Shift(_) = self.armed {
            let (alpha, worst) = (alpha(&self.plan), self.plan.worst_rate);
            self.base = self.last;
            if self.plan.warm_up_units > 0 {
                // All of the traffic at once is more than it has seen so far, and it has it in the middle of a flip.
                (self.warm_up, self.warm_from) = (WarmUp::Ahead, self.last.candidate.requests);
            }
            self.armed = Armed::Bake(Box::new([
                Absolute::errors(history, worst, alpha),
                Absolute::slow(history, worst, alpha),
            ]));
        }
    }

    /// Looks at what was counted since the rollout began; `now` is the time since then. No readings during the warm-up.
    pub fn look(&mut self, now: Duration, sides: &Sides) -> Vec<Reading> {
        self.last = *sides;
        self.shared = self.trouble.observe(sides);
        if self.is_warming(now, sides) {
            self.base = *sides;
            return Vec::new();
        }
        let since = Sides {
            candidate: sides.candidate.since(self.base.candidate),
            stable: sides.stable.since(self.base.stable),
            share: sides.share,
        };
        let mut readings: Vec<_> = match &mut self.armed {
            Armed::Nothing => Vec::new(),
            Armed::Shift(guards) => guards.iter_mut().map(|guard| guard.look(&since)).collect(),
            Armed::Bake(guards) => {
                let shared = self.shared;
                let readings = guards.iter_mut().map(|guard| guard.look(&since));
                readings
                    .map(|reading| if shared { excused(reading) } else { reading })
                    .collect()
            }
        };
        let own = self.own.iter_mut();
        readings.extend(own.map(|guard| look_safely(&mut **guard, &since)));
        readings
    }

    /// Whether both sides fail, as of the last look.
    pub fn trouble_is_shared(&self) -> bool {
        self.shared
    }

    fn is_warming(&mut self, now: Duration, sides: &Sides) -> bool {
        let warming = sides.candidate.requests.saturating_sub(self.warm_from);
        match self.warm_up {
            WarmUp::Over => return false,
            _ if warming >= self.plan.warm_up_units => self.warm_up = WarmUp::Over,
            WarmUp::Ahead if warming > 0 => self.warm_up = WarmUp::Since(now),
            WarmUp::Ahead => {}
            WarmUp::Since(begun) if now.saturating_sub(begun) >= self.plan.warm_up => {
                self.warm_up = WarmUp::Over;
            }
            WarmUp::Since(_) => {}
        }
        // The requests of the look that ends it still belong to it.
        true
    }
}

/// A guard that could not be made.
#[derive(Debug)]
struct Unmade;

impl Guard for Unmade {
    fn name(&self) -> &str {
        OWN
    }

    fn look(&mut self, _: &Sides) -> Reading {
        panicked()
    }
}

/// Foreign code: whoever runs the rollout lives on whatever it does.
fn look_safely(guard: &mut dyn Guard, sides: &Sides) -> Reading {
    // What it leaves behind is seen by nobody but the guard itself.
    let looked = catch_unwind(AssertUnwindSafe(|| guard.look(sides)));
    looked.unwrap_or_else(|_| panicked())
}

fn panicked() -> Reading {
    Reading {
        guard: OWN.to_owned(),
        finding: Finding::Error,
        text: "it panicked".to_owned(),
        figures: Vec::new(),
    }
}

/// A candidate that fails together with stable is not to blame.
fn excused(reading: Reading) -> Reading {
    match reading.finding {
        Finding::Failed => Reading {
            finding: Finding::Inconclusive,
            text: format!("{}; but stable fails too", reading.text),
            ..reading
        },
        _ => reading,
    }
}

/// For each guard.
fn alpha(plan: &Rollout) -> f64 {
    plan.false_aborts.max(Share::per_10000(1)).fraction() / ARMED as f64
}

/// What a guard is called that cannot say its name.
const OWN: &str = "a guard of the application's own";
/// Guards of this crate that are armed at the same time.
const ARMED: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn counts(requests: u64, errors: u64) -> Counts {
        Counts {
            requests,
            errors,
            slow: 0,
        }
    }

    fn sides(candidate: Counts, stable: Counts) -> Sides {
        let share = Share::percent(5);
        Sides {
            candidate,
            stable,
            share,
        }
    }

    fn finding(guards: &mut Guards, second: u32, sides: Sides) -> Option<Finding> {
        guards
            .look(second * SECOND, &sides)
            .first()
            .map(|reading| reading.finding)
    }

    #[test]
    fn cold_caches_are_not_held_against_the_candidate() {
        let mut guards = Guards::new(&Rollout::canary([5]));
        assert_eq!(
            finding(&mut guards, 900, sides(counts(0, 0), counts(900, 0))),
            None
        );
        assert_eq!(
            finding(&mut guards, 901, sides(counts(20, 20), counts(910, 0))),
            None
        );
        assert_eq!(
            finding(&mut guards, 902, sides(counts(50, 50), counts(1_000, 0))),
            None
        );
        let warm = finding(&mut guards, 903, sides(counts(60, 50), counts(1_190, 0)));
        assert_eq!(warm, Some(Finding::Fine));
        let failing = finding(&mut guards, 904, sides(counts(70, 60), counts(1_380, 0)));
        assert_eq!(failing, Some(Finding::Failed));
    }

    #[test]
    fn the_warm_up_ends_by_time_where_there_is_little_traffic() {
        let mut guards = Guards::new(&Rollout::canary([5]));
        for (second, is_warm) in [(100, false), (129, false), (130, false), (131, true)] {
            let readings = guards.look(second * SECOND, &sides(counts(3, 0), counts(50, 0)));
            assert_eq!(!readings.is_empty(), is_warm, "{second}");
        }
    }

    #[test]
    fn a_candidate_with_a_share_warms_up_once_more_when_it_gets_the_rest() {
        let mut guards = Guards::new(&Rollout::canary([5]));
        for (second, requests) in [(1, 10), (2, 60), (3, 100)] {
            guards.look(second * SECOND, &sides(counts(requests, 0), counts(900, 0)));
        }
        guards.begin_bake(counts(100_000, 100));
        let alone = |requests, errors| sides(counts(requests, errors), counts(900, 0));
        assert_eq!(finding(&mut guards, 4, alone(140, 40)), None);
        assert_eq!(finding(&mut guards, 5, alone(150, 50)), None);
        let warm = finding(&mut guards, 6, alone(160, 50));
        assert_eq!(warm, Some(Finding::Inconclusive));
        let failing = finding(&mut guards, 7, alone(260, 90));
        assert_eq!(failing, Some(Finding::Failed));
    }

    #[test]
    fn from_the_flip_on_the_candidate_is_judged_by_stables_history() {
        let mut guards = Guards::new(&Rollout::blue_green().warm_up(Duration::ZERO, 0));
        finding(&mut guards, 0, Sides::default());
        guards.begin_bake(counts(100_000, 100));
        let alone = |requests, errors| sides(counts(requests, errors), counts(0, 0));
        assert_eq!(
            finding(&mut guards, 1, alone(10, 0)),
            Some(Finding::Inconclusive)
        );
        assert_eq!(
            finding(&mut guards, 2, alone(1_000, 1)),
            Some(Finding::Fine)
        );
        assert_eq!(
            finding(&mut guards, 3, alone(1_100, 50)),
            Some(Finding::Failed)
        );
    }

    #[test]
    fn a_candidate_that_fails_together_with_stable_is_held_and_not_undone() {
        let mut guards = Guards::new(&Rollout::blue_green().warm_up(Duration::ZERO, 0));
        guards.look(SECOND, &sides(counts(1, 0), counts(1, 0)));
        guards.look(SECOND, &sides(counts(1_000, 500), counts(1_000, 500)));
        assert!(guards.trouble_is_shared());
        guards.begin_bake(counts(100_000, 100));
        let failing = sides(counts(2_000, 1_000), counts(1_000, 500));
        assert_eq!(
            finding(&mut guards, 2, failing),
            Some(Finding::Inconclusive)
        );
    }

    #[test]
    fn an_unguarded_rollout_has_the_guards_that_were_added() {
        #[derive(Debug)]
        struct Own;
        impl Guard for Own {
            fn name(&self) -> &str {
                "own"
            }
            fn look(&mut self, _: &Sides) -> Reading {
                Reading {
                    guard: "own".to_owned(),
                    finding: Finding::Error,
                    text: String::new(),
                    figures: Vec::new(),
                }
            }
        }
        let mut guards = Guards::new(&Rollout::immediate().warm_up(Duration::ZERO, 0));
        guards.add(Own);
        guards.look(SECOND, &Sides::default());
        let names: Vec<_> = guards
            .look(SECOND, &Sides::default())
            .into_iter()
            .map(|r| r.guard)
            .collect();
        assert_eq!(names, ["own"]);
    }

    #[test]
    fn a_guard_that_panics_could_not_measure() {
        #[derive(Debug)]
        struct Panics;
        impl Guard for Panics {
            fn name(&self) -> &str {
                "panics"
            }
            fn look(&mut self, _: &Sides) -> Reading {
                panic!("on purpose")
            }
        }
        let mut own = OwnGuards::default();
        own.add(|| Panics);
        own.add(|| -> Panics { panic!("on purpose") });
        let mut guards = Guards::new(&Rollout::immediate().warm_up(Duration::ZERO, 0));
        guards.add_new(&own);
        guards.look(SECOND, &Sides::default());
        let readings = guards.look(SECOND, &Sides::default());
        assert_eq!(readings, [panicked(), panicked()]);
    }
}
