//! What the live view shows, decided without a terminal.

use std::collections::VecDeque;

use handover::control::{Generation, Happened, PoolState, Role, Status};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Gauge, Paragraph, Sparkline};

use crate::curves::Curves;
use crate::output::Paint;
use crate::text;

/// Events that are remembered: more than fit on any screen.
const EVENTS_KEPT: usize = 200;

/// Of the rollout, its guards included.
const ROLLOUT_LINES_MAX: u16 = 8;
/// Of one curve.
const CURVE_HEIGHT: u16 = 2;
/// Of three curves and their border.
const CURVES_HEIGHT: u16 = 3 * CURVE_HEIGHT + 2;

/// The last that was heard of a service.
#[derive(Debug, Default)]
pub(crate) struct View {
    status: Option<Status>,
    generations: Vec<Generation>,
    events: VecDeque<String>,
    trouble: Option<String>,
    /// Of the generation that answers.
    stable: Curves,
    /// Of the one that an upgrade under way is to.
    candidate: Curves,
}

impl View {
    pub(crate) fn set_status(&mut self, status: Status) {
        // The clock of the process that answers, which the time of day does not move.
        let at_ms = status.uptime_ms;
        if let Some(counts) = &status.counts {
            self.stable.add(at_ms, counts);
        }
        let rollout = status.upgrade.as_ref().and_then(|now| now.rollout.as_ref());
        match rollout.and_then(|rollout| rollout.candidate.as_ref()) {
            Some(counts) => self.candidate.add(at_ms, counts),
            None => self.candidate = Curves::default(),
        }
        self.status = Some(status);
        self.trouble = None;
    }

    pub(crate) fn set_generations(&mut self, generations: Vec<Generation>) {
        self.generations = generations;
    }

