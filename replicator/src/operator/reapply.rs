//! Has a losing write written again, as a new change, which is newer than what it lost against.

use serde::Serialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use thiserror::Error;

use super::target::{Column, Target, names};
use super::{ItemId, Operator, OperatorError};
use crate::image::Image;
use crate::resolve::PENDING;

/// Why a losing write is not written again.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReapplyRefusal {
    /// Nobody has lost yet.
    #[error("its conflict is being settled")]
    Pending,
    /// It was already.
    #[error("it was reapplied at {at}; --force does it once more")]
    Already {
        /// When, in UTC.
        at: String,
    },
    /// No image of the loser.
    #[error("no write was lost: the row that arrived was written, and none stood there")]
    NothingLost,
    /// A TRUNCATE names no row.
    #[error("a TRUNCATE names no rows; run it on the node if it is still wanted")]
    Truncate,
    /// The log's line cannot be read.
    #[error("its image is no JSON object")]
    NoImage,
    /// The table is gone.
    #[error("the node has no table {table}")]
    NoTable {
        /// Schema and table.
        table: String,
    },
    /// Rows of the table cannot be told apart.
    #[error("{table} has no primary key; insert the row yourself")]
    NoKey {
        /// Schema and table.
        table: String,
    },
    /// A column is gone.
    #[error("{table} has no column {column} any more; write the row yourself")]
    NoColumn {
        /// Schema and table.
        table: String,
        /// The column.
        column: String,
    },
    /// The image does not say which row.
    #[error("its image lacks column {column} of the primary key of {table}")]
    NoKeyValue {
        /// Schema and table.
        table: String,
        /// The column.
        column: String,
    },
    /// Only an existing row has the missing values.
    #[error(
        "its image lacks {} of {table}, which the write had left alone, and the row that had them is gone; write it yourself",
        .columns.join(", ")
    )]
    Incomplete {
        /// Schema and table.
        table: String,
        /// What is missing.
        columns: Vec<String>,
    },
    /// A delete that has nothing to delete.
    #[error("the losing write deleted the row, and {table} has no such row now")]
    NoRow {
        /// Schema and table.
        table: String,
    },
    /// Nothing was written.
    #[error("no row of {table} was written; does a trigger suppress it?")]
    Suppressed {
        /// Schema and table.
        table: String,
    },
}

/// What was written again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reapplied {
    /// Which line.
    pub id: ItemId,
    /// Schema and table.
    pub table: String,
    /// `written` or `deleted`.
    pub done: &'static str,
    /// Counters, whose values were left as they are.
    pub left_out: Vec<String>,
}

/// A line of the conflict log, as far as it says who lost.
#[derive(Debug, Default, Clone)]
struct Line {
    kind: String,
    operation: Option<String>,
    outcome: String,
    local_image: Option<String>,
    local_timestamp: Option<String>,
    remote_image: Option<String>,
}

/// A losing write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// The row, or for a delete at least its key.
    pub(crate) image: String,
    /// Whether all its values are texts: then they are their types' texts. Otherwise `row_to_json` made it.
    pub(crate) is_text: bool,
    deletes: bool,
}

impl Lost {
    /// Reads its image, as a line of the conflict log has it.
    ///
    /// # Errors
    /// When that is no JSON object.
    pub(crate) fn new(image: String, deletes: bool) -> Result<Self, ReapplyRefusal> {
        let values = members(&image)?;
        let is_text = |value: &Value| matches!(value, Value::String(_) | Value::Null);
        Ok(Self {
            is_text: values.values().all(is_text),
            image,
            deletes,
        })
    }
}

/// What becomes of a row that stands under the key of a write that is to be written whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// It gets the write's values.
    Overwritten,
    /// It stays, and nothing is written.
    Kept,
}

