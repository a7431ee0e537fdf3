//! The slow path for tables where rows of different keys may collide: R(S) of `conflict/unique.rs`.
//!
//! Each change is carried out as if nothing collided: the row under its key is brought back from the shadow, what collides
//! with the new row goes there. Then rows are moved until the table holds R(S) again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tandem_wire::lsn::Lsn;

use super::batch::{Batch, Step};
use super::row::{Row, Value};
use super::session::{ApplyError, Session, is_poison};
use super::slow::{Key, Locked, Missing, Slow, missing};
use super::sql::{TargetTable, Writer, literal, qualified};
use super::unique::{Stamp, text};
use crate::conflict::Found;
use crate::conflict::unique::{Verdict, judge};
use crate::quarantine::Held;
use crate::relation::Relation;
use crate::transaction::{Change, Operation, Transaction};
use crate::version::Version;

/// How often rows of one table may be moved for one transaction, before it is taken for endless.
const MOVES_MAX: usize = 100_000;

/// A row that was moved into the shadow, and what it had to make room for.
struct Evicted {
    relation: Arc<Relation>,
    key: String,
    image: String,
    version: Version,
    winner: String,
    winner_version: Version,
}

impl Session {
    /// Whether rows of the transaction's tables may collide on anything but the primary key.
    pub(super) fn has_uniques(&self, transaction: &Transaction) -> bool {
        transaction.changes.iter().any(|change| {
            self.table(&change.relation)
                .is_ok_and(|table| table.collides())
        })
    }
}

/// SQLSTATEs of unique_violation and exclusion_violation.
pub(super) fn is_collision(code: &str) -> bool {
    matches!(code, "23505" | "23P01")
}

impl Session {
    /// Applies one transaction; what [`apply_slowly`](Self::apply_slowly) says holds here too.
    ///
    /// # Errors
    /// When it cannot be applied now.
    pub(super) async fn apply_with_shadows(
        &mut self,
        transaction: &Transaction,
        settled: Option<&Missing>,
        quarantined: Option<Held>,
    ) -> Result<Slow, ApplyError> {
        self.know_uniques(transaction);
        self.load_tables(transaction).await?;
        let mut evicted = Vec::new();
        let mut conflicts = 0;
        let (mut seen, mut gone) = (HashSet::new(), Missing::new());
        let version = Version {
            timestamp: transaction.timestamp,
            node: self.place.source,
        };
        let mut relations: HashMap<u64, Arc<Relation>> = HashMap::new();
        for change in &transaction.changes {
            relations.insert(change.relation.id, Arc::clone(&change.relation));
        }
        self.begin(transaction).await?;
        for relation in relations.values() {
            self.judge_shadowed(relation).await?;
        }
        for change in &transaction.changes {
            let table = self.table(&change.relation)?;
            let row = Row::read(change)?;
            if table.collides() {
                self.place.shadows.set(&qualified(&change.relation), true);
                self.make_way(change, &row, version, &mut evicted).await?;
            }
            let changes = std::slice::from_ref(change);
            let mut rows = self.lock_rows(changes, transaction).await?;
            for (_, locked) in rows.iter_mut().filter(|(key, _)| seen.contains(*key)) {
                locked.written_before();
            }
            gone.extend(missing(&rows).filter(|key| !seen.contains(key)));
            if self.is_unsettled(changes, transaction, &rows, &mut seen, settled)? {
                self.connection.simple_query("ROLLBACK").await?;
                return Ok(Slow::Unsettled(gone));
            }
            seen.extend(rows.keys().cloned());
            let mut batch = Batch::default();
            conflicts += self
                .add_decided(&mut batch, change, transaction, &mut rows)
                .await?;
            if let Some(refused) = self.run_part(batch).await? {
                return Ok(refused);
            }
            if table.collides() {
                self.forget_kept(change, &row, version, &rows).await?;
            }
        }
        let mut left = Vec::new();
        for relation in relations.values() {
            self.settle_shadow(relation, version, &mut evicted).await?;
            left.push((qualified(relation), self.has_shadow(relation).await?));
        }
        let evicted = self.still_shadowed(evicted).await?;
        conflicts += evicted.len() as u64;
        let mut batch = Batch::default();
        self.log_evicted(&mut batch, &evicted, version)?;
        self.release(&mut batch, quarantined)?;
        self.finish(&mut batch, transaction, true)?;
        if let Some(refused) = self.run_part(batch).await? {
            return Ok(refused);
        }
        for (table, has) in left {
            self.place.shadows.set(&table, has);
        }
        Ok(Slow::Applied { conflicts })
    }

