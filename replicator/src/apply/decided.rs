//! The second half of the slow path: carries out what was decided under the rows' locks.

use std::collections::HashMap;
use std::sync::Arc;

use super::batch::{Batch, Step};
use super::params::Rows;
use super::row::{Half, Row, Value};
use super::session::{ApplyError, Session};
use super::slow::{Key, Locked};
use super::sql::{Kind, StatementKey};
use crate::conflict::counter::{Place, place};
use crate::conflict::{Action, ConflictType, Decision, Found, decide};
use crate::transaction::{Change, Operation, Transaction};
use crate::version::Version;

/// Which statement carries a decision out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Write {
    Insert,
    /// The row under the old key gets the new values, its key too where it moves.
    Update,
    /// The row under the new key gets the new values.
    Replace,
    Delete,
    /// The row under the new key makes room for the one that moves there.
    Clear,
    Truncate,
    Bury,
    /// Notes that the row under the old key lacks values.
    Mark,
    /// Notes that it has them.
    Unmark,
    /// The row under the old key, which is newer, gets the contribution.
    Contribute,
    /// The same under the new key.
    ContributeNew,
    /// The delete that is remembered for the old key gets the contribution.
    BuryContribution,
    /// The same under the new key.
    BuryContributionNew,
}

impl Write {
    /// The same for a table with counters: what else a change does not do, it still contributes.
    fn counting(writes: &[Write], place: Place) -> Vec<Write> {
        let contributes = match place {
            Place::KeptRow => Some(Write::Contribute),
            Place::Delete => Some(Write::BuryContribution),
            Place::NewRow | Place::Row | Place::RowIntoDelete => None,
        };
        let rest = writes.iter().copied();
        // A remembered contribution remembers the delete too.
        let rest = rest.filter(|&write| write != Write::Bury || place != Place::Delete);
        contributes.into_iter().chain(rest).collect()
    }

    fn on_new_key(self) -> Write {
        match self {
            Write::Contribute => Write::ContributeNew,
            Write::BuryContribution => Write::BuryContributionNew,
            Write::Update => Write::Replace,
            other => other,
        }
    }
}

impl Session {
    /// Adds what one change comes to, and keeps `rows` true for the changes behind it. Answers the conflicts.
    pub(super) async fn add_decided(
        &mut self,
        batch: &mut Batch,
        change: &Change,
        transaction: &Transaction,
        rows: &mut HashMap<Key, Locked>,
    ) -> Result<u64, ApplyError> {
        let table = self.table(&change.relation)?;
        let mut row = Row::read(change)?;
        let version = Version {
            timestamp: transaction.timestamp,
            node: self.place.source,
        };
        if table.gone {
            return self.log_gone(batch, change, &row, version);
        }
        if change.operation == Operation::Truncate {
            self.add(batch, change, &row, Write::Truncate, version)?;
            let id = change.relation.id;
            for (_, locked) in rows.iter_mut().filter(|((relation, _), _)| *relation == id) {
                if !matches!(locked.found, Found::Row(Some(found)) if found > version) {
                    *locked = locked.buried(version);
                }
            }
            return Ok(0);
        }
        if table.key.is_empty() {
            self.add_keyless(batch, change, &row, version, change.operation)?;
            return Ok(0);
        }
        let counts = !table.counters.is_empty();
        row.check_counts(change, &table)?;
        if change.operation == Operation::Update && row.key_moves(&change.relation, &table) {
            if counts {
                return self
                    .add_counted_key_move(batch, change, &mut row, version, rows)
                    .await;
            }
            return self
                .add_key_move(batch, change, &mut row, version, rows)
                .await;
        }
        let by_new = change.operation == Operation::Insert;
        let key = (
            change.relation.id,
            row.key(&change.relation, &table, by_new)?,
        );
        let locked = rows
            .get(&key)
            .cloned()
            .unwrap_or_else(|| Locked::missing(None));
        let mut decision = decide(change.operation, version, locked.found);
        let fits = match decision.action {
            Action::Insert => false,
            Action::Overwrite => locked.keeps_values(self.place.source),
            Action::Delete | Action::Bury | Action::Skip => true,
        };
        let lacks = !row.unchanged().is_empty();
        let moved_on = lacks && !fits && !self.complete(change, &mut row, version).await?;
        let overwrites = decision.action == Action::Overwrite;
        if moved_on {
            decision.action = Action::Skip;
        }
        if decision.conflict == Some(ConflictType::UpdateOriginDiffers)
            && row.only_counts(&change.relation, &table)
        {
            // Nothing of it is lost.
            decision.conflict = None;
        }
        if change.operation == Operation::Update && locked.found == Found::Missing(None) {
            // Nobody knows what was contributed before: the row is taken as it is.
            row.count(Half::Arriving);
        }
        self.log_conflict(batch, change, &mut row, decision, &locked, version)
            .await?;
        let writes: &[Write] = match decision.action {
            Action::Skip if overwrites => &[Write::Mark],
            Action::Skip => &[],
            Action::Insert => &[Write::Insert],
            Action::Overwrite if locked.incomplete => &[Write::Update, Write::Unmark],
            Action::Overwrite => &[Write::Update],
            Action::Delete => &[Write::Delete],
            Action::Bury => &[Write::Bury],
        };
        let counting = Write::counting(writes, place(decision.action, locked.found));
        for &write in if counts { &counting } else { writes } {
            self.add(batch, change, &row, write, version)?;
        }
        keep_true(rows, key, &locked, decision.action, version);
        Ok(conflicts(decision))
    }

