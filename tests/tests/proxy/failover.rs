//! What becomes of sessions whose node is lost, by what they were doing.

use std::time::Duration;

use tandem_tests::{Cluster, ClusterBuilder, Node, client, eventually};
use tandem_wire::Connection;
use tokio_postgres::Client;

use crate::script::{open, play, script};

const LIMIT: Duration = Duration::from_secs(20);
const TRANSACTION_MODE: &str = "workers = 1\npool_mode = \"transaction\"";
/// How long a probe of a node takes in a test where sessions know more than the health board.
const SLOW_PROBE: Duration = Duration::from_millis(700);

/// Where every write goes as long as that node serves.
async fn home<'a>(cluster: &'a Cluster, client: &Client) -> (usize, &'a Node) {
    client::execute(client, "BEGIN").await;
    let port = client::value(client, "SHOW port").await;
    client::execute(client, "COMMIT").await;
    let mut nodes = cluster.nodes.iter().enumerate();
    nodes
        .find(|(_, node)| node.port().to_string() == port)
        .expect("a node of the cluster")
}

async fn session(cluster: &Cluster) -> Connection {
    open(cluster.proxy_port, &[]).await.expect("a login")
}

fn two(proxy: &str) -> ClusterBuilder {
    Cluster::of(&[15, 17])
        .durable()
        .schema("CREATE TABLE kept (id int PRIMARY KEY, n int NOT NULL); INSERT INTO kept SELECT id, 0 FROM generate_series(1, 9) id;")
        .proxy(TRANSACTION_MODE)
        .proxy(proxy)
}

/// The health board hears of it much later than the session.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_new_connection_is_reset_waits_for_the_verdict_and_goes_elsewhere() {
    let cluster = two("probe_timeout = \"5s\"").relays().start().await;
    let one = cluster.proxy().await;
    let (lost, _) = home(&cluster, &one).await;
    // All connections are reset, new ones too; but a probe takes its time, and then finds the same.
    cluster.relays[lost].cut_only("");
    cluster.relays[lost].delay("tandem probe", SLOW_PROBE);
    let mut write = Box::pin(client::try_rows(&one, "UPDATE kept SET n = 1 WHERE id = 1"));
    eventually("it is tried", LIMIT, async || {
        let waits = tokio::time::timeout(Duration::from_millis(10), &mut write).await;
        assert!(
            waits.is_err(),
            "nobody knows yet what has become of the node"
        );
        match cluster.daemon.log().contains("no server connection") {
            true => Ok(()),
            false => Err("not yet"),
        }
    })
    .await;
    cluster.relays[lost].heal_only("tandem probe");
    let written = tokio::time::timeout(LIMIT, write).await.expect("in time");
    written.expect("another node takes it");
    cluster.relays[lost].heal();
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_node_down_a_statement_waits_and_runs_when_one_is_back() {
    let cluster = two("query_wait_notify = \"200ms\"")
        .rules("[default]\nwrite = \"home\"\n[read]\nconsistency = \"eventual\"\n")
        .start()
        .await;
    let mut one = session(&cluster).await;
    let set = script().q("SET work_mem = '7MB'").ready(1);
    play(&mut one, &set).await;
    for node in &cluster.nodes {
        node.stop_immediately().await;
    }
    let write = script().q("UPDATE kept SET n = 1 WHERE id = 1");
    let told = play(&mut one, &write.until(b'N')).await;
    assert!(told.contains("it waits for one"), "{told}");
    cluster.nodes[1].start_again().await;
    let written = play(&mut one, &script().ready(1)).await;
    assert_eq!(written, "C UPDATE 1\\x00\nZ I\n");
    // Nothing of the session is forgotten.
    let shown = play(&mut one, &script().q("SHOW work_mem").ready(1)).await;
    assert!(shown.contains("7MB"), "{shown}");
    cluster.nodes[0].start_again().await;
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_node_down_for_too_long_a_statement_fails_and_the_session_lives() {
    let cluster = two("query_wait_timeout = \"600ms\"").start().await;
    let one = cluster.proxy().await;
    for node in &cluster.nodes {
        node.stop_immediately().await;
    }
    for text in ["SELECT 1", "UPDATE kept SET n = 1 WHERE id = 1"] {
        let error = client::try_rows(&one, text).await.expect_err("no node");
        assert_eq!(client::sqlstate(&error), "57P03", "{error:?}");
    }
    client::execute(&one, "BEGIN").await;
    let error = one.query("SELECT 1", &[]).await.expect_err("no node");
    assert_eq!(client::sqlstate(&error), "57P03", "{error:?}");
    let error = client::try_rows(&one, "SELECT 1").await;
    assert_eq!(
        client::sqlstate(&error.expect_err("a failed block")),
        "25P02"
    );
    client::execute(&one, "ROLLBACK").await;
    for node in &cluster.nodes {
        node.start_again().await;
    }
    eventually("the session goes on", LIMIT, async || {
        let written = client::try_rows(&one, "UPDATE kept SET n = 1 WHERE id = 1").await;
        written.map_err(|error| client::sqlstate(&error))
    })
    .await;
    cluster.assert_converged().await;
}
