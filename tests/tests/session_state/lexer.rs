//! The lexer beside the scanner of real servers: what literals mean, which numbers are refused, and how many statements a
//! string has.

use fastrand::Rng;
use tandem_routing_rules::lex::{self, Kind, LexError, Lexer, ValueError, split, unicode_value};
use tandem_tests::Cluster;

use crate::wire::Connection;

const SEED: u64 = 7;
const LITERALS: usize = 600;
const NUMBERS: usize = 400;
const STRINGS: usize = 150;

fn pick<'a>(rng: &mut Rng, from: &[&'a str]) -> &'a str {
    from[rng.usize(0..from.len())]
}

fn pieces(rng: &mut Rng, from: &[&str], count_max: usize) -> String {
    let count = rng.usize(0..=count_max);
    (0..count).map(|_| pick(rng, from)).collect()
}

/// Something like a string literal: perhaps none, perhaps with an escape that is refused.
fn literal(rng: &mut Rng) -> String {
    let pieces_of = [
        "a",
        "B",
        " ",
        "''",
        "\\\\",
        "\\n",
        "\\t",
        "\\q",
        "\\v",
        "\\101",
        "\\7",
        "\\x41",
        "\\x4",
        "\\xzz",
        "\\u00e9",
        "\\U0001F600",
        "\\uD83D\\uDE00",
        "\\uD83D",
        "\\u12",
        "\\0061",
        "\\+00e9e9",
        "\\+000061",
        "\\D83D\\DE00",
        "\\",
        "!0061",
        "!!",
        "!",
        "\"",
        "$",
        "$$",
        "$a",
        "$a$",
        "--",
        "/*",
        ";",
        "\n",
        "é",
        "😀",
        "'\n'",
        "' -- c\n '",
        "'\r\n\t'",
        "' \u{c}'",
        "\\'",
        "'",
    ];
    let content = pieces(rng, &pieces_of, 6);
    let quoted = pick(rng, &["'", "'", "E'", "e'", "U&'", "u&'", "N'"]);
    match rng.u8(0..10) {
        0 => format!("${0}${content}${0}$", pick(rng, &["", "a", "é_1", "A"])),
        1 => format!("U&'{content}' UESCAPE '!'"),
        _ => format!("{quoted}{content}'"),
    }
}

/// The literal's value. Nothing inside if it is no literal that a server takes, nothing at all if that depends on the
/// server.
#[expect(
    clippy::option_option,
    reason = "refused, and not known, are two things"
)]
fn ours(text: &str, conforming: bool) -> Option<Option<Vec<u8>>> {
    let tokens: Vec<_> = Lexer::new(text.as_bytes(), conforming)
        .significant()
        .collect();
    let value = match tokens.as_slice() {
        [literal] => lex::value(literal),
        [national, literal] if national.text.eq_ignore_ascii_case(b"n") => lex::value(literal),
        [literal, word, escape]
            if word.is_word("uescape") && literal.kind == Kind::UnicodeString =>
        {
            unicode_value(literal, escape.text[1])
        }
        _ => return Some(None),
    };
    if value == Err(ValueError::VersionDependent) {
        return None;
    }
    if !tokens.iter().all(|token| {
        matches!(
            token.kind,
            Kind::String
                | Kind::EscapeString
                | Kind::UnicodeString
                | Kind::DollarString
                | Kind::Identifier
        )
    }) {
        return Some(None);
    }
    // What is no text in UTF-8 the server refuses later.
    let is_text = |value: &Vec<u8>| std::str::from_utf8(value).is_ok() && !value.contains(&0);
    Some(value.ok().map(|value| value.into_owned()).filter(is_text))
}

fn compare_literals(connection: &mut Connection) {
    let mut rng = Rng::with_seed(SEED);
    let mut known = 0;
    for conforming in [true, false] {
        let setting = format!(
            "SET standard_conforming_strings = {conforming}; SET escape_string_warning = off"
        );
        connection.query(setting.as_bytes());
        for _ in 0..LITERALS {
            let text = literal(&mut rng);
            // One column that is the literal and nothing else: an operator or a second token is an error.
            let answer = connection.query(format!("SELECT ({text}\n)::text").as_bytes());
            let Some(ours) = ours(&text, conforming) else {
                continue;
            };
            let theirs = match &answer.error {
                None => answer.values.first().cloned(),
                Some(_) => None,
            };
            // `N'..'` is of type bpchar, whose cast takes spaces away.
            let trimmed = |value: Vec<u8>| match text.strip_prefix('N') {
                Some(_) => value.trim_ascii_end().to_vec(),
                None => value,
            };
            let (ours, theirs) = (ours.map(trimmed), theirs.map(trimmed));
            assert_eq!(
                ours.as_deref().map(String::from_utf8_lossy),
                theirs.as_deref().map(String::from_utf8_lossy),
                "{text} (conforming: {conforming}): {:?}",
                answer.error
            );
            known += usize::from(ours.is_some());
        }
    }
    assert!(known > LITERALS / 2, "only {known} literals are valid");
    connection.query(b"RESET ALL");
}

