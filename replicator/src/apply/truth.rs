//! What rows of a run really are. They carry the version of the run's newest transaction, and `tandem.run` says which is
//! theirs. Before anybody decides about such a row whose version an older change may meet, it is noted in `tandem.kept`.

use std::collections::HashMap;

use super::row::Row;
use super::session::{ApplyError, Session};
use super::sql::{key_expressions, literal, qualified, quote};
use super::traits::keys_of;
use crate::relation::Relation;
use crate::runs::{self, Runs, Versions};
use crate::transaction::{Operation, Transaction};
use crate::version::{PgTimestamp, Version};

/// Rows of one table, their keys as [`Versions`] has them.
type Rows<'a> = Vec<(&'a [u8], PgTimestamp)>;

impl Session {
    /// Notes the versions of the rows that a transaction changes and that look newer than it because they were applied in
    /// a run. The caller is alone at the gate.
    ///
    /// # Errors
    /// When the target cannot be asked.
    pub(super) async fn note_true_versions(
        &mut self,
        transaction: &Transaction,
        runs: &Runs,
    ) -> Result<(), ApplyError> {
        let mut relations: HashMap<String, &Relation> = HashMap::new();
        let mut rows = Vec::new();
        let missing = self.load_known(&transaction.changes).await?;
        for change in &transaction.changes {
            // The transaction makes it: no run has rows of it.
            if missing.contains_key(&change.relation.id) {
                continue;
            }
            let table = self.table(&change.relation)?;
            if table.key.is_empty() {
                continue;
            }
            let name = qualified(&change.relation);
            if change.operation == Operation::Truncate {
                rows.push((name.clone(), None));
            } else {
                for key in keys_of(&Row::read(change)?, &change.relation, &table)? {
                    rows.push((name.clone(), Some(key)));
                }
            }
            relations.insert(name, &change.relation);
        }
        let version = Version {
            timestamp: transaction.timestamp,
            node: self.place.source,
        };
        for (id, stamp) in runs.suspects(version, &rows) {
            let Some(bytes) = runs::read(&self.place.control, id).await? else {
                continue;
            };
            let mut found: HashMap<&str, Rows<'_>> = HashMap::new();
            let wanted = |table: &str, key: &[u8]| {
                rows.iter().any(|(name, of)| {
                    name == table && of.as_ref().is_none_or(|of| of.as_slice() == key)
                })
            };
            Versions::read(&bytes, |table, key, at| {
                if wanted(table, key) {
                    found.entry(table).or_default().push((key, at));
                }
            })
            .map_err(|_| ApplyError::Unexpected("tandem.run"))?;
            for (table, rows) in found {
                if let Some(relation) = relations.get(table) {
                    self.note_rows(relation, stamp, &rows).await?;
                }
            }
        }
        Ok(())
    }

    /// Notes the versions of rows that still are as the run left them.
    async fn note_rows(
        &self,
        relation: &Relation,
        stamp: Version,
        rows: &Rows<'_>,
    ) -> Result<(), ApplyError> {
        let table = self.table(relation)?;
        let mut columns: Vec<Vec<String>> = vec![Vec::new(); table.key.len()];
        let mut written = Vec::new();
        for (key, at) in rows {
            let values =
                runs::key_columns(key).map_err(|_| ApplyError::Unexpected("tandem.run"))?;
            for (column, value) in columns.iter_mut().zip(values) {
                column.push(String::from_utf8_lossy(value).into_owned());
            }
            written.push(*at);
        }
        let arrays: Vec<_> = (1..=columns.len())
            .map(|number| format!("${number}::text[]"))
            .collect();
        let names: Vec<_> = (1..=columns.len())
            .map(|number| format!("k{number}"))
            .collect();
        let equal = table.key.iter().enumerate().map(|(index, name)| {
            let equals = table.key_equals.get(index).map_or("=", String::as_str);
            let kind = table
                .columns
                .get(name)
                .map_or("text", |column| &column.type_name);
            format!("r.{} {equals} u.k{}::{kind}", quote(name), index + 1)
        });
        let sql = format!(
            "INSERT INTO tandem.kept AS k (relation, key, writer, written, node) SELECT {}, {}, r.xmin, {}, {node} \
             FROM unnest({}, ${}::int8[]) AS u({}, written) JOIN ONLY {} AS r ON {} \
             WHERE pg_xact_commit_timestamp(r.xmin) = {} AND {} = {node} \
             ON CONFLICT (relation, key) DO UPDATE SET writer = excluded.writer, written = excluded.written, \
             node = excluded.node WHERE k.writer <> excluded.writer",
            literal(relation),
            key_expressions(&table),
            timestamp("u.written"),
            arrays.join(", "),
            columns.len() + 1,
            names.join(", "),
            qualified(relation),
            equal.collect::<Vec<_>>().join(" AND "),
            timestamp(&format!("({}::int8)", stamp.timestamp)),
            self.writer.plainly_written_by(),
            node = stamp.node,
        );
        let mut params: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = Vec::new();
        for column in &columns {
            params.push(column);
        }
        params.push(&written);
        let control = &self.place.control;
        control.query(&sql, &params).await?;
        Ok(())
    }
}

/// SQL of microseconds since 2000-01-01 as a timestamptz, exactly.
fn timestamp(microseconds: &str) -> String {
    format!(
        "timestamptz '2000-01-01 00:00:00+00' + make_interval(secs => {microseconds} / 1000000) \
         + ({microseconds} % 1000000) * interval '1 microsecond'"
    )
}
