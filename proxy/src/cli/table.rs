//! Plain text tables of JSON values.

use serde_json::Value;

/// A table with a header; every column is as wide as its widest cell, numbers stand to the right.
#[derive(Debug)]
pub(super) struct Table {
    headers: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

/// One cell of a [`Table`].
#[derive(Debug)]
pub(super) struct Cell {
    text: String,
    is_number: bool,
}

impl Table {
    pub(super) fn new(headers: &[&str]) -> Self {
        Self {
            headers: headers.iter().map(|header| (*header).to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; what is missing or null shows as `-`.
    pub(super) fn row(&mut self, values: &[Option<&Value>]) {
        self.cells(values.iter().map(|value| Cell::new(*value)));
    }

    /// Adds a row of cells.
    pub(super) fn cells(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The lines of the table, without spaces at their ends.
    pub(super) fn render(&self) -> String {
        let width = |column: usize| {
            let cells = self
                .rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.text.chars().count());
            cells
                .chain(
                    self.headers
                        .get(column)
                        .map(|header| header.chars().count()),
                )
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.headers.len()).map(width).collect();
        let header = self
            .headers
            .iter()
            .zip(&widths)
            .map(|(header, width)| format!("{header:<width$}"));
        let mut lines = vec![joined(header)];
        for row in &self.rows {
            let cells = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| match cell.is_number {
                    true => format!("{:>width$}", cell.text),
                    false => format!("{:<width$}", cell.text),
                });
            lines.push(joined(cells));
        }
        lines.join("\n")
    }
}

impl Cell {
    /// A quantity with its unit; what is not known shows as `-`.
    pub(super) fn quantity(text: Option<String>) -> Self {
        Self {
            is_number: text.is_some(),
            text: text.unwrap_or_else(|| "-".to_owned()),
        }
    }

    /// A value as it is; what is missing or null shows as `-`.
    pub(super) fn new(value: Option<&Value>) -> Self {
        let text = match value {
            None | Some(Value::Null) => "-".to_owned(),
            // One line per row, and no escape sequences on the terminal, whatever the daemon was told.
            Some(Value::String(text)) => text
                .escape_debug()
                .to_string()
                .replace("\\'", "'")
                .replace("\\\"", "\""),
            Some(Value::Number(number)) if number.is_f64() => {
                format!("{:.3}", number.as_f64().unwrap_or_default())
            }
            // JSON leaves some control characters as they are.
            Some(other) => printable(&other.to_string()),
        };
        Self {
            text,
            is_number: matches!(value, Some(Value::Number(_))),
        }
    }
}

/// The text without what a terminal would obey.
pub(super) fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => printable.extend(character.escape_debug()),
            false => printable.push(character),
        }
    }
    printable
}

fn joined(cells: impl Iterator<Item = String>) -> String {
    cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_align_and_missing_values_show_as_a_dash() {
        let mut table = Table::new(&["node", "rtt", "problem"]);
        table.row(&[Some(&json!("paris")), Some(&json!(0.25)), None]);
        table.row(&[
            Some(&json!("rio")),
            Some(&json!(12)),
            Some(&json!("it's\ndown\u{1b}[31m")),
        ]);
        let wanted = "node   rtt    problem\nparis  0.250  -\nrio       12  it's\\ndown\\u{1b}[31m";
        assert_eq!(table.render(), wanted);
    }
}
