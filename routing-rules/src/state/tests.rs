use super::*;

fn of(statement: &str) -> Effects {
    effects(statement.as_bytes(), true)
}

fn text(value: &str) -> Value {
    Value::Text(value.into())
}

fn list(names: &[&str]) -> Value {
    Value::List(names.iter().map(|&name| name.into()).collect())
}

fn set(name: &str, value: Value, scope: Scope) -> Change {
    let name = name.into();
    Change::Set { name, value, scope }
}

#[test]
fn statements_of_transactions_are_known() {
    use Transaction::{
        Commit, CommitPrepared, Prepare, Release, Rollback, RollbackPrepared, RollbackTo,
        Savepoint, Snapshot,
    };
    let modes = Modes {
        isolation: Some(Isolation::Serializable),
        read_only: Some(true),
        deferrable: Some(true),
    };
    let name = || b"s1".to_vec();
    let table = [
        ("BEGIN", Transaction::Begin(Modes::default())),
        ("begin work", Transaction::Begin(Modes::default())),
        (
            "/* a */ Begin TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY DEFERRABLE",
            Transaction::Begin(modes),
        ),
        (
            "START TRANSACTION READ WRITE NOT DEFERRABLE ISOLATION LEVEL REPEATABLE READ",
            Transaction::Begin(Modes {
                isolation: Some(Isolation::RepeatableRead),
                read_only: Some(false),
                deferrable: Some(false),
            }),
        ),
        (
            "SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED",
            Transaction::Modes(Modes {
                isolation: Some(Isolation::ReadUncommitted),
                ..Modes::default()
            }),
        ),
        (
            "SET LOCAL TRANSACTION READ ONLY, DEFERRABLE, ISOLATION LEVEL SERIALIZABLE",
            Transaction::Modes(modes),
        ),
        ("SET TRANSACTION SNAPSHOT 's1'", Snapshot(name())),
        ("COMMIT", Commit { chain: false }),
        ("END TRANSACTION AND NO CHAIN", Commit { chain: false }),
        ("COMMIT WORK AND CHAIN", Commit { chain: true }),
        ("ROLLBACK", Rollback { chain: false }),
        ("ABORT AND CHAIN", Rollback { chain: true }),
        ("SAVEPOINT S1", Savepoint(name())),
        ("SAVEPOINT \"S1\"", Savepoint(b"S1".to_vec())),
        ("SAVEPOINT savepoint", Savepoint(b"savepoint".to_vec())),
        ("RELEASE s1", Release(name())),
        ("RELEASE SAVEPOINT s1", Release(name())),
        ("RELEASE savepoint", Release(b"savepoint".to_vec())),
        ("ROLLBACK TO s1", RollbackTo(name())),
        ("ROLLBACK WORK TO SAVEPOINT s1", RollbackTo(name())),
        ("PREPARE TRANSACTION 's1'", Prepare(name())),
        ("COMMIT PREPARED E's\\x31'", CommitPrepared(name())),
        (
            "ROLLBACK PREPARED U&'s!0031' UESCAPE '!'",
            RollbackPrepared(name()),
        ),
    ];
    for (statement, transaction) in table {
        let expected = Effects {
            effect: Effect::Transaction(transaction),
            ..Effects::default()
        };
        assert_eq!(of(statement), expected, "{statement}");
    }
}