fn compare_numbers(connection: &mut Connection) {
    let mut rng = Rng::with_seed(SEED);
    let from = [
        "0", "1", "9", "_", "x", "o", "b", "e", "E", "+", "-", ".", "a", "F", "$", "0x", "1e",
    ];
    for _ in 0..NUMBERS {
        let text = format!("{}{}", rng.u8(0..10), pieces(&mut rng, &from, 6));
        let answer = connection.query(format!("SELECT {text}").as_bytes());
        let message = answer.error.map(|(_, message)| message).unwrap_or_default();
        let refused = message.contains("trailing junk")
            || message.starts_with("invalid hexadecimal integer")
            || message.starts_with("invalid octal integer")
            || message.starts_with("invalid binary integer");
        let mut tokens = Lexer::new(text.as_bytes(), true);
        let junk = tokens.find(|token| {
            let errors = [LexError::NumberJunk, LexError::ParameterJunk];
            errors.iter().any(|&error| token.kind == Kind::Error(error))
        });
        // The grammar may stop before the scanner comes to what it refuses.
        if !refused && message.starts_with("syntax error") {
            continue;
        }
        assert_eq!(junk.is_some(), refused, "{text}: {message}");
    }
}

fn compare_statements(connection: &mut Connection) {
    let mut rng = Rng::with_seed(SEED);
    let statements = [
        "SELECT 1",
        "SELECT ';', $$;$$, \";\" FROM (SELECT 1 AS \";\") x",
        "SELECT 1 /* ; /* ; */ */ + 1",
        "SELECT 1 -- ;\n",
        "",
        "CREATE OR REPLACE FUNCTION begin() RETURNS int LANGUAGE sql AS 'SELECT 1;'",
        "CREATE OR REPLACE FUNCTION atomic(a int DEFAULT (1)) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN a > 1 \
         THEN 1 ELSE 2 END; SELECT 1 end; SELECT 2 AS case; RETURN 3; END",
        "CREATE OR REPLACE PROCEDURE nothing() BEGIN ATOMIC END",
        "CREATE OR REPLACE FUNCTION returned() RETURNS int RETURN 1",
        "SELECT atomic.end FROM (SELECT 1 AS end) atomic",
        "SELECT begin atomic FROM (SELECT 1 AS begin) x",
        "CREATE OR REPLACE RULE r AS ON INSERT TO ruled DO ALSO (SELECT 1; SELECT 2)",
        "SELECT E'\\'; ', U&'\\0027;'",
    ];
    connection.query(b"CREATE TABLE ruled (a int)");
    for _ in 0..STRINGS {
        let count = rng.usize(1..6);
        let parts: Vec<&str> = (0..count).map(|_| pick(&mut rng, &statements)).collect();
        let text = parts.join(pick(&mut rng, &[";", " ; ", ";/* ; */", ";;"]));
        let found: Result<Vec<_>, _> = split(text.as_bytes(), true).collect();
        let answer = connection.query(text.as_bytes());
        assert_eq!(answer.error, None, "{text}");
        assert_eq!(found.expect("valid").len(), answer.completed, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn literals_numbers_and_statements_are_read_as_servers_read_them() {
    let cluster = Cluster::of(&[15, 17, 18]).without_daemon().start().await;
    for (node, major) in cluster.nodes.iter().zip([15, 17, 18]) {
        let port = node.port();
        let compared = tokio::task::spawn_blocking(move || {
            let mut connection = Connection::login(port);
            compare_literals(&mut connection);
            compare_statements(&mut connection);
            // Before 16 numbers had neither underscores nor prefixes.
            if major > 15 {
                compare_numbers(&mut connection);
            }
        });
        compared.await.expect("the lexer is right");
    }
}
