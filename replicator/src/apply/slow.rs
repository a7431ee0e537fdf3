//! The slow path: one transaction, with its rows locked, compared and decided on one by one.
//!
//! Two round trips: the first locks every row that the transaction's keys name and reads its version, the second
//! carries out what [`decide`] says, logs the conflicts, and commits.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::batch::{Batch, Step, TextRow};
use super::row::{Row, Value};
use super::session::{ApplyError, Session};
use super::sql::{Kind, StatementKey};
use crate::conflict::{Action, ConflictType, Found, decide};
use crate::transaction::{Change, Operation, Transaction};
use crate::version::Version;

/// A row as the first round trip found it.
#[derive(Debug, Clone)]
struct Locked {
    found: Found,
    image: Option<String>,
}

impl Locked {
    /// What stands there after an action of this very transaction.
    fn ours() -> Self {
        Self {
            found: Found::Row(None),
            image: None,
        }
    }

    fn missing() -> Self {
        Self {
            found: Found::Missing,
            image: None,
        }
    }
}

/// A key of a table, within one transaction.
type Key = (u64, Vec<u8>);

impl Session {
    /// Applies one transaction; answers how many conflicts it met.
    ///
    /// # Errors
    /// When it cannot be applied now: nothing of it is, and the session has to be given up.
    pub(super) async fn apply_slowly(
        &mut self,
        transaction: &Transaction,
    ) -> Result<u64, ApplyError> {
        self.load_tables(transaction).await?;
        let mut rows = self.lock_rows(transaction).await?;
        let mut batch = Batch::default();
        let mut conflicts = 0;
        let mut deferrable = false;
        for change in &transaction.changes {
            deferrable |= self.table(&change.relation)?.deferrable;
            conflicts += self.add_decided(&mut batch, change, transaction, &mut rows)?;
        }
        self.finish(&mut batch, transaction, deferrable)?;
        let outcome = self.run(batch).await?;
        match outcome.failure {
            None => Ok(conflicts),
            // A row that was missing is there now, or the other way round.
            Some(failure) if failure.error.code == "22012" => Err(ApplyError::Raced),
            Some(failure) => Err(ApplyError::Refused(failure.error)),
        }
    }

    async fn lock_rows(
        &mut self,
        transaction: &Transaction,
    ) -> Result<HashMap<Key, Locked>, ApplyError> {
        let mut batch = Batch::default();
        let mut keys = Vec::new();
        let mut seen = HashSet::new();
        batch.execute(self.connection.out(), "begin", &[], Step::Work)?;
        batch.execute(
            self.connection.out(),
            "clock",
            &[Value::Timestamp(transaction.timestamp)],
            Step::Read,
        )?;
        for change in &transaction.changes {
            let table = self.table(&change.relation)?;
            if table.key.is_empty() || change.operation == Operation::Truncate {
                continue;
            }
            let row = Row::read(change)?;
            let by_new: &[bool] = match change.operation {
                Operation::Insert => &[true],
                Operation::Update if row.key_moves(&change.relation, &table) => &[false, true],
                _ => &[false],
            };
            for &by_new in by_new {
                let key = (
                    change.relation.id,
                    row.key(&change.relation, &table, by_new)?,
                );
                if seen.insert(key.clone()) {
                    self.add_lock(&mut batch, change, &row, by_new, transaction)?;
                    keys.push(key);
                }
            }
        }
        let outcome = self.run(batch).await?;
        if let Some(failure) = outcome.failure {
            return Err(ApplyError::Refused(failure.error));
        }
        let mut rows = outcome.rows.into_iter();
        let behind_us = rows
            .next()
            .flatten()
            .and_then(|row| number(&row, 0))
            .ok_or(ApplyError::Unexpected("clock"))?;
        if behind_us >= 0 {
            return Err(ApplyError::ClockBehind { behind_us });
        }
        Ok(keys.into_iter().zip(rows.map(locked)).collect())
    }

