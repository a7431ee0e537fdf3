//! What calling a function does to the database.

use std::collections::HashSet;
use std::sync::LazyLock;

use super::Class;
use super::analyse::Names;
use crate::catalog::Volatility;

/// Functions of PostgreSQL 15 to 18 that leave the database as it is: in no version volatile (`pg_proc.provolatile`), or
/// volatile for another reason (`random`, `pg_relation_size`).
static HARMLESS: LazyLock<HashSet<&str>> =
    LazyLock::new(|| include_str!("functions.txt").lines().collect());

/// What a call of this function makes of a statement. One that is neither PostgreSQL's own nor in the catalog may write.
pub(super) fn class(schema: Option<&str>, name: &str, names: Names<'_>) -> Class {
    let own = match schema {
        None | Some("pg_catalog") => own(name),
        Some(_) => None,
    };
    let catalog = names
        .catalog
        .and_then(|catalog| catalog.function(names.search_path, schema, name));
    // PostgreSQL's own are judged here; of the rest a volatile one may write.
    let known = catalog.map(|volatility| match (own, volatility) {
        (Some(own), Volatility::Volatile) if schema == Some("pg_catalog") => own,
        (_, Volatility::Volatile) => Class::Write,
        (own, _) => own.unwrap_or(Class::Read),
    });
    known.or(own).unwrap_or(Class::Write)
}

/// Whether what a call does depends on the values of its arguments.
pub(super) fn depends_on_values(name: &str) -> bool {
    matches!(
        name,
        "set_config" | "nextval" | "currval" | "setval" | "pg_notify"
    )
}

/// What PostgreSQL's own function of this name does, if it is known to do no more than that.
fn own(name: &str) -> Option<Class> {
    // What these change is the session's.
    if HARMLESS.contains(name) || matches!(name, "set_config" | "setseed") {
        Some(Class::Read)
    } else if name.starts_with("pg_advisory_") || name.starts_with("pg_try_advisory_") {
        Some(Class::Lock)
    } else {
        None
    }
}
