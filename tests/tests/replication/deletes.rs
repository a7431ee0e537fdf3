//! Deletes are versions too: what is newer than a delete stays or comes back, what is older does not.

use std::time::Duration;

use tandem_tests::{Cluster, eventually};

const SCHEMA: &str = "CREATE TABLE item (id int PRIMARY KEY, name text, amount int);";

/// Runs statements, in the order of time, on nodes that do not hear of each other; then lets them.
async fn apart(cluster: &Cluster, statements: &[(usize, &str)]) {
    cluster
        .relays
        .iter()
        .for_each(|relay| relay.silence_only("apply"));
    for (node, sql) in statements {
        cluster.nodes[*node].execute(sql).await;
    }
    cluster.relays.iter().for_each(|relay| relay.heal());
    cluster.assert_converged().await;
}

async fn expect(cluster: &Cluster, id: i32, row: &str) {
    for node in &cluster.nodes {
        let sql = format!(
            "SELECT coalesce((SELECT name || ' ' || amount FROM item WHERE id = {id}), 'none')"
        );
        assert_eq!(node.value(&sql).await, row, "{}", node.name);
    }
}

/// What the conflict log of all nodes together says about losers with this name.
async fn lines(cluster: &Cluster, kind: &str, name: &str) -> u64 {
    let mut lines = 0;
    for node in &cluster.nodes {
        let sql = format!(
            "SELECT count(*) FROM tandem.conflict WHERE type = '{kind}' AND outcome = 'local' AND remote_image->>'name' = '{name}'"
        );
        lines += node.value(&sql).await.parse::<u64>().expect("a count");
    }
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_and_a_write_of_other_nodes_end_as_the_newer_of_the_two_says() {
    let cluster = Cluster::of(&[15, 17, 18])
        .relays()
        .schema(SCHEMA)
        .start()
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO item SELECT i, 'x', 0 FROM generate_series(1, 9) i")
        .await;
    cluster.assert_converged().await;

    apart(
        &cluster,
        &[
            (0, "DELETE FROM item WHERE id = 1"),
            (1, "UPDATE item SET name = 'newer' WHERE id = 1"),
        ],
    )
    .await;
    expect(&cluster, 1, "newer 0").await;

    apart(
        &cluster,
        &[
            (1, "UPDATE item SET name = 'older' WHERE id = 2"),
            (0, "DELETE FROM item WHERE id = 2"),
        ],
    )
    .await;
    expect(&cluster, 2, "none").await;
    assert!(
        lines(&cluster, "update_deleted", "older").await > 0,
        "the lost update has no line"
    );

    // Remembered for as long as the update is under way, whatever VACUUM does to the dead row.
    apart(
        &cluster,
        &[
            (1, "UPDATE item SET name = 'older' WHERE id = 3"),
            (0, "DELETE FROM item WHERE id = 3"),
            (0, "VACUUM FREEZE item"),
        ],
    )
    .await;
    expect(&cluster, 3, "none").await;

    // Deleted on two nodes, written again on the third afterwards.
    apart(
        &cluster,
        &[
            (0, "DELETE FROM item WHERE id = 4"),
            (1, "DELETE FROM item WHERE id = 4"),
        ],
    )
    .await;
    expect(&cluster, 4, "none").await;
    cluster.nodes[2]
        .execute("INSERT INTO item VALUES (4, 'again', 1)")
        .await;
    cluster.assert_converged().await;
    expect(&cluster, 4, "again 1").await;

    // Deleted and written again on one node, updated in between on another.
    apart(
        &cluster,
        &[
            (0, "DELETE FROM item WHERE id = 5"),
            (1, "UPDATE item SET name = 'between' WHERE id = 5"),
            (0, "INSERT INTO item VALUES (5, 'new', 2)"),
        ],
    )
    .await;
    expect(&cluster, 5, "new 2").await;

    // The same key inserted on one node, inserted and deleted on another.
    apart(
        &cluster,
        &[
            (1, "INSERT INTO item VALUES (20, 'older', 0)"),
            (0, "INSERT INTO item VALUES (20, 'x', 0)"),
            (0, "DELETE FROM item WHERE id = 20"),
        ],
    )
    .await;
    expect(&cluster, 20, "none").await;
    assert!(
        lines(&cluster, "insert_deleted", "older").await > 0,
        "the lost insert has no line"
    );

    // Three nodes at once.
    apart(
        &cluster,
        &[
            (2, "UPDATE item SET amount = 3 WHERE id = 6"),
            (0, "DELETE FROM item WHERE id = 6"),
            (1, "UPDATE item SET amount = 7 WHERE id = 6"),
        ],
    )
    .await;
    expect(&cluster, 6, "x 7").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_key_is_a_delete_and_an_insert() {
    let cluster = Cluster::of(&[15, 17, 18])
        .relays()
        .schema(SCHEMA)
        .start()
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO item SELECT i, 'x', 0 FROM generate_series(1, 3) i")
        .await;
    cluster.assert_converged().await;
    apart(
        &cluster,
        &[
            (0, "UPDATE item SET id = 9 WHERE id = 1"),
            (1, "UPDATE item SET name = 'b' WHERE id = 1"),
        ],
    )
    .await;
    expect(&cluster, 9, "x 0").await;
    expect(&cluster, 1, "b 0").await;
    apart(
        &cluster,
        &[
            (1, "UPDATE item SET name = 'b' WHERE id = 2"),
            (0, "UPDATE item SET id = 8 WHERE id = 2"),
        ],
    )
    .await;
    expect(&cluster, 8, "x 0").await;
    expect(&cluster, 2, "none").await;
    apart(
        &cluster,
        &[
            (0, "UPDATE item SET id = 7 WHERE id = 3"),
            (1, "INSERT INTO item VALUES (7, 'c', 5)"),
        ],
    )
    .await;
    expect(&cluster, 7, "c 5").await;
    expect(&cluster, 3, "none").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncation_takes_what_is_older_and_leaves_what_is_newer() {
    let cluster = Cluster::of(&[15, 17, 18])
        .relays()
        .schema(SCHEMA)
        .start()
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO item SELECT i, 'x', 0 FROM generate_series(1, 3) i")
        .await;
    cluster.assert_converged().await;
    apart(
        &cluster,
        &[
            (1, "INSERT INTO item VALUES (10, 'older', 0); UPDATE item SET name = 'older' WHERE id = 1"),
            (0, "TRUNCATE item"),
            (2, "INSERT INTO item VALUES (11, 'newer', 0)"),
            (1, "UPDATE item SET name = 'newer' WHERE id = 2"),
        ],
    )
    .await;
    for (id, row) in [
        (1, "none"),
        (2, "newer 0"),
        (3, "none"),
        (10, "none"),
        (11, "newer 0"),
    ] {
        expect(&cluster, id, row).await;
    }
}

/// An untouched large value is not in the stream: the row that comes back has to be whole all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_comes_back_has_its_large_values() {
    let schema = "CREATE TABLE doc (id int PRIMARY KEY, body text, n int); ALTER TABLE doc ALTER body SET STORAGE EXTERNAL;";
    let cluster = Cluster::of(&[15, 17, 18])
        .relays()
        .schema(schema)
        .start()
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO doc VALUES (1, repeat('large', 10000), 0)")
        .await;
    cluster.assert_converged().await;
    apart(
        &cluster,
        &[
            (0, "DELETE FROM doc"),
            (1, "UPDATE doc SET n = 1"),
            (1, "UPDATE doc SET n = 2"),
        ],
    )
    .await;
    for node in &cluster.nodes {
        assert_eq!(
            node.value("SELECT length(body) || ' ' || n FROM doc").await,
            "50000 2",
            "{}",
            node.name
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletes_are_forgotten_once_no_change_can_meet_them() {
    let cluster = Cluster::of(&[15, 18]).schema(SCHEMA).start().await;
    cluster.nodes[0]
        .execute("INSERT INTO item SELECT i, 'x', 0 FROM generate_series(1, 50) i")
        .await;
    cluster.assert_converged().await;
    cluster.nodes[1]
        .execute("DELETE FROM item WHERE id > 10")
        .await;
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        eventually(
            "the node has forgotten its deletes",
            Duration::from_secs(40),
            async || match node
                .value("SELECT count(*) FROM tandem.tombstone")
                .await
                .as_str()
            {
                "0" => Ok(()),
                left => Err(format!("{left} left")),
            },
        )
        .await;
    }
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (11, 'again', 0)")
        .await;
    cluster.assert_converged().await;
    expect(&cluster, 11, "again 0").await;
}

/// Every kind of write on few keys, from all nodes at once: tombstones, rebuilt rows and re-used keys all the time.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_insert_update_and_delete_the_same_few_keys_converge() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let cluster = Cluster::of(&[15, 17, 18]).schema(SCHEMA).start().await;
    let mut writers = tokio::task::JoinSet::new();
    for (place, node) in cluster.nodes.iter().enumerate() {
        let client = node.connect().await;
        let mut random = fastrand::Rng::with_seed(seed.wrapping_add(place as u64));
        writers.spawn(async move {
            for count in 0..600 {
                let id = random.u8(0..6);
                let sql = match random.u8(0..4) {
                    0 => format!("INSERT INTO item VALUES ({id}, 'n{place}', {count}) ON CONFLICT DO NOTHING"),
                    1 => format!("DELETE FROM item WHERE id = {id}"),
                    2 => format!("UPDATE item SET id = {} WHERE id = {id} AND NOT EXISTS (SELECT FROM item WHERE id = {})", id + 1, id + 1),
                    _ => format!("UPDATE item SET name = 'n{place}', amount = {count} WHERE id = {id}"),
                };
                // Two clients may choose the same new key at once: that is the server's to refuse.
                let _refused = client.batch_execute(&sql).await;
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.expect("a writer ends");
    }
    cluster.assert_converged().await;
}

/// The transaction's own delete must not hide the newer one that is remembered already.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_deleted_and_written_again_at_once_loses_to_a_newer_delete() {
    let cluster = Cluster::of(&[15, 18]).relays().schema(SCHEMA).start().await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (1, 'x', 0)")
        .await;
    cluster.assert_converged().await;
    cluster.relays[0].silence_only("capture");
    let again =
        "BEGIN; DELETE FROM item WHERE id = 1; INSERT INTO item VALUES (1, 'again', 0); COMMIT";
    cluster.nodes[0].execute(again).await;
    cluster.nodes[1]
        .execute("DELETE FROM item WHERE id = 1")
        .await;
    eventually(
        "the delete is remembered",
        Duration::from_secs(20),
        async || match cluster.nodes[1]
            .value("SELECT count(*) FROM tandem.tombstone")
            .await
            .as_str()
        {
            "1" => Ok(()),
            count => Err(format!("{count} are")),
        },
    )
    .await;
    cluster.relays.iter().for_each(|relay| relay.heal());
    cluster.assert_converged().await;
    expect(&cluster, 1, "none").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_table_without_a_key_is_empty_everywhere() {
    let cluster = Cluster::of(&[15, 17, 18])
        .schema("CREATE TABLE log (line text);")
        .start()
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO log SELECT 'old' FROM generate_series(1, 20)")
        .await;
    cluster.assert_converged().await;
    cluster.nodes[1].execute("TRUNCATE log").await;
    cluster.assert_converged().await;
    cluster.nodes[2]
        .execute("INSERT INTO log VALUES ('new')")
        .await;
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        assert_eq!(
            node.value("SELECT string_agg(line, ' ') FROM log").await,
            "new",
            "{}",
            node.name
        );
    }
}
