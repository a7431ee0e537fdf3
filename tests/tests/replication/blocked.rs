//! Links that cannot go on: they say why, the others flow, and they go on by themselves once it is mended.

use std::time::Duration;

use tandem_tests::{Cluster, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_missing_on_one_node_blocks_that_link_only_and_heals_when_it_is_made() {
    let cluster = Cluster::of(&[15, 15, 15])
        .schema("CREATE TABLE item (id int PRIMARY KEY);")
        .start()
        .await;
    let table = "CREATE TABLE late (id int PRIMARY KEY, note text)";
    for node in &cluster.nodes[..2] {
        node.execute(table).await;
    }
    cluster.nodes[0]
        .execute("INSERT INTO late VALUES (1, 'x')")
        .await;
    let link = cluster
        .link_when("the link is blocked", 0, 2, |link| {
            link["state"] == "blocked"
        })
        .await;
    let problem = link["problem"].as_str().expect("a problem");
    assert!(
        problem.contains("late") && problem.contains("does not exist"),
        "{problem}"
    );

    // The rest goes on: the other target has it, and what the third node writes leaves it.
    cluster.nodes[2]
        .execute("INSERT INTO item VALUES (3)")
        .await;
    let arrived = async || {
        let late = cluster.nodes[1].value("SELECT count(*) FROM late").await;
        let item = cluster.nodes[0].value("SELECT count(*) FROM item").await;
        if (late.as_str(), item.as_str()) == ("1", "1") {
            Ok(())
        } else {
            Err(format!("late {late}, item {item}"))
        }
    };
    eventually("other links flow", Duration::from_secs(20), arrived).await;
    // What the second node writes now may have seen the row that the third lacks, so there it waits, and says for whom.
    cluster.nodes[1]
        .execute("INSERT INTO item VALUES (2)")
        .await;
    cluster
        .link_when("a follower waits", 1, 2, |link| {
            link["state"] == "waiting_for_cause"
        })
        .await;
    let behind = cluster.daemon.wait_converged(Duration::from_secs(1)).await;
    assert_eq!(behind.status.code(), Some(1), "{}", behind.all());
    assert!(behind.stdout.contains("late"), "{}", behind.all());

    cluster.nodes[2].execute(table).await;
    cluster.assert_converged().await;
    assert_eq!(cluster.nodes[2].value("SELECT note FROM late").await, "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_constraint_refuses_blocks_the_link_with_the_servers_words() {
    let cluster = Cluster::of(&[15, 15])
        .schema("CREATE TABLE item (id int PRIMARY KEY, amount int);")
        .start()
        .await;
    cluster.nodes[1]
        .execute("ALTER TABLE item ADD CONSTRAINT small CHECK (amount < 10)")
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (1, 5), (2, 50)")
        .await;
    let link = cluster
        .link_when("the link is blocked", 0, 1, |link| {
            link["state"] == "blocked"
        })
        .await;
    assert!(
        link["problem"]
            .as_str()
            .is_some_and(|problem| problem.contains("small")),
        "{link}"
    );
    assert_eq!(
        cluster.nodes[1].value("SELECT count(*) FROM item").await,
        "0",
        "nothing of the transaction may be seen"
    );
    cluster.nodes[1]
        .execute("ALTER TABLE item DROP CONSTRAINT small")
        .await;
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_table_delays_the_link_and_nothing_is_lost() {
    let cluster = Cluster::of(&[15, 15])
        .schema("CREATE TABLE item (id int PRIMARY KEY);")
        .start()
        .await;
    let client = cluster.nodes[1].connect().await;
    tandem_tests::client::execute(&client, "BEGIN; LOCK TABLE item").await;
    cluster.nodes[0]
        .execute("INSERT INTO item SELECT generate_series(1, 1000)")
        .await;
    let behind = cluster.daemon.wait_converged(Duration::from_secs(1)).await;
    assert_eq!(behind.status.code(), Some(1), "{}", behind.all());
    tandem_tests::client::execute(&client, "COMMIT").await;
    cluster.assert_converged().await;
}

/// They travel in one batch with the one that cannot be written.
#[tokio::test(flavor = "multi_thread")]
async fn what_stands_before_a_change_that_does_not_fit_is_applied() {
    let schema = "CREATE TABLE item (id int PRIMARY KEY);";
    let cluster = Cluster::of(&[15, 18]).relays().schema(schema).start().await;
    cluster.relays[1].silence_only("apply 1");
    cluster.nodes[0]
        .execute("CREATE TABLE only_here (id int PRIMARY KEY)")
        .await;
    for id in 1..=5 {
        cluster.nodes[0]
            .execute(&format!("INSERT INTO item VALUES ({id})"))
            .await;
    }
    cluster.nodes[0]
        .execute("INSERT INTO only_here VALUES (1)")
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (6)")
        .await;
    cluster.relays[1].heal();
    eventually(
        "the five are there",
        Duration::from_secs(20),
        async || match cluster.nodes[1]
            .value("SELECT count(*) FROM item")
            .await
            .as_str()
        {
            "5" => Ok(()),
            count => Err(format!("{count} are there")),
        },
    )
    .await;
    cluster.nodes[1]
        .execute("CREATE TABLE only_here (id int PRIMARY KEY)")
        .await;
    cluster.assert_converged().await;
}
