//! Tables without a primary key: a table is a multiset of images, and each image has a count.
//!
//! An INSERT adds one, a DELETE takes one away, an UPDATE does both. What is taken away and is not there is owed
//! (`tandem.debt`), and cancels the next row with that image: sums are the same in every order. Whoever owes, or writes a
//! row that somebody may be owed, is alone at the gate; `Shadows` says for which tables that may be.

use std::sync::Arc;

use super::batch::{Batch, Step};
use super::row::{Row, Value};
use super::session::{ApplyError, Session};
use super::slow::{Slow, Unknown};
use super::sql::{TargetTable, literal, qualified, quote};
use super::unique::text;
use crate::conflict::ConflictType;
use crate::relation::Relation;
use crate::transaction::{Change, Operation};
use crate::version::Version;

/// A row as its columns' texts, in the stream's order; computed columns are left out.
struct Image<'a> {
    columns: Vec<(&'a str, Option<String>)>,
}

impl<'a> Image<'a> {
    fn new<'v>(
        relation: &'a Relation,
        table: &TargetTable,
        value: impl Fn(usize) -> Option<&'v [u8]>,
    ) -> Self {
        let columns = relation.columns.iter().enumerate();
        let columns = columns.filter(|(_, name)| !table.generated.contains(name));
        let text = |index| value(index).map(|text| String::from_utf8_lossy(text).into_owned());
        Self {
            columns: columns
                .map(|(index, name)| (name.as_str(), text(index)))
                .collect(),
        }
    }

    /// As JSON, SQL of type jsonb.
    fn json(&self) -> String {
        let image: serde_json::Map<_, _> = self
            .columns
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone().into()))
            .collect();
        format!(
            "{}::jsonb",
            text(&serde_json::Value::Object(image).to_string())
        )
    }

    /// SQL that is true for a row `r` with this image. By the types' texts (a cast to text would strip and rename some),
    /// because not every type has an operator for it, and what is equal but prints differently is another image.
    fn condition(&self) -> String {
        let equal = self.columns.iter().map(|(name, value)| {
            let name = quote(name);
            match value {
                Some(value) => format!(
                    "r.{name} IS NOT NULL AND format('%s', r.{name}) = {}",
                    text(value)
                ),
                None => format!("r.{name} IS NULL"),
            }
        });
        let conditions: Vec<_> = ["true".to_owned()].into_iter().chain(equal).collect();
        conditions.join(" AND ")
    }
}

impl Session {
    /// Carries out one change of a table without a key. Answers how many conflicts that was, or what ends the transaction.
    /// `settled`: what the target's clients were writing before the table was known to owe rows is visible.
    ///
    /// # Errors
    /// When the session has to be given up.
    pub(super) async fn apply_to_multiset(
        &mut self,
        change: &Change,
        row: &Row<'_>,
        version: Version,
        settled: &Unknown,
    ) -> Result<Result<u64, Slow>, ApplyError> {
        let relation = &change.relation;
        let table = self.table(relation)?;
        let mut conflicts = 0;
        let takes = matches!(change.operation, Operation::Update | Operation::Delete);
        if takes {
            row.check_old(change)?;
            let old = Image::new(relation, &table, |index| row.old_text(index));
            if !self.take_out(relation, &old).await? {
                let unknown = Unknown::table();
                if !unknown.is_within(settled) {
                    self.connection.simple_query("ROLLBACK").await?;
                    return Ok(Err(Slow::Unsettled(unknown)));
                }
                self.owe(relation, &old).await?;
                let kind = match change.operation {
                    Operation::Update => ConflictType::UpdateMissing,
                    _ => ConflictType::DeleteMissing,
                };
                self.log_multiset(change, row, kind, version).await?;
                conflicts += 1;
            }
        }
        let mut batch = Batch::default();
        match change.operation {
            Operation::Insert | Operation::Update => {
                let new = Image::new(relation, &table, |index| row.new_text(index));
                if self.pay(relation, &new).await? {
                    self.log_multiset(change, row, ConflictType::InsertDeleted, version)
                        .await?;
                    return Ok(Ok(conflicts + 1));
                }
                self.add_keyless(&mut batch, change, row, version, Operation::Insert)?;
            }
            // The deletes stand in the stream before it.
            Operation::Truncate if table.truncates_by_row => {}
            Operation::Truncate => {
                self.add_keyless(&mut batch, change, row, version, Operation::Truncate)?;
            }
            Operation::Delete => {}
        }
        Ok(match self.run_part(batch).await? {
            None => Ok(conflicts),
            Some(refused) => Err(refused),
        })
    }

