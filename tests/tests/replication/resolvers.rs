//! Resolvers that prefer an older write: the nodes agree on the write that the policy names, and each loser is listed.

use std::time::Duration;

use tandem_tests::{Cluster, eventually};

const SCHEMA: &str = "CREATE TABLE item (id int PRIMARY KEY, name text, hits int NOT NULL DEFAULT 0);\
     INSERT INTO item VALUES (1, 'one', 10);";
const FIRST: &str = "[replication.table.\"public.item\"]\nresolver = \"first_update_wins\"";
const PRIORITY: &str = "[replication.table.\"public.item\"]\nresolver = \"node_priority\"\npriority = [\"n2\", \"n1\"]";

async fn cluster(section: &str) -> Cluster {
    let builder = Cluster::of(&[15, 17, 18]).relays().schema(SCHEMA);
    builder.sections(section).start().await
}

/// Holds everything back while `statements` run, one on each named node in turn, then lets it go.
async fn apart(cluster: &Cluster, statements: &[(usize, &str)]) {
    for relay in &cluster.relays {
        relay.silence_only("apply");
    }
    for &(node, sql) in statements {
        cluster.nodes[node].execute(sql).await;
    }
    for relay in &cluster.relays {
        relay.heal();
    }
    cluster.assert_converged().await;
}

async fn assert_row(cluster: &Cluster, row: &str) {
    for node in &cluster.nodes {
        let sql = "SELECT coalesce((SELECT name || ' ' || hits FROM item WHERE id = 1), 'none')";
        assert_eq!(node.value(sql).await, row, "{}", node.name);
    }
}

/// What stands in the conflict logs: for each loser, its name and who decided.
async fn losers(cluster: &Cluster) -> Vec<String> {
    let sql = "SELECT coalesce(string_agg(CASE outcome WHEN 'remote' THEN local_image ELSE remote_image END->>'name' \
         || ' by ' || resolver, ','), '') FROM tandem.conflict WHERE outcome <> 'pending'";
    let mut all = Vec::new();
    for node in &cluster.nodes {
        let found = node.value(sql).await;
        all.extend(found.split(',').map(str::to_owned));
        let pending = "SELECT count(*) FROM tandem.conflict WHERE outcome = 'pending'";
        assert_eq!(node.value(pending).await, "0", "{}", node.name);
    }
    all.retain(|loser| !loser.is_empty());
    all.sort();
    all.dedup();
    all
}

const UPDATES: [&str; 3] = [
    "UPDATE item SET name = 'a' WHERE id = 1",
    "UPDATE item SET name = 'b' WHERE id = 1",
    "UPDATE item SET name = 'c' WHERE id = 1",
];

