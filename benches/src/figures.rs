//! What was measured, as rows: printed, written as JSON, and kept in `docs/performance.md`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::stats::{Better, median, ratio, ratio_spread, spread};

/// The two sides of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Coracle,
    Peer,
}

impl Which {
    /// In the order of a round: A B.
    pub const BOTH: [Self; 2] = [Self::Coracle, Self::Peer];
}

/// One thing that is measured on both sides.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    pub name: &'static str,
    pub unit: &'static str,
    pub better: Better,
    /// The least amount that one round can tell from nothing: a side with less counts as this in ratios, which are then at least what
    /// they say.
    pub least: f64,
}

impl Measure {
    /// A cost: less is better.
    pub const fn cost(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, better: Better::Less, least: 0.0 }
    }

    /// A rate: more is better.
    pub const fn rate(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, better: Better::More, least: 0.0 }
    }
}

/// The rounds of one measure.
#[derive(Clone, Debug)]
pub struct Row {
    pub measure: Measure,
    pub coracle: Vec<f64>,
    /// The machine itself, where the bench has no peer.
    pub peer: Vec<f64>,
    /// The ratio would compare different work.
    pub refused: bool,
}

/// The rows of a bench, in the order in which they were first recorded.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub rows: Vec<Row>,
    /// Sentences below the table: what is not equal, what disturbed.
    pub notes: Vec<String>,
}

impl Figures {
    pub fn record(&mut self, which: Which, measure: Measure, value: f64) {
        let at = self.rows.iter().position(|row| row.measure.name == measure.name).unwrap_or_else(|| {
            self.rows.push(Row { measure, coracle: Vec::new(), peer: Vec::new(), refused: false });
            self.rows.len() - 1
        });
        let row = &mut self.rows[at];
        match which {
            Which::Coracle => row.coracle.push(value),
            Which::Peer => row.peer.push(value),
        }
    }

    /// Takes the ratios away when the sides did not do the same.
    pub fn refuse(&mut self, differences: Vec<String>) {
        if differences.is_empty() {
            return;
        }
        self.rows.iter_mut().for_each(|row| row.refused = true);
        self.notes.push("no ratio is printed, because the two sides are not equal:".to_owned());
        self.notes.extend(differences);
    }
}

impl Row {
    /// With [`Measure::least`], a bound: at least so many times better.
    pub fn ratio(&self) -> Option<f64> {
        let Measure { better, .. } = self.measure;
        if self.refused { None } else { ratio(better, &self.counted(&self.coracle), &self.counted(&self.peer)) }
    }

    fn counted(&self, values: &[f64]) -> Vec<f64> {
        values.iter().map(|value| value.max(self.measure.least)).collect()
    }

    /// Whether there was less than can be told from nothing, so that the ratio is only a bound.
    fn is_bound(&self) -> bool {
        median(&self.coracle).is_some_and(|ours| ours < self.measure.least)
    }

    /// An element of the JSON list: medians, and `null` for what there is not.
    pub fn json(&self) -> Value {
        json!({
            "name": self.measure.name,
            "ratio": self.ratio(),
            "coracle": median(&self.coracle),
            "peer": median(&self.peer),
            "unit": self.measure.unit,
        })
    }

    fn cells(&self) -> [String; 6] {
        let Measure { name, unit, better, .. } = self.measure;
        let pair = |pair: Option<(f64, f64)>| pair.map_or("–".to_owned(), |(low, high)| range(low, high));
        let of = |values: &[f64]| median(values).map_or("–".to_owned(), number);
        let ratios = ratio_spread(better, &self.counted(&self.coracle), &self.counted(&self.peer));
        let ratios = if self.refused { None } else { ratios };
        let at_least = if self.is_bound() { "≥ " } else { "" };
        let ratio = self.ratio().map_or("–".to_owned(), |ratio| format!("{at_least}{ratio:.1}×"));
        let shown = |values: &[f64]| match values {
            [] | [_] => of(values),
            several => format!("{} ({})", of(several), pair(spread(several))),
        };
        let of_ratio = match ratios {
            Some((low, high)) if self.coracle.len() > 1 => format!("{ratio} ({low:.1}–{high:.1})"),
            _ => ratio,
        };
        let rounds = self.coracle.len().max(self.peer.len());
        [name.to_owned(), of_ratio, shown(&self.coracle), shown(&self.peer), unit.to_owned(), rounds.to_string()]
    }
}

const HEAD: [&str; 6] = ["name", "ratio", "coracle", "peer", "unit", "rounds"];

/// The table for a terminal: median and, in brackets, the least and the greatest of the rounds.
pub fn table(rows: &[Row]) -> String {
    let mut lines: Vec<[String; 6]> = vec![HEAD.map(str::to_owned)];
    lines.extend(rows.iter().map(Row::cells));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// The same table as Markdown.
pub fn markdown(rows: &[Row]) -> String {
    let mut text = format!("| {} |\n|{}\n", HEAD.join(" | "), "---|".repeat(HEAD.len()));
    for row in rows {
        writeln!(text, "| {} |", row.cells().join(" | ")).expect("writing to a String cannot fail");
    }
    text
}

/// Three significant digits, as people read them.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn range(low: f64, high: f64) -> String {
    format!("{}–{}", number(low), number(high))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Measure = Measure::rate("get", "1/s");

    fn figures() -> Figures {
        let mut figures = Figures::default();
        for (which, value) in
            [(Which::Coracle, 12_000.0), (Which::Peer, 4_000.0), (Which::Coracle, 10_000.0), (Which::Peer, 5_000.0)]
        {
            figures.record(which, RATE, value);
        }
        figures
    }

    #[test]
    fn a_row_has_ratio_medians_and_spreads() {
        let table = table(&figures().rows);
        assert_eq!(
            table,
            "name  ratio           coracle              peer              unit  rounds\n\
             get   2.4× (2.0–3.0)  11000 (10000–12000)  4500 (4000–5000)  1/s   2\n"
        );
    }

    #[test]
    fn the_json_has_five_members() {
        assert_eq!(
            figures().rows[0].json(),
            json!({"name": "get", "ratio": 11_000.0 / 4_500.0, "coracle": 11_000.0, "peer": 4_500.0, "unit": "1/s"})
        );
    }

    #[test]
    fn nothing_is_compared_as_the_least_that_could_be_told() {
        let measure = Measure { least: 0.5, ..Measure::cost("written", "kB/s") };
        let mut figures = Figures::default();
        figures.record(Which::Coracle, measure, 0.0);
        figures.record(Which::Peer, measure, 20.0);
        assert_eq!(figures.rows[0].json()["ratio"], 40.0);
        assert_eq!(figures.rows[0].json()["coracle"], 0.0);
        assert!(table(&figures.rows).contains("written  ≥ 40.0×  0        20.0  kB/s"));
        figures.record(Which::Coracle, measure, 4.0);
        figures.record(Which::Peer, measure, 20.0);
        assert!(table(&figures.rows).contains("written  8.9× (5.0–40.0)"));
    }

    #[test]
    fn different_work_has_no_ratio() {
        let mut figures = figures();
        figures.refuse(vec!["create: /spec differs".to_owned()]);
        assert_eq!(figures.rows[0].json()["ratio"], Value::Null);
        assert!(table(&figures.rows).contains("get   –"));
        assert!(markdown(&figures.rows).contains("| get | – |"));
    }
}
