//! Prepares tables with counters on a node: no counter may be NULL. (`identity.rs` sees to it that their stream tells what
//! each change takes away.)

use crate::check::Problem;
use crate::control::{Control, ControlError};
use crate::tables::{Tables, quote};

/// Prepares every table with counters that the node has; answers what is wrong with the configuration.
///
/// # Errors
/// When the node cannot be asked, or refuses.
pub(crate) async fn prepare(
    control: &Control,
    tables: &Tables,
) -> Result<Vec<Problem>, ControlError> {
    let mut problems = Vec::new();
    for ((schema, table), policy) in &tables.policies {
        if policy.counters.is_empty() || !tables.filter.allows(schema, table) {
            continue;
        }
        let name = format!("{}.{}", quote(schema), quote(table));
        let rows = control
            .query(
                "SELECT EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary), \
                 EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND (indisunique OR indisexclusion) AND NOT indisprimary), \
                 ARRAY(SELECT n FROM unnest($2::text[]) n WHERE NOT EXISTS (SELECT FROM pg_attribute a \
                   WHERE a.attrelid = c.oid AND a.attname = n AND a.attgenerated = '' AND NOT a.attisdropped \
                   AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'numeric'::regtype) \
                   AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND a.attnum = ANY (i.indkey)))), \
                 ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = ANY ($2) AND NOT a.attnotnull) \
                 FROM pg_class c WHERE c.oid = to_regclass($1) AND c.relkind = 'r'",
                &[&name, &policy.counters],
            )
            .await?;
        let Some(row) = rows.first() else { continue };
        let has_key: bool = row.try_get(0)?;
        let collides: bool = row.try_get(1)?;
        let unfit: Vec<String> = row.try_get(2)?;
        if !has_key {
            problems.push(Problem {
                what: format!("{schema}.{table} has counters but no primary key"),
                hint: "ALTER TABLE … ADD PRIMARY KEY, or remove counters from the configuration"
                    .to_owned(),
                fatal: true,
            });
        }
        for column in &unfit {
            problems.push(Problem {
                what: format!("{column} of {schema}.{table} cannot be a counter"),
                hint: "a counter is a column outside the primary key that is smallint, integer, bigint or numeric"
                    .to_owned(),
                fatal: true,
            });
        }
        if collides {
            problems.push(Problem {
                what: format!("{schema}.{table} has counters and a unique or exclusion constraint besides its primary key"),
                hint: "the two do not go together yet: remove counters from the configuration, or move them to a table of their own"
                    .to_owned(),
                fatal: true,
            });
        }
        if !has_key || collides || !unfit.is_empty() {
            continue;
        }
        // The sum of anything and NULL is neither.
        let nullable: Vec<String> = row.try_get(3)?;
        for column in nullable {
            let column = quote(&column);
            tracing::info!(
                table = name,
                column,
                "replication: a counter is set NOT NULL"
            );
            let sql = format!("ALTER TABLE {name} ALTER COLUMN {column} SET NOT NULL");
            control.execute(&sql).await?;
        }
    }
    Ok(problems)
}
