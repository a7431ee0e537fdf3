//! Replica identities: what a node's stream has to tell of old rows, so that a change finds its row on the other nodes.
//!
//! A table with a primary key needs that key, one with counters or without a key the whole old row, of a TRUNCATE too. One
//! with a layered resolver needs it because its losing writes may be written again, with the large values that they left
//! alone. What a table has more of may be somebody else's wish and stays.

use crate::check::Problem;
use crate::control::{Control, ControlError};
use crate::tables::{Tables, quote};

/// SQLSTATE insufficient_privilege.
const NOT_ALLOWED: &str = "42501";
/// SQLSTATE lock_not_available.
const LOCKED: &str = "55P03";
/// A table is locked for a moment to be changed; whoever wants it meanwhile waits behind us for so long at most.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '1s'";

/// Without the table's own triggers and foreign keys, which a TRUNCATE does not ask either. Runs as its owner: who may
/// truncate a table need not have the right to delete from it.
pub(crate) const TRUNCATE_FUNCTION: &str = "CREATE OR REPLACE FUNCTION tandem.truncate_as_delete() RETURNS trigger \
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET session_replication_role = replica AS \
    $$ BEGIN EXECUTE format('DELETE FROM ONLY %I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME); RETURN NULL; END $$";
/// Its name on each table.
pub(crate) const TRUNCATE_TRIGGER: &str = "tandem_truncate";

/// A table, as far as its identity is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    schema: String,
    name: String,
    key: Key,
    /// `pg_class.relreplident`.
    identity: String,
    /// Of REPLICA IDENTITY USING INDEX: whether the index has all columns of the key.
    index_has_key: bool,
    counts: bool,
    /// Its resolver is a layered one.
    layered: bool,
    /// It has virtual generated columns: with REPLICA IDENTITY FULL PostgreSQL refuses every UPDATE and DELETE of it
    /// (src/backend/commands/publicationcmds.c, `pub_contains_invalid_column`).
    is_virtual: bool,
    /// A TRUNCATE deletes its rows one by one first.
    truncates_by_row: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    None,
    /// It is no replica identity, and ON CONFLICT does not take it.
    Deferrable,
    Sound,
}

/// What has to be done about a table.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Sound,
    /// Set this identity.
    Set(&'static str),
    Unfit(Problem),
}

impl Facts {
    fn qualified(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }

    /// Whether what each change takes away counts.
    fn adds_up(&self) -> bool {
        self.counts || self.key == Key::None
    }

