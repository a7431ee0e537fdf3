//! The journal on disk: a node that is away holds back nothing on the others, and what it needs is never silently lost.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::Value;
use tandem_tests::{Cluster, eventually};

use crate::workload::{SCHEMA, Workload};

const LIMIT: Duration = Duration::from_secs(30);

/// A node that is away is carried soon.
const SOON: &str = "journal_carry_after = \"300ms\"";

const ITEM: &str = "CREATE TABLE item (id int PRIMARY KEY, note text);";

/// About 1 MB of changes that do not compress.
fn backlog(from: u32) -> String {
    format!(
        "INSERT INTO item SELECT i, (SELECT string_agg(md5(i::text || j), '') FROM generate_series(1, 32) j) \
         FROM generate_series({from}, {}) i",
        from + 999
    )
}

/// Bytes of WAL that the slot of a node keeps from being removed.
async fn held_back(cluster: &Cluster, node: usize) -> u64 {
    let sql = "SELECT (pg_current_wal_lsn() - confirmed_flush_lsn)::int8 FROM pg_replication_slots";
    let bytes = cluster.nodes[node].value(sql).await;
    bytes.parse().expect("a number")
}

fn journal_dir(cluster: &Cluster, node: usize) -> PathBuf {
    cluster
        .dir()
        .join(format!("journal/node-{}", cluster.nodes[node].id))
}

/// The journal of a node, as the status tells of it.
fn journal(status: &Value, node: usize) -> &Value {
    &status["replication"]["nodes"][node]["journal"]
}

