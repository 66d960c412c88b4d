//! A timeline as a picture.

use std::fmt::Write;
use std::time::Duration;

use super::{Columns, Mark, MarkKind, Timeline};
use crate::report::grouped;

pub(super) fn draw(timeline: &Timeline) -> String {
    let columns = timeline.columns(COLUMNS_MAX);
    let generations = timeline.generations();
    let marks = placed(&timeline.marks, &columns);
    let rows = marks.iter().map(|mark| mark.row + 1).max().unwrap_or(0);
    let picture = Picture {
        top: MARGIN + rows as f64 * MARK_ROW + 8.0,
        lanes: generations.len() + usize::from(has_failures(&columns)),
        columns,
    };
    let mut svg = picture.open();
    svg += &picture.grid();
    svg += &picture.areas(&generations);
    svg += &picture.lanes(&generations);
    svg += &picture.time_axis();
    svg += &picture.marks(&marks);
    svg + "</svg>\n"
}

struct Picture {
    columns: Columns,
    /// Where the rates begin, below the labels of the marks.
    top: f64,
    lanes: usize,
}

/// A mark with a row for its label in which it meets no other.
struct Placed<'a> {
    mark: &'a Mark,
    x: f64,
    row: usize,
    is_left_of_line: bool,
}

impl Picture {
    fn open(&self) -> String {
        let height = self.bottom() + 34.0;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\" font-size=\"12\" \
             fill=\"{INK}\">\n<rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#ffffff\"/>\n"
        )
    }

    fn grid(&self) -> String {
        let per_second = 1.0 / self.columns.width.as_secs_f64();
        let peak = self.columns.peak() as f64 * per_second;
        let step = nice_step(peak / 5.0);
        let mut svg = format!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"{FAINT}\">answers/s</text>\n",
            LEFT - 8.0,
            self.top - 8.0
        );
        let mut rate = 0.0;
        while rate <= peak {
            let y = self.y(rate / per_second);
            // Writing to a string cannot fail; here and below.
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {y:.1}H{}\" stroke=\"{GRID}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" \
                 fill=\"{FAINT}\">{}</text>",
                right(),
                LEFT - 8.0,
                y + 4.0,
                grouped(rate as u64)
            );
            rate += step;
        }
        svg
    }

    /// The rates of all generations, stacked.
    fn areas(&self, generations: &[u64]) -> String {
        let mut floor = vec![0; self.columns.sums.len()];
        let mut svg = String::new();
        for (index, generation) in generations.iter().enumerate() {
            let mut path = String::new();
            for (column, sum) in self.columns.sums.iter().enumerate() {
                let count = sum.of(*generation);
                if count > 0 {
                    let (low, high) = (floor[column], floor[column] + count);
                    path += &self.bar(column, self.y(high as f64), self.y(low as f64));
                    floor[column] = high;
                }
            }
            svg += &filled(&path, color(index), 0.9);
        }
        svg
    }

    /// One lane per generation in which every answer shows, however few there are.
    fn lanes(&self, generations: &[u64]) -> String {
        let mut svg = String::new();
        for (index, generation) in generations.iter().enumerate() {
            let counts = self.columns.sums.iter().map(|sum| sum.of(*generation));
            let counts: Vec<_> = counts.collect();
            let total = grouped(counts.iter().sum());
            svg += &self.lane(index, &counts, color(index));
            svg += &self.lane_text(index, &format!("generation {generation}"), &total);
        }
        if has_failures(&self.columns) {
            let failures: Vec<_> = self.columns.sums.iter().map(|sum| sum.failures).collect();
            let index = generations.len();
            svg += &self.lane(index, &failures, RED);
            svg += &self.lane_text(index, "failures", &grouped(failures.iter().sum()));
        }
        svg
    }

    /// Strong where there are many, faint where there are few.
    fn lane(&self, index: usize, counts: &[u64], color: &str) -> String {
        let y = self.lane_y(index);
        let many = counts.iter().max().copied().unwrap_or(0).div_ceil(5);
        let (mut strong, mut faint) = (String::new(), String::new());
        for (column, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let path = if *count >= many {
                &mut strong
            } else {
                &mut faint
            };
            *path += &self.bar(column, y, y + LANE_HEIGHT);
        }
        format!(
            "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{PLOT_WIDTH}\" height=\"{LANE_HEIGHT}\" fill=\"{LANE}\"/>\n{}{}",
            filled(&faint, color, 0.45),
            filled(&strong, color, 0.9)
        )
    }

    fn lane_text(&self, index: usize, name: &str, total: &str) -> String {
        let y = self.lane_y(index) + LANE_HEIGHT - 3.0;
        format!(
            "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{name}</text><text x=\"{}\" y=\"{y}\" fill=\"{FAINT}\">{total}\
             </text>\n",
            LEFT - 8.0,
            right() + 8.0
        )
    }

    fn time_axis(&self) -> String {
        let span = self.columns.span().as_secs_f64();
        let step = nice_step(span / 10.0);
        let y = self.bottom() + 16.0;
        let mut svg = String::new();
        let mut at = 0.0;
        while at <= span {
            let x = self.x(Duration::from_secs_f64(at));
            let text = format!("{} s", (at * 1000.0).round() / 1000.0);
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.1} {:.1}v4\" stroke=\"{FAINT}\"/><text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\" \
                 fill=\"{FAINT}\">{text}</text>",
                self.bottom() - 2.0
            );
            at += step;
        }
        svg
    }

    /// Labels after all lines and with a halo, because a line may pass through the label of another mark.
    fn marks(&self, marks: &[Placed<'_>]) -> String {
        let lines = marks.iter().map(|mark| self.mark_line(mark));
        let labels = marks.iter().map(mark_label);
        lines.chain(labels).collect()
    }

    fn mark_line(&self, placed: &Placed<'_>) -> String {
        format!(
            "<path d=\"M{:.1} {:.1}V{:.1}\" stroke=\"{}\" stroke-width=\"1.5\" stroke-dasharray=\"4 3\"/>\n",
            placed.x,
            baseline(placed.row) - 10.0,
            self.bottom() - LANE_GAP,
            mark_color(placed.mark.kind)
        )
    }

    fn bar(&self, column: usize, top: f64, bottom: f64) -> String {
        let width = PLOT_WIDTH / self.columns.sums.len() as f64;
        let x = LEFT + column as f64 * width;
        format!("M{x:.2} {top:.2}h{width:.2}V{bottom:.2}h-{width:.2}z")
    }

    fn x(&self, at: Duration) -> f64 {
        x(at, &self.columns)
    }

    fn y(&self, count: f64) -> f64 {
        self.top + RATES_HEIGHT * (1.0 - count / self.columns.peak().max(1) as f64)
    }

    fn lane_y(&self, index: usize) -> f64 {
        self.top + RATES_HEIGHT + 14.0 + index as f64 * (LANE_HEIGHT + LANE_GAP)
    }

    fn bottom(&self) -> f64 {
        self.lane_y(self.lanes)
    }
}

