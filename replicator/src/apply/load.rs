//! What a target's catalog says of a table.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tandem_wire::connection::Connection;

use super::copy::LEAVES_OUT;
use super::params::TargetColumn;
use super::session::ApplyError;
use super::sql::{TargetTable, literal};
use super::unique::Uniques;
use crate::control::{Control, ControlError};
use crate::identity::TRUNCATE_TRIGGER;
use crate::relation::Relation;
use crate::tables::{
    FIXED_COLUMNS, KEY_COLUMNS, KEY_EQUALS, KEY_IS_PLAIN, TablePolicy, WRITABLE_NAMES,
    WRITABLE_OIDS, WRITABLE_READ, WRITABLE_TYPES,
};

/// Who is asked. What a transaction has made of a table only its own session sees before it is committed.
pub(super) enum Asked<'a> {
    Control(&'a Control),
    Session(&'a mut Connection),
}

impl Asked<'_> {
    /// Runs a query whose rows are one JSON text each.
    ///
    /// # Errors
    /// When the target cannot be asked, or the texts are something else.
    pub(super) async fn ask<T: DeserializeOwned>(
        &mut self,
        sql: &str,
    ) -> Result<Vec<T>, ApplyError> {
        let texts: Vec<Option<String>> = match self {
            Self::Control(control) => {
                let rows = control.query(sql, &[]).await?;
                let texts = rows.iter().map(|row| row.try_get(0));
                texts
                    .collect::<Result<_, _>>()
                    .map_err(ControlError::from)?
            }
            Self::Session(connection) => {
                let rows = connection.simple_query(sql).await?;
                let texts = rows.into_iter().map(|row| row.into_iter().next().flatten());
                texts.collect()
            }
        };
        let texts = texts.iter().flatten();
        texts
            .map(|text| serde_json::from_str(text))
            .collect::<Result<_, _>>()
            .map_err(|_| ApplyError::Unexpected("a table's catalog"))
    }
}

/// A row of the query below.
#[derive(Deserialize)]
struct Found {
    key: Vec<String>,
    names: Vec<String>,
    oids: Vec<u32>,
    types: Vec<String>,
    read: Vec<bool>,
    deferrable: bool,
    key_equals: Vec<String>,
    fixed: Vec<String>,
    left_out: Vec<String>,
    truncates_by_row: bool,
    key_is_plain: bool,
    takes_copy: bool,
}

/// Reads a table from the catalog of its node; one that was dropped there is [gone](TargetTable::gone).
///
/// # Errors
/// When it does not exist, and was not dropped, or the node cannot be asked.
pub(super) async fn load_table(
    mut asked: Asked<'_>,
    relation: &Relation,
    policy: &TablePolicy,
) -> Result<TargetTable, ApplyError> {
    let name = literal(relation);
    let sql = format!(
        "SELECT json_build_object('key', {KEY_COLUMNS}, 'names', {WRITABLE_NAMES}, 'oids', {WRITABLE_OIDS}::bigint[], \
         'types', {WRITABLE_TYPES}, 'read', {WRITABLE_READ}, \
         'deferrable', EXISTS (SELECT FROM pg_constraint WHERE conrelid = c.oid AND condeferrable), \
         'key_equals', {KEY_EQUALS}, 'fixed', {FIXED_COLUMNS}, \
         'left_out', ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated <> '' \
           UNION ALL SELECT d.column_name FROM tandem.dropped d WHERE d.relation = {name} AND d.column_name <> '' \
             AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = d.column_name)), \
         'truncates_by_row', EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = '{TRUNCATE_TRIGGER}'), \
         'key_is_plain', {KEY_IS_PLAIN}, 'takes_copy', c.relkind = 'r' AND NOT {})::text \
         FROM pg_class c WHERE c.oid = to_regclass({name}) AND c.relkind IN ('r', 'p')",
        LEAVES_OUT.replace("{}", "c.oid")
    );
    let found: Option<Found> = asked.ask(&sql).await?.pop();
    let Some(found) = found else {
        let sql = format!(
            "SELECT 'true' FROM tandem.dropped WHERE relation = {name} AND column_name = ''"
        );
        return if asked.ask::<bool>(&sql).await?.is_empty() {
            let name = format!("{}.{}", relation.schema, relation.name);
            Err(ApplyError::NoTable(name))
        } else {
            Ok(TargetTable {
                gone: true,
                ..TargetTable::default()
            })
        };
    };
    let uniques = Uniques::load(&mut asked, relation).await?;
    let types = found.oids.into_iter().zip(found.types).zip(found.read);
    let types = types.map(|((type_oid, type_name), reads_text)| TargetColumn {
        type_oid,
        type_name,
        reads_text,
    });
    Ok(TargetTable {
        gone: false,
        // Without a key there is no row that could be the sum of anything.
        counters: if found.key.is_empty() {
            Vec::new()
        } else {
            policy.counters.clone()
        },
        key: found.key,
        columns: found.names.into_iter().zip(types).collect(),
        key_equals: found.key_equals,
        key_is_plain: found.key_is_plain,
        resolver: policy.resolver.clone(),
        uniques,
        fixed: found.fixed,
        generated: found.left_out,
        deferrable: found.deferrable,
        truncates_by_row: found.truncates_by_row,
        takes_copy: found.takes_copy,
    })
}
