//! Learns a node's own deletes from its own stream: what its clients deleted has to be remembered too, or an older
//! change that arrives later would bring the row back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Worker;
use super::batch::{Batch, Step};
use super::gate::Gate;
use super::row::Row;
use super::session::{ApplyError, Session};
use super::sql::{Kind, StatementKey};
use crate::control::ControlError;
use crate::transaction::{Change, Operation, Transaction};

/// Pause before a transaction that is not visible yet is looked for again; it takes microseconds.
const VISIBLE_PAUSE: Duration = Duration::from_millis(1);

impl Worker<'_> {
    /// What the node's own transactions leave to be remembered.
    pub(super) async fn learn(&mut self, transactions: &[&Transaction]) -> Result<(), ApplyError> {
        let mut telling = Vec::new();
        let mut shadowed = Vec::new();
        let mut layered = false;
        for &transaction in transactions {
            self.note_schema(transaction);
            let traits = self.session.traits(transaction, true).await?;
            layered |= traits.layered;
            if traits.arrives() || traits.shadowed {
                self.session.wait_visible(transaction).await?;
            }
            if traits.tells() {
                telling.push(transaction);
            }
            if traits.shadowed {
                shadowed.push(transaction);
            }
        }
        // First, because it leaves the origin where it is: what fails is done again from there.
        for transaction in shadowed {
            self.carried.gate = Some(Gate::pass(&self.context.gate, true).await);
            let session = &mut self.session;
            Box::pin(session.learn_shadows(transaction, self.link.applied())).await?;
            self.carried.gate = None;
        }
        if !telling.is_empty() {
            self.remember(&telling, layered).await?;
        }
        Ok(())
    }

    /// The same for a part of a transaction; deletes are remembered one by one, and may be learnt twice. `false`: it has to be
    /// the whole transaction.
    pub(super) async fn learn_part(&mut self, part: &Transaction) -> Result<bool, ApplyError> {
        self.note_schema(part);
        let traits = self.session.traits(part, true).await?;
        if traits.shadowed {
            return Ok(false);
        }
        if traits.arrives() {
            self.session.wait_visible(part).await?;
        }
        if traits.tells() {
            self.remember(&[part], traits.layered).await?;
        }
        Ok(true)
    }

    /// The node's own clients have changed its schema: the links into it look at it anew.
    fn note_schema(&mut self, transaction: &Transaction) {
        if !transaction.statements.is_empty() {
            self.context.schema.fetch_add(1, Ordering::AcqRel);
            self.look_at_schema();
        }
    }

    async fn remember(
        &mut self,
        telling: &[&Transaction],
        layered: bool,
    ) -> Result<(), ApplyError> {
        self.carried.gate = Some(Gate::pass(&self.context.gate, true).await);
        self.session.learn(telling).await?;
        self.carried.gate = None;
        if layered {
            self.context.contests.raise();
        }
        Ok(())
    }
}

impl Session {
    /// Waits until a transaction of the node's own, which the stream has shown, is visible: a commit is in the WAL before it
    /// is (src/backend/access/transam/xact.c, `CommitTransaction`).
    ///
    /// # Errors
    /// When the node cannot be asked.
    pub(super) async fn wait_visible(&self, transaction: &Transaction) -> Result<(), ApplyError> {
        let Some(xid) = transaction.xid else {
            return Ok(());
        };
        // The stream has 32 bits of it; the epoch is that of the newest id, or the one before.
        let sql = "SELECT pg_visible_in_snapshot((x.epoch + $1::int8 - CASE WHEN $1::int8 > x.low THEN 4294967296 ELSE 0 END)::text::xid8, s) \
             FROM pg_current_snapshot() s, LATERAL (SELECT pg_snapshot_xmax(s)::text::int8 AS xmax) m, \
             LATERAL (SELECT m.xmax % 4294967296 AS low, m.xmax - m.xmax % 4294967296 AS epoch) x";
        loop {
            let rows = self.place.control.query(sql, &[&i64::from(xid)]).await?;
            let row = rows.first().ok_or(ApplyError::Unexpected("snapshot"))?;
            if row.try_get(0).map_err(ControlError::from)? {
                return Ok(());
            }
            tokio::time::sleep(VISIBLE_PAUSE).await;
        }
    }

    /// Remembers what the node's own transactions deleted, and deletes what was applied in the meantime although it is
    /// older. What they inserted gets what was added to its counters while it was deleted.
    ///
    /// # Errors
    /// When the session has to be given up.
    pub(super) async fn learn(&mut self, transactions: &[&Transaction]) -> Result<(), ApplyError> {
        let mut batch = Batch::default();
        for &transaction in transactions {
            // Of a table that was dropped since there is nothing left that could come back.
            self.load_known(&transaction.changes).await?;
            batch.execute(self.connection.out(), "begin", &[], Step::Work)?;
            for change in &transaction.changes {
                match self.add_learnt(&mut batch, change, transaction) {
                    Ok(()) => {}
                    // The table has another shape by now: nothing that this would remember can be found by it.
                    Err(error) if error.is_poison() => {
                        tracing::warn!(node = self.place.target, %error, "replication: a delete of this node is not remembered");
                    }
                    Err(error) => return Err(error),
                }
            }
            self.finish(&mut batch, transaction, false)?;
        }
        match self.run(batch).await?.failure {
            None => Ok(()),
            Some(failure) if failure.error.code == "22012" => Err(ApplyError::Raced),
            Some(failure) => Err(ApplyError::Refused(failure.error)),
        }
    }

    fn add_learnt(
        &mut self,
        batch: &mut Batch,
        change: &Change,
        transaction: &Transaction,
    ) -> Result<(), ApplyError> {
        let Ok(table) = self.table(&change.relation) else {
            return Ok(());
        };
        let row = Row::read(change)?;
        let relation = Arc::clone(&change.relation);
        let counts = !table.counters.is_empty();
        let kinds: &[Kind] = match change.operation {
            _ if table.key.is_empty() => &[],
            Operation::Insert if counts => &[Kind::Reclaim],
            Operation::Insert => &[],
            Operation::Update if !row.key_moves(&relation, &table) => &[],
            Operation::Update if counts => &[Kind::Bury, Kind::Judge, Kind::Reclaim],
            Operation::Update | Operation::Delete => &[Kind::Bury, Kind::Judge],
            Operation::Truncate => &[Kind::Guarded(Operation::Truncate)],
        };
        for &kind in kinds {
            let key = StatementKey {
                relation: relation.id,
                kind,
                unchanged: Vec::new(),
            };
            let writer = &self.writer;
            let prepared =
                batch.prepare(self.connection.out(), &mut self.statements, &key, || {
                    Ok::<_, ApplyError>(match kind {
                        Kind::Bury => writer.bury(&relation, &table)?,
                        Kind::Judge => writer.judge(&relation, &table)?,
                        Kind::Reclaim => writer.reclaim(&relation, &table)?,
                        _ => writer.truncate(&relation, &table, true),
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
        }
        Ok(())
    }
}
