//! Owns what most texts do, told without the grammar.

use std::sync::LazyLock;

use tandem_routing_rules::{
    state::is_plain,
    statement::{Class, Plan},
};

static READ: LazyLock<Plan> = LazyLock::new(|| plain(Class::Read, "SELECT"));
static WRITE: LazyLock<Plan> = LazyLock::new(|| plain(Class::Write, "a plain write"));

static UNKNOWN: LazyLock<Plan> = LazyLock::new(|| plain(Class::Unknown, "unknown"));

fn plain(class: Class, because: &str) -> Plan {
    Plan {
        class,
        because: because.into(),
        refused: None,
        locks_table: false,
        tables: Box::default(),
        keys: Box::default(),
        kept: Box::default(),
    }
}

/// The class of a text that is one query which calls nothing: it writes unless it is a SELECT, and that one writes or locks only
/// behind INTO or FOR. None: the grammar is asked.
pub(super) fn class(text: &[u8]) -> Option<Class> {
    if !is_plain(text) {
        return None;
    }
    if !matches!(text.trim_ascii_start().first(), Some(b's' | b'S')) {
        return Some(Class::Write);
    }
    let mut rest = text;
    // Each of the words has an o.
    while let Some(at) = rest.iter().position(|byte| byte | 0x20 == b'o') {
        let (before, behind) = rest.split_at(at);
        let has_word = ends(before, b"f") && behind.get(1).is_some_and(|byte| byte | 0x20 == b'r')
            || ends(before, b"int");
        if has_word {
            return None;
        }
        rest = behind.get(1..).unwrap_or_default();
    }
    Some(Class::Read)
}

fn ends(text: &[u8], lower: &[u8]) -> bool {
    let end = text.len().checked_sub(lower.len()).map(|at| &text[at..]);
    end.is_some_and(|end| end.eq_ignore_ascii_case(lower))
}

/// What such a text does, where no table has a rule.
pub(super) fn plan(class: Class) -> &'static Plan {
    match class {
        Class::Read => &READ,
        _ => &WRITE,
    }
}

/// What a text does of which nothing is known.
pub(super) fn unknown() -> &'static Plan {
    &UNKNOWN
}

#[cfg(test)]
mod tests {
    use tandem_routing_rules::Rules;

    use super::*;

    #[test]
    fn what_is_seen_at_a_glance_is_what_the_grammar_says() {
        for text in [
            "SELECT abalance FROM pgbench_accounts WHERE aid = 7;",
            "select a from t where b = 'c' order by d limit 1",
            "UPDATE t SET a = 1 WHERE b = 2",
            "Insert INTO t VALUES (1)",
            "DELETE FROM t",
            "select foo, o, \"into_\", noint from book o where o = 1",
            "SELECT o",
        ] {
            // Only without a parenthesis.
            let Some(found) = class(text.as_bytes()) else {
                assert!(text.contains(['(', '"']), "{text}");
                continue;
            };
            let plan = Plan::of(text, &Rules::default(), None, &["public"]);
            assert_eq!(found, plan.class, "{text}");
        }
        for text in [
            "SELECT a FROM t FOR UPDATE",
            "SELECT a INTO b FROM t",
            "SELECT a FROM t fOr\nShare",
            "select o from o for update",
            "select o iNTo o from t",
            "WITH a AS (SELECT 1) SELECT * FROM a",
            "SELECT f()",
            "BEGIN",
            "",
        ] {
            assert_eq!(class(text.as_bytes()), None, "{text}");
        }
    }
}
