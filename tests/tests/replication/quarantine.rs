//! Transactions that one node refuses: they wait there, with what touches the same keys, and everything else flows.

use std::time::Duration;

use tandem_tests::{Cluster, Node, eventually};

const SCHEMA: &str = "CREATE TABLE item (id int PRIMARY KEY, amount int);";
const LIMIT: Duration = Duration::from_secs(20);

/// Waits until a query gives `wanted` on a node.
async fn becomes(node: &Node, sql: &str, wanted: &str) {
    eventually(sql, LIMIT, async || {
        let value = node.value(sql).await;
        if value == wanted {
            Ok(())
        } else {
            Err(format!("{}: {value}, not {wanted}", node.name))
        }
    })
    .await;
}

async fn quarantined(cluster: &Cluster, source: usize, target: usize, count: u64) {
    let what = format!("{count} transactions are in quarantine");
    cluster
        .link_when(&what, source, target, |link| link["quarantined"] == count)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_constraint_refuses_waits_with_its_key_and_everything_else_flows() {
    let mut cluster = Cluster::of(&[15, 17, 18]).schema(SCHEMA).start().await;
    let check = "ALTER TABLE item ADD CONSTRAINT small CHECK (amount < 10)";
    cluster.nodes[1].execute(check).await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (1, 50), (2, 5)")
        .await;
    quarantined(&cluster, 0, 1, 1).await;
    let reason = cluster.nodes[1]
        .value("SELECT reason FROM tandem.quarantine")
        .await;
    assert!(reason.contains("small"), "{reason}");

    // Another key flows, from any node; the same keys queue, from any node.
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (3, 3)")
        .await;
    becomes(&cluster.nodes[2], "SELECT count(*) FROM item", "3").await;
    cluster.nodes[2]
        .execute("INSERT INTO item VALUES (4, 4)")
        .await;
    cluster.nodes[2]
        .execute("UPDATE item SET amount = 6 WHERE id = 2")
        .await;
    becomes(
        &cluster.nodes[1],
        "SELECT string_agg(id::text, ',' ORDER BY id) FROM item",
        "3,4",
    )
    .await;
    quarantined(&cluster, 2, 1, 1).await;
    let behind = cluster.daemon.wait_converged(Duration::from_secs(1)).await;
    assert_eq!(behind.status.code(), Some(1), "{}", behind.all());
    assert!(behind.stdout.contains("quarantine"), "{}", behind.all());

    // It is still there after the daemon, and the node, have died.
    cluster.daemon.kill9().await;
    cluster.daemon.start().await;
    cluster.nodes[0]
        .execute("UPDATE item SET amount = 7 WHERE id = 2")
        .await;
    quarantined(&cluster, 0, 1, 2).await;

    cluster.nodes[1]
        .execute("ALTER TABLE item DROP CONSTRAINT small")
        .await;
    cluster.assert_converged().await;
    assert_eq!(
        cluster.nodes[1]
            .value("SELECT amount FROM item WHERE id = 2")
            .await,
        "7"
    );
    assert_eq!(
        cluster.nodes[1]
            .value("SELECT count(*) FROM tandem.quarantine")
            .await,
        "0"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_missing_on_one_node_is_held_as_a_whole_until_it_is_made() {
    let cluster = Cluster::of(&[15, 15, 15]).schema(SCHEMA).start().await;
    let table = "CREATE TABLE late (id int PRIMARY KEY, note text)";
    for node in &cluster.nodes[..2] {
        node.execute(table).await;
    }
    cluster.nodes[0]
        .execute("INSERT INTO late VALUES (1, 'x')")
        .await;
    quarantined(&cluster, 0, 2, 1).await;
    becomes(&cluster.nodes[1], "SELECT count(*) FROM late", "1").await;
    cluster.nodes[1]
        .execute("INSERT INTO late VALUES (2, 'y')")
        .await;
    cluster.nodes[1]
        .execute("INSERT INTO item VALUES (2)")
        .await;
    becomes(&cluster.nodes[2], "SELECT count(*) FROM item", "1").await;
    quarantined(&cluster, 1, 2, 1).await;
    cluster.nodes[2].execute(table).await;
    cluster.assert_converged().await;
    assert_eq!(
        cluster.nodes[2].value("SELECT count(*) FROM late").await,
        "2"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_missing_on_one_node_holds_the_table_until_it_is_added() {
    let cluster = Cluster::of(&[15, 18]).schema(SCHEMA).start().await;
    cluster.nodes[0]
        .execute("ALTER TABLE item ADD note text")
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (1, 1, 'n')")
        .await;
    quarantined(&cluster, 0, 1, 1).await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (2, 2, 'm')")
        .await;
    quarantined(&cluster, 0, 1, 2).await;
    cluster.nodes[1]
        .execute("ALTER TABLE item ADD note text")
        .await;
    cluster.assert_converged().await;
}

/// They travel in one batch with the one that cannot be written.
#[tokio::test(flavor = "multi_thread")]
async fn what_stands_around_a_change_that_does_not_fit_is_applied() {
    let cluster = Cluster::of(&[15, 18]).relays().schema(SCHEMA).start().await;
    cluster.relays[1].silence_only("apply 1");
    let only_here = "CREATE TABLE only_here (id int PRIMARY KEY)";
    cluster.nodes[0].execute(only_here).await;
    for id in 1..=5 {
        cluster.nodes[0]
            .execute(&format!("INSERT INTO item VALUES ({id})"))
            .await;
    }
    cluster.nodes[0]
        .execute("INSERT INTO only_here VALUES (1)")
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (6)")
        .await;
    cluster.relays[1].heal();
    becomes(&cluster.nodes[1], "SELECT count(*) FROM item", "6").await;
    quarantined(&cluster, 0, 1, 1).await;
    cluster.nodes[1].execute(only_here).await;
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_transaction_that_has_been_overtaken_by_a_newer_write_loses_when_it_is_applied() {
    let cluster = Cluster::of(&[15, 15]).schema(SCHEMA).start().await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (1, 1)")
        .await;
    cluster.assert_converged().await;
    cluster.nodes[1]
        .execute("ALTER TABLE item ADD CONSTRAINT small CHECK (amount < 10)")
        .await;
    cluster.nodes[0]
        .execute("UPDATE item SET amount = 50 WHERE id = 1")
        .await;
    quarantined(&cluster, 0, 1, 1).await;
    cluster.nodes[1]
        .execute("UPDATE item SET amount = 9 WHERE id = 1")
        .await;
    becomes(&cluster.nodes[0], "SELECT amount FROM item", "9").await;
    cluster.nodes[1]
        .execute("ALTER TABLE item DROP CONSTRAINT small")
        .await;
    cluster.assert_converged().await;
    assert_eq!(cluster.nodes[1].value("SELECT amount FROM item").await, "9");
}
