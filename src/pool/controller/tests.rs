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
