use std::collections::BTreeSet;

use super::*;

const STOP: Duration = Duration::from_secs(28);

/// What is to be done, and by whom.
fn drained(machine: &mut Controller) -> (Vec<WorkerId>, Vec<WorkerId>) {
    let (mut started, mut stopped) = (Vec::new(), Vec::new());
    while let Some(output) = machine.poll_output() {
        match output {
            Output::Start { worker, .. } => started.push(worker),
            Output::Stop { worker } => stopped.push(worker),
            _ => {}
        }
    }
    (started, stopped)
}

#[test]
fn workers_that_are_late_together_again_and_again_come_back_one_by_one() {
    let now = Instant::now();
    let (plan, care) = (Plan::default(), Care::default());
    let mut machine = Controller::new(4, 1, plan, care, STOP, now).unwrap();
    let mut starts = BTreeSet::new();
    // The first time they come back at once.
    for _ in 0..2 {
        drained(&mut machine);
        starts.clear();
        let late = machine.poll_timeout().unwrap();
        machine.handle_timeout(0.9, late);
        let (mut started, stopped) = drained(&mut machine);
        stopped
            .iter()
            .for_each(|worker| machine.handle_exited(*worker, "told to", 0.9, late));
        let mut at = late;
        while started.len() < 4 {
            at = machine.poll_timeout().unwrap();
            machine.handle_timeout(0.9, at);
            let (more, _) = drained(&mut machine);
            starts.extend(more.iter().map(|_| at));
            started.extend(more);
        }
        assert!(at < late + Duration::from_secs(1));
    }
    assert_eq!(starts.len(), 4, "{starts:?}");
}

/// Two workers that serve.
fn serving(now: Instant) -> Controller {
    let machine = Controller::new(2, 1, Plan::default(), Care::default(), STOP, now);
    let mut machine = machine.unwrap();
    (1..=2).for_each(|worker| machine.handle_ready(worker, now));
    outputs(&mut machine);
    machine
}

fn outputs(machine: &mut Controller) -> Vec<Output> {
    std::iter::from_fn(|| machine.poll_output()).collect()
}

#[test]
fn a_stop_takes_no_longer_because_its_queues_were_emptied_first() {
    let since = Instant::now();
    let mut machine = serving(since);
    machine.stop(since, since + Duration::from_secs(5));
    assert_eq!(machine.poll_timeout(), Some(since + STOP));
    machine.handle_timeout(0.0, since + STOP);
    let told = [1, 2].map(|worker| Output::Stop { worker });
    let killed = [1, 2].map(|worker| Output::Kill { worker });
    assert_eq!(outputs(&mut machine), [told, killed].concat());
}

#[test]
fn who_outlives_a_kill_is_lost_at_a_deadline_and_the_stop_ends_without_it() {
    let now = Instant::now();
    let mut machine = serving(now);
    machine.stop(now, now);
    machine.stop(now, now);
    outputs(&mut machine);
    machine.handle_exited(1, "signal: 9", 0.0, now);
    assert_eq!(machine.poll_timeout(), Some(now + EXIT_DEADLINE));
    machine.handle_timeout(0.0, now + EXIT_DEADLINE);
    let ended = [Output::Lost { worker: 2 }, Output::Stopped];
    assert_eq!(outputs(&mut machine), ended);
    assert_eq!(machine.poll_timeout(), None);
}
