//! The log of a supervisor, on standard error, for which it never waits: its only thread has signals, deadlines and
//! workers to look after, whoever reads the log and however slowly.
//!
//! Standard error belongs to others as well, so O_NONBLOCK is not set on it. A pipe is opened once more by its name in
//! /proc, which is an open file of its own (pipe(7), proc_pid_fd(5)). Where that cannot be, and for terminals and sockets,
//! a line is written only while there is room (poll(2)).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use handover::control::{Happened, What};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::output::Output;
use crate::text;

/// Where lines go, or are dropped and counted.
#[derive(Debug)]
pub(crate) struct Log {
    output: Output,
    /// None without a standard error: then there is nobody to tell.
    file: Option<File>,
    dropped: u64,
}

impl Log {
    /// On standard error.
    pub(crate) fn on_stderr(output: Output) -> Self {
        let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
        let file = stderr.ok().map(|file| reopened(&file).unwrap_or(file));
        Self {
            output,
            file,
            dropped: 0,
        }
    }

    /// One line about one event, or none if it would have to wait. How many were dropped is said as soon as there is room.
    pub(crate) fn say(&mut self, happened: &Happened) {
        if self.dropped > 0 {
            let count = self.dropped;
            let mut missed = happened.clone();
            missed.what = What::Missed { count };
            if self.write(&missed) {
                self.dropped = 0;
            }
        }
        let is_written = self.dropped == 0 && self.write(happened);
        self.dropped += u64::from(!is_written);
    }

    fn write(&mut self, happened: &Happened) -> bool {
        let Some(file) = &mut self.file else {
            return true;
        };
        let line = self.output.line(happened, || text::happened(happened));
        has_room(file) && file.write(&bounded(line)).is_ok()
    }
}

/// A pipe once more, as an open file that nobody waits for.
fn reopened(pipe: &File) -> io::Result<File> {
    if !pipe.metadata()?.file_type().is_fifo() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_NONBLOCK);
    options.open(format!("/proc/self/fd/{}", pipe.as_raw_fd()))
}

fn has_room(file: &File) -> bool {
    let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|found| found > 0)
}

/// A line that a pipe takes whole or not at all (pipe(7), PIPE_BUF).
fn bounded(line: String) -> Vec<u8> {
    let mut bytes = line.into_bytes();
    bytes.truncate(libc::PIPE_BUF - 1);
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::output::Paint;

    #[test]
    fn a_full_pipe_costs_lines_and_no_time_and_says_how_many_once_it_is_read() {
        let (mut reader, writer) = io::pipe().unwrap();
        let pipe = File::from(OwnedFd::from(writer));
        let mut log = Log {
            output: Output {
                json: false,
                paint: Paint::Plain,
            },
            file: Some(reopened(&pipe).unwrap()),
            dropped: 0,
        };
        drop(pipe);
        let message = "x".repeat(1000);
        let line = serde_json::json!({
            "to": 0, "at_ms": 0, "event": "warning", "message": message,
        });
        let happened = serde_json::from_value(line).unwrap();
        while log.dropped < 3 {
            log.say(&happened);
        }
        let mut begin = vec![0; 2 * libc::PIPE_BUF];
        reader.read_exact(&mut begin).unwrap();
        log.say(&happened);
        assert_eq!(log.dropped, 0);
        drop(log);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("3 events were missed"), "{rest}");
    }

    #[test]
    fn a_line_is_no_longer_than_what_a_pipe_takes_at_once() {
        assert_eq!(bounded("x".into()), b"x\n");
        assert_eq!(bounded("x".repeat(9000)).len(), libc::PIPE_BUF);
    }
}
