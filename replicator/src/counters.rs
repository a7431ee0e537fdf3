//! Prepares tables with counters on a node: their stream has to carry whole old rows, and a TRUNCATE has to say what it
//! takes from each counter.

use crate::check::Problem;
use crate::control::{Control, ControlError};
use crate::tables::{Tables, quote};

/// Without the table's own triggers and foreign keys, which a TRUNCATE does not ask either. Runs as its owner: who may truncate a table need not have the right to delete from it.
const FUNCTION: &str = "CREATE OR REPLACE FUNCTION tandem.truncate_as_delete() RETURNS trigger \
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET session_replication_role = replica AS \
    $$ BEGIN EXECUTE format('DELETE FROM ONLY %I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME); RETURN NULL; END $$";
/// Its name on each table.
const TRIGGER: &str = "tandem_truncate";

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
                "SELECT c.relreplident::text, EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgname = $2), \
                 EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary), \
                 EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND (indisunique OR indisexclusion) AND NOT indisprimary), \
                 ARRAY(SELECT n FROM unnest($3::text[]) n WHERE NOT EXISTS (SELECT FROM pg_attribute a \
                   WHERE a.attrelid = c.oid AND a.attname = n AND a.attgenerated = '' AND NOT a.attisdropped \
                   AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'numeric'::regtype) \
                   AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND a.attnum = ANY (i.indkey)))), \
                 ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = ANY ($3) AND NOT a.attnotnull) \
                 FROM pg_class c WHERE c.oid = to_regclass($1) AND c.relkind = 'r'",
                &[&name, &TRIGGER, &policy.counters],
            )
            .await?;
        let Some(row) = rows.first() else { continue };
        let identity: String = row.try_get(0)?;
        let has_trigger: bool = row.try_get(1)?;
        let has_key: bool = row.try_get(2)?;
        let collides: bool = row.try_get(3)?;
        let unfit: Vec<String> = row.try_get(4)?;
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
        let nullable: Vec<String> = row.try_get(5)?;
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
        if identity != "f" {
            control
                .execute(&format!("ALTER TABLE {name} REPLICA IDENTITY FULL"))
                .await?;
        }
        if !has_trigger {
            control
                .execute(&format!(
                    "{FUNCTION}; CREATE OR REPLACE TRIGGER {TRIGGER} BEFORE TRUNCATE ON {name} \
                     FOR EACH STATEMENT EXECUTE FUNCTION tandem.truncate_as_delete()"
                ))
                .await?;
        }
    }
    Ok(problems)
}
