//! From a text to the plan of its template.

use super::analyse::{Names, analysis};
use super::plan::{Plan, PlannedKey, PlannedTable};
use super::source::{ColumnValues, Source};
use super::views::{Expansion, relation};
use super::{AnalysisError, Class, TableUse};
use crate::catalog::{Catalog, Relation};
use crate::model::{Affinity, Rules};
use crate::template::{Literals, TEXT_MAX, Template};

/// Partitions of partitions are followed so far.
const PARTITION_DEPTH_MAX: usize = 8;

impl Plan {
    /// The plan of a text's template. Without a catalog a name may mean a view, of which nothing is known, and a function
    /// that is not PostgreSQL's own may write. `$user` in the search path must have been replaced.
    #[must_use]
    pub fn of(text: &str, rules: &Rules, catalog: Option<&Catalog>, search_path: &[&str]) -> Self {
        let mut template = Template::default();
        match template.read(text.as_bytes()) {
            Some(shape) => Self::of_shape(text, shape.literals, rules, catalog, search_path),
            None => {
                let because = match text.len() > TEXT_MAX {
                    true => AnalysisError::TooLong,
                    false => analysis(text, Literals::default(), Names::default())
                        .err()
                        .unwrap_or_else(|| AnalysisError::Grammar("no SQL".to_owned())),
                };
                Self::unknown(because)
            }
        }
    }

    /// The same of a text that was read already.
    pub(super) fn of_shape(
        text: &str,
        literals: Literals<'_>,
        rules: &Rules,
        catalog: Option<&Catalog>,
        search_path: &[&str],
    ) -> Self {
        let names = Names {
            catalog,
            search_path,
        };
        let analysis = match analysis(text, literals, names) {
            Ok(analysis) => analysis,
            Err(error) => return Self::unknown(error),
        };
        let kept = (0..literals.places()).filter(|place| {
            let mut at = literals.at(*place);
            !at.all(|literal| analysis.replaceable.contains(&literal.start))
        });
        let kept = kept.collect();
        // A text without a statement does nothing.
        let mut expansion = Expansion::new(Class::Transaction, "no statement");
        let mut locks_table = false;
        for statement in analysis.statements {
            expansion.rise(statement.class, statement.because);
            locks_table |= statement.locks_table;
            for used in statement.tables {
                expansion.table(used, names);
            }
        }
        let (mut tables, mut keys) = (Vec::new(), Vec::new());
        for (used, qualified) in expansion.tables {
            let names = Names {
                search_path: if qualified { &[] } else { search_path },
                ..names
            };
            let known = relation(&used, names);
            let rule = rule(rules, &used, known, names);
            let name: Box<str> = match known {
                Some(known) => format!("{}.{}", known.schema, known.name).into(),
                None => used.to_string().into(),
            };
            if let Some(rule) = rule {
                keys.push(planned_key(rule, &name, &used, known));
            }
            tables.push(PlannedTable {
                name,
                access: used.access,
                placement: rule.map(|rule| rule.placement.as_str().into()),
                policy: rule.map(|rule| rule.policy),
                writes_elsewhere: known.is_some_and(|known| known.writes_elsewhere),
            });
        }
        Self {
            class: expansion.class,
            because: expansion.because.into(),
            refused: None,
            locks_table,
            tables: tables.into(),
            keys: keys.into(),
            kept,
        }
    }
}

fn planned_key(
    rule: &Affinity,
    name: &str,
    used: &TableUse,
    known: Option<&Relation>,
) -> PlannedKey {
    let named = used
        .columns
        .iter()
        .map(|(column, values)| (column.as_str(), values));
    let columns = known.iter().flat_map(|known| &known.columns);
    let first = columns
        .map(|column| column.name.as_str())
        .zip(&used.first_columns);
    let conditions = named
        .chain(first)
        .filter(|(column, _)| *column == rule.column)
        .map(|(_, values)| match values {
            ColumnValues::Of(sources) => distinct(sources),
            // A condition that can never be told.
            ColumnValues::Unknown => Box::default(),
        });
    // One without sources says nothing, but it was said.
    let conditions: Vec<_> = conditions.filter(|sources| !sources.is_empty()).collect();
    PlannedKey {
        placement: rule.placement.as_str().into(),
        table: name.into(),
        access: used.access,
        column_type: known.and_then(|known| known.column_type(&rule.column)),
        expression: rule.key.clone(),
        conditions: conditions.into(),
    }
}

/// Each source once: the literals of a list behind IN share a place.
fn distinct(sources: &[Source]) -> Box<[Source]> {
    let mut seen = std::collections::HashSet::new();
    let first = sources.iter().filter(|source| seen.insert(*source));
    first.cloned().collect()
}

/// The rule of a table: its own, or that of the table whose partition it is.
fn rule<'r>(
    rules: &'r Rules,
    used: &TableUse,
    known: Option<&Relation>,
    names: Names<'_>,
) -> Option<&'r Affinity> {
    let find = |schema: Option<&str>, name: &str| {
        rules
            .affinities
            .iter()
            .find(|rule| match rule.table.split_once('.') {
                Some((of_schema, table)) => {
                    let is_schema = match schema {
                        Some(schema) => schema == of_schema,
                        None => names.search_path.contains(&of_schema),
                    };
                    table == name && is_schema
                }
                // A rule that names no schema is for the tables of this name in all of them.
                None => rule.table == name,
            })
    };
    let Some(mut known) = known else {
        return find(used.schema.as_deref(), &used.name);
    };
    for _ in 0..PARTITION_DEPTH_MAX {
        if let Some(rule) = find(Some(&known.schema), &known.name) {
            return Some(rule);
        }
        let (schema, name) = known.partition_of.as_ref()?;
        known = names.catalog?.relation(schema, name)?;
    }
    None
}
