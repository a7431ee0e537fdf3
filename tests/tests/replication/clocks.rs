//! Clocks that are off, and clocks that are set back.

use std::time::{Duration, Instant};

use serde_json::Value;
use tandem_tests::{Cluster, client, eventually};

const SCHEMA: &str = "CREATE TABLE item (id int PRIMARY KEY, name text);";
const LIMIT: Duration = Duration::from_secs(40);

fn clock(status: &Value, node: usize) -> &Value {
    &status["replication"]["nodes"][node]["clock"]
}

/// The node that a session through the proxy is on.
async fn served_by(cluster: &Cluster) -> String {
    let session = cluster.proxy().await;
    client::value(&session, "SELECT current_setting('port')").await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_clock_ahead_writes_arrives_when_the_others_have_passed_it() {
    let cluster = Cluster::of(&[15, 17, 18])
        .clocks()
        .schema(SCHEMA)
        .start()
        .await;
    cluster.nodes[1].set_clock_offset_ms(2_000);
    let status = cluster
        .daemon
        .status_when("the node is fenced", LIMIT, |status| {
            clock(status, 1)["fenced"].is_string()
        })
        .await;
    let ahead = clock(&status, 1)["offset_ms"].as_f64().expect("a number");
    assert!((ahead - 2000.0).abs() < 200.0, "{ahead}");
    let reason = clock(&status, 1)["fenced"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(reason.contains("ms ahead of the other nodes'"), "{reason}");
    assert!(clock(&status, 0)["fenced"].is_null() && clock(&status, 2)["fenced"].is_null());

    // Somebody who goes round the proxy.
    let begun = Instant::now();
    cluster.nodes[1]
        .execute("INSERT INTO item VALUES (1, 'ahead')")
        .await;
    let waiting = cluster
        .link_when("the change waits", 1, 0, |link| {
            link["state"] == "waiting_for_clock"
        })
        .await;
    assert!(
        waiting["problem"]
            .as_str()
            .is_some_and(|text| text.contains("clock of n1")),
        "{waiting}"
    );
    // An update of what it had seen: it must count as newer.
    let session = cluster.nodes[0].connect().await;
    eventually("the row arrives", LIMIT, async || {
        let sql = "WITH u AS (UPDATE item SET name = 'seen' WHERE id = 1 RETURNING 1) SELECT count(*) FROM u";
        match client::value(&session, sql).await.as_str() {
            "1" => Ok(()),
            _ => Err("it is not there"),
        }
    })
    .await;
    assert!(
        begun.elapsed() > Duration::from_millis(1500),
        "{:?}",
        begun.elapsed()
    );
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        assert_eq!(node.value("SELECT name FROM item").await, "seen");
        assert_eq!(
            node.value("SELECT count(*) FROM tandem.conflict").await,
            "0"
        );
    }

    let ports: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| node.port().to_string())
        .collect();
    for _ in 0..6 {
        assert_ne!(served_by(&cluster).await, ports[1]);
    }
    // Put right, the clock is behind what it had said: that is waited for, and then the node is let in.
    cluster.nodes[1].set_clock_offset_ms(0);
    cluster
        .daemon
        .status_when("the node is let in", LIMIT, |status| {
            clock(status, 1)["fenced"].is_null()
        })
        .await;
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_while_a_clock_is_set_back_still_wins() {
    let cluster = Cluster::of(&[15, 17, 18])
        .clocks()
        .schema(SCHEMA)
        .start()
        .await;
    let second = cluster.nodes[1].connect().await;
    client::execute(
        &second,
        "INSERT INTO item SELECT g, 'before' FROM generate_series(1, 20) g",
    )
    .await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (100, 'of another')")
        .await;
    cluster.converge(LIMIT).await;
    cluster.nodes[1].set_clock_offset_ms(-10_000);
    client::execute(&second, "UPDATE item SET name = 'after' WHERE id <= 10").await;
    client::execute(
        &second,
        "UPDATE item SET name = 'seen and changed' WHERE id = 100",
    )
    .await;
    let status = cluster
        .daemon
        .status_when("the node is fenced", LIMIT, |status| {
            clock(status, 1)["fenced"].is_string()
        })
        .await;
    let reason = clock(&status, 1)["fenced"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(reason.contains("set back"), "{reason}");
    client::execute(&second, "UPDATE item SET name = 'later' WHERE id = 1").await;
    // The window survives the daemon.
    let mut cluster = cluster;
    cluster.daemon.kill9().await;
    client::execute(&second, "INSERT INTO item VALUES (200, 'without daemon')").await;
    cluster.daemon.start().await;
    cluster
        .daemon
        .status_when("it is fenced again", LIMIT, |status| {
            clock(status, 1)["fenced"].is_string()
        })
        .await;
    // It stays so until the clock has passed what it had said.
    cluster.nodes[1].set_clock_offset_ms(0);
    cluster
        .daemon
        .status_when("the node is let in", LIMIT, |status| {
            clock(status, 1)["fenced"].is_null()
        })
        .await;
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        let names =
            "SELECT string_agg(name, ',' ORDER BY id) FROM item WHERE id IN (1, 2, 11, 100, 200)";
        assert_eq!(
            node.value(names).await,
            "later,after,before,seen and changed,without daemon"
        );
    }
    assert!(
        cluster.daemon.log().contains("has a newer version now"),
        "it was not mended"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_a_node_that_is_fenced_end_with_the_reason_and_the_next_is_elsewhere() {
    let cluster = Cluster::of(&[15, 18]).clocks().schema(SCHEMA).start().await;
    let ports: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| node.port().to_string())
        .collect();
    let session = cluster.proxy().await;
    let port = client::value(&session, "SELECT current_setting('port')").await;
    let place = ports
        .iter()
        .position(|other| *other == port)
        .expect("a node");
    cluster.nodes[place].set_clock_offset_ms(3_000);
    eventually("the session ends", LIMIT, async || {
        if session.is_closed() {
            Ok(())
        } else {
            Err("it is there")
        }
    })
    .await;
    eventually("the next one is elsewhere", LIMIT, async || {
        let found = served_by(&cluster).await;
        if found == ports[1 - place] {
            Ok(())
        } else {
            Err(found)
        }
    })
    .await;
    let log = cluster.daemon.log();
    assert!(
        log.contains("the node is fenced") && log.contains("sessions of a fenced node are ended"),
        "{log}"
    );
    let shown = cluster
        .daemon
        .command("status")
        .run(LIMIT)
        .await
        .expect_success();
    assert!(
        shown.stdout.contains("fenced: its clock is"),
        "{}",
        shown.stdout
    );
    // Where there is no other node, it serves all the same.
    cluster.nodes[1 - place].stop_immediately().await;
    eventually("it serves again", LIMIT, async || {
        match cluster.try_proxy().await {
            Ok(_) => Ok(()),
            Err(error) => Err(client::describe(&error)),
        }
    })
    .await;
}