impl Operator {
    /// Writes the losing write of a line of the conflict log again: an ordinary transaction of Tandem's role on the
    /// node where the line stands, with the node's triggers and constraints, replicated as any client's.
    ///
    /// An image that lacks values leaves those of the row as they are. Counters are left as they are in any case: what
    /// the losing write added to them has been counted.
    ///
    /// # Errors
    /// When there is no such line, the node refuses the row, and [`ReapplyRefusal`].
    pub async fn reapply(&self, id: &ItemId, force: bool) -> Result<Reapplied, OperatorError> {
        let refused = |why| OperatorError::NotReapplied {
            id: id.clone(),
            why,
        };
        let session = self.session(&id.node).await?;
        session.execute("BEGIN").await?;
        let sql = "SELECT relation, type, operation, outcome, local_image::text, local_timestamp::text, \
             remote_image::text, reapplied::text FROM tandem.conflict WHERE id = $1 FOR UPDATE";
        let rows = session.query(sql, &[&id.number]).await?;
        let row = rows.first();
        let row = row.ok_or_else(|| OperatorError::NoConflict(id.clone()))?;
        let table: String = session.get(row, 0)?;
        let line = Line {
            kind: session.get(row, 1)?,
            operation: session.get(row, 2)?,
            outcome: session.get(row, 3)?,
            local_image: session.get(row, 4)?,
            local_timestamp: session.get(row, 5)?,
            remote_image: session.get(row, 6)?,
        };
        let reapplied: Option<String> = session.get(row, 7)?;
        if let Some(at) = reapplied.filter(|_| !force) {
            return Err(refused(ReapplyRefusal::Already { at }));
        }
        let lost = lost(line).map_err(refused)?;
        let target = Target::load(&session, &table).await?;
        let target = target.ok_or_else(|| refused(ReapplyRefusal::NoTable { table }))?;
        let statement = statement(&target, &lost, Existing::Overwritten).map_err(refused)?;
        let written = session.query(&statement.sql, &[&lost.image]).await?;
        if written.is_empty() {
            return Err(refused(statement.otherwise));
        }
        let mark = "UPDATE tandem.conflict SET reapplied = clock_timestamp() WHERE id = $1";
        session.query(mark, &[&id.number]).await?;
        session.execute("COMMIT").await?;
        tracing::info!(%id, table = target.plain(), "replication: a losing write was reapplied");
        let counters = target
            .columns
            .iter()
            .filter(|column| column.is_counter && !lost.deletes);
        Ok(Reapplied {
            id: id.clone(),
            table: target.plain(),
            done: if lost.deletes { "deleted" } else { "written" },
            left_out: counters.map(|column| column.name.clone()).collect(),
        })
    }
}

/// Which of the two writes of a line lost.
fn lost(line: Line) -> Result<Lost, ReapplyRefusal> {
    if line.outcome == PENDING {
        return Err(ReapplyRefusal::Pending);
    }
    if line.operation.as_deref() == Some("truncate") {
        return Err(ReapplyRefusal::Truncate);
    }
    let remote = line.remote_image;
    let (image, deletes) = match (line.outcome.as_str(), line.local_image) {
        ("local", _) => {
            let deletes =
                line.operation.as_deref() == Some("delete") || line.kind.starts_with("delete_");
            (remote, deletes)
        }
        (_, Some(local)) => (Some(local), false),
        // The row came back over a delete.
        _ if line.local_timestamp.is_some() => (remote, true),
        _ => return Err(ReapplyRefusal::NothingLost),
    };
    Lost::new(image.ok_or(ReapplyRefusal::NoImage)?, deletes)
}

fn members(image: &str) -> Result<Image, ReapplyRefusal> {
    serde_json::from_str(image).map_err(|_| ReapplyRefusal::NoImage)
}

/// A statement with the image as its parameter, which returns the row that it wrote.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) sql: String,
    /// What it means that there is none.
    otherwise: ReapplyRefusal,
}

