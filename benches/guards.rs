//! How the guards decide: false aborts and detection by simulated rollouts, with looks at every request.
//!
//! No clock is involved; the dice are the same in every run.
//!
//! `cargo bench --bench guards`

#[path = "../tests/guards/simulation.rs"]
mod simulation;

use handover::rollout::guard::Relative;
use handover::rollout::{CLIENT_WINDOW, Share};
use simulation::{Alone, AsFast, Bursts, Dice, Independent, Tally};

const RUNS: usize = 2_000;
/// Of one guard alone, and of two that are armed beside each other.
const ALPHAS: [f64; 2] = [0.01, 0.005];

fn main() {
    relative();
    bursts();
    absolute();
    tails();
}

fn relative() {
    println!(
        "relative guard, {RUNS} rollouts each: part undone within 200 / 1000 candidate requests (median request)"
    );
    println!(
        "{:>5} {:>6} {:>5}   alpha 1 %               alpha 0.5 %",
        "share", "base", "times"
    );
    for percent in [1, 5, 10, 25, 50] {
        for stable_rate in [0.001, 0.005, 0.02] {
            for times in [1.0, 3.0, 10.0] {
                let canary = Independent {
                    percent,
                    stable_rate,
                    candidate_rate: stable_rate * times,
                    candidate_requests: 1_000,
                };
                print!("{percent:>3} % {:>4.1} % {times:>5}", stable_rate * 100.0);
                for alpha in ALPHAS {
                    let mut dice = Dice::new(1);
                    let tally = Tally::of(RUNS, || canary.run(Relative::errors(alpha), &mut dice));
                    let [early, late] = [200, 1_000].map(|requests| 100.0 * tally.within(requests));
                    let median = tally.undone_at.get(tally.undone_at.len() / 2).copied();
                    let median = median.map_or_else(|| "-".to_owned(), |at| at.to_string());
                    print!("   {early:>5.2} / {late:>5.2} % ({median:>4})");
                }
                println!();
            }
        }
    }
}

fn bursts() {
    println!(
        "\nno regression, 40 bursts of 10 errors among 20,000 requests of 2,000 clients, {RUNS} rollouts each: undone"
    );
    for percent in [1, 5, 25, 50] {
        let bursts = Bursts {
            percent,
            clients: 2_000,
            requests: 20_000,
            rate: 0.001,
            bursts: 40,
            burst: 10,
            window: None,
        };
        for (name, window) in [
            ("every error counts", None),
            ("once per client and window", Some(CLIENT_WINDOW)),
        ] {
            print!("{percent:>3} % {name:<28}");
            for alpha in ALPHAS {
                let mut dice = Dice::new(2);
                let bursts = Bursts { window, ..bursts };
                let tally = Tally::of(RUNS, || bursts.run(Relative::errors(alpha), &mut dice));
                print!("   {:>5.2} %", 100.0 * tally.within(u64::MAX));
            }
            println!();
        }
    }
}

fn absolute() {
    println!(
        "\nabsolute guard, alpha 1 %, {RUNS} candidates each: undone in the first round, and in 30,000 requests (mean)"
    );
    for (expected, worst) in [(0.001, 1), (0.005, 5), (0.01, 5), (0.01, 2)] {
        for (name, rate) in [
            ("as good", expected),
            ("as bad as that", f64::from(worst) / 100.0),
            ("half failing", 0.5),
        ] {
            let alone = Alone {
                expected,
                worst: Share::percent(worst),
                rate,
                requests: 30_000,
            };
            let mut dice = Dice::new(3);
            let first = Tally::of(RUNS, || alone.first_round(&mut dice));
            let all = Tally::of(RUNS, || alone.run(&mut dice));
            println!(
                "{:>4.1} -> {worst} % {name:<15} {:>6.2} %   {:>6.2} % ({})",
                expected * 100.0,
                100.0 * first.within(u64::MAX),
                100.0 * all.within(u64::MAX),
                mean(&all),
            );
        }
    }
}

fn tails() {
    println!(
        "\nslow requests of a candidate that serves alone and is as fast, by how many of stable's its 99th percentile is \
         told, {RUNS} candidates each: undone in 5,000 requests"
    );
    for known in [100, 200, 1_000, 10_000] {
        print!("{known:>6}");
        for alpha in ALPHAS {
            let as_fast = AsFast {
                known,
                requests: 5_000,
            };
            let mut dice = Dice::new(4);
            let undone = Tally::of(RUNS, || as_fast.run(alpha, &mut dice));
            print!("   {:>5.2} %", 100.0 * undone.within(u64::MAX));
        }
        println!();
    }
}

fn mean(tally: &Tally) -> String {
    let undone = tally.undone_at.len();
    if undone == 0 {
        return "-".to_owned();
    }
    format!(
        "{:.0}",
        tally.undone_at.iter().sum::<u64>() as f64 / undone as f64
    )
}
