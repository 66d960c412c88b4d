//! How often the guards undo a good release, and how often they find a bad one. `cargo bench --bench guards` prints the
//! whole table, of more runs.

mod simulation;

use handover::rollout::guard::Relative;
use handover::rollout::{CLIENT_WINDOW, FALSE_ABORTS, WORST_RATE};
use simulation::{Alone, AsFast, Bursts, Dice, Independent, Tally};

const RUNS: usize = 400;

/// What a guard of errors is given while one of slow requests is armed beside it.
fn alpha() -> f64 {
    FALSE_ABORTS.fraction() / 2.0
}

fn tally(seed: u64, canary: Independent) -> Tally {
    let mut dice = Dice::new(seed);
    Tally::of(RUNS, || canary.run(Relative::errors(alpha()), &mut dice))
}

#[test]
fn at_most_one_in_a_hundred_good_releases_is_undone_with_looks_at_every_request() {
    for (percent, candidate_requests) in [(1, 200), (5, 1_000), (25, 1_000), (50, 1_000)] {
        for rate in [0.001, 0.005, 0.05] {
            let good = Independent {
                percent,
                stable_rate: rate,
                candidate_rate: rate,
                candidate_requests,
            };
            let undone = tally(u64::from(percent), good).within(u64::MAX);
            assert!(undone <= 0.01, "{percent} %, {rate}: {undone}");
        }
    }
}

#[test]
fn a_tenfold_regression_at_five_percent_is_found_within_200_requests_in_85_of_100_rollouts() {
    let bad = Independent {
        percent: 5,
        stable_rate: 0.005,
        candidate_rate: 0.05,
        candidate_requests: 200,
    };
    let found = tally(2, bad).within(200);
    assert!(found >= 0.85, "{found}");
}

#[test]
fn clients_that_retry_do_not_undo_a_good_release() {
    let undone = |window| {
        let bursts = Bursts {
            percent: 5,
            clients: 2_000,
            requests: 20_000,
            rate: 0.001,
            bursts: 40,
            burst: 10,
            window,
        };
        let mut dice = Dice::new(3);
        let tally = Tally::of(RUNS, || bursts.run(Relative::errors(alpha()), &mut dice));
        tally.within(u64::MAX)
    };
    let counted_once = undone(Some(CLIENT_WINDOW));
    assert!(counted_once <= 0.01, "{counted_once}");
    // Without the windows this test would prove nothing.
    let counted_all = undone(None);
    assert!(counted_all >= 0.2, "{counted_all}");
}

#[test]
fn a_candidate_that_serves_alone_is_undone_if_it_fails_as_often_as_is_not_tolerated() {
    let undone = |rate| {
        let alone = Alone {
            expected: 0.005,
            worst: WORST_RATE,
            rate,
            requests: 5_000,
        };
        let mut dice = Dice::new(4);
        [
            Tally::of(RUNS, || alone.first_round(&mut dice)).within(u64::MAX),
            Tally::of(RUNS, || alone.run(&mut dice)).within(u64::MAX),
        ]
    };
    let (good, bad) = (undone(0.005), undone(WORST_RATE.fraction()));
    assert!(good.iter().all(|part| *part <= 0.01), "{good:?}");
    assert!(bad[0] >= 0.9 && bad[1] >= 0.99, "{bad:?}");
}

#[test]
fn a_candidate_that_serves_alone_is_not_undone_for_a_tail_that_few_requests_have_told() {
    for known in [100, 200, 1_000, 10_000] {
        let mut dice = Dice::new(5);
        let as_fast = AsFast {
            known,
            requests: 2_000,
        };
        let undone = Tally::of(RUNS, || as_fast.run(alpha(), &mut dice)).within(u64::MAX);
        assert!(undone <= 0.01, "{known}: {undone}");
    }
}
