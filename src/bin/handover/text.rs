//! Answers in words.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use handover::control::{
    ClassWork, DrainState, Drill, Elder, ForwardedCounts, ForwardingState, Found, Generation,
    Happened, Losses, PoolState, Role, Rollback, RollbackKind, RolloutState, SideState, Status,
    UpdateState, Upgrade, Verdict, Verification, VerifiedAddress, What,
};
use handover::rollout::{By, Explanation, Until};

use crate::output::Paint;

pub(crate) fn status(status: &Status, paint: Paint) -> String {
    let mut lines = vec![head(status, paint)];
    lines.extend(status.pool.iter().flat_map(|pool| self::pool(pool, paint)));
    if let Some(reason) = &status.degraded {
        lines.push(format!(
            "{}    {reason}: look, then promote or upgrade",
            paint.bad("degraded")
        ));
    }
    if let Some(schema) = &status.schema {
        lines.push(format!("schema      {}", crate::schema::line(schema)));
    }
    if let Some(upgrade) = &status.upgrade {
        let pid = upgrade
            .pid
            .map(|pid| format!(", pid {pid}"))
            .unwrap_or_default();
        lines.push(format!(
            "upgrade     to generation {}: {} ({} so far{pid})",
            upgrade.generation,
            paint.strong(&upgrade.phase),
            millis(upgrade.for_ms)
        ));
    }
    if let Some(rollout) = status.upgrade.as_ref().and_then(|now| now.rollout.as_ref()) {
        lines.push(self::rollout(rollout, paint));
    }
    if let Some(back) = &status.rollback {
        lines.push(format!("rollback    {}", rollback(back)));
    }
    if let Some(drill) = &status.drill {
        lines.push(format!("rehearsed   {}", rehearsed(drill, paint)));
    }
    if let Some(verification) = &status.verification {
        lines.push(format!("verified    {}", verified(verification, paint)));
    }
    if let Some(counts) = status.counts.as_ref().filter(|counts| counts.requests > 0) {
        lines.push(format!("counted     {}", side(counts)));
    }
    lines.extend(
        status
            .elders
            .iter()
            .map(|elder| format!("draining    {}", self::elder(elder))),
    );
    if status.pool.is_none() {
        lines.push(format!("in flight   {}", classes(&status.classes)));
    }
    for socket in &status.sockets {
        lines.push(format!(
            "listens     {} ({} {})",
            socket.name, socket.kind, socket.address
        ));
    }
    if let Some(last) = &status.last {
        lines.push(format!("last        {}", upgrade(last, paint)));
    }
    lines.join("\n")
}

/// A pool's workers, one in a line.
pub(crate) fn pool(pool: &PoolState, paint: Paint) -> Vec<String> {
    let ready = format!("{} of {} ready", pool.ready, pool.wanted);
    let ready = match pool.ready < pool.wanted {
        true => paint.bad(&ready),
        false => paint.good(&ready),
    };
    let update = pool.update.as_ref().map(|update| {
        let UpdateState {
            candidate,
            stage,
            reason,
            replaced,
            failures,
            ..
        } = update;
        let reason = match reason.as_str() {
            "" => String::new(),
            reason => format!(": {reason}"),
        };
        format!("; {stage} to release {candidate}, {replaced} replaced, {failures} failed{reason}")
    });
    let mut lines = vec![format!("workers     {ready}{}", update.unwrap_or_default())];
    lines.extend(pool.workers.iter().map(|worker| {
        let crashes = match worker.crashes {
            0 => String::new(),
            crashes => format!(", after {crashes} crashes"),
        };
        let counted = worker.requests.map(|requests| {
            let errors = worker.errors.unwrap_or_default();
            let slow = match worker.slow {
                None | Some(0) => String::new(),
                Some(slow) => format!(", {slow} slow"),
            };
            format!(", {requests} requests, {errors} errors{slow}")
        });
        format!(
            "worker {:<5}release {}, pid {}, {} for {}{crashes}{}",
            worker.worker,
            worker.release,
            worker.pid,
            worker.stage,
            millis(worker.age_ms),
            counted.unwrap_or_default()
        )
    }));
    lines
}

