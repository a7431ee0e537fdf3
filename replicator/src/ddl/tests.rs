//! Tests of what a node tells of its DDL.

use super::*;
use crate::relation::Interner;
use crate::transaction::Operation;

fn message(tag: &str, number: usize, query: Option<&str>) -> serde_json::Value {
    serde_json::json!({
        "tag": tag, "role": "app", "number": number, "query": query, "definition": null,
        "objects": [{ "type": "table", "identity": "public.t", "schema": "public", "table": "t" }],
        "settings": { "search_path": "\"$user\", public" },
    })
}

fn statement(before: usize, message: &serde_json::Value) -> Statement {
    Statement {
        before,
        message: message.to_string().into(),
    }
}

fn changes(tables: &[&str]) -> Vec<Change> {
    let interner = Interner::default();
    let change = |name: &&str| {
        let mut shape = b"R\0\0\0\x01".to_vec();
        shape.extend(format!("public\0{name}\0d").as_bytes());
        shape.extend(b"\0\x01\x01id\0\0\0\0\x17\xff\xff\xff\xff");
        Change {
            relation: interner.intern(&shape).expect("a shape"),
            operation: Operation::Insert,
            message: Bytes::from_static(b"I\0\0\0\x01N\0\x01t\0\0\0\x011"),
        }
    };
    tables.iter().map(change).collect()
}

fn commands(text: &str, tags: &[&str]) -> Vec<Result<String, DdlError>> {
    let commands = tags.iter().enumerate();
    commands
        .map(|(number, tag)| statement::choose(text, tag, number, true))
        .collect()
}

#[test]
fn each_command_of_a_text_is_found_once_and_in_order() {
    let text = "CREATE TABLE a (id int); INSERT INTO a VALUES (1); SET search_path = x;\n-- why\nCREATE INDEX ON a (id);\
        COMMENT ON TABLE a IS 'it''s; one'; GRANT app TO other; DROP TABLE b";
    let found = commands(
        text,
        &["CREATE TABLE", "CREATE INDEX", "COMMENT", "DROP TABLE"],
    );
    let found: Vec<_> = found
        .into_iter()
        .map(|found| found.expect("a statement"))
        .collect();
    assert_eq!(found[0], "CREATE TABLE a (id int)");
    assert!(found[1].ends_with("CREATE INDEX ON a (id)"), "{}", found[1]);
    assert_eq!(found[2], "COMMENT ON TABLE a IS 'it''s; one'");
    assert_eq!(found[3], "DROP TABLE IF EXISTS b");
}

#[test]
fn a_statement_that_is_not_what_was_told_is_not_carried_out() {
    let found = commands("CREATE TABLE a (id int)", &["DROP TABLE"]);
    let tag = "DROP TABLE".to_owned();
    assert_eq!(found, [Err(DdlError::NotFound { tag })]);
    assert!(commands("SELECT f()", &["CREATE TABLE"])[0].is_err());
    assert!(commands("CREATE TABEL a", &["CREATE TABLE"])[0].is_err());
}

#[test]
fn what_a_text_itself_undoes_is_not_taken_for_what_it_did() {
    let text = "CREATE TABLE a (id int); ROLLBACK; COMMENT ON TABLE b IS 'x'";
    let found = statement::choose(text, "COMMENT", 0, true);
    assert_eq!(found.expect("a statement"), "COMMENT ON TABLE b IS 'x'");
    // Either of them may have been undone.
    let text = "CREATE TABLE a (id int); ROLLBACK TO s; CREATE TABLE b (id int)";
    assert!(statement::choose(text, "CREATE TABLE", 0, true).is_err());
}

#[test]
fn a_text_that_a_function_repeats_is_the_same_statement_again() {
    let again = statement::choose("CREATE TABLE a (id int)", "CREATE TABLE", 5, true);
    assert_eq!(again.expect("a statement"), "CREATE TABLE a (id int)");
}

#[test]
fn what_runs_outside_of_a_transaction_only_is_made_to_run_inside() {
    for (text, tag, wanted) in [
        (
            "CREATE UNIQUE INDEX CONCURRENTLY i ON t (a)",
            "CREATE INDEX",
            "CREATE UNIQUE INDEX  i ON t (a)",
        ),
        (
            "DROP INDEX CONCURRENTLY i",
            "DROP INDEX",
            "DROP INDEX IF EXISTS i",
        ),
        (
            "ALTER TABLE p DETACH PARTITION c CONCURRENTLY",
            "ALTER TABLE",
            "ALTER TABLE p DETACH PARTITION c ",
        ),
        (
            "DROP FUNCTION f(int, text) CASCADE",
            "DROP FUNCTION",
            "DROP FUNCTION IF EXISTS f(int, text) CASCADE",
        ),
    ] {
        assert_eq!(
            statement::choose(text, tag, 0, true).expect("a statement"),
            wanted
        );
    }
}

#[test]
fn commands_stand_among_the_changes_where_they_were_given() {
    let text = "CREATE TABLE t (id int); ALTER TABLE t ADD x int";
    let statements = [
        statement(1, &message("CREATE TABLE", 0, Some(text))),
        statement(2, &message("ALTER TABLE", 1, None)),
    ];
    let found = pieces(&changes(&["u", "t", "t"]), &statements).expect("readable");
    let told: Vec<_> = found
        .iter()
        .map(|piece| match piece {
            Piece::Changes(range) => format!("{range:?}"),
            Piece::Command(command) => command.sql.clone(),
        })
        .collect();
    assert_eq!(
        told,
        [
            "0..1",
            "CREATE TABLE t (id int)",
            "1..2",
            "ALTER TABLE t ADD x int",
            "2..3"
        ]
    );
}

#[test]
fn a_table_that_is_made_with_its_rows_stands_before_them() {
    let mut told = message("CREATE TABLE AS", 0, None);
    told["definition"] = "CREATE TABLE public.t (id integer)".into();
    let found = pieces(&changes(&["u", "t", "t"]), &[statement(3, &told)]).expect("readable");
    let places: Vec<_> = found
        .iter()
        .map(|piece| match piece {
            Piece::Changes(range) => Some(range.clone()),
            Piece::Command(_) => None,
        })
        .collect();
    assert_eq!(places, [Some(0..1), None, Some(1..3)]);
}

#[test]
fn a_command_is_given_as_whoever_gave_it() {
    let mut told = message("CREATE TABLE", 0, Some("CREATE TABLE t (id int)"));
    told["role"] = "o\"x".into();
    told["settings"] = serde_json::json!({ "search_path": "a, 'b'" });
    let found = pieces(&[], &[statement(0, &told)]).expect("readable");
    let [Piece::Command(command)] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!(
        command.under,
        "SELECT set_config('search_path', 'a, ''b''', true); SET LOCAL ROLE \"o\"\"x\""
    );
    assert_eq!(command.tables, ["\"public\".\"t\""]);
}

#[test]
fn bytes_that_are_no_message_are_an_error_and_no_panic() {
    for bytes in [&b""[..], b"{}", b"[1]", b"{\"tag\":1}", b"\xff\xfe"] {
        let statement = Statement {
            before: 0,
            message: Bytes::copy_from_slice(bytes),
        };
        assert!(pieces(&[], std::slice::from_ref(&statement)).is_err());
        assert!(tables(std::slice::from_ref(&statement)).is_empty());
        assert!(!shown(&statement).is_empty());
    }
    // Of a text that was told in a message which is not there.
    let orphan = statement(0, &message("CREATE TABLE", 0, None));
    assert!(matches!(pieces(&[], &[orphan]), Err(DdlError::NoText(_))));
}