    /// Adds an INSERT into a table without a key, or its TRUNCATE. (`multiset.rs` does the rest.)
    pub(super) fn add_keyless(
        &mut self,
        batch: &mut Batch,
        change: &Change,
        row: &Row<'_>,
        version: Version,
        operation: Operation,
    ) -> Result<(), ApplyError> {
        let write = match operation {
            Operation::Insert => Write::Insert,
            Operation::Truncate => Write::Truncate,
            Operation::Update | Operation::Delete => {
                return Err(ApplyError::Unexpected("a change of a row without a key"));
            }
        };
        self.add(batch, change, row, write, version)
    }

    /// A changed primary key is a delete of the old row and an insert of the new one, with one version.
    async fn add_key_move(
        &mut self,
        batch: &mut Batch,
        change: &Change,
        row: &mut Row<'_>,
        version: Version,
        rows: &mut HashMap<Key, Locked>,
    ) -> Result<u64, ApplyError> {
        let table = self.table(&change.relation)?;
        let look = |new: bool| -> Result<(Key, Locked), ApplyError> {
            let key = (change.relation.id, row.key(&change.relation, &table, new)?);
            let locked = rows
                .get(&key)
                .cloned()
                .unwrap_or_else(|| Locked::missing(None));
            Ok((key, locked))
        };
        let (old_key, old) = look(false)?;
        let (new_key, new) = look(true)?;
        let leaves = decide(Operation::Delete, version, old.found);
        let mut arrives = decide(Operation::Insert, version, new.found);
        // Only the row that leaves can have the values that are not in the stream.
        let fits = leaves.action == Action::Delete && old.keeps_values(self.place.source);
        if !fits && arrives.action != Action::Skip && !self.complete(change, row, version).await? {
            arrives.action = Action::Skip;
        }
        self.log_conflict(batch, change, row, leaves, &old, version)
            .await?;
        self.log_conflict(batch, change, row, arrives, &new, version)
            .await?;
        let writes: &[Write] = match (leaves.action, arrives.action) {
            (Action::Delete, Action::Skip) => &[Write::Delete],
            (Action::Delete, Action::Overwrite) => &[Write::Clear, Write::Update, Write::Bury],
            (Action::Delete, _) => &[Write::Update, Write::Bury],
            (_, Action::Skip) => &[Write::Bury],
            (_, Action::Overwrite) => &[Write::Replace, Write::Bury],
            (_, _) => &[Write::Insert, Write::Bury],
        };
        for &write in writes {
            self.add(batch, change, row, write, version)?;
        }
        if !matches!(old.found, Found::Row(Some(found)) if found > version) {
            rows.insert(old_key, old.buried(version));
        }
        if arrives.action != Action::Skip {
            rows.insert(new_key, Locked::ours());
        }
        Ok(conflicts(leaves) + conflicts(arrives))
    }

