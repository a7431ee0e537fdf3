//! The slow path: one transaction, with its rows locked, compared and decided on one by one.
//!
//! Three round trips (one more where rows are missing, to read which deletes are remembered): the first opens the
//! transaction, the second locks every row that its keys name and reads its version, the third carries out what
//! [`decide`](crate::conflict::decide) says, logs the conflicts, and commits.

use std::collections::{HashMap, HashSet};

use tandem_wire::ServerError;

use super::batch::{Batch, Step, TextRow};
use super::row::{Row, Value};
use super::session::{ApplyError, Session, is_poison};
use super::shadow::is_collision;
use super::sql::{Kind, StatementKey};
use crate::conflict::Found;
use crate::quarantine::Held;
use crate::transaction::{Change, Operation, Transaction};
use crate::version::Version;

/// A row as the first round trip found it.
#[derive(Debug, Clone)]
pub(super) struct Locked {
    pub(super) found: Found,
    pub(super) image: Option<String>,
    /// Whether it is noted that it lacks values.
    pub(super) incomplete: bool,
    /// Whether this transaction has written it.
    ours: bool,
}

impl Locked {
    /// A row as the lock's statement gives it.
    fn found(row: &TextRow) -> Self {
        let image = row.get(2).and_then(Option::as_deref);
        Self {
            found: Found::Row(version(row)),
            image: image.map(|text| String::from_utf8_lossy(text).into_owned()),
            incomplete: number(row, 3) == Some(1),
            ours: false,
        }
    }

    /// What stands there after an action of this very transaction.
    pub(super) fn ours() -> Self {
        Self {
            found: Found::Row(None),
            image: None,
            incomplete: false,
            ours: true,
        }
    }

    /// What stands there after a delete of this very transaction: the newest delete counts, which may be an older one
    /// of another node's.
    pub(super) fn buried(&self, version: Version) -> Self {
        let known = match self.found {
            Found::Missing(known) => known,
            Found::Row(_) => None,
        };
        Self::missing(known.max(Some(version)))
    }

    /// Whether it has the values that an update of `source` leaves out.
    pub(super) fn keeps_values(&self, source: u16) -> bool {
        let written_by_source = match self.found {
            // Written by this very transaction: whole.
            Found::Row(None) => self.ours,
            Found::Row(Some(version)) => version.node == source,
            Found::Missing(_) => false,
        };
        written_by_source && !self.incomplete
    }

    /// Whether this transaction has written it.
    pub(super) fn is_ours(&self) -> bool {
        self.ours
    }

    /// A row of no version was written by this very transaction, if that has changed the key before.
    pub(super) fn written_before(&mut self) {
        self.ours |= self.found == Found::Row(None);
    }

    pub(super) fn missing(tombstone: Option<Version>) -> Self {
        Self {
            found: Found::Missing(tombstone),
            image: None,
            incomplete: false,
            ours: false,
        }
    }
}

/// A key of a table, within one transaction.
pub(super) type Key = (u64, Vec<Vec<u8>>);

/// The rows that were missing in an attempt. Once what the target's own clients did before it is visible, and what they
/// deleted is remembered, nothing more will be known of these; of a row that has gone since there will.
pub(super) type Missing = HashSet<Key>;

/// What came of a transaction.
#[derive(Debug)]
pub(super) enum Slow {
    /// It is committed.
    Applied {
        /// How many conflicts it met.
        conflicts: u64,
    },
    /// Nothing was done: it writes a row that is missing, or a whole table, and what the target's own clients did at the
    /// same time is not all visible or known yet.
    Unsettled(Missing),
    /// Nothing was done: a row collides with another one on a unique constraint.
    Collides,
    /// Nothing was done: the target refuses it, and will again.
    Refused(ServerError),
}

