//! What a node must offer before it can be a member.

use serde::Serialize;

use crate::control::{Control, ControlError};
use crate::ddl;
use crate::tables::TableFilter;

/// Something on a node that an administrator has to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What is wrong.
    pub what: String,
    /// How to mend it.
    pub hint: String,
    /// Whether Tandem can run with it.
    pub fatal: bool,
}

impl Problem {
    fn fatal(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            hint: hint.into(),
            fatal: true,
        }
    }
}

/// A node whose DDL is not in its stream, and how to mend that.
pub(crate) const NO_DDL: (&str, &str) = (
    "the node does not tell of its DDL, because only a superuser can make event triggers",
    "make Tandem's role a superuser once, while Tandem starts; until then DDL has to be given on every node",
);

/// The oldest and the first not supported `server_version_num`.
const VERSIONS: std::ops::Range<i32> = 150_000..190_000;

/// Settings, as the server has them, that [`judge`] looks at.
#[derive(Debug, Clone)]
struct Facts {
    version: i32,
    wal_level: String,
    track_commit_timestamp: String,
    slots_max: i64,
    walsenders_max: i64,
    origins_max: i64,
    encoding: String,
    in_recovery: bool,
    superuser: bool,
    replication: bool,
    origin_functions: bool,
    replica_role: bool,
    publication: bool,
    tells_ddl: bool,
    without_key: Vec<String>,
}

/// Reads the node's settings and says what keeps it from being a member of a cluster of `nodes` nodes.
///
/// # Errors
/// When the node cannot be asked.
pub(crate) async fn check(
    control: &Control,
    nodes: usize,
    filter: &TableFilter,
) -> Result<Vec<Problem>, ControlError> {
    let mut facts = read(control).await?;
    facts.without_key.retain(|name| {
        let (schema, table) = name.split_once('.').unwrap_or_default();
        filter.allows(schema, table)
    });
    Ok(judge(&facts, nodes))
}

async fn read(control: &Control) -> Result<Facts, ControlError> {
    let sql = "SELECT current_setting('server_version_num')::int4, current_setting('wal_level'), \
         current_setting('track_commit_timestamp'), current_setting('max_replication_slots')::int8, \
         current_setting('max_wal_senders')::int8, \
         coalesce(current_setting('max_active_replication_origins', true), current_setting('max_replication_slots'))::int8, \
         current_setting('server_encoding'), pg_is_in_recovery(), r.rolsuper, r.rolreplication, \
         (SELECT bool_and(has_function_privilege(p.oid, 'execute')) FROM pg_proc p WHERE p.proname IN \
           ('pg_replication_origin_create', 'pg_replication_origin_session_setup', 'pg_replication_origin_xact_setup', \
            'pg_replication_origin_progress')), \
         has_parameter_privilege('session_replication_role', 'SET'), \
         EXISTS (SELECT FROM pg_publication WHERE pubname = 'tandem'), \
         ARRAY(SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
           WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'tandem') \
           AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) ORDER BY 1) \
         FROM pg_roles r WHERE r.rolname = current_user";
    let rows = control.query(sql, &[]).await?;
    let row = rows
        .first()
        .ok_or_else(|| ControlError::Timeout(crate::control::QUERY_TIMEOUT))?;
    Ok(Facts {
        version: row.try_get(0)?,
        wal_level: row.try_get(1)?,
        track_commit_timestamp: row.try_get(2)?,
        slots_max: row.try_get(3)?,
        walsenders_max: row.try_get(4)?,
        origins_max: row.try_get(5)?,
        encoding: row.try_get(6)?,
        in_recovery: row.try_get(7)?,
        superuser: row.try_get(8)?,
        replication: row.try_get(9)?,
        origin_functions: row.try_get::<_, Option<bool>>(10)?.unwrap_or(false),
        replica_role: row.try_get(11)?,
        publication: row.try_get(12)?,
        without_key: row.try_get(13)?,
        tells_ddl: ddl::is_installed(control).await?,
    })
}

