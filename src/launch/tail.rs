//! The end of what a process has written, by which its end is explained.

use std::collections::VecDeque;

/// The end of a text of any length.
#[derive(Debug, Default)]
pub(super) struct Tail(VecDeque<u8>);

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        let surplus = self.0.len().saturating_sub(TAIL_BYTES_MAX);
        self.0.drain(..surplus);
    }

    pub(super) fn text(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        last_lines(&bytes)
    }
}

/// As much of the end as is shown.
pub(crate) fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut breaks = text.trim_end_matches('\n').rmatch_indices('\n');
    let from = breaks.nth(TAIL_LINES_MAX - 1).map_or(0, |(at, _)| at + 1);
    text[from..].to_owned()
}

/// How much of the end is kept: 8 KiB.
pub(crate) const TAIL_BYTES_MAX: usize = 8 * 1024;
/// How much of the end is shown: 40 lines.
const TAIL_LINES_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_the_last_lines_and_the_last_bytes() {
        let mut tail = Tail::default();
        for number in 0..100 {
            tail.push(format!("line {number}\n").as_bytes());
        }
        let text = tail.text();
        assert_eq!(text.lines().count(), TAIL_LINES_MAX);
        assert!(text.starts_with("line 60\n") && text.ends_with("line 99\n"));

        tail.push(&[b'x'; 3 * TAIL_BYTES_MAX]);
        tail.push(b"\xff end");
        assert_eq!(tail.0.len(), TAIL_BYTES_MAX);
        assert!(tail.text().ends_with("x\u{fffd} end"));
    }
}
