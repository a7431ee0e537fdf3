//! What becomes of clients whose node stands still, or cannot be reached any more, without a word; and of what runs on there when it
//! comes back.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tandem_tests::{Cluster, client, eventually};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::{
    failover::{LIMIT, LOST, codes, heard, home, session, two},
    script::{play, script},
};

/// What a writer has been told.
#[derive(Default)]
struct Told {
    /// The rows that are committed, and when that was said.
    committed: Vec<(i32, Instant)>,
    /// Those that are not.
    failed: Vec<i32>,
    /// Those of which nobody knows.
    in_doubt: Vec<i32>,
}

/// Clients that write rows of their own, one after the other, each in a transaction of its own.
pub(crate) struct Writers {
    told: Vec<Arc<Mutex<Told>>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Client>>,
}

impl Writers {
    /// The table that they write.
    pub(crate) const TABLE: &str =
        "CREATE TABLE ledger (writer int, row int, PRIMARY KEY (writer, row));";

    pub(crate) async fn start(cluster: &Cluster, count: usize) -> Writers {
        let mut writers = Writers {
            told: Vec::new(),
            stop: Arc::default(),
            tasks: Vec::new(),
        };
        for writer in 0..count {
            let client = cluster.proxy().await;
            let (told, stop) = (Arc::<Mutex<Told>>::default(), Arc::clone(&writers.stop));
            writers.told.push(Arc::clone(&told));
            writers.tasks.push(tokio::spawn(async move {
                for row in 0.. {
                    let write = format!("INSERT INTO ledger VALUES ({writer}, {row})");
                    let written = client::try_rows(&client, &write).await;
                    let mut told = told.lock().expect("nobody panics");
                    match written.map_err(|error| client::sqlstate(&error)) {
                        Ok(_) => told.committed.push((row, Instant::now())),
                        Err(code) if code == "40001" => told.failed.push(row),
                        Err(code) if code == "08007" => told.in_doubt.push(row),
                        Err(other) => panic!("writer {writer} hears {other}"),
                    }
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
                client
            }));
        }
        writers
    }

    /// Waits until each of them has committed something later than this. Answers when the first and when the last did.
    pub(crate) async fn go_on(&self, since: Instant) -> (Instant, Instant) {
        eventually("all of them write", LIMIT, async || {
            let later = |told: &Arc<Mutex<Told>>| {
                let told = told.lock().expect("nobody panics");
                let mut committed = told.committed.iter().map(|(_, at)| *at);
                committed.find(|at| *at > since)
            };
            let firsts: Option<Vec<Instant>> = self.told.iter().map(later).collect();
            let firsts = firsts.ok_or("one of them does not")?;
            let (first, last) = (firsts.iter().min(), firsts.iter().max());
            first.copied().zip(last.copied()).ok_or("there is none")
        })
        .await
    }

    /// Ends them, and looks whether what they were told is so. None of them was disconnected.
    pub(crate) async fn stop(self, cluster: &Cluster) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            assert!(!task.await.expect("no panic").is_closed());
        }
        cluster.assert_converged().await;
        let kept = cluster.nodes[0].connect().await;
        let kept = client::rows(&kept, "SELECT writer || ' ' || row FROM ledger").await;
        let kept: BTreeSet<String> = kept.into_iter().flatten().flatten().collect();
        let (mut committed, mut in_doubt, mut failed) = (0, 0, 0);
        for (writer, told) in self.told.iter().enumerate() {
            let told = told.lock().expect("nobody panics");
            let has = |row: &i32| kept.contains(&format!("{writer} {row}"));
            let lost: Vec<i32> = told.committed.iter().map(|(row, _)| *row).collect();
            let lost: Vec<&i32> = lost.iter().filter(|row| !has(row)).collect();
            assert_eq!(lost, Vec::<&i32>::new(), "writer {writer}: these are lost");
            let kept: Vec<&i32> = told.failed.iter().filter(|row| has(row)).collect();
            assert_eq!(kept, Vec::<&i32>::new(), "writer {writer}: to be repeated");
            committed += told.committed.len();
            in_doubt += told.in_doubt.len();
            failed += told.failed.len();
        }
        eprintln!("{committed} committed, {in_doubt} in doubt, {failed} failed");
        assert!((committed..=committed + in_doubt).contains(&kept.len()));
    }
}