#[test]
fn changes_of_settings_are_known() {
    use Scope::{Local, Session};
    let default = || Value::Default;
    let table = [
        (
            "SET work_mem = '64MB'",
            set("work_mem", text("64MB"), Session),
        ),
        (
            "SET SESSION Work_Mem TO 4096",
            set("work_mem", text("4096"), Session),
        ),
        (
            "SET LOCAL \"work_mem\" TO -0x1f",
            set("work_mem", text("-31"), Local),
        ),
        (
            "SET a.\"B\".c TO 1_0.5",
            set("a.b.c", text("1_0.5"), Session),
        ),
        (
            "SET a.b = 99999999999",
            set("a.b", text("99999999999"), Session),
        ),
        ("SET a.b = +007", set("a.b", text("7"), Session)),
        ("SET jit = ON", set("jit", text("on"), Session)),
        ("SET jit = true", set("jit", text("true"), Session)),
        ("SET sort_mem = 64", set("work_mem", text("64"), Session)),
        (
            "SET DateStyle TO ISO, 'DMY'",
            set("datestyle", text("iso, DMY"), Session),
        ),
        (
            "SET search_path TO a, \"B\", 'c d'",
            set("search_path", list(&["a", "B", "c d"]), Session),
        ),
        (
            "SET search_path = ''",
            set("search_path", list(&[""]), Session),
        ),
        ("SET SCHEMA 'x'", set("search_path", list(&["x"]), Session)),
        ("SET LOCAL schema.x = 1", set("schema.x", text("1"), Local)),
        ("SET x TO DEFAULT", set("x", default(), Session)),
        ("RESET X", set("x", default(), Session)),
        ("RESET TIME ZONE", set("timezone", default(), Session)),
        (
            "RESET session authorization",
            set("session_authorization", default(), Session),
        ),
        ("RESET role", set("role", default(), Session)),
        ("RESET ALL", Change::ResetAll),
        ("SET TIME ZONE 'UTC'", set("timezone", text("UTC"), Session)),
        (
            "SET LOCAL TIME ZONE LOCAL",
            set("timezone", default(), Local),
        ),
        (
            "SET TIME ZONE PST8PDT",
            set("timezone", text("pst8pdt"), Session),
        ),
        ("SET TIME ZONE -7.5", set("timezone", text("-7.5"), Session)),
        (
            "SET TIME ZONE INTERVAL '-08:00' HOUR TO MINUTE",
            set("timezone", text("INTERVAL '-08:00'"), Session),
        ),
        ("SET time TO 1", set("time", text("1"), Session)),
        (
            "SET NAMES 'latin1'",
            set("client_encoding", text("latin1"), Session),
        ),
        ("SET NAMES", set("client_encoding", default(), Session)),
        (
            "SET NAMES DEFAULT",
            set("client_encoding", default(), Session),
        ),
        ("SET ROLE NONE", set("role", text("none"), Session)),
        ("SET LOCAL ROLE \"Bob\"", set("role", text("Bob"), Local)),
        ("SET SESSION ROLE bob", set("role", text("bob"), Session)),
        ("SET role = 'bob'", set("role", text("bob"), Session)),
        (
            "SET SESSION AUTHORIZATION bob",
            set("session_authorization", text("bob"), Session),
        ),
        (
            "SET LOCAL SESSION AUTHORIZATION 'bob'",
            set("session_authorization", text("bob"), Local),
        ),
        (
            "SET SESSION SESSION AUTHORIZATION DEFAULT",
            set("session_authorization", default(), Session),
        ),
        ("SET session.x = 1", set("session.x", text("1"), Session)),
        ("SET local TO 1", set("local", text("1"), Session)),
        (
            "SET XML OPTION DOCUMENT",
            set("xmloption", text("document"), Session),
        ),
        (
            "SET x FROM CURRENT",
            Change::FromCurrent {
                name: b"x".to_vec(),
                scope: Session,
            },
        ),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            set("default_transaction_read_only", text("on"), Session),
        ),
        (
            "SELECT pg_catalog.set_config('Search_Path', '', false);",
            set("search_path", text(""), Session),
        ),
        (
            "select set_config('a.b', E'x\\n'::text, 't')",
            set("a.b", text("x\n"), Local),
        ),
        (
            "SELECT set_config('a.b', NULL, true) AS x",
            set("a.b", default(), Local),
        ),
    ];
    for (statement, change) in table {
        let statement = statement.trim_end_matches(';');
        let found = of(statement);
        assert_eq!(found.changes, [change], "{statement}");
        assert_eq!(
            (found.doubt, found.effect),
            (None, Effect::None),
            "{statement}"
        );
    }
    let characteristics = of(
        "SET LOCAL SESSION CHARACTERISTICS AS TRANSACTION DEFERRABLE, ISOLATION LEVEL READ COMMITTED",
    );
    assert_eq!(
        characteristics.changes,
        [
            set(
                "default_transaction_isolation",
                text("read committed"),
                Local
            ),
            set("default_transaction_deferrable", text("on"), Local),
        ]
    );
    let two = of("SELECT set_config('a.b', '1', false), set_config('role', 'bob', true)");
    assert_eq!(
        two.changes,
        [
            set("a.b", text("1"), Session),
            set("role", text("bob"), Local)
        ]
    );
    assert_eq!(two.doubt, None);
}

