use proptest::prelude::*;

use super::*;
use crate::lex::split;

/// Applies a string of statements that all succeed, as a simple query does.
fn run(settings: &mut Settings, query: &str, status: Status) {
    for statement in split(query.as_bytes(), true) {
        settings.apply(&effects(statement.expect("valid").text, true));
    }
    settings.ready(status).expect("the status is as expected");
}

/// As [`run`], but the statement behind the last one fails.
fn run_and_fail(settings: &mut Settings, query: &str, status: Status) {
    for statement in split(query.as_bytes(), true) {
        settings.apply(&effects(statement.expect("valid").text, true));
    }
    settings.failed();
    settings.ready(status).expect("the status is as expected");
}

fn shown(settings: &Settings, name: &str) -> String {
    match settings.value(name.as_bytes()) {
        Value::Default => "default".to_owned(),
        Value::Text(text) => String::from_utf8_lossy(text).into_owned(),
        Value::List(names) => String::from_utf8_lossy(&names.join(&b"|"[..])).into_owned(),
    }
}

#[test]
fn settings_follow_transactions_and_savepoints() {
    use Status::{Idle, InTransaction};
    // Each line is a query, the status after it, and what x is then.
    let histories: [&[(&str, Status, &str)]; 13] = [
        &[("SET x = 1; SET LOCAL x TO DEFAULT; RESET ALL", Idle, "1")],
        &[
            ("SET x = 1", Idle, "1"),
            ("SET x = 2", Idle, "2"),
            ("RESET x", Idle, "default"),
        ],
        &[("SET LOCAL x = 1", Idle, "default")],
        &[
            ("BEGIN; SET x = 1", InTransaction, "1"),
            ("ROLLBACK", Idle, "default"),
        ],
        &[
            (
                "SET x = 0; BEGIN; SET x = 1; SET LOCAL x = 2",
                InTransaction,
                "2",
            ),
            ("COMMIT", Idle, "1"),
        ],
        &[
            ("BEGIN; SET LOCAL x = 2; SET x = 1", InTransaction, "1"),
            ("COMMIT", Idle, "1"),
        ],
        &[
            (
                "BEGIN; SET x = 1; SAVEPOINT a; SET LOCAL x = 2; SAVEPOINT b; SET x = 3",
                InTransaction,
                "3",
            ),
            ("ROLLBACK TO b", InTransaction, "2"),
            ("RELEASE a", InTransaction, "2"),
            ("COMMIT", Idle, "1"),
        ],
        &[
            (
                "BEGIN; SET LOCAL x = 1; SAVEPOINT a; SET x = 2; RELEASE a",
                InTransaction,
                "2",
            ),
            ("COMMIT", Idle, "2"),
        ],
        &[
            (
                "BEGIN; SAVEPOINT a; SET x = 1; SAVEPOINT a; SET x = 2; ROLLBACK TO a",
                InTransaction,
                "1",
            ),
            ("RELEASE a; ROLLBACK TO a", InTransaction, "default"),
            ("END", Idle, "default"),
        ],
        &[
            ("BEGIN; SET x = 1; COMMIT AND CHAIN", InTransaction, "1"),
            ("SET x = 2; ROLLBACK AND CHAIN", InTransaction, "1"),
            ("SET x = 3; PREPARE TRANSACTION 'a'", Idle, "3"),
        ],
        &[
            ("SET x = 1; BEGIN; SET x = 2; ROLLBACK", Idle, "default"),
            ("SET x = 1; COMMIT; SET x = 2; ROLLBACK", Idle, "1"),
        ],
        &[
            (
                "BEGIN; SET LOCAL x = 1; SET x FROM CURRENT; COMMIT",
                Idle,
                "1",
            ),
            ("BEGIN; RESET ALL", InTransaction, "default"),
            ("ROLLBACK", Idle, "1"),
            ("DISCARD ALL", Idle, "default"),
        ],
        &[
            (
                "BEGIN; SELECT set_config('X', '1', true), set_config('x', '2', false)",
                InTransaction,
                "2",
            ),
            ("SELECT set_config('x', '3', true)", InTransaction, "3"),
            ("COMMIT", Idle, "2"),
        ],
    ];
    for history in histories {
        let mut settings = Settings::default();
        for (query, status, x) in history {
            run(&mut settings, query, *status);
            assert_eq!(shown(&settings, "x"), *x, "after {query} of {history:?}");
        }
    }
}