/// The way back, in one line.
fn rollback(rollback: &Rollback) -> String {
    let kind = match rollback.kind {
        RollbackKind::Instant => "instant",
        RollbackKind::Cold => "cold",
        RollbackKind::Blocked => {
            let to = rollback.generation.unwrap_or_default();
            return format!(
                "blocked(schema): the release of generation {to} {}",
                rollback.why
            );
        }
        RollbackKind::None => return format!("none: {}", rollback.why),
        _ => "unknown",
    };
    let to = rollback.generation.map(|to| match rollback.kind {
        RollbackKind::Cold => format!(", to the release of generation {to}"),
        _ => format!(", to generation {to}"),
    });
    let build = match rollback.build.as_str() {
        "" => String::new(),
        build => format!(" (build {build})"),
    };
    format!("{kind}{}{build}", to.unwrap_or_default())
}

/// Where a rollout is, and what the guards have read.
pub(crate) fn rollout(rollout: &RolloutState, paint: Paint) -> String {
    let mut lines = explanation(&rollout.explanation);
    let of = match rollout.by {
        By::Connection => "connections by connection",
        By::Client => "connections by client",
        By::Request => "requests",
    };
    if let Some(first) = lines.first_mut() {
        first.push_str(match rollout.is_drill {
            true => " (a drill: it goes back by itself)",
            false => "",
        });
    }
    let sides = [
        ("candidate", &rollout.candidate),
        ("stable", &rollout.stable),
    ];
    lines.extend(sides.into_iter().filter_map(|(name, counts)| {
        let counts = counts.as_ref()?;
        Some(format!(
            "{name:<12}generation {}: {}",
            counts.generation,
            side(counts)
        ))
    }));
    let pause = rollout.pause.map(|pause| {
        let until = match pause.until {
            Until::Operator => "until somebody decides",
            Until::Recovery => "until that is over",
        };
        format!(
            "paused      {}, {until}",
            paint.bad(&pause.reason.to_string())
        )
    });
    let forwarded = rollout.forwarding.as_ref();
    let forwarded = forwarded.map(|forwarding| self::forwarded(forwarding, of));
    lines
        .into_iter()
        .chain(forwarded)
        .chain(pause)
        .collect::<Vec<_>>()
        .join("\n")
}

/// What became of the candidate's share.
fn forwarded(forwarding: &ForwardingState, of: &str) -> String {
    let part = |part: Option<f64>| match part {
        Some(part) => format!("{:.2} %", part * 100.0),
        None => "nothing yet".to_owned(),
    };
    let ForwardedCounts {
        forwarded,
        begun,
        taken_back,
        kept,
        lost,
        ..
    } = forwarding.total;
    let mut line = format!(
        "forwarded   {} of the {of}, {} begun ({forwarded} so far: {begun} begun, {taken_back} taken back)",
        part(forwarding.assigned),
        part(forwarding.begun)
    );
    for (count, what) in [(kept, "kept for want of room"), (lost, "lost")] {
        if count > 0 {
            line.push_str(&format!(", {count} {what}"));
        }
    }
    line
}

/// What one side has counted.
pub(crate) fn side(counts: &SideState) -> String {
    let SideState {
        requests,
        errors,
        slow,
        shed,
        in_flight,
        rate,
        ..
    } = counts;
    let mut line = format!("{requests} requests, {errors} errors, {slow} slow");
    if *shed > 0 {
        line.push_str(&format!(", {shed} turned away"));
    }
    if *in_flight > 0 {
        line.push_str(&format!(", {in_flight} under way"));
    }
    if let Some(rate) = rate {
        line.push_str(&format!(", {rate:.1} in a second"));
    }
    for (name, took) in [("median", counts.p50_us), ("p99", counts.p99_us)] {
        if let Some(took) = took {
            line.push_str(&format!(", {name} {}", micros(took)));
        }
    }
    line
}