#[test]
fn what_the_session_owns_is_known() {
    let name = || b"x".to_vec();
    let one = || Names::One(name());
    let table = [
        ("SHOW X", Effect::Show(one())),
        (
            "SHOW TIME ZONE",
            Effect::Show(Names::One(b"timezone".to_vec())),
        ),
        ("SHOW ALL", Effect::Show(Names::All)),
        (
            "PREPARE x AS SELECT set_config('a', f(), false)",
            Effect::Prepare {
                name: name(),
                statement: 13..47,
            },
        ),
        (
            "PREPARE x (int, numeric(1, 2)) AS SELECT 1",
            Effect::Prepare {
                name: name(),
                statement: 34..42,
            },
        ),
        (
            "PREPARE transaction AS SELECT 1",
            Effect::Prepare {
                name: b"transaction".to_vec(),
                statement: 23..31,
            },
        ),
        ("EXECUTE x (1, lower('a'))", Effect::Execute(name())),
        ("CREATE TABLE t AS EXECUTE x(1)", Effect::Execute(name())),
        (
            "EXPLAIN (ANALYZE, COSTS off) EXECUTE x",
            Effect::Execute(name()),
        ),
        ("DEALLOCATE x", Effect::Deallocate(one())),
        ("DEALLOCATE PREPARE x", Effect::Deallocate(one())),
        ("DEALLOCATE PREPARE ALL", Effect::Deallocate(Names::All)),
        (
            "DEALLOCATE prepare",
            Effect::Deallocate(Names::One(b"prepare".to_vec())),
        ),
        (
            "DECLARE x CURSOR FOR SELECT 1",
            Effect::Declare {
                name: name(),
                hold: false,
            },
        ),
        (
            "DECLARE x NO SCROLL CURSOR WITHOUT HOLD FOR SELECT 1",
            Effect::Declare {
                name: name(),
                hold: false,
            },
        ),
        ("CLOSE x", Effect::Close(one())),
        ("UNLISTEN x", Effect::Unlisten(one())),
        ("NOTIFY X, 'payload'", Effect::Notify(name())),
        ("DISCARD PLANS", Effect::Discard(Discard::Plans)),
    ];
    for (statement, effect) in table {
        let expected = Effects {
            effect,
            ..Effects::default()
        };
        assert_eq!(of(statement), expected, "{statement}");
    }
}

#[test]
fn what_pins_a_session_is_known_and_nothing_else_does() {
    use Pin::{
        ExportedSnapshot, ForeignConnection, HeldCursor, LargeObject, Listen, LoadedLibrary,
        RandomSeed, ReplicationOrigin, SequenceValue, SessionAdvisoryLock, TemporaryObject,
    };
    let table = [
        ("CREATE TEMP TABLE t (a int)", TemporaryObject),
        (
            "CREATE LOCAL TEMPORARY TABLE t AS SELECT 1",
            TemporaryObject,
        ),
        (
            "CREATE TEMP TABLE t (a int) ON COMMIT DELETE ROWS",
            TemporaryObject,
        ),
        ("CREATE OR REPLACE TEMP VIEW v AS SELECT 1", TemporaryObject),
        ("CREATE TEMPORARY SEQUENCE s", TemporaryObject),
        ("CREATE TABLE pg_temp.t (a int)", TemporaryObject),
        (
            "CREATE FUNCTION pg_temp.f() RETURNS int RETURN 1",
            TemporaryObject,
        ),
        ("SELECT * INTO TEMP t FROM u", TemporaryObject),
        (
            "WITH a AS (SELECT 1) SELECT * INTO LOCAL TEMPORARY TABLE t FROM a",
            TemporaryObject,
        ),
        ("SET search_path = pg_temp, public", TemporaryObject),
        ("SELECT pg_advisory_lock(1)", SessionAdvisoryLock),
        (
            "SELECT Pg_Catalog.PG_TRY_ADVISORY_LOCK_SHARED(1, 2)",
            SessionAdvisoryLock,
        ),
        (
            "UPDATE t SET a = 1 WHERE \"pg_advisory_lock\"(id) IS NOT NULL",
            SessionAdvisoryLock,
        ),
        (
            "DECLARE c INSENSITIVE CURSOR WITH HOLD FOR SELECT 1",
            HeldCursor,
        ),
        ("LISTEN x", Listen),
        ("SELECT currval('s')", SequenceValue),
        ("INSERT INTO t VALUES (lastval())", SequenceValue),
        ("SELECT setseed(0.5)", RandomSeed),
        ("SET seed = 0.5", RandomSeed),
        ("LOAD 'auto_explain'", LoadedLibrary),
        ("SELECT public.dblink_connect('a', 'b')", ForeignConnection),
        (
            "SELECT pg_replication_origin_session_setup('x')",
            ReplicationOrigin,
        ),
        ("SELECT lo_open(1, 2)", LargeObject),
        ("SELECT pg_export_snapshot()", ExportedSnapshot),
    ];
    for (statement, pin) in table {
        let pins = of(statement).pins;
        assert_eq!(pins.iter().collect::<Vec<_>>(), [pin], "{statement}");
    }
    for statement in [
        "CREATE TEMP TABLE t (a int) ON COMMIT DROP",
        "CREATE TABLE temp (a int)",
        "SELECT 1 INTO temp FROM t",
        "INSERT INTO temp SELECT 1",
        "INSERT INTO temp (a) VALUES (1)",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT 'pg_advisory_lock(1)' -- pg_advisory_lock(1)",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE FUNCTION f() RETURNS void BEGIN ATOMIC SELECT pg_advisory_lock(1); END",
        "SELECT currval FROM t",
        "SET search_path = public, pg_temp",
    ] {
        assert!(of(statement).pins.is_empty(), "{statement}");
    }
    let before: Pins = Pins::all();
    let after = of("DISCARD ALL").pins_after(before);
    assert!(!after.contains(TemporaryObject) && after.contains(LoadedLibrary));
    assert!(!of("CLOSE ALL").pins_after(before).contains(HeldCursor));
    assert!(!of("UNLISTEN *").pins_after(before).contains(Listen));
    assert_eq!(SessionAdvisoryLock.to_string(), "session advisory lock");
}

