//! Looking at both sides of a rollout: what they have counted, how the candidate is, and whether anybody accepts.
//!
//! The candidate only counts and reports; the guards are stable's. [`Looks`] decides, what it finds is told to the
//! rollout's controller by the driver.

use std::time::{Duration, Instant};

use super::Driver;
use super::upward::Upward;
use crate::config::{COUNTS_DEADLINE, LOOK_INTERVAL};
use crate::control::SideState;
use crate::observe::{Counted, History, Observed, Rules};
use crate::protocol::message::{Message, Tally, Watch, micros, millis};
use crate::rollout::controller::Trigger;
use crate::rollout::guard::{
    Counts, Expected, Fallen, Figure, Finding, Guards, OwnGuards, Queue, Reading, Sides, Stall,
    Stalled,
};
use crate::rollout::{ACCEPTS_WINDOW, By, Rollout, Share, Stage};

/// What is looked at while a rollout has a candidate that is ready.
#[derive(Debug)]
pub(super) struct Looks {
    guards: Guards,
    /// Whether anything comes of a look that cannot measure.
    is_guarded: bool,
    stall: Stall,
    begun: Instant,
    next: Instant,
    /// Since when the candidate owes an answer. One that does not speak this version of the protocol always does.
    owed_since: Option<Instant>,
    /// Whether it can be asked at all.
    answers: bool,
    /// How many looks have failed for want of an answer.
    missed: u32,
    rules: Rules,
    history: History,
    /// What stable had counted when the candidate was ready.
    base: Counts,
    candidate: Tally,
    is_flipped: bool,
    /// What is to arrive after the flip, and how many connections the candidate had accepted before it.
    expected: Option<(Expected, u64)>,
    trouble: bool,
    /// What stable had counted since then at the last look that was answered.
    stable: Counts,
    candidate_rate: Rate,
    stable_rate: Rate,
}

/// How many requests come in a second.
#[derive(Clone, Copy, Debug)]
struct Rate {
    since: Instant,
    requests: u64,
    measured: Option<f64>,
}

/// What a look finds, in the order in which it is to be told.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// The candidate is to be asked for its counts.
    Ask,
    /// What the guards have read, and how many requests the candidate has answered.
    Look {
        units: u64,
        readings: Vec<Reading>,
    },
    Degraded,
    Recovered,
    Trouble,
    TroubleOver,
    Stalled(Stalled),
    Fallen(Fallen),
}

/// What stable has at the moment of a look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stable {
    pub(super) counts: Counts,
    /// Of what comes, the candidate is given so much.
    pub(super) share: Share,
}

impl Looks {
    /// The candidate is ready. `own` are the application's guards, `answers` is whether it can be asked; `stable` what stable has counted so far, and
    /// `history` what of it was counted lately.
    pub(super) fn new(
        now: Instant,
        plan: &Rollout,
        own: &OwnGuards,
        answers: bool,
        stable: Counts,
        history: History,
    ) -> Self {
        let rules = Rules {
            slow_above: history.slow_above,
            window: plan.client_window,
            by: match plan.by {
                By::Connection => Counted::Connection,
                By::Client | By::Request => Counted::Client,
            },
        };
        let mut guards = Guards::new(plan);
        guards.add_new(own);
        Self {
            guards,
            is_guarded: plan.guards || !own.is_empty(),
            stall: Stall::new(plan.stall_after),
            begun: now,
            next: now + LOOK_INTERVAL,
            owed_since: (!answers).then_some(now),
            answers,
            missed: 0,
            rules,
            history,
            base: stable,
            candidate: Tally::default(),
            is_flipped: false,
            expected: None,
            trouble: false,
            stable: Counts::default(),
            candidate_rate: Rate::new(now),
            stable_rate: Rate::new(now),
        }
    }

