//! What the demo says at its end.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use handover_load::{Mix, Report, brief, grouped};

use crate::losses::{Losses, meaning};
use crate::release::Ending;
use crate::screen::{Screen, Style};
use crate::stage::Seen;
use crate::upgrade::{Crash, Upgrade};

/// Prints everything and gives the number of claims that do not hold.
pub(crate) fn print(seen: &mut Seen, mix: &Mix, picture: &Path) -> usize {
    let crash = seen
        .upgrades
        .iter()
        .find_map(|upgrade| upgrade.crash.clone());
    let losses = Losses::of(&seen.report, crash.as_ref(), mix.http2_streams);
    let Seen {
        screen,
        upgrades,
        report,
        ..
    } = seen;
    let plot = report.timeline.plot(screen.width());
    section(screen, "Which generation answered when", &plot);
    section(screen, "Upgrades", &upgrade_table(upgrades, report));
    screen.paragraph(Style::Faint, UPGRADES_NOTE);
    section(screen, "Requests", &request_table(report, &losses));
    if let Some(crash) = crash {
        section(screen, "Lost in the crash", &crash_table(&losses));
        screen.paragraph(Style::Faint, &crash_note(&crash, &losses));
    }
    let claims = claims(seen, &losses);
    let screen = &mut seen.screen;
    heading(screen, "In short");
    for claim in &claims {
        let (sign, style) = match claim.holds {
            true => ("✓", Style::Good),
            false => ("✗", Style::Bad),
        };
        screen.item(sign, style, &claim.text);
    }
    screen.space();
    screen.line(
        Style::Plain,
        &format!("The same as a picture: {}", picture.display()),
    );
    claims.iter().filter(|claim| !claim.holds).count()
}

/// Something that the demo promises, and whether it was so.
struct Claim {
    holds: bool,
    text: String,
}

fn claims(seen: &Seen, losses: &Losses) -> Vec<Claim> {
    let Seen {
        upgrades,
        report,
        stop,
        ..
    } = seen;
    let mut claims = vec![
        as_expected(upgrades),
        aborted_unseen(upgrades, report),
        nothing_else_lost(report, losses),
    ];
    claims.extend(
        upgrades
            .iter()
            .filter_map(|upgrade| crash_contained(upgrade, losses)),
    );
    claims.extend(upgrades.iter().filter_map(canary_contained));
    claims.push(Claim {
        holds: stop.has_left && stop.stragglers.is_empty(),
        text: format!(
            "the final stop finished all {} connections that were in flight, in {}",
            stop.in_flight,
            brief(stop.took)
        ),
    });
    claims
}

fn as_expected(upgrades: &[Upgrade]) -> Claim {
    let is_good = |upgrade: &&Upgrade| upgrade.has_ended(upgrade.release.conduct.expected());
    let good = upgrades.iter().filter(is_good).count();
    let committed = count(upgrades, Ending::Committed);
    Claim {
        holds: good == upgrades.len(),
        text: format!(
            "{good} of {} upgrades ended as they should: {committed} committed, {} aborted, {} rolled back",
            upgrades.len(),
            count(upgrades, Ending::Aborted),
            count(upgrades, Ending::RolledBack)
        ),
    }
}

fn aborted_unseen(upgrades: &[Upgrade], report: &Report) -> Claim {
    let aborted = upgrades
        .iter()
        .filter(|upgrade| upgrade.has_ended(Ending::Aborted));
    let answers: u64 = aborted
        .filter_map(|upgrade| report.generation(upgrade.release.version))
        .map(|generation| generation.answers)
        .sum();
    Claim {
        holds: answers == 0,
        text: format!(
            "nobody for whom no canary was ever met a release that was aborted ({answers} answers)"
        ),
    }
}

fn nothing_else_lost(report: &Report, losses: &Losses) -> Claim {
    Claim {
        holds: losses.others() == 0,
        text: format!(
            "{} requests, {} failed outside the crash; the longest time without any answer was {}, at {:.1} s",
            grouped(report.requests()),
            grouped(losses.others()),
            brief(report.gap),
            report.gap_at.as_secs_f64()
        ),
    }
}

fn crash_contained(upgrade: &Upgrade, losses: &Losses) -> Option<Claim> {
    let crash = upgrade.crash.as_ref()?;
    Some(Claim {
        holds: losses.crashed() <= losses.explained_max,
        text: format!(
            "the crash of {} cost {} requests on the {} connections that it held, and no other; after {} \
             generation {} answered new ones",
            upgrade.release,
            losses.crashed(),
            crash.connections(),
            brief(crash.next.1),
            crash.next.0
        ),
    })
}