/// The statement that writes a losing write again.
///
/// # Errors
/// When its image does not say enough.
pub(crate) fn statement(
    target: &Target,
    lost: &Lost,
    existing: Existing,
) -> Result<Statement, ReapplyRefusal> {
    let table = target.plain();
    let image = members(&lost.image)?;
    let key = target.key();
    if key.is_empty() {
        return Err(ReapplyRefusal::NoKey { table });
    }
    let has = |column: &Column| image.contains_key(&column.name);
    // A row that has texts only, and a JSON string among them, looks the same; but most strings are no JSON text.
    let reads_as_json = |column: &Column| match image.get(&column.name) {
        Some(Value::String(text)) => serde_json::from_str::<IgnoredAny>(text).is_ok(),
        _ => true,
    };
    let mut json = target.columns.iter().filter(|column| column.is_json);
    let is_text = lost.is_text && json.all(reads_as_json);
    if let Some(column) = key.iter().find(|column| !has(column)) {
        let column = column.name.clone();
        return Err(ReapplyRefusal::NoKeyValue { table, column });
    }
    let name = target.qualified();
    if lost.deletes {
        return Ok(Statement {
            sql: format!(
                "DELETE FROM ONLY {name} AS r USING {} WHERE {} RETURNING 1",
                target.record("$1::text", is_text, &key),
                target.same_key()
            ),
            otherwise: ReapplyRefusal::NoRow { table },
        });
    }
    if let Some(column) = image.keys().find(|name| target.column(name).is_none()) {
        let column = column.clone();
        return Err(ReapplyRefusal::NoColumn { table, column });
    }
    let writable = || target.columns.iter().filter(|column| !column.is_generated);
    let given: Vec<_> = writable()
        .filter(|column| has(column) && !column.is_counter)
        .collect();
    let missing: Vec<_> = writable()
        .filter(|column| !has(column) && !column.is_counter)
        .map(|column| column.name.clone())
        .collect();
    let record = target.record("$1::text", is_text, &given);
    let set = |from: &str| {
        let settable = |column: &&&Column| column.key.is_none() && !column.is_fixed;
        let sets: Vec<_> = given
            .iter()
            .filter(settable)
            .map(|column| assignment(column, from))
            .collect();
        sets.join(", ")
    };
    if !missing.is_empty() {
        let sets = set("n");
        let sets = if sets.is_empty() { touch(target) } else { sets };
        return Ok(Statement {
            sql: format!(
                "UPDATE ONLY {name} AS r SET {sets} FROM {record} WHERE {} RETURNING 1",
                target.same_key()
            ),
            otherwise: ReapplyRefusal::Incomplete {
                table,
                columns: missing,
            },
        });
    }
    // A row that is not there has contributed nothing yet, and what the losing write contributed has been counted.
    let counters: Vec<_> = writable().filter(|column| column.is_counter).collect();
    let columns: Vec<_> = given.iter().chain(&counters).copied().collect();
    let zeros = ", 0".repeat(counters.len());
    let sets = set("excluded");
    let clash = match existing {
        Existing::Kept => "NOTHING".to_owned(),
        Existing::Overwritten if sets.is_empty() => format!("UPDATE SET {}", touch(target)),
        Existing::Overwritten => format!("UPDATE SET {sets}"),
    };
    Ok(Statement {
        sql: format!(
            "INSERT INTO {name} AS r ({}) OVERRIDING SYSTEM VALUE SELECT {}{zeros} FROM {record} \
             ON CONFLICT ({}) DO {clash} RETURNING 1",
            names(&columns, ""),
            names(&given, "n."),
            target.key_list()
        ),
        otherwise: ReapplyRefusal::Suppressed { table },
    })
}

fn assignment(column: &Column, from: &str) -> String {
    let name = names(&[column], "");
    format!("{name} = {from}.{name}")
}

/// Nothing to set but the version, which any column does that may be set.
fn touch(target: &Target) -> String {
    let mut columns = target.columns.iter();
    let column = columns.find(|column| !column.is_generated && !column.is_fixed);
    column
        .or_else(|| target.columns.first())
        .map_or_else(String::new, |column| assignment(column, "r"))
}

#[cfg(test)]
#[path = "reapply_tests.rs"]
mod tests;