impl Session {
    /// Applies one transaction. `settled`: what was missing in the attempt before, if there was one. `quarantined`: what it
    /// is in the quarantine, which it leaves.
    ///
    /// # Errors
    /// When it cannot be applied now: nothing of it is, and the session has to be given up.
    pub(super) async fn apply_slowly(
        &mut self,
        transaction: &Transaction,
        settled: Option<&Missing>,
        quarantined: Option<Held>,
    ) -> Result<Slow, ApplyError> {
        self.load_tables(transaction).await?;
        self.begin(transaction).await?;
        let changes = &transaction.changes;
        let mut rows = self.lock_rows(changes, transaction).await?;
        let mut seen = HashSet::new();
        if self.is_unsettled(changes, transaction, &rows, &mut seen, settled)? {
            self.connection.simple_query("ROLLBACK").await?;
            return Ok(Slow::Unsettled(missing(&rows).collect()));
        }
        let mut batch = Batch::default();
        let mut conflicts = 0;
        let mut deferrable = false;
        for change in &transaction.changes {
            deferrable |= self.table(&change.relation)?.deferrable;
            conflicts += self
                .add_decided(&mut batch, change, transaction, &mut rows)
                .await?;
        }
        self.release(&mut batch, quarantined)?;
        self.finish(&mut batch, transaction, deferrable)?;
        let outcome = self.run(batch).await?;
        match outcome.failure {
            None => Ok(Slow::Applied { conflicts }),
            // A row that was missing is there now, or the other way round.
            Some(failure) if failure.error.code == "22012" => Err(ApplyError::Raced),
            Some(failure) if is_collision(&failure.error.code) => {
                self.roll_back(&failure).await?;
                // The constraint may be newer than what is known of the table.
                self.forget_tables();
                self.load_tables(transaction).await?;
                Ok(if self.has_uniques(transaction) {
                    Slow::Collides
                } else {
                    Slow::Refused(failure.error)
                })
            }
            Some(failure) if is_poison(&failure.error.code) => {
                self.roll_back(&failure).await?;
                Ok(Slow::Refused(failure.error))
            }
            Some(failure) => Err(ApplyError::Refused(failure.error)),
        }
    }

