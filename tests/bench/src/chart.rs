//! The chart: the median of each peer relative to vmrt's.

use std::path::Path;

use plotters::prelude::*;

use crate::BenchError;
use crate::report::{Benchmark, Report};

const WIDTH: u32 = 900;
const TOP: i32 = 50;
const ROW: i32 = 22;
const GAP: i32 = 16;
const LEFT: i32 = 330;

/// The length in pixels of vmrt's bar, and of the longest bar.
const UNIT: f64 = 150.0;
const LONGEST: f64 = 500.0;

/// Draws `report` as an SVG file at `path`.
pub fn draw(report: &Report, path: &Path) -> Result<(), BenchError> {
    let rows: usize = report.benchmarks.iter().map(|benchmark| benchmark.entries.len()).sum();
    let gaps = report.benchmarks.len();
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let height = TOP + ROW * count(rows) + GAP * count(gaps);
    let area = SVGBackend::new(path, (WIDTH, height.unsigned_abs())).into_drawing_area();
    let drawn = area.fill(&WHITE).and_then(|()| {
        let title = format!("Time relative to vmrt's (shorter is faster); host: {}", report.host);
        area.draw_text(&title, &("sans-serif", 15).into_text_style(&area), (10, 14))?;
        let mut y = TOP;
        for benchmark in &report.benchmarks {
            y = draw_benchmark(&area, benchmark, y)?;
        }
        area.present()
    });
    drawn.map_err(|error| BenchError::Chart(error.to_string()))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type DrawResult<T> = Result<T, DrawingAreaErrorKind<std::io::Error>>;

/// Draws one group of bars at `y`, and returns the position of the next.
fn draw_benchmark(area: &Area, benchmark: &Benchmark, mut y: i32) -> DrawResult<i32> {
    let style = ("sans-serif", 13).into_text_style(area);
    let Some(ours) = benchmark.entries.first() else { return Ok(y) };
    area.draw_text(&benchmark.name, &style, (10, y + 3))?;
    for (number, entry) in benchmark.entries.iter().enumerate() {
        let ratio = entry.median / ours.median;
        let end = LEFT + pixels((ratio * UNIT).min(LONGEST));
        let colour = if number == 0 { RGBColor(31, 119, 180) } else { RGBColor(190, 190, 190) };
        area.draw_text(&entry.name, &style, (LEFT - 110, y + 3))?;
        area.draw(&Rectangle::new([(LEFT, y), (end, y + ROW - 4)], colour.filled()))?;
        area.draw_text(&format!("{ratio:.2} ({:.1} {})", entry.median, benchmark.unit), &style, (end + 6, y + 3))?;
        y += ROW;
    }
    Ok(y + GAP)
}

#[expect(clippy::cast_possible_truncation, reason = "a bar is at most LONGEST pixels")]
fn pixels(length: f64) -> i32 {
    length.round() as i32
}
