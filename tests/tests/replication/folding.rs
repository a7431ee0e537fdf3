//! Transactions of many rows: a run of like changes is applied by one statement.

use std::time::Duration;

use tandem_tests::{Cluster, client};

use super::tables::{TYPES, VALUES};

/// Counts the statements that change table `t`, whoever runs them.
const COUNTED: &str = "CREATE SCHEMA local; CREATE UNLOGGED TABLE local.statement (id bigserial, operation text); \
    CREATE FUNCTION local.note() RETURNS trigger LANGUAGE plpgsql AS \
      $$ BEGIN INSERT INTO local.statement (operation) VALUES (tg_op); RETURN NULL; END $$; \
    CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON t EXECUTE FUNCTION local.note(); \
    ALTER TABLE t ENABLE ALWAYS TRIGGER note;";

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_many_rows_is_applied_by_few_statements() {
    let schema = format!("CREATE TABLE t (id int PRIMARY KEY, v text, w int[]); {COUNTED}");
    let cluster = Cluster::of(&[15, 17, 18])
        .schema(&schema)
        .replication("exclude = [\"local.*\"]")
        .start()
        .await;
    let sql = "INSERT INTO t SELECT g, CASE WHEN g % 3 > 0 THEN 'v' || g END, ARRAY[[g, 1], [NULL, 2]] FROM generate_series(1, 2500) g; \
         UPDATE t SET v = v || '''\"\\{,}' WHERE id <= 1200; DELETE FROM t WHERE id > 2000";
    cluster.nodes[0].execute(sql).await;
    cluster.assert_converged().await;
    for node in &cluster.nodes[1..] {
        let sql = "SELECT string_agg(operation || ' ' || count, ', ' ORDER BY operation) FROM \
             (SELECT operation, count(*) FROM local.statement GROUP BY operation) s";
        assert_eq!(node.value(sql).await, "DELETE 1, INSERT 1, UPDATE 2");
        let remembered =
            "SELECT count(*) FROM tandem.tombstone WHERE relation = '\"public\".\"t\"'";
        assert_eq!(node.value(remembered).await, "500");
        let arrays =
            "SELECT count(*) FROM t WHERE array_ndims(w) = 2 AND w[1][1] = id AND w[2][1] IS NULL";
        assert_eq!(node.value(arrays).await, "2000");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_every_type_survive_a_statement_of_many_rows() {
    let schema = format!("{TYPES}; ALTER TABLE typed ALTER a_name TYPE text");
    let cluster = Cluster::of(&[15, 17, 18]).schema(&schema).start().await;
    for node in &cluster.nodes {
        let client = node.connect().await;
        let sql = format!(
            "SET timezone = 'UTC'; {VALUES}; UPDATE typed SET id = id + 100 * {0} WHERE id < 10; \
             CREATE TEMP TABLE copied AS SELECT * FROM typed WHERE id / 100 = {0}; \
             BEGIN; DELETE FROM typed WHERE id / 100 = {0}; INSERT INTO typed SELECT * FROM copied; COMMIT; \
             UPDATE typed SET a_text = a_text || '!' WHERE id / 100 = {0}",
            node.id
        );
        client::execute(&client, &sql).await;
    }
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        assert_eq!(node.value("SELECT count(*) FROM typed").await, "9");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_change_twice_or_lack_values_or_have_special_columns_are_folded_as_far_as_they_can_be()
 {
    let schema = "CREATE TABLE twice (id int, part text, n int, body text, PRIMARY KEY (part, id)); ALTER TABLE twice ALTER body SET STORAGE EXTERNAL; \
         CREATE TABLE account (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, cents bigint, \
           euros numeric GENERATED ALWAYS AS (cents / 100.0) STORED); \
         CREATE TABLE parted (id int PRIMARY KEY, v int) PARTITION BY RANGE (id); \
         CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (50); \
         CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (50) TO (1000); \
         CREATE TABLE keyless (a int, b text); CREATE TABLE bare (id int PRIMARY KEY);";
    let cluster = Cluster::of(&[15, 17, 18]).schema(schema).start().await;
    let client = cluster.nodes[0].connect().await;
    let sql = "BEGIN; INSERT INTO twice SELECT g, 'p' || g % 7, 0, repeat(md5(g::text), 200) FROM generate_series(1, 100) g; \
         UPDATE twice SET n = n + 1; UPDATE twice SET n = n + 1; \
         UPDATE twice SET body = CASE WHEN id % 2 = 0 THEN body ELSE 'short' END, n = n + 1; \
         DO $$ BEGIN FOR i IN 1..50 LOOP UPDATE twice SET n = n + 1 WHERE id = 7; END LOOP; END $$; \
         INSERT INTO account (cents) SELECT g FROM generate_series(1, 100) g; UPDATE account SET cents = cents + 1; \
         INSERT INTO parted SELECT g, g FROM generate_series(1, 99) g; UPDATE parted SET v = -v; UPDATE parted SET id = id + 400 WHERE id BETWEEN 40 AND 49; \
         INSERT INTO keyless SELECT g / 2, 'x' FROM generate_series(1, 100) g; \
         INSERT INTO bare SELECT g FROM generate_series(1, 100) g; DELETE FROM bare WHERE id > 50; INSERT INTO bare SELECT g FROM generate_series(51, 60) g; COMMIT";
    client::execute(&client, sql).await;
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        let sql = "SELECT (SELECT sum(n) FROM twice) || ' ' || (SELECT sum(length(body)) FROM twice) || ' ' || (SELECT round(sum(euros), 2) FROM account) \
             || ' ' || (SELECT count(*) FROM parted_high) || ' ' || (SELECT count(*) FROM keyless) || ' ' || (SELECT count(*) FROM bare)";
        assert_eq!(node.value(sql).await, "350 320250 51.50 60 100 60");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_newer_row_among_many_wins_and_the_others_change() {
    let cluster = Cluster::of(&[15, 18])
        .schema("CREATE TABLE t (id int PRIMARY KEY, v int, hits int NOT NULL DEFAULT 0); INSERT INTO t SELECT g FROM generate_series(1, 1000) g")
        .sections("[replication.table.\"public.t\"]\ncounters = [\"hits\"]\n")
        .relays()
        .start()
        .await;
    let [one, two] = &cluster.nodes[..] else {
        unreachable!("two nodes")
    };
    for relay in &cluster.relays {
        relay.cut();
    }
    one.execute("UPDATE t SET v = 1, hits = hits + 1").await;
    two.execute("UPDATE t SET v = 2, hits = hits + 1 WHERE id = 500; DELETE FROM t WHERE id = 600")
        .await;
    for relay in &cluster.relays {
        relay.heal();
    }
    cluster.converge(Duration::from_secs(60)).await;
    cluster.assert_equal().await;
    for node in &cluster.nodes {
        let sql =
            "SELECT count(*) || ' ' || count(*) FILTER (WHERE v = 1) || ' ' || sum(hits) FROM t";
        assert_eq!(node.value(sql).await, "999 998 1000");
    }
    let lines = two
        .value("SELECT string_agg(type, ' ' ORDER BY id) FROM tandem.conflict")
        .await;
    assert_eq!(lines, "update_origin_differs update_deleted");
}