/// One line about the last drill.
fn rehearsed(drill: &Drill, paint: Paint) -> String {
    let ago = age(drill.at_ms);
    let fault = drill.fault.map(|fault| format!(" with a fault ({fault})"));
    let fault = fault.unwrap_or_default();
    if !drill.passed {
        let failed = paint.bad("failed");
        return format!("{ago} ago{fault}, {failed}: {}", drill.reason);
    }
    let took = drill.rollback_took_us.map(|took| match drill.fault {
        None => format!(", instant, {}", micros(took)),
        Some(_) => format!(", undone by itself, {}", micros(took)),
    });
    let Losses {
        missed,
        taken_back,
        lost,
        ..
    } = drill.losses;
    let lost = u64::from(missed) + taken_back + lost;
    format!("{ago} ago{fault}{}, {lost} lost", took.unwrap_or_default())
}

/// A drill in full.
pub(crate) fn drill(drill: &Drill, paint: Paint) -> String {
    let verdict = match drill.passed {
        true => paint.good("passed"),
        false => paint.bad("failed"),
    };
    let kind = match drill.fault {
        None => "drill".to_owned(),
        Some(fault) => format!("drill with a fault ({fault})"),
    };
    let mut lines = vec![format!(
        "{kind} {verdict} in {}: {}",
        millis(drill.took_ms),
        drill.reason
    )];
    let flips = [
        ("flip", drill.flip_took_us),
        ("rollback", drill.rollback_took_us),
    ];
    lines.extend(
        flips
            .into_iter()
            .filter_map(|(name, took)| Some(format!("{name:<12}{}", micros(took?)))),
    );
    let Losses {
        missed,
        taken_back,
        lost,
        ..
    } = drill.losses;
    lines.push(format!(
        "lost        {missed} connections of verifications missed, {taken_back} taken back, {lost} lost"
    ));
    lines.push(format!(
        "candidate   generation {}: {} requests, {} errors",
        drill.generation, drill.requests, drill.errors
    ));
    lines.extend(
        drill
            .guards
            .iter()
            .map(|reading| format!("guard       {reading}")),
    );
    lines.extend(
        drill
            .verifications
            .iter()
            .map(|one| format!("verified    {}", verified(one, paint))),
    );
    lines.join("\n")
}

/// One verification in one line.
fn verified(verification: &Verification, paint: Paint) -> String {
    let result = match verification.passed {
        true => {
            let passed = |address: &&VerifiedAddress| address.result == Found::Passed;
            let count = verification.addresses.iter().filter(passed).count();
            format!("{} at {count} addresses", paint.good("passed"))
        }
        false => format!("{}: {}", paint.bad("failed"), verification.reason),
    };
    format!(
        "generation {} {result}, {} ago, in {}",
        verification.generation,
        age(verification.at_ms),
        micros(verification.took_us)
    )
}

/// A verification as a table.
pub(crate) fn verification(verification: &Verification, paint: Paint) -> String {
    let mut lines = vec![verified(verification, paint)];
    lines.extend(verification.addresses.iter().map(|one| {
        let (result, rest) = match one.result {
            Found::Passed => (
                paint.good("passed "),
                format!(
                    "{} connections, {} missed, {}",
                    one.connections,
                    one.missed,
                    micros(one.took_us)
                ),
            ),
            Found::Failed => (
                paint.bad("failed "),
                format!(
                    "{} connections, {} missed: {}",
                    one.connections, one.missed, one.why
                ),
            ),
            Found::Skipped => ("skipped".to_owned(), one.why.clone()),
            _ => ("unknown".to_owned(), one.why.clone()),
        };
        format!("  {result}  {:<12} {:<24} {rest}", one.name, one.address)
    }));
    lines.join("\n")
}

fn explanation(explanation: &Explanation) -> Vec<String> {
    let Explanation {
        stage,
        step: (step, steps),
        share,
        units,
        units_min,
        elapsed_ms,
        guards,
        ..
    } = explanation;
    let step = match steps {
        0 => String::new(),
        _ => format!(", step {step} of {steps}"),
    };
    let needed = match units_min {
        0 => String::new(),
        min => format!(" of {min}"),
    };
    let mut lines = vec![format!(
        "rollout     {stage} at {share}{step}, {units}{needed} requests in {}",
        millis(*elapsed_ms)
    )];
    let guards = guards
        .iter()
        .map(|reading| format!("guard       {reading}"));
    lines.extend(guards);
    lines
}

