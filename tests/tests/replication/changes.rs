//! Inserts, updates and deletes, each on each node.

use tandem_tests::{Cluster, client};

const SCHEMA: &str = "CREATE TABLE item (id int PRIMARY KEY, name text, amount int);";

#[tokio::test(flavor = "multi_thread")]
async fn a_change_on_any_node_arrives_on_all_others_with_its_version() {
    let cluster = Cluster::of(&[15, 15, 15]).schema(SCHEMA).start().await;
    for node in &cluster.nodes {
        let id = i32::from(node.id) * 10;
        let sql = format!("INSERT INTO item VALUES ({id}, 'one', 1), ({}, 'two', 2), ({}, NULL, 3)", id + 1, id + 2);
        node.execute(&sql).await;
    }
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        assert_eq!(node.value("SELECT count(*) FROM item").await, "9", "{}", node.name);
    }
    // Each node changes what another one has inserted.
    for (node, other) in [(0, 20), (1, 30), (2, 10)] {
        let client = cluster.nodes[node].connect().await;
        client::execute(&client, &format!("UPDATE item SET amount = amount + 100 WHERE id = {other}")).await;
        client::execute(&client, &format!("DELETE FROM item WHERE id = {}", other + 2)).await;
    }
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        assert_eq!(node.value("SELECT string_agg(id || ':' || amount, ' ' ORDER BY id) FROM item").await,
            "10:101 11:2 20:101 21:2 30:101 31:2", "{}", node.name);
        assert_eq!(node.value("SELECT count(*) FROM tandem.conflict").await, "0", "{}", node.name);
    }
}