    fn plain(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

fn judge(table: &Facts) -> Verdict {
    let unfit = |what: String, hint: &str, fatal| {
        Verdict::Unfit(Problem {
            what,
            hint: hint.to_owned(),
            fatal,
        })
    };
    let wants_all = table.adds_up() || table.layered;
    match (table.key, table.identity.as_str()) {
        (Key::Deferrable, _) => unfit(
            format!(
                "the primary key of {} is deferrable, so that nothing can be told apart by it",
                table.plain()
            ),
            "ALTER TABLE … DROP CONSTRAINT …, ADD PRIMARY KEY (…), or exclude the table",
            true,
        ),
        _ if wants_all && table.is_virtual => unfit(
            format!(
                "{} needs REPLICA IDENTITY FULL, with which PostgreSQL refuses UPDATE and DELETE of tables with virtual generated columns",
                table.plain()
            ),
            "make the columns STORED; where the table has neither counters nor a resolver, give it a primary key instead",
            table.key != Key::None,
        ),
        (_, "f") => Verdict::Sound,
        _ if wants_all => Verdict::Set("FULL"),
        (_, "n") => Verdict::Set("DEFAULT"),
        (_, "i") if table.index_has_key => Verdict::Sound,
        (_, "i") if table.is_virtual => Verdict::Set("DEFAULT"),
        (_, "i") => Verdict::Set("FULL"),
        _ => Verdict::Sound,
    }
}

/// What is wrong with the tables of a node, and what Tandem will set on them.
///
/// # Errors
/// When the node cannot be asked.
pub(crate) async fn problems(
    control: &Control,
    tables: &Tables,
) -> Result<Vec<Problem>, ControlError> {
    let mut problems = Vec::new();
    for table in read(control, tables).await? {
        match judge(&table) {
            Verdict::Sound => {}
            Verdict::Set(identity) => problems.push(Problem {
                what: format!(
                    "{} has not REPLICA IDENTITY {identity}; Tandem will set it",
                    table.plain()
                ),
                hint: alter(&table, identity),
                fatal: false,
            }),
            Verdict::Unfit(problem) => problems.push(problem),
        }
    }
    Ok(problems)
}

fn alter(table: &Facts, identity: &str) -> String {
    format!(
        "ALTER TABLE {} REPLICA IDENTITY {identity}",
        table.qualified()
    )
}

/// Sets the identities that are missing on a node; answers what keeps it from being a member.
///
/// # Errors
/// When the node cannot be asked, or does not do it now.
pub(crate) async fn prepare(
    control: &Control,
    tables: &Tables,
) -> Result<Vec<Problem>, ControlError> {
    let mut problems = Vec::new();
    for table in read(control, tables).await? {
        match judge(&table) {
            Verdict::Sound => {}
            Verdict::Set(identity) => {
                let sql = alter(&table, identity);
                tracing::info!(
                    table = table.plain(),
                    identity,
                    "replication: a replica identity is set"
                );
                let what = format!("{} has not REPLICA IDENTITY {identity}", table.plain());
                problems.extend(try_to(control, &table, &sql, what).await?);
            }
            Verdict::Unfit(problem) => {
                problems.push(problem);
                continue;
            }
        }
        if table.adds_up() && !table.truncates_by_row {
            let name = table.qualified();
            let sql = format!(
                "{TRUNCATE_FUNCTION}; CREATE OR REPLACE TRIGGER {TRUNCATE_TRIGGER} BEFORE TRUNCATE ON {name} \
                 FOR EACH STATEMENT EXECUTE FUNCTION tandem.truncate_as_delete()"
            );
            let what = format!("{} has no trigger for TRUNCATE", table.plain());
            problems.extend(try_to(control, &table, &sql, what).await?);
        }
    }
    problems.extend(publish_generated(control).await?);
    problems.retain(|problem| problem.fatal);
    Ok(problems)
}

/// Runs a statement; what Tandem's role may not do is a problem. Of a table without a key that is not fatal, because
/// PostgreSQL refuses what could not be told, and it is tried again later where somebody holds the table.
async fn try_to(
    control: &Control,
    table: &Facts,
    sql: &str,
    what: String,
) -> Result<Option<Problem>, ControlError> {
    let fatal = table.key != Key::None;
    match run(control, sql, what).await {
        Err(error) if !fatal && error.code() == Some(LOCKED) => Ok(None),
        ran => Ok(ran?.map(|problem| Problem { fatal, ..problem })),
    }
}

async fn run(control: &Control, sql: &str, what: String) -> Result<Option<Problem>, ControlError> {
    match control.execute(&format!("{LOCK_TIMEOUT}; {sql}")).await {
        Ok(()) => Ok(None),
        Err(error) if error.code() == Some(NOT_ALLOWED) => Ok(Some(Problem {
            what,
            hint: format!("as the owner or a superuser, {sql}"),
            fatal: true,
        })),
        Err(error) => Err(error),
    }
}

/// From PostgreSQL 18 on an identity may only have columns that are published, and generated columns are not unless asked
/// for: UPDATE and DELETE are refused. Up to 17 there is no such rule.
async fn publish_generated(control: &Control) -> Result<Option<Problem>, ControlError> {
    let sql = "SELECT current_setting('server_version_num')::int4 >= 180000 AND EXISTS (SELECT FROM pg_class c \
         JOIN pg_attribute a ON a.attrelid = c.oid WHERE c.relreplident = 'f' AND c.relkind = 'r' \
         AND a.attgenerated = 's' AND NOT a.attisdropped)";
    let rows = control.query(sql, &[]).await?;
    let needed = rows
        .first()
        .map(|row| row.try_get::<_, bool>(0))
        .transpose()?;
    if needed != Some(true) {
        return Ok(None);
    }
    let sql =
        "SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = 'tandem' AND pubgencols <> 's')";
    let rows = control.query(sql, &[]).await?;
    let missing = rows
        .first()
        .map(|row| row.try_get::<_, bool>(0))
        .transpose()?;
    if missing != Some(true) {
        return Ok(None);
    }
    let sql = "ALTER PUBLICATION tandem SET (publish_generated_columns = stored)";
    let what = "stored generated columns of a table with REPLICA IDENTITY FULL are not published";
    run(control, sql, what.to_owned()).await
}

async fn read(control: &Control, tables: &Tables) -> Result<Vec<Facts>, ControlError> {
    let sql = "SELECT n.nspname::text, c.relname::text, p.indimmediate, c.relreplident::text, \
         coalesce((SELECT p.indkey::int2[] <@ i.indkey::int2[] FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident), false), \
         EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated = 'v' AND NOT a.attisdropped), \
         EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = $1) \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_index p ON p.indrelid = c.oid AND p.indisprimary \
         WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
         AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') \
         ORDER BY 1, 2";
    let mut found = Vec::new();
    for row in control.query(sql, &[&TRUNCATE_TRIGGER]).await? {
        let (schema, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        if !tables.filter.allows(&schema, &name) {
            continue;
        }
        let policy = tables.policy(&schema, &name);
        found.push(Facts {
            counts: !policy.counters.is_empty(),
            layered: policy.resolver.is_layered(),
            key: match row.try_get(2)? {
                None => Key::None,
                Some(false) => Key::Deferrable,
                Some(true) => Key::Sound,
            },
            identity: row.try_get(3)?,
            index_has_key: row.try_get(4)?,
            is_virtual: row.try_get(5)?,
            truncates_by_row: row.try_get(6)?,
            schema,
            name,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(key: Key, identity: &str) -> Facts {
        Facts {
            schema: "public".to_owned(),
            name: "t".to_owned(),
            key,
            identity: identity.to_owned(),
            index_has_key: false,
            counts: false,
            layered: false,
            is_virtual: false,
            truncates_by_row: false,
        }
    }

    #[test]
    fn a_table_gets_what_its_rows_are_told_apart_by_and_keeps_more() {
        for (key, identity, wanted) in [
            (Key::Sound, "d", Verdict::Sound),
            (Key::Sound, "f", Verdict::Sound),
            (Key::Sound, "n", Verdict::Set("DEFAULT")),
            (Key::Sound, "i", Verdict::Set("FULL")),
            (Key::None, "d", Verdict::Set("FULL")),
            (Key::None, "i", Verdict::Set("FULL")),
            (Key::None, "f", Verdict::Sound),
        ] {
            assert_eq!(judge(&facts(key, identity)), wanted, "{key:?} {identity}");
        }
        let covering = Facts {
            index_has_key: true,
            ..facts(Key::Sound, "i")
        };
        assert_eq!(judge(&covering), Verdict::Sound);
        for (counts, layered) in [(true, false), (false, true)] {
            let table = Facts {
                counts,
                layered,
                ..facts(Key::Sound, "d")
            };
            assert_eq!(judge(&table), Verdict::Set("FULL"));
        }
    }

    #[test]
    fn what_has_no_sound_identity_is_refused_and_what_only_inserts_is_named() {
        let fatal = |facts: &Facts| match judge(facts) {
            Verdict::Unfit(problem) => Some(problem.fatal),
            _ => None,
        };
        assert_eq!(fatal(&facts(Key::Deferrable, "f")), Some(true));
        let counted = Facts {
            counts: true,
            is_virtual: true,
            ..facts(Key::Sound, "d")
        };
        assert_eq!(fatal(&counted), Some(true));
        let keyless = Facts {
            is_virtual: true,
            ..facts(Key::None, "d")
        };
        assert_eq!(fatal(&keyless), Some(false));
    }
}
