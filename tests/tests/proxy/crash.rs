//! What becomes of clients when a server process of their node crashes, which ends all of them: the node is back in a moment.

use std::time::Instant;

use rustix::process::Signal;
use tandem::dev::process::ProcessId;
use tandem_tests::{Cluster, client, eventually};

use crate::{
    failover::{LIMIT, home},
    silence::Writers,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_restarts_after_a_crash_keeps_its_keys_and_all_clients() {
    // One that is durable looks through all its files before it starts again. A process that is killed loses nothing.
    let cluster = Cluster::of(&[15, 17])
        .schema(Writers::TABLE)
        .proxy("workers = 1\npool_mode = \"transaction\"")
        .start()
        .await;
    let one = cluster.proxy().await;
    let (before, crashes) = home(&cluster, &one).await;
    client::execute(&one, "SET work_mem = '7MB'").await;
    let writers = Writers::start(&cluster, 4).await;
    let seen = cluster.daemon.log().len();
    for round in 1..=3 {
        writers.go_on(Instant::now()).await;
        let backend = "SELECT pid FROM pg_stat_activity WHERE usename = 'app' AND backend_type = 'client backend' LIMIT 1";
        let pid = crashes.value(backend).await.parse().expect("a number");
        let backend = ProcessId::of(pid).expect("it lives");
        let begun = Instant::now();
        backend.signal(Signal::KILL).expect("killed");
        eventually("it restarts", LIMIT, async || {
            let log = cluster.daemon.log().split_off(seen);
            match log.matches("node restarts after a crash").count() {
                count if count >= round => Ok(()),
                count => Err(format!("{count} times so far: {log}")),
            }
        })
        .await;
        let (first, last) = writers.go_on(Instant::now()).await;
        eprintln!(
            "first and last writer after {:?}, {:?}",
            first - begun,
            last - begun
        );
    }
    let log = cluster.daemon.log().split_off(seen);
    assert!(!log.contains("node is down"), "{log}");
    assert_eq!(home(&cluster, &one).await.0, before);
    assert_eq!(client::value(&one, "SHOW work_mem").await, "7MB");
    writers.stop(&cluster).await;
}
