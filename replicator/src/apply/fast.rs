//! The fast path: many transactions in one batch, each with its own COMMIT, one Sync.
//!
//! Each transaction keeps its own COMMIT because a local transaction has one version only, and there is one Sync
//! because with a Sync each a failed COMMIT would be followed by the next transaction.

use std::sync::Arc;

use super::batch::{Batch, Step};
use super::fold;
use super::params::Rows;
use super::row::Row;
use super::session::{ApplyError, Session};
use super::sql::{Kind, StatementKey};
use crate::transaction::{Change, Operation, Transaction};
use crate::version::PgTimestamp;

/// What a batch came to.
pub(super) struct Applied {
    /// How many of the transactions, from the first on, are committed.
    pub committed: usize,
    /// Whether the next one needs a closer look, in the slow path.
    pub stopped: bool,
}

impl Session {
    /// Applies transactions in order; stops at the first of which a statement fails or finds no row. None of them may
    /// move a key. `merging`: rows that are newer still get what a change adds to their counters; the caller is alone at
    /// the gate then.
    ///
    /// # Errors
    /// When the session has to be given up. What was committed before that stays committed.
    pub(super) async fn apply_batch(
        &mut self,
        transactions: &[&Transaction],
        merging: bool,
    ) -> Result<Applied, ApplyError> {
        let mut batch = Batch::default();
        for (index, &transaction) in transactions.iter().enumerate() {
            if let Err(error) = self.add_transaction(&mut batch, transaction, merging).await {
                let (before, _) = transactions.split_at(index);
                if before.is_empty() {
                    return Err(error);
                }
                // What stands before one that does not fit is not held up by it.
                batch.discard(self.connection.out(), &mut self.statements);
                return Box::pin(self.apply_batch(before, merging)).await;
            }
        }
        let outcome = self.run(batch).await?;
        let stopped = match &outcome.failure {
            None => false,
            Some(failure) => {
                tracing::debug!(error = %failure.error, "a batch stopped");
                self.roll_back(failure).await?;
                true
            }
        };
        Ok(Applied {
            committed: outcome.commits,
            stopped,
        })
    }

    async fn add_transaction(
        &mut self,
        batch: &mut Batch,
        transaction: &Transaction,
        merging: bool,
    ) -> Result<(), ApplyError> {
        self.load_tables(transaction).await?;
        let mut deferrable = false;
        batch.execute(self.connection.out(), "begin", &[], Step::Work)?;
        let (mut changes, timestamp) = (transaction.changes.as_slice(), transaction.timestamp);
        while let Some(first) = changes.first() {
            deferrable |= self.table(&first.relation)?.deferrable;
            let mut taken = 0;
            if !merging && fold::begins(changes) {
                taken = self.add_folded(batch, changes, timestamp)?;
            }
            if taken == 0 {
                self.add_guarded(batch, first, timestamp, merging)?;
                taken = 1;
            }
            changes = changes.get(taken..).unwrap_or_default();
        }
        self.finish(batch, transaction, deferrable)?;
        Ok(())
    }

    fn add_guarded(
        &mut self,
        batch: &mut Batch,
        change: &Change,
        timestamp: PgTimestamp,
        merging: bool,
    ) -> Result<(), ApplyError> {
        let table = self.table(&change.relation)?;
        let row = Row::read(change)?;
        row.check_counts(change, &table)?;
        let merges = merging
            && change.operation == Operation::Update
            && row.only_counts(&change.relation, &table);
        let key = StatementKey {
            relation: change.relation.id,
            kind: if merges {
                Kind::Merging
            } else {
                Kind::Guarded(change.operation)
            },
            unchanged: row.unchanged(),
        };
        let relation = Arc::clone(&change.relation);
        let writer = &self.writer;
        let prepared = batch.prepare(self.connection.out(), &mut self.statements, &key, || {
            Ok::<_, ApplyError>(match change.operation {
                Operation::Insert => writer.insert(&relation, &table, true, Rows::One)?,
                Operation::Update if merges => writer.merge(&relation, &table, false)?,
                Operation::Update => writer.update(
                    &relation,
                    &table,
                    |index| row.is_unchanged(index),
                    false,
                    true,
                    Rows::One,
                )?,
                Operation::Delete => writer.delete(&relation, &table, true, false, Rows::One)?,
                Operation::Truncate => writer.truncate(&relation, &table, false),
            })
        })?;
        let mut values = Vec::with_capacity(prepared.statement.params.len());
        row.values(&prepared.statement, &relation, timestamp, &mut values)?;
        batch.execute(self.connection.out(), &prepared.name, &values, Step::Work)?;
        Ok(())
    }
}