fn judge(facts: &Facts, nodes: usize) -> Vec<Problem> {
    let mut problems = Vec::new();
    let restart = "and restart the server";
    if !VERSIONS.contains(&facts.version) {
        problems.push(Problem::fatal(
            format!("the server is PostgreSQL {}", facts.version / 10_000),
            "Tandem supports PostgreSQL 15 to 18",
        ));
    }
    if facts.in_recovery {
        problems.push(Problem::fatal(
            "the server is a standby",
            "name the primary in this [[node]]",
        ));
    }
    if facts.wal_level != "logical" {
        problems.push(Problem::fatal(
            format!("wal_level is {}", facts.wal_level),
            format!("ALTER SYSTEM SET wal_level = 'logical' {restart}"),
        ));
    }
    if facts.track_commit_timestamp != "on" {
        problems.push(Problem::fatal(
            "track_commit_timestamp is off, so rows have no version",
            format!("ALTER SYSTEM SET track_commit_timestamp = on {restart}"),
        ));
    }
    if facts.encoding != "UTF8" {
        problems.push(Problem::fatal(
            format!("the database's encoding is {}", facts.encoding),
            "all nodes need a database created with ENCODING 'UTF8'",
        ));
    }
    let wanted = i64::try_from(nodes).unwrap_or(i64::MAX);
    for (name, have) in [
        ("max_replication_slots", facts.slots_max),
        ("max_wal_senders", facts.walsenders_max),
    ] {
        if have < 1 {
            problems.push(Problem::fatal(
                format!("{name} is {have}"),
                format!("ALTER SYSTEM SET {name} = 10 {restart}"),
            ));
        }
    }
    if facts.origins_max < wanted {
        let name = if facts.version >= 180_000 {
            "max_active_replication_origins"
        } else {
            "max_replication_slots"
        };
        problems.push(Problem::fatal(
            format!(
                "{name} is {}, but {} nodes need one replication origin each",
                facts.origins_max, wanted
            ),
            format!("ALTER SYSTEM SET {name} = {} {restart}", wanted.max(10)),
        ));
    }
    if !facts.superuser {
        rights(facts, &mut problems);
    }
    if !facts.without_key.is_empty() {
        problems.push(Problem {
            what: format!("no primary key, so rows are told apart by their content only: {}", facts.without_key.join(", ")),
            hint: "ALTER TABLE … ADD PRIMARY KEY; until then an UPDATE is replicated as a DELETE and an INSERT of one equal row".to_owned(),
            fatal: false,
        });
    }
    problems
}

fn rights(facts: &Facts, problems: &mut Vec<Problem>) {
    if !facts.replication {
        problems.push(Problem::fatal(
            "Tandem's role may not replicate",
            "ALTER ROLE … REPLICATION",
        ));
    }
    if !facts.origin_functions {
        problems.push(Problem::fatal(
            "Tandem's role may not use replication origins",
            "as a superuser, GRANT EXECUTE on the functions pg_replication_origin_create, _session_setup, _xact_setup \
             and _progress to it",
        ));
    }
    if !facts.replica_role {
        problems.push(Problem::fatal(
            "Tandem's role may not set session_replication_role",
            "as a superuser, GRANT SET ON PARAMETER session_replication_role TO it",
        ));
    }
    if !facts.publication {
        problems.push(Problem::fatal(
            "there is no publication named tandem, and only a superuser can create one for all tables",
            "as a superuser, CREATE PUBLICATION tandem FOR ALL TABLES",
        ));
    }
    if !facts.tells_ddl {
        let (what, hint) = NO_DDL;
        problems.push(Problem {
            what: what.to_owned(),
            hint: hint.to_owned(),
            fatal: false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Facts {
        Facts {
            version: 150_018,
            wal_level: "logical".to_owned(),
            track_commit_timestamp: "on".to_owned(),
            slots_max: 10,
            walsenders_max: 10,
            origins_max: 10,
            encoding: "UTF8".to_owned(),
            in_recovery: false,
            superuser: true,
            replication: true,
            origin_functions: true,
            replica_role: true,
            publication: false,
            tells_ddl: false,
            without_key: Vec::new(),
        }
    }

    #[test]
    fn a_sound_server_has_no_problem() {
        assert_eq!(judge(&sound(), 3), []);
    }

    #[test]
    fn each_missing_setting_is_named_with_its_mend() {
        let cases: [(Facts, &str, &str); 7] = [
            (
                Facts {
                    version: 140_005,
                    ..sound()
                },
                "PostgreSQL 14",
                "15 to 18",
            ),
            (
                Facts {
                    wal_level: "replica".to_owned(),
                    ..sound()
                },
                "wal_level",
                "'logical'",
            ),
            (
                Facts {
                    track_commit_timestamp: "off".to_owned(),
                    ..sound()
                },
                "track_commit_timestamp",
                "= on",
            ),
            (
                Facts {
                    encoding: "LATIN1".to_owned(),
                    ..sound()
                },
                "LATIN1",
                "UTF8",
            ),
            (
                Facts {
                    in_recovery: true,
                    ..sound()
                },
                "standby",
                "primary",
            ),
            (
                Facts {
                    origins_max: 1,
                    version: 180_000,
                    ..sound()
                },
                "3 nodes",
                "max_active_replication_origins",
            ),
            (
                Facts {
                    superuser: false,
                    tells_ddl: true,
                    ..sound()
                },
                "publication",
                "CREATE PUBLICATION",
            ),
        ];
        for (facts, what, hint) in cases {
            let problems = judge(&facts, 3);
            let [problem] = problems.as_slice() else {
                panic!("{what}: {problems:?}")
            };
            assert!(
                problem.fatal && problem.what.contains(what) && problem.hint.contains(hint),
                "{problem:?}"
            );
        }
    }

    #[test]
    fn a_table_without_a_key_is_reported_but_does_not_stop_the_node() {
        let problems = judge(
            &Facts {
                without_key: vec!["public.history".to_owned()],
                ..sound()
            },
            3,
        );
        assert!(
            matches!(problems.as_slice(), [problem] if !problem.fatal && problem.what.contains("public.history"))
        );
    }
}
