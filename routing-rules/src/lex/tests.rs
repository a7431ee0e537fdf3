use proptest::prelude::*;

use super::{Kind::*, *};

fn tokens(text: &str) -> Vec<(Kind, &str)> {
    tokens_with(text, true)
}

fn tokens_with(text: &str, standard_conforming_strings: bool) -> Vec<(Kind, &str)> {
    Lexer::new(text.as_bytes(), standard_conforming_strings)
        .map(|token| (token.kind, std::str::from_utf8(token.text).expect("UTF-8")))
        .collect()
}

fn texts(text: &str) -> Vec<&str> {
    tokens(text).into_iter().map(|(_, text)| text).collect()
}

fn single_value(text: &str) -> Result<std::string::String, ValueError> {
    let mut lexer = Lexer::new(text.as_bytes(), true);
    let token = lexer.next().expect("a token");
    assert_eq!(lexer.next(), None, "{text} is one token");
    value(&token).map(|value| std::string::String::from_utf8(value.into_owned()).expect("UTF-8"))
}

#[test]
fn every_form_of_a_token_is_known() {
    let table = [
        ("foo_$1é", Identifier),
        ("é", Identifier),
        ("\"a\"\"b; --\"", QuotedIdentifier),
        ("U&\"d\\0061\"", UnicodeIdentifier),
        ("'a''b'", String),
        ("'back\\'", String),
        ("e'it\\'s \\\\'", EscapeString),
        ("u&'\\0061'", UnicodeString),
        ("B'01'", BitString),
        ("x'1F'", HexString),
        ("$$ a $b$ ' $$", DollarString),
        ("$é_1$ $$ $é_1$", DollarString),
        ("$a$ $A$ $a$", DollarString),
        ("$t$ x$t$", DollarString),
        ("42", Integer),
        ("1_000", Integer),
        ("0x_1F", Integer),
        ("0O17", Integer),
        ("0b1_0", Integer),
        ("3.", Numeric),
        (".5", Numeric),
        ("3.5e-10", Numeric),
        ("5e1_0", Numeric),
        ("1.e5", Numeric),
        ("$17", Parameter),
        ("@-", Operator),
        ("<=", Operator),
        ("=>", Operator),
        ("->>", Operator),
        ("::", Punctuation),
        (":=", Punctuation),
        ("..", Punctuation),
        ("[", Punctuation),
        ("$", Other),
        ("{", Other),
        ("\\", Other),
        ("-- a /* b", LineComment),
        ("/* a /* b */ -- */", BlockComment),
        ("/*/**/*/", BlockComment),
        ("/***/", BlockComment),
    ];
    for (text, kind) in table {
        assert_eq!(tokens(text), [(kind, text)]);
    }
}

#[test]
fn what_the_server_refuses_is_an_error_and_the_last_token() {
    let table = [
        ("'a", LexError::UnterminatedString),
        ("'a''", LexError::UnterminatedString),
        ("e'a\\'", LexError::UnterminatedString),
        ("e'\\", LexError::UnterminatedString),
        ("u&'a", LexError::UnterminatedString),
        ("'a'\n'b", LexError::UnterminatedString),
        ("b'0", LexError::UnterminatedBitString),
        ("x'0''1", LexError::UnterminatedString),
        ("x'0", LexError::UnterminatedBitString),
        ("$$ a $", LexError::UnterminatedDollarString),
        ("$a$ $b$", LexError::UnterminatedDollarString),
        ("$a$a$", LexError::UnterminatedDollarString),
        ("\"a", LexError::UnterminatedIdentifier),
        ("U&\"a\"\"", LexError::UnterminatedIdentifier),
        ("\"\"", LexError::EmptyIdentifier),
        ("/* /* */", LexError::UnterminatedComment),
        ("/*/", LexError::UnterminatedComment),
        ("1a", LexError::NumberJunk),
        ("1_", LexError::NumberJunk),
        ("1__0", LexError::NumberJunk),
        ("0x", LexError::NumberJunk),
        ("0x_", LexError::NumberJunk),
        ("0x1g", LexError::NumberJunk),
        ("0b12", LexError::NumberJunk),
        ("0o8", LexError::NumberJunk),
        ("1e", LexError::NumberJunk),
        ("1e+", LexError::NumberJunk),
        ("1e5$", LexError::NumberJunk),
        ("1._5", LexError::NumberJunk),
        ("1.5a", LexError::NumberJunk),
        (".5e6x", LexError::NumberJunk),
        ("$1a", LexError::ParameterJunk),
        ("$1_0", LexError::ParameterJunk),
    ];
    for (text, error) in table {
        let found = tokens(text);
        assert_eq!(
            found.last().map(|last| last.0),
            Some(Error(error)),
            "{text}"
        );
    }
    assert_eq!(
        tokens("1a 'b'"),
        [(Error(LexError::NumberJunk), "1a")],
        "nothing follows"
    );
    let long = "=".repeat(64);
    assert_eq!(tokens(&long)[0].0, Error(LexError::OperatorTooLong));
    assert_eq!(tokens(&long[1..])[0].0, Operator);
}