#[test]
fn a_failure_takes_back_what_is_not_committed() {
    let mut settings = Settings::default();
    run_and_fail(&mut settings, "SET x = 1; COMMIT; SET x = 2", Status::Idle);
    assert_eq!(shown(&settings, "x"), "1");
    run_and_fail(
        &mut settings,
        "BEGIN; SET x = 3; SAVEPOINT a; SET x = 4",
        Status::Failed,
    );
    assert_eq!(shown(&settings, "x"), "3", "at once");
    run(&mut settings, "ROLLBACK TO a", Status::InTransaction);
    assert_eq!(shown(&settings, "x"), "3");
    run_and_fail(&mut settings, "", Status::Failed);
    run(&mut settings, "COMMIT", Status::Idle);
    assert_eq!(shown(&settings, "x"), "1");
    // A COMMIT that fails.
    run_and_fail(&mut settings, "BEGIN; SET x = 5", Status::Idle);
    assert_eq!(shown(&settings, "x"), "1");
}

#[test]
fn another_status_than_expected_is_said() {
    let mut settings = Settings::default();
    let disagreement = settings
        .ready(Status::InTransaction)
        .expect_err("not expected");
    assert_eq!(disagreement.model, Status::Idle);
    settings
        .ready(Status::InTransaction)
        .expect("it goes on from there");
}

#[test]
fn a_session_authorization_takes_the_role_away() {
    let mut settings = Settings::default();
    run(
        &mut settings,
        "SET ROLE a; BEGIN; SET SESSION AUTHORIZATION b",
        Status::InTransaction,
    );
    assert_eq!(shown(&settings, "role"), "none");
    run(&mut settings, "ROLLBACK; SET ROLE a", Status::Idle);
    run(
        &mut settings,
        "BEGIN; SET LOCAL SESSION AUTHORIZATION b; COMMIT",
        Status::Idle,
    );
    assert_eq!(shown(&settings, "role"), "a");
    run(&mut settings, "RESET ALL", Status::Idle);
    assert_eq!(shown(&settings, "role"), "a");
    run(&mut settings, "RESET SESSION AUTHORIZATION", Status::Idle);
    assert_eq!(shown(&settings, "role"), "default");
}

#[test]
fn what_the_server_reports_wins() {
    let mut settings = Settings::new([(&b"TimeZone"[..], &b"utc"[..])]);
    settings.reported_at_login(b"TimeZone", b"UTC");
    assert_eq!(shown(&settings, "timezone"), "UTC");
    run(&mut settings, "SET timezone = 'europe/paris'", Status::Idle);
    report(&mut settings, "TimeZone", "Europe/Paris", Status::Idle);
    run(
        &mut settings,
        "BEGIN; SET LOCAL timezone = 'utc'",
        Status::InTransaction,
    );
    report(&mut settings, "TimeZone", "UTC", Status::InTransaction);
    assert_eq!(shown(&settings, "timezone"), "UTC");
    run(
        &mut settings,
        "SET LOCAL timezone = 'Utc'",
        Status::InTransaction,
    );
    assert_eq!(
        shown(&settings, "timezone"),
        "UTC",
        "nothing new was to report"
    );
    report(
        &mut settings,
        "TimeZone",
        "Europe/Paris",
        Status::InTransaction,
    );
    run(&mut settings, "COMMIT", Status::Idle);
    assert_eq!(shown(&settings, "timezone"), "Europe/Paris");
    run(&mut settings, "RESET timezone", Status::Idle);
    assert_eq!(shown(&settings, "timezone"), "UTC");
    report(&mut settings, "is_superuser", "on", Status::Idle);
    assert_eq!(shown(&settings, "is_superuser"), "default");
    // A function did it.
    report(&mut settings, "DateStyle", "German, DMY", Status::Idle);
    assert_eq!(shown(&settings, "datestyle"), "German, DMY");
}

