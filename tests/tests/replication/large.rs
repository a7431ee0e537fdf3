//! Large transactions: they come in parts, are applied as they come, and cost the daemon no memory.

use std::time::Duration;

use tandem_tests::{Cluster, Node, eventually};

const LIMIT: Duration = Duration::from_secs(60);

/// The daemon's memory, whatever a transaction's size.
const MEMORY_MAX: u64 = 200 << 20;

const WIDE: &str = "CREATE TABLE wide (id int PRIMARY KEY, note text);";

/// One transaction of so many rows of some 500 bytes that do not compress.
fn rows(count: u32) -> String {
    format!(
        "INSERT INTO wide SELECT i, (SELECT string_agg(md5(i::text || j), '') FROM generate_series(1, 15) j) \
         FROM generate_series(1, {count}) i"
    )
}

/// Waits until the link from a node (counted from 0) has begun to write the table on another one, and has not ended that.
async fn in_the_middle(target: &Node, source: usize) {
    let sql = format!(
        "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.relation = 'wide'::regclass \
         AND l.mode = 'RowExclusiveLock' AND a.application_name LIKE '%apply {}'",
        source + 1
    );
    eventually("a transaction is being applied", LIMIT, async || {
        let client = target.connect().await;
        match tandem_tests::client::value(&client, &sql).await.as_str() {
            "0" => Err("none is"),
            _ => Ok(()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_costs_the_daemon_no_memory_whether_a_target_keeps_up_or_is_away() {
    const ROWS: u32 = 300_000;
    let cluster = Cluster::of(&[15, 17, 18])
        .schema(WIDE)
        .replication("journal_carry_after = \"300ms\"")
        .start()
        .await;
    cluster.nodes[2].stop_fast().await;
    cluster.nodes[0].execute(&rows(ROWS)).await;
    in_the_middle(&cluster.nodes[1], 0).await;
    let seen = cluster.nodes[1].value("SELECT count(*) FROM wide").await;
    assert_eq!(seen, "0", "nothing is visible before all is");
    eventually("the other node has it", LIMIT, async || {
        let count = cluster.nodes[1].value("SELECT count(*) FROM wide").await;
        if count == ROWS.to_string() {
            Ok(())
        } else {
            Err(count)
        }
    })
    .await;
    let versions = "SELECT count(DISTINCT xmin::text) FROM wide";
    assert_eq!(cluster.nodes[1].value(versions).await, "1");
    let away = cluster.daemon.peak_memory();
    // Its own node learns it in parts, too.
    cluster.nodes[1]
        .execute(&format!("DELETE FROM wide WHERE id <= {}", ROWS / 2))
        .await;
    cluster.nodes[2].start_again().await;
    cluster.converge(LIMIT * 2).await;
    for node in &cluster.nodes {
        let count = node.value("SELECT count(*) FROM wide").await;
        assert_eq!(count, (ROWS / 2).to_string());
    }
    let back = cluster.daemon.peak_memory();
    eprintln!(
        "daemon's peak: {} MB away, {} MB caught up",
        away >> 20,
        back >> 20
    );
    assert!(back < MEMORY_MAX, "the daemon had {back} bytes");
    cluster.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_in_the_middle_of_a_large_transaction_is_decided_as_any_other() {
    let mut cluster = Cluster::of(&[15, 18]).schema(WIDE).start().await;
    cluster.nodes[0].execute(&rows(60_000)).await;
    cluster.assert_converged().await;
    cluster.daemon.kill9().await;
    cluster.nodes[1]
        .execute("UPDATE wide SET note = 'older' WHERE id = 50000")
        .await;
    cluster.nodes[0]
        .execute("UPDATE wide SET note = note || 'x'")
        .await;
    cluster.nodes[1]
        .execute("UPDATE wide SET note = 'newer' WHERE id = 40000")
        .await;
    cluster.daemon.start().await;
    cluster.assert_converged().await;
    let marked = "SELECT count(*) FILTER (WHERE note LIKE '%x'), (SELECT note FROM wide WHERE id = 40000) FROM wide";
    for node in &cluster.nodes {
        let client = node.connect().await;
        let rows = tandem_tests::client::rows(&client, marked).await;
        let expected = [Some("59999".to_owned()), Some("newer".to_owned())];
        assert_eq!(rows, [expected]);
    }
    // What lost is told of where the winner stood.
    for node in &cluster.nodes {
        let logged = node.value("SELECT count(*) FROM tandem.conflict").await;
        assert_eq!(logged, "1", "on {}", node.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_in_the_middle_of_a_large_transaction_leave_it_whole_and_once() {
    const ROWS: u32 = 300_000;
    let mut cluster = Cluster::of(&[15, 18]).schema(WIDE).durable().start().await;
    cluster.nodes[0].execute(&rows(ROWS)).await;
    in_the_middle(&cluster.nodes[1], 0).await;
    cluster.daemon.kill9().await;
    cluster.daemon.start().await;
    in_the_middle(&cluster.nodes[1], 0).await;
    cluster.nodes[1].kill9().await;
    cluster.nodes[1].start_again().await;
    in_the_middle(&cluster.nodes[1], 0).await;
    cluster.nodes[0].kill9().await;
    cluster.nodes[0].start_again().await;
    cluster.nodes[1]
        .execute("INSERT INTO wide VALUES (0, 'from the other one')")
        .await;
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        let count = node.value("SELECT count(*) FROM wide").await;
        assert_eq!(count, (ROWS + 1).to_string());
    }
}
