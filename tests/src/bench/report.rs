//! What a scenario found: a table for people, JSON for programs.

use std::fmt::{self, Write as _};

use anyhow::{Context, Result};
use serde::Serialize;

use super::stats::{Spread, spread};

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

/// One number with its spread, and what it should reach.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    pub unit: Unit,
    #[serde(flatten)]
    pub spread: Spread,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aims: Vec<Judged>,
}

impl Figure {
    #[must_use]
    pub const fn new(unit: Unit, spread: Spread) -> Self {
        Self { unit, spread, aims: Vec::new() }
    }

    /// Of samples.
    ///
    /// # Errors
    /// There are none.
    pub fn of(unit: Unit, samples: &[f64]) -> Result<Self> {
        Ok(Self::new(unit, spread(samples).context("no samples")?))
    }

    /// Judged by these aims, unless there was nothing to measure.
    #[must_use]
    pub fn aiming(mut self, aims: &[Aim]) -> Self {
        let value = self.spread.median;
        if !value.is_nan() {
            self.aims.extend(aims.iter().map(|&aim| Judged { aim, met: aim.is_met(value) }));
        }
        self
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread { low, median, high } = self.spread;
        if low == high || median.is_nan() {
            return f.write_str(&self.unit.show(median));
        }
        let shown = self.unit.show(median);
        let suffix = |shown: &str| shown.split_once(' ').map(|(_, suffix)| suffix.to_owned());
        let of = suffix(&shown);
        // Quartiles of another magnitude keep their unit, or they would mislead.
        let quartile = |value| {
            let quartile = self.unit.show(value);
            if suffix(&quartile) == of { quartile.split(' ').take(1).collect() } else { quartile }
        };
        write!(f, "{shown} [{} {}]", quartile(low), quartile(high))
    }
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
}

/// An aim, and whether the median reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Judged {
    #[serde(flatten)]
    pub aim: Aim,
    pub met: bool,
}

impl Judged {
    fn show(self, unit: Unit) -> String {
        let (sign, limit) = match self.aim {
            Aim::AtMost(limit) => ("<=", limit),
            Aim::AtLeast(limit) => (">=", limit),
        };
        format!("{sign} {} {}", unit.show(limit), if self.met { "met" } else { "MISSED" })
    }
}

/// One line of a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub what: String,
    pub figures: Vec<Figure>,
}

impl Row {
    /// One figure.
    ///
    /// # Errors
    /// No samples.
    pub fn new(what: &str, unit: Unit, samples: &[f64], aims: &[Aim]) -> Result<Self> {
        Ok(Self { what: what.into(), figures: vec![Figure::of(unit, samples)?.aiming(aims)] })
    }

    /// All aims; with the column's name where there are several columns.
    fn aims(&self, columns: &[&str]) -> String {
        let named = self.figures.iter().zip(columns).filter(|(figure, _)| !figure.aims.is_empty());
        let shown = named.map(|(figure, column)| {
            let aims = figure.aims.iter().map(|aim| aim.show(figure.unit)).collect::<Vec<_>>().join(", ");
            if columns.len() == 1 { aims } else { format!("{column} {aims}") }
        });
        shown.collect::<Vec<_>>().join(", ")
    }
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
        let head = [self.scenario].into_iter().chain(self.columns.iter().copied()).chain(["aim"]);
        let mut lines: Vec<Vec<String>> = vec![head.map(String::from).collect()];
        for row in &self.rows {
            let mut line = vec![row.what.clone()];
            line.extend(row.figures.iter().map(ToString::to_string));
            line.resize(1 + self.columns.len(), String::new());
            line.push(row.aims(&self.columns));
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
    fn quartiles_of_another_magnitude_keep_their_unit() {
        let spread = Spread { low: 9_000.0, median: 9_716.0, high: 10_300.0 };
        assert_eq!(Figure::new(Unit::PerSecond, spread).to_string(), "9716 /s [9000 10.3 k/s]");
        assert_eq!(Figure::new(Unit::Ratio, spread).to_string(), "9716.00 [9000.00 10300.00]");
    }

    #[test]
    fn aims_are_judged_beside_their_figures() {
        let figure =
            |median| Figure::new(Unit::Nanoseconds, Spread { low: median - 1.0, median, high: median + 1.0 });
        let table = Table {
            scenario: "program",
            method: "how".into(),
            columns: vec!["floor", "net", "to nobody"],
            rows: vec![Row {
                what: "established".into(),
                figures: vec![
                    figure(90.0),
                    figure(61.0).aiming(&[Aim::AtMost(60.0), Aim::AtLeast(10.0)]),
                    figure(f64::NAN).aiming(&[Aim::AtMost(1.0)]),
                ],
            }],
            same: Some(Spread::exact(1.0)),
            noisy: true,
            notes: vec!["a note".into()],
        };
        let text = table.text();
        for part in [
            "90.0 ns [89.0 91.0]",
            "net <= 60.0 ns MISSED, >= 10.0 ns met\n",
            "too noisy",
            "  a note",
            "  how",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let json = serde_json::to_value(&table).unwrap();
        assert_eq!(json["rows"][0]["figures"][1]["median"], 61.0);
        let aims = &json["rows"][0]["figures"][1]["aims"];
        assert_eq!((&aims[0]["at_most"], &aims[0]["met"]), (&60.0.into(), &false.into()));
        assert_eq!((&aims[1]["at_least"], &aims[1]["met"]), (&10.0.into(), &true.into()));
        assert_eq!(json["rows"][0]["figures"][0]["unit"], "nanoseconds");
    }
}
