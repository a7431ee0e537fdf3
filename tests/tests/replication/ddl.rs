//! DDL that is given on one node, directly or through the proxy, is carried out on all, in order with the data around it.

mod history;
mod pgbench;

use std::time::Duration;

use tandem_tests::{Cluster, Node, Program, client, eventually};
use tokio_postgres::Client;

const LIMIT: Duration = Duration::from_secs(30);

/// A node's schema, as pg_dump of the newest major says it.
async fn schema_of(cluster: &Cluster, node: &Node) -> String {
    let newest = cluster.nodes.last().unwrap_or(node);
    let program = newest.install().client_program("pg_dump").expect("pg_dump");
    let ran = Program::new(program)
        .port(node.port())
        .env("PGUSER", "postgres")
        .args([
            "--schema-only",
            "--exclude-schema=tandem",
            "--no-publications",
        ])
        .run(Duration::from_secs(60))
        .await
        .expect_success();
    let told = ran.stdout.lines().filter(|line| {
        // What differs from server to server, and from run to run.
        let noise = ["--", "SET ", "\\restrict", "\\unrestrict"];
        !line.is_empty() && !noise.iter().any(|start| line.starts_with(start))
    });
    // 18 gives NOT NULL a name.
    let unnamed = |line: &str| match line.split_once(" CONSTRAINT ") {
        Some((column, named)) => match named.split_once(" NOT NULL") {
            Some((_, rest)) => format!("{column} NOT NULL{rest}"),
            None => line.to_owned(),
        },
        None => line.to_owned(),
    };
    let told: Vec<_> = told.map(unnamed).collect();
    let told = told.join("\n");
    // Tandem's own, on the node.
    let statements = told.split_inclusive(";\n");
    let own = |text: &&str| !text.contains("EVENT TRIGGER") && !text.contains("SCHEMA tandem");
    statements.filter(own).collect()
}

/// Schemas and data are the same everywhere, and nothing waits for anybody.
async fn assert_same(cluster: &Cluster) {
    cluster.converge(Duration::from_secs(60)).await;
    for node in &cluster.nodes {
        let held = node
            .value("SELECT string_agg(reason, '; ') FROM tandem.quarantine")
            .await;
        assert_eq!(held, "", "in quarantine on {}", node.name);
    }
    let first = schema_of(cluster, &cluster.nodes[0]).await;
    for node in &cluster.nodes[1..] {
        let other = schema_of(cluster, node).await;
        let lacking = |one: &str, other: &str| -> Vec<String> {
            let there: Vec<_> = other.lines().collect();
            let lines = one.lines().filter(|line| !there.contains(line));
            lines.map(str::to_owned).collect()
        };
        assert!(
            first == other,
            "{} has not: {:#?}\nhas besides: {:#?}",
            node.name,
            lacking(&first, &other),
            lacking(&other, &first)
        );
    }
    cluster.assert_equal().await;
}

/// What a statement is refused with.
async fn refused(client: &Client, sql: &str) -> String {
    let error = client.batch_execute(sql).await.expect_err(sql);
    client::describe(&error)
}

async fn run(client: &Client, sql: &str) {
    client::execute(client, sql).await;
}

