//! From PostgreSQL 16 on an aborted transaction moves a replication origin. Progress that an abort has moved must not
//! make the transaction that it stands for vanish.

use std::time::Duration;

use tandem_tests::{Cluster, client, eventually};

/// Position and timestamp of each transaction that waits in the node's slot, in commit order: the Commit message of
/// pgoutput has them at bytes 11 to 18 and 19 to 26.
async fn waiting_commits(cluster: &Cluster) -> Vec<(u64, i64)> {
    let node = cluster.nodes[0].connect().await;
    eventually("the slot is free", Duration::from_secs(10), async || {
        let active = client::value(&node, "SELECT active FROM pg_replication_slots").await;
        if active == "f" {
            Ok(())
        } else {
            Err("a walsender still holds it")
        }
    })
    .await;
    let sql = "SELECT encode(substr(data, 11, 8), 'hex'), encode(substr(data, 19, 8), 'hex') \
         FROM pg_logical_slot_peek_binary_changes('tandem_test', NULL, NULL, 'proto_version', '1', \
         'publication_names', 'tandem') WHERE get_byte(data, 0) = ascii('C')";
    let hex = |text: &Option<String>| {
        u64::from_str_radix(text.as_deref().expect("a value"), 16).expect("hex digits")
    };
    let rows = client::rows(&node, sql).await;
    rows.iter()
        .map(|row| {
            (
                hex(&row[0]),
                i64::try_from(hex(&row[1])).expect("a timestamp of our time"),
            )
        })
        .collect()
}

#[tokio::test]
async fn a_transaction_whose_apply_was_aborted_is_applied_again_although_the_abort_moved_the_origin()
 {
    let schema = "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE log (line text)";
    let mut cluster = Cluster::of(&[15, 18]).schema(schema).start().await;
    cluster.nodes[0].execute("INSERT INTO t VALUES (1)").await;
    cluster.assert_converged().await;
    cluster.daemon.kill9().await;
    // `log` has no key: a transaction that is applied twice would show.
    cluster.nodes[0]
        .execute("INSERT INTO log VALUES ('one')")
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO t VALUES (2); INSERT INTO log VALUES ('two')")
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO log VALUES ('three')")
        .await;
    let commits = waiting_commits(&cluster).await;
    let &[.., (first, _), (second, timestamp), _] = commits.as_slice() else {
        panic!("{commits:?}")
    };

    let target = cluster.nodes[1].connect().await;
    let lsn = |position: u64| format!("{:X}/{:X}", position >> 32, position & 0xffff_ffff);
    // What an apply session does that is told to end between setting the stamp and COMMIT. The first of the three is
    // committed, as it would be.
    let stamp = |position: u64| {
        format!(
            "SELECT pg_replication_origin_xact_setup('{}', timestamptz '2000-01-01 00:00:00+00' + {} * interval '1 us')",
            lsn(position),
            if position == second {
                timestamp
            } else {
                commits[commits.len() - 3].1
            }
        )
    };
    client::execute(&target, "SET session_replication_role = replica").await;
    client::execute(
        &target,
        "SELECT pg_replication_origin_session_setup('tandem_1_0')",
    )
    .await;
    client::execute(
        &target,
        &format!(
            "BEGIN; INSERT INTO log VALUES ('one'); {}; COMMIT",
            stamp(first)
        ),
    )
    .await;
    client::execute(
        &target,
        &format!(
            "BEGIN; INSERT INTO t VALUES (2); {}; ROLLBACK",
            stamp(second)
        ),
    )
    .await;
    client::execute(&target, "SELECT pg_replication_origin_session_reset()").await;
    let progress = client::value(
        &target,
        "SELECT pg_replication_origin_progress('tandem_1_0', true)",
    )
    .await;
    assert_eq!(
        progress,
        lsn(second),
        "this server does not move the origin with an abort: the test proves nothing"
    );

    cluster.daemon.start().await;
    cluster.assert_converged().await;
    let lines = cluster.nodes[1]
        .value("SELECT string_agg(line, ' ' ORDER BY line) FROM log")
        .await;
    assert_eq!(lines, "one three two");
    assert_eq!(cluster.nodes[1].value("SELECT count(*) FROM t").await, "2");
}
