use super::*;

fn one(text: &str) -> Statement {
    parse(text).expect(text).remove(0)
}

/// A line of HELP as somebody would type it.
fn typed(syntax: &str) -> String {
    syntax
        .replace(['[', ']'], "")
        .replace("NODE/ID", "n1/3")
        .replace("SCHEMA.TABLE.COLUMN=VALUE", "public.item.amount=9")
        .replace("LIMIT N", "LIMIT 5")
        .replace("_CLIENT ID", "_CLIENT 7")
}

#[test]
fn help_lists_what_is_understood_and_what_it_needs() {
    for verb in VERBS {
        let statement = one(&typed(verb.syntax));
        assert_eq!(statement.right(), verb.right, "{}", verb.syntax);
        assert!(
            !matches!(statement, Statement::Missing(_)),
            "{}",
            verb.syntax
        );
        let bare = verb.syntax.split(" [").next().expect("a verb");
        one(&typed(bare));
    }
}

#[test]
fn verbs_are_read_with_their_arguments() {
    let id = |text: &str| text.parse::<ItemId>().expect("an id");
    assert_eq!(one("show version;"), Statement::Show(Show::Version));
    assert_eq!(one("SHOW HELP"), Statement::Help);
    assert_eq!(
        one("quarantine retry"),
        Statement::Quarantine(Quarantine::Retry(None))
    );
    assert_eq!(
        one("QUARANTINE RETRY n1/3"),
        Statement::Quarantine(Quarantine::Retry(Some(id("n1/3"))))
    );
    assert_eq!(
        one("reapply 'paris-2/17' force"),
        Statement::Reapply {
            id: id("paris-2/17"),
            force: true
        }
    );
    assert_eq!(
        one("SHUTDOWN wait_for_servers"),
        Statement::Shutdown(ShutdownMode::WaitForServers)
    );
    let filter = ConflictFilter {
        node: Some("n1".to_owned()),
        table: Some("public.\"a b\"".to_owned()),
        since: Some("2026-11-22 10:00".to_owned()),
        limit: Some(3),
        ..ConflictFilter::default()
    };
    assert_eq!(
        one("SHOW CONFLICTS NODE n1 TABLE public.\"a b\" SINCE '2026-11-22 10:00' LIMIT 3"),
        Statement::Show(Show::Conflicts(filter))
    );
    let route = Route {
        sql: "SELECT ';'".to_owned(),
        user: Some("Batch User".to_owned()),
        key: Some("station:42".to_owned()),
        ..Route::default()
    };
    assert_eq!(
        one("SHOW ROUTE 'SELECT '';''' USER \"Batch User\" KEY 'station:42'"),
        Statement::Show(Show::Route(route))
    );
    assert_eq!(
        parse("SHOW LAG; SHOW NODES; ").expect("two"),
        [Statement::Show(Show::Lag), Statement::Show(Show::Nodes)]
    );
    assert!(parse(" ; -- nothing").expect("nothing").is_empty());
}

#[test]
fn an_edit_takes_values_as_they_are_quoted_and_null_as_it_is_not() {
    let text = "QUARANTINE EDIT n1/3 SET public.item.amount = 9, public.item.note='it''s, x', \
                public.item.a=NULL, public.item.b='NULL', public.\"It.em\".c = null";
    let Statement::Quarantine(Quarantine::Edit { assignments, .. }) = one(text) else {
        panic!("an edit")
    };
    let values: Vec<_> = assignments
        .iter()
        .map(|assignment| (assignment.column.as_str(), assignment.value.as_deref()))
        .collect();
    assert_eq!(
        values,
        [
            ("amount", Some("9")),
            ("note", Some("it's, x")),
            ("a", None),
            ("b", Some("NULL")),
            ("c", None)
        ]
    );
    assert_eq!(assignments[4].table, "It.em");
}

#[test]
fn what_is_not_understood_is_told_with_what_is() {
    let table = [
        ("SHOW", "SHOW needs a word that says what"),
        ("SHOW NODE", "unknown SHOW: \"NODE\""),
        ("SELECT 1", "unknown statement: \"SELECT\""),
        ("'SHOW' LAG", "unknown statement: \"SHOW\""),
        ("RELAOD", "unknown statement: \"RELAOD\""),
        ("RELOAD now", "syntax error at \"now\""),
        ("SHOW LAG LAG", "syntax error at \"LAG\""),
        (
            "QUARANTINE",
            "QUARANTINE needs LIST, SHOW, RETRY, SKIP or EDIT",
        ),
        ("QUARANTINE DROP n1/3", "unknown QUARANTINE: \"DROP\""),
        ("QUARANTINE SKIP", "QUARANTINE SKIP needs NODE/ID"),
        ("QUARANTINE SKIP 3", "\"3\": write NODE/ID"),
        (
            "QUARANTINE EDIT n1/3 amount=9",
            "QUARANTINE EDIT NODE/ID needs SET",
        ),
        (
            "QUARANTINE EDIT n1/3 SET",
            "SET needs schema.table.column=value",
        ),
        (
            "QUARANTINE EDIT n1/3 SET amount=9",
            "\"amount=9\" is no assignment",
        ),
        (
            "SHOW CONFLICTS LIMIT many",
            "LIMIT: \"many\" is not a number",
        ),
        ("SHOW CONFLICT_SUMMARY LIMIT 3", "syntax error at \"LIMIT\""),
        ("SHOW ROUTE SELECT 1", "syntax error at \"1\""),
        (
            "SET work_mem = '1GB'",
            "the console has no setting \"work_mem\"",
        ),
        ("KILL_CLIENT", "KILL_CLIENT needs an id"),
        ("KILL_CLIENT x", "\"x\" is not the id of a client"),
        ("KILL a b", "syntax error at \"b\""),
        ("BEGIN", "the console has no transactions"),
        ("SHOW ROUTE 'x", "unterminated '"),
    ];
    for (text, wanted) in table {
        let error = parse(text).expect_err(text);
        assert!(error.message.starts_with(wanted), "{text}: {error:?}");
    }
    let hint = parse("SHOW NODE").expect_err("unknown").hint;
    assert!(hint.is_some_and(|hint| hint.contains("Did you mean NODES?")));
}

#[test]
fn what_drivers_set_at_their_start_does_no_harm() {
    for text in [
        "SET extra_float_digits = 3",
        "SET application_name='x'",
        "set client_encoding to 'UTF8'",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET DateStyle=ISO; SET client_min_messages TO warning",
    ] {
        assert_eq!(one(text), Statement::Set, "{text}");
    }
}

#[test]
fn pgbouncers_other_verbs_are_known_and_missing() {
    for text in MISSING.iter().chain(MISSING_SHOW) {
        assert_eq!(one(text), Statement::Missing(text), "{text}");
    }
    assert_eq!(one("SUSPEND"), Statement::Missing("SUSPEND"));
    let database = Some("app".to_owned());
    assert_eq!(one("PAUSE app"), Statement::Pause { database });
    assert_eq!(one("resume"), Statement::Resume { database: None });
}
