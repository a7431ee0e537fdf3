//! One daemon takes over from another on the same port, while clients work and come again when they are sent away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tandem_tests::{Cluster, Daemon, Program, client, eventually};
use tokio::task::{JoinHandle, JoinSet};
use tokio_postgres::{Client, Error, NoTls};

const LIMIT: Duration = Duration::from_secs(60);
const SCHEMA: &str = "CREATE TABLE written (client int, number int, PRIMARY KEY (client, number));";
const PROXY: &str = "pool_mode = \"transaction\"\npool_size = 10\nso_reuseport = true";

/// A daemon with the configuration of the cluster's, beside it.
fn another(cluster: &Cluster, name: &str) -> Daemon {
    let log = cluster.dir().join(format!("{name}.log"));
    Daemon::new(cluster.daemon.config(), &log, cluster.admin_port)
}

async fn ready(daemon: &Daemon) {
    eventually("it serves", LIMIT, async || {
        match daemon.log().contains("ready") {
            true => Ok(()),
            false => Err(daemon.log()),
        }
    })
    .await;
}

struct Worker {
    port: u16,
    id: usize,
    written: usize,
    sent_away: usize,
}

impl Worker {
    async fn connect(&self) -> (Client, JoinHandle<Result<(), Error>>) {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port);
        config.user("app").password("app").dbname("app");
        let (client, connection) = config
            .connect(NoTls)
            .await
            .unwrap_or_else(|error| panic!("a login: {}", client::describe(&error)));
        (client, tokio::spawn(connection))
    }

    /// Writes until it is told to end. The only error that it may meet is the end of its session between two transactions.
    async fn work(mut self, end: Arc<AtomicBool>) -> Worker {
        let (mut session, mut connection) = self.connect().await;
        while !end.load(Ordering::Relaxed) {
            if let Err(error) = session.batch_execute("BEGIN").await {
                let reason = match error.as_db_error() {
                    Some(_) => error,
                    // It was told before it asked.
                    None => connection
                        .await
                        .expect("no panic")
                        .expect_err("a reason for the end"),
                };
                assert_eq!(client::sqlstate(&reason), "57P01", "{reason:?}");
                self.sent_away += 1;
                (session, connection) = self.connect().await;
                continue;
            }
            let (id, number) = (self.id, self.written);
            for sql in [
                format!("INSERT INTO written VALUES ({id}, {number})"),
                format!("SELECT count(*) FROM written WHERE client = {id}"),
                "COMMIT".to_owned(),
            ] {
                let done = session.batch_execute(&sql).await;
                done.unwrap_or_else(|error| panic!("{sql}: {}", client::describe(&error)));
            }
            self.written += 1;
        }
        self
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_is_no_error_for_clients_that_come_again() {
    let builder = Cluster::of(&[15, 17]).pgbench(1).schema(SCHEMA);
    let mut cluster = builder.proxy(PROXY).start().await;
    let end = Arc::new(AtomicBool::new(false));
    let mut workers = JoinSet::new();
    for id in 0..4 {
        let worker = Worker {
            port: cluster.proxy_port,
            id,
            written: 0,
            sent_away: 0,
        };
        workers.spawn(worker.work(Arc::clone(&end)));
    }
    // One connection for each transaction, by TCP and by the unix socket.
    let socket = cluster.dir().to_string_lossy().into_owned();
    for host in ["127.0.0.1", &socket] {
        let pgbench = Program::pgbench(cluster.nodes[0].install()).port(cluster.proxy_port);
        let pgbench = pgbench.env("PGHOST", host);
        let pgbench = pgbench.args(["-n", "-S", "-C", "-c", "2", "-T", "12"]);
        workers.spawn(async move {
            let ran = pgbench.run(LIMIT).await.expect_success();
            let failed = "number of failed transactions: 0";
            assert!(ran.stdout.contains(failed), "{}", ran.all());
            Worker {
                port: 0,
                id: 0,
                written: 0,
                sent_away: 1,
            }
        });
    }
    for name in ["second", "third"] {
        let mut next = another(&cluster, name);
        next.spawn();
        ready(&next).await;
        let pid = next.pid().expect("it runs");
        next.status_when("the next one waits for the nodes", LIMIT, |status| {
            let problem = status["replication"]["nodes"][0]["problem"].as_str();
            status["pid"] == pid
                && problem.is_some_and(|problem| problem.contains("another daemon"))
        })
        .await;
        let ended = cluster.daemon.terminate().await;
        assert!(ended.success(), "{ended}");
        assert!(!cluster.daemon.log().contains("panicked"));
        next.status_when("the next one replicates", LIMIT, |status| {
            let nodes = status["replication"]["nodes"].as_array();
            nodes.is_some_and(|nodes| nodes.iter().all(|node| node["state"] == "up"))
        })
        .await;
        cluster.daemon = next;
    }
    end.store(true, Ordering::Relaxed);
    let mut written = 0;
    while let Some(ended) = workers.join_next().await {
        let worker = ended.expect("nobody met an error");
        assert!(
            worker.sent_away > 0,
            "client {} was never sent away",
            worker.id
        );
        written += worker.written;
    }
    cluster.assert_converged().await;
    let found = cluster.nodes[0].value("SELECT count(*) FROM written").await;
    assert_eq!(found, written.to_string(), "each was written once");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_so_reuseport_a_second_daemon_says_that_the_port_is_taken() {
    let cluster = Cluster::of(&[15]).start().await;
    let mut second = another(&cluster, "second");
    second.spawn();
    assert!(!second.ended().await.success());
    let log = second.log();
    assert!(log.contains("another process listens there"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_daemons_that_wait_to_take_over_one_gets_every_node() {
    let builder = Cluster::of(&[15, 15, 15]).schema(SCHEMA).proxy(PROXY);
    let mut cluster = builder.start().await;
    let mut waiting: Vec<Daemon> = Vec::new();
    for round in 0..4 {
        while waiting.len() < 2 {
            let mut next = another(&cluster, &format!("{round}-{}", waiting.len()));
            next.spawn();
            let pid = next.pid().expect("it runs");
            next.status_when("it waits for all nodes", LIMIT, |status| {
                let nodes = status["replication"]["nodes"].as_array();
                let owned = |node: &serde_json::Value| {
                    let problem = node["problem"].as_str();
                    problem.is_some_and(|problem| problem.contains("another daemon owns"))
                };
                status["pid"] == pid && nodes.is_some_and(|nodes| nodes.iter().all(owned))
            })
            .await;
            waiting.push(next);
        }
        let ended = cluster.daemon.terminate().await;
        assert!(ended.success(), "{ended}");
        let all_up = |status: &serde_json::Value| {
            let nodes = status["replication"]["nodes"].as_array();
            nodes.is_some_and(|nodes| nodes.iter().all(|node| node["state"] == "up"))
        };
        // Any of the two may answer.
        let next = &waiting[0];
        let status = next.status_when("one has all nodes", LIMIT, all_up).await;
        let owner = |daemon: &Daemon| daemon.pid().is_some_and(|pid| status["pid"] == pid);
        let owner = waiting.iter().position(owner).expect("one of them");
        cluster.daemon = waiting.swap_remove(owner);
        let client = cluster.proxy().await;
        let write = format!("INSERT INTO written VALUES (0, {round})");
        client.batch_execute(&write).await.expect("a write");
    }
    // Only the owner can say that.
    for mut daemon in waiting {
        daemon.kill9().await;
    }
    cluster.assert_converged().await;
}
