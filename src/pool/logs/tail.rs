//! The end of what a worker has written to standard error, in a memory file that is full and then begins anew.
//!
//! Relay and supervisor have the same open file, and with it the same position (open(2)): it says where the end is, and
//! the relay after one that has died goes on there.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use crate::launch::{TAIL_BYTES_MAX, last_lines};
use crate::sys::memory;

#[derive(Debug)]
pub(super) struct Tail(File);

impl Tail {
    pub(super) fn create() -> io::Result<Self> {
        Ok(memory::create(c"handover-tail")?.into())
    }

    pub(super) fn push(&self, bytes: &[u8]) -> io::Result<()> {
        let mut file = &self.0;
        let mut left = &bytes[bytes.len().saturating_sub(TAIL_BYTES_MAX)..];
        while !left.is_empty() {
            let at = match file.stream_position()? as usize {
                TAIL_BYTES_MAX.. => file.seek(SeekFrom::Start(0))? as usize,
                at => at,
            };
            let (now, later) = left.split_at(left.len().min(TAIL_BYTES_MAX - at));
            file.write_all(now)?;
            left = later;
        }
        Ok(())
    }

    /// The last lines.
    pub(super) fn text(&self) -> io::Result<String> {
        let mut file = &self.0;
        let end = file.stream_position()? as usize;
        let mut bytes = vec![0; (file.metadata()?.len() as usize).min(TAIL_BYTES_MAX)];
        file.read_exact_at(&mut bytes, 0)?;
        let end = end.min(bytes.len());
        bytes.rotate_left(end);
        Ok(last_lines(&bytes))
    }
}

impl From<OwnedFd> for Tail {
    fn from(file: OwnedFd) -> Self {
        Self(file.into())
    }
}

impl AsFd for Tail {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_the_end_of_all_that_both_have_pushed() {
        let ours = Tail::create().unwrap();
        let theirs = Tail::from(ours.as_fd().try_clone_to_owned().unwrap());
        assert_eq!(ours.text().unwrap(), "");
        theirs.push(b"one\n").unwrap();
        ours.push(b"two\n").unwrap();
        assert_eq!(ours.text().unwrap(), "one\ntwo\n");
        let mut all = "one\ntwo\n".to_owned();
        for number in 0..2_000 {
            let line = format!("{} is the number of this line\n", number * number);
            theirs.push(line.as_bytes()).unwrap();
            all.push_str(&line);
            assert_eq!(ours.text().unwrap(), last_of(&all));
        }
        theirs
            .push("x".repeat(3 * TAIL_BYTES_MAX).as_bytes())
            .unwrap();
        assert_eq!(ours.text().unwrap(), "x".repeat(TAIL_BYTES_MAX));
    }

    fn last_of(text: &str) -> String {
        let bytes = text.as_bytes();
        last_lines(&bytes[bytes.len().saturating_sub(TAIL_BYTES_MAX)..])
    }
}