    /// What both sides have counted, the candidate's first. Who they are the caller knows.
    pub(super) fn sides(&self) -> [SideState; 2] {
        let Tally {
            requests,
            errors,
            slow,
            shed,
            in_flight,
            p50_us,
            p99_us,
            ..
        } = self.candidate;
        let candidate = SideState {
            requests,
            errors,
            slow,
            shed,
            in_flight,
            rate: self.candidate_rate.measured,
            p50_us,
            p99_us,
            ..SideState::default()
        };
        let stable = SideState {
            requests: self.stable.requests,
            errors: self.stable.errors,
            slow: self.stable.slow,
            rate: self.stable_rate.measured,
            ..SideState::default()
        };
        [candidate, stable]
    }

    /// How both sides are to count.
    pub(super) fn rules(&self) -> Rules {
        self.rules
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.next
    }

    /// It may be time for a look. `waiting` says how many connections wait, and is asked only if that matters.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        waiting: impl FnOnce() -> u64,
    ) -> Vec<Found> {
        if now < self.next {
            return Vec::new();
        }
        self.next = now + LOOK_INTERVAL;
        let mut found = Vec::new();
        if self.is_flipped {
            let queue = Queue {
                waiting: waiting(),
                accepted: self.candidate.accepted.unwrap_or(self.candidate.requests),
            };
            found.extend(self.stall.look(now, queue).map(Found::Stalled));
        }
        match self.owed_since {
            None => {
                self.owed_since = Some(now);
                found.push(Found::Ask);
            }
            Some(since) => found.extend(self.miss(now.saturating_duration_since(since))),
        }
        found
    }

    /// The candidate has answered.
    pub(super) fn handle_counts(
        &mut self,
        now: Instant,
        tally: Tally,
        stable: Stable,
    ) -> Vec<Found> {
        if !self.answers {
            return Vec::new();
        }
        (self.owed_since, self.missed) = (None, 0);
        let mut found = Vec::new();
        match (&self.candidate.degraded, &tally.degraded) {
            (None, Some(_)) => found.push(Found::Degraded),
            (Some(_), None) => found.push(Found::Recovered),
            _ => {}
        }
        self.stable = stable.counts.since(self.base);
        self.stable_rate.count(now, self.stable.requests);
        self.candidate_rate.count(now, tally.requests);
        let sides = Sides {
            candidate: Counts {
                requests: tally.requests,
                errors: tally.errors,
                slow: tally.slow,
            },
            stable: self.stable,
            share: stable.share,
        };
        let elapsed = now.saturating_duration_since(self.begun);
        let readings = self.guards.look(elapsed, &sides);
        // Before what they have read: trouble that is shared is to hold, and nothing of it is to be undone.
        let trouble = self.guards.trouble_is_shared();
        if trouble != self.trouble {
            self.trouble = trouble;
            found.push(match trouble {
                true => Found::Trouble,
                false => Found::TroubleOver,
            });
        }
        found.push(Found::Look {
            units: tally.requests,
            readings,
        });
        found.extend(self.miss_arrivals(now, &tally).map(Found::Fallen));
        self.candidate = tally;
        found
    }

    /// Whether too few clients arrive since the flip; judged once.
    fn miss_arrivals(&mut self, now: Instant, tally: &Tally) -> Option<Fallen> {
        let (expected, before) = self.expected?;
        let after = tally.accepted?.saturating_sub(before);
        let judged = expected.judge(now, after)?;
        self.expected = None;
        judged.err()
    }

    /// The candidate serves alone from now on, and as many clients are expected to arrive there as did before.
    pub(super) fn handle_flipped(&mut self, expected: Option<Expected>) {
        self.is_flipped = true;
        if self.is_guarded {
            self.expected = expected.zip(self.candidate.accepted);
        }
        self.guards.begin_bake(self.history.counts);
    }

    /// An answer is due. Guards that get none cannot measure, and know nothing against the candidate either.
    fn miss(&mut self, owed: Duration) -> Option<Found> {
        let is_due = owed >= COUNTS_DEADLINE * (self.missed + 1);
        if !is_due || !self.is_guarded {
            return None;
        }
        self.missed += 1;
        let text = match self.answers {
            true => format!("no answer for {:.1} s", owed.as_secs_f64()),
            false => "the candidate's build is too old to say what it has counted".to_owned(),
        };
        let reading = Reading {
            guard: "counts".to_owned(),
            finding: Finding::Error,
            text,
            figures: vec![Figure::new("silent_seconds", owed.as_secs_f64())],
        };
        Some(Found::Look {
            units: self.candidate.requests,
            readings: vec![reading],
        })
    }
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            requests: 0,
            measured: None,
        }
    }

    fn count(&mut self, now: Instant, requests: u64) {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= RATE_OVER {
            let came = requests.saturating_sub(self.requests);
            *self = Self {
                since: now,
                requests,
                measured: Some(came as f64 / elapsed.as_secs_f64()),
            };
        }
    }
}