#[test]
fn a_reset_gives_what_the_sessions_own_login_had() {
    let mut settings = Settings::default();
    settings.reported_at_login(b"TimeZone", b"Europe/Paris");
    run(&mut settings, "SET timezone = 'UTC'", Status::Idle);
    // The login of the server connection had another one.
    settings.apply(&effects(b"RESET timezone", true));
    report(&mut settings, "TimeZone", "Asia/Tokyo", Status::Idle);
    assert_eq!(shown(&settings, "timezone"), "Europe/Paris");
}

fn report(settings: &mut Settings, name: &str, value: &str, status: Status) {
    settings.reported(name.as_bytes(), value.as_bytes());
    settings.ready(status).expect("the status is as expected");
}

fn texts(server: &Settings, wanted: &Settings) -> Vec<String> {
    difference(server, wanted)
        .into_iter()
        .map(|statement| String::from_utf8(statement).expect("UTF-8"))
        .collect()
}

#[test]
fn a_difference_is_what_has_to_be_sent() {
    let (mut server, mut wanted) = (
        Settings::default(),
        Settings::new([(&b"a.s"[..], &b"1"[..])]),
    );
    run(
        &mut server,
        "SET a.gone = 1; SET a.same = 2; SET a.s = 7",
        Status::Idle,
    );
    run(
        &mut wanted,
        r"SET a.same = 2; SET a.b = 'it''s \ 1'; SET search_path = a, 'B''c'; SET NAMES 'UTF8'",
        Status::Idle,
    );
    assert_eq!(
        texts(&server, &wanted),
        [
            "SET \"client_encoding\" TO 'UTF8'",
            r#"SET "a"."b" TO E'it''s \\ 1'"#,
            r#"RESET "a"."gone""#,
            r#"SET "a"."s" TO '1'"#,
            r#"SET "search_path" TO 'a', 'B''c'"#,
        ]
    );
    run(
        &mut wanted,
        "SELECT set_config('search_path', 'a, \"B\"', false)",
        Status::Idle,
    );
    assert_eq!(
        texts(&server, &wanted).last().map(String::as_str),
        Some("SELECT pg_catalog.set_config('search_path', 'a, \"B\"', false)")
    );
}

#[test]
fn what_only_the_first_server_reports_is_left_alone_until_the_session_sets_it() {
    let (mut newer, mut older) = (Settings::default(), Settings::default());
    for (name, value) in [("TimeZone", "UTC"), ("scram_iterations", "4096")] {
        newer.reported_at_login(name.as_bytes(), value.as_bytes());
    }
    older.reported_at_login(b"TimeZone", b"Asia/Tokyo");
    let timezone = r#"SET "timezone" TO 'UTC'"#;
    assert_eq!(texts(&older, &newer), [timezone]);
    newer.apply(&effects(b"SET scram_iterations = 5000", true));
    report(&mut newer, "scram_iterations", "5000", Status::Idle);
    assert_eq!(
        texts(&older, &newer),
        [r#"SET "scram_iterations" TO '5000'"#, timezone]
    );
}

#[test]
fn each_setting_is_set_by_who_set_it() {
    let (mut server, mut wanted) = (Settings::default(), Settings::default());
    run(
        &mut server,
        "SET a.x = 1; SET SESSION AUTHORIZATION c; SET ROLE d",
        Status::Idle,
    );
    run(
        &mut wanted,
        "SET a.a = 1; SET ROLE a; SET a.b = 2; SET ROLE b; SET a.c = 3",
        Status::Idle,
    );
    assert_eq!(
        texts(&server, &wanted),
        [
            "SET SESSION AUTHORIZATION DEFAULT",
            r#"SET "a"."a" TO '1'"#,
            r#"RESET "a"."x""#,
            "SET ROLE 'a'",
            r#"SET "a"."b" TO '2'"#,
            "SET ROLE 'b'",
            r#"SET "a"."c" TO '3'"#,
        ]
    );
    assert_eq!(
        texts(&wanted, &Settings::default()),
        [
            r#"RESET "a"."c""#,
            "SET ROLE 'a'",
            r#"RESET "a"."b""#,
            "RESET ROLE",
            r#"RESET "a"."a""#,
        ]
    );
}

fn statement() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "SET a.x = 1",
        r"SET a.x = 'it''s \'",
        "SET a.y TO DEFAULT",
        "SET LOCAL a.y = 2",
        "SET a.y = 3",
        "RESET a.x",
        "RESET ALL",
        "DISCARD ALL",
        "SET search_path = a, \"B c\"",
        "SELECT set_config('search_path', 'a, b', false)",
        "SET ROLE a",
        "SET LOCAL ROLE b",
        "RESET ROLE",
        "SET SESSION AUTHORIZATION a",
        "RESET SESSION AUTHORIZATION",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT s",
        "RELEASE s",
        "ROLLBACK TO s",
        "SET a.x FROM CURRENT",
    ])
}

