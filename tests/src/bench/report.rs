//! What a scenario found: a table for people, JSON for programs.

use std::fmt::Write as _;

use serde::Serialize;

use super::stats::Spread;

/// What numbers count. They are kept in the unit's own size: nanoseconds, bytes, or plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    Nanoseconds,
    Bytes,
    Ratio,
    PerSecond,
    Count,
}

impl Unit {
    /// The number as people read it.
    #[must_use]
    pub fn show(self, value: f64) -> String {
        let (value, suffix) = match self {
            // There was nothing to measure or to compare with.
            _ if value.is_nan() => return "-".into(),
            Self::Nanoseconds if value.abs() >= 1e9 => (value / 1e9, " s"),
            Self::Nanoseconds if value.abs() >= 1e6 => (value / 1e6, " ms"),
            Self::Nanoseconds if value.abs() >= 1e4 => (value / 1e3, " us"),
            Self::Nanoseconds => (value, " ns"),
            Self::Bytes if value.abs() >= f64::from(1 << 20) => (value / f64::from(1 << 20), " MiB"),
            Self::Bytes => (value / 1024.0, " KiB"),
            Self::PerSecond if value.abs() >= 1e4 => (value / 1e3, " k/s"),
            Self::PerSecond => (value, " /s"),
            Self::Ratio => return format!("{value:.2}"),
            Self::Count => return format!("{value:.0}"),
        };
        let digits = if value.abs() >= 100.0 { 0 } else { 1 };
        format!("{value:.digits$}{suffix}")
    }
}

/// One number with its spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figure {
    pub unit: Unit,
    #[serde(flatten)]
    pub spread: Spread,
}

impl Figure {
    fn show(&self) -> String {
        let Spread { low, median, high } = self.spread;
        if low == high || median.is_nan() {
            return self.unit.show(median);
        }
        format!("{} [{} {}]", self.unit.show(median), bare(self.unit, low), bare(self.unit, high))
    }
}

/// Without the unit's name.
fn bare(unit: Unit, value: f64) -> String {
    let shown = unit.show(value);
    shown.split(' ').next().map_or_else(String::new, |number| match shown.split_once(' ') {
        // Quartiles of another magnitude keep their unit, or they would mislead.
        Some((_, "ns" | "MiB" | "/s" | "k/s" | "us" | "ms")) | None => number.to_owned(),
        Some(_) => shown.clone(),
    })
}

/// What a figure should reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    AtMost(f64),
    AtLeast(f64),
}

impl Aim {
    #[must_use]
    pub fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }

    fn show(self, unit: Unit, value: f64) -> String {
        let (sign, limit) = match self {
            Self::AtMost(limit) => ("<=", limit),
            Self::AtLeast(limit) => (">=", limit),
        };
        let verdict = if self.is_met(value) { "met" } else { "MISSED" };
        format!("{sign} {} {verdict}", unit.show(limit))
    }
}

/// One line of a table. The last figure is the one that counts, and that the aim is about.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub what: String,
    pub figures: Vec<Figure>,
    pub aims: Vec<Aim>,
}

/// A scenario's result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    pub scenario: &'static str,
    /// How it was measured, in a line.
    pub method: String,
    /// Names of the figures.
    pub columns: Vec<&'static str>,
    pub rows: Vec<Row>,
    /// A variant beside itself, and whether that says that the machine was too noisy to judge.
    pub same: Option<Spread>,
    pub noisy: bool,
    pub notes: Vec<String>,
}

impl Table {
    /// The table for the terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let mut lines: Vec<Vec<String>> =
            vec![[self.scenario].iter().chain(&self.columns).map(ToString::to_string).collect()];
        for row in &self.rows {
            let mut line = vec![row.what.clone()];
            line.extend(row.figures.iter().map(Figure::show));
            let last = row.figures.last();
            line.resize(1 + self.columns.len(), String::new());
            let aims = row.aims.iter().filter_map(|aim| last.map(|f| aim.show(f.unit, f.spread.median)));
            line.push(aims.collect::<Vec<_>>().join(", "));
            lines.push(line);
        }
        let mut text = aligned(&lines);
        let _ = writeln!(text, "  {}", self.method);
        if let Some(same) = self.same {
            let Spread { low, median, high } = same;
            let verdict = if self.noisy {
                "too noisy: differences of this size mean nothing, run again on a quiet machine"
            } else {
                "quiet enough"
            };
            let _ = writeln!(text, "  A/A (the same twice): {median:.3} [{low:.3} {high:.3}], {verdict}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "  {note}");
        }
        text
    }
}

/// Columns side by side: the first to the left, the others to the right, the last as it is.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut shown = String::new();
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let _ = match column {
                0 => write!(shown, "{cell:<width$}"),
                _ if column + 1 == columns => write!(shown, "  {cell}"),
                _ => write!(shown, "  {cell:>width$}"),
            };
        }
        let _ = writeln!(text, "{}", shown.trim_end());
    }
    text
}

/// Everything of one run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub version: &'static str,
    pub machine: String,
    pub quick: bool,
    pub scenarios: Vec<Table>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_people_read_them() {
        let cases = [
            (Unit::Nanoseconds, 47.34, "47.3 ns"),
            (Unit::Nanoseconds, 1_097.6, "1098 ns"),
            (Unit::Nanoseconds, 12_340.0, "12.3 us"),
            (Unit::Nanoseconds, 5_250_000.0, "5.2 ms"),
            (Unit::Nanoseconds, 1.5e9, "1.5 s"),
            (Unit::Bytes, 62_914_560.0, "60.0 MiB"),
            (Unit::Bytes, 2048.0, "2.0 KiB"),
            (Unit::PerSecond, 38_123.0, "38.1 k/s"),
            (Unit::Ratio, 1.0449, "1.04"),
            (Unit::Count, 3.0, "3"),
            (Unit::Ratio, f64::NAN, "-"),
        ];
        for (unit, value, want) in cases {
            assert_eq!(unit.show(value), want);
        }
    }

    #[test]
    fn aims_are_judged_by_the_last_figure() {
        let figure = |median| Figure {
            unit: Unit::Nanoseconds,
            spread: Spread { low: median - 1.0, median, high: median + 1.0 },
        };
        let table = Table {
            scenario: "program",
            method: "how".into(),
            columns: vec!["floor", "net"],
            rows: vec![Row {
                what: "established".into(),
                figures: vec![figure(90.0), figure(61.0)],
                aims: vec![Aim::AtMost(60.0), Aim::AtLeast(10.0)],
            }],
            same: Some(Spread::exact(1.0)),
            noisy: true,
            notes: vec!["a note".into()],
        };
        let text = table.text();
        for part in
            ["90.0 ns [89.0 91.0]", "<= 60.0 ns MISSED, >= 10.0 ns met", "too noisy", "  a note", "  how"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        let json = serde_json::to_value(&table).unwrap();
        assert_eq!(json["rows"][0]["figures"][1]["median"], 61.0);
        assert_eq!(json["rows"][0]["aims"][0]["at_most"], 60.0);
        assert_eq!(json["rows"][0]["figures"][0]["unit"], "nanoseconds");
    }
}
