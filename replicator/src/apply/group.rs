//! Group apply: a backlog is not replayed but merged. A *run*, a stretch of one source's transactions, is brought together
//! key by key and applied as one local transaction, under the version of its newest.
//!
//! A run is applied only where each of its changes would go through without a closer look. If one would not, nothing of
//! it is done, and its transactions are applied one by one. What its rows really are stands in `tandem.run`, in the same
//! commit; the slow path notes it in `tandem.kept` before it decides about such a row (`truth.rs`).

use std::collections::BTreeSet;
use std::time::Instant;

use tandem_wire::lsn::Lsn;

use super::batch::{Batch, Failure, Sent, Step};
use super::copy;
use super::fold::Filling;
use super::gate::Gate;
use super::net::{Outcome, TableNet, bring_together};
use super::params::Rows;
use super::row::Value;
use super::session::{ApplyError, Session};
use super::sql::{Kind, StatementKey, qualified};
use super::{LinkContext, Worker};
use crate::control::ControlError;
use crate::origin::OriginName;
use crate::runs::Versions;
use crate::transaction::{Operation, Transaction};
use crate::version::{PgTimestamp, Version, microseconds_sql};

/// Transactions of one run at most.
const RUN_TRANSACTIONS: usize = 8_000;
/// What is read of a journal at once while there is a backlog.
const READ_TRANSACTIONS: usize = 4 * RUN_TRANSACTIONS;
/// The same in bytes of changes.
const READ_BYTES: usize = 16 << 20;
/// So many transactions behind a run are looked at for one that is older: commits that overlap stand in the WAL in another
/// order than that of their timestamps.
const OVERLAP: usize = 64;

/// A run that is put together.
struct Encoded {
    /// Of so many transactions.
    count: usize,
    stamp: Version,
    end_lsn: Lsn,
    /// When the last of them was committed.
    last: PgTimestamp,
    versions: Versions,
}

/// How runs went.
#[derive(Debug)]
pub(super) struct Grouping {
    /// Transactions of the next run at most.
    limit: usize,
    /// So many of the next transactions are applied one by one.
    one_by_one: usize,
}

/// All that the target's own clients committed before `horizon` in these tables is visible, and what they deleted is
/// remembered.
#[derive(Debug)]
pub(super) struct Settled {
    horizon: PgTimestamp,
    relations: BTreeSet<u64>,
}

impl Default for Grouping {
    fn default() -> Self {
        Self {
            limit: RUN_TRANSACTIONS,
            one_by_one: 0,
        }
    }
}

impl Grouping {
    /// Transactions were applied one by one.
    pub(super) fn passed(&mut self, transactions: usize) {
        self.one_by_one = self.one_by_one.saturating_sub(transactions);
    }

    fn succeeded(&mut self) {
        self.one_by_one = 0;
        self.limit = (self.limit * 2).min(RUN_TRANSACTIONS);
    }

    /// A run of so many failed; runs of fewer than `least` are not worth it.
    fn failed(&mut self, transactions: usize, least: usize) {
        let fewer = transactions / 4;
        self.limit = fewer.max(least);
        self.one_by_one = if fewer < least { transactions } else { 0 };
    }
}

/// How many of some transactions to take: those older than the horizon, and so many that what follows is newer.
fn stretch(timestamps: &[PgTimestamp], horizon: PgTimestamp, limit: usize) -> usize {
    let older = timestamps.iter().take_while(|&&at| at < horizon).count();
    let mut count = older.min(limit);
    loop {
        let (taken, rest) = timestamps.split_at(count);
        let next = rest.iter().take(OVERLAP).min();
        let cut = next.and_then(|next| taken.iter().position(|at| at > next));
        match cut {
            Some(cut) => count = cut,
            None => return count,
        }
    }
}