fn placed<'a>(marks: &'a [Mark], columns: &Columns) -> Vec<Placed<'a>> {
    let mut row_ends: Vec<f64> = Vec::new();
    let mut placed = Vec::new();
    for mark in marks {
        let x = x(mark.at, columns);
        let width = mark.label.chars().count() as f64 * CHAR_WIDTH + 10.0;
        let is_left_of_line = x + width > WIDTH - 4.0;
        let begin = if is_left_of_line { x - width } else { x };
        let free = row_ends.iter().position(|end| *end < begin);
        let row = free.unwrap_or(row_ends.len());
        row_ends.resize(row_ends.len().max(row + 1), 0.0);
        row_ends[row] = x.max(begin + width);
        placed.push(Placed {
            mark,
            x,
            row,
            is_left_of_line,
        });
    }
    placed
}

fn mark_label(placed: &Placed<'_>) -> String {
    let (anchor, x) = match placed.is_left_of_line {
        true => ("end", placed.x - 5.0),
        false => ("start", placed.x + 5.0),
    };
    format!(
        "<text x=\"{x:.1}\" y=\"{:.1}\" fill=\"{}\" font-weight=\"600\" text-anchor=\"{anchor}\" \
         paint-order=\"stroke\" stroke=\"#ffffff\" stroke-width=\"4\">{}</text>\n",
        baseline(placed.row),
        mark_color(placed.mark.kind),
        escaped(&placed.mark.label)
    )
}