    /// Whether one of the changes truncates, or is the first of some row, updates or deletes it, and it is missing, unless
    /// that is `settled`. `seen` holds the rows that the transaction has changed before.
    pub(super) fn is_unsettled(
        &self,
        changes: &[Change],
        transaction: &Transaction,
        rows: &HashMap<Key, Locked>,
        seen: &mut HashSet<Key>,
        settled: Option<&Missing>,
    ) -> Result<bool, ApplyError> {
        let version = Version {
            timestamp: transaction.timestamp,
            node: self.place.source,
        };
        for change in changes {
            if change.operation == Operation::Truncate {
                if settled.is_none() {
                    return Ok(true);
                }
                continue;
            }
            let table = self.table(&change.relation)?;
            if table.key.is_empty() {
                continue;
            }
            let row = Row::read(change)?;
            let by_new = change.operation == Operation::Insert;
            let key = (
                change.relation.id,
                row.key(&change.relation, &table, by_new)?,
            );
            let unknown = match rows.get(&key).map(|locked| locked.found) {
                // A newer delete settles it.
                Some(Found::Missing(deleted)) => {
                    deleted < Some(version) && settled.is_none_or(|settled| !settled.contains(&key))
                }
                Some(Found::Row(_)) | None => false,
            };
            if seen.insert(key) && !by_new && unknown {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Opens a transaction on the target, whose clock must be past the change's timestamp.
    pub(super) async fn begin(&mut self, transaction: &Transaction) -> Result<(), ApplyError> {
        let mut batch = Batch::default();
        let out = self.connection.out();
        batch.execute(out, "begin", &[], Step::Work)?;
        let timestamp = [Value::Timestamp(transaction.timestamp)];
        batch.execute(out, "clock", &timestamp, Step::Read)?;
        let rows = self.reads(batch).await?;
        let clock = rows.first().and_then(Option::as_ref);
        match clock.and_then(|row| number(row, 0)) {
            Some(behind_us) if behind_us < 0 => Ok(()),
            Some(behind_us) => Err(ApplyError::ClockBehind { behind_us }),
            None => Err(ApplyError::Unexpected("clock")),
        }
    }

    /// Locks the rows under the keys of some of a transaction's changes, and reads which deletes are remembered for those
    /// that are missing.
    pub(super) async fn lock_rows(
        &mut self,
        changes: &[Change],
        transaction: &Transaction,
    ) -> Result<HashMap<Key, Locked>, ApplyError> {
        let mut batch = Batch::default();
        let mut wanted = Vec::new();
        let mut seen = HashSet::new();
        for change in changes {
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
                    self.add_read(&mut batch, change, Kind::Lock(by_new), transaction)?;
                    wanted.push((key, change, by_new));
                }
            }
        }
        let rows = self.reads(batch).await?;
        let mut locked = HashMap::new();
        let mut missing = Vec::new();
        let mut batch = Batch::default();
        for ((key, change, by_new), row) in wanted.into_iter().zip(rows) {
            match row {
                Some(row) => {
                    locked.insert(key, Locked::found(&row));
                }
                None => {
                    self.add_read(&mut batch, change, Kind::Remembered(by_new), transaction)?;
                    missing.push(key);
                }
            }
        }
        if !missing.is_empty() {
            let tombstones = self.reads(batch).await?;
            for (key, tombstone) in missing.into_iter().zip(tombstones) {
                let deleted = tombstone.as_ref().and_then(version);
                locked.insert(key, Locked::missing(deleted));
            }
        }
        Ok(locked)
    }

    async fn reads(&mut self, batch: Batch) -> Result<Vec<Option<TextRow>>, ApplyError> {
        let outcome = self.run(batch).await?;
        match outcome.failure {
            None => Ok(outcome.rows),
            Some(failure) => Err(ApplyError::Refused(failure.error)),
        }
    }

    /// Adds the lock of the row under a change's key, or the read of the delete that is remembered for it.
    fn add_read(
        &mut self,
        batch: &mut Batch,
        change: &Change,
        kind: Kind,
        transaction: &Transaction,
    ) -> Result<(), ApplyError> {
        let table = self.table(&change.relation)?;
        let row = Row::read(change)?;
        let key = StatementKey {
            relation: change.relation.id,
            kind,
            unchanged: Vec::new(),
        };
        let writer = &self.writer;
        let relation = &change.relation;
        let prepared = batch.prepare(self.connection.out(), &mut self.statements, &key, || {
            Ok::<_, ApplyError>(match kind {
                Kind::Lock(by_new) => writer.lock(relation, &table, by_new)?,
                Kind::Remembered(by_new) => writer.read_tombstone(relation, &table, by_new)?,
                _ => return Err(ApplyError::Unexpected("not a read")),
            })
        })?;
        let mut values = Vec::new();
        let timestamp = transaction.timestamp;
        row.values(&prepared.statement, relation, timestamp, &mut values)?;
        batch.execute(self.connection.out(), &prepared.name, &values, Step::Read)?;
        Ok(())
    }
}

/// The rows that are missing.
pub(super) fn missing(rows: &HashMap<Key, Locked>) -> impl Iterator<Item = Key> {
    let missing = rows
        .iter()
        .filter(|(_, locked)| matches!(locked.found, Found::Missing(_)));
    missing.map(|(key, _)| key.clone())
}

fn version(row: &TextRow) -> Option<Version> {
    let (timestamp, node) = number(row, 0).zip(number(row, 1))?;
    Some(Version {
        timestamp,
        node: u16::try_from(node).unwrap_or(0),
    })
}

pub(super) fn number(row: &TextRow, column: usize) -> Option<i64> {
    std::str::from_utf8(row.get(column)?.as_deref()?)
        .ok()?
        .parse()
        .ok()
}