/// Who serves, in one line.
pub(crate) fn head(status: &Status, paint: Paint) -> String {
    let since = status
        .incumbent_since_ms
        .map(|at| format!(" for {}", age(at)));
    let build = match status.build.as_str() {
        "" => String::new(),
        build => format!(", build {build}"),
    };
    format!(
        "{} {} ({}{}), {}, pid {}, up {}{build}",
        paint.strong("generation"),
        paint.strong(&status.generation.to_string()),
        role(status.role),
        since.unwrap_or_default(),
        status.health,
        status.pid,
        millis(status.uptime_ms),
    )
}

pub(crate) fn role(role: Role) -> &'static str {
    match role {
        Role::Starting => "starting",
        Role::Incumbent => "incumbent",
        Role::Successor => "successor",
        Role::LameDuck => "lame duck",
        Role::Draining => "draining",
        Role::Supervisor => "supervisor",
        _ => "unknown",
    }
}

pub(crate) fn generations(generations: &[Generation], paint: Paint) -> String {
    let lines = generations.iter().map(|generation| {
        let pid = generation
            .pid
            .map(|pid| pid.to_string())
            .unwrap_or_else(|| "-".to_owned());
        let role = match generation.role {
            Role::Incumbent => paint.good(role(generation.role)),
            other => role(other).to_owned(),
        };
        let phase = generation
            .phase
            .as_deref()
            .map(|phase| format!(", {phase}"));
        format!(
            "{:>4}  pid {pid:<8} {role}{}",
            generation.generation,
            phase.unwrap_or_default()
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

pub(crate) fn history(upgrades: &[Upgrade], paint: Paint) -> String {
    match upgrades {
        [] => NO_UPGRADE.to_owned(),
        upgrades => {
            let lines = upgrades.iter().map(|one| upgrade(one, paint));
            lines.collect::<Vec<_>>().join("\n")
        }
    }
}

/// One upgrade in one line.
pub(crate) fn upgrade(upgrade: &Upgrade, paint: Paint) -> String {
    let verdict = match upgrade.verdict {
        _ if upgrade.drill.as_ref().is_some_and(|drill| drill.passed) => paint.good("drill passed"),
        _ if upgrade.drill.is_some() => paint.bad("drill failed"),
        Verdict::Committed => paint.good("committed"),
        Verdict::Aborted => paint.bad("aborted"),
        Verdict::RolledBack => paint.bad("rolled back"),
        Verdict::Degraded => paint.bad("degraded"),
        Verdict::Refused => paint.bad("refused"),
        _ => "unknown".to_owned(),
    };
    let phase = upgrade.phase.as_deref().map(|phase| format!(" ({phase})"));
    let flip = upgrade.flip_took().map(|took| format!(", flip {took:.2?}"));
    let rollback = upgrade
        .rollback_took()
        .map(|took| format!(", rollback {took:.2?}"));
    let reason = match upgrade.reason.lines().next() {
        None | Some("") => String::new(),
        Some(reason) => format!(": {reason}"),
    };
    let back = upgrade
        .rollback_to
        .map(|to| format!(" (cold rollback to the release of {to})"));
    format!(
        "{} -> {}{} {verdict}{}, {} ago, took {}{}{}{reason}",
        upgrade.from,
        upgrade.generation,
        back.unwrap_or_default(),
        phase.unwrap_or_default(),
        age(upgrade.asked_at_ms),
        millis(upgrade.took_ms),
        flip.unwrap_or_default(),
        rollback.unwrap_or_default(),
    )
}

pub(crate) fn explain(upgrade: Option<&Upgrade>, paint: Paint) -> String {
    let Some(upgrade) = upgrade else {
        return NO_UPGRADE.to_owned();
    };
    let mut lines = vec![self::upgrade(upgrade, paint)];
    lines.extend(
        upgrade
            .reason
            .lines()
            .skip(1)
            .map(|line| format!("  {line}")),
    );
    if let Some(explanation) = &upgrade.explanation {
        lines.push(format!("decided     {}", explanation.cause));
        lines.extend(self::explanation(explanation));
    }
    for (name, counts) in [
        ("candidate", &upgrade.candidate),
        ("stable", &upgrade.stable),
    ] {
        if let Some(counts) = counts {
            lines.push(format!("{name:<12}{}", side(counts)));
        }
    }
    let forwarding = upgrade.forwarding.as_ref();
    if let Some(forwarding) = forwarding.filter(|it| it.total.accepted > 0) {
        let ForwardedCounts {
            accepted,
            picked,
            begun,
            taken_back,
            lost,
            ..
        } = forwarding.total;
        lines.push(format!(
            "forwarded   {picked} of {accepted} connections picked, {begun} begun, {taken_back} taken back, {lost} lost"
        ));
    }
    if let Some(pid) = upgrade.pid {
        let end = upgrade
            .exit
            .as_deref()
            .map(|exit| format!(", ended with {exit}"));
        lines.push(format!("successor   pid {pid}{}", end.unwrap_or_default()));
    }
    if let Some(ready) = upgrade.ready_after_ms {
        lines.push(format!("ready       after {}", millis(ready)));
    }
    if upgrade.verdict != Verdict::Committed {
        lines.push(match upgrade.incumbent_serves {
            true => format!("serving     generation {}, as before", upgrade.from),
            false => format!(
                "serving     {}",
                paint.bad("not generation ").to_owned() + &upgrade.from.to_string()
            ),
        });
    }
    if !upgrade.last_words.is_empty() {
        lines.push("last words of the successor:".to_owned());
        lines.extend(upgrade.last_words.lines().map(|line| format!("  {line}")));
    }
    lines.join("\n")
}

pub(crate) fn drain(drain: &DrainState) -> String {
    let verb = if drain.draining { "drains" } else { "serves" };
    let own = format!(
        "generation {} {verb}: {}",
        drain.generation,
        classes(&drain.classes)
    );
    let elders = drain.elders.iter().map(elder);
    let elders: Vec<_> = match drain.elders.is_empty() {
        true => vec!["no older generation is alive".to_owned()],
        false => elders.map(|elder| format!("draining    {elder}")).collect(),
    };
    [&[own], &elders[..]].concat().join("\n")
}

pub(crate) fn elder(elder: &Elder) -> String {
    format!(
        "generation {}, pid {}, gone in {} at the latest",
        elder.generation,
        elder.pid,
        millis(elder.killed_in_ms)
    )
}

pub(crate) fn classes(classes: &[ClassWork]) -> String {
    let busy = classes.iter().filter(|class| class.in_flight > 0);
    let each: Vec<_> = busy
        .map(|class| {
            let oldest = class
                .oldest_ms
                .map(|oldest| format!(", oldest {}", millis(oldest)));
            let left = class
                .left_ms
                .map(|left| format!(", cut in {}", millis(left)));
            format!(
                "{} {}{}{}",
                class.in_flight,
                class.name,
                oldest.unwrap_or_default(),
                left.unwrap_or_default()
            )
        })
        .collect();
    match each.is_empty() {
        true => "nothing".to_owned(),
        false => each.join("; "),
    }
}

/// One event in one line.
pub(crate) fn happened(happened: &Happened) -> String {
    let what = match &happened.what {
        What::Phase {
            successor, phase, ..
        } => format!("upgrade to {successor}: {phase}"),
        What::Stage {
            successor, stage, ..
        } => format!("rollout to {successor}: {stage}"),
        What::Paused {
            successor,
            explanation,
            ..
        } => format!("rollout to {successor} {explanation}"),
        What::Resumed { successor } => format!("rollout to {successor} goes on"),
        What::Refused { reason } => format!("upgrade refused: {reason}"),
        What::Aborted {
            successor, reason, ..
        } => format!("upgrade to {successor} aborted: {reason}"),
        What::RolledBack {
            successor, reason, ..
        } => format!("upgrade to {successor} rolled back: {reason}"),
        What::Committed {
            successor,
            pid,
            after_ms,
        } => format!(
            "upgrade to {successor} committed after {} (pid {pid})",
            millis(*after_ms)
        ),
        What::Serving { generation } => format!("generation {generation} serves"),
        What::Incumbent { generation } => format!("generation {generation} is the incumbent"),
        What::ElderGone { generation, pid } => {
            format!("generation {generation} is gone (pid {pid})")
        }
        What::LameDuck { lasts_ms } => format!("lame duck for {}", millis(*lasts_ms)),
        What::Draining { in_flight, reason } => format!("drains, {in_flight} in flight: {reason}"),
        What::Drained {
            stragglers,
            took_ms,
        } => format!(
            "drained in {}, {} cut off",
            millis(*took_ms),
            stragglers.len()
        ),
        What::Warning { message } => format!("warning: {message}"),
        What::Worker {
            worker,
            pid,
            release,
            now,
            reason,
            ready,
            wanted,
        } => {
            let pid = pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
            let reason = match reason.as_str() {
                "" => String::new(),
                reason => format!(": {reason}"),
            };
            format!(
                "worker {worker} (release {release}{pid}) {now}{reason}; {ready} of {wanted} ready"
            )
        }
        What::Held { successor, reason } => {
            format!("the update to release {successor} is held: {reason}")
        }
        What::Reverting { successor, reason } => {
            format!("the update to release {successor} is being undone: {reason}")
        }
        What::Missed { count } => format!("{count} events were missed"),
        _ => "something that this build does not know".to_owned(),
    };
    let what = what.lines().collect::<Vec<_>>().join(" | ");
    format!("{} [{}] {what}", clock(happened.at_ms), happened.to)
}

/// Whether nothing comes after it.
pub(crate) fn is_end(happened: &Happened) -> bool {
    matches!(happened.what, What::Drained { .. })
}

/// The same for short ones.
pub(crate) fn micros(micros: u64) -> String {
    match micros {
        0..1_000_000 => format!("{:.1?}", Duration::from_micros(micros)),
        _ => millis(micros / 1_000),
    }
}

/// A length of time as people say it, to two units.
pub(crate) fn millis(millis: u64) -> String {
    let (seconds, minutes) = (millis / 1_000, millis / 60_000);
    let (hours, days) = (minutes / 60, minutes / (24 * 60));
    match millis {
        0..1_000 => format!("{millis}ms"),
        1_000..60_000 => format!("{}.{}s", seconds, millis % 1_000 / 100),
        60_000..3_600_000 => format!("{minutes}m{}s", seconds % 60),
        3_600_000..86_400_000 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// How long ago a moment was.
fn age(at_ms: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(at_ms);
    let ago = SystemTime::now().duration_since(at).unwrap_or_default();
    millis(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX))
}

/// The time of day, in UTC.
fn clock(at_ms: u64) -> String {
    let seconds = at_ms / 1_000 % 86_400;
    format!(
        "{:02}:{:02}:{:02}.{:03}Z",
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60,
        at_ms % 1_000
    )
}

const NO_UPGRADE: &str = "no upgrade is known";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_has_two_units() {
        for (length, said) in [
            (0, "0ms"),
            (999, "999ms"),
            (1_250, "1.2s"),
            (61_000, "1m1s"),
            (3_660_000, "1h1m"),
            (90_000_000, "1d1h"),
        ] {
            assert_eq!(millis(length), said);
        }
    }

    #[test]
    fn a_failed_upgrade_is_explained_with_its_last_words_and_who_serves() {
        let failed: Upgrade = serde_json::from_str(
            r#"{"generation":2,"from":1,"verdict":"aborted","phase":"warming","pid":7,"incumbent_serves":true,
                "reason":"it ended (exit status: 3)","exit":"exit status: 3","last_words":"no such\ndatabase\n"}"#,
        )
        .unwrap();
        let said = explain(Some(&failed), Paint::Plain);
        for part in [
            "1 -> 2 aborted (warming)",
            "it ended (exit status: 3)",
            "pid 7, ended with exit status: 3",
            "generation 1, as before",
            "  no such\n  database",
        ] {
            assert!(said.contains(part), "{part:?} is not in {said}");
        }
        assert!(!said.contains('\u{1b}'));
        assert!(explain(Some(&failed), Paint::Coloured).contains('\u{1b}'));
        assert_eq!(explain(None, Paint::Plain), NO_UPGRADE);
    }
}
