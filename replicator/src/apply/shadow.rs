//! The slow path for tables where rows of different keys may collide: R(S) of `conflict/unique.rs`.
//!
//! Each change that wins under its key is carried out as if nothing collided: the row under its key is brought back from the
//! shadow, what collides with the new row goes there. Then rows are moved until the table holds R(S) again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tandem_wire::lsn::Lsn;

use super::batch::{Batch, Step};
use super::row::{Row, Value};
use super::session::{ApplyError, Session, is_poison};
use super::slow::{Key, Locked, Slow, Unknown};
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

/// What a transaction has come to so far.
#[derive(Default)]
pub(super) struct Course {
    evicted: Vec<Evicted>,
    conflicts: u64,
    /// Keys that it has changed.
    seen: HashSet<Key>,
    /// Whether its tables have shadowed rows now.
    left: Vec<(String, bool)>,
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
        settled: &Unknown,
        quarantined: Option<Held>,
    ) -> Result<Slow, ApplyError> {
        self.know_uniques(transaction);
        self.load_tables(transaction).await?;
        self.begin(transaction).await?;
        let mut course = Course::default();
        let ended = self.apply_colliding(transaction, settled, &mut course);
        if let Some(ends) = ended.await? {
            return Ok(ends);
        }
        self.finish_colliding(transaction, quarantined, course)
            .await
    }

    /// Applies changes of the transaction that is open; answers what ends it.
    pub(super) async fn apply_colliding(
        &mut self,
        transaction: &Transaction,
        settled: &Unknown,
        course: &mut Course,
    ) -> Result<Option<Slow>, ApplyError> {
        self.load_tables(transaction).await?;
        let version = Version {
            timestamp: transaction.timestamp,
            node: self.place.source,
        };
        let mut relations: HashMap<u64, Arc<Relation>> = HashMap::new();
        for change in &transaction.changes {
            if !self.table(&change.relation)?.gone {
                relations.insert(change.relation.id, Arc::clone(&change.relation));
            }
        }
        for relation in relations.values() {
            self.judge_shadowed(relation).await?;
        }
        for change in &transaction.changes {
            let table = self.table(&change.relation)?;
            let row = Row::read(change)?;
            if table.gone {
                let mut batch = Batch::default();
                course.conflicts += self
                    .add_decided(&mut batch, change, transaction, &mut HashMap::new())
                    .await?;
                if let Some(refused) = self.run_part(batch).await? {
                    return Ok(Some(refused));
                }
                continue;
            }
            if table.key.is_empty() {
                self.place.shadows.set(&qualified(&change.relation), true);
                let applied = self
                    .apply_to_multiset(change, &row, version, settled)
                    .await?;
                match applied {
                    Ok(met) => course.conflicts += met,
                    Err(ends) => return Ok(Some(ends)),
                }
                continue;
            }
            if table.collides() {
                self.place.shadows.set(&qualified(&change.relation), true);
            }
            let evicted = &mut course.evicted;
            let staying = self.bring_back(change, &row, version, evicted).await?;
            let changes = std::slice::from_ref(change);
            let mut rows = self.lock_rows(changes, transaction).await?;
            rows.extend(staying);
            for (_, locked) in rows
                .iter_mut()
                .filter(|(key, _)| course.seen.contains(*key))
            {
                locked.written_before();
            }
            let mut unknown = self.unknown(changes, transaction, &rows, &mut course.seen)?;
            if !unknown.is_within(settled) {
                // What else there is is waited for together with it.
                let rows = self.lock_rows(&transaction.changes, transaction).await?;
                let seen = &mut course.seen;
                unknown.add(self.unknown(&transaction.changes, transaction, &rows, seen)?);
                self.connection.simple_query("ROLLBACK").await?;
                return Ok(Some(Slow::Unsettled(unknown)));
            }
            course.seen.extend(rows.keys().cloned());
            self.displace(change, &row, version, &rows, &mut course.evicted)
                .await?;
            let mut batch = Batch::default();
            course.conflicts += self
                .add_decided(&mut batch, change, transaction, &mut rows)
                .await?;
            if let Some(refused) = self.run_part(batch).await? {
                return Ok(Some(refused));
            }
            if table.collides() {
                self.forget_kept(change, &row, version, &rows).await?;
            }
        }
        for relation in relations.values() {
            self.settle_shadow(relation, version, &mut course.evicted)
                .await?;
            let has = self.has_shadow(relation).await?;
            course.left.push((qualified(relation), has));
        }
        Ok(None)
    }

    /// Commits what was applied.
    pub(super) async fn finish_colliding(
        &mut self,
        transaction: &Transaction,
        quarantined: Option<Held>,
        course: Course,
    ) -> Result<Slow, ApplyError> {
        let version = Version {
            timestamp: transaction.timestamp,
            node: self.place.source,
        };
        let evicted = self.still_shadowed(course.evicted).await?;
        let conflicts = course.conflicts + evicted.len() as u64;
        let mut batch = Batch::default();
        self.log_evicted(&mut batch, &evicted, version)?;
        self.release(&mut batch, quarantined)?;
        self.finish(&mut batch, transaction, true)?;
        if let Some(refused) = self.run_part(batch).await? {
            return Ok(refused);
        }
        for (table, has) in course.left {
            self.place.shadows.set(&table, has);
        }
        Ok(Slow::Applied { conflicts })
    }

    /// Runs a part of the transaction; answers what ends it.
    pub(super) async fn run_part(&mut self, batch: Batch) -> Result<Option<Slow>, ApplyError> {
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
        Stamp {
            timestamp: version.timestamp_sql(),
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

    /// Brings back what the change's keys have in the shadow, where the change may overwrite it. Answers the rows that stay
    /// there, because they are newer.
    async fn bring_back(
        &mut self,
        change: &Change,
        row: &Row<'_>,
        version: Version,
        evicted: &mut Vec<Evicted>,
    ) -> Result<HashMap<Key, Locked>, ApplyError> {
        let relation = &change.relation;
        let table = self.table(relation)?;
        let mut staying = HashMap::new();
        if !table.collides() {
            return Ok(staying);
        }
        if change.operation == Operation::Truncate {
            self.truncate_shadow(relation, version).await?;
        }
        for &new in sides(change, row, &table) {
            let key = self.key_json(relation, &table, row, new).await?;
            let sql = Writer::shadow_image(relation, &key);
            let found = self.connection.simple_query(&sql).await?;
            let Some([Some(image), Some(timestamp), Some(node)]) = found.first().map(Vec::as_slice)
            else {
                continue;
            };
            let shadowed = read_version(timestamp, node);
            let shadowed = shadowed.ok_or(ApplyError::Unexpected("a version"))?;
            if shadowed > version {
                let key = (relation.id, row.key(relation, &table, new)?);
                staying.insert(key, Locked::shadowed(shadowed, image.clone()));
                continue;
            }
            self.evict(relation, &table, image, None, version, evicted)
                .await?;
            self.restore(relation, &table, &key).await?;
            evicted.retain(|moved| moved.relation.id != relation.id || moved.key != key);
        }
        Ok(staying)
    }

    /// Moves what collides with the change's new row into the shadow, unless the change loses against what stands under its
    /// own key. `rows` has what stands there.
    async fn displace(
        &mut self,
        change: &Change,
        row: &Row<'_>,
        version: Version,
        rows: &HashMap<Key, Locked>,
        evicted: &mut Vec<Evicted>,
    ) -> Result<(), ApplyError> {
        let relation = &change.relation;
        let table = self.table(relation)?;
        let (true, Some(&new)) = (table.collides(), sides(change, row, &table).last()) else {
            return Ok(());
        };
        let key = (relation.id, row.key(relation, &table, new)?);
        let loses = rows.get(&key).is_some_and(|found| found.is_newer(version));
        if loses || change.operation == Operation::Delete {
            return Ok(());
        }
        // The row that the change moves to another key does not collide with itself, unless it is newer and stays.
        let old_key = match change.operation {
            Operation::Update => Some((relation.id, row.key(relation, &table, false)?)),
            Operation::Insert | Operation::Delete | Operation::Truncate => None,
        };
        let moves = old_key
            .and_then(|key| rows.get(&key))
            .is_some_and(|old| !old.is_newer(version));
        let old = if moves {
            Some(self.key_json(relation, &table, row, false).await?)
        } else {
            None
        };
        let image = row.text_image(relation);
        self.evict(relation, &table, &image, old.as_deref(), version, evicted)
            .await
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
        except: Option<&str>,
        winner_version: Version,
        evicted: &mut Vec<Evicted>,
    ) -> Result<(), ApplyError> {
        let stamp = Self::stamp(winner_version);
        let sql = self.writer.evict(relation, table, image, except, &stamp);
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
            self.evict(relation, &table, &image, None, version, evicted)
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
            "SELECT 1 FROM tandem.shadow WHERE relation = {0} UNION ALL SELECT 1 FROM tandem.debt WHERE relation = {0} LIMIT 1",
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
            self.conflicts.push("multiple_unique_conflicts");
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
            let concerned = table.collides() || table.key.is_empty();
            if !concerned || !self.place.shadows.may_have(&name) {
                continue;
            }
            let row = Row::read(change)?;
            if table.key.is_empty() {
                self.cancel_owed(change, &row, version).await?;
                left.insert(change.relation.id, Arc::clone(&change.relation));
                continue;
            }
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
