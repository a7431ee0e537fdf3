//! What can be told of rules only beside the tables of a database: what in them cannot be right ([`problems`]), and where
//! writes may meet on two nodes all the same ([`risks`]).
//!
//! Pure: who can ask a server brings the tables.

mod risks;
#[cfg(feature = "grammar")]
mod updates;

use core::ops::Range;
use std::collections::BTreeMap;

use crate::catalog::ColumnType;
use crate::document::{Document, Entry, Problem, Problems, Section};
use crate::model::{Affinity, Rules};
use crate::schema::{Column, Table};

pub use risks::{Circumstances, Risk, risks};
#[cfg(feature = "grammar")]
pub use updates::{SelfUpdate, self_updates};

/// What the affinity rules of `source`, which are `rules`, say of tables and columns that cannot be right: names that are not
/// there, columns whose values are no keys. In the order of the file.
#[must_use]
pub fn problems(source: &str, rules: &Rules, tables: &[Table]) -> Vec<Problem> {
    let places = places(source);
    let mut problems = Problems::default();
    for affinity in &rules.affinities {
        let place = places.get(&affinity.table).cloned().unwrap_or_default();
        let mut called = tables
            .iter()
            .filter(|table| table.is_called(&affinity.table))
            .peekable();
        if called.peek().is_none() {
            unknown_table(affinity, place.table, tables, &mut problems);
            continue;
        }
        // A rule without a schema is for all tables of its name; one sentence for each would say the same.
        let mut wrong = called.filter_map(|table| wrong_column(affinity, table));
        if let Some(wrong) = wrong.next() {
            let span = match wrong.concerns_table {
                true => place.table,
                false => place.column,
            };
            problems.add_with_hint(span, wrong.message, wrong.hint);
        }
    }
    problems.into_sorted()
}

fn unknown_table(
    affinity: &Affinity,
    span: Range<usize>,
    tables: &[Table],
    problems: &mut Problems,
) {
    let with_schema = affinity.table.contains('.');
    let names: Vec<String> = tables
        .iter()
        .filter(|table| !table.is_view)
        .map(|table| match with_schema {
            true => table.full_name(),
            false => table.name.clone(),
        })
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let message = format!("the database has no table `{}`", affinity.table);
    let hint = match crate::nearest(&affinity.table, &names) {
        Some(name) => format!("did you mean `{name}`?"),
        None => "create it on every node, or remove the rule".to_owned(),
    };
    problems.add_with_hint(span, message, hint);
}

/// What is wrong with a rule's column.
struct Wrong {
    concerns_table: bool,
    message: String,
    hint: String,
}

fn wrong_column(affinity: &Affinity, table: &Table) -> Option<Wrong> {
    let name = table.full_name();
    if table.is_view {
        return Some(Wrong {
            concerns_table: true,
            message: format!("`{name}` is a view"),
            hint: "name the tables behind it: a view's statements go by their keys".to_owned(),
        });
    }
    let wrong = |message, hint| {
        Some(Wrong {
            concerns_table: false,
            message,
            hint,
        })
    };
    let Some(column) = table.column(&affinity.column) else {
        let names: Vec<&str> = table.columns.iter().map(|c| c.name.as_str()).collect();
        let hint = match crate::nearest(&affinity.column, &names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("its columns are {}", names.join(", ")),
        };
        let message = format!("the table `{name}` has no column `{}`", affinity.column);
        return wrong(message, hint);
    };
    let Column { type_name, .. } = column;
    let found = format!(
        "column `{}` of `{name}` is of type {type_name}",
        column.name
    );
    match column.column_type {
        ColumnType::Other => wrong(
            format!("{found}, whose values are no keys: equal ones can be written differently"),
            other_column(table),
        ),
        ColumnType::Text {
            deterministic: false,
        } => wrong(
            format!(
                "{found} with a collation under which different texts are equal, so they are no keys"
            ),
            format!(
                "give it a deterministic collation (ALTER TABLE {name} ALTER {} TYPE {type_name} COLLATE \"C\") and write keys in one \
                 case, or {}",
                column.name,
                other_column(table)
            ),
        ),
        ColumnType::Integer => None,
        _ if affinity.key.is_some() => wrong(
            format!("{found}, and a key expression is integer arithmetic"),
            "leave `key` out: the value itself is the key then".to_owned(),
        ),
        _ => None,
    }
}

/// A mend: a column whose values can be keys.
fn other_column(table: &Table) -> String {
    let fit = table.columns.iter().filter(|column| {
        !matches!(
            column.column_type,
            ColumnType::Other
                | ColumnType::Bool
                | ColumnType::Text {
                    deterministic: false
                }
        )
    });
    let names: Vec<&str> = fit.map(|column| column.name.as_str()).collect();
    match names.is_empty() {
        true => "add a column of type bigint, text or uuid for the key".to_owned(),
        false => format!("take another column for the key ({})", names.join(", ")),
    }
}

/// Where a rule stands in the file.
#[derive(Debug, Clone, Default)]
struct Place {
    table: Range<usize>,
    column: Range<usize>,
}

/// Where the rule of each table stands. The source is known to be right.
fn places(source: &str) -> BTreeMap<String, Place> {
    let mut nothing = Problems::default();
    let document = Document::parse(source, &mut nothing);
    let affinities = document.root().take("affinity");
    let affinities = affinities.and_then(|value| value.tables(&mut nothing));
    let mut places = BTreeMap::new();
    for mut affinity in affinities.unwrap_or_default() {
        let tables = affinity.take_table("tables", &mut nothing);
        for Entry { name, value } in tables.map(Section::entries).unwrap_or_default() {
            let column = match value.as_str() {
                Some(_) => None,
                None => value
                    .table(&mut nothing)
                    .and_then(|mut section| section.take("column")),
            };
            let place = Place {
                table: value.key_span(),
                column: column.as_ref().unwrap_or(&value).span(),
            };
            places.insert(name.to_owned(), place);
        }
    }
    places
}