    /// The same where the table has counters: one row's lose what the old row had, the other's get what the new one has.
    async fn add_counted_key_move(
        &mut self,
        batch: &mut Batch,
        change: &Change,
        row: &mut Row<'_>,
        version: Version,
        rows: &mut HashMap<Key, Locked>,
    ) -> Result<u64, ApplyError> {
        let table = self.table(&change.relation)?;
        let mut count = 0;
        for (new, operation, half) in [
            (false, Operation::Delete, Half::Leaving),
            (true, Operation::Insert, Half::Arriving),
        ] {
            let key = (change.relation.id, row.key(&change.relation, &table, new)?);
            let locked = rows
                .get(&key)
                .cloned()
                .unwrap_or_else(|| Locked::missing(None));
            row.count(half);
            let decision = decide(operation, version, locked.found);
            self.log_conflict(batch, change, row, decision, &locked, version)
                .await?;
            count += conflicts(decision);
            let writes: &[Write] = match decision.action {
                Action::Skip => &[],
                Action::Insert => &[Write::Insert],
                Action::Overwrite => &[Write::Update],
                Action::Delete => &[Write::Delete],
                Action::Bury => &[Write::Bury],
            };
            for write in Write::counting(writes, place(decision.action, locked.found)) {
                let write = if new { write.on_new_key() } else { write };
                self.add(batch, change, row, write, version)?;
            }
            keep_true(rows, key, &locked, decision.action, version);
        }
        Ok(count)
    }

    /// Fetches values that are not in the stream, so that a row can be written whole. Answers false when the row has
    /// moved on at its source: then a later change of it is on its way and decides instead.
    async fn complete(
        &mut self,
        change: &Change,
        row: &mut Row<'_>,
        version: Version,
    ) -> Result<bool, ApplyError> {
        if row.unchanged().is_empty() {
            return Ok(true);
        }
        let table = self.table(&change.relation)?;
        self.place
            .fetch(&self.writer, change, &table, row, version)
            .await
    }

    fn add(
        &mut self,
        batch: &mut Batch,
        change: &Change,
        row: &Row<'_>,
        write: Write,
        version: Version,
    ) -> Result<(), ApplyError> {
        let table = self.table(&change.relation)?;
        let relation = Arc::clone(&change.relation);
        let key_moves = change.operation == Operation::Update && row.key_moves(&relation, &table);
        let writes_values = matches!(write, Write::Update | Write::Replace);
        let key = StatementKey {
            relation: relation.id,
            kind: match write {
                Write::Insert => Kind::Decided(Operation::Insert, false),
                Write::Update => Kind::Decided(Operation::Update, key_moves),
                Write::Replace => Kind::Replace,
                Write::Delete => Kind::Decided(Operation::Delete, false),
                Write::Clear => Kind::Decided(Operation::Delete, true),
                Write::Truncate => Kind::Decided(Operation::Truncate, false),
                Write::Bury => Kind::Bury,
                Write::Mark => Kind::Mark,
                Write::Unmark => Kind::Unmark,
                Write::Contribute => Kind::Contribute,
                Write::ContributeNew => Kind::ContributeNew,
                Write::BuryContribution => Kind::BuryContribution,
                Write::BuryContributionNew => Kind::BuryContributionNew,
            },
            unchanged: if writes_values {
                row.unchanged()
            } else {
                Vec::new()
            },
        };
        let writer = &self.writer;
        let prepared = batch.prepare(self.connection.out(), &mut self.statements, &key, || {
            let unchanged = |index| row.is_unchanged(index);
            Ok::<_, ApplyError>(match write {
                Write::Insert => writer.insert(&relation, &table, false, Rows::One)?,
                Write::Update => {
                    writer.update(&relation, &table, unchanged, key_moves, false, Rows::One)?
                }
                Write::Replace => writer
                    .update(&relation, &table, unchanged, false, false, Rows::One)?
                    .by_new_key(),
                Write::Delete => writer.delete(&relation, &table, false, false, Rows::One)?,
                Write::Clear => writer
                    .delete(&relation, &table, false, true, Rows::One)?
                    .by_new_key(),
                Write::Truncate => writer.truncate(&relation, &table, false),
                Write::Bury => writer.bury(&relation, &table)?,
                Write::Mark => writer.mark(&relation, &table, true)?,
                Write::Unmark => writer.mark(&relation, &table, false)?,
                Write::Contribute => writer.merge(&relation, &table, true)?,
                Write::ContributeNew => writer.merge(&relation, &table, true)?.by_new_key(),
                Write::BuryContribution => writer.bury_contribution(&relation, &table)?,
                Write::BuryContributionNew => {
                    writer.bury_contribution(&relation, &table)?.by_new_key()
                }
            })
        })?;
        let mut values = Vec::new();
        row.values(
            &prepared.statement,
            &relation,
            version.timestamp,
            &mut values,
        )?;
        batch.execute(self.connection.out(), &prepared.name, &values, Step::Work)?;
        Ok(())
    }