#[test]
fn tokens_end_where_the_scanner_ends_them() {
    let table: [(&str, &[&str]); 36] = [
        ("SELECT*FROM t", &["SELECT", "*", "FROM", "t"]),
        ("a=-1", &["a", "=", "-", "1"]),
        ("a@-1", &["a", "@-", "1"]),
        ("a+-+-b", &["a", "+", "-", "+", "-", "b"]),
        ("1*-+/-2", &["1", "*-+/", "-", "2"]),
        ("a<>-1", &["a", "<>", "-", "1"]),
        ("a?-b", &["a", "?-", "b"]),
        ("a--b", &["a", "--b"]),
        ("a+--b\n1", &["a", "+", "--b", "1"]),
        ("a*/*c*/b", &["a", "*", "/*c*/", "b"]),
        ("a@-/*c*/b", &["a", "@-", "/*c*/", "b"]),
        ("a=-/*c*/b", &["a", "=", "-", "/*c*/", "b"]),
        ("1..10", &["1", "..", "10"]),
        ("1.5.6", &["1.5", ".6"]),
        ("..5", &["..", "5"]),
        ("a.b", &["a", ".", "b"]),
        ("a::b:=c:d", &["a", "::", "b", ":=", "c", ":", "d"]),
        ("$1$a$x$a$", &["$1", "$a$x$a$"]),
        ("a$b$c", &["a$b$c"]),
        ("$a b", &["$", "a", "b"]),
        ("$a$$$a$", &["$a$$$a$"]),
        ("$$ $$$", &["$$ $$", "$"]),
        ("123$1", &["123", "$1"]),
        ("0x1F..2", &["0x1F", "..", "2"]),
        ("N'a'", &["N", "'a'"]),
        ("nn'a'", &["nn", "'a'"]),
        ("u&a", &["u", "&", "a"]),
        ("u&-a", &["u", "&-", "a"]),
        ("b'0''1'", &["b'0'", "'1'"]),
        ("'a'\n  'b'", &["'a'\n  'b'"]),
        ("'a' -- c\r'b' 'c'", &["'a' -- c\r'b'", "'c'"]),
        ("'a' 'b'", &["'a'", "'b'"]),
        ("'a'\n/* c */'b'", &["'a'", "/* c */", "'b'"]),
        ("'a'\n- 'b'", &["'a'", "-", "'b'"]),
        ("x'1'\n'2'", &["x'1'\n'2'"]),
        ("\"a\"\n\"b\"", &["\"a\"", "\"b\""]),
    ];
    for (text, expected) in table {
        assert_eq!(texts(text), expected, "{text}");
    }
}

#[test]
fn a_backslash_escapes_in_plain_strings_while_the_setting_is_off() {
    assert_eq!(tokens_with("'a\\'b'", false), [(EscapeString, "'a\\'b'")]);
    let token = Lexer::new(b"'a\\'b\\n'", false).next().expect("a token");
    assert_eq!(value(&token).expect("a value").as_ref(), b"a'b\n");
    let error = Error(LexError::UnsafeUnicodeString);
    assert_eq!(tokens_with("u&'a'", false)[0].0, error);
    assert_eq!(tokens_with("u&\"a\"", false)[0].0, UnicodeIdentifier);
}

