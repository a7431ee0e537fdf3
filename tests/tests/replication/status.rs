//! Each figure of the status and of `/metrics` moves with what it stands for.

use std::time::Duration;

use serde_json::Value;
use tandem_tests::{Cluster, daemon::http};

const SCHEMA: &str = "CREATE TABLE item (id int PRIMARY KEY, name text);";
const LIMIT: Duration = Duration::from_secs(30);

/// The value of one sample of `/metrics`.
async fn metric(cluster: &Cluster, sample: &str) -> Option<f64> {
    let token = cluster.token();
    let answer = http(cluster.admin_port, "GET", "/metrics", Some(&token))
        .await
        .expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let found = answer.lines().find_map(|line| line.strip_prefix(sample));
    found.map(|value| value.trim().parse().expect("a number"))
}

async fn link_metric(cluster: &Cluster, name: &str, ends: [&str; 2]) -> Option<f64> {
    let [source, target] = ends;
    let sample = format!("tandem_link_{name}{{source=\"{source}\",target=\"{target}\"}}");
    metric(cluster, &sample).await
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_grows_while_a_target_is_cut_off_and_goes_back_to_zero() {
    let cluster = Cluster::of(&[15, 18]).relays().schema(SCHEMA).start().await;
    cluster.relays[1].cut();
    for id in 0..30 {
        cluster.nodes[0]
            .execute(&format!(
                "INSERT INTO item SELECT {id} * 10 + g, 'x' FROM generate_series(1, 3) g"
            ))
            .await;
    }
    let link = cluster
        .link_when("all is queued", 0, 1, |link| {
            link["lag_transactions"] == 30 && link["lag_ms"].as_u64() > Some(300)
        })
        .await;
    assert!(link["lag_bytes"].as_u64() > Some(1000), "{link}");
    let status = cluster.daemon.status().await.expect("a status");
    let paris = &status["replication"]["nodes"][0];
    assert_eq!(paris["capture"]["rows"], 90, "{paris}");
    assert!(paris["slot"]["xid_age"].is_number(), "{paris}");
    let gone = &status["replication"]["nodes"][1];
    assert!(
        gone["slot"].is_null() && gone["clock"]["offset_ms"].is_null(),
        "{gone}"
    );
    let ends = ["n1", "n2"];
    assert_eq!(
        link_metric(&cluster, "lag_transactions", ends).await,
        Some(30.0)
    );
    assert!(link_metric(&cluster, "lag_seconds", ends).await > Some(0.3));
    let before = link_metric(&cluster, "transactions_total", ends)
        .await
        .expect("known");

    cluster.relays[1].heal();
    cluster.converge(LIMIT).await;
    // A watermark of anybody's may be on its way at any moment.
    cluster
        .link_when("nothing is queued", 0, 1, |link| {
            link["lag_transactions"] == 0 && link["lag_ms"] == 0
        })
        .await;
    let mut id = 1000;
    tandem_tests::eventually("the rates see what is written", LIMIT, async || {
        id += 1;
        let insert = format!("INSERT INTO item VALUES ({id}, 'x')");
        cluster.nodes[0].execute(&insert).await;
        let link = cluster.link(0, 1).await;
        let rate = |name: &str| link["rates"][name].as_f64().unwrap_or(0.0);
        let moving = ["transactions", "rows", "bytes"].map(rate);
        if moving.iter().all(|rate| *rate > 0.1) {
            Ok(())
        } else {
            Err(link.to_string())
        }
    })
    .await;
    cluster.converge(LIMIT).await;
    let after = link_metric(&cluster, "transactions_total", ends)
        .await
        .expect("known");
    assert!(after >= before + 30.0, "{before} {after}");
    tandem_tests::eventually(
        "the metric says so, too",
        LIMIT,
        async || match link_metric(&cluster, "lag_transactions", ends).await {
            Some(0.0) => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await;
    let up = metric(&cluster, "tandem_replication_node_up{node=\"n2\"}").await;
    assert_eq!(up, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicts_are_counted_by_type() {
    let cluster = Cluster::of(&[15, 17]).relays().schema(SCHEMA).start().await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (1, 'both'), (2, 'gone')")
        .await;
    cluster.converge(LIMIT).await;
    for relay in &cluster.relays {
        relay.cut();
    }
    cluster.nodes[0]
        .execute("UPDATE item SET name = 'n1' WHERE id = 1")
        .await;
    cluster.nodes[0]
        .execute("DELETE FROM item WHERE id = 2")
        .await;
    cluster.nodes[1]
        .execute("UPDATE item SET name = 'n2'")
        .await;
    for relay in &cluster.relays {
        relay.heal();
    }
    cluster.assert_converged().await;
    let mut logged = 0;
    for node in &cluster.nodes {
        let count = node.value("SELECT count(*) FROM tandem.conflict").await;
        logged += count.parse::<u64>().expect("a number");
    }
    let status = cluster.daemon.status().await.expect("a status");
    let links = status["replication"]["links"].as_array().expect("links");
    let sum = |name: &str| -> u64 {
        let counts = links
            .iter()
            .map(|link| link["conflicts_by_type"][name].as_u64().unwrap_or(0));
        counts.sum()
    };
    assert!(
        sum("update_origin_differs") >= 1 && sum("update_deleted") >= 1,
        "{status:#}"
    );
    let all: u64 = links
        .iter()
        .filter_map(|link| link["conflicts"].as_u64())
        .sum();
    assert_eq!(all, logged, "{status:#}");
    let mut told = 0.0;
    for ends in [["n1", "n2"], ["n2", "n1"]] {
        let [source, target] = ends;
        for name in [
            "update_origin_differs",
            "update_deleted",
            "delete_origin_differs",
        ] {
            let sample = format!(
                "tandem_link_conflicts_total{{source=\"{source}\",target=\"{target}\",type=\"{name}\"}}"
            );
            told += metric(&cluster, &sample).await.unwrap_or(0.0);
        }
    }
    assert_eq!(told.to_string(), all.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_of_a_node_is_measured() {
    let cluster = Cluster::of(&[15, 17, 18])
        .clocks()
        .schema(SCHEMA)
        .start()
        .await;
    let offset = |status: &Value, node: usize| {
        status["replication"]["nodes"][node]["clock"]["offset_ms"].as_f64()
    };
    for offset_ms in [40, -30_i32] {
        cluster.nodes[2].set_clock_offset_ms(offset_ms.into());
        let wanted = f64::from(offset_ms);
        let near = |found: Option<f64>| found.is_some_and(|found| (found - wanted).abs() < 15.0);
        let status = cluster
            .daemon
            .status_when("the offset is seen", LIMIT, |status| {
                near(offset(status, 2))
            })
            .await;
        let others = [offset(&status, 0), offset(&status, 1)];
        assert!(
            others.iter().flatten().all(|other| other.abs() < 15.0),
            "{others:?}"
        );
        let sample = metric(&cluster, "tandem_node_clock_offset_seconds{node=\"n3\"}").await;
        assert!(near(sample.map(|seconds| seconds * 1000.0)), "{sample:?}");
    }
}
