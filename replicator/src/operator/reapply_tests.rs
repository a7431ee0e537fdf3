use super::super::target::plain_column;
use super::*;

fn line(kind: &str, outcome: &str) -> Line {
    Line {
        kind: kind.to_owned(),
        outcome: outcome.to_owned(),
        local_image: Some(r#"{"id":1,"note":"local"}"#.to_owned()),
        local_timestamp: Some("2026-01-01 00:00:00+00".to_owned()),
        remote_image: Some(r#"{"id":"1","note":"remote"}"#.to_owned()),
        ..Line::default()
    }
}

#[test]
fn the_loser_is_the_side_that_was_not_kept() {
    let remote = lost(line("update_origin_differs", "local")).expect("a row");
    assert!(remote.image.contains("remote") && remote.is_text && !remote.deletes);
    let local = lost(line("insert_exists", "remote")).expect("a row");
    assert!(local.image.contains("local") && !local.is_text && !local.deletes);
    // A row of the node's own that lost against a delete is logged as the remote side.
    let mut own = line("insert_deleted", "local");
    own.remote_image = own.local_image.take();
    assert!(!lost(own).expect("a row").is_text);
}

#[test]
fn a_losing_delete_deletes_again() {
    assert!(
        lost(line("delete_origin_differs", "local"))
            .expect("a delete")
            .deletes
    );
    let mut skipped = line("quarantine_skipped", "local");
    assert!(!lost(skipped.clone()).expect("a row").deletes);
    skipped.operation = Some("delete".to_owned());
    assert!(lost(skipped).expect("a delete").deletes);
    let mut came_back = line("update_deleted", "remote");
    came_back.local_image = None;
    let delete = lost(came_back).expect("a delete");
    assert!(delete.deletes && delete.image.contains("remote"));
}

#[test]
fn where_nothing_was_lost_or_nothing_is_known_it_is_refused() {
    let mut missing = line("update_missing", "remote");
    (missing.local_image, missing.local_timestamp) = (None, None);
    assert_eq!(lost(missing), Err(ReapplyRefusal::NothingLost));
    let mut truncate = line("quarantine_skipped", "local");
    truncate.operation = Some("truncate".to_owned());
    assert_eq!(lost(truncate), Err(ReapplyRefusal::Truncate));
    let mut bare = line("quarantine_skipped", "local");
    bare.remote_image = None;
    assert_eq!(lost(bare), Err(ReapplyRefusal::NoImage));
}

#[test]
fn while_a_conflict_is_being_settled_nobody_has_lost() {
    let pending = line("update_origin_differs", PENDING);
    assert_eq!(lost(pending), Err(ReapplyRefusal::Pending));
}

fn statement(target: &Target, lost: &Lost) -> Result<Statement, ReapplyRefusal> {
    super::statement(target, lost, Existing::Overwritten)
}

fn target() -> Target {
    let mut target = Target {
        schema: "public".to_owned(),
        name: "t".to_owned(),
        columns: vec![
            plain_column("id", "integer", Some(1)),
            plain_column("note", "text", None),
            plain_column("hits", "bigint", None),
            plain_column("twice", "bigint", None),
        ],
    };
    target.columns[2].is_counter = true;
    target.columns[3].is_generated = true;
    target
}

fn row(image: &str, deletes: bool) -> Lost {
    Lost {
        image: image.to_owned(),
        is_text: true,
        deletes,
    }
}

#[test]
fn a_whole_image_is_written_whether_the_row_is_there_or_not_and_counters_are_left_alone() {
    let whole = row(r#"{"id":"1","note":"x","hits":"5","twice":"10"}"#, false);
    let sql = statement(&target(), &whole).expect("a statement").sql;
    assert_eq!(
        sql,
        "INSERT INTO \"public\".\"t\" AS r (\"id\", \"note\", \"hits\") OVERRIDING SYSTEM VALUE SELECT n.\"id\", n.\"note\", 0 \
         FROM json_to_record($1::text::json) AS n(\"id\" integer, \"note\" text) \
         ON CONFLICT (\"id\") DO UPDATE SET \"note\" = excluded.\"note\" RETURNING 1"
    );
}

#[test]
fn a_json_value_is_read_from_its_text_unless_it_can_only_be_a_string() {
    let target = Target {
        schema: "public".to_owned(),
        name: "t".to_owned(),
        columns: vec![
            plain_column("id", "text", Some(1)),
            plain_column("doc", "jsonb", None),
        ],
    };
    let sql = |image| {
        let row = row(image, false);
        statement(&target, &row).expect("a statement").sql
    };
    assert!(sql(r#"{"id":"a","doc":"{\"a\": 1}"}"#).contains("json_each"));
    assert!(!sql(r#"{"id":"a","doc":"plain words"}"#).contains("json_each"));
}

#[test]
fn an_image_that_lacks_values_is_written_to_a_row_that_is_there_only() {
    let update = statement(&target(), &row(r#"{"id":"1"}"#, false)).expect("a statement");
    assert_eq!(
        update.sql,
        "UPDATE ONLY \"public\".\"t\" AS r SET \"id\" = r.\"id\" FROM json_to_record($1::text::json) AS n(\"id\" integer) \
         WHERE r.\"id\" OPERATOR(pg_catalog.=) n.\"id\" RETURNING 1"
    );
    let refusal = update.otherwise.to_string();
    assert!(refusal.contains("lacks note of public.t"), "{refusal}");
}

#[test]
fn a_delete_needs_the_key_only() {
    let delete = statement(&target(), &row(r#"{"id":"1","gone":"x"}"#, true)).expect("a statement");
    assert!(
        delete
            .sql
            .starts_with("DELETE FROM ONLY \"public\".\"t\" AS r USING"),
        "{}",
        delete.sql
    );
    assert!(!delete.sql.contains("gone"), "{}", delete.sql);
}

#[test]
fn an_image_that_does_not_fit_the_table_is_refused_with_the_column() {
    let refused = |image, deletes| {
        let refusal = statement(&target(), &row(image, deletes)).expect_err(image);
        refusal.to_string()
    };
    assert!(refused(r#"{"note":"x"}"#, true).contains("lacks column id"));
    assert!(refused(r#"{"id":"1","gone":"x"}"#, false).contains("no column gone any more"));
    let mut keyless = target();
    keyless.columns[0].key = None;
    let refusal = statement(&keyless, &row(r#"{"id":"1"}"#, false)).expect_err("no key");
    assert_eq!(
        refusal,
        ReapplyRefusal::NoKey {
            table: "public.t".to_owned()
        }
    );
}
