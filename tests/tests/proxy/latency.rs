//! How long things take: histograms, totals, and the log of slow statements.

use std::{collections::HashMap, time::Duration};

use tandem_tests::{Cluster, client, daemon::http, eventually};

use crate::console::{console, shown, with_console};

const LIMIT: Duration = Duration::from_secs(20);
const PROXY: &str = "pool_mode = \"transaction\"\npool_size = 1";

/// A line of `column=value`.
fn cells(line: &str) -> HashMap<&str, &str> {
    line.split(' ')
        .filter_map(|cell| cell.split_once('='))
        .collect()
}

fn number(cells: &HashMap<&str, &str>, column: &str) -> u64 {
    let value = cells.get(column).and_then(|value| value.parse().ok());
    value.unwrap_or_else(|| panic!("no number {column} in {cells:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_queries_and_waits_are_timed_by_node() {
    let cluster = with_console(Cluster::of(&[15]).proxy(PROXY)).await;
    let (first, second) = (cluster.proxy().await, cluster.proxy().await);
    client::execute(&first, "BEGIN").await;
    client::execute(&first, "SELECT pg_sleep(0.1)").await;
    // It waits for the only server until the transaction is over.
    let waiting = tokio::spawn(async move { client::value(&second, "SELECT 'served'").await });
    let ops = console(&cluster, "ops").await;
    eventually("a statement waits", LIMIT, async || {
        let pools = shown(&ops, "SHOW POOLS").await;
        match pools.iter().any(|pool| pool.contains("cl_waiting=1 ")) {
            true => Ok(()),
            false => Err(pools.join(", ")),
        }
    })
    .await;
    client::execute(&first, "SELECT pg_sleep(0.2)").await;
    client::execute(&first, "COMMIT").await;
    assert_eq!(waiting.await.expect("served"), "served");

    let lines = shown(&ops, "SHOW LATENCY").await;
    let of = |span: &str| {
        let found = lines.iter().map(|line| cells(line));
        let mut found = found.filter(|cells| cells["node"] == "n1" && cells["span"] == span);
        found
            .next()
            .unwrap_or_else(|| panic!("no {span} in {lines:?}"))
    };
    let [transaction, query, wait] = ["transaction", "query", "wait"].map(of);
    let counts = [&transaction, &query, &wait].map(|cells| number(cells, "count"));
    assert_eq!(counts, [2, 5, 2], "{lines:?}");
    let ms = |cells, column| number(cells, column) / 1000;
    assert!((200..300).contains(&ms(&query, "max")), "{query:?}");
    assert!(ms(&query, "p50") < 50, "{query:?}");
    assert!(ms(&transaction, "max") >= 300, "{transaction:?}");
    assert!(ms(&wait, "max") >= 190 && ms(&wait, "p50") < 50, "{wait:?}");

    let stats = shown(&ops, "SHOW STATS").await;
    let stats = stats.iter().map(|line| cells(line));
    let stats = stats.into_iter().find(|cells| cells["database"] == "app");
    let stats = stats.expect("the database");
    assert!(ms(&stats, "total_query_time") >= 300, "{stats:?}");
    assert!(ms(&stats, "total_xact_time") >= 490, "{stats:?}");
    let metrics = http(
        cluster.admin_port,
        "GET",
        "/metrics",
        Some(&cluster.token()),
    )
    .await;
    let metrics = metrics.expect("metrics");
    for wanted in [
        "tandem_latency_seconds_count{node=\"n1\",span=\"query\"} 5\n",
        "tandem_latency_seconds{node=\"n1\",span=\"wait\",quantile=\"0.99\"} 0.",
    ] {
        assert!(metrics.contains(wanted), "{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_statements_are_logged_without_their_literals_while_that_is_wanted() {
    let log = "[log]\nslow_statement = \"100ms\"";
    let cluster = with_console(Cluster::of(&[15]).proxy(PROXY).sections(log)).await;
    let session = cluster.proxy().await;
    let slow = |wanted: usize| {
        let log = cluster.daemon.log();
        let lines = log.lines().filter(|line| line.contains("slow statement"));
        let lines: Vec<String> = lines.map(str::to_owned).collect();
        match lines.len() {
            count if count == wanted => Ok(lines),
            _ => Err(lines.join("\n")),
        }
    };
    client::execute(&session, "SELECT pg_sleep(0.001), 'quick'").await;
    client::execute(&session, "SELECT pg_sleep(0.15), 'hidden' -- hidden").await;
    let statement = session
        .prepare("SELECT pg_sleep($1), 'hidden'")
        .await
        .expect("a statement");
    for _ in 0..2 {
        session.query(&statement, &[&0.15]).await.expect("rows");
    }
    let lines = eventually("three are logged", LIMIT, async || slow(3)).await;
    for (line, wanted) in lines.iter().zip([
        "SELECT pg_sleep(?), ?",
        "SELECT pg_sleep($1), ?",
        "SELECT pg_sleep($1), ?",
    ]) {
        assert!(line.contains(wanted) && !line.contains("hidden"), "{line}");
        assert!(
            line.contains("node=\"n1\"") && line.contains("user=\"app\""),
            "{line}"
        );
    }
    cluster.change_config(|text| {
        text.replace("slow_statement = \"100ms\"", "slow_statement = \"0s\"")
    });
    client::execute(&console(&cluster, "ops").await, "RELOAD").await;
    client::execute(&session, "SELECT pg_sleep(0.15)").await;
    slow(3).expect("no more");
}
