//! Kills, stops and cuts in the middle of the work: nothing is lost, nothing comes twice, all nodes end equal.

use std::time::Duration;

use tandem_tests::{Cluster, cluster::CONVERGE_LIMIT, relay::Direction};

use crate::workload::{SCHEMA, Workload};

/// Commits between two faults.
const MEANWHILE: usize = 400;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_loses_nothing_and_repeats_nothing() {
    let mut cluster = Cluster::of(&[15, 17, 18]).schema(SCHEMA).start().await;
    let workload = Workload::start(&cluster);
    for _ in 0..4 {
        workload.commits(MEANWHILE).await;
        cluster.daemon.kill9().await;
        workload.commits(MEANWHILE).await;
        cluster.daemon.start().await;
    }
    workload.commits(MEANWHILE).await;
    workload.finish(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_restarted_in_order_loses_nothing_and_repeats_nothing() {
    let mut cluster = Cluster::of(&[15, 15, 15]).schema(SCHEMA).start().await;
    let workload = Workload::start(&cluster);
    for _ in 0..3 {
        workload.commits(MEANWHILE).await;
        let status = cluster.daemon.terminate().await;
        assert!(status.success(), "{status}");
        workload.commits(MEANWHILE).await;
        cluster.daemon.start().await;
    }
    workload.finish(&cluster).await;
}

/// The appliers commit asynchronously, so a killed node forgets some of what it was sent: it must be sent again.
async fn a_node_comes_back_from_being_killed(majors: &[u32]) {
    let cluster = Cluster::of(majors).schema(SCHEMA).start().await;
    let workload = Workload::start(&cluster);
    for victim in [1, 2] {
        workload.commits(MEANWHILE).await;
        cluster.nodes[victim].kill9().await;
        workload.commits(MEANWHILE).await;
        cluster.nodes[victim].start_again().await;
    }
    workload.commits(MEANWHILE).await;
    workload.finish(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_gets_what_it_forgot_and_what_it_missed() {
    a_node_comes_back_from_being_killed(&[15, 15, 15]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_of_another_major_gets_what_it_forgot_and_what_it_missed() {
    a_node_comes_back_from_being_killed(&[15, 17, 18]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_stopped_fast_and_at_once_come_back_whole() {
    let cluster = Cluster::of(&[15, 15, 18]).schema(SCHEMA).start().await;
    let workload = Workload::start(&cluster);
    workload.commits(MEANWHILE).await;
    cluster.nodes[0].stop_immediately().await;
    workload.commits(MEANWHILE).await;
    cluster.nodes[0].start_again().await;
    workload.commits(MEANWHILE).await;
    cluster.nodes[2].stop_fast().await;
    workload.commits(MEANWHILE).await;
    cluster.nodes[2].start_again().await;
    workload.commits(MEANWHILE).await;
    workload.finish(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn daemon_and_node_killed_together_come_back_whole() {
    let mut cluster = Cluster::of(&[15, 15, 18])
        .durable()
        .schema(SCHEMA)
        .start()
        .await;
    let workload = Workload::start(&cluster);
    workload.commits(MEANWHILE).await;
    for victim in [0, 2] {
        cluster.daemon.kill9().await;
        cluster.nodes[victim].kill9().await;
        workload.commits(MEANWHILE).await;
        cluster.daemon.start().await;
        workload.commits(MEANWHILE / 4).await;
        cluster.nodes[victim].start_again().await;
        workload.commits(MEANWHILE).await;
    }
    workload.finish(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_are_reset_again_and_again_lose_nothing_and_repeat_nothing() {
    let cluster = Cluster::of(&[15, 17, 18])
        .relays()
        .schema(SCHEMA)
        .start()
        .await;
    let workload = Workload::start(&cluster);
    for round in 0..9 {
        workload.commits(MEANWHILE / 4).await;
        let relay = &cluster.relays[round % 3];
        match round % 4 {
            0 => relay.cut(),
            1 => relay.cut_only("apply"),
            2 => relay.cut_only("capture"),
            _ => relay.half_close(if round < 5 {
                Direction::ToNode
            } else {
                Direction::ToDaemon
            }),
        }
        workload.commits(MEANWHILE / 4).await;
        relay.heal();
    }
    workload.finish(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stands_still_and_a_silent_link_hold_up_nobody_else() {
    let cluster = Cluster::of(&[15, 15, 15])
        .relays()
        .schema(SCHEMA)
        .start()
        .await;
    cluster.nodes[2].pause().await;
    cluster.nodes[0]
        .execute("INSERT INTO ledger VALUES (1, 1, 'while 3 stands still')")
        .await;
    let arrived = async || match cluster.nodes[1]
        .value("SELECT count(*) FROM ledger")
        .await
        .as_str()
    {
        "1" => Ok(()),
        other => Err(format!("{other} rows")),
    };
    tandem_tests::eventually("node 2 has the row", Duration::from_secs(10), arrived).await;
    let behind = cluster
        .daemon
        .wait_converged(Duration::from_millis(500))
        .await;
    assert_eq!(behind.status.code(), Some(1), "{}", behind.all());
    assert!(behind.stdout.contains("n3"), "{}", behind.all());
    cluster.nodes[2].resume().await;
    cluster.assert_converged().await;

    cluster.relays[1].silence();
    cluster.nodes[0]
        .execute("INSERT INTO ledger VALUES (1, 2, 'while 2 is not heard of')")
        .await;
    let arrived = async || match cluster.nodes[2]
        .value("SELECT count(*) FROM ledger")
        .await
        .as_str()
    {
        "2" => Ok(()),
        other => Err(format!("{other} rows")),
    };
    tandem_tests::eventually("node 3 has the row", Duration::from_secs(10), arrived).await;
    cluster.relays[1].heal();
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_starts_before_its_nodes_takes_each_when_it_comes() {
    let mut cluster = Cluster::of(&[15, 15, 15])
        .schema(SCHEMA)
        .without_daemon()
        .start()
        .await;
    cluster.nodes[1].stop_fast().await;
    cluster.daemon.start().await;
    // A node's changes are kept from the moment on in which it is taken.
    let taken = |status: &serde_json::Value| {
        let nodes = &status["replication"]["nodes"];
        nodes[0]["state"] == "up" && nodes[1]["state"] == "down" && nodes[2]["state"] == "up"
    };
    let status = cluster
        .daemon
        .status_when(
            "the nodes that run are taken",
            Duration::from_secs(20),
            taken,
        )
        .await;
    assert!(
        status["replication"]["nodes"][1]["problem"].is_string(),
        "{status:#}"
    );
    cluster.nodes[0]
        .execute("INSERT INTO ledger VALUES (1, 1, 'early')")
        .await;
    cluster.nodes[1].start_again().await;
    cluster.converge(CONVERGE_LIMIT).await;
    cluster.assert_equal().await;
    assert_eq!(
        cluster.nodes[1].value("SELECT note FROM ledger").await,
        "early"
    );
}

/// Two daemons on one cluster would apply everything twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_is_kept_off_and_takes_over_when_the_first_is_gone() {
    let mut cluster = Cluster::of(&[15, 15]).schema(SCHEMA).start().await;
    let (proxy_port, admin_port) = (cluster.port(), cluster.port());
    let config = cluster.dir().join("second.toml");
    let text = std::fs::read_to_string(cluster.daemon.config()).expect("the configuration");
    let text = text.replace(&cluster.proxy_port.to_string(), &proxy_port.to_string());
    let text = text.replace(&cluster.admin_port.to_string(), &admin_port.to_string());
    std::fs::write(&config, text).expect("a second configuration");
    let mut second =
        tandem_tests::Daemon::new(&config, &cluster.dir().join("second.log"), admin_port);
    second.start().await;
    let owned = |status: &serde_json::Value| {
        status["replication"]["nodes"]
            .as_array()
            .is_some_and(|nodes| {
                nodes.iter().all(|node| {
                    node["problem"]
                        .as_str()
                        .is_some_and(|problem| problem.contains("another daemon"))
                })
            })
    };
    second
        .status_when(
            "the second daemon is kept off",
            Duration::from_secs(20),
            owned,
        )
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO journal VALUES (1, 1)")
        .await;
    cluster.assert_converged().await;
    cluster.daemon.kill9().await;
    cluster.nodes[1]
        .execute("INSERT INTO journal VALUES (2, 1)")
        .await;
    let ran = second.wait_converged(Duration::from_secs(30)).await;
    assert!(ran.status.success(), "{}", ran.all());
    cluster.assert_equal().await;
    assert_eq!(
        cluster.nodes[0].value("SELECT count(*) FROM journal").await,
        "2"
    );
}