    /// A row that the node's own client has written is cancelled if it is owed.
    ///
    /// # Errors
    /// When the session has to be given up.
    pub(super) async fn cancel_owed(
        &mut self,
        change: &Change,
        row: &Row<'_>,
        version: Version,
    ) -> Result<(), ApplyError> {
        if !matches!(change.operation, Operation::Insert | Operation::Update) {
            return Ok(());
        }
        let relation = Arc::clone(&change.relation);
        let table = self.table(&relation)?;
        let new = Image::new(&relation, &table, |index| row.new_text(index));
        if !self.pay(&relation, &new).await? {
            return Ok(());
        }
        if self.take_out(&relation, &new).await? {
            return self
                .log_multiset(change, row, ConflictType::InsertDeleted, version)
                .await;
        }
        // The client has taken it away again.
        self.owe(&relation, &new).await
    }

    /// Deletes one row with an image; answers whether there was one. A client that is changing the one that was found is
    /// waited for, and another one is looked for.
    async fn take_out(
        &mut self,
        relation: &Relation,
        image: &Image<'_>,
    ) -> Result<bool, ApplyError> {
        let name = qualified(relation);
        let sql = format!(
            "WITH v AS MATERIALIZED (SELECT r.ctid AS place FROM ONLY {name} AS r WHERE {} LIMIT 1 FOR UPDATE) \
             DELETE FROM ONLY {name} AS r USING v WHERE r.ctid = v.place RETURNING 1",
            image.condition()
        );
        Ok(!self.connection.simple_query(&sql).await?.is_empty())
    }

    /// Notes that one row with an image is owed.
    async fn owe(&mut self, relation: &Relation, image: &Image<'_>) -> Result<(), ApplyError> {
        let sql = format!(
            "INSERT INTO tandem.debt AS d (relation, digest, image, count) SELECT {}, md5(i::text), i, 1 FROM (SELECT {} AS i) x \
             ON CONFLICT (relation, digest) DO UPDATE SET count = d.count + 1",
            literal(relation),
            image.json()
        );
        self.connection.simple_query(&sql).await?;
        Ok(())
    }

    /// Takes one off what is owed of an image; answers whether any was.
    async fn pay(&mut self, relation: &Relation, image: &Image<'_>) -> Result<bool, ApplyError> {
        let owed = format!(
            "relation = {} AND digest = md5(({})::text)",
            literal(relation),
            image.json()
        );
        let sql = format!(
            "UPDATE tandem.debt SET count = count - 1 WHERE {owed} RETURNING 1; \
             DELETE FROM tandem.debt WHERE {owed} AND count = 0"
        );
        Ok(!self.connection.simple_query(&sql).await?.is_empty())
    }

    async fn log_multiset(
        &mut self,
        change: &Change,
        row: &Row<'_>,
        kind: ConflictType,
        version: Version,
    ) -> Result<(), ApplyError> {
        let relation = format!("{}.{}", change.relation.schema, change.relation.name);
        let image = row.image(&change.relation, change.operation);
        // An UPDATE of what is not there writes the new row all the same.
        let outcome = if kind == ConflictType::UpdateMissing {
            "remote"
        } else {
            "local"
        };
        let node = version.node.to_string();
        let values = [
            Value::Text(relation.as_bytes()),
            Value::Text(kind.name().as_bytes()),
            Value::Text(outcome.as_bytes()),
            Value::Null,
            Value::Null,
            Value::Null,
            Value::Text(image.as_bytes()),
            Value::Timestamp(version.timestamp),
            Value::Text(node.as_bytes()),
        ];
        let mut batch = Batch::default();
        batch.execute(self.connection.out(), "conflict", &values, Step::Work)?;
        match self.run(batch).await?.failure {
            None => Ok(()),
            Some(failure) => Err(ApplyError::Refused(failure.error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// What a node has of one image: rows, or what it owes.
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
    struct Count {
        rows: u32,
        owed: u32,
    }

    impl Count {
        fn add(&mut self) {
            if self.owed > 0 {
                self.owed -= 1;
            } else {
                self.rows += 1;
            }
        }

        fn take(&mut self) {
            if self.rows > 0 {
                self.rows -= 1;
            } else {
                self.owed += 1;
            }
        }
    }

    proptest! {
        /// In whatever order rows of one image are added and taken away, the nodes end with as many.
        #[test]
        fn every_order_gives_the_same_count(changes in proptest::collection::vec(any::<bool>(), 0..20), seed in any::<u64>()) {
            let mut shuffled = changes.clone();
            fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
            let apply = |changes: &[bool]| {
                let mut count = Count::default();
                for &adds in changes {
                    if adds { count.add() } else { count.take() }
                }
                count
            };
            let count = apply(&changes);
            prop_assert_eq!(count, apply(&shuffled));
            prop_assert!(count.rows == 0 || count.owed == 0);
        }
    }
}
