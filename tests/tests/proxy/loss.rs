//! A node that dies under its sessions.

use std::time::{Duration, Instant};

use tandem_tests::{Cluster, Node, client, eventually};
use tokio_postgres::Client;

const LIMIT: Duration = Duration::from_secs(20);

async fn node_of<'a>(cluster: &'a Cluster, client: &Client) -> &'a Node {
    let port = client::value(client, "SELECT current_setting('port')").await;
    cluster
        .nodes
        .iter()
        .find(|node| node.port().to_string() == port)
        .expect("a node of the cluster")
}

/// A new session answers soon, and on another node.
async fn assert_taken_over(cluster: &Cluster, dead: &Node) {
    let begin = Instant::now();
    let client = cluster.proxy().await;
    let node = node_of(cluster, &client).await;
    assert_ne!(node.name, dead.name);
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "it took {:?}",
        begin.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_of_a_killed_node_ends_with_57p01_and_a_new_one_works_at_once() {
    let cluster = Cluster::of(&[15, 15, 15]).start().await;
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(cluster.proxy_port)
        .user("app")
        .password("app")
        .dbname("app");
    let (client, connection) = config
        .connect(tokio_postgres::NoTls)
        .await
        .expect("a login");
    let ended = tokio::spawn(connection);
    let dead = node_of(&cluster, &client).await;
    dead.kill9().await;
    let error = tokio::time::timeout(LIMIT, ended)
        .await
        .expect("in time")
        .expect("not cancelled")
        .expect_err("an ended session");
    assert_eq!(client::sqlstate(&error), "57P01");
    assert_taken_over(&cluster, dead).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_session_of_a_killed_node_ends_with_57p01_and_a_new_one_works_at_once() {
    let cluster = Cluster::of(&[15, 15, 15]).start().await;
    let client = cluster.proxy().await;
    let dead = node_of(&cluster, &client).await;
    let running =
        tokio::spawn(async move { client.simple_query("SELECT pg_sleep(60)").await.map(drop) });
    let active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'";
    eventually("the query runs", LIMIT, async || {
        match dead.value(active).await.as_str() {
            "1" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    dead.kill9().await;
    let error = tokio::time::timeout(LIMIT, running)
        .await
        .expect("in time")
        .expect("not cancelled")
        .expect_err("an ended session");
    assert_eq!(client::sqlstate(&error), "57P01");
    assert_taken_over(&cluster, dead).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_on_other_nodes_do_not_notice() {
    let cluster = Cluster::of(&[15, 15, 15]).start().await;
    let mut sessions = Vec::new();
    for _ in 0..9 {
        let client = cluster.proxy().await;
        let node = node_of(&cluster, &client).await.name.clone();
        sessions.push((node, client));
    }
    cluster.nodes[0].stop_immediately().await;
    for (node, client) in &sessions {
        if *node != "n1" {
            assert_eq!(
                client::value(client, "SELECT 'alive'").await,
                "alive",
                "{node}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_node_down_a_client_is_told_why_and_later_let_in() {
    let cluster = Cluster::of(&[15, 15]).start().await;
    for node in &cluster.nodes {
        node.stop_fast().await;
    }
    let error = cluster.try_proxy().await.expect_err("a refusal");
    assert_eq!(client::sqlstate(&error), "57P03", "{error:?}");
    cluster.nodes[1].start_again().await;
    let client = eventually("a session works", LIMIT, async || {
        cluster
            .try_proxy()
            .await
            .map_err(|error| client::sqlstate(&error))
    })
    .await;
    assert_eq!(client::value(&client, "SELECT 1").await, "1");
}

/// A network that drops packets: nobody is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_answer_gets_no_new_sessions() {
    let cluster = Cluster::of(&[15, 15])
        .relays()
        .proxy("probe_timeout = \"500ms\"")
        .start()
        .await;
    cluster.relays[0].silence();
    cluster
        .daemon
        .status_when("the silence is noticed", LIMIT, |status| {
            status["nodes"][0]["health"] == "down"
        })
        .await;
    for _ in 0..4 {
        let begin = Instant::now();
        let client = cluster.proxy().await;
        assert_eq!(node_of(&cluster, &client).await.name, "n2");
        assert!(
            begin.elapsed() < Duration::from_secs(1),
            "it took {:?}",
            begin.elapsed()
        );
    }
    cluster.relays[0].heal();
    cluster
        .daemon
        .status_when("it is back", LIMIT, |status| {
            status["nodes"][0]["health"] == "up"
        })
        .await;
}

/// With the default bounds (a probe has 2 s), from the first moment of the silence on.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_not_held_up_for_long_by_a_node_that_fell_silent() {
    let cluster = Cluster::of(&[15, 15, 15]).relays().start().await;
    cluster.relays[1].silence();
    let begin = Instant::now();
    let client = cluster.proxy().await;
    assert_ne!(node_of(&cluster, &client).await.name, "n2");
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "it took {:?}",
        begin.elapsed()
    );
}
