//! Causal delivery: no node shows an effect before its cause.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tandem_tests::{Cluster, Node, client};
use tokio::task::JoinSet;

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

/// Every link gets another speed.
fn slow_down(cluster: &Cluster) {
    for (target, relay) in cluster.relays.iter().enumerate() {
        for source in (1..=3).filter(|source| *source != target + 1) {
            let by = Duration::from_millis([0, 120, 30][(source + target) % 3]);
            relay.delay(&format!("apply {source}"), by);
        }
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
    slow_down(&cluster);
    let mut chains = JoinSet::new();
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

/// Chains of writes: step n writes the n-th row of three (modulo), on the n-th node (modulo), once it sees step n - 1.
const HOP: &str = "CREATE TABLE hop (chain int, place int, step int NOT NULL, PRIMARY KEY (chain, place)); \
    INSERT INTO hop SELECT c, p, p - 2 FROM generate_series(1, 24) c, generate_series(0, 2) p;";
const CHAINS: i32 = 24;

/// How many times a chain is read.
fn reads() -> u64 {
    std::env::var("TANDEM_TEST_CAUSALITY_READS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(30_000)
}

/// Every node sees at least so many steps of each chain.
const STEPS_LEAST: i32 = 4;

/// Takes the steps of one chain until told to stop; answers the last.
async fn hop(nodes: Vec<Node>, chain: i32, stop: Arc<AtomicBool>) -> i32 {
    let mut clients = Vec::new();
    for node in &nodes {
        clients.push(node.connect().await);
    }
    let sql = "UPDATE hop SET step = $3 WHERE chain = $1 AND place = $2 \
         AND EXISTS (SELECT FROM hop WHERE chain = $1 AND step = $3 - 1)";
    for step in 1.. {
        let place = (step + 2) % 3;
        let client = &clients[usize::try_from(step % 3).expect("a small number")];
        loop {
            if stop.load(Ordering::Relaxed) {
                return step - 1;
            }
            let done = client.execute(sql, &[&chain, &place, &step]).await;
            if done.expect("a step can be tried") == 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    0
}

/// Reads all chains of one node at once, again and again; answers what was seen of a step without the one before.
async fn watch(node: Node, read: Arc<AtomicU64>, enough: u64) -> Option<String> {
    let client = node.connect().await;
    // Of three rows that are written in turn the newest is always two steps ahead of the oldest.
    let sql = "SELECT count(*), string_agg(format('chain %s: steps %s to %s', chain, oldest, newest), ', ') \
         FILTER (WHERE newest - oldest <> 2), min(newest) FROM (SELECT chain, min(step) AS oldest, max(step) AS newest FROM hop GROUP BY chain) c";
    let mut slowest = 0;
    while read.load(Ordering::Relaxed) < enough || slowest < STEPS_LEAST {
        let row = client
            .query_one(sql, &[])
            .await
            .expect("the chains can be read");
        let chains = u64::try_from(row.get::<_, i64>(0)).expect("a count");
        slowest = row.get(2);
        read.fetch_add(chains, Ordering::Relaxed);
        if let Some(violation) = row.get::<_, Option<String>>(1) {
            return Some(format!("{}: {violation}", node.name));
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_ever_reads_a_step_without_the_one_before_it() {
    let cluster = Cluster::of(&[15, 17, 18])
        .relays()
        .schema(HOP)
        .start()
        .await;
    slow_down(&cluster);
    let stop = Arc::new(AtomicBool::new(false));
    let read = Arc::new(AtomicU64::new(0));
    let mut hops = JoinSet::new();
    for chain in 1..=CHAINS {
        hops.spawn(hop(cluster.nodes.clone(), chain, Arc::clone(&stop)));
    }
    let mut watches = JoinSet::new();
    for node in &cluster.nodes {
        watches.spawn(watch(node.clone(), Arc::clone(&read), reads()));
    }
    let violations: Vec<String> = watches.join_all().await.into_iter().flatten().collect();
    stop.store(true, Ordering::Relaxed);
    let steps: i32 = hops.join_all().await.into_iter().sum();
    let read = read.load(Ordering::Relaxed);
    eprintln!(
        "{read} reads of chains of {steps} steps, {} violations",
        violations.len()
    );
    assert!(violations.is_empty(), "{violations:?}");
    assert!(steps >= CHAINS * STEPS_LEAST, "{steps} steps only");
    cluster.assert_converged().await;
}
