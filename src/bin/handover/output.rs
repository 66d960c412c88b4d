//! Standard output and standard error: text for people, JSON for programs, colours for terminals.

use std::io::{self, IsTerminal, Write};

use handover::Error;
use handover::control::VERSION;
use serde::Serialize;
use serde_json::Value;

use crate::exit::Exit;

/// How answers are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) paint: Paint,
}

/// Whether text has colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    Plain,
    Coloured,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        let is_wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let paint = match io::stdout().is_terminal() && is_wanted {
            true => Paint::Coloured,
            false => Paint::Plain,
        };
        Self { json, paint }
    }

    /// One answer: as it is, or as `text` words it.
    pub(crate) fn answer(
        self,
        content: &impl Serialize,
        text: impl FnOnce(Paint) -> String,
    ) -> io::Result<()> {
        let text = match self.json {
            true => versioned(serde_json::to_value(content)?),
            false => text(self.paint),
        };
        say(text.trim_end())
    }

    /// One line of a log.
    pub(crate) fn line(self, content: &impl Serialize, text: impl FnOnce() -> String) -> String {
        let value = serde_json::to_value(content).ok().filter(|_| self.json);
        value.map_or_else(text, versioned)
    }

    /// Why there is no answer, and the exit code that says so.
    pub(crate) fn error(self, error: &Error) -> Exit {
        let exit = Exit::of_error(error);
        let kind = match exit {
            Exit::Refused => "refused",
            _ => "error",
        };
        self.trouble(kind, &chain(error), exit)
    }

    /// The same in words of our own.
    pub(crate) fn trouble(self, kind: &str, message: &str, exit: Exit) -> Exit {
        if self.json {
            let line = serde_json::json!({ "reply": "error", "kind": kind, "message": message });
            let line = versioned(line);
            // Nobody reads: the exit code says it still.
            let _ = say(&line);
        } else {
            complain(message);
        }
        exit
    }
}

/// In one line, and in the version that the service's own lines have.
fn versioned(mut line: Value) -> String {
    line["version"] = VERSION.into();
    line.to_string()
}

/// An error and its causes.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

impl Paint {
    pub(crate) fn good(self, text: &str) -> String {
        self.in_colour("32", text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.in_colour("31", text)
    }

    pub(crate) fn strong(self, text: &str) -> String {
        self.in_colour("1", text)
    }

    fn in_colour(self, code: &str, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Coloured => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
        }
    }
}

pub(crate) fn say(text: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}

pub(crate) fn complain(text: &str) {
    // Without a standard error there is nobody to tell.
    let _ = writeln!(io::stderr(), "handover: {text}");
}