    /// Runs a part of the transaction; answers what ends it.
    async fn run_part(&mut self, batch: Batch) -> Result<Option<Slow>, ApplyError> {
        match self.run(batch).await?.failure {
            None => Ok(None),
            Some(failure) if failure.error.code == "22012" || is_collision(&failure.error.code) => {
                Err(ApplyError::Raced)
            }
            Some(failure) if is_poison(&failure.error.code) => {
                self.roll_back(&failure).await?;
                Ok(Some(Slow::Refused(failure.error)))
            }
            Some(failure) => Err(ApplyError::Refused(failure.error)),
        }
    }

    /// A table that has shadowed rows has a constraint, which may be newer than what this session knows of it.
    fn know_uniques(&mut self, transaction: &Transaction) {
        if self.may_meet_shadows(transaction) && !self.has_uniques(transaction) {
            self.forget_tables();
        }
    }

    fn stamp(version: Version) -> Stamp {
        let (seconds, micros) = (
            version.timestamp.div_euclid(1_000_000),
            version.timestamp.rem_euclid(1_000_000),
        );
        Stamp {
            timestamp: format!(
                "(timestamptz '2000-01-01 00:00:00+00' + make_interval(secs => {seconds}) + {micros} * interval '1 microsecond')"
            ),
            node: version.node,
        }
    }

    /// Rows that this transaction has written or deleted have its version, whatever they had when it brought them back.
    async fn forget_kept(
        &mut self,
        change: &Change,
        row: &Row<'_>,
        version: Version,
        rows: &HashMap<Key, Locked>,
    ) -> Result<(), ApplyError> {
        let relation = &change.relation;
        let table = self.table(relation)?;
        for &new in sides(change, row, &table) {
            let key = (relation.id, row.key(relation, &table, new)?);
            let ours = rows.get(&key).is_some_and(|locked| {
                locked.is_ours() || locked.found == Found::Missing(Some(version))
            });
            if ours {
                let key = self.key_json(relation, &table, row, new).await?;
                let sql = format!(
                    "DELETE FROM tandem.kept WHERE relation = {} AND key = {}::jsonb",
                    literal(relation),
                    text(&key)
                );
                self.connection.simple_query(&sql).await?;
            }
        }
        Ok(())
    }

    /// Brings back what the change's keys have in the shadow, and moves what collides with its new row there.
    async fn make_way(
        &mut self,
        change: &Change,
        row: &Row<'_>,
        version: Version,
        evicted: &mut Vec<Evicted>,
    ) -> Result<(), ApplyError> {
        let relation = &change.relation;
        let table = self.table(relation)?;
        if change.operation == Operation::Truncate {
            return self.truncate_shadow(relation, version).await;
        }
        for &new in sides(change, row, &table) {
            let key = self.key_json(relation, &table, row, new).await?;
            let sql = Writer::shadow_image(relation, &key);
            let found = self.connection.simple_query(&sql).await?;
            let image = found.first().and_then(|row| row.first().cloned().flatten());
            if let Some(image) = image {
                self.evict(relation, &table, &image, version, evicted)
                    .await?;
                self.restore(relation, &table, &key).await?;
                evicted.retain(|moved| moved.relation.id != relation.id || moved.key != key);
            }
        }
        if change.operation != Operation::Delete {
            let image = row.text_image(relation);
            self.evict(relation, &table, &image, version, evicted)
                .await?;
        }
        if let [old, _] = *sides(change, row, &table) {
            // It may have made way for the row that comes under the new key: the change takes it away all the same.
            let key = self.key_json(relation, &table, row, old).await?;
            let stamp = Self::stamp(version);
            let sql = format!(
                "DELETE FROM tandem.shadow WHERE relation = {} AND key = {}::jsonb AND (written, node) <= ({}, {})",
                literal(relation),
                text(&key),
                stamp.timestamp,
                stamp.node
            );
            self.connection.simple_query(&sql).await?;
        }
        Ok(())
    }

