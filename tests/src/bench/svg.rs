//! A table as a plot: a bar for each figure of the first column's unit, with its quartiles as a whisker. Pure.

use std::fmt::Write as _;

use super::report::{Figure, Table, Unit};
use super::stats::Spread;

/// Pixels.
const LABELS: f64 = 380.0;
const BARS: f64 = 460.0;
const VALUES: f64 = 190.0;
const BAR: f64 = 14.0;
const GAP: f64 = 6.0;
const HEAD: f64 = 34.0;
/// One for each column.
const COLOURS: [&str; 3] = ["#4878a8", "#b8b8b8", "#d08040"];

/// The plot as SVG.
#[must_use]
pub fn plot(table: &Table) -> String {
    let mut body = String::new();
    let mut y = HEAD;
    for row in &table.rows {
        let bars = bars(&row.figures);
        let middle = y + BAR * bars.len() as f64 / 2.0 + 4.0;
        text(&mut body, LABELS - 8.0, middle, "end", &row.what);
        for (column, figure) in bars {
            bar(&mut body, y, column, figure, most(table, figure.unit));
            y += BAR;
        }
        y += GAP;
    }
    let mut legend = table.scenario.to_owned();
    if table.noisy {
        legend += ", on a machine too noisy to judge";
    }
    text(&mut body, 8.0, 20.0, "start", &legend);
    let used = table.rows.iter().flat_map(|row| bars(&row.figures)).map(|(column, _)| column).max();
    for column in 0..=used.unwrap_or(0) {
        let x = LABELS + 130.0 * column as f64;
        let _ = writeln!(body, r#"<rect x="{x}" y="11" width="10" height="10" fill="{}"/>"#, colour(column));
        text(&mut body, x + 15.0, 20.0, "start", table.columns.get(column).copied().unwrap_or_default());
    }
    let (width, height) = (LABELS + BARS + VALUES, y + GAP);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

/// Those figures of a row that can be drawn beside each other, with their columns.
fn bars(figures: &[Figure]) -> Vec<(usize, &Figure)> {
    let Some(first) = figures.first() else { return Vec::new() };
    let alike = |figure: &&Figure| figure.unit == first.unit && !figure.spread.median.is_nan();
    figures.iter().enumerate().filter(|(_, figure)| alike(figure)).collect()
}

/// The end of a unit's axis.
fn most(table: &Table, unit: Unit) -> f64 {
    let all = table.rows.iter().flat_map(|row| bars(&row.figures));
    all.filter(|(_, figure)| figure.unit == unit).map(|(_, figure)| figure.spread.high).fold(0.0, f64::max)
}

fn bar(body: &mut String, y: f64, column: usize, figure: &Figure, most: f64) {
    let place = |value: f64| if most > 0.0 { LABELS + BARS * value.max(0.0) / most } else { LABELS };
    let Spread { low, median, high } = figure.spread;
    let (low, median, high) = (place(low), place(median), place(high));
    let (width, thick, middle) = (median - LABELS, BAR - 3.0, y + BAR / 2.0 - 1.5);
    let fill = colour(column);
    let _ =
        writeln!(body, r#"<rect x="{LABELS}" y="{y}" width="{width:.1}" height="{thick}" fill="{fill}"/>"#);
    let _ = writeln!(
        body,
        r#"<path d="M{low:.1} {middle}H{high:.1}M{low:.1} {}v6M{high:.1} {}v6" stroke="black"/>"#,
        middle - 3.0,
        middle - 3.0
    );
    text(body, high + 6.0, middle + 4.0, "start", &figure.to_string());
}

fn colour(column: usize) -> &'static str {
    COLOURS[column % COLOURS.len()]
}

fn text(body: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(body, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{words}</text>"#);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::Row;

    #[test]
    fn bars_share_a_units_axis() {
        let figure = |unit, low, median, high| Figure::new(unit, Spread { low, median, high });
        let time = |median: f64| figure(Unit::Nanoseconds, median - 10.0, median, median + 10.0);
        let table = Table {
            scenario: "forwarding",
            method: "how".into(),
            columns: vec!["a packet", "to kube-proxy"],
            rows: vec![
                Row { what: "a < b".into(), figures: vec![time(90.0), figure(Unit::Ratio, 1.0, 2.0, 3.0)] },
                Row { what: "b".into(), figures: vec![time(40.0)] },
                Row { what: "size".into(), figures: vec![figure(Unit::Bytes, 512.0, 512.0, 512.0)] },
                Row { what: "nothing".into(), figures: vec![time(f64::NAN)] },
            ],
            same: None,
            noisy: false,
            notes: Vec::new(),
        };
        let plot = plot(&table);
        let widths: Vec<_> = plot.lines().filter_map(|line| line.split("width=\"").nth(1)).collect();
        let bars: Vec<_> = widths.iter().filter(|rest| rest.contains(r#"height="11""#)).collect();
        assert_eq!(bars.len(), 3, "ratios and what was not measured have none: {plot}");
        assert!(bars[0].starts_with("414.0") && bars[1].starts_with("184.0"), "{bars:?}");
        assert!(bars[2].starts_with("460.0"), "bytes have an axis of their own: {bars:?}");
        assert!(plot.contains("a &lt; b") && plot.contains("40.0 ns [30.0 50.0]"), "{plot}");
    }
}
