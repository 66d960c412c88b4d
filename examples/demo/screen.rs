//! What the demo shows while it runs: a log that scrolls, and on a terminal a block below it that is drawn anew.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _, stdout};
use std::time::{Duration, Instant};

use handover_load::{Progress, grouped};

/// How text is shown where colours are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Bold,
    Faint,
    Good,
    Bad,
    Warm,
}

#[derive(Debug)]
pub(crate) struct Screen {
    is_terminal: bool,
    has_colors: bool,
    /// Lines of the block that stand on the terminal now.
    drawn: usize,
    /// What the upgrade under way is doing.
    activity: String,
    recent: VecDeque<(Instant, Progress)>,
}

impl Screen {
    pub(crate) fn open() -> Self {
        let is_terminal = stdout().is_terminal();
        let has_colors = is_terminal && std::env::var_os("NO_COLOR").is_none();
        if is_terminal {
            put(HIDE_CURSOR);
        }
        Self {
            is_terminal,
            has_colors,
            drawn: 0,
            activity: String::new(),
            recent: VecDeque::new(),
        }
    }

    /// How many columns there are.
    pub(crate) fn width(&self) -> usize {
        let size = rustix::termios::tcgetwinsize(stdout()).ok();
        let columns = size.map_or(0, |size| usize::from(size.ws_col));
        match columns {
            0 => WIDTH_WITHOUT_TERMINAL,
            columns => columns.clamp(WIDTH_MIN, WIDTH_MAX),
        }
    }

    /// Adds to the log, broken into lines that fit.
    pub(crate) fn log(&mut self, at: Duration, style: Style, text: &str) {
        let stamp = format!("{:>7.2} s", at.as_secs_f64());
        self.write(&stamp, style, text);
    }

    /// Adds to the log what belongs to the line before.
    pub(crate) fn more(&mut self, style: Style, text: &str) {
        self.write("", style, text);
    }

    /// An empty line.
    pub(crate) fn space(&mut self) {
        self.above_block("\n");
    }

    /// A line as it is.
    pub(crate) fn line(&mut self, style: Style, text: &str) {
        let painted = self.painted(style, text);
        self.above_block(&(painted + "\n"));
    }

    /// A sign, and a text beside it that is broken into lines that fit.
    pub(crate) fn item(&mut self, sign: &str, style: Style, text: &str) {
        let sign = self.painted(style, sign);
        for (index, line) in wrapped(text, self.width().saturating_sub(4))
            .iter()
            .enumerate()
        {
            let begin = if index == 0 { sign.as_str() } else { " " };
            self.above_block(&format!("  {begin} {line}\n"));
        }
    }

    /// A text of its own, broken into lines that fit.
    pub(crate) fn paragraph(&mut self, style: Style, text: &str) {
        for line in wrapped(text, self.width()) {
            self.line(style, &line);
        }
    }

    /// What the block says about the upgrade from now on.
    pub(crate) fn activity(&mut self, text: impl Into<String>) {
        self.activity = text.into();
    }

    /// Draws the block anew.
    pub(crate) fn refresh(&mut self, progress: Progress) {
        self.recent.push_back((Instant::now(), progress));
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        self.above_block("");
    }

    /// Takes the block away; the log stays.
    pub(crate) fn close(&mut self) {
        self.recent.clear();
        self.above_block("");
    }

    pub(crate) fn painted(&self, style: Style, text: &str) -> String {
        match (self.has_colors, style) {
            (false, _) | (_, Style::Plain) => text.to_owned(),
            _ => format!("\x1b[{}m{text}\x1b[0m", style.code()),
        }
    }

