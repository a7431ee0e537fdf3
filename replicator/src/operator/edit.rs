//! Changes what a transaction in quarantine writes, so that the node takes it.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio_postgres::types::ToSql;

use super::quarantine::{operation_name, table_name};
use super::target::Target;
use super::{Attempt, ItemId, Operator, OperatorError, Outcome, Session};
use crate::image::{Image, Images};
use crate::journal::codec::{CodecError, encode_transaction};
use crate::pgoutput::{Column, Message, decode};
use crate::transaction::{Change, Transaction};

/// Changes that are logged by one statement.
const CHUNK_CHANGES: usize = 1000;

/// A new value for a column of every row that a transaction writes to a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The table's schema.
    pub schema: String,
    /// The table.
    pub table: String,
    /// The column.
    pub column: String,
    /// The value's text as PostgreSQL reads it; `None` is NULL.
    pub value: Option<String>,
}

/// A text is no assignment.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotAnAssignment {
    /// The column is not named by three parts.
    #[error("write schema.table.column; a part with a dot in it is \"quoted\"")]
    Name,
    /// There is no value.
    #[error("write schema.table.column=value; NULL is given by --null schema.table.column")]
    NoValue,
}

impl Assignment {
    /// Of NULL: reads `schema.table.column`.
    ///
    /// # Errors
    /// [`NotAnAssignment::Name`]
    pub fn null(text: &str) -> Result<Self, NotAnAssignment> {
        let (assignment, rest) = Self::name(text)?;
        match rest {
            "" => Ok(assignment),
            _ => Err(NotAnAssignment::Name),
        }
    }

    /// Reads a name, and answers what stands behind it.
    fn name(text: &str) -> Result<(Self, &str), NotAnAssignment> {
        let (schema, rest) = part(text)?;
        let (table, rest) = part(rest.strip_prefix('.').ok_or(NotAnAssignment::Name)?)?;
        let (column, rest) = part(rest.strip_prefix('.').ok_or(NotAnAssignment::Name)?)?;
        let assignment = Self {
            schema,
            table,
            column,
            value: None,
        };
        Ok((assignment, rest))
    }
}

impl FromStr for Assignment {
    type Err = NotAnAssignment;

    /// Reads `schema.table.column=value`.
    fn from_str(text: &str) -> Result<Self, NotAnAssignment> {
        let (assignment, rest) = Self::name(text)?;
        let value = rest.strip_prefix('=').ok_or(match rest {
            "" => NotAnAssignment::NoValue,
            _ => NotAnAssignment::Name,
        })?;
        Ok(Self {
            value: Some(value.to_owned()),
            ..assignment
        })
    }
}

/// One part of a name, as it is or in double quotes, and what stands behind it.
fn part(text: &str) -> Result<(String, &str), NotAnAssignment> {
    let mut name = String::new();
    let rest = match text.strip_prefix('"') {
        None => {
            let end = text.find(['.', '=']).unwrap_or(text.len());
            let (part, rest) = text.split_at(end);
            name.push_str(part);
            rest
        }
        Some(mut rest) => loop {
            let (part, behind) = rest.split_once('"').ok_or(NotAnAssignment::Name)?;
            name.push_str(part);
            match behind.strip_prefix('"') {
                None => break behind,
                Some(more) => {
                    name.push('"');
                    rest = more;
                }
            }
        },
    };
    if name.is_empty() {
        return Err(NotAnAssignment::Name);
    }
    Ok((name, rest))
}

/// Why a transaction is not edited.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EditRefusal {
    /// Nothing to set.
    #[error("nothing is to be set")]
    Nothing,
    /// The node lacks the table.
    #[error("the node has no table {table}; create it there, and it is applied as it is")]
    NoTable {
        /// Schema and table.
        table: String,
    },
    /// The node's table lacks the column.
    #[error("{table} has no column {column} on the node")]
    NoColumn {
        /// Schema and table.
        table: String,
        /// The column.
        column: String,
    },
    /// The transaction does not write it.
    #[error(
        "the transaction inserts or updates no row of {table} with a column {column}; `tandem quarantine show` tells what it does"
    )]
    NotWritten {
        /// Schema and table.
        table: String,
        /// The column.
        column: String,
    },
    /// Which row it is.
    #[error(
        "{column} is in the primary key of {table}: it says which row is written; skip the transaction and write the row yourself"
    )]
    Key {
        /// Schema and table.
        table: String,
        /// The column.
        column: String,
    },
    /// A sum.
    #[error(
        "{column} of {table} is a counter: the other nodes have counted what the transaction added to it"
    )]
    Counter {
        /// Schema and table.
        table: String,
        /// The column.
        column: String,
    },
    /// It would not fit any more.
    #[error("the values are too long")]
    TooLong,
}

