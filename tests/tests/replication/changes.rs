//! Inserts, updates, deletes and truncations, one by one and in transactions.

use std::time::Duration;

use tandem_tests::{Cluster, client, eventually};

const SCHEMA: &str = "CREATE TABLE item (id int PRIMARY KEY, name text, amount int);";

#[tokio::test(flavor = "multi_thread")]
async fn a_change_on_any_node_arrives_on_all_others_with_its_version() {
    let cluster = Cluster::of(&[15, 15, 15]).schema(SCHEMA).start().await;
    for node in &cluster.nodes {
        let id = i32::from(node.id) * 10;
        let sql = format!(
            "INSERT INTO item VALUES ({id}, 'one', 1), ({}, 'two', 2), ({}, NULL, 3)",
            id + 1,
            id + 2
        );
        node.execute(&sql).await;
    }
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        assert_eq!(
            node.value("SELECT count(*) FROM item").await,
            "9",
            "{}",
            node.name
        );
    }
    // Each node changes what another one has inserted.
    for (node, other) in [(0, 20), (1, 30), (2, 10)] {
        let client = cluster.nodes[node].connect().await;
        client::execute(
            &client,
            &format!("UPDATE item SET amount = amount + 100 WHERE id = {other}"),
        )
        .await;
        client::execute(
            &client,
            &format!("DELETE FROM item WHERE id = {}", other + 2),
        )
        .await;
    }
    cluster.assert_converged().await;
    let rows = "SELECT string_agg(id || ':' || amount, ' ' ORDER BY id) FROM item";
    for node in &cluster.nodes {
        assert_eq!(
            node.value(rows).await,
            "10:101 11:2 20:101 21:2 30:101 31:2",
            "{}",
            node.name
        );
        assert_eq!(
            node.value("SELECT count(*) FROM tandem.conflict").await,
            "0",
            "{}",
            node.name
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_the_proxy_arrives_on_every_node() {
    let cluster = Cluster::of(&[15, 15, 15]).schema(SCHEMA).start().await;
    let client = cluster.proxy().await;
    client::execute(
        &client,
        "INSERT INTO item SELECT i, 'row ' || i, i FROM generate_series(1, 1000) i",
    )
    .await;
    client
        .execute(
            "UPDATE item SET amount = amount + $1 WHERE id % 2 = 0",
            &[&5],
        )
        .await
        .expect("an update");
    client
        .execute("DELETE FROM item WHERE id > $1", &[&900])
        .await
        .expect("a delete");
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        let found = node
            .value("SELECT count(*) || ' ' || sum(amount) FROM item")
            .await;
        assert_eq!(found, "900 407700", "{}", node.name);
    }
}

/// Whoever reads on another node sees all of a transaction or nothing of it, and each keeps its own version.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_many_statements_is_seen_whole_and_keeps_its_own_version() {
    const TRANSACTIONS: usize = 300;
    let cluster = Cluster::of(&[15, 15])
        .relays()
        .schema(SCHEMA)
        .replication("group_apply = 0")
        .start()
        .await;
    let writer = cluster.nodes[0].connect().await;
    client::execute(
        &writer,
        "INSERT INTO item VALUES (-1, 'from', 1000000), (-2, 'to', 0)",
    )
    .await;
    cluster.assert_converged().await;
    // Gathers a backlog first, so that many transactions go into one batch.
    cluster.relays[1].silence_only("apply 1");
    for number in 0..TRANSACTIONS {
        let sql = format!(
            "BEGIN; UPDATE item SET amount = amount - 7 WHERE id = -1; INSERT INTO item VALUES ({0}, 'left', 0); \
             UPDATE item SET amount = amount + 7 WHERE id = -2; INSERT INTO item VALUES ({1}, 'right', 0); COMMIT",
            number * 2,
            number * 2 + 1
        );
        client::execute(&writer, &sql).await;
    }
    cluster.relays[1].heal();
    let reader = cluster.nodes[1].connect().await;
    let seen = eventually(
        "all transactions arrive",
        Duration::from_secs(30),
        async || {
            let sql = "SELECT sum(amount), count(*) FILTER (WHERE id >= 0), count(DISTINCT xmin::text) FILTER (WHERE id >= 0) FROM item";
            let row = client::rows(&reader, sql).await.remove(0);
            let number = |index: usize| {
                row[index]
                    .as_deref()
                    .unwrap_or("0")
                    .parse::<usize>()
                    .expect("a number")
            };
            assert_eq!(number(0), 1_000_000, "a transaction was seen in part");
            assert_eq!(
                number(1),
                2 * number(2),
                "transactions were merged or split"
            );
            if number(2) == TRANSACTIONS {
                Ok(number(2))
            } else {
                Err(format!("{} are there", number(2)))
            }
        },
    );
    seen.await;
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rolled_back_and_partly_rolled_back_work_does_not_travel() {
    let cluster = Cluster::of(&[15, 18]).schema(SCHEMA).start().await;
    for node in &cluster.nodes {
        let id = i32::from(node.id) * 10;
        node.execute(&format!(
            "BEGIN; INSERT INTO item VALUES ({id}, 'never', 0); ROLLBACK"
        ))
        .await;
        let sql = format!(
            "BEGIN; INSERT INTO item VALUES ({0}, 'kept', 1); SAVEPOINT s; INSERT INTO item VALUES ({1}, 'undone', 1); \
             ROLLBACK TO s; UPDATE item SET amount = 2 WHERE id = {0}; COMMIT",
            id + 1,
            id + 2
        );
        node.execute(&sql).await;
    }
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        assert_eq!(
            node.value("SELECT string_agg(id || ':' || amount, ' ' ORDER BY id) FROM item")
                .await,
            "11:2 21:2"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_changes_of_one_row_in_one_transaction_end_as_on_the_source() {
    let cluster = Cluster::of(&[15, 17, 18]).schema(SCHEMA).start().await;
    let sql = "BEGIN; INSERT INTO item VALUES (1, 'a', 1); UPDATE item SET amount = 2 WHERE id = 1; DELETE FROM item WHERE id = 1; \
               INSERT INTO item VALUES (1, 'b', 3); UPDATE item SET name = 'c' WHERE id = 1; \
               INSERT INTO item VALUES (2, 'x', 1); DELETE FROM item WHERE id = 2; COMMIT";
    cluster.nodes[1].execute(sql).await;
    cluster.assert_converged().await;
    // The same over a row that is there, whose key comes and goes.
    let sql = "BEGIN; DELETE FROM item WHERE id = 1; INSERT INTO item VALUES (1, 'd', 4); UPDATE item SET id = 3 WHERE id = 1; \
               INSERT INTO item VALUES (1, 'e', 5); UPDATE item SET amount = 6 WHERE id = 3; COMMIT";
    cluster.nodes[2].execute(sql).await;
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        let rows = node
            .value("SELECT string_agg(id || name || amount, ' ' ORDER BY id) FROM item")
            .await;
        assert_eq!(rows, "1e5 3d6", "{}", node.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_primary_key_moves_the_row_everywhere() {
    let cluster = Cluster::of(&[15, 17, 18]).schema(SCHEMA).start().await;
    cluster.nodes[0]
        .execute("INSERT INTO item SELECT i, 'row ' || i, i FROM generate_series(1, 20) i")
        .await;
    cluster.assert_converged().await;
    cluster.nodes[1]
        .execute("UPDATE item SET id = id + 100 WHERE id <= 10")
        .await;
    cluster.assert_converged().await;
    // A key that was left is taken by another row, in one transaction and statement by statement.
    let swap = "BEGIN; UPDATE item SET id = -1 WHERE id = 101; UPDATE item SET id = 101 WHERE id = 102; \
                UPDATE item SET id = 102 WHERE id = -1; COMMIT";
    cluster.nodes[2].execute(swap).await;
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        assert_eq!(
            node.value("SELECT name FROM item WHERE id = 101").await,
            "row 2",
            "{}",
            node.name
        );
        assert_eq!(
            node.value("SELECT name FROM item WHERE id = 102").await,
            "row 1",
            "{}",
            node.name
        );
        assert_eq!(
            node.value("SELECT count(*) FROM item").await,
            "20",
            "{}",
            node.name
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncation_empties_the_tables_everywhere_and_what_follows_stays() {
    let schema = "CREATE TABLE parent (id int PRIMARY KEY); \
                  CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent);";
    let cluster = Cluster::of(&[15, 15, 18])
        .schema(SCHEMA)
        .schema(schema)
        .start()
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO item SELECT i, 'x', i FROM generate_series(1, 500) i")
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (1, 1), (2, 2)")
        .await;
    cluster.assert_converged().await;
    cluster.nodes[1].execute("TRUNCATE item").await;
    cluster.nodes[1]
        .execute("BEGIN; TRUNCATE parent CASCADE; INSERT INTO parent VALUES (3); COMMIT")
        .await;
    cluster.assert_converged().await;
    cluster.nodes[2]
        .execute("INSERT INTO item VALUES (1, 'after', 1); INSERT INTO child VALUES (1, 3)")
        .await;
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        let found = node.value("SELECT (SELECT count(*) FROM item) || ' ' || (SELECT count(*) FROM parent) || ' ' || (SELECT count(*) FROM child)").await;
        assert_eq!(found, "1 1 1", "{}", node.name);
    }
}