    fn add_lock(
        &mut self,
        batch: &mut Batch,
        change: &Change,
        row: &Row<'_>,
        by_new: bool,
        transaction: &Transaction,
    ) -> Result<(), ApplyError> {
        let table = self.table(&change.relation)?;
        let key = StatementKey {
            relation: change.relation.id,
            kind: Kind::Lock(by_new),
            unchanged: Vec::new(),
        };
        let writer = &self.writer;
        let prepared = batch.prepare(self.connection.out(), &mut self.statements, &key, || {
            Ok::<_, ApplyError>(writer.lock(&change.relation, &table, by_new)?)
        })?;
        let mut values = Vec::new();
        row.values(
            &prepared.statement,
            &change.relation,
            transaction.timestamp,
            &mut values,
        )?;
        batch.execute(self.connection.out(), &prepared.name, &values, Step::Read)?;
        Ok(())
    }

    /// Adds what one change comes to, and keeps `rows` true for the changes behind it.
    fn add_decided(
        &mut self,
        batch: &mut Batch,
        change: &Change,
        transaction: &Transaction,
        rows: &mut HashMap<Key, Locked>,
    ) -> Result<u64, ApplyError> {
        let table = self.table(&change.relation)?;
        let row = Row::read(change)?;
        let version = Version {
            timestamp: transaction.timestamp,
            node: self.place.source,
        };
        if change.operation == Operation::Truncate {
            self.add(batch, change, &row, Operation::Truncate, false, transaction)?;
            for (_, locked) in rows
                .iter_mut()
                .filter(|((relation, _), _)| *relation == change.relation.id)
            {
                if !matches!(locked.found, Found::Row(Some(found)) if found > version) {
                    *locked = Locked::missing();
                }
            }
            return Ok(0);
        }
        if table.key.is_empty() {
            // Inserts only; anything else has no key to find its row by, which `add` reports.
            self.add(batch, change, &row, change.operation, false, transaction)?;
            return Ok(0);
        }
        let key_moves =
            change.operation == Operation::Update && row.key_moves(&change.relation, &table);
        let by_new = change.operation == Operation::Insert;
        let key = (
            change.relation.id,
            row.key(&change.relation, &table, by_new)?,
        );
        let locked = rows.get(&key).cloned().unwrap_or_else(Locked::missing);
        let decision = decide(change.operation, version, locked.found);
        let mut conflicts = 0;
        if let Some(conflict) = decision.conflict {
            self.log_conflict(
                batch,
                change,
                &row,
                conflict,
                &locked,
                decision.action,
                version,
            )?;
            conflicts += 1;
        }
        if key_moves && decision.action == Action::Overwrite {
            return Ok(conflicts + self.add_key_move(batch, change, &row, transaction, key, rows)?);
        }
        match decision.action {
            Action::Skip => return Ok(conflicts),
            Action::Insert => {
                self.add(batch, change, &row, Operation::Insert, false, transaction)?
            }
            Action::Overwrite => {
                self.add(batch, change, &row, Operation::Update, false, transaction)?
            }
            Action::Delete => {
                self.add(batch, change, &row, Operation::Delete, false, transaction)?
            }
        }
        let after = if decision.action == Action::Delete {
            Locked::missing()
        } else {
            Locked::ours()
        };
        rows.insert(key, after);
        Ok(conflicts)
    }

    /// A changed primary key is a delete of the old row and an insert of the new one, with one version.
    fn add_key_move(
        &mut self,
        batch: &mut Batch,
        change: &Change,
        row: &Row<'_>,
        transaction: &Transaction,
        old_key: Key,
        rows: &mut HashMap<Key, Locked>,
    ) -> Result<u64, ApplyError> {
        let table = self.table(&change.relation)?;
        let version = Version {
            timestamp: transaction.timestamp,
            node: self.place.source,
        };
        let new_key = (change.relation.id, row.key(&change.relation, &table, true)?);
        let there = rows.get(&new_key).cloned().unwrap_or_else(Locked::missing);
        let decision = decide(Operation::Insert, version, there.found);
        let mut conflicts = 0;
        if let Some(conflict) = decision.conflict {
            self.log_conflict(
                batch,
                change,
                row,
                conflict,
                &there,
                decision.action,
                version,
            )?;
            conflicts += 1;
        }
        match decision.action {
            Action::Skip => self.add(batch, change, row, Operation::Delete, false, transaction)?,
            Action::Overwrite => {
                self.add(batch, change, row, Operation::Delete, true, transaction)?;
                self.add(batch, change, row, Operation::Update, true, transaction)?;
            }
            Action::Insert | Action::Delete => {
                self.add(batch, change, row, Operation::Update, true, transaction)?
            }
        }
        rows.insert(old_key, Locked::missing());
        if decision.action != Action::Skip {
            rows.insert(new_key, Locked::ours());
        }
        Ok(conflicts)
    }

