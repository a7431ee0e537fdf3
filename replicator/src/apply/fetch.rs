//! Fetches the TOAST values that an UPDATE's stream leaves out, from the node that wrote the row.

use std::fmt::Write as _;
use std::time::Duration;

use tokio_postgres::SimpleQueryMessage;

use super::row::Row;
use super::session::{ApplyError, Place, is_poison};
use super::sql::{TargetTable, Writer, key_array, key_places, literal, qualified, quote};
use super::unique::text;
use crate::control::ControlError;
use crate::transaction::Change;
use crate::version::Version;

/// Such values may be large.
const FETCH_TIMEOUT: Duration = Duration::from_secs(60);

impl Place {
    /// Fills in what `row` lacks, from the source's row if that still has the change's version, in the table or in the
    /// shadow; answers whether it has.
    ///
    /// # Errors
    /// When the source cannot be asked now.
    pub(super) async fn fetch(
        &self,
        writer: &Writer,
        change: &Change,
        table: &TargetTable,
        row: &mut Row<'_>,
        version: Version,
    ) -> Result<bool, ApplyError> {
        let relation = &change.relation;
        let missing: Vec<usize> = (0..relation.columns.len())
            .filter(|&index| row.is_unchanged(index))
            .collect();
        let names: Vec<_> = missing
            .iter()
            .map(|&index| relation.columns.get(index).map_or("", String::as_str))
            .collect();
        let columns: Vec<_> = names
            .iter()
            .map(|name| format!("r.{}::text", quote(name)))
            .collect();
        let mut conditions = Vec::new();
        let mut values = Vec::new();
        let keys = key_places(relation, table)?.into_iter().zip(&table.key);
        for (number, (place, name)) in keys.enumerate() {
            // The row as the update left it: its new key.
            let value = row
                .new_text(place)
                .ok_or(ApplyError::Unexpected("no key to fetch by"))?;
            let text = text(&String::from_utf8_lossy(value));
            let equals = table.key_equals.get(number).map_or("=", String::as_str);
            conditions.push(format!("r.{} {equals} {text}", quote(name)));
            let column = table.columns.get(name);
            let kind = column.map_or("text", |column| &column.type_name);
            values.push(format!("{text}::{kind}"));
        }
        let at = version.timestamp_sql();
        let mut sql = format!(
            "SELECT {} FROM ONLY {} AS r WHERE {} AND {} = {at}",
            columns.join(", "),
            qualified(relation),
            conditions.join(" AND "),
            writer.written(relation, table),
        );
        if table.collides() {
            let names: Vec<_> = names.iter().map(|name| text(name)).collect();
            let columns: Vec<_> = names
                .iter()
                .map(|name| format!("h.image ->> {name}"))
                .collect();
            let _ = write!(
                sql,
                " UNION ALL SELECT {} FROM tandem.shadow h WHERE h.relation = {} AND h.key = {} AND h.written = {at} AND h.image ?& ARRAY[{}]",
                columns.join(", "),
                literal(relation),
                key_array(&values),
                names.join(", ")
            );
        }
        let control = self.source_control.borrow().clone();
        let control = control.ok_or(ApplyError::SourceAway)?;
        let query = control.client().simple_query(&sql);
        let messages = tokio::time::timeout(FETCH_TIMEOUT, query)
            .await
            .map_err(|_| ControlError::Timeout(FETCH_TIMEOUT))?
            .map_err(|error| match error.as_db_error() {
                Some(server) if is_poison(server.code().code()) => {
                    ApplyError::NotFetched(server.message().to_owned())
                }
                _ => ControlError::from(error).into(),
            })?;
        let found = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let Some(found) = found else { return Ok(false) };
        for (position, index) in missing.into_iter().enumerate() {
            row.fill(
                index,
                found.get(position).map(|text| text.as_bytes().to_vec()),
            );
        }
        Ok(true)
    }
}