#[test]
fn ordinary_statements_have_no_effects_on_the_session() {
    for statement in [
        "",
        "-- nothing",
        "SELECT * FROM t WHERE a IN (1, 2) AND (b = 'x' OR COUNT(*) > 1)",
        "SELECT coalesce(max(a), 0), now()::timestamptz(3), x::numeric(10, 2), CAST(y AS varchar(5)) FROM t",
        "SELECT extract(year FROM d), overlay('a' placing 'b' from 1), interval '1 day' * (2)",
        "SELECT row_number() OVER (PARTITION BY a ORDER BY b), sum(x) FILTER (WHERE true) OVER w FROM t WINDOW w AS (ORDER BY c)",
        "SELECT g FROM generate_series(1, 3) g(i), LATERAL (SELECT 1) x, (VALUES (1)) AS v(a)",
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY a) FROM t GROUP BY GROUPING SETS ((a), ())",
        "WITH a (x) AS (SELECT 1), b AS MATERIALIZED (SELECT 2) SELECT * FROM a JOIN b USING (x)",
        "WITH RECURSIVE r (n) AS (SELECT 1 UNION ALL (SELECT n + 1 FROM r)) SELECT array(SELECT n FROM r)",
        "INSERT INTO t (a, b) VALUES (1, nextval('s')) ON CONFLICT (a) DO UPDATE SET (a, b) = (1, 2) RETURNING *",
        "INSERT INTO s.t AS x (a) SELECT 1",
        "UPDATE t SET a = lower(b) WHERE EXISTS (SELECT 1)",
        "DELETE FROM t USING (SELECT 1) x WHERE a = ANY ($1)",
        "MERGE INTO t USING (SELECT 1) s ON (t.a = s.a) WHEN NOT MATCHED THEN INSERT (a) VALUES (1)",
        "COPY t (a, b) FROM STDIN (FORMAT csv)",
        "COPY (SELECT 1) TO STDOUT",
        "(SELECT 1) UNION (SELECT 2)",
        "VALUES (1), (2)",
        "TABLE t",
        "EXPLAIN (ANALYZE) SELECT count(*) FROM t",
        "CREATE TABLE t (a int DEFAULT f(), b numeric(1, 2))",
        "CREATE TABLE t AS SELECT count(*) FROM u",
        "CREATE INDEX ON t (f(a))",
        "CREATE VIEW v AS SELECT set_config('a', 'b', false)",
        "ALTER TABLE t ADD COLUMN a int CHECK (a > 1)",
        "VACUUM (ANALYZE) t",
        "DROP TABLE t",
        "GRANT SELECT (a) ON t TO u",
        "SELECT N'a', U&'d\\0061', $$set_config('a', 'b', false)$$",
    ] {
        assert_eq!(of(statement), Effects::default(), "{statement}");
    }
}