async fn carried(cluster: &Cluster, source: usize, target: &str) {
    let status = cluster
        .daemon
        .status_when("the node is carried", LIMIT, |status| {
            journal(status, source)["carried"]
                .as_array()
                .is_some_and(|names| names.iter().any(|name| name == target))
        });
    status.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_away_holds_back_nothing_and_gets_everything_when_it_returns() {
    let mut cluster = Cluster::of(&[15, 17, 18])
        .schema(&format!("{SCHEMA} {ITEM}"))
        .replication(SOON)
        .start()
        .await;
    let workload = Workload::start(&cluster);
    workload.commits(200).await;
    cluster.nodes[2].stop_fast().await;
    for (node, from) in [(0, 1), (1, 1001), (0, 2001), (1, 3001)] {
        cluster.nodes[node].execute(&backlog(from)).await;
    }
    for source in 0..2 {
        carried(&cluster, source, "n3").await;
        // The workload goes on, so it is never nothing; the backlog is 4 MB.
        eventually("the slot moves on", LIMIT, async || {
            match held_back(&cluster, source).await {
                bytes if bytes < 1 << 20 => Ok(()),
                bytes => Err(format!("{bytes} bytes are held back")),
            }
        })
        .await;
    }
    let status = cluster.daemon.status().await.expect("a status");
    let bytes = journal(&status, 0)["bytes"].as_u64().expect("a number");
    assert!(bytes > 2 << 20, "{status:#}");
    workload.commits(200).await;
    // What the slots have let go of is in the journals alone; it outlives the daemon.
    cluster.daemon.kill9().await;
    workload.commits(100).await;
    cluster.daemon.start().await;
    workload.commits(100).await;
    cluster.nodes[2].start_again().await;
    eventually("some of it is applied", LIMIT, async || {
        match cluster.nodes[2]
            .value("SELECT count(*) FROM item")
            .await
            .as_str()
        {
            "0" => Err("nothing yet"),
            _ => Ok(()),
        }
    })
    .await;
    cluster.daemon.kill9().await;
    cluster.daemon.start().await;
    workload.finish(&cluster).await;
    let count = cluster.nodes[2].value("SELECT count(*) FROM item").await;
    assert_eq!(count, "4000");
    // Nobody is carried any more.
    cluster
        .daemon
        .status_when("nobody is carried", LIMIT, |status| {
            (0..3).all(|node| journal(status, node)["carried"] == Value::Array(Vec::new()))
        })
        .await;
    for node in &cluster.nodes {
        assert_eq!(node.value("SELECT count(*) FROM tandem.carried").await, "0");
    }
}

/// Megabytes of changes that a node misses.
fn backlog_megabytes() -> u32 {
    std::env::var("TANDEM_TEST_BACKLOG_MB")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(48)
}

/// Bytes of WAL files of a node once a checkpoint has removed what nobody needs.
async fn wal_files(cluster: &Cluster, node: usize) -> u64 {
    let node = &cluster.nodes[node];
    node.execute("CHECKPOINT").await;
    let bytes = node
        .value("SELECT sum(size)::int8 FROM pg_ls_waldir()")
        .await;
    bytes.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_absence_costs_the_others_no_wal_and_the_daemon_no_memory() {
    const WAL_MAX: u64 = 160 << 20;
    const MEMORY_MAX: u64 = 300 << 20;
    let cluster = Cluster::of(&[15, 17, 18])
        .schema(ITEM)
        .replication(SOON)
        .setting("max_wal_size", "64MB")
        .setting("min_wal_size", "32MB")
        .start()
        .await;
    cluster.nodes[2].stop_fast().await;
    for megabyte in 0..backlog_megabytes() {
        let writer = &cluster.nodes[usize::from(megabyte % 2 == 1)];
        writer.execute(&backlog(1 + 1000 * megabyte)).await;
    }
    let limit = LIMIT + Duration::from_secs(u64::from(backlog_megabytes()));
    for source in 0..2 {
        eventually("the slot moves on", limit, async || {
            match held_back(&cluster, source).await {
                bytes if bytes < 1 << 20 => Ok(()),
                bytes => Err(format!("{bytes} bytes are held back")),
            }
        })
        .await;
        // What a slot needs to start again moves on with the snapshots in the stream, of which a checkpoint writes one.
        let mut bytes = 0;
        eventually("WAL files are removed", limit, async || {
            bytes = wal_files(&cluster, source).await;
            match bytes {
                bytes if bytes < WAL_MAX => Ok(()),
                bytes => Err(format!("{bytes} bytes of WAL")),
            }
        })
        .await;
        eprintln!("WAL of n{}: {} MB", source + 1, bytes >> 20);
    }
    let away = cluster.daemon.peak_memory();
    let begin = std::time::Instant::now();
    cluster.nodes[2].start_again().await;
    cluster.converge(limit * 4).await;
    eprintln!("caught up in {:?}", begin.elapsed());
    cluster.assert_equal().await;
    let count = cluster.nodes[2].value("SELECT count(*) FROM item").await;
    assert_eq!(count, (1000 * backlog_megabytes()).to_string());
    let back = cluster.daemon.peak_memory();
    eprintln!(
        "daemon's peak: {} MB away, {} MB caught up",
        away >> 20,
        back >> 20
    );
    assert!(back < MEMORY_MAX, "the daemon had {back} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_is_lost_while_all_keep_up_loses_nothing() {
    let mut cluster = Cluster::of(&[15, 15, 18]).schema(SCHEMA).start().await;
    let workload = Workload::start(&cluster);
    for _ in 0..2 {
        workload.commits(400).await;
        cluster.daemon.kill9().await;
        workload.commits(100).await;
        fs::remove_dir_all(cluster.dir().join("journal")).expect("there was one");
        cluster.daemon.start().await;
    }
    workload.commits(200).await;
    workload.finish(&cluster).await;
    assert!(cluster.daemon.log().contains("its files are gone"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_is_lost_while_a_node_depends_on_it_is_said_and_nothing_is_skipped() {
    let mut cluster = Cluster::of(&[15, 15, 18])
        .schema(ITEM)
        .replication(SOON)
        .start()
        .await;
    cluster.nodes[2].stop_fast().await;
    cluster.nodes[0].execute(&backlog(1)).await;
    carried(&cluster, 0, "n3").await;
    eventually("the slot moves on", LIMIT, async || {
        match held_back(&cluster, 0).await {
            bytes if bytes < 500_000 => Ok(()),
            bytes => Err(format!("{bytes} bytes are held back")),
        }
    })
    .await;
    cluster.daemon.kill9().await;
    fs::remove_dir_all(journal_dir(&cluster, 0)).expect("there was one");
    cluster.daemon.start().await;
    cluster.nodes[2].start_again().await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (5000, 'later')")
        .await;
    let link = cluster
        .link_when("the link is blocked", 0, 2, |link| {
            link["state"] == "blocked"
        })
        .await;
    let problem = link["problem"].as_str().expect("a problem").to_owned();
    for part in [
        "n3 lacks what n1 wrote between",
        "files are gone",
        "pg_replication_origin_advance",
    ] {
        assert!(problem.contains(part), "{part}: {problem}");
    }
    // It stays so, and is still known after another restart.
    cluster.daemon.restart().await;
    let link = cluster
        .link_when("the link is blocked", 0, 2, |link| {
            link["state"] == "blocked"
        })
        .await;
    let problem = link["problem"].as_str().expect("a problem").to_owned();
    assert!(
        problem.contains("n3 lacks what n1 wrote between"),
        "{problem}"
    );
    assert_eq!(
        cluster.nodes[2].value("SELECT count(*) FROM item").await,
        "0"
    );
    // The others go on.
    cluster.nodes[1]
        .execute("INSERT INTO item VALUES (6000, 'other')")
        .await;
    eventually("the others go on", LIMIT, async || {
        match cluster.nodes[0]
            .value("SELECT count(*) FROM item")
            .await
            .as_str()
        {
            "1002" => Ok(()),
            count => Err(format!("{count} rows")),
        }
    })
    .await;

    // As the message says: copy what is missing, then tell the node that it has it.
    let copied = "SET session_replication_role = replica; DELETE FROM item; ";
    cluster.nodes[2]
        .execute(&format!("{copied}{}", backlog(1)))
        .await;
    let advance = problem.split("on n3 ").nth(1).expect("a statement");
    eventually("the origin is free", LIMIT, async || {
        let client = cluster.nodes[2].connect().await;
        tandem_tests::client::try_rows(&client, advance).await
    })
    .await;
    cluster.converge(Duration::from_secs(60)).await;
    for node in &cluster.nodes {
        let sum = "SELECT count(*) || ' ' || md5(string_agg(note, ',' ORDER BY id)) FROM item";
        assert_eq!(node.value(sum).await, cluster.nodes[0].value(sum).await);
        assert!(node.value(sum).await.starts_with("1002 "));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_bound_the_slot_holds_the_rest_back_and_the_others_go_on() {
    let cluster = Cluster::of(&[15, 15, 18])
        .schema(ITEM)
        .replication(SOON)
        .replication("journal_max = \"2MB\"")
        .start()
        .await;
    cluster.nodes[2].stop_fast().await;
    for part in 0..5 {
        cluster.nodes[0].execute(&backlog(1 + 1000 * part)).await;
    }
    let status = cluster
        .daemon
        .status_when("the bound is reported", LIMIT, |status| {
            journal(status, 0)["problem"]
                .as_str()
                .is_some_and(|problem| problem.contains("journal_max"))
        })
        .await;
    let bytes = journal(&status, 0)["bytes"].as_u64().expect("a number");
    assert!(bytes <= 2 << 20, "{status:#}");
    assert!(cluster.daemon.log().contains("the journal takes no more"));
    eventually("the other node has it", LIMIT, async || {
        match cluster.nodes[1]
            .value("SELECT count(*) FROM item")
            .await
            .as_str()
        {
            "5000" => Ok(()),
            count => Err(format!("{count} rows")),
        }
    })
    .await;
    let held = held_back(&cluster, 0).await;
    assert!(held > 2 << 20, "only {held} bytes are held back");
    cluster.nodes[2].start_again().await;
    cluster.assert_converged().await;
    cluster
        .daemon
        .status_when("there is room again", LIMIT, |status| {
            journal(status, 0)["problem"].is_null()
                && journal(status, 0)["carried"] == Value::Array(Vec::new())
        })
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (9000, 'later')")
        .await;
    cluster.assert_converged().await;
}

/// Its progress is older than what journals and slots still have.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_progress_went_back_is_told_from_one_that_is_merely_behind() {
    // Files of 1 MB, so that something is let go of.
    let mut cluster = Cluster::of(&[15, 15])
        .schema(ITEM)
        .replication("journal_max = \"8MB\"")
        .start()
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (0, 'before')")
        .await;
    cluster.assert_converged().await;
    let before = cluster.nodes[1]
        .value("SELECT pg_replication_origin_progress('tandem_1_0', true)")
        .await;
    let status = cluster.daemon.status().await.expect("a status");
    let first = journal(&status, 0)["first"].clone();
    for part in 0..3 {
        cluster.nodes[0].execute(&backlog(1 + 1000 * part)).await;
    }
    cluster.assert_converged().await;
    cluster
        .daemon
        .status_when("the oldest file is let go of", LIMIT, |status| {
            journal(status, 0)["first"] != first
        })
        .await;
    cluster.daemon.kill9().await;
    // What a restored backup would say.
    let back = format!(
        "SELECT pg_replication_origin_drop('tandem_1_0'), pg_replication_origin_create('tandem_1_0'), \
         pg_replication_origin_advance('tandem_1_0', '{before}')"
    );
    eventually("the origin is free", LIMIT, async || {
        let client = cluster.nodes[1].connect().await;
        tandem_tests::client::try_rows(&client, &back).await
    })
    .await;
    cluster.daemon.start().await;
    let link = cluster
        .link_when("the link is blocked", 0, 1, |link| {
            link["state"] == "blocked"
        })
        .await;
    let problem = link["problem"].as_str().expect("a problem");
    assert!(
        problem.contains("n2 lacks what n1 wrote between"),
        "{problem}"
    );
    assert!(problem.contains("backup"), "{problem}");
}