    pub(crate) fn add(&mut self, happened: &Happened) {
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
        }
        self.events.push_back(text::happened(happened));
    }

    /// Nobody answers. What was heard last stays.
    pub(crate) fn set_trouble(&mut self, trouble: String) {
        self.trouble = Some(trouble);
    }

    pub(crate) fn draw(&self, frame: &mut Frame<'_>) {
        match self.status.as_ref().and_then(|status| status.pool.as_ref()) {
            Some(pool) => self.draw_pool(frame, pool),
            None => self.draw_service(frame),
        }
    }

    /// Every worker, as far as there is room: who serves nobody has no traffic of its own.
    fn draw_pool(&self, frame: &mut Frame<'_>, pool: &PoolState) {
        let workers: Vec<_> = text::pool(pool, Paint::Plain)
            .into_iter()
            .map(|line| {
                let style = match line.contains("stopping") || line.contains("killed") {
                    true => Style::new().fg(Color::DarkGray),
                    false if line.contains("starting") || line.contains("settling") => {
                        Style::new().fg(Color::Yellow)
                    }
                    false => Style::new(),
                };
                Line::styled(line, style)
            })
            .collect();
        let height = u16::try_from(workers.len()).unwrap_or(u16::MAX);
        let [head, all, events, foot] = Layout::vertical([
            Constraint::Length(3),
            Constraint::Length(height.saturating_add(2)),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(boxed("pool", vec![self.head()]), head);
        frame.render_widget(boxed("workers", workers), all);
        self.draw_events(frame, events, foot);
    }

    fn draw_events(&self, frame: &mut Frame<'_>, events: Rect, foot: Rect) {
        let room = usize::from(events.height.saturating_sub(2));
        frame.render_widget(boxed("events", self.last_events(room)), events);
        frame.render_widget(Paragraph::new("q: quit"), foot);
    }

    fn draw_service(&self, frame: &mut Frame<'_>) {
        let alive = u16::try_from(self.generations.len()).unwrap_or(u16::MAX);
        let rollout = self.rollout();
        let told = rollout.as_ref().map_or(0, |(_, lines)| lines.len());
        let told = u16::try_from(told)
            .unwrap_or(u16::MAX)
            .min(ROLLOUT_LINES_MAX);
        let [head, generations, rolling, traffic, drain, events, foot] = Layout::vertical([
            Constraint::Length(3),
            Constraint::Length(alive.clamp(1, 6) + 2),
            Constraint::Length(rollout.as_ref().map_or(0, |_| told + 3)),
            Constraint::Length(CURVES_HEIGHT),
            Constraint::Length(4),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(boxed("service", vec![self.head()]), head);
        frame.render_widget(boxed("generations", self.alive()), generations);
        if let Some((share, lines)) = rollout {
            draw_rollout(frame, rolling, share, lines);
        }
        self.draw_traffic(frame, traffic);
        frame.render_widget(boxed("in flight", self.drain()), drain);
        self.draw_events(frame, events, foot);
    }

    /// The candidate's share, from 0 to 1, and what there is to say of the rollout, its guards included.
    fn rollout(&self) -> Option<(f64, Vec<Line<'static>>)> {
        let upgrade = self.status.as_ref()?.upgrade.as_ref()?;
        let rollout = upgrade.rollout.as_ref()?;
        let share = f64::from(rollout.explanation.share.parts()) / 10_000.0;
        let text = text::rollout(rollout, Paint::Plain);
        let lines = text.lines().map(|line| {
            let style = match line.split_whitespace().next() {
                Some("paused") => Style::new().fg(Color::Yellow),
                Some("guard") if line.contains(" failed") => Style::new().fg(Color::Red),
                _ => Style::new(),
            };
            Line::styled(line.to_owned(), style)
        });
        Some((share, lines.collect()))
    }

    /// One column for each side that has counted something.
    fn draw_traffic(&self, frame: &mut Frame<'_>, area: Rect) {
        let sides = [("stable", &self.stable), ("candidate", &self.candidate)];
        let known: Vec<_> = sides
            .into_iter()
            .filter_map(|(name, curves)| Some((name, curves, curves.side()?.generation)))
            .collect();
        let columns = Layout::horizontal(vec![Constraint::Fill(1); known.len().max(1)]).split(area);
        if known.is_empty() {
            let nothing = boxed("traffic", vec![Line::raw("nothing is counted")]);
            return frame.render_widget(nothing, area);
        }
        let is_rollout = known.len() > 1;
        for ((name, curves, generation), column) in known.into_iter().zip(columns.iter()) {
            let title = match is_rollout {
                true => format!("{name}, generation {generation}"),
                false => format!("generation {generation}"),
            };
            draw_curves(frame, *column, title, curves);
        }
    }

    fn head(&self) -> Line<'static> {
        match (&self.trouble, &self.status) {
            (Some(trouble), _) => Line::styled(trouble.clone(), Style::new().fg(Color::Red)),
            (None, Some(status)) => Line::raw(text::head(status, Paint::Plain)),
            (None, None) => Line::raw("asking"),
        }
    }

    fn alive(&self) -> Vec<Line<'static>> {
        let each = self.generations.iter().map(|generation| {
            let line = text::generations(std::slice::from_ref(generation), Paint::Plain);
            Line::styled(line, style_of(generation.role))
        });
        each.collect()
    }

    fn drain(&self) -> Vec<Line<'static>> {
        let Some(status) = &self.status else {
            return Vec::new();
        };
        let own = Line::raw(text::classes(&status.classes));
        let elders = status
            .elders
            .iter()
            .map(|elder| Line::raw(text::elder(elder)));
        [own].into_iter().chain(elders).collect()
    }

    fn last_events(&self, count: usize) -> Vec<Line<'static>> {
        let first = self.events.len().saturating_sub(count);
        self.events
            .iter()
            .skip(first)
            .cloned()
            .map(Line::raw)
            .collect()
    }
}

fn draw_rollout(frame: &mut Frame<'_>, area: Rect, share: f64, lines: Vec<Line<'static>>) {
    let outer = Block::bordered().title("rollout");
    let [bar, told] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(outer.inner(area));
    let gauge = Gauge::default()
        .gauge_style(Style::new().fg(Color::Cyan))
        .ratio(share.clamp(0.0, 1.0))
        .label(format!("{:.2} % to the candidate", share * 100.0));
    frame.render_widget(outer, area);
    frame.render_widget(gauge, bar);
    frame.render_widget(Paragraph::new(lines), told);
}