async fn all_up(cluster: &Cluster) {
    cluster
        .daemon
        .status_when("all nodes are up", LIMIT, |status| {
            let nodes = status["nodes"].as_array();
            nodes.is_some_and(|nodes| nodes.iter().all(|node| node["health"] == "up"))
        })
        .await;
}

/// With the defaults. Each fault comes twice, and the better gap counts: a machine that has much else to do makes the daemon patient.
#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_a_node_that_falls_silent_are_written_elsewhere_within_two_seconds() {
    let cluster = Cluster::of(&[15, 15, 15])
        .durable()
        .schema(Writers::TABLE)
        .proxy("workers = 1\npool_mode = \"transaction\"")
        .probe_interval("1s")
        .relays()
        .start()
        .await;
    all_up(&cluster).await;
    let one = cluster.proxy().await;
    let writers = Writers::start(&cluster, 4).await;
    for stands_still in [true, false] {
        let mut gaps = Vec::new();
        for _ in 0..2 {
            writers.go_on(Instant::now()).await;
            let (silent, node) = home(&cluster, &one).await;
            let begun = Instant::now();
            match stands_still {
                true => node.pause().await,
                false => cluster.relays[silent].silence(),
            }
            // What was under way then may still have been answered.
            let (first, last) = writers
                .go_on(Instant::now() + Duration::from_millis(50))
                .await;
            gaps.push((first - begun, last - begun));
            match stands_still {
                true => node.resume().await,
                false => cluster.relays[silent].heal(),
            }
            all_up(&cluster).await;
        }
        eprintln!("stands still: {stands_still}; first and last writer after {gaps:?}");
        let best = gaps.iter().map(|(_, last)| *last).min();
        assert!(best < Some(Duration::from_secs(2)), "{gaps:?}");
    }
    writers.stop(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_takes_long_makes_no_node_suspect() {
    let cluster = two("").start().await;
    let one = cluster.proxy().await;
    let before = cluster.daemon.log().len();
    client::execute(&one, "SELECT pg_sleep(1.5)").await;
    let log = cluster.daemon.log().split_off(before);
    for word in ["node is down", "under suspicion", "kept off"] {
        assert!(!log.contains(word), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_running_on_a_silent_node_is_ended_before_it_gets_clients_again() {
    let cluster = two("").start().await;
    let one = cluster.proxy().await;
    let (_, silent) = home(&cluster, &one).await;
    let (mut sleeps, mut commits) = (session(&cluster).await, session(&cluster).await);
    for (connection, id) in [(&mut sleeps, 1), (&mut commits, 2)] {
        heard(connection, "BEGIN").await;
        let write = format!("UPDATE kept SET n = 77 WHERE id = {id}");
        heard(connection, &write).await;
    }
    // It has the row, and does not look whether its client is still there.
    play(&mut sleeps, &script().q("SELECT pg_sleep(600)").send()).await;
    // Somebody else's, of the same role.
    let direct = client::connect(silent.port(), "app", Some("app"), "app");
    let direct = direct.await.expect("a login");
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    eventually("it sleeps", LIMIT, async || {
        match silent.value(sleeping).await.as_str() {
            "1" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    silent.pause().await;
    play(&mut commits, &script().q("COMMIT").send()).await;
    let told = codes(&play(&mut sleeps, &script().ready(1)).await);
    assert_eq!(told, format!("{LOST}Z E\n"));
    // It is read when the node goes on.
    let told = codes(&play(&mut commits, &script().ready(1)).await);
    assert_eq!(told, "E 08007\nZ I\n");
    client::execute(&one, "UPDATE kept SET n = 5 WHERE id = 1").await;
    silent.resume().await;
    all_up(&cluster).await;
    assert_eq!(silent.value(sleeping).await, "0");
    assert_eq!(client::value(&direct, "SELECT 1").await, "1");
    assert!(cluster.daemon.log().contains("were ended"));
    cluster.assert_converged().await;
    assert_eq!(silent.value("SELECT n FROM kept WHERE id = 1").await, "5");
}