/// What was edited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Edited {
    /// Which transaction.
    pub id: ItemId,
    /// How many of its changes.
    pub changes: usize,
    /// What came of trying it then.
    pub attempt: Attempt,
}

/// A change, before and after.
struct EditedChange {
    table: String,
    operation: &'static str,
    before: Option<Image>,
    after: Option<Image>,
}

impl Operator {
    /// Sets columns in every row that a transaction in quarantine inserts or updates, and has it tried. It keeps its
    /// version; what it wrote before is written to the conflict log (type `quarantine_edited`) of the node.
    ///
    /// The row on the node then differs from the others' until it is written again.
    ///
    /// # Errors
    /// When it is not in quarantine, the node cannot be asked, or does not read a value; and [`EditRefusal`].
    pub async fn edit(
        &self,
        id: &ItemId,
        assignments: &[Assignment],
    ) -> Result<Edited, OperatorError> {
        let refused = |why| OperatorError::NotEdited {
            id: id.clone(),
            why,
        };
        if assignments.is_empty() {
            return Err(refused(EditRefusal::Nothing));
        }
        let session = self.session(&id.node).await?;
        session.execute("BEGIN").await?;
        let sql = "SELECT payload FROM tandem.quarantine WHERE id = $1 FOR UPDATE";
        let rows = session.query(sql, &[&id.number]).await?;
        let row = rows.first();
        let row = row.ok_or_else(|| OperatorError::NotInQuarantine(id.clone()))?;
        let mut transaction = session.decode(id.number, session.get(row, 0)?)?;
        check(&session, assignments).await?.map_err(refused)?;
        let edited = rewrite(&mut transaction, assignments)
            .map_err(|source| session.unreadable(id.number, source))?
            .map_err(refused)?;
        let mut payload = Vec::new();
        encode_transaction(&transaction, &mut payload)
            .map_err(|source| session.unreadable(id.number, source))?;
        log(&session, id.number, &edited).await?;
        // A link that has read it before this cannot apply it any more.
        let sql = "UPDATE tandem.quarantine SET payload = $2, edits = edits + 1 WHERE id = $1";
        session.query(sql, &[&id.number, &payload]).await?;
        session.execute("COMMIT").await?;
        tracing::warn!(%id, changes = edited.len(), "replication: a transaction in quarantine was edited");
        let attempt = self.retry(id).await.unwrap_or_else(|error| {
            let (outcome, reason) = match error {
                // A link was faster.
                OperatorError::NotInQuarantine(_) => (Outcome::Applied, None),
                error => (Outcome::NotTried, Some(error.to_string())),
            };
            Attempt {
                id: id.clone(),
                outcome,
                reason,
            }
        });
        Ok(Edited {
            id: id.clone(),
            changes: edited.len(),
            attempt,
        })
    }
}

/// Whether the node has the columns, they may be set, and it can read the values.
async fn check(
    session: &Session,
    assignments: &[Assignment],
) -> Result<Result<(), EditRefusal>, OperatorError> {
    for assignment in assignments {
        let table = format!("{}.{}", assignment.schema, assignment.table);
        let Some(target) = Target::load(session, &table).await? else {
            return Ok(Err(EditRefusal::NoTable { table }));
        };
        let column = assignment.column.clone();
        let refusal = match target.column(&column) {
            None => EditRefusal::NoColumn { table, column },
            Some(found) if found.key.is_some() => EditRefusal::Key { table, column },
            Some(found) if found.is_counter => EditRefusal::Counter { table, column },
            Some(found) => {
                let mut image = Image::new();
                image.insert(column, assignment.value.clone().into());
                let image = serde_json::Value::Object(image).to_string();
                let record = target.record("$1::text", true, &[found]);
                session
                    .query(&format!("SELECT n.* FROM {record}"), &[&image])
                    .await?;
                continue;
            }
        };
        return Ok(Err(refusal));
    }
    Ok(Ok(()))
}