fn baseline(row: usize) -> f64 {
    MARGIN + (row as f64 + 1.0) * MARK_ROW - 5.0
}

fn x(at: Duration, columns: &Columns) -> f64 {
    let share = at.as_secs_f64() / columns.span().as_secs_f64().max(f64::EPSILON);
    LEFT + PLOT_WIDTH * share.min(1.0)
}

fn has_failures(columns: &Columns) -> bool {
    columns.sums.iter().any(|sum| sum.failures > 0)
}

fn filled(path: &str, color: &str, opacity: f64) -> String {
    match path.is_empty() {
        true => String::new(),
        false => {
            format!("<path d=\"{path}\" fill=\"{color}\" fill-opacity=\"{opacity}\"/>\n")
        }
    }
}

/// 1, 2 or 5 times a power of ten, at least `least`.
fn nice_step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1e-3).log10().floor());
    let nice = [1.0, 2.0, 5.0].map(|digit| digit * power);
    nice.into_iter()
        .find(|step| *step >= least)
        .unwrap_or(10.0 * power)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn color(index: usize) -> &'static str {
    COLORS[index % COLORS.len()]
}

fn mark_color(kind: MarkKind) -> &'static str {
    match kind {
        MarkKind::Handover => INK,
        MarkKind::Kill => RED,
        MarkKind::Note => FAINT,
    }
}

fn right() -> f64 {
    LEFT + PLOT_WIDTH
}

const WIDTH: f64 = 960.0;
const LEFT: f64 = 104.0;
const PLOT_WIDTH: f64 = 784.0;
const MARGIN: f64 = 14.0;
const MARK_ROW: f64 = 18.0;
const RATES_HEIGHT: f64 = 180.0;
const LANE_HEIGHT: f64 = 14.0;
const LANE_GAP: f64 = 6.0;
const COLUMNS_MAX: usize = 392;
/// The widest that a letter is on average, in a bold sans-serif of 12.
const CHAR_WIDTH: f64 = 7.0;

const INK: &str = "#1f2937";
const FAINT: &str = "#6b7280";
const GRID: &str = "#e5e7eb";
const LANE: &str = "#f3f4f6";
const RED: &str = "#dc2626";
const COLORS: [&str; 8] = [
    "#2563eb", "#f59e0b", "#059669", "#7c3aed", "#db2777", "#0891b2", "#84a312", "#9a5b34",
];

#[cfg(test)]
mod tests {
    use super::super::tests::handover;
    use super::*;

    #[test]
    fn steps_are_round() {
        assert_eq!(nice_step(0.3), 0.5);
        assert_eq!(nice_step(700.0), 1000.0);
        assert_eq!(nice_step(20.0), 20.0);
    }

    #[test]
    fn labels_of_marks_do_not_meet() {
        let mut timeline = handover();
        timeline.mark(
            Duration::from_millis(910),
            MarkKind::Kill,
            "another".repeat(9),
        );
        timeline.mark(Duration::from_millis(1999), MarkKind::Note, "last".into());
        let columns = timeline.columns(COLUMNS_MAX);
        let rows: Vec<_> = placed(&timeline.marks, &columns)
            .iter()
            .map(|mark| mark.row)
            .collect();
        assert_eq!(rows, [0, 1, 0]);
    }

    #[test]
    fn labels_are_text_and_not_markup() {
        assert!(handover().svg().contains("1 &lt; 2 &amp; more"));
    }

    #[test]
    fn each_generation_and_the_failures_have_a_lane() {
        let svg = handover().svg();
        for lane in ["generation 1", "generation 2", "failures"] {
            assert!(svg.contains(&format!(">{lane}</text>")), "no {lane}");
        }
    }
}