/// Waits until a query gives `wanted` on a node.
async fn becomes(node: &Node, sql: &str, wanted: &str) {
    eventually(sql, LIMIT, async || {
        let client = node.app().await;
        let rows = client::try_rows(&client, sql).await;
        let rows = rows.map_err(|error| client::describe(&error))?;
        let value = rows
            .into_iter()
            .flatten()
            .flatten()
            .next()
            .unwrap_or_default();
        if value == wanted {
            Ok(())
        } else {
            Err(format!("{}: {value}, not {wanted}", node.name))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_made_on_one_node_is_on_all_from_its_first_row_on() {
    let cluster = Cluster::of(&[15, 17, 18]).start().await;
    let [first, second, third] = [&cluster.nodes[0], &cluster.nodes[1], &cluster.nodes[2]];
    let app = first.app().await;
    // In one transaction, and in one text.
    run(
        &app,
        "CREATE TABLE bikes (id int PRIMARY KEY, note text); INSERT INTO bikes VALUES (1, 'a'); \
         CREATE INDEX ON bikes (note); INSERT INTO bikes VALUES (2, 'b'); UPDATE bikes SET note = 'c' WHERE id = 2",
    )
    .await;
    becomes(
        third,
        "SELECT string_agg(note, ',' ORDER BY id) FROM bikes",
        "a,c",
    )
    .await;
    let owner = "SELECT tableowner FROM pg_tables WHERE tablename = 'bikes'";
    becomes(second, owner, "app").await;

    // In a transaction of its own, from another node, with rows on all meanwhile.
    let app = second.app().await;
    run(&app, "ALTER TABLE bikes ADD COLUMN station int DEFAULT 7").await;
    run(&app, "INSERT INTO bikes VALUES (3, 'd', 8)").await;
    run(
        &first.app().await,
        "INSERT INTO bikes (id, note) VALUES (4, 'e')",
    )
    .await;
    becomes(
        third,
        "SELECT string_agg(station::text, ',' ORDER BY id) FROM bikes",
        "7,7,8,7",
    )
    .await;
    let app = third.app().await;
    run(&app, "BEGIN; INSERT INTO bikes VALUES (5, 'f', 1)").await;
    run(
        &app,
        "ALTER TABLE bikes RENAME note TO remark; CREATE TABLE rides (bike int, km int)",
    )
    .await;
    run(
        &app,
        "INSERT INTO bikes (id, remark) VALUES (6, 'g'); INSERT INTO rides VALUES (1, 1), (1, 1)",
    )
    .await;
    run(&app, "UPDATE rides SET km = 2 WHERE ctid = '(0,1)'; ALTER TABLE bikes DROP COLUMN station; COMMIT").await;
    becomes(
        first,
        "SELECT string_agg(remark, '' ORDER BY id) FROM bikes",
        "acdefg",
    )
    .await;
    becomes(
        first,
        "SELECT string_agg(km::text, ',' ORDER BY km) FROM rides",
        "1,2",
    )
    .await;

    // What is undone is done nowhere.
    run(&app, "BEGIN; CREATE TABLE never (id int); ROLLBACK").await;
    run(&app, "BEGIN; SAVEPOINT a; DROP TABLE rides; ROLLBACK TO a; COMMENT ON TABLE rides IS 'x'; COMMIT").await;
    run(&app, "DROP TABLE bikes").await;
    becomes(
        second,
        "SELECT to_regclass('bikes') IS NULL AND to_regclass('never') IS NULL",
        "t",
    )
    .await;
    assert_same(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_rows_behind_a_new_table_and_tables_made_of_queries_arrive() {
    let cluster = Cluster::of(&[15, 18]).start().await;
    let app = cluster.nodes[0].app().await;
    run(
        &app,
        "CREATE TABLE a (id int PRIMARY KEY, note text NOT NULL); INSERT INTO a SELECT n, n::text FROM generate_series(1, 20000) n",
    )
    .await;
    run(&app, "CREATE TEMP TABLE mine (id int, at timestamptz); INSERT INTO mine VALUES (1, '2026-01-01')").await;
    run(&app, "CREATE TABLE b AS SELECT * FROM mine; SELECT id AS n, random() AS chance INTO c FROM a WHERE id < 1000").await;
    run(
        &app,
        "CREATE TABLE e WITH (fillfactor = 70) AS SELECT id, note FROM a WITH NO DATA",
    )
    .await;
    run(
        &app,
        "ALTER TABLE c ADD PRIMARY KEY (n); UPDATE c SET chance = 0 WHERE n = 1; DROP TABLE mine",
    )
    .await;
    run(
        &app,
        "CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM a; CREATE UNLOGGED TABLE u (id int)",
    )
    .await;
    becomes(
        &cluster.nodes[1],
        "SELECT chance::text FROM c WHERE n = 1",
        "0",
    )
    .await;
    becomes(&cluster.nodes[1], "SELECT count FROM m", "20000").await;
    assert_eq!(
        cluster.nodes[1]
            .value("SELECT to_regclass('u') IS NULL")
            .await,
        "t"
    );
    run(&app, "DROP TABLE u").await;
    // More than one part of a transaction.
    run(
        &app,
        "CREATE TABLE d AS SELECT n, repeat(md5(n::text), 20) AS text FROM generate_series(1, 20000) n",
    )
    .await;
    becomes(&cluster.nodes[1], "SELECT count(*) FROM d", "20000").await;
    assert_same(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_functions_do_is_replicated_or_refused_but_never_half() {
    let cluster = Cluster::of(&[15, 18]).start().await;
    let app = cluster.nodes[0].app().await;
    run(
        &app,
        "DO $$ BEGIN FOR i IN 1..3 LOOP EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY)', i); INSERT INTO t1 VALUES (i); \
         END LOOP; DROP TABLE t2; END $$; CREATE TABLE after (id int); COMMENT ON TABLE after IS 'DROP TABLE \"t1\"'",
    )
    .await;
    run(&app, "CREATE FUNCTION made() RETURNS void LANGUAGE plpgsql AS 'BEGIN CREATE SCHEMA s CREATE TABLE x (id int); END'").await;
    run(&app, "SELECT made()").await;
    becomes(
        &cluster.nodes[1],
        "SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class WHERE relkind = 'r' AND relnamespace::regnamespace::text IN ('public', 's')",
        "after,t1,t3,x",
    )
    .await;
    run(
        &app,
        "CREATE FUNCTION plain() RETURNS void LANGUAGE sql AS 'CREATE TABLE y (id int)'",
    )
    .await;
    let told = refused(&app, "SELECT plain()").await;
    assert!(
        told.starts_with("0A000 CREATE TABLE inside of a function"),
        "{told}"
    );
    let here = "SELECT to_regclass('y') IS NULL";
    assert_eq!(client::value(&app, here).await, "t");
    assert_same(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_differ_from_node_to_node_is_refused() {
    let cluster = Cluster::of(&[15, 18]).start().await;
    let app = cluster.nodes[1].app().await;
    run(
        &app,
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)",
    )
    .await;
    for sql in [
        "ALTER TABLE t ADD COLUMN c float8 DEFAULT random()",
        "ALTER TABLE t ALTER COLUMN id TYPE bigint",
    ] {
        let told = refused(&app, sql).await;
        assert!(
            told.starts_with("0A000 this would rewrite all rows of"),
            "{told}"
        );
    }
    let told = refused(
        &app,
        "ALTER TABLE t ADD COLUMN at timestamptz DEFAULT now()",
    )
    .await;
    assert!(told.starts_with("0A000 the rows of the table"), "{told}");
    run(
        &app,
        "ALTER TABLE t ADD COLUMN c float8 DEFAULT 1, ADD COLUMN v varchar(5) DEFAULT 'x'",
    )
    .await;
    // Nobody has rows of it.
    run(
        &app,
        "CREATE TABLE e (id int PRIMARY KEY); ALTER TABLE e ALTER COLUMN id TYPE bigint",
    )
    .await;
    assert_same(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_of_ddl_stays_local_or_is_refused_where_the_configuration_or_the_session_says_so() {
    let cluster = Cluster::of(&[15, 18])
        .replication("[replication.ddl]\nindex = \"local\"\nextension = \"refuse\"")
        .start()
        .await;
    let app = cluster.nodes[0].app().await;
    run(&app, "CREATE TABLE t (id int PRIMARY KEY, a int, b int)").await;
    run(&app, "CREATE INDEX here ON t (a)").await;
    let told = refused(&app, "CREATE UNIQUE INDEX one ON t (a)").await;
    assert!(
        told.starts_with("0A000 a unique index cannot be on one node only"),
        "{told}"
    );
    let told = refused(&app, "CREATE EXTENSION hstore").await;
    assert!(
        told.starts_with("0A000 CREATE EXTENSION is refused"),
        "{told}"
    );
    run(&app, "SET tandem.ddl = 'local'; CREATE VIEW v AS SELECT 1; RESET tandem.ddl; COMMENT ON TABLE t IS 'told'").await;
    becomes(
        &cluster.nodes[1],
        "SELECT obj_description('t'::regclass)",
        "told",
    )
    .await;
    let local = "SELECT to_regclass('here') IS NULL AND to_regclass('v') IS NULL";
    assert_eq!(cluster.nodes[1].value(local).await, "t");
    let told = refused(&app, "SET tandem.ddl = 'perhaps'; DROP TABLE t").await;
    assert!(
        told.starts_with("22023 invalid value for parameter"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_write_to_a_dropped_table_or_column_meanwhile_holds_nothing_up() {
    let mut cluster = Cluster::of(&[15, 17, 18]).start().await;
    let app = cluster.nodes[0].app().await;
    run(&app, "CREATE TABLE gone (id int PRIMARY KEY); CREATE TABLE kept (id int PRIMARY KEY, a int, b int); CREATE TABLE empty (id int PRIMARY KEY)").await;
    run(
        &app,
        "INSERT INTO kept SELECT n, n, n FROM generate_series(1, 100) n",
    )
    .await;
    for node in &cluster.nodes {
        becomes(node, "SELECT count(*) FROM kept", "100").await;
    }
    cluster.daemon.kill9().await;
    let others = cluster.nodes[1].app().await;
    run(
        &others,
        "INSERT INTO gone VALUES (1); INSERT INTO kept VALUES (200, 1, 1)",
    )
    .await;
    run(&others, "UPDATE kept SET a = 0 WHERE id <= 50; INSERT INTO gone VALUES (2); INSERT INTO empty VALUES (1)").await;
    run(
        &others,
        "DELETE FROM kept WHERE id = 60; DELETE FROM gone WHERE id = 1",
    )
    .await;
    run(
        &app,
        "DROP TABLE gone; ALTER TABLE kept DROP COLUMN b; TRUNCATE empty",
    )
    .await;
    run(
        &app,
        "UPDATE kept SET a = -1 WHERE id = 1; INSERT INTO kept VALUES (300, 3)",
    )
    .await;
    // Both at once.
    run(
        &cluster.nodes[2].app().await,
        "DROP TABLE gone; UPDATE kept SET b = 5 WHERE id = 70",
    )
    .await;
    cluster.daemon.start().await;
    for node in &cluster.nodes {
        becomes(node, "SELECT a::text FROM kept WHERE id = 1", "-1").await;
    }
    assert_same(&cluster).await;
    let lost = "SELECT count(*) > 0 FROM tandem.conflict WHERE type = 'table_dropped' AND relation = 'public.gone'";
    assert_eq!(cluster.nodes[0].value(lost).await, "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn ddl_that_a_node_refuses_is_shown_there_and_leaves_nothing_half() {
    let cluster = Cluster::of(&[15, 18]).start().await;
    cluster.nodes[1]
        .execute("CREATE TABLE other (id int)")
        .await;
    let app = cluster.nodes[0].app().await;
    run(
        &app,
        "BEGIN; CREATE TABLE one (id int PRIMARY KEY); INSERT INTO one VALUES (1); CREATE TABLE other (id int); COMMIT",
    )
    .await;
    cluster
        .link_when("it is in quarantine", 0, 1, |link| link["quarantined"] == 1)
        .await;
    let reason = cluster.nodes[1]
        .value("SELECT reason FROM tandem.quarantine")
        .await;
    assert!(reason.contains("already exists"), "{reason}");
    assert_eq!(
        cluster.nodes[1]
            .value("SELECT to_regclass('one') IS NULL")
            .await,
        "t"
    );
    // What depends on it queues behind it.
    run(&app, "INSERT INTO one VALUES (2); CREATE TABLE free (id int PRIMARY KEY); INSERT INTO free VALUES (1)").await;
    run(&app, "INSERT INTO free VALUES (2)").await;
    cluster.nodes[1].execute("DROP TABLE other").await;
    becomes(&cluster.nodes[1], "SELECT count(*) FROM one", "2").await;
    becomes(&cluster.nodes[1], "SELECT count(*) FROM free", "2").await;
    assert_same(&cluster).await;
}
