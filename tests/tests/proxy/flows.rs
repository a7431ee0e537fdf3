//! Every message flow of the protocol, sent to a node directly and through the proxy: the answers must be the same, byte by byte.

use std::time::Duration;

use tandem_tests::Cluster;
use tandem_wire::Connection;

use crate::script::{Script, open, play, script};

const LIMIT: Duration = Duration::from_secs(30);
const SCHEMA: &str = "CREATE TABLE item (id int PRIMARY KEY, name text);
    CREATE TABLE child (id int PRIMARY KEY, item int REFERENCES item DEFERRABLE INITIALLY DEFERRED);
    CREATE VIEW items AS SELECT * FROM item;";

/// OID of `pg_catalog.pi()`, in all versions.
const PI: u32 = 1610;

fn scripts() -> Vec<(&'static str, Script)> {
    vec![
        (
            "simple",
            script()
                .q("SELECT 1; SELECT 'two', NULL")
                .ready(1)
                .q("")
                .ready(1)
                .q("SELECT 1/0")
                .ready(1),
        ),
        (
            "a multi-statement query that fails is one transaction",
            script()
                .q("INSERT INTO item VALUES (1, 'a'); SELECT 1/0; SELECT 2")
                .ready(1)
                .q("SELECT count(*) FROM item")
                .ready(1),
        ),
        (
            "a transaction that fails",
            script()
                .q("BEGIN")
                .ready(1)
                .q("SELECT nothing")
                .ready(1)
                .q("SELECT 1")
                .ready(1)
                .q("ROLLBACK")
                .ready(1)
                .q("SELECT 2")
                .ready(1),
        ),
        (
            "extended",
            script()
                .p("", "SELECT $1::int + 1")
                .ds("")
                .b("", "", &["41"])
                .dp("")
                .e("", 0)
                .s()
                .ready(1),
        ),
        (
            "the unnamed statement lasts beyond its batch",
            script()
                .p("", "SELECT $1::int")
                .s()
                .ready(1)
                .b("", "", &["7"])
                .e("", 0)
                .s()
                .ready(1)
                .q("SELECT 1")
                .ready(1)
                .b("", "", &["8"])
                .e("", 0)
                .s()
                .ready(1),
        ),
        (
            "named statements",
            script()
                .p("one", "SELECT $1::text")
                .ds("one")
                .s()
                .ready(1)
                .b("", "one", &["x"])
                .e("", 0)
                .b("", "one", &["y"])
                .e("", 0)
                .s()
                .ready(1)
                .cs("one")
                .s()
                .ready(1)
                .b("", "one", &["z"])
                .e("", 0)
                .s()
                .ready(1),
        ),
        (
            "a statement that is no SQL",
            script()
                .p("bad", "SELEC 1")
                .b("", "bad", &[])
                .e("", 0)
                .s()
                .ready(1)
                .b("", "bad", &[])
                .s()
                .ready(1),
        ),
        (
            "nothing to describe",
            script()
                .p("none", "SET LOCAL work_mem = '1MB'")
                .ds("none")
                .b("", "none", &[])
                .dp("")
                .e("", 0)
                .s()
                .ready(1),
        ),
        (
            "closing what is not there",
            script().cs("nobody").cp("nobody").s().ready(1),
        ),
        (
            "portals with row limits",
            script()
                .q("BEGIN")
                .ready(1)
                .p("rows", "SELECT generate_series(1, 5)")
                .b("cursor", "rows", &[])
                .e("cursor", 2)
                .s()
                .ready(1)
                .e("cursor", 2)
                .s()
                .ready(1)
                .e("cursor", 2)
                .cp("cursor")
                .s()
                .ready(1)
                .e("cursor", 1)
                .s()
                .ready(1)
                .q("END")
                .ready(1),
        ),
        (
            "an empty query",
            script().p("", "").b("", "", &[]).e("", 0).s().ready(1),
        ),
        (
            "Flush gives what is there",
            script()
                .p("f", "SELECT 5")
                .h()
                .until(b'1')
                .ds("f")
                .h()
                .until(b'T')
                .b("", "f", &[])
                .e("", 0)
                .h()
                .until(b'C')
                .s()
                .ready(1),
        ),
        (
            "Sync and Flush alone",
            script().s().ready(1).h().send().s().s().ready(2),
        ),
        (
            "a pipeline",
            script()
                .p("a", "INSERT INTO item VALUES ($1, 'p')")
                .b("", "a", &["10"])
                .e("", 0)
                .s()
                .b("", "a", &["11"])
                .e("", 0)
                .s()
                .b("", "a", &["10"])
                .e("", 0)
                .b("", "a", &["12"])
                .e("", 0)
                .s()
                .b("", "a", &["13"])
                .e("", 0)
                .s()
                .ready(4)
                .q("SELECT id FROM item WHERE id >= 10 ORDER BY id")
                .ready(1),
        ),
        (
            "a pipeline of queries",
            script()
                .q("SELECT 1")
                .q("SELECT 1/0")
                .q("SELECT 3")
                .ready(3),
        ),
        (
            "an error throws away all up to the Sync, a Query too",
            script()
                .p("", "SELECT 1/0")
                .b("", "", &[])
                .e("", 0)
                .q("SELECT 'never'")
                .p("lost", "SELECT 1")
                .s()
                .ready(1)
                .b("", "lost", &[])
                .s()
                .ready(1),
        ),
        (
            "a Query in an open batch",
            script()
                .p("", "SELECT 'ext'")
                .b("", "", &[])
                .e("", 0)
                .q("SELECT 'simple'")
                .ready(1)
                .s()
                .ready(1),
        ),
        (
            "an error at the commit",
            script()
                .p("", "INSERT INTO child VALUES (1, 999)")
                .b("", "", &[])
                .e("", 0)
                .s()
                .ready(1)
                .q("INSERT INTO child VALUES (2, 999)")
                .ready(1),
        ),
        (
            "BEGIN and COMMIT in a pipeline",
            script()
                .p("", "BEGIN")
                .b("", "", &[])
                .e("", 0)
                .s()
                .p("", "INSERT INTO item VALUES (20, 't')")
                .b("", "", &[])
                .e("", 0)
                .s()
                .p("", "COMMIT")
                .b("", "", &[])
                .e("", 0)
                .s()
                .ready(3),
        ),
        (
            "function calls",
            script().call(PI).ready(1).call(4_000_000_000).ready(1),
        ),
        (
            "COPY out",
            script()
                .q("COPY (SELECT generate_series(1, 3)) TO STDOUT")
                .ready(1)
                .p("", "COPY (SELECT 1) TO STDOUT")
                .b("", "", &[])
                .e("", 0)
                .s()
                .ready(1),
        ),
        (
            "COPY in",
            script()
                .q("COPY item FROM STDIN")
                .until(b'G')
                .d("30\tx\n")
                .d("31\ty\n")
                .c()
                .ready(1)
                .q("COPY item FROM STDIN")
                .until(b'G')
                .d("32\tx\n")
                .f("no more")
                .ready(1)
                .q("COPY item FROM STDIN")
                .until(b'G')
                .d("nonsense\n")
                .until(b'E')
                .ready(1)
                .d("33\tx\n")
                .c()
                .q("SELECT 1")
                .ready(1),
        ),
        (
            "COPY in with its data at once",
            script()
                .q("COPY item FROM STDIN")
                .d("40\tx\n")
                .c()
                .q("SELECT count(*) FROM item WHERE id = 40")
                .ready(2),
        ),
        (
            "COPY in that does not begin",
            script()
                .q("COPY nothing FROM STDIN")
                .d("40\tx\n")
                .c()
                .q("SELECT 'after'")
                .ready(2),
        ),
        (
            "COPY in by the extended protocol",
            script()
                .p("", "COPY item FROM STDIN")
                .b("", "", &[])
                .e("", 0)
                .h()
                .until(b'G')
                .d("50\tx\n")
                .c()
                .s()
                .ready(1),
        ),
        (
            "COPY in with an early Sync",
            script()
                .p("", "COPY item FROM STDIN")
                .b("", "", &[])
                .e("", 0)
                .s()
                .until(b'G')
                .d("51\tx\n")
                .c()
                .s()
                .ready(1),
        ),
        (
            "COPY in by the extended protocol that fails",
            script()
                .p("", "COPY item FROM STDIN")
                .b("", "", &[])
                .e("", 0)
                .h()
                .until(b'G')
                .d("nonsense\n")
                .c()
                .s()
                .ready(1)
                .q("SELECT 2")
                .ready(1),
        ),
        (
            "COPY in that a query interrupts",
            script()
                .q("COPY item FROM STDIN")
                .until(b'G')
                .q("SELECT 1")
                .ready(1)
                .q("SELECT 2")
                .ready(1),
        ),
        (
            "several COPYs in one query",
            script()
                .q("COPY (SELECT 1) TO STDOUT; COPY item FROM STDIN; SELECT 'end'")
                .until(b'G')
                .d("60\tx\n")
                .c()
                .ready(1),
        ),
        (
            "notices",
            script()
                .q("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
                .ready(1),
        ),
        (
            "SQL-level PREPARE",
            script()
                .q("PREPARE sqlp AS SELECT 9")
                .ready(1)
                .q("EXECUTE sqlp")
                .ready(1)
                .b("", "sqlp", &[])
                .e("", 0)
                .s()
                .ready(1)
                .q("DEALLOCATE sqlp")
                .ready(1),
        ),
        (
            "settings",
            script()
                .q("SET work_mem = '9MB'")
                .ready(1)
                .q("SHOW work_mem")
                .ready(1)
                .q("RESET work_mem")
                .ready(1)
                .q("SHOW work_mem")
                .ready(1),
        ),
        (
            "a setting that is reported",
            script()
                .q("SET TimeZone = 'Asia/Tokyo'")
                .ready(1)
                .q("BEGIN; SET LOCAL TimeZone = 'UTC'")
                .ready(1)
                .q("ROLLBACK")
                .ready(1)
                .q("SHOW TimeZone")
                .ready(1)
                .q("RESET TimeZone")
                .ready(1),
        ),
        (
            "DEALLOCATE ALL takes named statements away",
            script()
                .p("gone", "SELECT 1")
                .s()
                .ready(1)
                .q("DEALLOCATE ALL")
                .ready(1)
                .b("", "gone", &[])
                .s()
                .ready(1),
        ),
        (
            "a block without a statement",
            script()
                .q("BEGIN")
                .ready(1)
                .q("COMMIT")
                .ready(1)
                .q("START TRANSACTION READ ONLY; ")
                .ready(1)
                .q("ROLLBACK AND CHAIN")
                .ready(1)
                .q("SHOW transaction_read_only")
                .ready(1)
                .q("END")
                .ready(1),
        ),
        (
            "what is said of a block before its first statement",
            script()
                .q("begin isolation level repeatable read")
                .ready(1)
                .q("SET TRANSACTION READ ONLY")
                .ready(1)
                .q("SET LOCAL work_mem = '5MB'")
                .ready(1)
                .q("SAVEPOINT a")
                .ready(1)
                .q("")
                .ready(1)
                .q("SHOW work_mem")
                .ready(1)
                .q("SHOW transaction_isolation")
                .ready(1)
                .q("INSERT INTO item VALUES (1)")
                .ready(1)
                .q("ROLLBACK TO a")
                .ready(1)
                .q("COMMIT AND CHAIN")
                .ready(1)
                .q("SHOW transaction_isolation")
                .ready(1)
                .q("COMMIT")
                .ready(1),
        ),
        (
            "a block in a block, and an end without one",
            script()
                .q("BEGIN")
                .ready(1)
                .q("BEGIN")
                .ready(1)
                .q("COMMIT")
                .ready(1)
                .q("COMMIT")
                .ready(1)
                .q("SAVEPOINT a")
                .ready(1),
        ),
        (
            "a block whose first statement cannot be read",
            script()
                .q("BEGIN")
                .ready(1)
                .q("SELEC 1")
                .ready(1)
                .q("INSERT INTO item VALUES (1)")
                .ready(1)
                .q("COMMIT")
                .ready(1)
                .q("SELECT count(*) FROM item")
                .ready(1),
        ),
        (
            "blocks in the extended protocol, each message of them a batch",
            script()
                .p("begin", "BEGIN")
                .s()
                .ready(1)
                .b("", "begin", &[])
                .dp("")
                .e("", 0)
                .s()
                .ready(1)
                .p("", "INSERT INTO item VALUES (1) RETURNING id")
                .ds("")
                .s()
                .ready(1)
                .b("", "", &[])
                .e("", 0)
                .s()
                .ready(1)
                .p("", "ROLLBACK")
                .b("", "", &[])
                .e("", 0)
                .s()
                .ready(1)
                .b("", "begin", &[])
                .e("", 0)
                .s()
                .ready(1)
                .p("", "SELEC")
                .s()
                .ready(1)
                .p("", "COMMIT")
                .b("", "", &[])
                .e("", 0)
                .s()
                .ready(1)
                .q("SELECT count(*) FROM item")
                .ready(1),
        ),
        (
            "blocks in a pipeline",
            script()
                .q("SELECT 1")
                .p("", "BEGIN")
                .b("", "", &[])
                .e("", 0)
                .s()
                .p("", "INSERT INTO item VALUES (2)")
                .b("", "", &[])
                .e("", 0)
                .s()
                .q("SELECT count(*) FROM item")
                .q("COMMIT")
                .q("BEGIN; INSERT INTO item VALUES (3)")
                .q("ROLLBACK")
                .q("SELECT count(*) FROM item")
                .ready(8),
        ),
        (
            "temporary tables",
            script()
                .q("CREATE TEMP TABLE mine (id int)")
                .ready(1)
                .q("INSERT INTO mine VALUES (3)")
                .ready(1)
                .q("SELECT id + 0 FROM mine")
                .ready(1),
        ),
    ]
}

async fn login(port: u16) -> Connection {
    let params = [("application_name", "flows")];
    open(port, &params).await.expect("a login")
}

async fn assert_same_answers(majors: &[u32], proxy: &str) {
    let cluster = Cluster::of(majors)
        .schema(SCHEMA)
        .proxy(proxy)
        .start()
        .await;
    let node = &cluster.nodes[0];
    let clean = async || {
        cluster.converge(LIMIT).await;
        node.value("TRUNCATE item, child").await;
        cluster.converge(LIMIT).await;
    };
    for (name, script) in scripts() {
        clean().await;
        let mut direct = login(node.port()).await;
        let expected = play(&mut direct, &script).await;
        direct.close().await;
        clean().await;
        let mut through = login(cluster.proxy_port).await;
        let heard = play(&mut through, &script).await;
        assert_eq!(heard, expected, "{name}, PostgreSQL {majors:?}");
        // And whoever comes next gets the right answers too.
        let after = script_after();
        let mut next = login(cluster.proxy_port).await;
        let heard = play(&mut next, &after).await;
        assert!(
            heard.contains("\\x00\\x00\\x00\\x07correct"),
            "after {name}: {heard}"
        );
        through.close().await;
        next.close().await;
    }
}

fn script_after() -> Script {
    script()
        .p("", "SELECT 'correct'")
        .b("", "", &[])
        .e("", 0)
        .s()
        .ready(1)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_flow_is_answered_as_by_the_node_in_transaction_mode() {
    let proxy = "pool_mode = \"transaction\"\npool_size = 2";
    assert_same_answers(&[15], proxy).await;
    assert_same_answers(&[18], proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_flow_is_answered_as_by_the_node_where_transactions_are_routed() {
    let proxy = "pool_mode = \"transaction\"\npool_size = 2";
    assert_same_answers(&[15, 15], proxy).await;
    assert_same_answers(&[18, 18, 18], proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_flow_is_answered_as_by_the_node_in_session_mode() {
    assert_same_answers(&[15], "pool_mode = \"session\"").await;
}
