//! Owns which statements are to run on the reference node, because they read nothing but catalogs: the numbers (OIDs) in what
//! they answer are then those that clients are told everywhere else. Pure.

use tandem_routing_rules::statement::{Class, Plan};

/// Beginnings of names of `pg_catalog`'s relations that tell of a server what nobody expects of another one.
const OF_A_SERVER: [&str; 21] = [
    "pg_stat",
    "pg_settings",
    "pg_file_settings",
    "pg_hba_file_rules",
    "pg_ident_file_mappings",
    "pg_locks",
    "pg_prepared_",
    "pg_cursors",
    "pg_replication_",
    "pg_subscription",
    "pg_backend_memory_contexts",
    "pg_shmem_allocations",
    "pg_dsm_registry_allocations",
    "pg_largeobject",
    "pg_config",
    "pg_timezone_",
    "pg_wait_events",
    "pg_aios",
    "pg_sequences",
    "pg_available_extension",
    "pg_buffercache",
];

/// Words of expressions whose values are numbers, or the version, where no table is named.
const WORDS: [&[u8]; 3] = [b"reg", b"version", b"pg_typeof"];

/// Whether a text can be one of them: all others are told apart without the grammar.
pub(crate) fn is_possible(text: &[u8]) -> bool {
    let is_start = |three: &[u8]| match three {
        [a, b, c] => matches!(
            [a | 0x20, b | 0x20, *c],
            [b'p', b'g', b'_']
                | [b'i', b'n', b'f' | b'F']
                | [b'r', b'e', b'g' | b'G']
                | [b'v', b'e', b'r' | b'R']
        ),
        _ => false,
    };
    text.windows(3).any(is_start)
}

/// Whether a text with this plan reads nothing but catalogs, or asks for the server's version.
pub(super) fn reads_catalogs(plan: &Plan, text: &[u8]) -> bool {
    match plan.class {
        Class::Session => &*plan.because == "SHOW" && has_word(text, b"server_version"),
        Class::Read if plan.tables.is_empty() => WORDS.iter().any(|word| has_word(text, word)),
        Class::Read => plan.tables.iter().all(|table| is_catalog(&table.name)),
        _ => false,
    }
}

fn has_word(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len())
        .any(|window| window.eq_ignore_ascii_case(word))
}

fn is_catalog(name: &str) -> bool {
    let name = name.strip_prefix("pg_catalog.").unwrap_or(name);
    let is_of_server = || OF_A_SERVER.iter().any(|start| name.starts_with(start));
    let is_own = name.starts_with("pg_") && !name.contains('.');
    name.starts_with("information_schema.") || is_own && !is_of_server()
}

#[cfg(test)]
mod tests {
    use tandem_routing_rules::Rules;

    use super::*;

    fn goes_there(text: &str) -> bool {
        let plan = Plan::of(text, &Rules::default(), None, &["public"]);
        reads_catalogs(&plan, text.as_bytes())
    }

    #[test]
    fn what_drivers_ask_of_types_goes_to_the_reference_node() {
        for text in [
            "SELECT oid FROM pg_type WHERE typname = 'mood'",
            "SELECT t.oid FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace",
            "SELECT * FROM information_schema.columns WHERE table_name = 'person'",
            "WITH a AS (SELECT oid FROM pg_class) SELECT * FROM a",
            "SELECT 'mood'::regtype::oid",
            "SELECT to_regclass('person')",
            "select pg_catalog.version()",
            "SHOW server_version",
        ] {
            assert!(goes_there(text), "{text}");
            assert!(is_possible(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn what_tells_of_rows_or_of_a_server_does_not() {
        for text in [
            "SELECT * FROM person",
            "SELECT p.*, c.oid FROM person p, pg_class c",
            "SELECT setting FROM pg_settings WHERE name = 'port'",
            "SELECT * FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid",
            "SELECT pg_backend_pid()",
            "SELECT 1",
            "SELECT * FROM pg_class FOR UPDATE",
            "INSERT INTO names SELECT relname FROM pg_class",
            "SHOW work_mem",
        ] {
            assert!(!goes_there(text), "{text}");
        }
        assert!(!is_possible(
            b"SELECT abalance FROM pgbench_accounts WHERE aid = 1"
        ));
    }
}