fn draw_curves(frame: &mut Frame<'_>, area: Rect, title: String, curves: &Curves) {
    let outer = Block::bordered().title(title);
    let inner = outer.inner(area);
    frame.render_widget(outer, area);
    let last = |curve: &VecDeque<u64>| curve.back().copied().unwrap_or(0);
    let rows = [
        (
            format!("{} requests/s", last(&curves.requests)),
            &curves.requests,
            Color::Green,
        ),
        (
            format!("{:.2} errors/s", last(&curves.errors) as f64 / 100.0),
            &curves.errors,
            Color::Red,
        ),
        (
            format!("p99 {}", text::micros(last(&curves.latency))),
            &curves.latency,
            Color::Yellow,
        ),
    ];
    let places = Layout::vertical([Constraint::Length(CURVE_HEIGHT); 3]).split(inner);
    for ((label, curve, colour), place) in rows.into_iter().zip(places.iter()) {
        let [words, line] =
            Layout::horizontal([Constraint::Length(18), Constraint::Min(0)]).areas(*place);
        let room = usize::from(line.width);
        let newest = curve.iter().skip(curve.len().saturating_sub(room));
        let newest: Vec<u64> = newest.copied().collect();
        frame.render_widget(Paragraph::new(label), words);
        let sparkline = Sparkline::default()
            .data(newest)
            .style(Style::new().fg(colour));
        frame.render_widget(sparkline, line);
    }
}

fn boxed(title: &'static str, lines: Vec<Line<'static>>) -> Paragraph<'static> {
    Paragraph::new(lines).block(Block::bordered().title(title))
}