/// The incumbent's part.
impl Driver {
    /// The successor is ready: it is looked at from now on.
    pub(super) fn begin_looks(&mut self) {
        let (now, observed) = (Instant::now(), &self.shared.observed);
        let Some(down) = &mut self.down else { return };
        let answers = down.version >= COUNTS_SINCE;
        let counts = observed.snapshot().counts;
        let (own, history) = (&self.config.guards, observed.history());
        let mut looks = Looks::new(now, &down.plan, own, answers, counts, history);
        observed.apply(looks.rules());
        if let Some(tally) = down
            .reported
            .take()
            .filter(|tally| tally.degraded.is_some())
        {
            // Before the rollout hears that the candidate is ready, which may be all that it waits for.
            down.controller.handle_degraded(now);
            looks.candidate = tally;
        }
        down.looks = Some(looks);
    }

    pub(super) fn next_look(&self) -> Option<Instant> {
        let down = self.down.as_ref()?;
        let looks = down.looks.as_ref()?;
        is_looked_at(down.controller.stage()).then(|| looks.poll_timeout())
    }

    pub(super) fn look_if_due(&mut self) {
        let now = Instant::now();
        if self.next_look().is_none_or(|at| now < at) {
            return;
        }
        let (table, unclaimed) = (&self.shared.table, &self.unclaimed);
        let looks = self.down.as_mut().and_then(|down| down.looks.as_mut());
        let found = looks.map(|looks| looks.handle_timeout(now, || table.waiting(unclaimed)));
        self.tell_way_back();
        self.tell_found(now, found.unwrap_or_default());
    }

    /// The successor has said what it has counted.
    pub(super) fn hear_counts(&mut self, tally: Tally) {
        let (now, counts) = (Instant::now(), self.shared.observed.snapshot().counts);
        let Some(down) = &mut self.down else { return };
        let share = down.controller.share();
        let stable = Stable { counts, share };
        let Some(looks) = &mut down.looks else {
            down.reported = Some(tally);
            return;
        };
        let found = looks.handle_counts(now, tally, stable);
        self.tell_found(now, found);
    }

    fn tell_found(&mut self, now: Instant, found: Vec<Found>) {
        for found in found {
            let Some(down) = &mut self.down else { return };
            let controller = &mut down.controller;
            match found {
                Found::Ask => self.ask_for_counts(),
                Found::Look { units, readings } => controller.handle_look(now, units, readings),
                Found::Degraded => controller.handle_degraded(now),
                Found::Recovered => controller.handle_recovered(now),
                Found::Trouble => controller.handle_trouble(now),
                Found::TroubleOver => controller.handle_trouble_over(now),
                Found::Stalled(Stalled { waiting, silent }) => {
                    controller.handle_trigger(now, Trigger::Stalled { waiting, silent });
                }
                Found::Fallen(Fallen { before, after }) => {
                    let reason = format!(
                        "only {after} connections have arrived in {} s, where {before} did before the flip",
                        ACCEPTS_WINDOW.as_secs()
                    );
                    controller.handle_trigger(now, Trigger::CheckFailed { reason });
                }
            }
        }
        self.perform_downward();
    }

