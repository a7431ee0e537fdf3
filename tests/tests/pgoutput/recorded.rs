//! What real servers send, of every protocol version.

use std::collections::BTreeSet;

use tandem_tests::{Cluster, Node, client};

use crate::oracle::{ours, theirs};

/// Every kind of change, in transactions that are small, large (sent in parts), rolled back in part, and rolled back.
const WORK: [&str; 4] = [
    "BEGIN; INSERT INTO keyed VALUES (1, 'happy', repeat('x', 10), NULL); UPDATE keyed SET note = 'new' WHERE id = 1; \
     UPDATE keyed SET id = 2; DELETE FROM keyed; SELECT pg_logical_emit_message(true, 'inside', 'text'); \
     INSERT INTO whole VALUES (1, 'a'); UPDATE whole SET v = 'b'; DELETE FROM whole; COMMIT",
    "BEGIN; INSERT INTO keyed SELECT g, 'sad', 'row ' || g, g FROM generate_series(1, 5000) g; SAVEPOINT s; \
     INSERT INTO whole SELECT g, repeat('y', 100) FROM generate_series(1, 5000) g; ROLLBACK TO s; \
     SELECT pg_logical_emit_message(true, 'streamed', 'text'); \
     UPDATE keyed SET note = 'changed' WHERE id % 3 = 0; COMMIT",
    "TRUNCATE keyed, whole RESTART IDENTITY CASCADE",
    "SELECT pg_logical_emit_message(false, 'outside', 'text')",
];

const SCHEMA: &str = "CREATE TYPE mood AS ENUM ('sad', 'happy'); \
    CREATE TABLE keyed (id int PRIMARY KEY, mood mood, note varchar(20), number numeric(12, 2)); \
    CREATE TABLE whole (id int, v text); ALTER TABLE whole REPLICA IDENTITY FULL;";

/// What a slot gives for `options`, message by message, from where it was created.
async fn messages(node: &Node, slot: &str, options: &str) -> Vec<Vec<u8>> {
    let sql = format!(
        "SELECT data FROM pg_logical_slot_get_binary_changes('{slot}', NULL, NULL, 'publication_names', 'all_tables', {options})"
    );
    let rows = node.connect().await.query(&sql, &[]).await;
    let rows = rows.unwrap_or_else(|error| panic!("{sql}: {}", client::describe(&error)));
    rows.iter().map(|row| row.get(0)).collect()
}

/// Compares a stream; answers the tags that came, those inside parts of a transaction behind a `~`.
fn compare(messages: &[Vec<u8>]) -> BTreeSet<String> {
    let mut in_stream = false;
    let mut seen = BTreeSet::new();
    for bytes in messages {
        let tag = char::from(bytes[0]);
        in_stream = in_stream && tag != 'E';
        let ours = ours(bytes, in_stream).unwrap_or_else(|error| panic!("{error}: {bytes:?}"));
        assert_eq!(Ok(ours), theirs(bytes, in_stream), "{bytes:?}");
        seen.insert(if in_stream {
            format!("~{tag}")
        } else {
            tag.to_string()
        });
        in_stream = in_stream || tag == 'S';
    }
    seen
}

#[tokio::test]
async fn what_servers_send_means_the_same_to_both() {
    let cluster = Cluster::of(&[15, 17, 18])
        .schema(SCHEMA)
        .without_daemon()
        .start()
        .await;
    for node in &cluster.nodes {
        let mut streams = vec![
            ("whole", "'proto_version', '1', 'messages', 'true'"),
            (
                "parts",
                "'proto_version', '2', 'messages', 'true', 'streaming', 'on'",
            ),
            (
                "binary",
                "'proto_version', '3', 'binary', 'true', 'streaming', 'on'",
            ),
        ];
        if node.install().major >= 16 {
            let parallel = "'proto_version', '4', 'messages', 'true', 'streaming', 'parallel', 'origin', 'any'";
            streams.push(("parallel", parallel));
        }
        let session = node.connect().await;
        client::execute(&session, "CREATE PUBLICATION all_tables FOR ALL TABLES").await;
        client::execute(
            &session,
            "ALTER SYSTEM SET logical_decoding_work_mem = '64kB'",
        )
        .await;
        client::execute(&session, "SELECT pg_reload_conf()").await;
        for (slot, _) in &streams {
            let sql = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
            client::execute(&session, &sql).await;
        }
        let origin = "SELECT pg_replication_origin_create('elsewhere'), pg_replication_origin_session_setup('elsewhere')";
        for sql in WORK.into_iter().chain([origin]).chain(WORK) {
            client::execute(&session, sql).await;
        }

        for (slot, options) in streams {
            let messages = messages(node, slot, options).await;
            let seen = compare(&messages);
            let wanted: &[&str] = match slot {
                "whole" => &["B", "C", "R", "Y", "I", "U", "D", "T", "M", "O"],
                "binary" => &["B", "I", "S", "~I", "c"],
                _ => &["B", "S", "E", "c", "A", "~R", "~I", "~U", "~M"],
            };
            for tag in wanted {
                assert!(seen.contains(*tag), "{slot}: no {tag} in {seen:?}");
            }
        }
    }
}
