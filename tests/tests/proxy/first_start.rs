//! What a client writes before a node is taken for the first time would reach no other node: it is kept away until then.

use std::time::Duration;

use serde_json::Value;
use tandem_tests::{Cluster, client, eventually};
use tokio_postgres::Client;

const LIMIT: Duration = Duration::from_secs(30);
const SCHEMA: &str = "CREATE TABLE item (id int PRIMARY KEY);";

/// A transaction that has written: no slot can be made on its node before it ends (`SnapBuildFindSnapshot` in PostgreSQL's
/// snapbuild.c).
async fn hold_up(cluster: &Cluster, node: usize) -> Client {
    let writer = cluster.nodes[node].connect().await;
    client::execute(&writer, "BEGIN; SELECT pg_current_xact_id();").await;
    writer
}

/// Waits until the daemon says that a node, counted from 0, is in this state of health.
async fn health_is(cluster: &Cluster, node: usize, word: &str) {
    let is = |status: &Value| status["nodes"][node]["health"] == word;
    cluster.daemon.status_when(word, LIMIT, is).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_writes_on_a_node_that_is_not_taken_yet() {
    let builder = Cluster::of(&[15, 17]).schema(SCHEMA);
    let proxy = "server_connect_timeout = \"1s\"";
    let mut cluster = builder.proxy(proxy).without_daemon().start().await;
    let (first, second) = (hold_up(&cluster, 0).await, hold_up(&cluster, 1).await);
    cluster.daemon.start().await;
    for node in [0, 1] {
        health_is(&cluster, node, "untaken").await;
    }
    let error = cluster.try_proxy().await.expect_err("no node is taken");
    let told = error.as_db_error().and_then(|error| error.detail());
    let told = told.unwrap_or_default();
    assert!(told.contains("replication slot tandem_test"), "{error:?}");
    // Who waits is let in as soon as one node is taken, and only there.
    let (let_in, ()) = tokio::join!(cluster.try_proxy(), async {
        client::execute(&second, "COMMIT").await;
    });
    let let_in = let_in.expect("the second node takes it");
    let port = cluster.nodes[1].port().to_string();
    for id in 0..10 {
        let client = cluster.proxy().await;
        let at = client::value(&client, "SELECT current_setting('port')").await;
        assert_eq!(at, port);
        client::execute(&client, &format!("INSERT INTO item VALUES ({id})")).await;
    }
    client::execute(&let_in, "INSERT INTO item VALUES (100)").await;
    client::execute(&first, "COMMIT").await;
    health_is(&cluster, 0, "up").await;
    cluster.assert_converged().await;
    let written = "SELECT count(*) FROM item";
    assert_eq!(cluster.nodes[0].value(written).await, "11");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_many_clients_write_while_the_nodes_are_taken_reaches_all_of_them() {
    let builder = Cluster::of(&[15, 18]).schema(SCHEMA);
    let mut cluster = builder.without_daemon().start().await;
    let held = hold_up(&cluster, 1).await;
    cluster.daemon.spawn();
    let writers = (0..40).map(async |id| {
        // Nobody listens at the very beginning.
        let client = eventually("a login", LIMIT, async || {
            let client = cluster.try_proxy().await;
            client.map_err(|error| client::describe(&error))
        })
        .await;
        client::execute(&client, &format!("INSERT INTO item VALUES ({id})")).await;
    });
    let written = futures_util::future::join_all(writers);
    let (_, ()) = tokio::join!(written, async {
        health_is(&cluster, 0, "up").await;
        client::execute(&held, "COMMIT").await;
    });
    cluster.assert_converged().await;
    let written = "SELECT count(*) FROM item";
    assert_eq!(cluster.nodes[0].value(written).await, "40");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_slot_is_gone_gets_no_clients_while_another_has_its_own() {
    let mut cluster = Cluster::of(&[15, 17]).schema(SCHEMA).start().await;
    cluster.daemon.kill9().await;
    let drop =
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active";
    eventually("the slot is dropped", LIMIT, async || {
        cluster.nodes[0].execute(drop).await;
        let left = "SELECT count(*) FROM pg_replication_slots";
        match cluster.nodes[0].value(left).await.as_str() {
            "0" => Ok(()),
            _ => Err("its walsender is still there"),
        }
    })
    .await;
    cluster.daemon.start().await;
    for _ in 0..10 {
        let client = cluster.proxy().await;
        let at = client::value(&client, "SELECT current_setting('port')").await;
        assert_eq!(at, cluster.nodes[1].port().to_string());
    }
    health_is(&cluster, 0, "untaken").await;
}