fn settings() -> impl Strategy<Value = Settings> {
    let startup = prop::sample::subsequence(vec![("a.x", "1"), ("a.y", "9"), ("a.z", "5")], 0..=3);
    (startup, prop::collection::vec(statement(), 0..25)).prop_map(|(startup, statements)| {
        let startup = startup
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let mut settings = Settings::new(startup);
        for statement in statements {
            settings.apply(&effects(statement.as_bytes(), true));
        }
        run(&mut settings, "COMMIT", Status::Idle);
        settings
    })
}

proptest! {
    #[test]
    fn after_the_difference_a_server_has_what_is_wanted(mut server in settings(), wanted in settings()) {
        for statement in difference(&server, &wanted) {
            let effects = effects(&statement, false);
            prop_assert_eq!(effects.doubt, None);
            server.apply(&effects);
        }
        server.ready(Status::Idle).expect("no transaction is open");
        prop_assert_eq!(texts(&server, &wanted), Vec::<String>::new());
        for name in ["a.x", "a.y", "a.z", "search_path", "role", "session_authorization"] {
            let wanted = wanted.value(name.as_bytes());
            if *wanted != Value::Default {
                prop_assert_eq!(server.value(name.as_bytes()), wanted);
            }
        }
    }

    #[test]
    fn a_rolled_back_transaction_leaves_no_trace(
        before in settings(),
        statements in prop::collection::vec(statement(), 0..25),
    ) {
        let mut after = before.clone();
        after.apply(&effects(b"BEGIN", true));
        for statement in statements {
            let effects = effects(statement.as_bytes(), true);
            if !matches!(effects.effect, Effect::Transaction(Transaction::Commit { .. } | Transaction::Rollback { .. }) | Effect::Discard(_)) {
                after.apply(&effects);
            }
        }
        run(&mut after, "ROLLBACK", Status::Idle);
        prop_assert_eq!(before, after);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(text in prop::collection::vec(any::<u8>(), 0..60), word in prop::sample::select(vec![
        "SET ", "RESET ", "BEGIN ", "PREPARE ", "SELECT set_config(", "CREATE TEMP ", "DECLARE ", "EXPLAIN ", "",
    ])) {
        let _ = effects(&[word.as_bytes(), &text].concat(), true);
    }
}

#[test]
fn what_the_client_was_told_last_is_mended_once() {
    let mut settings = Settings::new([(&b"timezone"[..], &b"Asia/Tokyo"[..])]);
    settings.reported_at_login(b"TimeZone", b"Asia/Tokyo");
    settings.apply(&effects(b"SET timezone = 'UTC'", true));
    settings.reported(b"TimeZone", b"UTC");
    assert!(settings.ready(Status::Idle).is_ok());
    assert!(settings.untold().is_empty());
    settings.apply(&effects(b"DISCARD ALL", true));
    assert!(settings.ready(Status::Idle).is_ok());
    let told = (b"TimeZone".to_vec(), b"Asia/Tokyo".to_vec());
    assert_eq!(settings.untold(), [told]);
    assert!(settings.untold().is_empty());
}