fn canary_contained(upgrade: &Upgrade) -> Option<Claim> {
    let meeting = upgrade.meeting?;
    let outsiders = meeting.clients_all - meeting.clients;
    Some(Claim {
        holds: meeting.errors > 0 && meeting.other_errors == 0 && outsiders > 0,
        text: format!(
            "the canary {} undid itself: {} of {} clients had met it and its {} errors, the {outsiders} others got {} \
             answers and {} errors",
            upgrade.release,
            meeting.clients,
            meeting.clients_all,
            meeting.errors,
            grouped(meeting.elsewhere),
            meeting.other_errors
        ),
    })
}

fn upgrade_table(upgrades: &[Upgrade], report: &Report) -> String {
    let mut table = row(&[
        "release",
        "ready after",
        "flip took",
        "first answer",
        "verdict",
        "after",
    ]);
    for upgrade in upgrades {
        let (ending, after) = upgrade.ending.unzip();
        table += &row(&[
            &upgrade.release.to_string(),
            &or_dash(upgrade.flip),
            &or_dash(upgrade.flip_took()),
            &or_dash(first_answer(upgrade, report)),
            &ending.map_or_else(String::new, |ending| ending.to_string()),
            &or_dash(after),
        ]);
    }
    table
}

/// From the begin of the flip to the first answer that a client had in full.
fn first_answer(upgrade: &Upgrade, report: &Report) -> Option<Duration> {
    let flip = upgrade.asked + upgrade.flip?;
    let generation = report.generation(upgrade.release.version)?;
    Some(generation.first.saturating_sub(flip))
}

fn request_table(report: &Report, losses: &Losses) -> String {
    let mut table = row(&[
        "client",
        "requests",
        "crash losses",
        "other losses",
        "p50",
        "p99",
    ]);
    for kind in &report.kinds {
        let crashed = losses.crashed_of(kind.kind);
        table += &row(&[
            kind.kind.name(),
            &grouped(kind.requests),
            &grouped(crashed),
            &grouped(kind.failed() - crashed),
            &brief(kind.latency.quantile(0.5)),
            &brief(kind.latency.quantile(0.99)),
        ]);
    }
    table + &other_losses(losses)
}

/// The first of those that nothing excuses.
fn other_losses(losses: &Losses) -> String {
    let mut text = String::new();
    for sample in losses.unexplained.iter().take(OTHERS_SHOWN) {
        // Writing to a string cannot fail; here and below.
        let _ = writeln!(
            text,
            "{:>9.3} s  {}: {}: {}",
            sample.at.as_secs_f64(),
            sample.kind,
            sample.failure,
            sample.detail
        );
    }
    text
}

fn crash_table(losses: &Losses) -> String {
    let mut table = String::new();
    for ((kind, failure), count) in &losses.in_crash {
        let meaning = meaning(*failure);
        let _ = writeln!(table, "{count:>5}  {kind:<15} {failure:<20} {meaning}");
    }
    table
}

fn crash_note(crash: &Crash, losses: &Losses) -> String {
    format!(
        "Nobody can answer for a process that is dead. It held {} connections, so at most {} requests; the last client \
         noticed {} after the crash. What waited in the accept queue was not lost, because generation {} had it all \
         along.",
        crash.connections(),
        losses.explained_max,
        brief(losses.last_after),
        crash.next.0
    )
}

fn section(screen: &mut Screen, title: &str, body: &str) {
    heading(screen, title);
    for line in body.lines() {
        screen.line(Style::Plain, line);
    }
}

fn heading(screen: &mut Screen, title: &str) {
    screen.space();
    screen.line(Style::Bold, title);
    screen.space();
}

fn row(cells: &[&str; 6]) -> String {
    let [name, numbers @ ..] = cells;
    let mut row = format!("{name:<15}");
    for number in numbers {
        let _ = write!(row, "{number:>13}");
    }
    row + "\n"
}

fn or_dash(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "-".to_owned(), brief)
}

fn count(upgrades: &[Upgrade], ending: Ending) -> usize {
    upgrades
        .iter()
        .filter(|upgrade| upgrade.has_ended(ending))
        .count()
}

const OTHERS_SHOWN: usize = 10;
const UPGRADES_NOTE: &str = "Ready and verdict count from the SIGHUP, the first answer from the begin of the flip until a \
                             client had it in full.";
