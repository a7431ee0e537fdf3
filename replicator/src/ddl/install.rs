//! Installs the event triggers.

use std::fmt::Write as _;

use super::literal;
use super::policy::{DdlClass, DdlPolicy, DdlRule};
use crate::control::{Control, ControlError};
use crate::identity::TRUNCATE_FUNCTION;
use crate::tables::{TableFilter, Tables};

const CAPTURE: &str = include_str!("capture.sql");

/// SQLSTATE insufficient_privilege: only superusers make event triggers.
const NOT_ALLOWED: &str = "42501";

/// Whether a node tells of its DDL.
///
/// # Errors
/// When the node cannot be asked.
pub(crate) async fn is_installed(control: &Control) -> Result<bool, ControlError> {
    let sql = "SELECT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'tandem_capture')";
    let rows = control.query(sql, &[]).await?;
    let row = rows
        .first()
        .ok_or(ControlError::Unexpected("pg_event_trigger"))?;
    Ok(row.try_get(0)?)
}

/// Makes a node of so many tell of its DDL, as the configuration has it now. Where Tandem's role may not, what an administrator has
/// installed stays as it is; the answer says whether there is anything.
///
/// # Errors
/// When the node cannot be asked, or refuses for another reason.
pub(crate) async fn install(
    control: &Control,
    tables: &Tables,
    members: usize,
) -> Result<bool, ControlError> {
    // A command that is under way holds what is to be replaced for a moment only.
    let sql = format!("{TRUNCATE_FUNCTION}; {}", script(tables, members));
    match control.execute(&sql).await {
        Ok(()) => Ok(true),
        Err(error) if error.code() == Some(NOT_ALLOWED) => is_installed(control).await,
        Err(error) => Err(error),
    }
}

fn script(tables: &Tables, members: usize) -> String {
    let mut rules = tables.ddl.clone();
    if members < 2 {
        // Nobody else has the rows.
        rules.rules.insert(DdlClass::Rewrite, DdlRule::Replicate);
    }
    CAPTURE
        .replace("{policy}", &policy(&rules))
        .replace("{allowed}", &allowed(&tables.filter))
        .replace("{policies}", &policies(tables))
}

/// As a JSON object of those that are not replicated, and of what a rewrite may.
fn policy(policy: &DdlPolicy) -> String {
    let rules: serde_json::Map<_, _> = DdlClass::ALL
        .iter()
        .map(|&class| (class.name().to_owned(), policy.rule(class).name().into()))
        .collect();
    literal(&serde_json::Value::Object(rules).to_string())
}

/// An expression over `name` that is true where [`TableFilter::allows`] is.
fn allowed(filter: &TableFilter) -> String {
    let any = |patterns: &[String]| {
        let matches: Vec<_> = patterns
            .iter()
            .map(|pattern| format!("name LIKE {}", literal(&like(pattern))))
            .collect();
        format!("({})", matches.join(" OR "))
    };
    let mut conditions = vec!["true".to_owned()];
    if !filter.include.is_empty() {
        conditions.push(any(&filter.include));
    }
    if !filter.exclude.is_empty() {
        conditions.push(format!("NOT {}", any(&filter.exclude)));
    }
    conditions.join(" AND ")
}

/// A pattern with `*` as one of LIKE.
fn like(pattern: &str) -> String {
    let mut like = String::new();
    for letter in pattern.chars() {
        match letter {
            '*' => like.push('%'),
            '%' | '_' | '\\' => {
                like.push('\\');
                like.push(letter);
            }
            _ => like.push(letter),
        }
    }
    like
}

/// Rows of VALUES: schema, table, counters, whether a layered resolver settles its conflicts.
fn policies(tables: &Tables) -> String {
    let mut rows = "(NULL::text, NULL::text, NULL::text[], NULL::boolean)".to_owned();
    for ((schema, table), policy) in &tables.policies {
        let counters: Vec<_> = policy.counters.iter().map(|name| literal(name)).collect();
        let _ = write!(
            rows,
            ", ({}, {}, ARRAY[{}]::text[], {})",
            literal(schema),
            literal(table),
            counters.join(", "),
            policy.resolver.is_layered()
        );
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_on_the_node_what_they_mean_here() {
        assert_eq!(like("public.log_*"), "public.log\\_%");
        let filter = TableFilter {
            include: vec!["public.*".to_owned()],
            exclude: vec!["public.o'x".to_owned()],
        };
        assert_eq!(
            allowed(&filter),
            "true AND (name LIKE 'public.%') AND NOT (name LIKE 'public.o''x')"
        );
        assert_eq!(allowed(&TableFilter::default()), "true");
    }

    #[test]
    fn a_rewrite_is_refused_unless_the_configuration_says_otherwise() {
        let mut rules = DdlPolicy::default();
        assert!(policy(&rules).contains(r#""rewrite":"refuse""#));
        assert!(policy(&rules).contains(r#""index":"replicate""#));
        rules.rules.insert(DdlClass::Rewrite, DdlRule::Replicate);
        rules.rules.insert(DdlClass::Index, DdlRule::Local);
        let text = policy(&rules);
        assert!(text.contains(r#""rewrite":"replicate""#) && text.contains(r#""index":"local""#));
    }

    #[test]
    fn nothing_of_the_script_is_left_open() {
        let alone = script(&Tables::default(), 1);
        assert!(alone.contains(r#""rewrite":"replicate""#));
        let script = script(&Tables::default(), 2);
        for open in ["{policy}", "{allowed}", "{policies}"] {
            assert!(!script.contains(open));
        }
    }
}
