//! What the live view shows, decided without a terminal.

use std::collections::VecDeque;

use handover::control::{Generation, Happened, Role, Status};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph};

use crate::output::Paint;
use crate::text;

/// Events that are remembered: more than fit on any screen.
const EVENTS_KEPT: usize = 200;

/// The last that was heard of a service.
#[derive(Debug, Default)]
pub(crate) struct View {
    status: Option<Status>,
    generations: Vec<Generation>,
    events: VecDeque<String>,
    trouble: Option<String>,
}

impl View {
    pub(crate) fn set_status(&mut self, status: Status) {
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
        let alive = u16::try_from(self.generations.len()).unwrap_or(u16::MAX);
        let [head, generations, drain, events, foot] = Layout::vertical([
            Constraint::Length(3),
            Constraint::Length(alive.clamp(1, 6) + 2),
            Constraint::Length(4),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(boxed("service", vec![self.head()]), head);
        frame.render_widget(boxed("generations", self.alive()), generations);
        frame.render_widget(boxed("in flight", self.drain()), drain);
        let room = usize::from(events.height.saturating_sub(2));
        frame.render_widget(boxed("events", self.last_events(room)), events);
        frame.render_widget(Paragraph::new("q: quit"), foot);
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
        }
    }
}
