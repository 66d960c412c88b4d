//! What a worker writes, cut into lines that say whose they are.

use super::super::controller::{ReleaseId, WorkerId};

/// One stream of a worker.
#[derive(Debug)]
pub(super) struct Lines {
    prefix: String,
    /// The line that has begun.
    rest: Vec<u8>,
    /// Pieces of it were told already.
    is_cut: bool,
}

impl Lines {
    pub(super) fn of(worker: WorkerId, release: ReleaseId) -> Self {
        Self {
            prefix: format!("worker {worker} release {release} | "),
            rest: Vec::new(),
            is_cut: false,
        }
    }

    /// Adds to `out` the lines that these bytes complete, and pieces of one that is too long.
    pub(super) fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            match part.strip_suffix(b"\n") {
                Some(end) => {
                    self.begin(end, out);
                    self.tell(self.rest.len(), out);
                    self.is_cut = false;
                }
                None => self.begin(part, out),
            }
        }
    }

    /// The last line, which nobody has ended.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        if !self.rest.is_empty() {
            self.tell(self.rest.len(), out);
        }
    }

    fn begin(&mut self, part: &[u8], out: &mut Vec<u8>) {
        self.rest.extend(part);
        while self.rest.len() > LINE_MAX {
            self.tell(piece(&self.rest), out);
            self.is_cut = true;
        }
    }

    fn tell(&mut self, length: usize, out: &mut Vec<u8>) {
        let (text, rest) = self.rest.split_at(length);
        let (level, text) = text.split_at(if self.is_cut { 0 } else { level(text) });
        out.extend(level);
        out.extend(self.prefix.as_bytes());
        out.extend(text);
        out.push(b'\n');
        self.rest = rest.to_vec();
    }
}

/// How much of these lines goes into one write: as many whole ones as nobody else can write between.
pub(super) fn batch(lines: &[u8]) -> &[u8] {
    let most = &lines[..lines.len().min(BATCH_MAX)];
    // What is left of a line that was written in part ends where it ends.
    let end = most.iter().rposition(|byte| *byte == b'\n');
    end.map_or(most, |end| &most[..=end])
}

/// The journal reads a level where a line begins (sd-daemon(3)), so that is where it stays.
fn level(line: &[u8]) -> usize {
    match line {
        [b'<', b'0'..=b'7', b'>', ..] => 3,
        _ => 0,
    }
}

/// How much of a line that is too long is a piece of it: no character is cut, where it is text.
fn piece(line: &[u8]) -> usize {
    let is_within = |at: &usize| matches!(line.get(*at), Some(0x80..=0xbf));
    let mut ends = (LINE_MAX - 3..=LINE_MAX).rev();
    ends.find(|at| !is_within(at)).unwrap_or(LINE_MAX)
}

/// What a pipe takes at once, whoever else writes there (pipe(7), PIPE_BUF): 4 KiB.
const BATCH_MAX: usize = libc::PIPE_BUF;
/// How long a line may be, with 64 bytes for what is put before and behind it.
const LINE_MAX: usize = BATCH_MAX - 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn told(parts: &[&[u8]]) -> String {
        let (mut lines, mut out) = (Lines::of(2, 3), Vec::new());
        parts.iter().for_each(|part| lines.push(part, &mut out));
        lines.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_line_says_whose_it_is_however_it_was_written() {
        let whole = "worker 2 release 3 | one\nworker 2 release 3 | \nworker 2 release 3 | two\n";
        assert_eq!(told(&[b"one\n\ntwo\n"]), whole);
        assert_eq!(told(&[b"o", b"ne", b"\n", b"\nt", b"wo"]), whole);
        assert_eq!(told(&[]), "");
    }

    #[test]
    fn a_line_that_is_too_long_comes_in_pieces_and_no_character_is_cut() {
        let long = format!("<3>{}", "ü".repeat(LINE_MAX));
        for parts in [
            vec![long.as_bytes()],
            long.as_bytes().chunks(7).collect::<Vec<_>>(),
        ] {
            let told = told(&[&parts[..], &[b"\n<4>next"]].concat());
            let pieces: Vec<&str> = told.lines().collect();
            assert_eq!(pieces.len(), 4, "{told}");
            assert!(pieces[0].starts_with("<3>worker 2 release 3 | ü"));
            assert_eq!(pieces[3], "<4>worker 2 release 3 | next");
            let text = pieces[..3].iter().map(|it| it.split_once("| ").unwrap().1);
            assert_eq!(format!("<3>{}", text.collect::<String>()), long);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_cut_at_the_limit() {
        let (mut lines, mut out) = (Lines::of(1, 1), Vec::new());
        lines.push(&[0x80; LINE_MAX + 1], &mut out);
        let prefix = "worker 1 release 1 | ".len();
        assert_eq!(out.len(), prefix + LINE_MAX + 1);
    }

    #[test]
    fn a_batch_is_as_many_whole_lines_as_a_pipe_takes_at_once() {
        let line = [&[b'x'; 99][..], b"\n"].concat();
        let much = line.repeat(100);
        assert_eq!(batch(&much).len(), BATCH_MAX / 100 * 100);
        assert_eq!(batch(&line), line);
        assert_eq!(batch(b"the rest of a line"), b"the rest of a line");
    }

    #[test]
    fn the_longest_line_of_the_last_worker_is_one_batch() {
        let (mut lines, mut out) = (Lines::of(WorkerId::MAX, ReleaseId::MAX), Vec::new());
        lines.push(
            &[b"<3>", &[b'x'; LINE_MAX - 3][..], b"\nnext\n"].concat(),
            &mut out,
        );
        let first = batch(&out);
        assert!(first.ends_with(b"x\n") && first.len() > LINE_MAX);
    }
}