#[test]
fn a_literal_means_what_the_server_says() {
    let table = [
        ("FooBar", "foobar"),
        ("ÉÉ", "ÉÉ"),
        ("\"Foo\"\"Bar\"", "Foo\"Bar"),
        ("U&\"d\\0061t\\+000061\"\"\"", "data\""),
        ("''", ""),
        ("''''", "'"),
        ("'it''s'", "it's"),
        ("'a'\n'b' -- c\n'd'''", "abd'"),
        ("'\\n'", "\\n"),
        (
            "E'\\n\\t\\b\\f\\r\\\\\\'\\q''\\x'",
            "\n\t\u{8}\u{c}\r\\'q'x",
        ),
        ("e'\\101\\60z\\x41\\x4g'", "A0zA\u{4}g"),
        ("e'\\u00e9\\U0001F600\\uD83D\\uDE00'", "é😀😀"),
        ("e'a'\n'\\x62'", "ab"),
        ("U&'d\\0061t\\+000061\\\\'", "data\\"),
        ("U&'\\D83D\\DE00'", "😀"),
        ("$$it's$$", "it's"),
        ("$a$$$b$a$", "$$b"),
    ];
    for (text, expected) in table {
        assert_eq!(single_value(text).as_deref(), Ok(expected), "{text}");
    }
    for text in [
        "e'\\u12'",
        "e'\\uD83D'",
        "e'\\uDE00'",
        "e'\\uD83Dx'",
        "e'\\u0000'",
        "U&'\\12'",
        "U&'\\+110000'",
        "U&'\\D83Dx'",
    ] {
        assert_eq!(single_value(text), Err(ValueError::InvalidEscape), "{text}");
    }
    assert_eq!(single_value("e'\\v'"), Err(ValueError::VersionDependent));
    let token = Lexer::new(b"U&'d!0061'", true).next().expect("a token");
    assert_eq!(unicode_value(&token, b'!').expect("valid").as_ref(), b"da");
    let long = format!("{}é", "A".repeat(62));
    assert_eq!(single_value(&long).as_deref(), Ok("a".repeat(62).as_str()));
}

fn statements(text: &str) -> Result<Vec<&str>, LexError> {
    split(text.as_bytes(), true)
        .map(|item| item.map(|item| std::str::from_utf8(item.text).expect("UTF-8")))
        .collect()
}

#[test]
fn a_string_is_split_where_the_grammar_ends_statements() {
    let atomic = "CREATE OR REPLACE FUNCTION f(a int DEFAULT (1)) RETURNS int LANGUAGE sql BEGIN ATOMIC \
                  SELECT CASE WHEN a > 1 THEN 1 ELSE 2 END end; SELECT 1 case; RETURN 1; END";
    let nested = "create procedure p() begin atomic create function g() returns int begin atomic select 1; end; end";
    let rule = "CREATE RULE r AS ON INSERT TO t DO ALSO (INSERT INTO a VALUES (1); DELETE FROM b)";
    let table: [(&str, &[&str]); 14] = [
        ("", &[]),
        (" ; -- a\n;", &[]),
        ("SELECT 1", &["SELECT 1"]),
        ("a;b; c /* ; */ ;", &["a", "b", "c"]),
        ("';';\";\";$$;$$", &["';'", "\";\"", "$$;$$"]),
        (rule, &[rule]),
        (atomic, &[atomic]),
        (nested, &[nested]),
        (
            "CREATE FUNCTION begin() RETURNS int LANGUAGE sql AS '1'; COMMIT",
            &[
                "CREATE FUNCTION begin() RETURNS int LANGUAGE sql AS '1'",
                "COMMIT",
            ],
        ),
        (
            "SELECT begin atomic FROM t; COMMIT",
            &["SELECT begin atomic FROM t", "COMMIT"],
        ),
        (
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC END; END",
            &["CREATE FUNCTION f() RETURNS int BEGIN ATOMIC END", "END"],
        ),
        ("BEGIN; END; END", &["BEGIN", "END", "END"]),
        (
            "CREATE TABLE function (a int); BEGIN; COMMIT",
            &["CREATE TABLE function (a int)", "BEGIN", "COMMIT"],
        ),
        (
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; CREATE FUNCTION g() RETURNS int RETURN 2",
            &[
                "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END",
                "CREATE FUNCTION g() RETURNS int RETURN 2",
            ],
        ),
    ];
    for (text, expected) in table {
        assert_eq!(statements(text).as_deref(), Ok(expected), "{text}");
    }
    let behind = format!("{atomic}; COMMIT");
    assert_eq!(statements(&behind).as_deref(), Ok(&[atomic, "COMMIT"][..]));
    assert_eq!(
        statements("SELECT 1; SELECT 'a"),
        Err(LexError::UnterminatedString)
    );
}

