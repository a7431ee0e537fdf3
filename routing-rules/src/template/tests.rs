use proptest::prelude::*;

use super::*;

/// The bytes of the template in a form for people, the literals by place, and the comment's key.
fn read(text: &str) -> Option<(String, Vec<Vec<String>>, Option<String>)> {
    let mut template = Template::default();
    let shape = template.read(text.as_bytes())?;
    let bytes = String::from_utf8_lossy(shape.bytes).replace(|c: char| c < ' ', "?");
    let literals = (0..shape.literals.places()).map(|place| {
        let at = shape.literals.at(place);
        at.map(|literal| String::from_utf8_lossy(literal.text).into_owned())
            .collect()
    });
    Some((bytes, literals.collect(), shape.key.map(str::to_owned)))
}

fn same(one: &str, other: &str) -> bool {
    let (mut left, mut right) = (Template::default(), Template::default());
    let left = left.read(one.as_bytes()).map(|shape| shape.bytes);
    left.is_some() && left == right.read(other.as_bytes()).map(|shape| shape.bytes)
}

#[test]
fn texts_that_differ_in_literals_comments_or_white_space_have_one_template() {
    let table = [
        ("SELECT 1", "SELECT 2"),
        ("SELECT 1", "  SELECT/* a */1 -- b"),
        ("SELECT 'a'", "SELECT 'it''s; -- x'"),
        ("SELECT $$a$$", "SELECT $x$b$x$"),
        ("SELECT a.b", "SELECT a . b"),
        (
            "SELECT x FROM t WHERE a IN (1)",
            "SELECT x FROM t WHERE a IN (1, 2,3)",
        ),
        (
            "SELECT x FROM t WHERE a in ('a')",
            "SELECT x FROM t WHERE a in ( 'b' ,'c')",
        ),
        (
            "SELECT x FROM t WHERE a IN (1) AND b = 2",
            "SELECT x FROM t WHERE a IN (5,6) AND b = 3",
        ),
    ];
    for (one, other) in table {
        assert!(same(one, other), "{one} | {other}");
    }
}

#[test]
fn texts_that_differ_in_anything_else_have_not() {
    let table = [
        ("SELECT 1", "SELECT '1'"),
        ("SELECT 1", "SELECT 1.0"),
        ("SELECT 1", "SELECT -1"),
        ("SELECT 1", "SELECT $1"),
        ("SELECT $1", "SELECT $2"),
        ("SELECT ab", "SELECT a b"),
        ("SELECT ab", "SELECT \"ab\""),
        ("SELECT 'a'", "SELECT E'a'"),
        ("SELECT a FROM t", "SELECT a FROM u"),
        (
            "SELECT x FROM t WHERE a IN (1, 2)",
            "SELECT x FROM t WHERE a IN (1, 'b')",
        ),
        (
            "SELECT x FROM t WHERE a IN (1, 2)",
            "SELECT x FROM t WHERE a IN (1, 2 + 3)",
        ),
        (
            "SELECT x FROM t WHERE a IN (1, 2)",
            "SELECT x FROM t WHERE a IN (1, -2)",
        ),
        (
            "SELECT x FROM t WHERE a IN (1, x)",
            "SELECT x FROM t WHERE a IN (1, 2, x)",
        ),
        ("SELECT f(1)", "SELECT f(1, 2)"),
        ("SELECT a; SELECT b", "SELECT a SELECT b"),
        ("SELECT \"\u{7} \"", "SELECT 1"),
    ];
    for (one, other) in table {
        assert!(!same(one, other), "{one} | {other}");
    }
}

#[test]
fn literals_are_found_by_place() {
    let (bytes, literals, _) =
        read("UPDATE t SET a = 'x' WHERE b IN (1,2) AND c = -3").expect("read");
    assert_eq!(bytes, "UPDATE t SET a = ? WHERE b IN ( ?? ) AND c = - ? ");
    assert_eq!(literals, [vec!["'x'"], vec!["1", "2"], vec!["3"]]);
    let mut template = Template::default();
    let text = b"SELECT a IN (1,2), 3";
    let literals = template.read(text).expect("read").literals;
    let place = |start| {
        literals
            .from(start)
            .map(|(place, literal)| (place, literal.start))
    };
    assert_eq!(
        [place(0), place(14), place(15), place(16), place(20)],
        [
            Some((0, 13)),
            Some((0, 15)),
            Some((0, 15)),
            Some((1, 19)),
            None
        ]
    );
    assert_eq!(literals.at(2).count(), 0);
}

#[test]
fn a_key_is_taken_from_leading_comments_only() {
    let key = |text: &str| read(text).and_then(|(_, _, key)| key);
    let found = Some("station:42".to_owned());
    assert_eq!(key("/* tandem.key='station:42' */ SELECT 1"), found);
    assert_eq!(key("/*tandem.key = 'station:42'*/ SELECT 1"), found);
    assert_eq!(
        key("-- a\n/* b */ /* tandem.key='station:42' */ SELECT 1"),
        found
    );
    assert_eq!(
        key("/* app='bikes', tandem.key='station:42' */ SELECT 1"),
        found
    );
    assert_eq!(
        key("/* tandem.key='station:42' */ /* tandem.key='x:1' */ SELECT 1"),
        found
    );
    assert_eq!(key("SELECT 1 /* tandem.key='station:42' */"), None);
    assert_eq!(key("-- tandem.key='station:42'\nSELECT 1"), None);
    assert_eq!(key("/* tandem.key=station:42 */ SELECT 1"), None);
    assert_eq!(key("/* tandem.key='station:42 */ SELECT 1"), None);
    assert_eq!(key("/* nottandem.key='station:42' */ SELECT 1"), None);
    assert_eq!(key("/**/ SELECT 1"), None);
    let same = same("/* tandem.key='a:1' */ SELECT 1", "SELECT 1");
    assert!(same, "comments are no part of a template");
}

#[test]
fn what_the_scanner_refuses_or_is_too_long_has_no_template() {
    assert_eq!(read("SELECT 'a"), None);
    assert_eq!(read("SELECT 1a"), None);
    assert_eq!(read("SELECT \u{1}"), None);
    assert_eq!(read(&" ".repeat(TEXT_MAX + 1)), None);
    assert_eq!(read(""), Some((String::new(), Vec::new(), None)));
}

#[test]
fn buffers_hold_nothing_of_the_text_before() {
    let mut template = Template::default();
    template
        .read(b"/* tandem.key='a:1' */ SELECT 1, 2")
        .expect("read");
    let shape = template.read(b"SELECT x").expect("read");
    assert_eq!(
        (shape.bytes, shape.literals.places(), shape.key),
        (&b"SELECT x "[..], 0, None)
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut template = Template::default();
        if let Some(shape) = template.read(&text) {
            for place in 0..shape.literals.places() {
                prop_assert!(shape.literals.at(place).count() > 0);
            }
        }
    }

    #[test]
    fn near_sql_is_read_or_refused(text in "(SELECT|IN|\\(|\\)|,|'|\"|\\$|1|a|-|/\\*|\\*/|\n| ){0,60}") {
        Template::default().read(text.as_bytes());
    }

    #[test]
    fn other_literals_give_the_same_template(one: i32, other in 0..i64::MAX, text in "[^'\\\\\u{0}]{0,20}") {
        let one = one.unsigned_abs();
        let alike = same(
            &format!("UPDATE t SET a = '{text}' WHERE id = {one}"),
            &format!("UPDATE t SET a = 'x' WHERE id = {other}"),
        );
        prop_assert!(alike);
    }
}