    /// Adds one statement without a version's guard. `moved`: for an UPDATE, that it writes the key; for a DELETE, that
    /// it deletes the row under the new key.
    fn add(
        &mut self,
        batch: &mut Batch,
        change: &Change,
        row: &Row<'_>,
        operation: Operation,
        moved: bool,
        transaction: &Transaction,
    ) -> Result<(), ApplyError> {
        let table = self.table(&change.relation)?;
        let key = StatementKey {
            relation: change.relation.id,
            kind: Kind::Decided(operation, moved),
            unchanged: if operation == Operation::Update {
                row.unchanged()
            } else {
                Vec::new()
            },
        };
        let writer = &self.writer;
        let relation = Arc::clone(&change.relation);
        let prepared = batch.prepare(self.connection.out(), &mut self.statements, &key, || {
            Ok::<_, ApplyError>(match operation {
                Operation::Insert => writer.insert(&relation, &table)?,
                Operation::Update => writer.update(
                    &relation,
                    &table,
                    |index| row.is_unchanged(index),
                    moved,
                    false,
                )?,
                Operation::Delete if moved => writer.delete(&relation, &table, false)?.by_new_key(),
                Operation::Delete => writer.delete(&relation, &table, false)?,
                Operation::Truncate => writer.truncate(&relation),
            })
        })?;
        let mut values = Vec::new();
        row.values(
            &prepared.statement,
            &relation,
            transaction.timestamp,
            &mut values,
        )?;
        batch.execute(self.connection.out(), &prepared.name, &values, Step::Work)?;
        Ok(())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one line of the conflict log has this many parts"
    )]
    fn log_conflict(
        &mut self,
        batch: &mut Batch,
        change: &Change,
        row: &Row<'_>,
        conflict: ConflictType,
        local: &Locked,
        action: Action,
        remote: Version,
    ) -> Result<(), ApplyError> {
        let relation = format!("{}.{}", change.relation.schema, change.relation.name);
        let outcome = if action == Action::Skip {
            "local"
        } else {
            "remote"
        };
        let image = row.image(&change.relation, change.operation);
        let remote_node = remote.node.to_string();
        let local_version = match local.found {
            Found::Row(version) => version,
            Found::Missing => None,
        };
        let local_node = local_version.map(|version| version.node.to_string());

        let values = [
            Value::Text(relation.as_bytes()),
            Value::Text(conflict.name().as_bytes()),
            Value::Text(outcome.as_bytes()),
            text(local.image.as_deref()),
            local_version.map_or(Value::Null, |version| Value::Timestamp(version.timestamp)),
            text(local_node.as_deref()),
            Value::Text(image.as_bytes()),
            Value::Timestamp(remote.timestamp),
            Value::Text(remote_node.as_bytes()),
        ];
        batch.execute(self.connection.out(), "conflict", &values, Step::Work)?;
        Ok(())
    }
}

fn text(text: Option<&str>) -> Value<'_> {
    text.map_or(Value::Null, |text| Value::Text(text.as_bytes()))
}

fn locked(row: Option<TextRow>) -> Locked {
    let Some(row) = row else {
        return Locked::missing();
    };
    let version = number(&row, 0)
        .zip(number(&row, 1))
        .map(|(timestamp, node)| Version {
            timestamp,
            node: u16::try_from(node).unwrap_or(0),
        });
    let image = row
        .get(2)
        .cloned()
        .flatten()
        .map(|text| String::from_utf8_lossy(&text).into_owned());
    Locked {
        found: Found::Row(version),
        image,
    }
}

fn number(row: &TextRow, column: usize) -> Option<i64> {
    std::str::from_utf8(row.get(column)?.as_deref()?)
        .ok()?
        .parse()
        .ok()
}
