//! Writers that know what they have committed, so that a test can tell whether anything was lost or came twice.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tandem_tests::{Cluster, Node, client, eventually};
use tokio::task::JoinSet;

/// A table with a key, one without (where a repetition shows as a second row), and one that is fought over.
pub(crate) const SCHEMA: &str = "CREATE TABLE ledger (writer int, number int, note text, PRIMARY KEY (writer, number)); \
    CREATE TABLE journal (writer int, number int); \
    CREATE TABLE counter (id int PRIMARY KEY, writer int, value int);";

/// How long a writer rests after each transaction.
const PAUSE: Duration = Duration::from_millis(3);
/// Rows that all writers fight over.
const HOT_ROWS: u32 = 100;

/// What one writer knows.
#[derive(Debug, Default)]
struct Known {
    committed: BTreeSet<(u16, u32)>,
    /// The connection broke while the COMMIT was under way.
    in_doubt: BTreeSet<(u16, u32)>,
}

/// Writers on every node.
pub(crate) struct Workload {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicUsize>,
    writers: JoinSet<Known>,
}

impl Workload {
    /// Starts two writers per node, connected to the nodes directly.
    pub(crate) fn start(cluster: &Cluster) -> Self {
        let (stop, committed) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let mut writers = JoinSet::new();
        for node in &cluster.nodes {
            for copy in 0..2 {
                let writer = node.id * 10 + copy;
                writers.spawn(write(
                    node.clone(),
                    writer,
                    Arc::clone(&stop),
                    Arc::clone(&committed),
                ));
            }
        }
        Self {
            stop,
            committed,
            writers,
        }
    }

    /// Waits until so many more transactions are committed.
    pub(crate) async fn commits(&self, more: usize) {
        let wanted = self.committed.load(Ordering::Relaxed) + more;
        eventually("the writers go on", Duration::from_secs(60), async || {
            let now = self.committed.load(Ordering::Relaxed);
            if now >= wanted {
                Ok(())
            } else {
                Err(format!("{now} of {wanted} commits"))
            }
        })
        .await;
    }

    /// Ends the writers, waits until the nodes are equal, and checks that every node has every committed row once, and
    /// nothing that nobody wrote.
    pub(crate) async fn finish(self, cluster: &Cluster) {
        self.stop.store(true, Ordering::Relaxed);
        let mut known = Known::default();
        for one in self.writers.join_all().await {
            known.committed.extend(one.committed);
            known.in_doubt.extend(one.in_doubt);
        }
        cluster.assert_converged().await;
        for node in &cluster.nodes {
            let client = node.connect().await;
            for table in ["ledger", "journal"] {
                let rows =
                    client::rows(&client, &format!("SELECT writer, number FROM {table}")).await;
                let found: BTreeSet<(u16, u32)> = rows
                    .iter()
                    .map(|row| (number(&row[0]), number(&row[1])))
                    .collect();
                assert_eq!(
                    found.len(),
                    rows.len(),
                    "{table} of {} has rows twice",
                    node.name
                );
                let lost: Vec<_> = known.committed.difference(&found).take(10).collect();
                assert!(
                    lost.is_empty(),
                    "{table} of {} lost committed rows: {lost:?} …",
                    node.name
                );
                let strange: Vec<_> = found
                    .difference(&known.committed)
                    .filter(|row| !known.in_doubt.contains(row))
                    .take(10)
                    .collect();
                assert!(
                    strange.is_empty(),
                    "{table} of {} has rows that nobody committed: {strange:?} …",
                    node.name
                );
            }
        }
    }
}

fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &Option<String>) -> T {
    text.as_deref()
        .unwrap_or_default()
        .parse()
        .expect("a number")
}

async fn write(
    node: Node,
    writer: u16,
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicUsize>,
) -> Known {
    let mut known = Known::default();
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        // The server may be down for a while.
        let Ok(client) = client::connect(node.port(), "postgres", None, "app").await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            next += 1;
            let sql = format!(
                "BEGIN; INSERT INTO ledger VALUES ({writer}, {next}, 'note {next}'); INSERT INTO journal VALUES ({writer}, {next}); \
                 INSERT INTO counter VALUES ({0}, {writer}, {next}) ON CONFLICT (id) DO UPDATE SET writer = {writer}, value = {next}; COMMIT",
                next % HOT_ROWS
            );
            match client.batch_execute(&sql).await {
                Ok(()) => {
                    known.committed.insert((writer, next));
                    committed.fetch_add(1, Ordering::Relaxed);
                    // Not as fast as it goes: the faults shall come between many transactions, not behind them.
                    tokio::time::sleep(PAUSE).await;
                }
                // Refused by a server that lives: surely rolled back.
                Err(error) if error.as_db_error().is_some() && !client.is_closed() => {
                    client.batch_execute("ROLLBACK").await.ok();
                }
                Err(_) => {
                    known.in_doubt.insert((writer, next));
                    break;
                }
            }
        }
    }
    known
}
