//! What calling a function of PostgreSQL's own does to the database.

use std::collections::HashSet;
use std::sync::LazyLock;

use super::Class;

/// Functions of PostgreSQL 15 to 18 that leave the database as it is: in no version volatile (`pg_proc.provolatile`), or
/// volatile for another reason (`random`, `pg_relation_size`).
static HARMLESS: LazyLock<HashSet<&str>> =
    LazyLock::new(|| include_str!("functions.txt").lines().collect());

/// What a call of this function makes of a statement. A function that is not PostgreSQL's own may write.
pub(super) fn class(schema: Option<&str>, name: &str) -> Class {
    if schema.is_some_and(|schema| schema != "pg_catalog") {
        return Class::Write;
    }
    // What these change is the session's.
    if HARMLESS.contains(name) || matches!(name, "set_config" | "setseed") {
        Class::Read
    } else if name.starts_with("pg_advisory_") || name.starts_with("pg_try_advisory_") {
        Class::Lock
    } else {
        Class::Write
    }
}
