//! Views: the tables behind them.

use pg_query::NodeEnum;
use pg_query::protobuf::{Node, SelectStmt, SetOperation};

use super::analyse::{Names, analysis, parse};
use super::queries::is_star;
use super::source::{ColumnValues, Origin, Source};
use super::value::literal_text;
use super::{Access, Class, TableUse};
use crate::catalog::{Relation, RelationKind};
use crate::template::{Literals, Template};

/// Views over views are followed so far.
const VIEW_DEPTH_MAX: usize = 8;
/// So many tables are looked into: views over views can name a table again and again.
const TABLES_MAX: usize = 1_000;

/// The tables of a text, views replaced by what is behind them, and the class that this makes of it.
#[derive(Debug)]
pub(super) struct Expansion {
    pub(super) class: Class,
    pub(super) because: String,
    /// Each with whether its name was one that has its schema, or is of `pg_catalog`, as in a view's definition.
    pub(super) tables: Vec<(TableUse, bool)>,
    depth: usize,
}

impl Expansion {
    pub(super) fn new(class: Class, because: &str) -> Self {
        Self {
            class,
            because: because.to_owned(),
            tables: Vec::new(),
            depth: 0,
        }
    }

    pub(super) fn rise(&mut self, class: Class, because: String) {
        if self.class < class {
            self.class = class;
            self.because = because;
        }
    }

    /// Takes in a use of a table, or of what is behind a view.
    pub(super) fn table(&mut self, used: TableUse, names: Names<'_>) {
        let view = relation(&used, names);
        let Some((view, definition)) = view.and_then(|view| match &view.kind {
            RelationKind::View { definition } => Some((view, definition)),
            _ => None,
        }) else {
            self.tables.push((used, self.depth > 0));
            return;
        };
        if self.depth == VIEW_DEPTH_MAX || self.tables.len() > TABLES_MAX {
            return self.rise(
                Class::Unknown,
                format!("view {used}, behind too many others"),
            );
        }
        // In a view's definition all names have their schema.
        let names = Names {
            search_path: &[],
            ..names
        };
        let mut template = Template::default();
        let shape = template.read(definition.as_bytes());
        let literals = shape.map(|shape| shape.literals).unwrap_or_default();
        let found = match analysis(definition, literals, names) {
            Ok(found) => found,
            Err(error) => return self.rise(Class::Unknown, format!("view {used}: {error}")),
        };
        let columns = projection(definition);
        for statement in found.statements {
            if statement.class > Class::Read {
                self.rise(
                    statement.class,
                    format!("view {used}: {}", statement.because),
                );
            }
            for mut behind in statement.tables {
                fix(&mut behind, literals);
                if used.access == Access::Write {
                    // What a view shows need not be what is written through it.
                    behind.columns.clear();
                }
                behind.access = behind.access.max(used.access);
                if let Some(columns) = &columns
                    && !(used.access == Access::Write && view.writes_elsewhere)
                {
                    carry_over(&used, view, columns, &mut behind);
                }
                self.depth += 1;
                self.table(behind, names);
                self.depth -= 1;
            }
        }
    }
}

/// The relation that is used.
pub(super) fn relation<'c>(used: &TableUse, names: Names<'c>) -> Option<&'c Relation> {
    let catalog = names.catalog?;
    match &used.schema {
        Some(schema) => catalog.relation(schema, &used.name),
        None => catalog.resolve(names.search_path, &used.name),
    }
}

/// Replaces literals of a view's definition by what they say.
fn fix(used: &mut TableUse, literals: Literals<'_>) {
    for (_, values) in &mut used.columns {
        let ColumnValues::Of(sources) = values else {
            continue;
        };
        let fixed = sources.iter().map(|source| match &source.origin {
            Origin::Literal { place, negative } => literals
                .at(*place)
                .map(|literal| {
                    let text = literal_text(&literal, *negative)?;
                    Some(Source {
                        origin: Origin::Constant(text.into()),
                        ..source.clone()
                    })
                })
                .collect(),
            _ => Some(vec![source.clone()]),
        });
        let fixed: Option<Vec<Vec<Source>>> = fixed.collect();
        *values = fixed.map_or(ColumnValues::Unknown, |fixed| {
            ColumnValues::Of(fixed.concat())
        });
    }
}

/// What is known of the view's columns is known of the table's.
fn carry_over(
    used: &TableUse,
    view: &Relation,
    columns: &[(String, String)],
    behind: &mut TableUse,
) {
    let first = view.columns.iter().map(|column| column.name.as_str());
    let first = first.zip(&used.first_columns);
    let named = used
        .columns
        .iter()
        .map(|(name, values)| (name.as_str(), values));
    for (name, values) in named.chain(first) {
        if let Some((_, column)) = columns.iter().find(|(known, _)| known == name) {
            behind.columns.push((column.clone(), values.clone()));
        }
    }
}

/// Column of the view and column of the table, if it is a plain projection of one table.
fn projection(definition: &str) -> Option<Vec<(String, String)>> {
    let parsed = parse(definition).ok()?;
    let [statement] = parsed.stmts.as_slice() else {
        return None;
    };
    let Some(NodeEnum::SelectStmt(select)) = &statement.stmt.as_ref()?.node else {
        return None;
    };
    let [from] = select.from_clause.as_slice() else {
        return None;
    };
    let is_table = matches!(&from.node, Some(NodeEnum::RangeVar(range)) if range.alias.as_ref().is_none_or(|alias| alias.colnames.is_empty()));
    if !is_table || !is_plain(select) {
        return None;
    }
    let columns = select
        .target_list
        .iter()
        .filter_map(|target| match &target.node {
            Some(NodeEnum::ResTarget(target)) => {
                let column = column(target.val.as_deref()?)?;
                let name = match target.name.as_str() {
                    "" => column.clone(),
                    name => name.to_owned(),
                };
                Some((name, column))
            }
            _ => None,
        });
    Some(columns.collect())
}

fn is_plain(select: &SelectStmt) -> bool {
    select.op == SetOperation::SetopNone as i32
        && select.with_clause.is_none()
        && select.into_clause.is_none()
        && select.distinct_clause.is_empty()
        && select.group_clause.is_empty()
        && select.having_clause.is_none()
        && select.window_clause.is_empty()
        && select.limit_count.is_none()
        && select.limit_offset.is_none()
        && select.locking_clause.is_empty()
        && !calls(&select.target_list)
}

/// Whether aggregates, or functions that return sets, can be among these.
fn calls(targets: &[Node]) -> bool {
    let is_column = |target: &Node| match &target.node {
        Some(NodeEnum::ResTarget(target)) => {
            !is_star(target.val.as_deref()) && target.val.as_deref().and_then(column).is_some()
        }
        _ => false,
    };
    !targets.iter().all(is_column)
}

/// The name of a column.
fn column(node: &Node) -> Option<String> {
    let Some(NodeEnum::ColumnRef(column)) = &node.node else {
        return None;
    };
    match &column.fields.last()?.node {
        Some(NodeEnum::String(name)) => Some(name.sval.clone()),
        _ => None,
    }
}
