//! Many new rows of one transaction are applied by COPY.

use std::time::Duration;

use tandem_tests::{Cluster, client, eventually};

use super::tables::{TYPES, VALUES};

#[tokio::test(flavor = "multi_thread")]
async fn values_of_every_type_survive_a_copy() {
    let schema = format!(
        "{TYPES}; CREATE TABLE account (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, cents bigint, \
           euros numeric GENERATED ALWAYS AS (cents / 100.0) STORED); CREATE TABLE keyless (a int, b text);"
    );
    let cluster = Cluster::of(&[15, 17, 18]).schema(&schema).start().await;
    // Columns in another order.
    cluster.nodes[1]
        .execute("DROP TABLE keyless; CREATE TABLE keyless (b text, a int)")
        .await;
    for node in &cluster.nodes {
        let client = node.connect().await;
        let sql = format!(
            "SET timezone = 'UTC'; CREATE TEMP TABLE typed AS SELECT * FROM public.typed WITH NO DATA; {VALUES}; \
             BEGIN; DO $$ BEGIN FOR i IN 1..20 LOOP \
               UPDATE pg_temp.typed SET id = id % 10 + 1000 * {0} + 10 * i; INSERT INTO public.typed SELECT * FROM pg_temp.typed; \
             END LOOP; END $$; \
             INSERT INTO account (id, cents) OVERRIDING SYSTEM VALUE SELECT 1000 * {0} + g, g FROM generate_series(1, 100) g; \
             INSERT INTO keyless (a, b) SELECT g, E'a\\tb\\n\\\\' || g FROM generate_series(1, 100) g; COMMIT",
            node.id
        );
        client::execute(&client, &sql).await;
    }
    cluster.converge(Duration::from_secs(60)).await;
    for node in &cluster.nodes {
        let sql = "SELECT (SELECT count(*) FROM typed) || ' ' || (SELECT md5(string_agg(typed::text, '' ORDER BY id)) FROM typed) \
             || ' ' || (SELECT sum(euros) FROM account) || ' ' || (SELECT count(*) FROM keyless WHERE b = E'a\\tb\\n\\\\' || a)";
        let expected = cluster.nodes[0].value(sql).await;
        assert!(expected.starts_with("180 "), "{expected}");
        assert!(expected.ends_with(" 300"), "{expected}");
        assert_eq!(node.value(sql).await, expected, "{}", node.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_new_rows_those_that_were_deleted_later_stay_away() {
    let cluster = Cluster::of(&[15, 17, 18])
        .schema("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'old' FROM generate_series(40, 45) g")
        .relays()
        .start()
        .await;
    for relay in &cluster.relays {
        relay.silence_only("apply");
    }
    cluster.nodes[0].execute("DELETE FROM t").await;
    cluster.nodes[0]
        .execute("INSERT INTO t SELECT g, 'new' FROM generate_series(1, 100) g")
        .await;
    cluster.nodes[1]
        .execute("DELETE FROM t WHERE id = 42")
        .await;
    // Written when the others have none of it, so that the delete is known there before the new rows come.
    cluster.nodes[1]
        .execute("INSERT INTO t VALUES (200, 'same')")
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO t SELECT g, 'more' FROM generate_series(150, 250) g")
        .await;
    for relay in &cluster.relays {
        relay.heal();
    }
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        let sql = "SELECT count(*) || ' ' || count(*) FILTER (WHERE id = 42) || ' ' || max(v) FILTER (WHERE id = 200) FROM t";
        assert_eq!(node.value(sql).await, "200 0 more", "{}", node.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_trigger_leaves_out_are_not_lost_silently() {
    let cluster = Cluster::of(&[15, 18])
        .schema("CREATE TABLE t (id int PRIMARY KEY, v text);")
        .start()
        .await;
    let insert = |from: i32| {
        format!("INSERT INTO t SELECT g, 'v' FROM generate_series({from}, {from} + 99) g")
    };
    cluster.nodes[0].execute(&insert(1)).await;
    cluster.assert_converged().await;
    // The link knows the table by now.
    let trigger = "CREATE FUNCTION leave_out() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN IF new.id = 150 THEN RETURN NULL; END IF; RETURN new; END $$; \
         CREATE TRIGGER leave_out BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION leave_out(); \
         ALTER TABLE t ENABLE ALWAYS TRIGGER leave_out";
    cluster.nodes[1].execute(trigger).await;
    cluster.nodes[0].execute(&insert(101)).await;
    let limit = Duration::from_secs(30);
    eventually("the link says so", limit, async || {
        let link = cluster.link(0, 1).await;
        let told = link["quarantined"] != 0 || link["problem"].is_string();
        if told { Ok(()) } else { Err(link.to_string()) }
    })
    .await;
    let count = "SELECT count(*) FROM t";
    assert_eq!(cluster.nodes[1].value(count).await, "100");
    cluster.nodes[1]
        .execute("DROP TRIGGER leave_out ON t")
        .await;
    cluster.assert_converged().await;
    assert_eq!(cluster.nodes[1].value(count).await, "200");
}
