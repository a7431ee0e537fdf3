//! Replica identities: what a node's stream has to tell is seen to, and what cannot be is named.

use std::time::Duration;

use tandem_tests::{Cluster, client, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_does_not_tell_the_key_is_mended_and_one_that_tells_more_stays() {
    let schema = "CREATE TABLE mute (id int PRIMARY KEY, name text); ALTER TABLE mute REPLICA IDENTITY NOTHING; \
        CREATE TABLE other (id int PRIMARY KEY, code int NOT NULL UNIQUE, name text); \
        ALTER TABLE other REPLICA IDENTITY USING INDEX other_code_key; \
        CREATE TABLE whole (id int PRIMARY KEY, name text); ALTER TABLE whole REPLICA IDENTITY FULL; \
        INSERT INTO mute VALUES (1, 'a'), (2, 'b'); INSERT INTO other VALUES (1, 11, 'a'), (2, 12, 'b'); \
        INSERT INTO whole VALUES (1, 'a'), (2, 'b');";
    let cluster = Cluster::of(&[15, 18]).schema(schema).start().await;
    for (node, table) in [
        (0, "mute"),
        (1, "other"),
        (0, "whole"),
        (1, "mute"),
        (0, "other"),
    ] {
        cluster.nodes[node]
            .execute(&format!(
                "UPDATE {table} SET name = name || '{node}' WHERE id = 1"
            ))
            .await;
        cluster.assert_converged().await;
    }
    for table in ["mute", "other", "whole"] {
        cluster.nodes[1]
            .execute(&format!("DELETE FROM {table} WHERE id = 2"))
            .await;
    }
    cluster.nodes[0]
        .execute("UPDATE other SET id = 3, code = 13 WHERE id = 1")
        .await;
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        let identities = "SELECT string_agg(relreplident, ' ' ORDER BY relname) FROM pg_class \
            WHERE relname IN ('mute', 'other', 'whole')";
        assert_eq!(node.value(identities).await, "d f f", "{}", node.name);
        let rows = "SELECT (SELECT name FROM mute) || ' ' || (SELECT id || name FROM other) || ' ' || (SELECT name FROM whole)";
        assert_eq!(node.value(rows).await, "a01 3a10 a0", "{}", node.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deferrable_primary_key_is_refused_by_name_unless_the_table_is_left_out() {
    let schema = "CREATE TABLE item (id int PRIMARY KEY DEFERRABLE, name text); CREATE TABLE log (note text);";
    let mut cluster = Cluster::of(&[15, 18])
        .schema(schema)
        .without_daemon()
        .start()
        .await;
    let checked = cluster
        .daemon
        .command("check")
        .run(Duration::from_secs(30))
        .await;
    let text = checked.all();
    assert_eq!(checked.status.code(), Some(1), "{text}");
    for part in [
        "the primary key of public.item is deferrable",
        "no primary key, so rows are told apart by their content only: public.log",
        "public.log has not REPLICA IDENTITY FULL; Tandem will set it",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    cluster.daemon.spawn();
    cluster
        .daemon
        .status_when("the node is refused", Duration::from_secs(20), |status| {
            status["replication"]["nodes"][0]["problem"]
                .as_str()
                .is_some_and(|problem| problem.contains("public.item is deferrable"))
        })
        .await;
    cluster.daemon.kill9().await;
    cluster.change_config(|text| {
        text.replace(
            "[replication]",
            "[replication]\nexclude = [\"public.item\"]",
        )
    });
    cluster.daemon.start().await;
    // Until it is taken nobody sees what a node writes.
    cluster.converge(Duration::from_secs(60)).await;
    cluster.nodes[0]
        .execute("INSERT INTO log VALUES ('x')")
        .await;
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_and_keyless_tables_may_have_stored_generated_columns() {
    let schema = "CREATE TABLE item (id int PRIMARY KEY, hits int NOT NULL, twice int GENERATED ALWAYS AS (hits * 2) STORED); \
        INSERT INTO item VALUES (1, 10); \
        CREATE TABLE log (n int, twice int GENERATED ALWAYS AS (n * 2) STORED);";
    let cluster = Cluster::of(&[15, 17, 18])
        .schema(schema)
        .sections("[replication.table.\"public.item\"]\ncounters = [\"hits\"]")
        .start()
        .await;
    let mut clients = Vec::new();
    for node in &cluster.nodes {
        clients.push(node.connect().await);
    }
    for round in 1..=4 {
        for (number, node) in clients.iter().enumerate() {
            let add = format!("UPDATE item SET hits = hits + {round} WHERE id = 1");
            client::execute(node, &add).await;
            client::execute(node, &format!("INSERT INTO log VALUES ({round}{number})")).await;
        }
    }
    cluster.assert_converged().await;
    client::execute(&clients[2], "DELETE FROM log WHERE n % 10 = 0").await;
    client::execute(&clients[0], "UPDATE log SET n = -n WHERE n % 10 = 1").await;
    cluster.converge(Duration::from_secs(60)).await;
    for node in &cluster.nodes {
        let item = "SELECT hits || ' ' || twice FROM item";
        assert_eq!(node.value(item).await, "40 80", "{}", node.name);
        let log = "SELECT count(*) || ' ' || sum(n) || ' ' || sum(twice) FROM log";
        assert_eq!(node.value(log).await, "8 4 8", "{}", node.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_a_key_that_is_made_later_takes_updates_and_a_client_that_holds_it_is_not_in_the_way()
 {
    let cluster = Cluster::of(&[15, 18]).start().await;
    let mut holders = Vec::new();
    for node in &cluster.nodes {
        node.execute("CREATE TABLE log (n int)").await;
        let holder = node.connect().await;
        client::execute(&holder, "BEGIN; SELECT count(*) FROM log").await;
        holders.push(holder);
    }
    // The table cannot be changed now, and nobody who wants it waits for long.
    for n in 1..=20 {
        cluster.nodes[0]
            .execute(&format!("INSERT INTO log VALUES ({n})"))
            .await;
    }
    cluster.assert_converged().await;
    for holder in &holders {
        client::execute(holder, "COMMIT").await;
    }
    let identity = "SELECT relreplident FROM pg_class WHERE relname = 'log'";
    for node in &cluster.nodes {
        eventually(
            "it is told whole",
            Duration::from_secs(30),
            async || match node.value(identity).await.as_str() {
                "f" => Ok(()),
                other => Err(other.to_owned()),
            },
        )
        .await;
    }
    cluster.nodes[1]
        .execute("DELETE FROM log WHERE n > 10; UPDATE log SET n = -n")
        .await;
    cluster.converge(Duration::from_secs(60)).await;
    for node in &cluster.nodes {
        assert_eq!(node.value("SELECT sum(n) FROM log").await, "-55");
    }
}