impl Worker<'_> {
    /// Applies the first of some transactions in runs; answers how many. None, where they are to be applied one by one.
    pub(super) async fn apply_runs(
        &mut self,
        transactions: &[&Transaction],
    ) -> Result<usize, ApplyError> {
        let context = self.context;
        let Some(least) = context.group_from else {
            return Ok(0);
        };
        let enough = transactions.len() >= least && self.careful == 0;
        if !enough
            || self.carried.grouping.one_by_one > 0
            || self.carried.poison.is_some()
            || !context.quarantine.is_empty()
        {
            return Ok(0);
        }
        let Some(horizon) = self.horizon(transactions, least).await? else {
            self.carried.grouping.one_by_one = transactions.len();
            return Ok(0);
        };
        let timestamps: Vec<_> = transactions.iter().map(|t| t.timestamp).collect();
        self.carried.gate = Some(Gate::pass(&context.gate, true).await);
        let mut done = 0;
        let mut sent = 0;
        let mut under_way: Option<(Sent, Encoded)> = None;
        loop {
            // Put together while the server works on the one before.
            let rest = transactions.get(sent..).unwrap_or_default();
            let count = stretch(
                timestamps.get(sent..).unwrap_or_default(),
                horizon,
                self.carried.grouping.limit,
            );
            let encoded = self.encode_run(rest, count, least, sent == done);
            if let Some((replies, run)) = under_way.take() {
                let count = run.count;
                if let Some(failure) = self.finish_run(replies, run).await? {
                    // Before anything else is sent.
                    if let Ok(Some((batch, _))) = encoded {
                        batch.discard(self.session.connection.out(), &mut self.session.statements);
                    }
                    tracing::debug!(error = %failure.error, "a run failed; its transactions are applied one by one");
                    self.session.roll_back(&failure).await?;
                    self.carried.grouping.failed(count, least);
                    break;
                }
                done += count;
            }
            let Some((batch, run)) = encoded? else { break };
            sent += run.count;
            // Should it cost the session, they are applied one by one then.
            self.carried.grouping.one_by_one = run.count;
            under_way = Some((batch.send(&mut self.session.connection).await, run));
        }
        self.carried.gate = None;
        Ok(done)
    }
    /// Puts the first `count` of some transactions together as one run, or fewer; nothing, where they would be fewer than
    /// `least` or a run cannot be. `first`: nothing stands before them that the next attempt would be without.
    fn encode_run(
        &mut self,
        transactions: &[&Transaction],
        mut count: usize,
        least: usize,
        first: bool,
    ) -> Result<Option<(Batch, Encoded)>, ApplyError> {
        let mut one_by_one = |count| {
            if first {
                self.carried.grouping.one_by_one = count;
            }
        };
        if !self.context.runs.has_room() {
            one_by_one(transactions.len());
            return Ok(None);
        }
        let session = &self.session;
        let (run, tables) = loop {
            let (run, _) = transactions.split_at(count);
            if run.len() < least {
                one_by_one(run.len() + 1);
                return Ok(None);
            }
            match bring_together(run, |relation| session.table(relation)) {
                Ok(Ok(tables)) => break (run, tables),
                Ok(Err(fewer)) => count = fewer,
                // Whoever applies it alone says what is wrong.
                Err(_) => {
                    one_by_one(transactions.len());
                    return Ok(None);
                }
            }
        };
        let newest = run.iter().map(|transaction| transaction.timestamp).max();
        let (Some(last), Some(timestamp)) = (run.last(), newest) else {
            return Ok(None);
        };
        if run.iter().any(|t| session.may_meet_shadows(t)) {
            one_by_one(run.len());
            return Ok(None);
        }
        let stamp = Version {
            timestamp,
            node: self.context.place.source,
        };
        let (batch, versions) = self.session.encode_run(&tables, stamp, last.end_lsn)?;
        let encoded = Encoded {
            count: run.len(),
            stamp,
            end_lsn: last.end_lsn,
            last: last.timestamp,
            versions,
        };
        Ok(Some((batch, encoded)))
    }

    /// Reads the replies to a run; answers what is to be rolled back.
    async fn finish_run(
        &mut self,
        sent: Sent,
        run: Encoded,
    ) -> Result<Option<Failure>, ApplyError> {
        let session = &mut self.session;
        let outcome = sent
            .replies(&mut session.connection, &mut session.statements)
            .await?;
        if outcome.failure.is_some() {
            return Ok(outcome.failure);
        }
        let id = outcome.rows.first().and_then(Option::as_ref);
        let id = id.and_then(|row| super::slow::number(row, 0));
        let id = id.ok_or(ApplyError::Unexpected("tandem.run"))?;
        // Before anybody else passes the gate.
        self.context.runs.add(id, run.stamp, run.versions);
        self.carried.grouping.succeeded();
        self.link.count(run.count as u64, run.last);
        // The run has noted the progress.
        self.carried.unnoted.clear();
        self.noted = Instant::now();
        self.link.advance(run.end_lsn);
        Ok(None)
    }

    /// Makes sure that everything older than the answer that the target's own clients did in the tables of some
    /// transactions is visible, and what they deleted remembered. `None`: some of them take too long, or a table is not
    /// there.
    async fn horizon(
        &mut self,
        transactions: &[&Transaction],
        least: usize,
    ) -> Result<Option<PgTimestamp>, ApplyError> {
        let mut relations = BTreeSet::new();
        let mut tables = Vec::new();
        for change in transactions.iter().flat_map(|t| &t.changes) {
            if relations.insert(change.relation.id) {
                match self.session.load_table(&change.relation).await {
                    Ok(()) => tables.push(qualified(&change.relation)),
                    Err(ApplyError::NoTable(_)) => return Ok(None),
                    Err(error) => return Err(error),
                }
            }
        }
        let (first, _) = transactions.split_at(least.min(transactions.len()));
        if let Some(settled) = &self.settled
            && settled.relations.is_superset(&relations)
            && first.iter().all(|t| t.timestamp < settled.horizon)
        {
            return Ok(Some(settled.horizon));
        }
        let horizon = self.session.clock().await?;
        match self.settle(tables).await {
            Ok(()) => {}
            Err(ApplyError::Raced) => return Ok(None),
            Err(error) => return Err(error),
        }
        self.settled = Some(Settled { horizon, relations });
        Ok(Some(horizon))
    }
}

