//! Links that cannot go on for a while: they go on by themselves.

use std::time::Duration;

use tandem_tests::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_table_delays_the_link_and_nothing_is_lost() {
    let cluster = Cluster::of(&[15, 15])
        .schema("CREATE TABLE item (id int PRIMARY KEY);")
        .start()
        .await;
    let client = cluster.nodes[1].connect().await;
    tandem_tests::client::execute(&client, "BEGIN; LOCK TABLE item").await;
    cluster.nodes[0]
        .execute("INSERT INTO item SELECT generate_series(1, 1000)")
        .await;
    let behind = cluster.daemon.wait_converged(Duration::from_secs(1)).await;
    assert_eq!(behind.status.code(), Some(1), "{}", behind.all());
    tandem_tests::client::execute(&client, "COMMIT").await;
    cluster.assert_converged().await;
}
