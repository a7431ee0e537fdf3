//! INSERT, UPDATE, DELETE, MERGE: which rows they write, as far as the text tells.

use pg_query::NodeEnum;
use pg_query::protobuf::{
    CmdType, DeleteStmt, InsertStmt, MergeMatchKind, MergeStmt, Node, RangeVar, ReturningClause,
    UpdateStmt,
};

use super::conditions::{Level, Relation, inner};
use super::queries::constants;
use super::source::ColumnValues;
use super::{Access, Class, Scan};

impl Scan<'_> {
    pub(super) fn insert(&mut self, insert: &InsertStmt) {
        self.rise(Class::Write, "INSERT");
        let outer = self.with.len();
        self.with(insert.with_clause.as_ref());
        let mut level = Level::new(self.places());
        let target = self.target(insert.relation.as_ref(), &mut level);
        self.optional(&insert.select_stmt);
        let names = insert.cols.iter().map(|column| match &column.node {
            Some(NodeEnum::ResTarget(column)) => column.name.clone(),
            _ => String::new(),
        });
        let values = match inner(&insert.select_stmt) {
            Some(NodeEnum::SelectStmt(select)) => constants(select, self.places()),
            _ => Vec::new(),
        };
        let mut values = values.into_iter().map(|(_, values)| values);
        for name in names {
            let values = values.next().unwrap_or(ColumnValues::Unknown);
            self.column(target, name, values);
        }
        if insert.cols.is_empty()
            && let Some(table) = target.and_then(|table| self.tables.get_mut(table))
        {
            table.first_columns = values.collect();
        }
        if let Some(conflict) = &insert.on_conflict_clause {
            if let Some(infer) = &conflict.infer {
                self.expressions(&infer.index_elems);
                self.optional(&infer.where_clause);
            }
            // The row that is there has the key of the one that came, unless the conflict was over something else: but then
            // it is the row of a unique index that does not hold the key, which `tandem check` warns of.
            self.assigned(&conflict.target_list, target, &level);
            self.optional(&conflict.where_clause);
        }
        self.returning(insert.returning_clause.as_ref());
        self.with.truncate(outer);
    }

    pub(super) fn update(&mut self, update: &UpdateStmt) {
        self.rise(Class::Write, "UPDATE");
        let outer = self.with.len();
        self.with(update.with_clause.as_ref());
        let mut level = Level::new(self.places());
        let target = self.target(update.relation.as_ref(), &mut level);
        for item in &update.from_clause {
            self.from(item, &mut level, true);
        }
        level.holds(update.where_clause.as_deref());
        self.optional(&update.where_clause);
        self.assigned(&update.target_list, target, &level);
        self.returning(update.returning_clause.as_ref());
        level.settle(&mut self.tables);
        self.with.truncate(outer);
    }

    pub(super) fn delete(&mut self, delete: &DeleteStmt) {
        self.rise(Class::Write, "DELETE");
        let outer = self.with.len();
        self.with(delete.with_clause.as_ref());
        let mut level = Level::new(self.places());
        self.target(delete.relation.as_ref(), &mut level);
        for item in &delete.using_clause {
            self.from(item, &mut level, true);
        }
        level.holds(delete.where_clause.as_deref());
        self.optional(&delete.where_clause);
        self.returning(delete.returning_clause.as_ref());
        level.settle(&mut self.tables);
        self.with.truncate(outer);
    }

    pub(super) fn merge(&mut self, merge: &MergeStmt) {
        self.rise(Class::Write, "MERGE");
        let outer = self.with.len();
        self.with(merge.with_clause.as_ref());
        let mut level = Level::new(self.places());
        let target = self.target(merge.relation.as_ref(), &mut level);
        if let Some(source) = &merge.source_relation {
            self.from(source, &mut level, true);
        }
        // Of rows that match nothing in the source, the conditions say nothing.
        let by_source = MergeMatchKind::MergeWhenNotMatchedBySource as i32;
        let without_source = |clause: &Node| matches!(&clause.node, Some(NodeEnum::MergeWhenClause(clause)) if clause.match_kind == by_source);
        if !merge.merge_when_clauses.iter().any(without_source) {
            level.holds(merge.join_condition.as_deref());
        }
        self.optional(&merge.join_condition);
        for clause in &merge.merge_when_clauses {
            let Some(NodeEnum::MergeWhenClause(clause)) = &clause.node else {
                continue;
            };
            self.optional(&clause.condition);
            if clause.command_type != CmdType::CmdInsert as i32 {
                self.assigned(&clause.target_list, target, &level);
                continue;
            }
            self.expressions(&clause.values);
            for (place, column) in clause.target_list.iter().enumerate() {
                let Some(NodeEnum::ResTarget(column)) = &column.node else {
                    continue;
                };
                let value = clause
                    .values
                    .get(place)
                    .and_then(|value| value.node.as_ref());
                let values = level.written(value);
                self.column(target, column.name.clone(), values);
            }
        }
        self.returning(merge.returning_clause.as_ref());
        level.settle(&mut self.tables);
        self.with.truncate(outer);
    }

    /// The table that is written.
    fn target(&mut self, range: Option<&RangeVar>, level: &mut Level<'_>) -> Option<usize> {
        let range = range?;
        let table = self.table(range, Access::Write);
        let alias = range.alias.as_ref();
        level.relations.push(Relation {
            name: alias
                .map_or(&range.relname, |alias| &alias.aliasname)
                .clone(),
            table,
            constants: Vec::new(),
        });
        table
    }

    /// SET: a row that gets another key is a row of that key too.
    fn assigned(&mut self, targets: &[Node], table: Option<usize>, level: &Level<'_>) {
        for target in targets {
            let Some(NodeEnum::ResTarget(target)) = &target.node else {
                continue;
            };
            self.optional(&target.val);
            let value = inner(&target.val);
            // A column that is set to itself stays as it is.
            if !is_itself(value, &target.name, level) {
                self.column(table, target.name.clone(), level.written(value));
            }
        }
    }

    fn column(&mut self, table: Option<usize>, name: String, values: ColumnValues) {
        if let Some(table) = table.and_then(|table| self.tables.get_mut(table)) {
            table.columns.push((name, values));
        }
    }

    fn returning(&mut self, clause: Option<&ReturningClause>) {
        if let Some(clause) = clause {
            self.expressions(&clause.exprs);
        }
    }
}

/// Whether a value is the target's own column of this name.
fn is_itself(value: Option<&NodeEnum>, name: &str, level: &Level<'_>) -> bool {
    let Some(NodeEnum::ColumnRef(column)) = value else {
        return false;
    };
    let names: Vec<_> = column
        .fields
        .iter()
        .filter_map(super::conditions::string)
        .collect();
    let target = level.relations.first().map(|target| target.name.as_str());
    match names[..] {
        [column] => column == name && level.relations.len() == 1,
        [relation, column] => column == name && Some(relation) == target,
        _ => false,
    }
}
