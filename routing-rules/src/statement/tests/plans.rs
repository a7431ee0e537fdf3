//! Plans, the keys that they tell of texts, and their cache.

use proptest::prelude::*;

use super::super::*;
use super::parameter;
use crate::catalog::{Catalog, Column, ColumnType, Relation, RelationKind, Volatility};
use crate::model::{NodeInfo, Rules};
use crate::template::Template;

const RULES: &str = r#"
[placement.station]
strategy = "hash"
[placement.branch]
strategy = "hash"
[[affinity]]
placement = "station"
tables = { "public.stations" = "id", bikes = "station_id", rentals = "station_id" }
[[affinity]]
placement = "branch"
tables = { tellers = { column = "tid", key = "(tid - 1) / 10 + 1" } }
"#;

fn rules() -> Rules {
    let node = |id, name: &str| NodeInfo {
        id,
        name: name.to_owned(),
        zone: None,
    };
    Rules::parse(RULES, &[node(1, "paris"), node(2, "oslo")]).expect("rules")
}

fn table(schema: &str, name: &str, kind: RelationKind, columns: &[(&str, ColumnType)]) -> Relation {
    let column = |(name, column_type): &(&str, ColumnType)| Column {
        name: (*name).to_owned(),
        column_type: *column_type,
    };
    Relation {
        schema: schema.to_owned(),
        name: name.to_owned(),
        kind,
        columns: columns.iter().map(column).collect(),
        partition_of: None,
        writes_elsewhere: false,
    }
}

fn view(name: &str, definition: &str, columns: &[&str]) -> Relation {
    let kind = RelationKind::View {
        definition: definition.to_owned(),
    };
    let columns: Vec<_> = columns
        .iter()
        .map(|name| (*name, ColumnType::Integer))
        .collect();
    table("public", name, kind, &columns)
}

fn catalog() -> Catalog {
    let integer = ColumnType::Integer;
    let text = ColumnType::Text {
        deterministic: true,
    };
    let partition = Relation {
        partition_of: Some(("public".to_owned(), "rentals".to_owned())),
        ..table(
            "public",
            "rentals_2026",
            RelationKind::Table,
            &[("id", integer), ("station_id", integer)],
        )
    };
    let instead = Relation {
        writes_elsewhere: true,
        ..view(
            "instead",
            "SELECT id, station_id FROM public.bikes",
            &["id", "station_id"],
        )
    };
    Catalog::builder()
        .relation(table(
            "public",
            "bikes",
            RelationKind::Table,
            &[("id", integer), ("station_id", integer)],
        ))
        .relation(table(
            "public",
            "stations",
            RelationKind::Table,
            &[("id", text)],
        ))
        .relation(table(
            "other",
            "stations",
            RelationKind::Table,
            &[("id", text)],
        ))
        .relation(table(
            "public",
            "rentals",
            RelationKind::Partitioned,
            &[("id", integer), ("station_id", integer)],
        ))
        .relation(partition)
        .relation(instead)
        .relation(view(
            "plain",
            "SELECT b.id AS bike, b.station_id AS at FROM public.bikes b WHERE b.id > 0",
            &["bike", "at"],
        ))
        .relation(view(
            "fixed",
            "SELECT bikes.id FROM public.bikes WHERE bikes.station_id = 7",
            &["id"],
        ))
        .relation(view(
            "counted",
            "SELECT count(*) AS n, station_id FROM public.bikes GROUP BY station_id",
            &["n", "station_id"],
        ))
        .relation(view("writing", "SELECT public.writes() AS x", &["x"]))
        .relation(view(
            "over",
            "SELECT plain.at AS there FROM public.plain",
            &["there"],
        ))
        .relation(view("endless", "SELECT x FROM public.endless", &["x"]))
        .relation(view("broken", "SELEC", &["x"]))
        .function("public", "reads", Volatility::Stable)
        .function("public", "writes", Volatility::Volatile)
        .function("public", "lower", Volatility::Volatile)
        .function("hidden", "upper", Volatility::Volatile)
        .build()
}

