//! A slot that is gone takes changes with it: that is said, and nothing is silently begun anew.

use std::time::Duration;

use tandem_tests::{Cluster, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_slot_is_reported_and_made_anew_only_when_told() {
    let schema = "CREATE TABLE item (id int PRIMARY KEY);";
    let mut cluster = Cluster::of(&[15, 18]).schema(schema).start().await;
    cluster.daemon.kill9().await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (1)")
        .await;
    let drop =
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active";
    eventually("the slot is dropped", Duration::from_secs(10), async || {
        cluster.nodes[0].execute(drop).await;
        match cluster.nodes[0]
            .value("SELECT count(*) FROM pg_replication_slots")
            .await
            .as_str()
        {
            "0" => Ok(()),
            _ => Err("its walsender is still there"),
        }
    })
    .await;

    cluster.daemon.spawn();
    let reported = |status: &serde_json::Value| {
        let problem = status["replication"]["nodes"][0]["problem"]
            .as_str()
            .unwrap_or_default();
        problem.contains("slot tandem_test is gone") && problem.contains("DELETE FROM tandem.slot")
    };
    cluster
        .daemon
        .status_when("the loss is reported", Duration::from_secs(20), reported)
        .await;
    assert_eq!(
        cluster.nodes[0]
            .value("SELECT count(*) FROM pg_replication_slots")
            .await,
        "0"
    );

    // As the message says: compare, copy what is missing, let a new slot begin.
    cluster.nodes[0]
        .execute("DELETE FROM item WHERE id = 1; DELETE FROM tandem.slot")
        .await;
    let up = |status: &serde_json::Value| status["replication"]["nodes"][0]["state"] == "up";
    cluster
        .daemon
        .status_when("the node is taken again", Duration::from_secs(20), up)
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (2)")
        .await;
    cluster.assert_converged().await;
}
