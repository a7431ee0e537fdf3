//! The fast path: many transactions in one batch, each with its own COMMIT, one Sync. The next batch is put together
//! meanwhile, and sent when all of it is known to be committed.
//!
//! Each transaction keeps its own COMMIT because a local transaction has one version only, and there is one Sync
//! because with a Sync each a failed COMMIT would be followed by the next transaction.

use std::sync::Arc;

use super::batch::{Batch, Failure, Sent, Step};
use super::fold;
use super::params::Rows;
use super::row::Row;
use super::session::{ApplyError, Session};
use super::sql::{Kind, StatementKey};
use crate::transaction::{Change, Operation, Transaction};
use crate::version::PgTimestamp;

/// Transactions of one Sync. While the server works on them the next are put together.
const BATCH_TRANSACTIONS: usize = 64;

/// What some transactions came to.
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
        let mut applied = Applied {
            committed: 0,
            stopped: false,
        };
        let mut under_way: Option<Sent> = None;
        let mut rest = transactions;
        while !rest.is_empty() {
            let (batch, taken) = match self.encode(rest, merging).await {
                Ok(encoded) => encoded,
                // What stands before one that does not fit is not held up by it.
                Err(_) if under_way.is_some() || applied.committed > 0 => break,
                Err(error) => return Err(error),
            };
            rest = rest.get(taken..).unwrap_or_default();
            if let Some(sent) = under_way.take()
                && let Some(failure) = self.finish_batch(sent, &mut applied).await?
            {
                // Before anything else is sent.
                batch.discard(self.connection.out(), &mut self.statements);
                self.roll_back(&failure).await?;
                return Ok(applied);
            }
            under_way = Some(batch.send(&mut self.connection).await);
        }
        if let Some(sent) = under_way
            && let Some(failure) = self.finish_batch(sent, &mut applied).await?
        {
            self.roll_back(&failure).await?;
        }
        Ok(applied)
    }

    /// Puts the first of some transactions together; answers how many they are, at least one.
    async fn encode(
        &mut self,
        transactions: &[&Transaction],
        merging: bool,
    ) -> Result<(Batch, usize), ApplyError> {
        let mut batch = Batch::default();
        let mut taken = 0;
        for &transaction in transactions.iter().take(BATCH_TRANSACTIONS) {
            if let Err(error) = self.add_transaction(&mut batch, transaction, merging).await {
                batch.discard(self.connection.out(), &mut self.statements);
                if taken == 0 {
                    return Err(error);
                }
                let (before, _) = transactions.split_at(taken);
                return Box::pin(self.encode(before, merging)).await;
            }
            taken += 1;
        }
        Ok((batch, taken))
    }

    /// Reads the replies to a batch; answers what is to be rolled back.
    async fn finish_batch(
        &mut self,
        sent: Sent,
        applied: &mut Applied,
    ) -> Result<Option<Failure>, ApplyError> {
        let outcome = sent
            .replies(&mut self.connection, &mut self.statements)
            .await?;
        applied.committed += outcome.commits;
        if let Some(failure) = &outcome.failure {
            tracing::debug!(error = %failure.error, "a batch stopped");
            applied.stopped = true;
        }
        Ok(outcome.failure)
    }

    async fn add_transaction(
        &mut self,
        batch: &mut Batch,
        transaction: &Transaction,
        merging: bool,
    ) -> Result<(), ApplyError> {
        batch.execute(self.connection.out(), "begin", &[], Step::Work)?;
        let deferrable = self.add_changes(batch, transaction, merging).await?;
        self.finish(batch, transaction, deferrable)?;
        Ok(())
    }

    /// Adds the changes of a transaction, or of a part of one. Answers whether a table of them has deferrable constraints.
    pub(super) async fn add_changes(
        &mut self,
        batch: &mut Batch,
        transaction: &Transaction,
        merging: bool,
    ) -> Result<bool, ApplyError> {
        self.load_tables(transaction).await?;
        let mut deferrable = false;
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
        Ok(deferrable)
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
