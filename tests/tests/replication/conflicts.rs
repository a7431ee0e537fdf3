//! Concurrent changes of one row: the newest version wins on every node, whatever the order of arrival.

use std::time::Duration;

use tandem_tests::{Cluster, client, eventually};

// A column may be called as rows are in Tandem's own statements.
const SCHEMA: &str = "CREATE TABLE item (id int PRIMARY KEY, name text, r int);";

/// Holds back the six links between three nodes, and lets single ones go.
struct Links<'a> {
    cluster: &'a Cluster,
    all: Vec<(usize, usize)>,
}

impl<'a> Links<'a> {
    fn hold(cluster: &'a Cluster) -> Self {
        let nodes = 0..cluster.nodes.len();
        let all: Vec<_> = nodes
            .clone()
            .flat_map(|source| nodes.clone().map(move |target| (source, target)))
            .filter(|(s, t)| s != t)
            .collect();
        for &(source, target) in &all {
            cluster.relays[target].silence_only(&Self::part(source));
        }
        Self { cluster, all }
    }

    fn part(source: usize) -> String {
        format!("apply {}", source + 1)
    }

    fn in_random_order(&self, random: &mut fastrand::Rng) -> Vec<(usize, usize)> {
        let mut order = self.all.clone();
        random.shuffle(&mut order);
        order
    }

    /// Lets one link deliver the one transaction that it holds back.
    async fn deliver(&self, (source, target): (usize, usize), before: u64) {
        self.cluster.relays[target].heal_only(&Self::part(source));
        let what = format!("node {} delivers to node {}", source + 1, target + 1);
        self.cluster
            .link_when(&what, source, target, |link| {
                link["transactions"].as_u64() > Some(before)
            })
            .await;
    }

    async fn transactions(&self) -> Vec<u64> {
        let mut counts = Vec::new();
        for &(source, target) in &self.all {
            counts.push(
                self.cluster.link(source, target).await["transactions"]
                    .as_u64()
                    .expect("a count"),
            );
        }
        counts
    }
}