#[test]
fn what_can_not_be_known_is_a_doubt() {
    let table = [
        ("DO $$ BEGIN PERFORM 1; END $$", Doubt::Do),
        ("CALL p(1)", Doubt::Call),
        ("SELECT my_function(1)", Doubt::Function),
        ("SELECT app.lower(a) FROM t", Doubt::Function),
        ("SELECT * FROM \"F\"(1)", Doubt::Function),
        ("CREATE TABLE t AS SELECT f(1)", Doubt::Function),
        ("EXPLAIN ANALYZE SELECT f(1)", Doubt::Function),
        ("EXECUTE x(f(1))", Doubt::Function),
        (
            "SELECT set_config('a.b', 'x', false) FROM t",
            Doubt::SetConfig,
        ),
        (
            "SELECT set_config('a.b', 'x', false) WHERE false",
            Doubt::SetConfig,
        ),
        (
            "SELECT set_config('a.b', 'x' || 'y', false)",
            Doubt::SetConfig,
        ),
        ("SELECT set_config($1, $2, false)", Doubt::SetConfig),
        ("SELECT set_config('a.b', 'x', $1::bool)", Doubt::SetConfig),
        ("SELECT set_config($1, $2, true)", Doubt::LocalSetting),
        (
            "SELECT f(1), set_config('a.b', 'x', false)",
            Doubt::SetConfig,
        ),
        (
            "INSERT INTO t SELECT set_config('a.b', 'x', false)",
            Doubt::SetConfig,
        ),
        ("SET x y z", Doubt::Syntax),
        ("RESET a b", Doubt::Syntax),
        ("BEGIN NONSENSE", Doubt::Syntax),
        ("SELECT 'a", Doubt::Syntax),
    ];
    for (statement, doubt) in table {
        assert_eq!(of(statement).doubt, Some(doubt), "{statement}");
    }
}

#[test]
fn the_lexical_setting_decides_what_is_seen() {
    let statement = b"SELECT 'a\\', pg_advisory_lock(1), '";
    assert!(
        effects(statement, true)
            .pins
            .contains(Pin::SessionAdvisoryLock)
    );
    assert_eq!(effects(statement, false).pins, Pins::default());
}

#[test]
fn parameters_of_set_config_are_bound() {
    let statement = of("SELECT set_config('App.User', $1, $3), set_config($2, 'x', true)");
    assert_eq!(statement.doubt, Some(Doubt::SetConfig));
    let bind = |values: [Option<Option<&'static [u8]>>; 3]| {
        let bound = statement
            .clone()
            .bind(|number| values[usize::from(number) - 1]);
        (bound.changes, bound.doubt)
    };
    let user = |value, scope| set("app.user", value, scope);
    let other = set("a.b", text("x"), Scope::Local);
    assert_eq!(
        bind([Some(Some(b"it's")), Some(Some(b"A.B")), Some(Some(b"f"))]),
        (
            vec![user(text("it's"), Scope::Session), other.clone()],
            None
        )
    );
    assert_eq!(
        bind([Some(None), Some(Some(b"a.b")), Some(Some(&[1]))]),
        (
            vec![user(Value::Default, Scope::Local), other.clone()],
            None
        )
    );
    assert_eq!(
        bind([None, Some(Some(b"a.b")), Some(Some(b"true"))]),
        (vec![other], Some(Doubt::LocalSetting))
    );
    let certain = of("SELECT set_config('a.b', 'x', false)");
    assert_eq!(certain.clone().bind(|_| None), certain);
}

#[test]
fn the_functions_that_are_not_known_are_named() {
    let statement = "SELECT lower(a), app . f(1), \"G\"(pg_catalog.upper('x')) FROM t";
    let functions = of(statement).unknown_functions.into_iter();
    let names: Vec<&str> = functions.map(|range| &statement[range]).collect();
    assert_eq!(names, ["app . f", "\"G\""]);
}