/// Class and evidence of a text by itself, in one line.
fn planned(text: &str, catalog: Option<&Catalog>) -> String {
    let mut template = Template::default();
    let shape = template.read(text.as_bytes()).expect("a template");
    let plan = Plan::of(text, &rules(), catalog, &["public"]);
    let parameters = [parameter("101"), parameter("{201,202}")];
    let evidence = plan.evidence(&Values {
        literals: shape.literals,
        parameters: &parameters,
    });
    format!("{}: {evidence}", plan.class.word())
}

fn check(catalog: Option<&Catalog>, table: &[(&str, &str)]) {
    let mut wrong = String::new();
    for (text, expected) in table {
        let found = planned(text, catalog);
        if found != *expected {
            wrong += &format!("{text}\n   expected {expected}\n   found    {found}\n");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn the_keys_of_what_is_written_decide() {
    check(
        None,
        &[
            (
                "UPDATE bikes SET x = 1 WHERE station_id = 7",
                "write: station:7",
            ),
            (
                "UPDATE bikes SET x = 1 WHERE station_id = '007'",
                "write: station:7",
            ),
            (
                "UPDATE bikes SET x = 1 WHERE station_id = $1",
                "write: station:101",
            ),
            (
                "UPDATE bikes SET x = 1 WHERE station_id = -7",
                "write: station:-7",
            ),
            (
                "UPDATE bikes SET x = 1 WHERE station_id IN (7, 8, 7)",
                "write: station:7, station:8",
            ),
            (
                "UPDATE bikes SET x = 1 WHERE station_id IN (9, 8)",
                "write: station:9, station:8",
            ),
            (
                "UPDATE bikes SET x = 1 WHERE station_id = ANY($2)",
                "write: station:201, station:202",
            ),
            (
                "UPDATE bikes SET x = 1 WHERE id = 7",
                "write: it does not say which key of table bikes",
            ),
            (
                "UPDATE bikes SET x = 1 WHERE station_id = $3",
                "write: the key of table bikes cannot be told",
            ),
            (
                "UPDATE bikes SET x = 1 WHERE station_id = 7.0",
                "write: the key of table bikes cannot be told",
            ),
            (
                "UPDATE bikes SET station_id = 8 WHERE station_id = 7",
                "write: station:8, station:7",
            ),
            (
                "UPDATE other SET x = 1 WHERE station_id = 7",
                "write: no table of it has a rule",
            ),
            (
                "UPDATE s.bikes SET x = 1 WHERE station_id = 7",
                "write: station:7",
            ),
            ("UPDATE stations SET x = 1 WHERE id = 7", "write: station:7"),
            (
                "UPDATE s.stations SET x = 1 WHERE id = 7",
                "write: no table of it has a rule",
            ),
            (
                "INSERT INTO bikes (id, station_id) VALUES (1, 7), (2, 8)",
                "write: station:7, station:8",
            ),
            (
                "INSERT INTO bikes (station_id) VALUES (7), (7)",
                "write: station:7",
            ),
            (
                "INSERT INTO bikes VALUES (1, 7)",
                "write: it does not say which key of table bikes",
            ),
            ("INSERT INTO tellers (tid) VALUES (11)", "write: branch:2"),
            (
                "UPDATE tellers SET x = x + 1 WHERE tid = $1",
                "write: branch:11",
            ),
            (
                "UPDATE tellers SET x = 1 WHERE tid = 'x'",
                "write: the key of table tellers cannot be told",
            ),
            (
                "INSERT INTO rentals (station_id) SELECT 7 FROM bikes WHERE station_id = 8",
                "write: station:7",
            ),
            (
                "UPDATE log SET x = 1 FROM bikes WHERE bikes.station_id = 7",
                "write: no table of it has a rule",
            ),
            (
                "WITH j AS (SELECT id FROM bikes WHERE station_id = 7 LIMIT 1 FOR UPDATE) UPDATE bikes b SET x = 1 FROM j WHERE b.id = j.id",
                "write: station:7",
            ),
            (
                "SELECT * FROM bikes WHERE station_id = 7 FOR UPDATE",
                "lock: station:7",
            ),
            (
                "SELECT * FROM bikes WHERE station_id = 7",
                "read: station:7",
            ),
            (
                "SELECT writes() FROM bikes WHERE station_id = 7",
                "write: no table of it has a rule",
            ),
            (
                "BEGIN; UPDATE bikes SET x = 1 WHERE station_id = 7; UPDATE tellers SET x = 1 WHERE tid = 1; COMMIT",
                "write: station:7, branch:1",
            ),
            ("BEGIN; SELECT 1; COMMIT", "read: no table of it has a rule"),
            (
                "CREATE TABLE bikes (id int)",
                "DDL: no table of it has a rule",
            ),
            ("", "transaction control: no table of it has a rule"),
        ],
    );
}

#[test]
fn casts_change_what_a_value_is() {
    check(
        None,
        &[
            (
                "DELETE FROM bikes WHERE station_id = '007'::int",
                "write: station:7",
            ),
            (
                "DELETE FROM bikes WHERE station_id = $1::bigint",
                "write: station:101",
            ),
            (
                "DELETE FROM bikes WHERE station_id = ANY('{1,2}'::int[])",
                "write: station:1, station:2",
            ),
            (
                "DELETE FROM bikes WHERE station_id = $1::float8",
                "write: it does not say which key of table bikes",
            ),
            (
                "DELETE FROM bikes WHERE station_id = 'abc'::char(2)",
                "write: it does not say which key of table bikes",
            ),
            (
                "DELETE FROM bikes WHERE station_id = 'abc'::varchar(2)",
                "write: it does not say which key of table bikes",
            ),
            (
                "DELETE FROM bikes WHERE station_id = 'abc'::varchar",
                "write: station:abc",
            ),
            (
                "DELETE FROM bikes WHERE station_id = '5'::text::int",
                "write: it does not say which key of table bikes",
            ),
            (
                "DELETE FROM bikes WHERE station_id = 'A0EEBC999C0B4EF8BB6D6BB9BD380A11'::uuid",
                "write: station:a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            ),
            (
                "DELETE FROM bikes WHERE station_id = true",
                "write: station:true",
            ),
            (
                "DELETE FROM bikes WHERE station_id = 't'::bool",
                "write: station:true",
            ),
        ],
    );
}

#[test]
fn a_catalog_says_what_names_are() {
    let catalog = catalog();
    check(
        Some(&catalog),
        &[
            ("INSERT INTO bikes VALUES (1, 7)", "write: station:7"),
            (
                "INSERT INTO bikes VALUES (1)",
                "write: it does not say which key of table public.bikes",
            ),
            (
                "UPDATE bikes SET x = 1 WHERE station_id = 'x'",
                "write: the key of table public.bikes cannot be told",
            ),
            (
                "UPDATE rentals_2026 SET x = 1 WHERE station_id = 7",
                "write: station:7",
            ),
            (
                "UPDATE other.stations SET x = 1 WHERE id = '7'",
                "write: no table of it has a rule",
            ),
            (
                "UPDATE stations SET x = 1 WHERE id = 'a'",
                "write: station:a",
            ),
            ("SELECT reads()", "read: no table of it has a rule"),
            ("SELECT writes()", "write: no table of it has a rule"),
            ("SELECT unheard_of()", "write: no table of it has a rule"),
            ("SELECT lower('A')", "write: no table of it has a rule"),
            (
                "SELECT pg_catalog.lower('A')",
                "read: no table of it has a rule",
            ),
            ("SELECT upper('A')", "read: no table of it has a rule"),
            (
                "SELECT hidden.upper('A')",
                "write: no table of it has a rule",
            ),
        ],
    );
}

#[test]
fn a_view_is_the_tables_behind_it() {
    let catalog = catalog();
    let not_said = "write: it does not say which key of table public.bikes";
    check(
        Some(&catalog),
        &[
            ("SELECT * FROM plain WHERE at = 7", "read: station:7"),
            ("SELECT * FROM over WHERE there = $1", "read: station:101"),
            ("SELECT * FROM fixed", "read: station:7"),
            (
                "SELECT * FROM counted WHERE station_id = 7",
                "read: it does not say which key of table public.bikes",
            ),
            ("SELECT * FROM writing", "write: no table of it has a rule"),
            (
                "SELECT * FROM endless",
                "unknown: no table of it has a rule",
            ),
            ("SELECT * FROM broken", "unknown: no table of it has a rule"),
            (
                "SELECT * FROM plain WHERE at = 7 FOR UPDATE",
                "lock: station:7",
            ),
            ("UPDATE plain SET bike = 1 WHERE at = 7", "write: station:7"),
            ("INSERT INTO plain VALUES (1, 7)", "write: station:7"),
            ("INSERT INTO plain (at) VALUES (8)", "write: station:8"),
            ("UPDATE fixed SET id = 1", not_said),
            ("INSERT INTO fixed (id) VALUES (1)", not_said),
            ("DELETE FROM counted WHERE station_id = 7", not_said),
            ("UPDATE instead SET id = 1 WHERE station_id = 7", not_said),
        ],
    );
    let names = |text: &str| {
        let plan = Plan::of(text, &rules(), Some(&catalog), &["public"]);
        let tables = plan.tables.iter().map(|table| table.name.to_string());
        tables.collect::<Vec<_>>()
    };
    assert_eq!(names("SELECT * FROM over"), ["public.bikes"]);
    assert_eq!(
        names("SELECT * FROM plain, stations"),
        ["public.bikes", "public.stations"]
    );
}

#[test]
fn literals_that_are_no_values_are_kept() {
    let kept = |text: &str| {
        let mut template = Template::default();
        let literals = template.read(text.as_bytes()).expect("read").literals;
        let plan = Plan::of(text, &rules(), None, &[]);
        let texts = plan.kept.iter().flat_map(|place| literals.at(*place));
        let texts = texts.map(|literal| String::from_utf8_lossy(literal.text).into_owned());
        texts.collect::<Vec<_>>().join(" ")
    };
    for (text, expected) in [
        (
            "SELECT 'a', 1, -2, 3.5 FROM t WHERE a IN (1, 2) AND b = E'x' LIMIT 5 OFFSET 6",
            "",
        ),
        (
            "INSERT INTO t (a) VALUES (1), ('x') ON CONFLICT (a) DO UPDATE SET b = 5 WHERE t.c = 6",
            "",
        ),
        (
            "UPDATE t SET a = 1 WHERE b BETWEEN 2 AND 3 RETURNING a + 4",
            "",
        ),
        ("EXPLAIN (ANALYZE 1) DELETE FROM t WHERE id = 7", "1"),
        (
            "EXPLAIN (ANALYZE 'off') DELETE FROM t WHERE id = 7",
            "'off'",
        ),
        (
            "SELECT set_config('a.b', 'c', false), lower('D')",
            "'a.b' 'c'",
        ),
        ("SELECT nextval('s'), 5", "'s'"),
        ("SELECT nextval(lower('S'))", "'S'"),
        ("SET a.b = 'c'", "'c'"),
        ("COPY t FROM STDIN WITH (delimiter ',')", "','"),
        ("SELECT a::varchar(10), 'x'::varchar(5)", "10 5"),
        ("EXECUTE p(1, 'a')", ""),
        ("CREATE TABLE t (a int DEFAULT 5)", "5"),
        ("SELECT 1; SET x = 2; SELECT 3", "2"),
        (
            "SELECT interval '1' day, date '2026-01-01', interval(3) '1 s'",
            "3",
        ),
    ] {
        assert_eq!(kept(text), expected, "{text}");
    }
}

#[test]
fn a_plan_says_whether_it_looks_at_literals_and_what_it_can_never_place() {
    let catalog = catalog();
    let plan = |text: &str| Plan::of(text, &rules(), Some(&catalog), &["public"]);
    for (text, needs_literals, unplaced) in [
        ("UPDATE bikes SET x = 1 WHERE station_id = $1", false, None),
        ("UPDATE bikes SET x = 1 WHERE station_id = 7", true, None),
        (
            "UPDATE bikes SET x = 1 WHERE station_id IN ($1, 7)",
            true,
            None,
        ),
        (
            "UPDATE bikes SET x = 1 WHERE id = 7",
            false,
            Some("public.bikes"),
        ),
        ("UPDATE log SET x = 1", false, Some("log")),
        ("SELECT * FROM bikes", false, None),
        ("SELECT * FROM fixed", false, None),
        (
            "UPDATE bikes SET x = 1 WHERE station_id = $1; DELETE FROM rentals",
            false,
            Some("public.rentals"),
        ),
    ] {
        let plan = plan(text);
        assert_eq!(
            (plan.needs_literals(), plan.unplaced()),
            (needs_literals, unplaced),
            "{text}"
        );
    }
}

#[test]
fn the_cache_spares_the_grammar_and_keeps_plans_apart() {
    let (rules, cache) = (rules(), PlanCache::new(1 << 20));
    let mut template = Template::default();
    let mut ask = |scope: u64, text: &str| {
        let shape = template.read(text.as_bytes()).expect("read");
        let found = cache.plan(scope, &shape, &rules, None, &["public"]);
        let evidence = found.plan.evidence(&Values {
            literals: shape.literals,
            parameters: &[],
        });
        (found.hit, found.plan.class, evidence.to_string())
    };
    let station = |key: i32| format!("station:{key}");
    let update = |key| format!("UPDATE bikes SET x = 1 WHERE station_id = {key}");
    assert_eq!(ask(0, &update(7)), (false, Class::Write, station(7)));
    assert_eq!(ask(0, &update(8)), (true, Class::Write, station(8)));
    assert_eq!(
        ask(1, &update(8)),
        (false, Class::Write, station(8)),
        "another scope"
    );
    let explain = |analyze, key| {
        format!("EXPLAIN (ANALYZE {analyze}) DELETE FROM bikes WHERE station_id = {key}")
    };
    let no_rule = "no table of it has a rule".to_owned();
    assert_eq!(
        ask(0, &explain(0, 7)),
        (false, Class::Read, no_rule.clone())
    );
    assert_eq!(ask(0, &explain(1, 7)), (false, Class::Write, station(7)));
    assert_eq!(ask(0, &explain(1, 8)), (true, Class::Write, station(8)));
    assert_eq!(ask(0, &explain(0, 8)), (true, Class::Read, no_rule.clone()));
    assert_eq!(ask(0, &explain(2, 8)), (false, Class::Write, station(8)));
    assert_eq!(ask(0, "SELEC 1"), (false, Class::Unknown, no_rule));
    assert!(!ask(0, "SELEC 1").0, "what the grammar refuses is not kept");
    let list = |keys: &str| format!("DELETE FROM bikes WHERE station_id IN ({keys})");
    assert_eq!(ask(0, &list("7")), (false, Class::Write, station(7)));
    let both = "station:1, station:2".to_owned();
    assert_eq!(ask(0, &list("1, 2, 1")), (true, Class::Write, both));
}

#[test]
fn the_cache_keeps_within_its_bytes_and_keeps_what_is_asked_for() {
    const BYTES_MAX: usize = 1 << 20;
    let (rules, cache) = (rules(), PlanCache::new(BYTES_MAX));
    let mut template = Template::default();
    let mut ask = |text: &str| {
        let shape = template.read(text.as_bytes()).expect("read");
        cache.plan(0, &shape, &rules, None, &[]).hit
    };
    ask("SELECT favourite FROM t");
    for number in 0..6_000 {
        ask(&format!("SELECT a{number} FROM t"));
        assert!(ask("SELECT favourite FROM t"), "{number}");
    }
    assert!(
        (BYTES_MAX / 4..=BYTES_MAX).contains(&cache.bytes()),
        "{}",
        cache.bytes()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_text_has_a_plan(text in "(?s).{0,200}") {
        planned_or_refused(&text);
    }

    #[test]
    fn near_sql_has_a_plan(text in "((SELECT|INSERT INTO|UPDATE|DELETE FROM|WHERE|SET|VALUES|FROM|IN|AND|OR|=|,|\\(|\\)|\\*|bikes|station_id|7|'7'|-|\\$1|\\$2|NULL|::int|ANY|WITH|AS|;|FOR UPDATE|EXPLAIN|ANALYZE) ){0,14}") {
        planned_or_refused(&text);
    }

    /// The plan of a template says of each of its texts what the plan of that text would say.
    #[test]
    fn a_plan_holds_for_all_texts_of_its_template(one in 0usize..FORMS.len(), left: [i32; 3], right: [i32; 3]) {
        let text = |numbers: [i32; 3]| {
            let mut text = FORMS[one].to_owned();
            for number in numbers {
                text = text.replacen('?', &number.unsigned_abs().to_string(), 1);
            }
            text
        };
        let (left, right) = (text(left), text(right));
        let (mut first, mut second) = (Template::default(), Template::default());
        let (first, second) = (first.read(left.as_bytes()), second.read(right.as_bytes()));
        let (first, second) = (first.expect("read"), second.expect("read"));
        prop_assert_eq!(first.bytes, second.bytes);
        let catalog = catalog();
        let of = |text: &str| Plan::of(text, &rules(), Some(&catalog), &["public"]);
        let (of_left, of_right) = (of(&left), of(&right));
        prop_assert_eq!(&of_left, &of_right);
        let values = Values { literals: second.literals, parameters: &[] };
        prop_assert_eq!(of_left.evidence(&values), of_right.evidence(&values));
    }
}

const FORMS: &[&str] = &[
    "UPDATE bikes SET x = ? WHERE station_id = ? AND id = ?",
    "DELETE FROM bikes WHERE station_id IN (?, ?) OR id = ?",
    "DELETE FROM bikes WHERE station_id IN (?, ?, ?)",
    "INSERT INTO bikes VALUES (?, ?), (1, ?)",
    "INSERT INTO rentals (station_id, id) SELECT ?, ? FROM bikes LIMIT ?",
    "SELECT * FROM plain WHERE at = ? ORDER BY 1 LIMIT ? OFFSET ?",
    "SELECT * FROM bikes WHERE (station_id, id) IN ((?, ?), (?, 1))",
    "MERGE INTO bikes b USING (VALUES (?, ?)) s (id, st) ON b.station_id = s.st WHEN NOT MATCHED THEN INSERT (id, station_id) VALUES (s.id, ?)",
];

fn planned_or_refused(text: &str) {
    let mut template = Template::default();
    let literals = template.read(text.as_bytes());
    let literals = literals.map(|shape| shape.literals).unwrap_or_default();
    let catalog = catalog();
    let plan = Plan::of(text, &rules(), Some(&catalog), &["public"]);
    assert_eq!(plan.refused.is_some(), analyse(text).is_err(), "{text}");
    let parameters = [parameter("101"), parameter("{201,202}")];
    let evidence = plan.evidence(&Values {
        literals,
        parameters: &parameters,
    });
    assert!(
        plan.refused.is_none() || matches!(evidence, Evidence::None(_)),
        "{text}"
    );
}
