//! Owns what was measured: every sample, kept in a file over runs, and the tables of medians.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::PathBuf;

use crate::median;

/// What one sample is of.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    case: String,
    row: String,
    figure: String,
    way: String,
}

/// The samples of all rounds, in the order in which their keys first came.
#[derive(Debug, Default)]
pub struct Samples {
    file: Option<PathBuf>,
    values: Vec<(Key, Vec<f64>)>,
}

impl Samples {
    /// Those in `file` already, to which new ones are added; nothing is kept without one. Long measurements are
    /// cut into short runs that way.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(file: Option<PathBuf>) -> io::Result<Self> {
        let mut samples = Self::default();
        if let Some(path) = file.as_ref().filter(|path| path.exists()) {
            for line in std::fs::read_to_string(path)?.lines() {
                let fields: Vec<_> = line.split('\t').collect();
                if let [case, row, figure, way, value] = fields.as_slice()
                    && let Ok(value) = value.parse()
                {
                    samples.note(case, row, figure, way, value);
                }
            }
        }
        samples.file = file;
        Ok(samples)
    }

    fn note(&mut self, case: &str, row: &str, figure: &str, way: &str, value: f64) {
        let [case, row, figure, way] = [case, row, figure, way].map(str::to_owned);
        let key = Key {
            case,
            row,
            figure,
            way,
        };
        match self.values.iter_mut().find(|(known, _)| *known == key) {
            Some((_, values)) => values.push(value),
            None => self.values.push((key, vec![value])),
        }
    }

    /// Adds one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(
        &mut self,
        case: &str,
        row: &str,
        figure: &str,
        way: &str,
        value: f64,
    ) -> io::Result<()> {
        self.note(case, row, figure, way, value);
        let Some(path) = &self.file else {
            return Ok(());
        };
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        writeln!(file, "{case}\t{row}\t{figure}\t{way}\t{value}")
    }

    /// A table of medians per case, a column per way.
    pub fn tables(&self) -> String {
        let mut text = String::new();
        for case in self.distinct(|key| Some(&key.case)) {
            let of_case = |key: &&Key| key.case == case;
            let ways = self.distinct(|key| Some(key).filter(of_case).map(|key| &key.way));
            let rows = self.distinct(|key| Some(key).filter(of_case).map(|key| &key.row));
            let figures = self.distinct(|key| Some(key).filter(of_case).map(|key| &key.figure));
            let _ = writeln!(
                text,
                "| {case} | | {} | rounds |\n|---|---|{}---|",
                ways.join(" | "),
                "---|".repeat(ways.len())
            );
            for figure in figures {
                for row in &rows {
                    self.line(&mut text, case, row, figure, &ways);
                }
            }
            text.push('\n');
        }
        text
    }

    fn line(&self, text: &mut String, case: &str, row: &str, figure: &str, ways: &[&str]) {
        let of = |way: &str| {
            let is = |key: &Key| {
                (&*key.case, &*key.row, &*key.figure, &*key.way) == (case, row, figure, way)
            };
            let found = self.values.iter().find(|(key, _)| is(key));
            found.map_or(&[][..], |(_, values)| values)
        };
        let rounds = ways.iter().map(|way| of(way).len()).max().unwrap_or(0);
        if rounds == 0 {
            return;
        }
        let cells: Vec<_> = ways.iter().map(|way| shown(median(of(way)))).collect();
        let _ = writeln!(
            text,
            "| {row} | {figure} | {} | {rounds} |",
            cells.join(" | ")
        );
    }

    fn distinct<'a>(&'a self, field: impl Fn(&'a Key) -> Option<&'a String>) -> Vec<&'a str> {
        let mut found: Vec<&str> = Vec::new();
        for text in self.values.iter().filter_map(|(key, _)| field(key)) {
            if !found.contains(&text.as_str()) {
                found.push(text);
            }
        }
        found
    }
}

/// Three digits at least.
fn shown(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_several_runs_come_to_one_table_of_medians() {
        let dir = std::env::temp_dir().join(format!("tandem-samples-{}", std::process::id()));
        let _ = std::fs::remove_file(&dir);
        for value in [1.0, 3.0, 200.0] {
            let mut samples = Samples::open(Some(dir.clone())).expect("a file");
            samples.add("case", "8", "TPS", "one", value).expect("room");
        }
        let mut samples = Samples::open(Some(dir.clone())).expect("a file");
        samples
            .add("case", "8", "us", "other", 12.34)
            .expect("room");
        let expected = "| case | | one | other | rounds |\n|---|---|---|---|---|\n| 8 | TPS | 3.00 | - | 3 |\n| 8 | us | - | 12.3 | 1 |\n\n";
        assert_eq!(samples.tables(), expected);
        std::fs::remove_file(dir).expect("the file");
    }
}