    /// Adds the line of the conflict log, if the decision was about a conflict. What lost against the target's own write is
    /// left for a layered resolver to settle.
    async fn log_conflict(
        &mut self,
        batch: &mut Batch,
        change: &Change,
        row: &mut Row<'_>,
        decision: Decision,
        local: &Locked,
        remote: Version,
    ) -> Result<(), ApplyError> {
        let Some(conflict) = decision.conflict else {
            return Ok(());
        };
        let relation = format!("{}.{}", change.relation.schema, change.relation.name);
        let outcome = match decision.action {
            Action::Skip | Action::Bury => "local",
            Action::Insert | Action::Overwrite | Action::Delete => "remote",
        };
        // A changed key is a delete of the old one first: that line names the row that was to go.
        let operation = if conflict.is_of_a_delete() {
            Operation::Delete
        } else {
            change.operation
        };
        let table = self.table(&change.relation)?;
        let (Found::Row(standing) | Found::Missing(standing)) = local.found;
        let contested = table.resolver.is_layered()
            && outcome == "local"
            && conflict != ConflictType::DeleteMissing
            && standing.is_some_and(|standing| standing.node == self.place.target)
            // What cannot be written whole has moved on at its source: a later change of it is on its way.
            && (operation == Operation::Delete || self.complete(change, row, remote).await?);
        let image = row.image(&change.relation, operation);
        let remote_node = remote.node.to_string();
        let local_node = standing.map(|version| version.node.to_string());
        let values = [
            Value::Text(relation.as_bytes()),
            Value::Text(conflict.name().as_bytes()),
            Value::Text(if contested {
                table.resolver.name().as_bytes()
            } else {
                outcome.as_bytes()
            }),
            text(local.image.as_deref()),
            standing.map_or(Value::Null, |version| Value::Timestamp(version.timestamp)),
            text(local_node.as_deref()),
            Value::Text(image.as_bytes()),
            Value::Timestamp(remote.timestamp),
            Value::Text(remote_node.as_bytes()),
        ];
        let statement = if contested { "contest" } else { "conflict" };
        batch.execute(self.connection.out(), statement, &values, Step::Work)?;
        self.conflicts.push(conflict.name());
        Ok(())
    }
}

impl Session {
    /// Adds the line of the conflict log for a write to a table that was dropped meanwhile.
    fn log_gone(
        &mut self,
        batch: &mut Batch,
        change: &Change,
        row: &Row<'_>,
        remote: Version,
    ) -> Result<u64, ApplyError> {
        if change.operation == Operation::Truncate {
            return Ok(0);
        }
        let relation = format!("{}.{}", change.relation.schema, change.relation.name);
        let image = row.image(&change.relation, change.operation);
        let node = remote.node.to_string();
        let values = [
            Value::Text(relation.as_bytes()),
            Value::Text(TABLE_DROPPED.as_bytes()),
            Value::Text(b"local"),
            Value::Null,
            Value::Null,
            Value::Null,
            Value::Text(image.as_bytes()),
            Value::Timestamp(remote.timestamp),
            Value::Text(node.as_bytes()),
        ];
        batch.execute(self.connection.out(), "conflict", &values, Step::Work)?;
        self.conflicts.push(TABLE_DROPPED);
        Ok(1)
    }
}

/// The type of a conflict with a DROP TABLE, as logs and tables have it.
const TABLE_DROPPED: &str = "table_dropped";

/// Notes what stands under a key after an action.
fn keep_true(
    rows: &mut HashMap<Key, Locked>,
    key: Key,
    locked: &Locked,
    action: Action,
    version: Version,
) {
    match (action, locked.found) {
        (Action::Insert | Action::Overwrite, _) => {
            rows.insert(key, Locked::ours());
        }
        (Action::Delete, _) | (Action::Bury, Found::Missing(_)) => {
            rows.insert(key, locked.buried(version));
        }
        (Action::Bury | Action::Skip, _) => {}
    }
}

fn conflicts(decision: Decision) -> u64 {
    u64::from(decision.conflict.is_some())
}

fn text(text: Option<&str>) -> Value<'_> {
    text.map_or(Value::Null, |text| Value::Text(text.as_bytes()))
}