    /// The key as Tandem's own tables have it.
    async fn key_json(
        &mut self,
        relation: &Relation,
        table: &TargetTable,
        row: &Row<'_>,
        new: bool,
    ) -> Result<String, ApplyError> {
        let values = row.key(relation, table, new)?;
        let casts: Vec<_> = values
            .iter()
            .zip(&table.key)
            .map(|(value, column)| {
                let kind = table.uniques.type_of(column);
                format!("{}::{kind}", text(&String::from_utf8_lossy(value)))
            })
            .collect();
        let sql = format!("SELECT jsonb_build_array({})::text", casts.join(", "));
        let rows = self.connection.simple_query(&sql).await?;
        let key = rows
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next());
        key.flatten().ok_or(ApplyError::Unexpected("a key"))
    }

    async fn evict(
        &mut self,
        relation: &Arc<Relation>,
        table: &TargetTable,
        image: &str,
        winner_version: Version,
        evicted: &mut Vec<Evicted>,
    ) -> Result<(), ApplyError> {
        let stamp = Self::stamp(winner_version);
        let sql = self.writer.evict(relation, table, image, &stamp);
        for row in self.connection.simple_query(&sql).await.map_err(raced)? {
            let [Some(key), Some(loser), Some(timestamp), Some(node)] = row.as_slice() else {
                return Err(ApplyError::Unexpected("a shadowed row"));
            };
            evicted.push(Evicted {
                relation: Arc::clone(relation),
                key: key.clone(),
                image: loser.clone(),
                version: read_version(timestamp, node)
                    .ok_or(ApplyError::Unexpected("a version"))?,
                winner: image.to_owned(),
                winner_version,
            });
        }
        Ok(())
    }

    async fn restore(
        &mut self,
        relation: &Relation,
        table: &TargetTable,
        key: &str,
    ) -> Result<(), ApplyError> {
        let sql = self.writer.restore(relation, table, key);
        self.connection.simple_query(&sql).await.map_err(raced)?;
        Ok(())
    }

    /// Moves rows until the table holds what it must. `version` is that of rows which this transaction has written.
    async fn settle_shadow(
        &mut self,
        relation: &Arc<Relation>,
        version: Version,
        evicted: &mut Vec<Evicted>,
    ) -> Result<(), ApplyError> {
        let table = self.table(relation)?;
        if !table.collides() {
            return Ok(());
        }
        for _ in 0..MOVES_MAX {
            let sql = self
                .writer
                .shadowed(relation, &table, &Self::stamp(version));
            let rows = self.connection.simple_query(&sql).await?;
            let Some((key, row_version)) = first_that_enters(&rows)? else {
                return Ok(());
            };
            let sql = Writer::shadow_image(relation, &key);
            let found = self.connection.simple_query(&sql).await?;
            let image = found
                .into_iter()
                .next()
                .and_then(|row| row.into_iter().next());
            let image = image.flatten().ok_or(ApplyError::Raced)?;
            let before = evicted.len();
            self.evict(relation, &table, &image, version, evicted)
                .await?;
            for moved in evicted.iter_mut().skip(before) {
                moved.winner_version = row_version;
            }
            self.restore(relation, &table, &key).await?;
            evicted.retain(|moved| moved.relation.id != relation.id || moved.key != key);
        }
        Err(ApplyError::Raced)
    }

    async fn has_shadow(&mut self, relation: &Relation) -> Result<bool, ApplyError> {
        let sql = format!(
            "SELECT 1 FROM tandem.shadow WHERE relation = {} LIMIT 1",
            literal(relation)
        );
        Ok(!self.connection.simple_query(&sql).await?.is_empty())
    }

    /// Shadowed rows that are not newer than a TRUNCATE go with the others.
    async fn truncate_shadow(
        &mut self,
        relation: &Relation,
        version: Version,
    ) -> Result<(), ApplyError> {
        let stamp = Self::stamp(version);
        let sql = format!(
            "DELETE FROM tandem.shadow WHERE relation = {} AND (written, node) <= ({}, {})",
            literal(relation),
            stamp.timestamp,
            stamp.node
        );
        self.connection.simple_query(&sql).await?;
        Ok(())
    }

    /// Those of the evicted rows that have not come back.
    async fn still_shadowed(&mut self, evicted: Vec<Evicted>) -> Result<Vec<Evicted>, ApplyError> {
        let mut still = Vec::new();
        for moved in evicted {
            let sql = Writer::shadow_image(&moved.relation, &moved.key);
            if !self.connection.simple_query(&sql).await?.is_empty() {
                still.push(moved);
            }
        }
        Ok(still)
    }

    /// Adds a line of the conflict log for each row that has lost its place.
    fn log_evicted(
        &mut self,
        batch: &mut Batch,
        evicted: &[Evicted],
        version: Version,
    ) -> Result<(), ApplyError> {
        for moved in evicted {
            let arriving_lost = moved.version == version;
            let (local, local_version, remote, remote_version, outcome) = if arriving_lost {
                (
                    &moved.winner,
                    moved.winner_version,
                    &moved.image,
                    moved.version,
                    "local",
                )
            } else {
                (
                    &moved.image,
                    moved.version,
                    &moved.winner,
                    moved.winner_version,
                    "remote",
                )
            };
            let relation = format!("{}.{}", moved.relation.schema, moved.relation.name);
            let (local_node, remote_node) = (
                local_version.node.to_string(),
                remote_version.node.to_string(),
            );
            let values = [
                Value::Text(relation.as_bytes()),
                Value::Text(b"multiple_unique_conflicts"),
                Value::Text(outcome.as_bytes()),
                Value::Text(local.as_bytes()),
                Value::Timestamp(local_version.timestamp),
                Value::Text(local_node.as_bytes()),
                Value::Text(remote.as_bytes()),
                Value::Timestamp(remote_version.timestamp),
                Value::Text(remote_node.as_bytes()),
            ];
            batch.execute(self.connection.out(), "conflict", &values, Step::Work)?;
        }
        Ok(())
    }

    /// After changes of the node's own clients to a table with shadowed rows: what they wrote anew under a shadowed key
    /// takes its place if it is newer, and what they gave up lets others in. The origin is left at `stamp`: the transaction is
    /// not wholly learnt yet.
    pub(super) async fn learn_shadows(
        &mut self,
        transaction: &Transaction,
        stamp: Lsn,
    ) -> Result<(), ApplyError> {
        let version = Version {
            timestamp: transaction.timestamp,
            node: self.place.source,
        };
        let mut left = HashMap::new();
        self.know_uniques(transaction);
        // Loads the tables that are there.
        self.traits(transaction, true).await?;
        self.connection.simple_query("BEGIN").await?;
        for change in &transaction.changes {
            let Ok(table) = self.table(&change.relation) else {
                continue;
            };
            let name = qualified(&change.relation);
            if !table.collides() || !self.place.shadows.may_have(&name) {
                continue;
            }
            let row = Row::read(change)?;
            if change.operation == Operation::Truncate {
                self.truncate_shadow(&change.relation, version).await?;
            } else if change.operation != Operation::Insert {
                // What went from under its old key: by a DELETE, or because the key changed.
                let stays = change.operation == Operation::Update
                    && !row.key_moves(&change.relation, &table);
                if !stays {
                    let key = self.key_json(&change.relation, &table, &row, false).await?;
                    let stamp = Self::stamp(version);
                    let sql = Writer::bury_shadowed(&change.relation, &key, &stamp);
                    self.connection.simple_query(&sql).await?;
                }
            }
            left.insert(change.relation.id, Arc::clone(&change.relation));
        }
        let mut evicted = Vec::new();
        let mut has = Vec::new();
        for relation in left.values() {
            self.judge_shadowed(relation).await?;
            self.settle_shadow(relation, version, &mut evicted).await?;
            has.push((qualified(relation), self.has_shadow(relation).await?));
        }
        let evicted = self.still_shadowed(evicted).await?;
        let mut batch = Batch::default();
        self.log_evicted(&mut batch, &evicted, version)?;
        let stamp = [
            Value::Lsn(stamp.max(Lsn(1))),
            Value::Timestamp(transaction.timestamp),
        ];
        batch.execute(self.connection.out(), "setup", &stamp, Step::Work)?;
        batch.execute(self.connection.out(), "commit", &[], Step::Commit)?;
        match self.run(batch).await?.failure {
            None => {}
            Some(failure) if is_collision(&failure.error.code) => return Err(ApplyError::Raced),
            Some(failure) => return Err(ApplyError::Refused(failure.error)),
        }
        for (table, has) in has {
            self.place.shadows.set(&table, has);
        }
        Ok(())
    }

    /// Keys that have a row in the table and one in the shadow keep the newer one.
    async fn judge_shadowed(&mut self, relation: &Relation) -> Result<(), ApplyError> {
        let table = self.table(relation)?;
        if table.collides() {
            for sql in self.writer.judge_shadowed(relation, &table) {
                self.connection.simple_query(&sql).await?;
            }
        }
        Ok(())
    }
}