#[test]
fn a_statement_has_its_place_and_the_comments_before_it() {
    let text = b"/* one */ SELECT 1; -- two\n/* three */ SELECT 2 -- four\n";
    let found: Vec<_> = split(text, true)
        .map(|item| item.expect("no error"))
        .collect();
    assert_eq!(found[0].range, 10..18);
    let comments = |place: usize| -> Vec<&[u8]> {
        found[place]
            .leading_comments()
            .map(|token| token.text)
            .collect()
    };
    assert_eq!(comments(0), [b"/* one */"]);
    assert_eq!(comments(1), [&b"-- two"[..], b"/* three */"]);
    assert_eq!(found[1].text, b"SELECT 2");
}

/// Looks at most at a few bytes more than once: what is quadratic would not end.
#[test]
fn long_texts_of_one_sort_take_linear_time() {
    for piece in [
        "+-", "=+", "'a'\n", "'", "$a$", "$a", "/*", "*/", "((", "--\n", "1e", "u&", "''", ".",
        "@+", "\\'", "+/**/",
    ] {
        let text = piece.repeat(2_000_000 / piece.len());
        for standard_conforming_strings in [true, false] {
            let count = Lexer::new(text.as_bytes(), standard_conforming_strings).count();
            assert!(count > 0);
        }
    }
}

/// Pieces that begin, end or change tokens.
fn tricky() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "'", "\"", "$", "$a$", "$$", "\\", "\n", " ", "--", "/*", "*/", "e'", "u&'", "u&\"", "b'",
        "x", "n'", "1", "0x", ".", "_", "e", "+", "-", "@", "<", ":", "=", ";", "(", ")", "a", "é",
        "begin", "atomic", "end", "create", "function", ",", "\u{b}", "\0",
    ]);
    let pieces =
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat().into_bytes());
    prop_oneof![
        4 => pieces,
        1 => prop::collection::vec(any::<u8>(), 0..60),
    ]
}

proptest! {
    #[test]
    fn any_bytes_are_tokens_in_order_with_nothing_but_space_between(text in tricky(), conforming: bool) {
        let mut end = 0;
        for token in Lexer::new(&text, conforming) {
            prop_assert!(token.start >= end && !token.text.is_empty());
            prop_assert_eq!(&text[token.start..token.end()], token.text);
            prop_assert!(text[end..token.start].iter().all(|&byte| scan::is_space(byte)));
            let _ = value(&token);
            let _ = unicode_value(&token, b'!');
            end = token.end();
            if matches!(token.kind, Error(_)) {
                end = text.len();
            }
        }
        prop_assert!(text[end..].iter().all(|&byte| scan::is_space(byte)));
    }

    #[test]
    fn a_quoted_text_is_one_token_with_that_value(content in "[^\0]{0,20}") {
        let bytes = content.as_bytes();
        let plain = format!("'{}'", content.replace('\'', "''"));
        let escaped = format!("E'{}'", content.replace('\\', "\\\\").replace('\'', "\\'"));
        for text in [plain, escaped] {
            let found: Vec<_> = Lexer::new(text.as_bytes(), true).collect();
            prop_assert_eq!(found.len(), 1);
            let value = value(&found[0]).expect("no escape is invalid");
            prop_assert_eq!(value.as_ref(), bytes);
        }
    }

    #[test]
    fn statements_are_in_order_and_nothing_is_lost(text in tricky()) {
        let found: Result<Vec<_>, _> = split(&text, true).collect();
        let Ok(found) = found else { return Ok(()) };
        let mut kept = Vec::new();
        let mut end = 0;
        for statement in found {
            prop_assert!(statement.range.start >= end && !statement.text.is_empty());
            prop_assert!(Lexer::new(statement.leading, true).all(|token| token.is_comment()));
            prop_assert!(text[..statement.range.start].ends_with(statement.leading));
            prop_assert_eq!(&text[statement.range.clone()], statement.text);
            kept.extend(Lexer::new(statement.text, true).significant().map(|token| token.text));
            end = statement.range.end;
        }
        kept.retain(|text| *text != b";");
        let all = Lexer::new(&text, true).significant().map(|token| token.text);
        prop_assert_eq!(kept, all.filter(|text| *text != b";").collect::<Vec<_>>());
    }
}
