//! What a node had committed that nobody had read when it died is told when it is back: what of it lost, and what won.

use std::{fs, time::Duration};

use serde_json::Value;
use tandem_tests::{Cluster, ClusterBuilder, client, eventually};

use crate::console::{console, shown, with_console};

const LIMIT: Duration = Duration::from_secs(60);
const TRANSACTIONS: &str = "pool_mode = \"transaction\"";
const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE c (id int PRIMARY KEY, hits int NOT NULL);";
/// The place of the node that dies.
const DYING: usize = 1;

fn three() -> ClusterBuilder {
    Cluster::of(&[15, 17, 18])
        .durable()
        .relays()
        .schema(SCHEMA)
        .proxy(TRANSACTIONS)
        .sections("[replication.table.\"public.c\"]\ncounters = [\"hits\"]")
}

/// Waits until a node is what the status is to say of it.
async fn node_when(
    cluster: &Cluster,
    node: usize,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> Value {
    let status = cluster
        .daemon
        .status_when(what, LIMIT, |status| wanted(&status["nodes"][node]))
        .await;
    status["nodes"][node].clone()
}

async fn is_down(cluster: &Cluster, node: usize) {
    node_when(cluster, node, "it is down", |node| node["health"] == "down").await;
    // Who looks at it next finds that it was written down.
    let file = cluster
        .dir()
        .join(format!("state/recovery-{}.json", node + 1));
    eventually("its absence is written down", LIMIT, async || {
        let text = fs::read_to_string(&file).map_err(|error| error.to_string())?;
        let kept: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        match kept["absence"].is_object() {
            true => Ok(()),
            false => Err(text),
        }
    })
    .await;
}

async fn report(cluster: &Cluster, node: usize) -> Value {
    let reported = |node: &Value| node["recovery"].is_object();
    let node = node_when(cluster, node, "it is reported", reported).await;
    node["recovery"].clone()
}

/// The rows of a report with this outcome: the key, what the tail wrote, what the other node wrote.
fn rows(report: &Value, outcome: &str) -> Vec<String> {
    let rows = report["rows"].as_array().expect("rows");
    let of = |row: &Value| {
        let image = |key: &str, column: &str| {
            row[key][column]
                .as_str()
                .map_or_else(|| "-".to_owned(), str::to_owned)
        };
        let id = [image("image", "id"), image("other_image", "id")];
        let id = id.iter().find(|id| *id != "-").expect("a key").clone();
        format!(
            "{id}: {} / {}",
            image("image", "v"),
            image("other_image", "v")
        )
    };
    let wanted = rows.iter().filter(|row| row["outcome"] == outcome);
    let mut wanted: Vec<_> = wanted.map(of).collect();
    wanted.sort();
    wanted
}

/// A node that nobody reads from commits, and dies; others write the same rows, one of them before it did.
async fn tail_is_told(builder: ClusterBuilder, restart: bool) {
    let mut cluster = with_console(builder).await;
    let (dying, others) = (
        &cluster.nodes[DYING],
        [&cluster.nodes[0], &cluster.nodes[2]],
    );
    others[0]
        .execute("INSERT INTO t SELECT i, 'first' FROM generate_series(1, 5) i; INSERT INTO c VALUES (1, 0)")
        .await;
    cluster.assert_converged().await;
    let relay = &cluster.relays[DYING];
    relay.cut_only("capture");
    cluster
        .daemon
        .status_when("its stream is not read", LIMIT, |status| {
            status["replication"]["nodes"][DYING]["capture_problem"].is_string()
        })
        .await;
    relay.silence_only("apply 1");
    others[0]
        .execute("UPDATE t SET v = 'older' WHERE id = 1")
        .await;
    for sql in [
        "UPDATE t SET v = 'newer' WHERE id = 1",
        "UPDATE t SET v = 'lost' WHERE id = 2",
        "UPDATE t SET v = 'alone' WHERE id = 3",
        "DELETE FROM t WHERE id = 4",
        "INSERT INTO t VALUES (50, 'lost')",
        "UPDATE c SET hits = hits + 10",
    ] {
        dying.execute(sql).await;
    }
    dying.kill9().await;
    is_down(&cluster, DYING).await;
    cluster.relays[DYING].heal();
    if restart {
        cluster.daemon.kill9().await;
        cluster.daemon.start().await;
    }
    let (dying, others) = (
        &cluster.nodes[DYING],
        [&cluster.nodes[0], &cluster.nodes[2]],
    );
    for sql in [
        "UPDATE t SET v = 'newhome' WHERE id IN (2, 4)",
        "UPDATE c SET hits = hits + 1",
    ] {
        others[0].execute(sql).await;
    }
    others[1]
        .execute("INSERT INTO t VALUES (50, 'newhome')")
        .await;
    dying.start_again().await;

    let report = report(&cluster, DYING).await;
    cluster.assert_converged().await;
    let there = "SELECT string_agg(id || ' ' || v, ', ' ORDER BY id) FROM t";
    for node in &cluster.nodes {
        let wanted = "1 newer, 2 newhome, 3 alone, 4 newhome, 5 first, 50 newhome";
        assert_eq!(node.value(there).await, wanted, "{}", node.name);
        assert_eq!(node.value("SELECT hits FROM c").await, "11");
    }
    let tail = &report["tail"];
    for (figure, wanted) in [("transactions", 6), ("rows", 6), ("counters_merged", 1)] {
        assert_eq!(tail[figure], wanted, "{figure} in {report:#}");
    }
    assert_eq!(tail["is_whole"], true, "{report:#}");
    for (figure, wanted) in [
        ("lost", 3),
        ("won", 1),
        ("won_late", 0),
        ("pending", 0),
        ("shadowed", 0),
        ("quarantined", 0),
        ("not_listed", 0),
    ] {
        assert_eq!(report[figure], wanted, "{figure} in {report:#}");
    }
    assert_eq!(
        rows(&report, "lost"),
        ["2: lost / newhome", "4: - / newhome", "50: lost / newhome"]
    );
    assert_eq!(rows(&report, "won"), ["1: newer / older"]);
    let told = "tail of 6 transactions (6 rows), 3 rows lost, 1 row won over other nodes' writes, 1 row with counters merged";
    assert_eq!(report["told"], told);
    assert!(report["epoch"].as_u64() > Some(0), "{report:#}");
    let [down, back, caught_up] = ["down", "back", "caught_up"].map(|key| report[key].as_str());
    assert!(down < back && back < caught_up, "{report:#}");
    let log = cluster.daemon.log();
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.contains("recovery report") && line.contains("n2"))
        .collect();
    assert!(lines.len() == 1 && lines[0].contains(told), "{lines:?}");
    assert!(!log.contains("newhome"), "no row is logged");

    // Who may look at figures only sees no rows.
    let monitor = console(&cluster, "monitor").await;
    let recovery = shown(&monitor, "SHOW RECOVERY").await;
    assert!(
        recovery.len() == 1 && recovery[0].contains(told),
        "{recovery:?}"
    );
    let refused = client::try_rows(&monitor, "SHOW RECOVERY_ROWS").await;
    assert_eq!(client::sqlstate(&refused.expect_err("no right")), "42501");
    let ops = console(&cluster, "ops").await;
    assert_eq!(shown(&ops, "SHOW RECOVERY_ROWS NODE n2").await.len(), 4);
    assert_eq!(shown(&ops, "SHOW RECOVERY_ROWS NODE n1").await.len(), 0);
    cluster.daemon.restart().await;
    let kept = self::report(&cluster, DYING).await;
    assert_eq!(kept, report, "it outlives the daemon");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_tells_exactly_what_of_its_tail_has_lost_and_won() {
    tail_is_told(three(), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_while_a_node_is_away_tells_the_same() {
    tail_is_told(three(), true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_with_nothing_says_so_each_time() {
    let cluster = Cluster::of(&[15, 17])
        .durable()
        .schema(SCHEMA)
        .proxy(TRANSACTIONS)
        .start()
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO t VALUES (1, 'read')")
        .await;
    cluster.assert_converged().await;
    for time in 1..=2 {
        cluster.nodes[0].kill9().await;
        is_down(&cluster, 0).await;
        // It is behind, and what it misses is none of its tail.
        let sql = format!("INSERT INTO t VALUES ({}, 'missed')", time + 1);
        cluster.nodes[1].execute(&sql).await;
        cluster.nodes[0].start_again().await;
        let wanted = |node: &Value| node["recoveries"] == time;
        let node = node_when(&cluster, 0, "it is reported", wanted).await;
        let told = &node["recovery"]["told"];
        assert_eq!(told, "tail of 0 transactions, nothing lost", "{node:#}");
    }
    let ran = cluster.daemon.command("status").run(LIMIT).await;
    let line = ran
        .stdout
        .lines()
        .find(|line| line.starts_with("recovery of n1, down "));
    let line = line.unwrap_or_else(|| panic!("{}", ran.all()));
    assert!(
        line.ends_with(": tail of 0 transactions, nothing lost"),
        "{line}"
    );
    let other = cluster.daemon.status().await.expect("a status")["nodes"][1].clone();
    assert_eq!(other["recoveries"], 0, "it was never away");
    cluster.assert_converged().await;
}

/// Nobody can end the clients of a node that the daemon cannot reach.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_that_is_cut_off_commits_late_is_named_and_what_lost_to_it_can_be_written_again()
 {
    let cluster = Cluster::of(&[15, 17])
        .relays()
        .schema(SCHEMA)
        .proxy(TRANSACTIONS)
        .start()
        .await;
    let (cut_off, other) = (&cluster.nodes[DYING], &cluster.nodes[0]);
    other.execute("INSERT INTO t VALUES (1, 'first')").await;
    cluster.assert_converged().await;
    cluster.relays[DYING].cut();
    is_down(&cluster, DYING).await;
    let proxy = cluster.proxy().await;
    client::execute(&proxy, "UPDATE t SET v = 'acknowledged' WHERE id = 1").await;
    assert_eq!(other.value("SELECT v FROM t").await, "acknowledged");
    cut_off
        .execute("UPDATE t SET v = 'late' WHERE id = 1")
        .await;
    cluster.relays[DYING].heal();

    let report = report(&cluster, DYING).await;
    let told = "tail of 1 transaction (1 row), nothing of it lost, 1 row won over other nodes' writes \
         (1 of them committed after the node was found gone)";
    assert_eq!(report["told"], told, "{report:#}");
    assert_eq!(rows(&report, "won"), ["1: late / acknowledged"]);
    cluster.assert_converged().await;
    assert_eq!(other.value("SELECT v FROM t").await, "late");
    let line = report["rows"][0]["id"].as_str().expect("a line");
    let ran = cluster
        .daemon
        .command("reapply")
        .args([line])
        .run(LIMIT)
        .await;
    assert!(ran.status.success(), "{}", ran.all());
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        assert_eq!(node.value("SELECT v FROM t").await, "acknowledged");
    }
}