    fn write(&mut self, stamp: &str, style: Style, text: &str) {
        let stamp = format!("{stamp:>STAMP$}  ");
        let room = self.width().saturating_sub(STAMP + 2);
        let mut out = String::new();
        for (index, line) in text
            .lines()
            .flat_map(|line| wrapped(line, room))
            .enumerate()
        {
            let begin = match index {
                0 => self.painted(Style::Faint, &stamp),
                _ => " ".repeat(STAMP + 2),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{begin}{}", self.painted(style, &line));
        }
        self.above_block(&out);
    }

    /// Writes `text` where the block stands, and the block below it, in one go so that nothing flickers.
    fn above_block(&mut self, text: &str) {
        let mut out = String::new();
        if self.drawn > 0 {
            let _ = write!(out, "\x1b[{}A\r\x1b[J", self.drawn);
        }
        out += text;
        let block = match self.is_terminal {
            true => self.block(),
            false => Vec::new(),
        };
        self.drawn = block.len();
        for line in block {
            let _ = writeln!(out, "{line}");
        }
        put(&out);
    }

    fn block(&self) -> Vec<String> {
        let (Some((begin, first)), Some((end, last))) = (self.recent.front(), self.recent.back())
        else {
            return Vec::new();
        };
        let width = self.width();
        let seconds = end.duration_since(*begin).as_secs_f64().max(0.001);
        let shares = shares(first, last);
        let answered: u64 = shares.iter().map(|(_, count)| count).sum();
        let failures = format!("{} failed", grouped(last.failures));
        let failures = match last.failures {
            0 => self.painted(Style::Good, &failures),
            _ => self.painted(Style::Bad, &failures),
        };
        let total = grouped(last.answers.values().sum());
        let rate = grouped((answered as f64 / seconds) as u64);
        vec![
            self.painted(Style::Faint, &"─".repeat(width)),
            format!(
                "  {:<10} {:>6} answers/s   {total} answered   {failures}",
                "load", rate
            ),
            format!("  {:<10} {}", "answers", self.shares(&shares, answered)),
            format!(
                "  {:<10} {}",
                "upgrade",
                clipped(&self.activity, width.saturating_sub(14))
            ),
        ]
    }

    /// Who answered the last second's requests.
    fn shares(&self, shares: &[(u64, u64)], answered: u64) -> String {
        let mut text = String::new();
        for (index, (generation, count)) in shares.iter().enumerate().rev().take(SHARES_MAX) {
            let percent = 100.0 * *count as f64 / answered.max(1) as f64;
            let bar = "█".repeat((percent / 10.0).ceil() as usize);
            let style = match index + 1 == shares.len() {
                true => Style::Good,
                false => Style::Warm,
            };
            let _ = write!(
                text,
                "generation {generation} {} {percent:.0} %   ",
                self.painted(style, &bar)
            );
        }
        text
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.is_terminal {
            put(SHOW_CURSOR);
        }
    }
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "0",
            Self::Bold => "1",
            Self::Faint => "2",
            Self::Good => "32",
            Self::Bad => "31",
            Self::Warm => "33",
        }
    }
}

/// Answers between two looks, by generation.
fn shares(first: &Progress, last: &Progress) -> Vec<(u64, u64)> {
    let since = |(generation, count): (&u64, &u64)| {
        let before = first.answers.get(generation).copied().unwrap_or(0);
        (*generation, count - before)
    };
    let shares = last.answers.iter().map(since);
    shares.filter(|(_, count)| *count > 0).collect()
}

/// Lines of at most `room` characters, broken between words; one that goes on is indented like its first line.
pub(crate) fn wrapped(text: &str, room: usize) -> Vec<String> {
    let indent: String = text.chars().take_while(|letter| *letter == ' ').collect();
    let mut lines = vec![indent.clone()];
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let line = lines.last().map_or(0, |line| line.chars().count());
        let is_first = line <= indent.len();
        if !is_first && line + 1 + word.chars().count() > room {
            lines.push(indent.clone() + word);
        } else if let Some(line) = lines.last_mut() {
            *line += if is_first { "" } else { " " };
            *line += word;
        }
    }
    lines
}

fn clipped(text: &str, room: usize) -> String {
    text.chars().take(room).collect()
}

/// A demo whose reader has gone away has nothing better to do than to go on and end well.
fn put(text: &str) {
    let mut out = stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Five looks per second make one second.
const RECENT: usize = 6;
pub(crate) const REFRESH: Duration = Duration::from_millis(200);
const SHARES_MAX: usize = 2;
const STAMP: usize = 9;
const WIDTH_WITHOUT_TERMINAL: usize = 100;
const WIDTH_MIN: usize = 60;
const WIDTH_MAX: usize = 120;
const HIDE_CURSOR: &str = "\x1b[?25l";
const SHOW_CURSOR: &str = "\x1b[?25h";
