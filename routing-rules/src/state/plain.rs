//! Owns telling cheaply that a text surely does nothing to the session.

/// Whether a text surely does nothing to the session: one query that calls no function. Most texts are like that, and
/// this looks at a byte once, sixteen at a time, where [`effects`](super::effects) reads the tokens. `false` says nothing.
///
/// Without an opening parenthesis nothing is called, wherever strings and comments begin and end; without the letters of
/// `temp` no temporary table is made; what else such a query says does not concern the session. How strings are written
/// makes no difference.
///
/// ```
/// use tandem_routing_rules::state::is_plain;
///
/// assert!(is_plain(b"SELECT a FROM t WHERE id = 7;"));
/// assert!(!is_plain(b"SELECT a INTO TEMP b FROM t") && !is_plain(b"SELECT f(7)") && !is_plain(b"SELECT 1; BEGIN"));
/// ```
#[must_use]
pub fn is_plain(text: &[u8]) -> bool {
    let Some((word, behind)) = text.trim_ascii_start().split_first_chunk() else {
        return false;
    };
    let is_query = matches!(lower_case(word), SELECT | INSERT | UPDATE | DELETE);
    let begins = is_query && behind.first().is_some_and(u8::is_ascii_whitespace);
    let behind = behind.trim_ascii_end();
    begins && !has_any(behind.strip_suffix(b";").unwrap_or(behind))
}

const SELECT: u64 = lower_case(b"select");
const INSERT: u64 = lower_case(b"insert");
const UPDATE: u64 = lower_case(b"update");
const DELETE: u64 = lower_case(b"delete");

/// Six letters as one number. Only a letter and its capital differ in nothing else than the bit that is set here.
const fn lower_case(word: &[u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = *word;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0]) | 0x2020_2020_2020
}

/// Bytes that are looked at together.
const BLOCK: usize = 16;
/// A word that begins with a block's last byte has so many behind it.
const LETTERS_BEHIND: usize = 3;
const SEEN: usize = BLOCK + LETTERS_BEHIND;

/// Whether there is anything that calls for a closer look.
fn has_any(text: &[u8]) -> bool {
    let Some((last, ends)) = text.last_chunk().zip(text.last_chunk::<LETTERS_BEHIND>()) else {
        let mut padded = [0; SEEN];
        for (place, byte) in padded.iter_mut().zip(text) {
            *place = *byte;
        }
        // The letters behind a block begin no word that is long enough.
        return block_has_any(&padded) || text.iter().skip(BLOCK).any(|byte| calls_or_ends(*byte));
    };
    let mut rest = text;
    while let Some(block) = rest.first_chunk() {
        if block_has_any(block) {
            return true;
        }
        rest = rest.get(BLOCK..).unwrap_or_default();
    }
    block_has_any(last) || ends.iter().any(|byte| calls_or_ends(*byte))
}

fn calls_or_ends(byte: u8) -> bool {
    matches!(byte, b'(' | b';')
}

/// Without a branch, so that the compiler can look at all places at once.
fn block_has_any(block: &[u8; SEEN]) -> bool {
    let mut found = false;
    for place in 0..BLOCK {
        let letter = |behind: usize, lower: u8| block[place + behind] | 0x20 == lower;
        found |= block[place] == b'(';
        found |= block[place] == b';';
        found |= letter(0, b't') & letter(1, b'e') & letter(2, b'm') & letter(3, b'p');
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        lex::{Kind, Lexer, split},
        state::{Effects, effects},
    };

    /// What the statements of a text do, where the server would take it.
    fn all_effects(text: &[u8], conforming: bool) -> Option<Vec<Effects>> {
        let refused = |token: &crate::lex::Token<'_>| matches!(token.kind, Kind::Error(_));
        if Lexer::new(text, conforming).any(|token| refused(&token)) {
            return None;
        }
        split(text, conforming)
            .map(|statement| Some(effects(statement.ok()?.text, conforming)))
            .collect()
    }

    #[test]
    fn queries_without_calls_are_plain() {
        for text in [
            "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;",
            "  select *\nfrom t where a = 'it''s' and b = \"B\" -- why\n ; ",
            "UPDATE pgbench_accounts SET abalance = abalance + -5 WHERE aid = 1",
            "Delete from t",
            "insert into t default values",
            "SELECT $1 + $2",
            "SELECT t, e, m, p FROM te.mp",
        ] {
            assert!(is_plain(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn whatever_may_concern_the_session_is_not_plain_wherever_it_stands() {
        for text in [
            "",
            ";",
            "select",
            "selectx f",
            "select/**/1",
            "BEGIN",
            "SET a = b",
            "EXECUTE p",
            "TABLE t",
            "VALUES (1)",
        ] {
            assert!(!is_plain(text.as_bytes()), "{text}");
        }
        for marked in ["(", "; ", " INTO TEMP x", " into Temporary x"] {
            for length in 0..70 {
                let blank = |length| " ".repeat(length);
                let text = format!("SELECT a{}{marked}{}b", blank(length), blank(70 - length));
                assert!(!is_plain(text.as_bytes()), "{text}");
                for behind in 0..3 {
                    let text = format!(
                        "SELECT {}{marked}{}",
                        "a".repeat(length),
                        "b".repeat(behind)
                    );
                    let is_end = marked == "; " && behind == 0;
                    assert!(is_end || !is_plain(text.as_bytes()), "{text}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_plain_does_nothing(
            first in proptest::sample::select(vec!["SELECT ", "update\n", "DELETE ", ""]),
            words in proptest::collection::vec(
                proptest::sample::select(vec![
                    "SELECT", "select", "INSERT", "UPDATE", "DELETE", "INTO", "into", "TEMP", "temporary", "t.x", "EM",
                    "p", "FROM", "pg_advisory_lock", "set_config", "(", ")", "'", "''", "$$", "$1", "\"", "--", "\n",
                    "/*", "*/", ";", "E'\\'", "LISTEN", "BEGIN", "1a", "é",
                ]),
                0..12,
            ),
            gaps in proptest::collection::vec(0_usize..3, 12),
            conforming: bool,
        ) {
            let mut text = first.to_owned();
            for (word, gap) in words.iter().zip(gaps) {
                text.push_str(word);
                text.push_str(&" ".repeat(gap));
            }
            if is_plain(text.as_bytes())
                && let Some(all) = all_effects(text.as_bytes(), conforming)
            {
                prop_assert!(all.len() <= 1);
                for one in all {
                    prop_assert_eq!(one, Effects::default());
                }
            }
        }
    }
}
