//! What an operator does to one node after the other while clients work: VACUUM FULL and REINDEX of a drained one, a fast restart of
//! one in service. No client sees an error.

use std::{cell::Cell, fs, time::Duration};

use serde_json::Value;
use tandem_tests::{
    Cluster, ClusterBuilder, Node, Program, eventually, program::Ran, seeds::number_of,
};

const LIMIT: Duration = Duration::from_secs(60);
/// Connections of clients.
const CLIENTS: &str = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
/// Transactions a second.
const RATE: &str = "200";
/// By how much the slowest transaction may exceed the control run's, in milliseconds, on a machine that does other things too.
/// `TANDEM_TEST_SLOWEST_MS=200` is what a quiet one has to hold.
const SLOWEST_MS: u64 = 10_000;

/// Each of them is home of some of the four branches.
fn three() -> ClusterBuilder {
    let rules = include_str!("../../../examples/pgbench/rules.toml");
    let homes = "strategy = \"map\"\nmap = { 1 = \"n1\", 2 = \"n2\", 3 = \"n3\", 4 = \"n1\" }";
    Cluster::of(&[15, 17, 18])
        .pgbench(4)
        .proxy("pool_mode = \"transaction\"")
        .rules(&rules.replace("strategy = \"hash\"", homes))
}

/// pgbench by branch for some seconds, each transaction logged under this name.
async fn load(cluster: &Cluster, name: &str, more: &[&str]) -> Ran {
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../examples/pgbench/one-branch.sql"
    );
    let log = cluster.dir().join(name);
    Program::pgbench(cluster.nodes[0].install())
        .port(cluster.proxy_port)
        .args(["-n", "-c", "8", "-s", "4", "-R", RATE, "-T", "4", "-f"])
        .args([script, "-l", "--log-prefix"])
        .args([log])
        .args(more)
        .run(LIMIT)
        .await
        .expect_success()
}

/// pgbench again and again until the work is done, however long that takes here; answers the transactions.
async fn under_load(
    cluster: &Cluster,
    name: &str,
    more: &[&str],
    work: impl Future<Output = ()>,
) -> u64 {
    let is_done = Cell::new(false);
    let loading = async {
        let mut transactions = 0;
        for run in 1.. {
            let ran = load(cluster, &format!("{name}{run}"), more).await;
            transactions += flawless(&ran);
            if is_done.get() {
                break;
            }
        }
        transactions
    };
    let working = async {
        work.await;
        is_done.set(true);
    };
    tokio::join!(loading, working).0
}

/// pgbench has counted no failure and lost no client; answers its transactions.
fn flawless(ran: &Ran) -> u64 {
    assert!(
        ran.stdout.contains("number of failed transactions: 0 ") && !ran.stderr.contains("aborted"),
        "{}",
        ran.all()
    );
    let label = "number of transactions actually processed: ";
    let count = ran.stdout.lines().find_map(|line| line.strip_prefix(label));
    let count = count.and_then(|count| count.trim().parse().ok());
    count.unwrap_or_else(|| panic!("{}", ran.all()))
}

/// The slowest transaction of the runs whose names begin so, in milliseconds, from when it was due.
fn slowest_ms(cluster: &Cluster, name: &str) -> u64 {
    let files = fs::read_dir(cluster.dir()).expect("the directory");
    let is_log = |file: &fs::DirEntry| file.file_name().to_string_lossy().starts_with(name);
    let logs = files.filter_map(Result::ok).filter(is_log);
    let text: String = logs
        .map(|file| fs::read_to_string(file.path()).expect("a log"))
        .collect();
    let times = text
        .lines()
        .filter_map(|line| line.split(' ').nth(2)?.parse::<u64>().ok());
    times.max().expect("transactions") / 1000
}

/// Waits until clients work on the node.
async fn works(node: &Node) {
    eventually("clients work on it", LIMIT, async || {
        match node.value(CLIENTS).await.as_str() {
            "0" => Err("nobody is there"),
            _ => Ok(()),
        }
    })
    .await;
}

/// `tandem drain` or `tandem resume`.
async fn tandem(cluster: &Cluster, verb: &str, args: &[&str]) {
    let ran = cluster.daemon.command(verb).args(args).run(LIMIT).await;
    eprintln!("{}", ran.expect_success().stdout.trim());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_table_is_rewritten_on_each_node_in_turn_without_an_error_or_a_conflict() {
    let cluster = three().start().await;
    flawless(&load(&cluster, "control", &[]).await);
    let control_ms = slowest_ms(&cluster, "control");
    let rewriting = async {
        for node in &cluster.nodes {
            works(node).await;
            tandem(&cluster, "drain", &[&node.name, "--wait"]).await;
            node.execute("VACUUM FULL pgbench_accounts").await;
            node.execute("REINDEX TABLE pgbench_accounts").await;
            assert_eq!(node.value(CLIENTS).await, "0");
            tandem(&cluster, "resume", &[&node.name]).await;
            works(node).await;
        }
    };
    under_load(&cluster, "rewriting", &[], rewriting).await;
    let slowest_ms = slowest_ms(&cluster, "rewriting");
    eprintln!("the slowest transaction took {slowest_ms} ms, in the control run {control_ms} ms");
    let allowed_ms = number_of("TANDEM_TEST_SLOWEST_MS").unwrap_or(SLOWEST_MS);
    assert!(
        slowest_ms <= control_ms + allowed_ms,
        "{slowest_ms} ms, in the control run {control_ms} ms"
    );
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        assert_eq!(
            node.value("SELECT count(*) FROM tandem.conflict").await,
            "0"
        );
        let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches)";
        assert_eq!(node.value(sums).await, "t");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_primary_is_restarted_in_turn_without_a_client_error_given_retries() {
    let counters =
        [("accounts", "a"), ("tellers", "t"), ("branches", "b")].map(|(table, letter)| {
            format!(
                "[replication.table.\"public.pgbench_{table}\"]\ncounters = [\"{letter}balance\"]\n"
            )
        });
    let cluster = three().durable().sections(&counters.concat()).start().await;
    let restarting = async {
        for node in &cluster.nodes {
            works(node).await;
            node.stop_fast().await;
            node.start_again().await;
            let up = |status: &Value| {
                let nodes = status["nodes"].as_array();
                nodes.is_some_and(|nodes| nodes.iter().all(|node| node["health"] == "up"))
            };
            cluster
                .daemon
                .status_when("all nodes are up", LIMIT, up)
                .await;
        }
    };
    let processed = under_load(&cluster, "restarting", &["--max-tries=10"], restarting).await;
    eprintln!(
        "the slowest transaction took {} ms",
        slowest_ms(&cluster, "restarting")
    );
    cluster.assert_converged().await;
    // None was run twice, and none is missing.
    for node in &cluster.nodes {
        let sums = "SELECT count(*), coalesce(sum(delta), 0) = (SELECT sum(abalance) FROM pgbench_accounts), \
             coalesce(sum(delta), 0) = (SELECT sum(tbalance) FROM pgbench_tellers), \
             coalesce(sum(delta), 0) = (SELECT sum(bbalance) FROM pgbench_branches) FROM pgbench_history";
        let sums = format!("SELECT concat_ws(' ', a, b, c, d) FROM ({sums}) AS sums (a, b, c, d)");
        assert_eq!(node.value(&sums).await, format!("{processed} t t t"));
    }
}