#[tokio::test(flavor = "multi_thread")]
async fn of_concurrent_updates_the_first_wins_on_every_node_and_the_others_are_listed() {
    let cluster = cluster(FIRST).await;
    for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
        let [a, b, c] = order;
        let statements = [(a, UPDATES[0]), (b, UPDATES[1]), (c, UPDATES[2])];
        apart(&cluster, &statements).await;
        assert_row(&cluster, "a 10").await;
    }
    let losers = losers(&cluster).await;
    for loser in ["b by first_update_wins", "c by first_update_wins"] {
        assert!(
            losers.iter().any(|line| line == loser),
            "{loser}: {losers:?}"
        );
    }
    // What has seen the row that was written again is no conflict.
    cluster.nodes[1].execute(UPDATES[2]).await;
    cluster.assert_converged().await;
    assert_row(&cluster, "c 10").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_concurrent_updates_that_of_the_node_with_priority_wins_whenever_it_came() {
    let cluster = cluster(PRIORITY).await;
    for order in [[0, 1, 2], [1, 0, 2], [2, 0, 1]] {
        let statements = order.map(|node| (node, UPDATES[node]));
        apart(&cluster, &statements).await;
        assert_row(&cluster, "b 10").await;
    }
    apart(&cluster, &[(0, UPDATES[0]), (2, UPDATES[2])]).await;
    assert_row(&cluster, "a 10").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_that_was_first_deletes_and_one_that_was_later_does_not() {
    let cluster = cluster(FIRST).await;
    let delete = "DELETE FROM item WHERE id = 1";
    apart(&cluster, &[(0, UPDATES[0]), (1, delete)]).await;
    assert_row(&cluster, "a 10").await;
    apart(&cluster, &[(1, delete), (0, UPDATES[1])]).await;
    assert_row(&cluster, "none").await;
    // Both insert it anew: an insert, too, is first or is not.
    let insert = |name| format!("INSERT INTO item VALUES (1, '{name}', 1)");
    let (first, second) = (insert("x"), insert("y"));
    apart(&cluster, &[(2, &first), (0, &second)]).await;
    assert_row(&cluster, "x 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_add_up_whoever_wins_the_other_columns() {
    let section = format!("{FIRST}\ncounters = [\"hits\"]");
    let cluster = cluster(&section).await;
    let update =
        |name, hits| format!("UPDATE item SET name = '{name}', hits = hits + {hits} WHERE id = 1");
    let (a, b, c) = (update("a", 1), update("b", 20), update("c", 300));
    apart(&cluster, &[(2, &a), (1, &b), (0, &c)]).await;
    assert_row(&cluster, "a 331").await;
    let delete = "DELETE FROM item WHERE id = 1";
    let (d, insert) = (update("d", 5), "INSERT INTO item VALUES (1, 'new', 1)");
    apart(&cluster, &[(0, &d), (1, delete), (1, insert)]).await;
    // The delete took 331; what was added beside it, and what came after it, counts.
    assert_row(&cluster, "d 6").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_value_comes_back_with_the_row_that_should_have_won() {
    let schema = "ALTER TABLE item ALTER name SET STORAGE EXTERNAL; \
         UPDATE item SET name = repeat('first ', 2000) WHERE id = 1;";
    let builder = Cluster::of(&[15, 15, 18]).relays();
    let cluster = builder
        .schema(&format!("{SCHEMA}{schema}"))
        .sections(FIRST)
        .start()
        .await;
    // The first does not touch the large value, so that it is not in the stream.
    apart(
        &cluster,
        &[
            (0, "UPDATE item SET hits = 11 WHERE id = 1"),
            (
                1,
                "UPDATE item SET hits = 12, name = repeat('second ', 2000) WHERE id = 1",
            ),
        ],
    )
    .await;
    for node in &cluster.nodes {
        let found = node.value("SELECT hits || left(name, 5) FROM item").await;
        assert_eq!(found, "11first", "{}", node.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_that_a_killed_daemon_left_unsettled_is_settled_once() {
    let mut cluster = cluster(FIRST).await;
    // Settling has to write this table.
    let blocker = cluster.nodes[1].connect().await;
    blocker
        .batch_execute("BEGIN; LOCK TABLE tandem.upheld IN SHARE MODE")
        .await
        .expect("a lock");
    for relay in &cluster.relays {
        relay.silence_only("apply");
    }
    cluster.nodes[0].execute(UPDATES[0]).await;
    cluster.nodes[1].execute(UPDATES[1]).await;
    for relay in &cluster.relays {
        relay.heal();
    }
    let pending = "SELECT count(*) FROM tandem.conflict WHERE outcome = 'pending'";
    eventually(
        "a conflict is pending",
        Duration::from_secs(20),
        async || match cluster.nodes[1].value(pending).await.as_str() {
            "1" => Ok(()),
            count => Err(count.to_owned()),
        },
    )
    .await;
    cluster.daemon.kill9().await;
    cluster.daemon.start().await;
    blocker.batch_execute("COMMIT").await.expect("unlocked");
    cluster.assert_converged().await;
    assert_row(&cluster, "a 10").await;
    let losers = losers(&cluster).await;
    assert!(
        losers.contains(&"b by first_update_wins".to_owned()),
        "{losers:?}"
    );
    let lines = cluster.nodes[1]
        .value("SELECT count(*) FROM tandem.conflict")
        .await;
    assert_eq!(lines, "1", "settled once");
}