    fn ask_for_counts(&mut self) {
        let looks = self.down.as_ref().and_then(|down| down.looks.as_ref());
        let Some(rules) = looks.map(Looks::rules) else {
            return;
        };
        self.tell_successor(&Message::Watch(Watch {
            slow_us: rules.slow_above.map(micros),
            window_ms: millis(rules.window),
            by_connection: rules.by == Counted::Connection,
        }));
    }
}

/// The successor's part.
impl Driver {
    /// The incumbent wants to know what was counted, and how to go on counting.
    pub(super) fn answer_watch(&mut self, watch: Watch) {
        let Some(up) = &mut self.up else { return };
        if up.watched != Some(watch) {
            up.watched = Some(watch);
            self.shared.observed.apply(rules_of(watch));
        }
        let tally = self.tally(&self.shared.observed);
        self.tell_incumbent(&Message::Counts(tally));
    }

    /// Its application has said so while it warmed up, and it is about to be ready.
    pub(super) fn report_if_degraded(&mut self) {
        let knows = |up: &Upward| up.version >= COUNTS_SINCE;
        if self.shared.health.complaint().is_some() && self.up.as_ref().is_some_and(knows) {
            let tally = self.tally(&self.shared.observed);
            self.tell_incumbent(&Message::Counts(tally));
        }
    }

    pub(super) fn tally(&self, observed: &Observed) -> Tally {
        let snapshot = observed.snapshot();
        let accepted = self.shared.table.accepted();
        let [p50_us, p99_us] = observed.latencies().map(|took| took.map(micros));
        let mut degraded = self.shared.health.complaint();
        if let Some(reason) = &mut degraded {
            shorten(reason);
        }
        Tally {
            requests: snapshot.counts.requests,
            errors: snapshot.counts.errors,
            slow: snapshot.counts.slow,
            shed: snapshot.shed,
            in_flight: snapshot.in_flight,
            // Who accepts by itself and has never counted one does not count them.
            accepted: (accepted.is_complete || snapshot.accepted > 0)
                .then_some(accepted.count + snapshot.accepted),
            degraded,
            p50_us,
            p99_us,
            slow_us: None,
        }
    }
}

pub(super) fn rules_of(watch: Watch) -> Rules {
    Rules {
        slow_above: watch.slow_us.map(Duration::from_micros),
        window: Duration::from_millis(watch.window_ms),
        by: match watch.by_connection {
            true => Counted::Connection,
            false => Counted::Client,
        },
    }
}

/// Until the flip back, or the commit, somebody wants to know.
fn is_looked_at(stage: Stage) -> bool {
    !matches!(
        stage,
        Stage::Starting | Stage::Committing | Stage::Reverting | Stage::Over
    )
}

/// To what a message has room for in any case.
fn shorten(reason: &mut String) {
    let end = (0..=REASON_MAX.min(reason.len())).rev();
    let end = end.into_iter().find(|end| reason.is_char_boundary(*end));
    reason.truncate(end.unwrap_or(0));
}

