//! Queries: SELECT, VALUES, TABLE, with all that FROM and WITH may bring in.

use pg_query::NodeEnum;
use pg_query::protobuf::{CommonTableExpr, JoinType, Node, SelectStmt, SetOperation, WithClause};

use super::analyse::Places;
use super::conditions::{Level, Relation, string};
use super::expressions::kind;
use super::source::ColumnValues;
use super::{Access, Class, Scan};

impl<'c> Scan<'c> {
    pub(super) fn query(&mut self, select: &SelectStmt) {
        self.rise(Class::Read, "SELECT");
        let outer = self.with.len();
        self.with(select.with_clause.as_ref());
        if select.into_clause.is_some() {
            self.rise(Class::Ddl, "SELECT INTO");
        }
        for side in [&select.larg, &select.rarg].into_iter().flatten() {
            self.query(side);
        }
        let mut level = Level::new(self.places());
        let first = self.tables.len();
        for item in &select.from_clause {
            self.from(item, &mut level, true);
        }
        // What follows must not count as locked.
        let from = first..self.tables.len();
        level.holds(select.where_clause.as_deref());
        self.optional(&select.where_clause);
        self.expressions(&select.target_list);
        self.expressions(&select.distinct_clause);
        self.expressions(&select.group_clause);
        self.optional(&select.having_clause);
        self.expressions(&select.window_clause);
        self.expressions(&select.values_lists);
        self.expressions(&select.sort_clause);
        self.optional(&select.limit_offset);
        self.optional(&select.limit_count);
        if !select.locking_clause.is_empty() {
            self.rise(Class::Lock, "FOR UPDATE, or SHARE");
            // OF may name some of them; that the others count as well does no harm.
            for table in self.tables.get_mut(from).unwrap_or_default() {
                table.access = table.access.max(Access::Lock);
            }
        }
        level.settle(&mut self.tables);
        self.with.truncate(outer);
    }

    /// Brings in the queries of WITH; who called forgets their names again.
    pub(super) fn with(&mut self, clause: Option<&WithClause>) {
        let Some(clause) = clause else { return };
        let queries = clause.ctes.iter().filter_map(|node| match &node.node {
            Some(NodeEnum::CommonTableExpr(query)) => Some(query),
            _ => None,
        });
        if clause.recursive {
            self.with
                .extend(queries.clone().map(|query| query.ctename.clone()));
        }
        for query in queries {
            self.with_query(query);
            if !clause.recursive {
                self.with.push(query.ctename.clone());
            }
        }
    }

    fn with_query(&mut self, query: &CommonTableExpr) {
        if let Some(query) = &query.ctequery {
            self.statement(query);
        }
        if let Some(cycle) = &query.cycle_clause {
            self.optional(&cycle.cycle_mark_value);
            self.optional(&cycle.cycle_mark_default);
        }
    }

