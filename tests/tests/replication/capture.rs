//! Reading a node's stream: a slot moves on whatever is written, the server is answered whatever stands still, and a large
//! transaction goes to disk without being held twice.

use std::time::Duration;

use tandem_tests::{Cluster, client, eventually};

const LIMIT: Duration = Duration::from_secs(30);

const ITEM: &str = "CREATE TABLE item (id int PRIMARY KEY, note text);";

#[tokio::test(flavor = "multi_thread")]
async fn what_another_database_writes_holds_back_no_wal() {
    let cluster = Cluster::of(&[15, 17, 18]).schema(ITEM).start().await;
    for node in &cluster.nodes {
        let other = node.connect().await;
        client::execute(&other, "CREATE DATABASE other").await;
        let end = node.value("SELECT pg_current_wal_flush_lsn()").await;
        let sql =
            format!("SELECT bool_and(confirmed_flush_lsn >= '{end}') FROM pg_replication_slots");
        eventually("the slot moves on", LIMIT, async || {
            match node.value(&sql).await.as_str() {
                "t" => Ok(()),
                _ => Err(format!("{} is not at {end}", node.name)),
            }
        })
        .await;
    }
}

/// The server ends a stream that does not answer for `wal_sender_timeout`.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_answered_while_its_targets_stand_still_and_the_journal_is_full() {
    let cluster = Cluster::of(&[15, 18])
        .schema(ITEM)
        .replication("journal_max = \"1MB\"")
        .start()
        .await;
    let locker = cluster.nodes[1].connect().await;
    client::execute(&locker, "BEGIN; LOCK TABLE item").await;
    // More than the journal may hold, and more than is kept in memory instead.
    for from in [0, 1000, 2000] {
        let sql = format!(
            "INSERT INTO item SELECT i, repeat(md5(i::text), 1000) FROM generate_series({from}, {}) i",
            from + 999
        );
        cluster.nodes[0].execute(&sql).await;
    }
    cluster
        .daemon
        .status_when("the journal is full", LIMIT, |status| {
            !status["replication"]["nodes"][0]["journal"]["problem"].is_null()
        })
        .await;
    // Empty while the stream is being opened anew, to see whether there is room.
    let last = "SELECT extract(epoch FROM max(reply_time))::text FROM pg_stat_replication \
         WHERE application_name LIKE '%capture'";
    let mut answered: f64 = 0.0;
    for _ in 0..3 {
        answered = eventually("the server is answered", LIMIT, async || {
            match cluster.nodes[0].value(last).await.parse::<f64>() {
                Ok(now) if now > answered + 0.2 => Ok(now),
                _ => Err(format!("not since {answered}")),
            }
        })
        .await;
    }
    client::execute(&locker, "COMMIT").await;
    cluster.assert_converged().await;
}

async fn a_large_transaction(source: u32) {
    /// Of `note`, in all.
    const BYTES: u64 = 128 << 20;
    let mut cluster = Cluster::of(&[source, 15])
        .schema(ITEM)
        .replication("journal_carry_after = \"300ms\"")
        .start()
        .await;
    cluster.nodes[1].stop_fast().await;
    // An aborted one leaves nothing.
    let writer = cluster.nodes[0].connect().await;
    let large =
        "INSERT INTO item SELECT i, repeat(md5(i::text), 32) FROM generate_series(1, 131072) i";
    client::execute(&writer, &format!("BEGIN; {large}; ROLLBACK")).await;
    let partly = format!(
        "BEGIN; {large}; SAVEPOINT s; UPDATE item SET note = 'gone' WHERE id < 1000; ROLLBACK TO s; \
         DELETE FROM item WHERE id = 7; COMMIT"
    );
    client::execute(&writer, &partly).await;
    cluster
        .daemon
        .status_when("it is on disk", LIMIT * 2, |status| {
            let journal = &status["replication"]["nodes"][0]["journal"];
            journal["bytes"].as_u64().is_some_and(|bytes| bytes > BYTES)
                && journal["slot_bytes"]
                    .as_u64()
                    .is_some_and(|bytes| bytes < 1 << 20)
        })
        .await;
    let peak = peak_memory(cluster.daemon.pid().expect("it runs"));
    assert!(
        peak < BYTES * 2,
        "{} MiB for a transaction of {} MiB",
        peak >> 20,
        BYTES >> 20
    );
    // The journal alone has it now.
    cluster.daemon.kill9().await;
    cluster.daemon.start().await;
    cluster.nodes[1].start_again().await;
    cluster.assert_converged().await;
    let count = cluster.nodes[1]
        .value("SELECT count(*) || ' ' || count(DISTINCT xmin::text) FROM item")
        .await;
    assert_eq!(count, "131071 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_of_15_is_held_once_and_applied_whole_after_a_kill() {
    a_large_transaction(15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_of_18_is_held_once_and_applied_whole_after_a_kill() {
    a_large_transaction(18).await;
}

/// Killed while it is being read, the next daemon reads it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_while_it_reads_large_transactions_loses_and_repeats_nothing() {
    let mut cluster = Cluster::of(&[17, 15]).schema(ITEM).start().await;
    for round in 0..4 {
        let sql = format!(
            "INSERT INTO item SELECT i, repeat(md5(i::text), 16) FROM generate_series({}, {}) i",
            round * 20_000,
            round * 20_000 + 19_999
        );
        let bytes = journal_bytes(&cluster);
        let writer = cluster.nodes[0].connect().await;
        let writing = tokio::spawn(async move { client::execute(&writer, &sql).await });
        // It may be in the middle of a transaction, or just behind one.
        eventually("some of it is in a file", LIMIT, async || {
            if journal_bytes(&cluster) > bytes {
                Ok(())
            } else {
                Err("nothing yet")
            }
        })
        .await;
        cluster.daemon.kill9().await;
        writing.await.expect("written");
        cluster.daemon.start().await;
    }
    cluster.assert_converged().await;
    let count = cluster.nodes[1].value("SELECT count(*) FROM item").await;
    assert_eq!(count, "80000");
}

/// Bytes of the files of the first node's journal, what readers do not see yet among them.
fn journal_bytes(cluster: &Cluster) -> u64 {
    let dir = cluster
        .dir()
        .join(format!("journal/node-{}", cluster.nodes[0].id));
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    files
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .sum()
}

/// VmHWM of proc_pid_status(5), in bytes.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.expect("VmHWM") * 1024
}