/// The first version of the protocol in which counts are exchanged.
const COUNTS_SINCE: u32 = 2;
/// Over how long a rate is measured at least.
const RATE_OVER: Duration = Duration::from_secs(1);
/// How many bytes of the application's reason for being degraded are passed on.
const REASON_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::guard::{Accepts, Guard};

    fn history() -> History {
        History {
            counts: counts(100_000, 100),
            slow_above: Some(Duration::from_millis(120)),
        }
    }

    fn counts(requests: u64, errors: u64) -> Counts {
        Counts {
            requests,
            errors,
            slow: 0,
        }
    }

    fn tally(requests: u64, errors: u64) -> Tally {
        Tally {
            requests,
            errors,
            ..Tally::default()
        }
    }

    /// A rollout whose clock is the test's.
    struct Rig {
        looks: Looks,
        now: Instant,
        waiting: u64,
        stable: Stable,
    }

    impl Rig {
        fn new(plan: &Rollout, answers: bool) -> Self {
            Self::with(plan, &OwnGuards::default(), answers)
        }

        fn with(plan: &Rollout, own: &OwnGuards, answers: bool) -> Self {
            let (now, stable) = (Instant::now(), counts(1_000_000, 5_000));
            Self {
                looks: Looks::new(now, plan, own, answers, stable, history()),
                now,
                waiting: 0,
                stable: Stable {
                    counts: counts(1_000_000, 5_000),
                    share: Share::percent(50),
                },
            }
        }

        fn canary() -> Self {
            Self::new(&Rollout::canary([50]).warm_up(Duration::ZERO, 0), true)
        }

        /// Goes to the next look.
        fn look(&mut self) -> Vec<Found> {
            self.now = self.looks.poll_timeout();
            let waiting = self.waiting;
            self.looks.handle_timeout(self.now, || waiting)
        }

        /// All that is found in so many looks, each of them answered if there is an answer.
        fn looks(&mut self, count: usize, answer: Option<&Tally>) -> Vec<Found> {
            let mut all = Vec::new();
            for _ in 0..count {
                let found = self.look();
                if let (true, Some(tally)) = (found.contains(&Found::Ask), answer) {
                    all.extend(self.answer(tally.clone()));
                }
                all.extend(found);
            }
            all
        }

        fn answer(&mut self, tally: Tally) -> Vec<Found> {
            self.looks.handle_counts(self.now, tally, self.stable)
        }
    }

    fn readings(found: &[Found]) -> Vec<&Reading> {
        let looks = found.iter().filter_map(|found| match found {
            Found::Look { readings, .. } => Some(readings),
            _ => None,
        });
        looks.flatten().collect()
    }

    #[test]
    fn a_rate_is_what_came_in_the_last_second_of_looks() {
        let mut rig = Rig::canary();
        let begun = rig.now;
        let rates = |rig: &Rig| rig.looks.sides().map(|side| side.rate);
        rig.now = begun + RATE_OVER / 2;
        rig.answer(tally(50, 0));
        assert_eq!(rates(&rig), [None, None]);
        rig.now = begun + 2 * RATE_OVER;
        rig.stable.counts = counts(1_000_300, 5_000);
        rig.answer(tally(200, 1));
        assert_eq!(rates(&rig), [Some(100.0), Some(150.0)]);
        let [candidate, stable] = rig.looks.sides();
        assert_eq!((candidate.requests, candidate.errors), (200, 1));
        assert_eq!((stable.requests, stable.errors), (300, 0));
    }

    #[test]
    fn one_question_is_open_at_a_time_and_the_next_one_comes_with_the_next_look() {
        let mut rig = Rig::canary();
        let begun = rig.now;
        assert_eq!(rig.look(), [Found::Ask]);
        assert_eq!(rig.now, begun + LOOK_INTERVAL);
        assert_eq!(rig.looks.handle_timeout(rig.now, || 0), []);
        assert_eq!(rig.look(), []);
        rig.answer(tally(1, 0));
        assert_eq!(rig.look(), [Found::Ask]);
    }

    #[test]
    fn a_candidate_that_errs_more_often_fails_by_the_numbers_of_both_sides() {
        let mut rig = Rig::canary();
        rig.look();
        rig.answer(tally(0, 0));
        let mut failed = None;
        for requests in 1..=200 {
            rig.stable.counts = counts(1_000_000 + requests, 5_000);
            rig.look();
            let found = rig.answer(tally(requests, requests / 2));
            let readings = readings(&found);
            let is_failed = |reading: &&&Reading| reading.finding == Finding::Failed;
            if let Some(reading) = readings.iter().find(is_failed) {
                failed = Some((requests, reading.text.clone()));
                break;
            }
        }
        let (requests, text) = failed.unwrap();
        assert!(requests <= 40, "{requests}");
        // What stable had counted before the rollout is not in it.
        let expected = format!("candidate {}/{requests}, stable 0/{requests}", requests / 2);
        assert!(text.starts_with(&expected), "{text}");
    }

    #[test]
    fn guards_of_the_applications_own_see_both_sides_since_the_candidate_was_ready() {
        #[derive(Debug)]
        struct Own;
        impl Guard for Own {
            fn name(&self) -> &str {
                "own"
            }
            fn look(&mut self, sides: &Sides) -> Reading {
                let [candidate, stable] = [sides.candidate, sides.stable].map(|side| side.requests);
                Reading {
                    guard: "own".to_owned(),
                    finding: Finding::Fine,
                    text: format!("{candidate} and {stable}"),
                    figures: Vec::new(),
                }
            }
        }
        let mut own = OwnGuards::default();
        own.add(|| Own);
        let plan = Rollout::immediate().warm_up(Duration::ZERO, 0);
        let mut rig = Rig::with(&plan, &own, true);
        rig.looks.guards.look(Duration::ZERO, &Sides::default());
        rig.stable.counts = counts(1_000_070, 5_000);
        let found = rig.answer(tally(7, 0));
        assert_eq!(readings(&found)[0].text, "7 and 70");
        assert_eq!(
            readings(&rig.looks(42, None)).len(),
            2,
            "its silence does not matter"
        );
    }

    #[test]
    fn each_second_of_silence_is_a_look_that_could_not_measure() {
        let mut rig = Rig::canary();
        rig.look();
        rig.answer(tally(7, 0));
        let found = rig.looks(1 + 20 * 3 + 1, None);
        let readings = readings(&found);
        assert_eq!(readings.len(), 3);
        assert!(
            readings
                .iter()
                .all(|reading| reading.finding == Finding::Error)
        );
        assert_eq!(
            readings[2].to_string(),
            "counts not measured: no answer for 3.0 s"
        );
        assert!(matches!(found[1], Found::Look { units: 7, .. }));
        rig.answer(tally(8, 0));
        let again = rig.looks(20, None);
        assert_eq!(again, [Found::Ask]);
    }

    #[test]
    fn silence_does_not_matter_where_there_are_no_guards() {
        let mut rig = Rig::new(&Rollout::immediate(), true);
        assert_eq!(rig.looks(200, None), [Found::Ask]);
    }

    #[test]
    fn a_build_that_cannot_be_asked_is_not_and_cannot_be_judged() {
        let mut rig = Rig::new(&Rollout::canary([50]), false);
        let found = rig.looks(200, Some(&tally(1, 0)));
        assert!(!found.contains(&Found::Ask));
        let readings = readings(&found);
        assert_eq!(readings.len(), 10);
        assert!(readings[0].text.contains("too old"));
        assert_eq!(rig.answer(tally(1, 1)), []);
        assert_eq!(Rig::new(&Rollout::immediate(), false).looks(200, None), []);
    }

    #[test]
    fn a_candidate_is_degraded_once_and_recovers_once() {
        let mut rig = Rig::new(&Rollout::immediate(), true);
        let told = |found: Vec<Found>| {
            let news = found.into_iter();
            let news = news.filter(|found| !matches!(found, Found::Look { .. } | Found::Ask));
            news.collect::<Vec<_>>()
        };
        let degraded = Tally {
            degraded: Some("cold".to_owned()),
            ..Tally::default()
        };
        assert_eq!(told(rig.looks(3, Some(&tally(0, 0)))), []);
        assert_eq!(told(rig.looks(3, Some(&degraded))), [Found::Degraded]);
        assert_eq!(told(rig.looks(3, Some(&tally(0, 0)))), [Found::Recovered]);
    }

    #[test]
    fn trouble_that_both_sides_share_is_told_before_what_the_guards_have_read() {
        let mut rig = Rig::canary();
        rig.look();
        rig.answer(tally(0, 0));
        rig.stable.counts = counts(1_001_000, 5_500);
        let found = rig.answer(tally(1_000, 500));
        assert!(matches!(found[..], [Found::Trouble, Found::Look { .. }]));
        rig.stable.counts = counts(1_011_000, 5_500);
        let found = rig.answer(tally(11_000, 500));
        assert!(matches!(
            found[..],
            [Found::TroubleOver, Found::Look { .. }]
        ));
    }

    #[test]
    fn nobody_accepting_is_found_after_the_flip_and_not_before_it() {
        let mut rig = Rig::new(&Rollout::immediate(), true);
        let counting = Tally {
            accepted: Some(5),
            requests: 9,
            ..Tally::default()
        };
        rig.waiting = 3;
        let is_stalled = |found: &Found| matches!(found, Found::Stalled(_));
        assert!(!rig.looks(200, Some(&counting)).iter().any(is_stalled));
        rig.looks.handle_flipped(None);
        // It answers, but that alone is no sign that it accepts.
        let found = rig.looks(42, Some(&counting));
        let silent = Duration::from_secs(2);
        let stalled = found.iter().find(|found| is_stalled(found));
        assert_eq!(
            stalled,
            Some(&Found::Stalled(Stalled { waiting: 3, silent }))
        );
    }

    #[test]
    fn a_candidate_that_does_not_count_connections_is_taken_to_accept_while_it_answers() {
        let mut rig = Rig::new(&Rollout::immediate(), true);
        rig.looks.handle_flipped(None);
        rig.waiting = 128;
        let is_stalled = |found: &Found| matches!(found, Found::Stalled(_));
        for requests in 0..200 {
            let found = rig.looks(1, Some(&tally(requests, 0)));
            assert!(!found.iter().any(is_stalled), "{requests}");
        }
        assert!(rig.looks(42, Some(&tally(200, 0))).iter().any(is_stalled));
    }

    #[test]
    fn far_fewer_clients_than_before_the_flip_are_found_once_the_window_is_over() {
        let mut accepts = Accepts::default();
        let mut rig = Rig::new(&Rollout::blue_green(), true);
        let begin = rig.now;
        accepts.handle_total(begin, 0);
        let arrived = |count| Tally {
            accepted: Some(count),
            ..Tally::default()
        };
        rig.answer(arrived(7));
        let expected = accepts.expect(begin + ACCEPTS_WINDOW, 100);
        rig.looks.handle_flipped(expected);
        let has_fallen = |found: &[Found]| {
            let (before, after) = (100, 49);
            found.contains(&Found::Fallen(Fallen { before, after }))
        };
        rig.now = begin + ACCEPTS_WINDOW;
        assert!(!has_fallen(&rig.answer(arrived(56))));
        rig.now += ACCEPTS_WINDOW;
        assert!(has_fallen(&rig.answer(arrived(56))));
        assert!(!has_fallen(&rig.answer(arrived(56))));
    }

    #[test]
    fn after_the_flip_the_candidate_is_judged_by_what_stable_had() {
        let plan = Rollout::blue_green().warm_up(Duration::ZERO, 0);
        let mut rig = Rig::new(&plan, true);
        rig.looks.handle_flipped(None);
        rig.answer(tally(0, 0));
        let found = rig.answer(tally(1_000, 1));
        assert!(
            readings(&found)
                .iter()
                .all(|reading| reading.finding == Finding::Fine)
        );
        let found = rig.answer(tally(1_100, 60));
        assert_eq!(readings(&found)[0].finding, Finding::Failed);
    }

    #[test]
    fn both_sides_are_to_count_alike() {
        let plan = Rollout::canary([50]).by(By::Connection);
        let rules = Rig::new(&plan, true).looks.rules();
        assert_eq!(rules.by, Counted::Connection);
        let watch = Watch {
            slow_us: rules.slow_above.map(micros),
            window_ms: millis(rules.window),
            by_connection: true,
        };
        assert_eq!(rules_of(watch), rules);
    }

    #[test]
    fn a_reason_is_cut_between_two_letters() {
        let mut reason = "ü".repeat(REASON_MAX);
        reason.insert(0, '!');
        shorten(&mut reason);
        assert_eq!(reason.len(), REASON_MAX - 1);
        let mut short = "cold".to_owned();
        shorten(&mut short);
        assert_eq!(short, "cold");
    }
}
