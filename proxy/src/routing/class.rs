//! Owns what a text does, as far as that decides where it goes; found out once for texts that come again.

use std::cell::RefCell;

use tandem_routing_rules::{
    state::is_plain,
    statement::{self, analyse},
};
use xxhash_rust::xxh3::xxh3_64;

/// What a unit of work does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// Something with the session's own state: any node will do.
    Session,
    /// It leaves everything as it is.
    Read,
    /// It may change something, or lock it.
    Write,
}

/// Texts that a worker remembers at most, a power of two.
const PLACES: usize = 1024;
/// Bytes of a text that is remembered.
const TEXT_MAX: usize = 1024;

/// What a text does. In doubt it writes.
pub(crate) fn class(text: &[u8]) -> Class {
    if let Some(class) = at_a_glance(text) {
        return class;
    }
    if text.len() > TEXT_MAX {
        return read(text);
    }
    let hash = xxh3_64(text);
    KNOWN.with_borrow_mut(|known| {
        if known.is_empty() {
            known.resize_with(PLACES, || None);
        }
        // The remainder is less than the number of places.
        #[allow(clippy::cast_possible_truncation)]
        let Some(place) = known.get_mut((hash % PLACES as u64) as usize) else {
            return read(text);
        };
        match place {
            Some((known, class)) if **known == *text => *class,
            _ => {
                let class = read(text);
                *place = Some((text.into(), class));
                class
            }
        }
    })
}

thread_local! {
    static KNOWN: RefCell<Vec<Option<(Box<[u8]>, Class)>>> = const { RefCell::new(Vec::new()) };
}

/// What most texts do: one query that calls nothing. Then it writes unless it is a SELECT, and that one writes or locks only
/// behind INTO or FOR.
fn at_a_glance(text: &[u8]) -> Option<Class> {
    if !is_plain(text) {
        return None;
    }
    if !matches!(text.trim_ascii_start().first(), Some(b's' | b'S')) {
        return Some(Class::Write);
    }
    let has_word = text.windows(4).any(|four| {
        let is = |word: &[u8]| word.iter().zip(four).all(|(lower, byte)| byte | 0x20 == *lower);
        is(b"for") || is(b"into")
    });
    (!has_word).then_some(Class::Read)
}

fn read(text: &[u8]) -> Class {
    let Ok(text) = std::str::from_utf8(text) else {
        return Class::Write;
    };
    let Ok(statements) = analyse(text) else {
        return Class::Write;
    };
    let classes = statements.iter().map(|statement| match statement.class {
        statement::Class::Read => Class::Read,
        statement::Class::Session if keeps_nothing(&statement.because) => Class::Session,
        _ => Class::Write,
    });
    classes.max().unwrap_or(Class::Session)
}

/// Whether a statement about the session leaves nothing on its server.
fn keeps_nothing(because: &str) -> bool {
    matches!(because, "SET" | "SHOW" | "DISCARD" | "DEALLOCATE" | "UNLISTEN")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_at_a_glance_is_what_the_grammar_says() {
        for (text, expected) in [
            ("SELECT abalance FROM pgbench_accounts WHERE aid = 7;", Class::Read),
            ("select a from t where b = 'c' order by d limit 1", Class::Read),
            ("UPDATE t SET a = 1 WHERE b = 2", Class::Write),
            ("Insert INTO t VALUES (1)", Class::Write),
            ("DELETE FROM t", Class::Write),
        ] {
            assert_eq!(class(text.as_bytes()), expected, "{text}");
            assert_eq!(read(text.as_bytes()), expected, "{text}");
        }
        for text in [
            "SELECT a FROM t FOR UPDATE",
            "SELECT a INTO b FROM t",
            "SELECT a FROM t fOr\nShare",
        ] {
            assert_eq!(at_a_glance(text.as_bytes()), None, "{text}");
            assert_eq!(class(text.as_bytes()), Class::Write, "{text}");
        }
    }

    #[test]
    fn in_doubt_a_text_writes() {
        for text in [
            "SELECT nextval('s')",
            "SELECT my_function()",
            "SELEC 1",
            "LISTEN a",
            "SELECT pg_advisory_lock(1)",
            "SELECT 1; UPDATE t SET a = 1",
            "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x",
            "EXPLAIN ANALYZE DELETE FROM t",
            "CREATE TABLE t (a int)",
            "CALL p()",
            "BEGIN",
        ] {
            assert_eq!(class(text.as_bytes()), Class::Write, "{text}");
        }
        assert_eq!(class(b"SELECT '\xff'"), Class::Read);
        assert_eq!(class(b"SELECT lower('\xff')"), Class::Write);
    }

    #[test]
    fn reads_and_what_concerns_the_session_only_are_known() {
        for text in [
            "SELECT count(*) FROM t",
            "WITH x AS (SELECT 1) SELECT * FROM x",
            "EXPLAIN DELETE FROM t",
            "TABLE t",
            "SELECT 1; SELECT 2",
        ] {
            assert_eq!(class(text.as_bytes()), Class::Read, "{text}");
        }
        for text in ["SET a = b", "SHOW a", "RESET ALL", "DISCARD ALL", ""] {
            assert_eq!(class(text.as_bytes()), Class::Session, "{text}");
        }
        assert_eq!(class(b"SET a = b; SELECT 1"), Class::Read);
    }
}