/// Which keys a change of a row touches: the old row's (false), the new one's (true).
fn sides(change: &Change, row: &Row<'_>, table: &TargetTable) -> &'static [bool] {
    match change.operation {
        Operation::Insert => &[true],
        Operation::Update if row.key_moves(&change.relation, table) => &[false, true],
        Operation::Update | Operation::Delete => &[false],
        Operation::Truncate => &[],
    }
}

/// The first shadowed row that may go into the table, with its version.
fn first_that_enters(
    rows: &[Vec<Option<String>>],
) -> Result<Option<(String, Version)>, ApplyError> {
    let same_key =
        |one: &Vec<Option<String>>, other: &Vec<Option<String>>| one.first() == other.first();
    for row in rows.chunk_by(same_key) {
        let Some([Some(key), Some(timestamp), Some(node), ..]) = row.first().map(Vec::as_slice)
        else {
            return Err(ApplyError::Unexpected("a shadowed row"));
        };
        let version = read_version(timestamp, node).ok_or(ApplyError::Unexpected("a version"))?;
        let others = row.iter().filter_map(|row| match row.as_slice() {
            [_, _, _, Some(timestamp), Some(node)] => read_version(timestamp, node),
            _ => None,
        });
        if judge(version, others) == Verdict::Enters {
            return Ok(Some((key.clone(), version)));
        }
    }
    Ok(None)
}

fn read_version(timestamp: &str, node: &str) -> Option<Version> {
    Some(Version {
        timestamp: timestamp.parse().ok()?,
        node: node.parse().ok()?,
    })
}

/// A collision means that a client was faster.
fn raced(error: tandem_wire::connection::ConnectionError) -> ApplyError {
    match error {
        tandem_wire::connection::ConnectionError::Server(error) if is_collision(&error.code) => {
            ApplyError::Raced
        }
        other => other.into(),
    }
}
