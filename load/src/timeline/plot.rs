//! A timeline in characters.

use super::{Columns, Timeline};
use crate::report::{brief, grouped};

pub(super) fn draw(timeline: &Timeline, width: usize) -> String {
    let columns = timeline.columns(width.saturating_sub(LABEL).max(COLUMNS_MIN));
    let peak = columns.peak();
    let mut lines = marks(timeline, &columns);
    for generation in timeline.generations() {
        let counts = columns.sums.iter().map(|sum| sum.of(generation));
        lines.push(line(
            &format!("generation {generation}"),
            counts.map(|n| block(n, peak)),
        ));
    }
    if columns.sums.iter().any(|sum| sum.failures > 0) {
        let failures = columns.sums.iter().map(|sum| sum.failures);
        lines.push(line(
            "failures",
            failures.map(|n| if n > 0 { '✗' } else { ' ' }),
        ));
    }
    lines.push(axis(&columns));
    lines.join("\n") + "\n"
}

/// One line with an arrow per mark, after one line of text for each.
fn marks(timeline: &Timeline, columns: &Columns) -> Vec<String> {
    let mut arrows = vec![' '; columns.sums.len()];
    let mut lines = Vec::new();
    for mark in &timeline.marks {
        let index = mark.at.div_duration_f64(columns.width) as usize;
        if let Some(arrow) = arrows.get_mut(index) {
            *arrow = '▼';
        }
        lines.push(format!(
            "{:>LABEL$}  {}",
            format!("▼ {:.3} s", mark.at.as_secs_f64()),
            mark.label
        ));
    }
    if !lines.is_empty() {
        lines.push(line("", arrows));
    }
    lines
}

fn axis(columns: &Columns) -> String {
    let peak = columns.peak() as f64 / columns.width.as_secs_f64();
    let end = format!("{:.1} s", columns.span().as_secs_f64());
    let ruler = "─".repeat(columns.sums.len().saturating_sub(end.chars().count() + 3));
    let scale = format!(
        "{:LABEL$}█ = {} answers/s, {} per column",
        "",
        grouped(peak as u64),
        brief(columns.width)
    );
    format!("{:LABEL$}0 {ruler} {end}\n{scale}", "")
}

fn line(label: &str, cells: impl IntoIterator<Item = char>) -> String {
    let cells: String = cells.into_iter().collect();
    format!("{label:<LABEL$}{cells}").trim_end().to_owned()
}

/// Whatever is not nothing is seen.
fn block(count: u64, peak: u64) -> char {
    match count {
        0 => ' ',
        _ => BLOCKS[((count * 8).div_ceil(peak.max(1)) as usize).clamp(1, 8) - 1],
    }
}

const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const LABEL: usize = 15;
const COLUMNS_MIN: usize = 10;

#[cfg(test)]
mod tests {
    use super::super::tests::handover;
    use super::*;

    #[test]
    fn the_tail_of_a_draining_generation_is_seen() {
        assert_eq!([block(0, 1000), block(1, 1000)], [' ', '▁']);
        assert_eq!([block(500, 1000), block(1000, 1000)], ['▄', '█']);
    }

    #[test]
    fn a_plot_fits_its_width_and_shows_marks_generations_and_failures() {
        let plot = handover().plot(60);
        assert!(
            plot.lines().all(|line| line.chars().count() <= 60),
            "\n{plot}"
        );
        for expected in ["▼ 0.900 s", "generation 1", "generation 2", "✗", "2.0 s"] {
            assert!(plot.contains(expected), "{expected} is not in\n{plot}");
        }
    }
}