fn style_of(role: Role) -> Style {
    match role {
        Role::Incumbent => Style::new().fg(Color::Green).add_modifier(Modifier::BOLD),
        Role::Successor => Style::new().fg(Color::Yellow),
        _ => Style::new(),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn drawn(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    fn of_json<T: serde::de::DeserializeOwned>(text: &str) -> T {
        serde_json::from_str(text).unwrap()
    }

    fn busy() -> View {
        let mut view = View::default();
        view.set_status(of_json(
            r#"{"generation":2,"pid":20,"role":"incumbent","health":"ready","uptime_ms":65000,
                "classes":[{"name":"http1","in_flight":3}],
                "elders":[{"generation":1,"pid":10,"killed_in_ms":60000}]}"#,
        ));
        view.set_generations(of_json(
            r#"[{"generation":1,"pid":10,"role":"draining"},{"generation":2,"pid":20,"role":"incumbent"},
                {"generation":3,"pid":30,"role":"successor","phase":"baking"}]"#,
        ));
        view.add(&of_json(
            r#"{"to":2,"at_ms":1000,"event":"phase","successor":3,"phase":"baking","after_ms":5}"#,
        ));
        view
    }

    #[test]
    fn generations_phases_drain_and_events_are_on_the_screen() {
        let screen = drawn(&busy(), 100, 24);
        for part in [
            "generation 2 (incumbent), ready, pid 20, up 1m5s",
            "1  pid 10       draining",
            "3  pid 30       successor, baking",
            "3 http1",
            "generation 1, pid 10, gone in 1m0s at the latest",
            "00:00:01.000Z [2] upgrade to 3: baking",
        ] {
            assert!(screen.contains(part), "{part:?} is not in\n{screen}");
        }
    }

    #[test]
    fn every_worker_of_a_pool_is_on_the_screen_with_its_update() {
        let mut view = View::default();
        view.set_status(of_json(
            r#"{"generation":1,"pid":10,"role":"supervisor","health":"ready","pool":{"wanted":2,"ready":2,"stable":1,
                "update":{"candidate":2,"stage":"rolling","replaced":0,"failures":0},"workers":[
                {"worker":1,"pid":11,"release":1,"stage":"serving","age_ms":65000},
                {"worker":2,"pid":12,"release":1,"stage":"stopping","age_ms":65000,"crashes":3},
                {"worker":3,"pid":13,"release":2,"stage":"settling","age_ms":50,"requests":7,"errors":1}]}}"#,
        ));
        let screen = drawn(&view, 100, 24);
        for part in [
            "generation 1 (supervisor), ready, pid 10",
            "2 of 2 ready; rolling to release 2, 0 replaced, 0 failed",
            "worker 1    release 1, pid 11, serving for 1m5s",
            "pid 12, stopping for 1m5s, after 3 crashes",
            "pid 13, settling for 50ms, 7 requests, 1 errors",
        ] {
            assert!(screen.contains(part), "{part:?} is not in\n{screen}");
        }
        drawn(&view, 1, 1);
    }

    /// A canary whose candidate errs, at two looks.
    fn canary() -> View {
        let mut view = View::default();
        for (uptime_ms, requests, errors) in [(1_000, 100, 1), (2_000, 142, 4)] {
            view.set_status(of_json(&format!(
                r#"{{"generation":1,"pid":10,"role":"incumbent","uptime_ms":{uptime_ms},
                    "counts":{{"generation":1,"requests":{},"p99_us":1500}},
                    "upgrade":{{"generation":2,"phase":"standby","rollout":{{
                        "by":"client","pause":{{"reason":"shared_trouble","until":"recovery"}},
                        "explanation":{{"cause":"underway","stage":"shifting","step":[2,4],"share":500,"units":42,
                            "units_min":300,"elapsed_ms":9000,"stable_unverified":null,"guards":[
                            {{"guard":"errors","finding":"failed","text":"candidate 4/142","figures":[]}}]}},
                        "candidate":{{"generation":2,"requests":{requests},"errors":{errors},"p99_us":250000}}}}}}}}"#,
                uptime_ms * 7
            )));
        }
        view
    }

    #[test]
    fn a_rollout_shows_share_guards_and_the_curves_of_both_sides() {
        let screen = drawn(&canary(), 160, 40);
        for part in [
            "5.00 % to the candidate",
            "shifting at 5 %, step 2 of 4, 42 of 300 requests",
            "paused      both sides fail",
            "guard       errors failed: candidate 4/142",
            "stable, generation 1",
            "candidate, generation 2",
            "7000 requests/s",
            "42 requests/s",
            "3.00 errors/s",
            "p99 250.0ms",
            "\u{2588}",
        ] {
            assert!(screen.contains(part), "{part:?} is not in\n{screen}");
        }
    }

    #[test]
    fn the_curves_of_a_candidate_go_with_it() {
        let mut view = canary();
        view.set_status(of_json(
            r#"{"generation":1,"pid":10,"role":"incumbent","uptime_ms":3000,
                "counts":{"generation":1,"requests":15000}}"#,
        ));
        let screen = drawn(&view, 160, 40);
        assert!(!screen.contains("candidate"), "{screen}");
        assert!(screen.contains("1000 requests/s"), "{screen}");
    }

    #[test]
    fn what_was_heard_last_stays_when_nobody_answers() {
        let mut view = busy();
        view.set_trouble("nobody answers".to_owned());
        let screen = drawn(&view, 100, 24);
        assert!(
            screen.contains("nobody answers") && screen.contains("3 http1"),
            "{screen}"
        );
        view.set_status(of_json(r#"{"generation":3,"pid":30,"role":"incumbent"}"#));
        assert!(!drawn(&view, 100, 24).contains("nobody answers"));
    }

    #[test]
    fn the_newest_events_are_shown_and_the_oldest_forgotten() {
        let mut view = View::default();
        for count in 0..1_000 {
            view.add(&of_json(&format!(
                r#"{{"to":1,"at_ms":0,"event":"missed","count":{count}}}"#
            )));
        }
        assert_eq!(view.events.len(), EVENTS_KEPT);
        let screen = drawn(&view, 60, 20);
        assert!(
            screen.contains("999 events") && !screen.contains("900 events"),
            "{screen}"
        );
    }

    #[test]
    fn a_terminal_of_any_size_is_drawn_on() {
        for (width, height) in [(1, 1), (3, 2), (20, 5), (300, 100)] {
            drawn(&busy(), width, height);
            drawn(&canary(), width, height);
        }
    }
}
