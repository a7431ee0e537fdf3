//! Which kind of statement it is, and those that are neither queries nor writes of rows.

use pg_query::NodeEnum;
use pg_query::protobuf::{CopyStmt, DefElem, Node, TransactionStmt, TransactionStmtKind};

use super::conditions::inner;
use super::{Access, Class, Scan};

impl Scan<'_> {
    /// Looks into a whole statement, or into one that stands in another.
    pub(super) fn statement(&mut self, node: &Node) {
        let Some(node) = &node.node else { return };
        match node {
            NodeEnum::SelectStmt(select) => self.query(select),
            NodeEnum::InsertStmt(insert) => self.insert(insert),
            NodeEnum::UpdateStmt(update) => self.update(update),
            NodeEnum::DeleteStmt(delete) => self.delete(delete),
            NodeEnum::MergeStmt(merge) => self.merge(merge),
            NodeEnum::CopyStmt(copy) => self.copy(copy),
            NodeEnum::TruncateStmt(truncate) => {
                self.rise(Class::Write, "TRUNCATE");
                self.ranges(&truncate.relations, Access::Write);
            }
            NodeEnum::LockStmt(lock) => {
                self.rise(Class::Lock, "LOCK TABLE");
                self.locks_table = true;
                self.ranges(&lock.relations, Access::Lock);
            }
            NodeEnum::ExplainStmt(explain) => {
                self.rise(Class::Read, "EXPLAIN");
                match &explain.query {
                    Some(query) if explain.options.iter().any(is_analyze) => self.statement(query),
                    Some(query) => self.not_run(query),
                    None => {}
                }
            }
            NodeEnum::DeclareCursorStmt(cursor) => {
                self.rise(Class::Session, "DECLARE");
                if let Some(query) = &cursor.query {
                    self.statement(query);
                }
            }
            NodeEnum::PrepareStmt(prepare) => {
                self.rise(Class::Session, "PREPARE");
                if let Some(query) = &prepare.query {
                    self.statement(query);
                }
            }
            NodeEnum::TransactionStmt(transaction) => self.transaction(transaction),
            NodeEnum::ConstraintsSetStmt(_) => self.rise(Class::Transaction, "SET CONSTRAINTS"),
            NodeEnum::VariableSetStmt(_) => self.rise(Class::Session, "SET"),
            NodeEnum::VariableShowStmt(_) => self.rise(Class::Session, "SHOW"),
            NodeEnum::DiscardStmt(_) => self.rise(Class::Session, "DISCARD"),
            NodeEnum::DeallocateStmt(_) => self.rise(Class::Session, "DEALLOCATE"),
            NodeEnum::FetchStmt(_) => self.rise(Class::Session, "FETCH"),
            NodeEnum::ClosePortalStmt(_) => self.rise(Class::Session, "CLOSE"),
            NodeEnum::ListenStmt(_) => self.rise(Class::Session, "LISTEN"),
            NodeEnum::UnlistenStmt(_) => self.rise(Class::Session, "UNLISTEN"),
            NodeEnum::LoadStmt(_) => self.rise(Class::Session, "LOAD"),
            NodeEnum::NotifyStmt(_) => self.rise(Class::Write, "NOTIFY"),
            NodeEnum::CallStmt(call) => {
                self.rise(Class::Unknown, "CALL");
                if let Some(call) = &call.funccall {
                    self.expressions(&call.args);
                }
            }
            NodeEnum::DoStmt(_) => self.rise(Class::Unknown, "DO"),
            NodeEnum::ExecuteStmt(execute) => {
                self.rise(Class::Unknown, "EXECUTE");
                self.expressions(&execute.params);
            }
            // Nothing else is a query or writes rows only.
            _ => self.rise(Class::Ddl, "DDL or maintenance"),
        }
    }

    fn ranges(&mut self, relations: &[Node], access: Access) {
        for relation in relations {
            if let Some(NodeEnum::RangeVar(range)) = &relation.node {
                self.table(range, access);
            }
        }
    }

    fn copy(&mut self, copy: &CopyStmt) {
        // A program of the server's, or a file there.
        if copy.is_program || !copy.filename.is_empty() {
            self.rise(
                Class::Unknown,
                "COPY with a file or a program of the server",
            );
        }
        let access = if copy.is_from {
            self.rise(Class::Write, "COPY FROM");
            Access::Write
        } else {
            self.rise(Class::Read, "COPY TO");
            Access::Read
        };
        if let Some(relation) = &copy.relation {
            self.table(relation, access);
        }
        if let Some(query) = &copy.query {
            self.statement(query);
        }
        self.optional(&copy.where_clause);
    }

    fn transaction(&mut self, statement: &TransactionStmt) {
        let because = match TransactionStmtKind::try_from(statement.kind) {
            Ok(TransactionStmtKind::TransStmtBegin | TransactionStmtKind::TransStmtStart) => {
                "BEGIN"
            }
            Ok(TransactionStmtKind::TransStmtCommit) => "COMMIT",
            Ok(TransactionStmtKind::TransStmtRollback) => "ROLLBACK",
            Ok(TransactionStmtKind::TransStmtSavepoint) => "SAVEPOINT",
            Ok(TransactionStmtKind::TransStmtRelease) => "RELEASE SAVEPOINT",
            Ok(TransactionStmtKind::TransStmtRollbackTo) => "ROLLBACK TO SAVEPOINT",
            Ok(TransactionStmtKind::TransStmtPrepare) => "PREPARE TRANSACTION",
            Ok(TransactionStmtKind::TransStmtCommitPrepared) => "COMMIT PREPARED",
            Ok(TransactionStmtKind::TransStmtRollbackPrepared) => "ROLLBACK PREPARED",
            Ok(TransactionStmtKind::Undefined) | Err(_) => "a transaction statement",
        };
        self.rise(Class::Transaction, because);
    }
}

/// `ANALYZE` of EXPLAIN, unless it is switched off in a way that is known here.
fn is_analyze(option: &Node) -> bool {
    let Some(NodeEnum::DefElem(option)) = &option.node else {
        return true;
    };
    option.defname.eq_ignore_ascii_case("analyze") && !is_off(option)
}

fn is_off(option: &DefElem) -> bool {
    match inner(&option.arg) {
        Some(NodeEnum::String(word)) => {
            let word = word.sval.to_ascii_lowercase();
            matches!(word.as_str(), "false" | "off" | "0")
        }
        Some(NodeEnum::Integer(number)) => number.ival == 0,
        Some(NodeEnum::Boolean(value)) => !value.boolval,
        _ => false,
    }
}
