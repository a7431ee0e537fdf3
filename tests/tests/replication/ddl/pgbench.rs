//! pgbench makes and fills its own tables through the proxy alone.

use std::time::Duration;

use tandem_tests::{Cluster, Program, client};
use tokio::task::JoinSet;

use super::assert_same;

const COUNTERS: &str = "[replication.table.\"public.pgbench_accounts\"]\ncounters = [\"abalance\"]\n\
    [replication.table.\"public.pgbench_tellers\"]\ncounters = [\"tbalance\"]\n\
    [replication.table.\"public.pgbench_branches\"]\ncounters = [\"bbalance\"]";

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_sets_itself_up_through_the_proxy_and_its_sums_agree_everywhere() {
    let cluster = Cluster::of(&[15, 17, 18])
        .proxy("pool_mode = \"transaction\"")
        .replication(COUNTERS)
        .start()
        .await;
    let install = cluster.nodes[0].install();
    let set_up = Program::pgbench(install).port(cluster.proxy_port);
    let set_up = set_up.args(["-i", "-s", "1", "-q"]);
    set_up.run(Duration::from_secs(120)).await.expect_success();
    cluster.converge(Duration::from_secs(120)).await;

    let mut running = JoinSet::new();
    let ports = cluster.nodes.iter().map(|node| node.port());
    for port in ports.chain([cluster.proxy_port]) {
        let pgbench = Program::pgbench(install).port(port);
        let pgbench = pgbench.args(["-n", "-c", "4", "-j", "2", "-T", "2"]);
        running.spawn(pgbench.run(Duration::from_secs(60)));
    }
    for ran in running.join_all().await {
        let ran = ran.expect_success();
        let none = ran.stdout.contains("number of failed transactions: 0 ");
        assert!(none, "{}", ran.all());
    }
    assert_same(&cluster).await;
    let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = d AND (SELECT sum(tbalance) FROM pgbench_tellers) = d \
        AND (SELECT sum(bbalance) FROM pgbench_branches) = d AND d IS NOT NULL FROM (SELECT sum(delta) AS d FROM pgbench_history) h";
    for node in &cluster.nodes {
        let client = node.app().await;
        assert_eq!(client::value(&client, sums).await, "t", "{}", node.name);
    }
}
