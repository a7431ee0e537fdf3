//! PAUSE, RESUME and RECONNECT: what an operator does to a node that clients work on.

use std::{sync::Arc, time::Duration};

use tandem_tests::{Cluster, Program, client, eventually};

use crate::{
    console::{console, shown, with_console},
    reload::backends,
};

const LIMIT: Duration = Duration::from_secs(60);
const PROXY: &str = "pool_mode = \"transaction\"\npool_size = 4";

fn pgbench(cluster: &Cluster) -> Program {
    let pgbench = Program::pgbench(cluster.nodes[0].install()).port(cluster.proxy_port);
    pgbench.args(["-n", "-c", "6", "-T", "8"])
}

/// A backend that was told to end takes a moment.
async fn nobody_is_left(cluster: &Cluster) {
    eventually("no connection is left", LIMIT, async || {
        match backends(cluster).await {
            left if left.is_empty() => Ok(()),
            left => Err(left.join(", ")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_restarted_while_its_clients_are_paused_and_they_notice_nothing() {
    let cluster = with_console(Cluster::of(&[15]).pgbench(1).proxy(PROXY)).await;
    let (holder, waiter) = (cluster.proxy().await, cluster.proxy().await);
    let ops = console(&cluster, "ops").await;
    client::execute(&holder, "BEGIN; SELECT 1").await;

    let pausing = Arc::new(console(&cluster, "ops").await);
    let pause = tokio::spawn(async move { client::execute(&pausing, "PAUSE app").await });
    eventually("the database is paused", LIMIT, async || {
        let databases = shown(&ops, "SHOW DATABASES").await;
        match databases[0].ends_with("paused=yes") {
            true => Ok(()),
            false => Err(databases.join(", ")),
        }
    })
    .await;
    let waiting = tokio::spawn(async move { client::value(&waiter, "SELECT 'served'").await });
    eventually("a statement waits", LIMIT, async || {
        let pools = shown(&ops, "SHOW POOLS").await;
        match pools.iter().any(|pool| pool.contains("cl_waiting=1 ")) {
            true => Ok(()),
            false => Err(pools.join(", ")),
        }
    })
    .await;
    // The transaction under way has its server until it ends.
    assert_eq!(client::value(&holder, "SELECT 'mine'").await, "mine");
    assert!(!pause.is_finished(), "a server is still in use");
    client::execute(&holder, "COMMIT").await;
    pause.await.expect("PAUSE is answered");
    nobody_is_left(&cluster).await;

    cluster.nodes[0].stop_fast().await;
    cluster.nodes[0].start_again().await;
    assert!(!waiting.is_finished(), "the database is still paused");
    client::execute(&ops, "RESUME app").await;
    assert_eq!(waiting.await.expect("no error"), "served");
    assert_eq!(client::value(&holder, "SELECT 'on'").await, "on");
    let refused = ops
        .simple_query("RESUME app")
        .await
        .expect_err("it is not paused");
    assert_eq!(client::sqlstate(&refused), "55000");
    let refused = ops
        .simple_query("PAUSE ap")
        .await
        .expect_err("there is none");
    assert_eq!(client::sqlstate(&refused), "3D000");
}

#[tokio::test(flavor = "multi_thread")]
async fn pauses_and_reconnects_under_load_are_no_errors() {
    let cluster = with_console(Cluster::of(&[15]).pgbench(1).proxy(PROXY)).await;
    let ops = console(&cluster, "ops").await;
    let load = pgbench(&cluster).run(LIMIT);
    let operating = async {
        loop {
            client::execute(&ops, "PAUSE").await;
            nobody_is_left(&cluster).await;
            client::execute(&ops, "RESUME").await;
            let before = eventually("clients work again", LIMIT, async || {
                let backends = backends(&cluster).await;
                match backends.len() {
                    4 => Ok(backends),
                    count => Err(format!("{count} connections")),
                }
            })
            .await;
            client::execute(&ops, "RECONNECT app").await;
            eventually("all connections are others", LIMIT, async || {
                let now = backends(&cluster).await;
                match now.iter().any(|pid| before.contains(pid)) {
                    true => Err(format!("{now:?} after {before:?}")),
                    false => Ok(()),
                }
            })
            .await;
        }
    };
    let ran = tokio::select! {
        ran = load => ran.expect_success(),
        () = operating => unreachable!("it goes on for ever"),
    };
    let failed = "number of failed transactions: 0";
    assert!(ran.stdout.contains(failed), "{}", ran.all());
    let rounds = cluster
        .daemon
        .log()
        .matches("statement=\"RECONNECT\"")
        .count();
    assert!(rounds > 3, "{rounds} rounds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_waits_for_the_end_of_a_pause_and_a_reconnect_for_the_end_of_a_transaction() {
    let cluster = with_console(Cluster::of(&[15]).proxy(PROXY)).await;
    let ops = console(&cluster, "ops").await;
    client::execute(&ops, "PAUSE").await;
    let login = client::connect(cluster.proxy_port, "app", Some("app"), "app");
    let mut login = std::pin::pin!(login);
    let waited = tokio::time::timeout(Duration::from_secs(1), &mut login).await;
    assert!(waited.is_err(), "the first of its pool needs a server");
    client::execute(&ops, "RESUME").await;
    let session = login.await.expect("let in");

    let pid = "SELECT pg_backend_pid()";
    client::execute(&session, "BEGIN").await;
    let before = client::value(&session, pid).await;
    client::execute(&ops, "RECONNECT").await;
    assert_eq!(client::value(&session, pid).await, before);
    client::execute(&session, "COMMIT").await;
    assert_ne!(client::value(&session, pid).await, before);
}