    /// Brings in an item of FROM. `inner`: no outer join may fill its columns with NULL, or hold for other rows than its own.
    pub(super) fn from(&mut self, item: &Node, level: &mut Level<'_>, inner: bool) {
        let Some(item) = &item.node else { return };
        match item {
            NodeEnum::RangeVar(range) => {
                let table = self.table(range, Access::Read);
                let alias = range.alias.as_ref();
                let name = alias
                    .map_or(&range.relname, |alias| &alias.aliasname)
                    .clone();
                // Columns that have other names here are not followed.
                let renamed = alias.is_some_and(|alias| !alias.colnames.is_empty());
                level.relations.push(Relation {
                    name,
                    table: table.filter(|_| !renamed),
                    constants: Vec::new(),
                });
            }
            NodeEnum::RangeSubselect(subselect) => {
                self.optional(&subselect.subquery);
                let alias = subselect.alias.as_ref();
                let query = subselect
                    .subquery
                    .as_ref()
                    .and_then(|query| query.node.as_ref());
                let constants = match query {
                    Some(NodeEnum::SelectStmt(select)) => constants(select, self.places()),
                    _ => Vec::new(),
                };
                let names = alias.iter().flat_map(|alias| &alias.colnames);
                let names: Vec<_> = names.filter_map(string).map(str::to_owned).collect();
                let constants = constants.into_iter().enumerate();
                level.relations.push(Relation {
                    name: alias
                        .map(|alias| alias.aliasname.clone())
                        .unwrap_or_default(),
                    table: None,
                    constants: constants
                        .map(|(place, (name, values))| {
                            (names.get(place).cloned().unwrap_or(name), values)
                        })
                        .collect(),
                });
            }
            NodeEnum::JoinExpr(join) => {
                let is_inner = join.jointype == JoinType::JoinInner as i32;
                let left = level.relations.len();
                for side in [&join.larg, &join.rarg].into_iter().flatten() {
                    self.from(side, level, inner && is_inner);
                }
                self.optional(&join.quals);
                if inner && is_inner {
                    level.holds(join.quals.as_deref());
                }
                let right = level.relations.len().saturating_sub(1);
                // Where each side is one relation.
                if is_inner && right == left + 1 {
                    for column in join.using_clause.iter().filter_map(string) {
                        level.joined_by(column, left, right);
                    }
                }
            }
            NodeEnum::RangeFunction(function) => {
                self.expressions(&function.functions);
                self.unknown_relation(function.alias.as_ref(), level);
            }
            NodeEnum::RangeTableSample(sample) => {
                if let Some(relation) = &sample.relation {
                    self.from(relation, level, inner);
                }
                self.expressions(&sample.args);
                self.optional(&sample.repeatable);
            }
            NodeEnum::RangeTableFunc(function) => {
                self.optional(&function.docexpr);
                self.optional(&function.rowexpr);
                self.expressions(&function.namespaces);
                for column in &function.columns {
                    if let Some(NodeEnum::RangeTableFuncCol(column)) = &column.node {
                        self.optional(&column.colexpr);
                        self.optional(&column.coldefexpr);
                    }
                }
                self.unknown_relation(function.alias.as_ref(), level);
            }
            NodeEnum::JsonTable(table) => {
                self.json_table(table);
                self.unknown_relation(table.alias.as_ref(), level);
            }
            other => self.rise(
                Class::Unknown,
                format!("FROM an item of kind {}", kind(other)),
            ),
        }
    }

    fn unknown_relation(
        &mut self,
        alias: Option<&pg_query::protobuf::Alias>,
        level: &mut Level<'_>,
    ) {
        level.relations.push(Relation {
            name: alias
                .map(|alias| alias.aliasname.clone())
                .unwrap_or_default(),
            table: None,
            constants: Vec::new(),
        });
    }
}

/// The columns of VALUES, or of a SELECT, and their values.
pub(super) fn constants(select: &SelectStmt, places: Places<'_>) -> Vec<(String, ColumnValues)> {
    let nothing = Level::new(places);
    let written = |value: Option<&Node>| nothing.written(value.and_then(|node| node.node.as_ref()));
    if select.op != SetOperation::SetopNone as i32 {
        return Vec::new();
    }
    if select.values_lists.is_empty() {
        let columns = select.target_list.iter().map(|target| match &target.node {
            // Nobody knows how many columns a star is.
            Some(NodeEnum::ResTarget(target)) if !is_star(target.val.as_deref()) => {
                Some((target.name.clone(), written(target.val.as_deref())))
            }
            _ => None,
        });
        return columns.collect::<Option<_>>().unwrap_or_default();
    }
    let rows: Vec<&[Node]> = select
        .values_lists
        .iter()
        .map(|row| match &row.node {
            Some(NodeEnum::List(row)) => row.items.as_slice(),
            _ => &[],
        })
        .collect();
    let width = rows.iter().map(|row| row.len()).max().unwrap_or(0);
    let column = |place: usize| {
        let mut sources = Vec::new();
        for row in &rows {
            match written(row.get(place)) {
                ColumnValues::Of(of_row) => sources.extend(of_row),
                ColumnValues::Unknown => return ColumnValues::Unknown,
            }
        }
        ColumnValues::Of(sources)
    };
    // What PostgreSQL calls them.
    (0..width)
        .map(|place| (format!("column{}", place + 1), column(place)))
        .collect()
}

/// `*` or `t.*`
pub(super) fn is_star(value: Option<&Node>) -> bool {
    match value.and_then(|value| value.node.as_ref()) {
        Some(NodeEnum::ColumnRef(column)) => column
            .fields
            .iter()
            .any(|field| matches!(field.node, Some(NodeEnum::AStar(_)))),
        Some(NodeEnum::AIndirection(indirection)) => indirection
            .indirection
            .iter()
            .any(|field| matches!(field.node, Some(NodeEnum::AStar(_)))),
        _ => false,
    }
}
