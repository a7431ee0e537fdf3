//! Gives a newer version to what a node wrote while its clock was behind what it had said before: otherwise what it had
//! overwritten would still count as newer on all others.

use tandem_wire::connect::ConnectOptions;

use crate::control::{Control, ControlError};
use crate::tables::{TableFilter, quote};
use crate::version::PgTimestamp;

/// Every table with a primary key, and a column that an UPDATE may name. The others replicate inserts only, which nothing
/// overwrites.
const TABLES: &str = "SELECT n.nspname::text, c.relname::text, (SELECT a.attname::text FROM pg_attribute a \
     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND a.attidentity <> 'a' \
     ORDER BY a.attnum = ANY (i.indkey::int2[]), a.attnum LIMIT 1) \
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary \
     WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', 'information_schema')";

/// Updates to themselves all rows that transactions of the node's own have written since `xid`, with a timestamp up to
/// `until`. Its clock must be past that. Answers how many.
///
/// # Errors
/// When a table cannot be written now; what was done stays done, and doing it again is harmless.
pub(super) async fn rows(
    connect: &ConnectOptions,
    application_name: &str,
    filter: &TableFilter,
    xid: i64,
    until: PgTimestamp,
) -> Result<u64, ControlError> {
    let control = Control::connect(connect, application_name).await?;
    let client = control.client();
    // Triggers have fired when the rows were written.
    client
        .batch_execute("SET session_replication_role = replica; SET lock_timeout = '5s'")
        .await?;
    let mut touched = 0;
    for row in client.query(TABLES, &[]).await? {
        let (schema, table): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        if !filter.allows(&schema, &table) {
            continue;
        }
        let Some(column) = row.try_get::<_, Option<String>>(2)? else {
            tracing::error!(
                schema,
                table,
                "a table of identity columns only: what was written while the clock was set back may differ on other nodes; \
                 see tandem diff"
            );
            continue;
        };
        let (name, column) = (
            format!("{}.{}", quote(&schema), quote(&table)),
            quote(&column),
        );
        // Without an origin, so that it travels like any other write of this node.
        let sql = format!(
            "UPDATE ONLY {name} AS r SET {column} = r.{column} WHERE age(r.xmin) <= age($1::int8::text::xid) \
             AND (SELECT v.roident = 0 AND v.timestamp <= timestamptz '2000-01-01 00:00:00+00' \
               + make_interval(secs => $2::int8 / 1000000) + ($2::int8 % 1000000) * interval '1 microsecond' \
               FROM pg_xact_commit_timestamp_origin(r.xmin) v)"
        );
        let xid = xid.rem_euclid(1 << 32);
        touched += client.execute(&sql, &[&xid, &until]).await?;
    }
    Ok(touched)
}
