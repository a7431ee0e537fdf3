//! pgbench's TPC-B through the proxy and directly on every node at the same time.

use std::time::{Duration, Instant};

use tandem_tests::{Cluster, ClusterBuilder, Program, client};
use tokio::task::JoinSet;

/// pgbench's query protocols.
const MODES: [&str; 3] = ["simple", "extended", "prepared"];

/// How long each of the three runs takes: seconds.
fn seconds() -> u64 {
    std::env::var("TANDEM_TEST_PGBENCH_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(2)
}

/// The bound, for a run of 20 s per mode as well as for this one.
const CONVERGED: Duration = Duration::from_secs(60);

/// Runs pgbench in every protocol mode, eight clients through the proxy and eight on each node; the nodes converge after
/// each.
async fn run_everywhere(cluster: &Cluster) {
    for mode in MODES {
        let mut running = JoinSet::new();
        let ports = cluster
            .nodes
            .iter()
            .map(|node| node.port())
            .chain([cluster.proxy_port]);
        for port in ports {
            let time = seconds().to_string();
            let pgbench = Program::pgbench(cluster.nodes[0].install()).port(port);
            let pgbench = pgbench.args(["-n", "-c", "8", "-j", "2", "-T", &time, "-M", mode]);
            running.spawn(pgbench.run(Duration::from_secs(60 + seconds())));
        }
        for ran in running.join_all().await {
            let ran = ran.expect_success();
            assert!(
                ran.stdout.contains("number of failed transactions: 0 "),
                "{}",
                ran.all()
            );
        }
        let begin = Instant::now();
        cluster.converge(CONVERGED).await;
        eprintln!("{mode}: converged after {:?}", begin.elapsed());
    }
}

async fn converges_under_pgbench(builder: ClusterBuilder) {
    let cluster = builder.pgbench(5).start().await;
    run_everywhere(&cluster).await;
    cluster.assert_equal().await;
    let status = cluster.daemon.status().await.expect("a status");
    for link in status["replication"]["links"].as_array().expect("links") {
        assert_eq!(link["lag_bytes"], 0, "{link}");
        assert!(link["transactions"].as_u64() > Some(0), "{link}");
    }
    let history = client::value(
        &cluster.proxy().await,
        "SELECT count(*) FROM pgbench_history",
    )
    .await;
    assert!(
        history.parse::<u64>().expect("a number") > 1000,
        "{history} transactions only"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_converge_under_pgbench_in_every_protocol_mode() {
    converges_under_pgbench(Cluster::of(&[15, 15, 15])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_majors_converge_under_pgbench_in_every_protocol_mode() {
    converges_under_pgbench(Cluster::of(&[15, 17, 18])).await;
}