/// Runs `changes` (one per node, the last is the newest) with all links held back, then delivers in the given order.
async fn concurrently(
    cluster: &Cluster,
    random: &mut fastrand::Rng,
    changes: [(usize, String); 3],
) -> String {
    let links = Links::hold(cluster);
    let before = links.transactions().await;
    for (node, sql) in &changes {
        cluster.nodes[*node].execute(sql).await;
    }
    let order = links.in_random_order(random);
    for link in &order {
        let index = links
            .all
            .iter()
            .position(|other| other == link)
            .expect("a link");
        links.deliver(*link, before[index]).await;
    }
    cluster.relays.iter().for_each(|relay| relay.heal());
    format!("delivery in the order {order:?}")
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_updates_converge_to_the_newest_in_every_order_of_delivery() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let cluster = Cluster::of(&[15, 15, 15])
        .relays()
        .schema(SCHEMA)
        .start()
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO item SELECT i, 'first', 0 FROM generate_series(1, 8) i")
        .await;
    cluster.assert_converged().await;
    for id in 1..=8 {
        let mut nodes = [0, 1, 2];
        random.shuffle(&mut nodes);
        let changes = nodes.map(|node| {
            (
                node,
                format!(
                    "UPDATE item SET name = 'of n{}', r = r + 1 WHERE id = {id}",
                    node + 1
                ),
            )
        });
        let order = concurrently(&cluster, &mut random, changes).await;
        cluster.assert_converged().await;
        let winner = format!("of n{}", nodes[2] + 1);
        for node in &cluster.nodes {
            let found = node
                .value(&format!("SELECT name FROM item WHERE id = {id}"))
                .await;
            assert_eq!(found, winner, "{} after {order}", node.name);
        }
        // The node that won has a line for each write that lost, with both images and both versions.
        let lines = format!(
            "SELECT string_agg(DISTINCT remote_image->>'name', ' ' ORDER BY remote_image->>'name') FROM tandem.conflict \
             WHERE relation LIKE '%item' AND type = 'update_origin_differs' AND (remote_image->>'id')::int = {id} \
             AND local_image->>'name' = '{winner}' AND local_node = {} AND remote_node <> local_node \
             AND local_timestamp > remote_timestamp",
            nodes[2] + 1
        );
        let mut losers = [
            format!("of n{}", nodes[0] + 1),
            format!("of n{}", nodes[1] + 1),
        ];
        losers.sort();
        assert_eq!(
            cluster.nodes[nodes[2]].value(&lines).await,
            losers.join(" "),
            "after {order}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_inserts_of_one_key_converge_to_the_newest_and_are_logged() {
    let mut random = fastrand::Rng::new();
    let cluster = Cluster::of(&[15, 17, 18])
        .relays()
        .schema(SCHEMA)
        .start()
        .await;
    for id in 1..=3 {
        let mut nodes = [0, 1, 2];
        random.shuffle(&mut nodes);
        let changes = nodes.map(|node| {
            (
                node,
                format!("INSERT INTO item VALUES ({id}, 'of n{}', {id})", node + 1),
            )
        });
        let order = concurrently(&cluster, &mut random, changes).await;
        cluster.assert_converged().await;
        for node in &cluster.nodes {
            let found = node
                .value(&format!("SELECT name FROM item WHERE id = {id}"))
                .await;
            assert_eq!(
                found,
                format!("of n{}", nodes[2] + 1),
                "{} after {order}",
                node.name
            );
        }
        let lines = format!(
            "SELECT count(DISTINCT remote_node) FROM tandem.conflict WHERE type = 'insert_exists' AND (remote_image->>'id')::int = {id}"
        );
        assert_eq!(
            cluster.nodes[nodes[2]].value(&lines).await,
            "2",
            "after {order}"
        );
    }
}

/// pgoutput sends no value for an untouched TOAST column, so the winner's row must not be mixed with the loser's.
#[tokio::test(flavor = "multi_thread")]
async fn a_losing_large_value_does_not_survive_in_the_winners_row() {
    let schema = "CREATE TABLE doc (id int PRIMARY KEY, body text, n int); ALTER TABLE doc ALTER body SET STORAGE EXTERNAL;";
    let cluster = Cluster::of(&[15, 15, 15])
        .relays()
        .schema(schema)
        .start()
        .await;
    let body = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 500) i)";
    cluster.nodes[0]
        .execute(&format!("INSERT INTO doc VALUES (1, {body}, 0)"))
        .await;
    cluster.assert_converged().await;
    let changes = [
        (
            0,
            format!("UPDATE doc SET body = 'loser' || {body} WHERE id = 1"),
        ),
        (1, "UPDATE doc SET n = 1 WHERE id = 1".to_owned()),
        (2, "UPDATE doc SET n = 2 WHERE id = 1".to_owned()),
    ];
    concurrently(&cluster, &mut fastrand::Rng::with_seed(1), changes).await;
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        assert_eq!(
            node.value("SELECT n || ' ' || left(body, 5) = '2 ' || left(md5('1'), 5) FROM doc")
                .await,
            "t",
            "{}",
            node.name
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_made_while_the_nodes_are_cut_off_converge_after_healing() {
    let cluster = Cluster::of(&[15, 15, 15])
        .relays()
        .schema(SCHEMA)
        .start()
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO item SELECT i, 'first', 0 FROM generate_series(1, 50) i")
        .await;
    cluster.assert_converged().await;
    cluster.relays.iter().for_each(|relay| relay.cut());
    let down = |status: &serde_json::Value| {
        status["replication"]["nodes"]
            .as_array()
            .is_some_and(|nodes| nodes.iter().all(|node| node["state"] == "down"))
    };
    cluster
        .daemon
        .status_when("every node is seen as down", Duration::from_secs(20), down)
        .await;
    for round in 0..4 {
        for node in &cluster.nodes {
            let sql = format!(
                "UPDATE item SET name = '{} in round {round}', r = r + 1 WHERE id % 4 <> {}",
                node.name, node.id
            );
            node.execute(&sql).await;
        }
    }
    let not_converged = cluster
        .daemon
        .wait_converged(Duration::from_millis(300))
        .await;
    assert_eq!(
        not_converged.status.code(),
        Some(1),
        "{}",
        not_converged.all()
    );
    cluster.relays.iter().for_each(|relay| relay.heal());
    cluster.assert_converged().await;
    let names = cluster.nodes[0]
        .value("SELECT string_agg(DISTINCT name, ', ' ORDER BY name) FROM item")
        .await;
    assert_eq!(names, "n2 in round 3, n3 in round 3");
}

/// One node's clock is not needed to be ahead: equal timestamps are settled by the node's id, so nothing flips.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_fight_over_one_row_without_pause_converge() {
    let cluster = Cluster::of(&[15, 17, 18]).schema(SCHEMA).start().await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (1, 'x', 0), (2, 'y', 0)")
        .await;
    cluster.assert_converged().await;
    let mut writers = tokio::task::JoinSet::new();
    for node in cluster.nodes.clone() {
        writers.spawn(async move {
            let client = node.connect().await;
            for round in 0..400 {
                let sql = format!(
                    "UPDATE item SET name = '{}', r = {round} WHERE id = {}",
                    node.name,
                    1 + round % 2
                );
                client::execute(&client, &sql).await;
            }
        });
    }
    writers.join_all().await;
    cluster.assert_converged().await;
    eventually(
        "nothing moves any more",
        Duration::from_secs(5),
        async || {
            let ran = cluster.daemon.wait_converged(Duration::from_secs(2)).await;
            if ran.status.success() {
                Ok(())
            } else {
                Err(ran.all())
            }
        },
    )
    .await;
    cluster.assert_equal().await;
}
