//! Ctrl-C, and the protocol version that carries long cancel keys.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tandem::dev::process::ProcessId;
use tandem_tests::{Cluster, Program, eventually, template};

const LIMIT: Duration = Duration::from_secs(20);

/// psql runs `pg_sleep(60)` and gets SIGINT, as Ctrl-C sends it.
async fn interrupted(cluster: &Cluster, psql: Program) {
    let child = psql.args(["-c", "SELECT pg_sleep(60)"]).spawn();
    let active = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(60)'";
    eventually("the query runs", LIMIT, async || {
        for node in &cluster.nodes {
            if node.value(active).await == "1" {
                return Ok(());
            }
        }
        Err("on no node")
    })
    .await;
    let process = ProcessId::of(i32::try_from(child.id().expect("it runs")).expect("a pid"))
        .expect("it runs");
    let pressed = Instant::now();
    process.signal(Signal::INT).expect("a signal");
    let output = tokio::time::timeout(LIMIT, child.wait_with_output())
        .await
        .expect("it ends")
        .expect("its output");
    let took = pressed.elapsed();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains("canceling statement due to user request"),
        "{text}"
    );
    assert!(took < Duration::from_secs(1), "it took {took:?}");
    for node in &cluster.nodes {
        assert_eq!(node.value(active).await, "0", "{}", node.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_query_within_a_second() {
    let cluster = Cluster::of(&[15, 15]).start().await;
    interrupted(&cluster, cluster.psql()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_18_speaks_protocol_3_2_and_its_ctrl_c_works_too() {
    let cluster = Cluster::of(&[15, 18]).start().await;
    let psql18 = || {
        let psql = Program::psql(&template::install(18)).port(cluster.proxy_port);
        psql.args([
            "-d",
            "min_protocol_version=3.2 max_protocol_version=3.2 dbname=app",
        ])
    };
    let ran = psql18()
        .args(["-c", "\\conninfo", "-c", "SELECT 6 * 7"])
        .run(LIMIT)
        .await
        .expect_success();
    assert!(
        ran.stdout.contains("3.2") && ran.stdout.contains("42"),
        "{}",
        ran.all()
    );
    interrupted(&cluster, psql18()).await;
}

/// A cancel request for one session must not reach another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_only_the_session_that_it_is_for() {
    let cluster = Cluster::of(&[15]).start().await;
    let (first, second) = (cluster.proxy().await, cluster.proxy().await);
    let token = first.cancel_token();
    let slow = second.simple_query("SELECT pg_sleep(1)");
    let cancel = async {
        for _ in 0..5 {
            token
                .cancel_query(tokio_postgres::NoTls)
                .await
                .expect("a cancel request");
        }
    };
    let (slow, ()) = tokio::join!(slow, cancel);
    slow.expect("the other session's query ends by itself");
}