impl LinkContext {
    /// What is read of the journal at once: transactions and bytes.
    pub(super) fn read_limits(&self, backlog: bool) -> (usize, usize) {
        if backlog && self.group_from.is_some() {
            (READ_TRANSACTIONS, READ_BYTES)
        } else {
            (super::BATCH_TRANSACTIONS, super::BATCH_BYTES)
        }
    }
}

impl Session {
    /// The target's clock.
    async fn clock(&self) -> Result<PgTimestamp, ApplyError> {
        let sql = format!("SELECT {}", microseconds_sql("clock_timestamp()"));
        let rows = self.place.control.query(&sql, &[]).await?;
        let row = rows.first().ok_or(ApplyError::Unexpected("clock"))?;
        Ok(row.try_get(0).map_err(ControlError::from)?)
    }

    /// Puts a run together that ends at `end_lsn`; answers its rows' true versions too.
    fn encode_run(
        &mut self,
        tables: &[TableNet<'_>],
        stamp: Version,
        end_lsn: Lsn,
    ) -> Result<(Batch, Versions), ApplyError> {
        let mut batch = Batch::default();
        batch.execute(self.connection.out(), "begin", &[], Step::Work)?;
        let mut versions = Versions::default();
        for table in tables {
            self.add_table(&mut batch, table)?;
            table.note(&mut versions);
        }
        let origin = OriginName {
            node: self.place.source,
            worker: 0,
        }
        .to_string();
        let source = self.place.source.to_string();
        let run = [
            Value::Text(source.as_bytes()),
            Value::Timestamp(stamp.timestamp),
            Value::Bytes(versions.bytes()),
        ];
        let out = self.connection.out();
        batch.execute(out, "run", &run, Step::Read)?;
        let progress = [Value::Text(origin.as_bytes()), Value::Lsn(end_lsn)];
        batch.execute(out, "progress", &progress, Step::Work)?;
        let deferrable = tables.iter().any(|table| table.table.deferrable);
        self.finish_at(&mut batch, end_lsn, stamp.timestamp, deferrable)?;
        Ok((batch, versions))
    }

    fn add_table(&mut self, batch: &mut Batch, net: &TableNet<'_>) -> Result<(), ApplyError> {
        let (relation, table) = (net.relation, &net.table);
        for ((outcome, unchanged), rows) in net.groups() {
            let key = StatementKey {
                relation: relation.id,
                kind: match outcome {
                    Outcome::Insert => Kind::Folded(Operation::Insert),
                    Outcome::Update => Kind::Folded(Operation::Update),
                    Outcome::Delete => Kind::Folded(Operation::Delete),
                    Outcome::Bury => Kind::BuryUnseen,
                },
                unchanged,
            };
            let Some(first) = rows.first() else { continue };
            if outcome == Outcome::Insert
                && rows.len() >= copy::ROWS_MIN
                && table.takes_copy
                && key.unchanged.is_empty()
            {
                let mut copying = self.begin_copy(batch, relation, table)?;
                for net in &rows {
                    if copying.is_full() {
                        copying.finish(batch, self.connection.out())?;
                        copying = self.begin_copy(batch, relation, table)?;
                    }
                    copying.push(relation, &net.row)?;
                }
                copying.finish(batch, self.connection.out())?;
                continue;
            }
            let writer = &self.writer;
            let prepared =
                batch.prepare(self.connection.out(), &mut self.statements, &key, || {
                    let unchanged = |index| first.row.is_unchanged(index);
                    Ok::<_, ApplyError>(match outcome {
                        Outcome::Insert => writer.insert(relation, table, true, Rows::Many)?,
                        Outcome::Update => {
                            writer.update(relation, table, unchanged, false, true, Rows::Many)?
                        }
                        Outcome::Delete => {
                            writer.delete(relation, table, true, false, Rows::Many)?
                        }
                        Outcome::Bury => writer.bury_unseen(relation, table)?,
                    })
                })?;
            let statement = &prepared.statement;
            let mut filling = Filling::new(&statement.params);
            for net in &rows {
                let mut values = Vec::with_capacity(statement.params.len());
                net.row
                    .values(statement, relation, net.stamps, &mut values)?;
                filling.push(&values)?;
                if filling.is_full() {
                    let values = filling.values();
                    batch.execute(self.connection.out(), &prepared.name, &values, Step::Work)?;
                    filling = Filling::new(&statement.params);
                }
            }
            if !filling.is_empty() {
                let values = filling.values();
                batch.execute(self.connection.out(), &prepared.name, &values, Step::Work)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_where_everything_behind_it_is_newer() {
        assert_eq!(stretch(&[1, 2, 3, 4], 10, 10), 4);
        assert_eq!(stretch(&[1, 2, 3, 4], 3, 10), 2);
        assert_eq!(stretch(&[1, 2, 3, 4], 10, 3), 3);
        // The fourth would be older than the run's newest.
        assert_eq!(stretch(&[1, 2, 5, 4, 6], 10, 3), 2);
        assert_eq!(stretch(&[1, 5, 6, 4, 7], 10, 3), 1);
        assert_eq!(stretch(&[5, 5, 5], 10, 2), 2);
    }

    #[test]
    fn a_run_that_fails_is_made_smaller_until_its_transactions_go_one_by_one() {
        let mut grouping = Grouping::default();
        grouping.failed(1000, 100);
        assert_eq!((grouping.limit, grouping.one_by_one), (250, 0));
        grouping.failed(250, 100);
        assert_eq!((grouping.limit, grouping.one_by_one), (100, 250));
        grouping.passed(200);
        grouping.passed(200);
        assert_eq!(grouping.one_by_one, 0);
        grouping.succeeded();
        assert_eq!(grouping.limit, 200);
    }
}
