//! Shows what the nodes have in quarantine.

use serde::Serialize;
use serde_json::Value;

use super::{ItemId, Operator, OperatorError, Session};
use crate::ddl;
use crate::image::Images;
use crate::transaction::{Change, Operation, Transaction};

/// Transactions that are listed of one node at most.
const LINES_MAX: i64 = 1000;
/// Bytes of changes that are shown of one transaction, after which the others are only counted.
const SHOWN_BYTES_MAX: usize = 2 << 20;

/// A transaction in quarantine. Times are in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuarantineLine {
    /// Which, on which node.
    pub id: ItemId,
    /// The node where it was committed.
    pub source: String,
    /// When it was committed there.
    pub committed: String,
    /// Since when it is in quarantine.
    pub quarantined: String,
    /// How often it has been tried again.
    pub attempts: i32,
    /// How often an operator has edited it.
    pub edits: i32,
    /// What it has to wait for, because that changes the same keys.
    pub behind: Option<ItemId>,
    /// Why it was refused, the last time.
    pub reason: String,
    /// The tables that it changes.
    pub tables: Vec<String>,
    /// How many changes it has.
    pub changes: usize,
}

/// What the nodes have in quarantine, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quarantined {
    /// At most 1,000 of each node, the first.
    pub transactions: Vec<QuarantineLine>,
    /// Nodes that could not be asked, and why.
    pub problems: Vec<String>,
}

/// A change of a transaction in quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuarantinedChange {
    /// Schema and table.
    pub table: String,
    /// `insert`, `update`, `delete` or `truncate`.
    pub operation: &'static str,
    /// The old row, or its key, where the stream tells it.
    pub old: Option<Value>,
    /// The new row, without large values that the update left alone.
    pub new: Option<Value>,
}

/// A transaction in quarantine with its changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuarantinedTransaction {
    /// What the list says of it.
    pub transaction: QuarantineLine,
    /// Its changes, in the order of execution.
    pub changes: Vec<QuarantinedChange>,
    /// The DDL between them.
    pub statements: Vec<String>,
    /// So many more are not shown, because those before them are large.
    pub more: usize,
}

impl Operator {
    /// Lists what a node, or every node, has in quarantine.
    ///
    /// # Errors
    /// When there is no such node. One that cannot be asked is told with the answer.
    pub async fn quarantined(&self, node: Option<&str>) -> Result<Quarantined, OperatorError> {
        let (found, problems) = self.ask(node, list).await?;
        Ok(Quarantined {
            transactions: found.into_iter().flatten().collect(),
            problems,
        })
    }

    /// Shows one transaction with its changes.
    ///
    /// # Errors
    /// When it is not in quarantine, or the node cannot be asked.
    pub async fn quarantined_transaction(
        &self,
        id: &ItemId,
    ) -> Result<QuarantinedTransaction, OperatorError> {
        let session = self.session(&id.node).await?;
        let sql = format!("{LINES} WHERE id = $1");
        let rows = session.query(&sql, &[&id.number]).await?;
        let row = rows.first();
        let row = row.ok_or_else(|| OperatorError::NotInQuarantine(id.clone()))?;
        let stored = stored(&session, id.number).await?;
        let stored = stored.ok_or_else(|| OperatorError::NotInQuarantine(id.clone()))?;
        let mut changes = Vec::new();
        let mut bytes = 0;
        for change in &stored.changes {
            bytes += change.message.len();
            if bytes > SHOWN_BYTES_MAX && !changes.is_empty() {
                break;
            }
            changes.push(shown(&session, id.number, change)?);
        }
        Ok(QuarantinedTransaction {
            transaction: line(&session, row, &stored)?,
            more: stored.changes.len() - changes.len(),
            changes,
            statements: stored.statements.iter().map(ddl::shown).collect(),
        })
    }
}

const LINES: &str = "SELECT id, source, committed::text, quarantined::text, attempts, edits, reason \
    FROM tandem.quarantine";

async fn list(session: Session) -> Result<Vec<QuarantineLine>, OperatorError> {
    let sql = format!("{LINES} ORDER BY id LIMIT $1");
    let mut lines = Vec::new();
    for row in session.query(&sql, &[&LINES_MAX]).await? {
        // One by one: each may be large. What has left the quarantine since is not there any more.
        if let Some(stored) = stored(&session, session.get(&row, 0)?).await? {
            lines.push(line(&session, &row, &stored)?);
        }
    }
    Ok(lines)
}

/// The stored transaction; `None` where there is none.
async fn stored(session: &Session, number: i64) -> Result<Option<Transaction>, OperatorError> {
    let sql = "SELECT payload FROM tandem.quarantine WHERE id = $1";
    let rows = session.query(sql, &[&number]).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    session.decode(number, session.get(row, 0)?).map(Some)
}

fn line(
    session: &Session,
    row: &tokio_postgres::Row,
    stored: &Transaction,
) -> Result<QuarantineLine, OperatorError> {
    let number = session.get(row, 0)?;
    let held = session.shared.quarantines.get(session.index);
    let mut tables: Vec<_> = stored.changes.iter().map(table_name).collect();
    tables.sort();
    tables.dedup();
    Ok(QuarantineLine {
        id: session.item(number),
        source: session.node_name(session.get(row, 1)?),
        committed: session.get(row, 2)?,
        quarantined: session.get(row, 3)?,
        attempts: session.get(row, 4)?,
        edits: session.get(row, 5)?,
        behind: held
            .and_then(|held| held.before(number))
            .map(|first| session.item(first)),
        reason: session.get(row, 6)?,
        tables,
        changes: stored.changes.len(),
    })
}

fn shown(
    session: &Session,
    number: i64,
    change: &Change,
) -> Result<QuarantinedChange, OperatorError> {
    let images = Images::of(change).map_err(|source| session.unreadable(number, source))?;
    Ok(QuarantinedChange {
        table: table_name(change),
        operation: operation_name(change.operation),
        old: images.old.map(Value::Object),
        new: images.new.map(Value::Object),
    })
}

/// Schema and table of a change, as the conflict log has them.
pub(super) fn table_name(change: &Change) -> String {
    format!("{}.{}", change.relation.schema, change.relation.name)
}

/// What a change does, as `tandem.conflict.operation` has it.
pub(super) fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Insert => "insert",
        Operation::Update => "update",
        Operation::Delete => "delete",
        Operation::Truncate => "truncate",
    }
}
