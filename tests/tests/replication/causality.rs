//! Causal delivery: no node shows an effect before its cause.

use std::time::Duration;

use tandem_tests::{Cluster, client};

const SCHEMA: &str = "CREATE TABLE item (id int PRIMARY KEY, name text, amount int);";

#[tokio::test(flavor = "multi_thread")]
async fn an_update_waits_for_the_insert_that_it_saw() {
    let cluster = Cluster::of(&[15, 15, 15])
        .relays()
        .schema(SCHEMA)
        .start()
        .await;
    // What node 1 writes does not reach node 3 for now.
    cluster.relays[2].silence_only("apply 1");
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (1, 'inserted on 1', 0)")
        .await;
    let second = cluster.nodes[1].connect().await;
    tandem_tests::eventually(
        "the insert reaches node 2",
        Duration::from_secs(20),
        async || match client::value(
            &second,
            "UPDATE item SET name = 'updated on 2' WHERE id = 1 RETURNING 'yes'",
        )
        .await
        .as_str()
        {
            "yes" => Ok(()),
            _ => Err("it is not there"),
        },
    )
    .await;
    let link = cluster
        .link_when("node 2's update waits", 1, 2, |link| {
            link["state"] == "waiting_for_cause"
        })
        .await;
    assert!(
        link["problem"]
            .as_str()
            .is_some_and(|problem| problem.contains("n1")),
        "{link}"
    );
    assert_eq!(link["waiting"]["node"], "n1", "{link}");
    let position = link["waiting"]["position"].as_str().unwrap_or_default();
    let problem = link["problem"].as_str().unwrap_or_default();
    assert!(
        position.contains('/') && problem.ends_with(position),
        "{link}"
    );
    assert!(link["state_ms"].is_u64(), "{link}");
    assert_eq!(
        cluster.nodes[2].value("SELECT count(*) FROM item").await,
        "0"
    );
    cluster.relays[2].heal();
    cluster.assert_converged().await;
    assert_eq!(
        cluster.nodes[2].value("SELECT name FROM item").await,
        "updated on 2"
    );
    for node in &cluster.nodes {
        assert_eq!(
            node.value("SELECT count(*) FROM tandem.conflict").await,
            "0",
            "{}",
            node.name
        );
    }
}

/// Rows wander over all nodes, each step seeing the one before, while every link has another speed.
#[tokio::test(flavor = "multi_thread")]
async fn chains_of_updates_over_all_nodes_meet_no_conflict_on_slow_links() {
    const STEPS: usize = 6;
    let cluster = Cluster::of(&[15, 17, 18])
        .relays()
        .schema(SCHEMA)
        .start()
        .await;
    for (target, relay) in cluster.relays.iter().enumerate() {
        for source in (1..=3).filter(|source| *source != target + 1) {
            let by = Duration::from_millis([0, 120, 30][(source + target) % 3]);
            relay.delay(&format!("apply {source}"), by);
        }
    }
    let mut chains = tokio::task::JoinSet::new();
    for id in 0..12 {
        let nodes = cluster.nodes.clone();
        chains.spawn(async move {
            let mut clients = Vec::new();
            for node in &nodes {
                clients.push(node.connect().await);
            }
            client::execute(&clients[id % 3], &format!("INSERT INTO item VALUES ({id}, 'n', 0)")).await;
            for step in 1..=STEPS {
                let client = &clients[(id + step * (1 + id % 2)) % 3];
                let sql = format!("UPDATE item SET amount = {step}, name = name || {step} WHERE id = {id} AND amount = {step} - 1 RETURNING 'yes'");
                let seen = async {
                    while client::value(client, &sql).await != "yes" {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(30), seen).await.expect("the step before is seen in time");
            }
        });
    }
    chains.join_all().await;
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        assert_eq!(
            node.value("SELECT string_agg(DISTINCT name, ' ') FROM item")
                .await,
            "n123456",
            "{}",
            node.name
        );
        assert_eq!(
            node.value("SELECT coalesce(json_agg(c)::text, '') FROM tandem.conflict c")
                .await,
            "",
            "{}",
            node.name
        );
    }
}