/// Carries the assignments out.
fn rewrite(
    transaction: &mut Transaction,
    assignments: &[Assignment],
) -> Result<Result<Vec<EditedChange>, EditRefusal>, CodecError> {
    let mut unused: Vec<_> = assignments.iter().collect();
    let mut edited = Vec::new();
    for change in &mut transaction.changes {
        let relation = Arc::clone(&change.relation);
        let of_it = |one: &&Assignment| one.schema == relation.schema && one.table == relation.name;
        let place = |one: &Assignment| relation.columns.iter().position(|name| *name == one.column);
        let values: HashMap<_, _> = assignments
            .iter()
            .filter(of_it)
            .filter_map(|one| Some((place(one)?, one.value.as_deref())))
            .collect();
        let message = match with_values(&change.message, &values)? {
            Rewritten::Nothing => continue,
            Rewritten::TooLong => return Ok(Err(EditRefusal::TooLong)),
            Rewritten::Message(message) => message,
        };
        unused.retain(|one| !of_it(one) || place(one).is_none());
        let before = Images::of(change)?.new;
        change.message = message.into();
        edited.push(EditedChange {
            table: table_name(change),
            operation: operation_name(change.operation),
            before,
            after: Images::of(change)?.new,
        });
    }
    transaction.size = transaction.changes.iter().map(Change::size).sum();
    Ok(match unused.first() {
        None => Ok(edited),
        Some(one) => Err(EditRefusal::NotWritten {
            table: format!("{}.{}", one.schema, one.table),
            column: one.column.clone(),
        }),
    })
}

enum Rewritten {
    /// It writes no row, or no value was given.
    Nothing,
    Message(Vec<u8>),
    TooLong,
}

/// A pgoutput message with other values in its new row, by the columns' places.
fn with_values(
    message: &Bytes,
    values: &HashMap<usize, Option<&str>>,
) -> Result<Rewritten, CodecError> {
    let (Message::Insert { new, .. } | Message::Update { new, .. }) = decode(message)? else {
        return Ok(Rewritten::Nothing);
    };
    if values.is_empty() {
        return Ok(Rewritten::Nothing);
    }
    // The new row is the end of the message.
    let kept = message.len() - new.size();
    let columns: Vec<_> = new.columns().collect();
    let Ok(count) = u16::try_from(columns.len()) else {
        return Ok(Rewritten::TooLong);
    };
    let mut bytes = message.get(..kept).unwrap_or_default().to_vec();
    bytes.put_u16(count);
    for (index, column) in columns.into_iter().enumerate() {
        let column = match values.get(&index) {
            None => column,
            Some(None) => Column::Null,
            Some(Some(value)) => Column::Text(value.as_bytes()),
        };
        match column {
            Column::Null => bytes.put_u8(b'n'),
            Column::Unchanged => bytes.put_u8(b'u'),
            Column::Binary(_) => return Ok(Rewritten::Nothing),
            Column::Text(text) => {
                let Ok(length) = u32::try_from(text.len()) else {
                    return Ok(Rewritten::TooLong);
                };
                bytes.put_u8(b't');
                bytes.put_u32(length);
                bytes.extend_from_slice(text);
            }
        }
    }
    Ok(Rewritten::Message(bytes))
}

/// Writes the lines of the conflict log: what stands in the transaction now counts as local, what it wrote as remote.
async fn log(session: &Session, number: i64, edited: &[EditedChange]) -> Result<(), OperatorError> {
    let sql = "INSERT INTO tandem.conflict (relation, type, operation, resolver, outcome, local_image, local_timestamp, \
         local_node, remote_image, remote_timestamp, remote_node) \
         SELECT c.relation, 'quarantine_edited', c.operation, 'operator', 'local', c.after::json, q.committed, q.source, \
         c.before::json, q.committed, q.source FROM tandem.quarantine q, \
         unnest($2::text[], $3::text[], $4::text[], $5::text[]) WITH ORDINALITY AS c(relation, operation, after, before, place) \
         WHERE q.id = $1 ORDER BY c.place";
    let text = |image: &Option<Image>| Some(serde_json::Value::Object(image.clone()?).to_string());
    for chunk in edited.chunks(CHUNK_CHANGES) {
        let tables: Vec<_> = chunk.iter().map(|change| &change.table).collect();
        let operations: Vec<_> = chunk.iter().map(|change| change.operation).collect();
        let after: Vec<_> = chunk.iter().map(|change| text(&change.after)).collect();
        let before: Vec<_> = chunk.iter().map(|change| text(&change.before)).collect();
        let params: [&(dyn ToSql + Sync); 5] = [&number, &tables, &operations, &after, &before];
        session.query(sql, &params).await?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
