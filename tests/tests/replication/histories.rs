//! Random histories against a model: whatever is written where, and however it is delivered, every node ends with the
//! newest version of each key, and with nothing else.
//!
//! The seed is printed. The same seed gives the same operations and faults; what the scheduler makes of them may differ.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use tandem_tests::{Cluster, Node, client};
use tokio::task::JoinSet;
use tokio_postgres::{Client, Error, Row};

const SCHEMA: &str =
    "CREATE TABLE item (id int PRIMARY KEY, value text NOT NULL, padding text, hits int NOT NULL);";
const COUNTED: &str = "[replication.table.\"public.item\"]\ncounters = [\"hits\"]";
/// Few, so that they are fought over.
const KEYS: i32 = 12;
const TRANSACTIONS: usize = 250;

/// Microseconds since the epoch, and node: the order of versions.
type Version = (i64, u16);

/// What one committed transaction left under the keys that it touched; `None` where it deleted.
#[derive(Debug)]
struct Written {
    version: Version,
    rows: BTreeMap<i32, Option<String>>,
    /// What it added to the counters of the keys.
    added: Vec<(i32, i64)>,
}

/// The row that a statement left under a key, and what it added to the key's counter.
type Touched = (i32, Option<String>, i64);

/// One random statement; answers what it did under each key that it touched.
async fn change(client: &Client, random: &mut Rng, value: &str) -> Result<Vec<Touched>, Error> {
    let key = random.i32(1..=KEYS);
    let amount = random.i32(-9..=9);
    let rows = async |sql: &str| client.query(sql, &[&key, &value, &amount]).await;
    let left = |row: &Row| {
        let added = row.get::<_, i32>(2).into();
        (row.get(0), Some(row.get::<_, String>(1)), added)
    };
    match random.u32(..10) {
        0..=2 => {
            let sql = "INSERT INTO item VALUES ($1, $2, NULL, $3) ON CONFLICT (id) DO UPDATE SET value = $2, hits = item.hits + $3 \
                 RETURNING id, value, $3";
            Ok(rows(sql).await?.iter().map(left).collect())
        }
        3 => {
            let sql = "INSERT INTO item VALUES ($1, $2, NULL, $3) ON CONFLICT (id) DO NOTHING RETURNING id, value, $3";
            Ok(rows(sql).await?.iter().map(left).collect())
        }
        4..=5 => {
            let sql = "UPDATE item SET value = $2, hits = hits + $3 WHERE id = $1 RETURNING id, value, $3";
            Ok(rows(sql).await?.iter().map(left).collect())
        }
        6 => {
            let sql = "UPDATE item SET hits = hits + $3 WHERE id = $1 AND $2 <> '' RETURNING id, value, $3";
            Ok(rows(sql).await?.iter().map(left).collect())
        }
        7..=8 => {
            let sql = "DELETE FROM item WHERE id = $1 AND $2 <> '' AND $3 < 10 RETURNING id, -hits";
            Ok(rows(sql)
                .await?
                .iter()
                .map(|row| (row.get(0), None, row.get::<_, i32>(1).into()))
                .collect())
        }
        _ => {
            let to = random.i32(1..=KEYS);
            let sql = "UPDATE item SET id = $2 WHERE id = $1 AND $2 <> $1 AND NOT EXISTS (SELECT FROM item WHERE id = $2) \
                 RETURNING id, value, hits";
            let moved = client.query(sql, &[&key, &to]).await?;
            Ok(moved
                .iter()
                .map(left)
                .flat_map(|row| [(key, None, -row.2), row])
                .collect())
        }
    }
}

/// Runs random transactions of one to four statements on one node.
async fn write(node: Node, seed: u64) -> Vec<Written> {
    let mut random = Rng::with_seed(seed);
    let client = node.connect().await;
    let mut history = Vec::new();
    for number in 0..TRANSACTIONS {
        let statements = random.usize(1..=4);
        client::execute(&client, "BEGIN").await;
        let mut rows = BTreeMap::new();
        let mut added = Vec::new();
        let mut failed = false;
        for statement in 0..statements {
            match change(
                &client,
                &mut random,
                &format!("{} {number}.{statement}", node.name),
            )
            .await
            {
                Ok(touched) => {
                    for (key, row, amount) in touched {
                        rows.insert(key, row);
                        added.push((key, amount));
                    }
                }
                // A deadlock or a duplicate with what is being applied: the transaction is as if it had never been.
                Err(error) if error.as_db_error().is_some() => {
                    failed = true;
                    break;
                }
                Err(error) => panic!("{}: {}", node.name, client::describe(&error)),
            }
        }
        let xid = if failed {
            String::new()
        } else {
            client::value(&client, "SELECT pg_current_xact_id_if_assigned()").await
        };
        if failed || random.u32(..12) == 0 {
            client::execute(&client, "ROLLBACK").await;
            continue;
        }
        client::execute(&client, "COMMIT").await;
        if !rows.is_empty() {
            let sql = format!(
                "SELECT (extract(epoch FROM pg_xact_commit_timestamp('{xid}'::xid)) * 1000000)::bigint"
            );
            let timestamp = client::value(&client, &sql)
                .await
                .parse()
                .expect("a commit timestamp");
            history.push(Written {
                version: (timestamp, node.id),
                rows,
                added,
            });
        }
        if random.bool() {
            tokio::time::sleep(Duration::from_millis(random.u64(..6))).await;
        }
    }
    history
}

/// Delays, holds back and cuts random links until told to stop.
async fn disturb(cluster: &Cluster, random: &mut Rng, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let relay = &cluster.relays[random.usize(..cluster.relays.len())];
        let part = ["apply 1", "apply 2", "apply 3", "capture", "apply"][random.usize(..5)];
        match random.u32(..6) {
            0..=1 => relay.delay(part, Duration::from_millis(random.u64(1..80))),
            2 => relay.silence_only(part),
            3 => relay.cut_only(part),
            _ => relay.heal(),
        }
        tokio::time::sleep(Duration::from_millis(random.u64(5..60))).await;
    }
    cluster.relays.iter().for_each(|relay| relay.heal());
}

/// Everything that was written under each key, oldest version first, and the sum of what was added to its counter.
#[derive(Default)]
struct History {
    versions: BTreeMap<i32, BTreeMap<Version, Option<String>>>,
    sums: BTreeMap<i32, i64>,
    /// What each transaction added.
    added: BTreeMap<i32, Vec<(Version, i64)>>,
}

fn by_key(histories: Vec<Vec<Written>>) -> History {
    let mut history = History::default();
    for written in histories.into_iter().flatten() {
        for (key, value) in written.rows {
            let versions = history.versions.entry(key).or_default();
            versions.insert(written.version, value);
        }
        for (key, amount) in written.added {
            *history.sums.entry(key).or_default() += amount;
            let added = history.added.entry(key).or_default();
            added.push((written.version, amount));
        }
    }
    history
}

/// A row's value, and its counter where that is one.
type Content = (String, Option<i64>);

/// The rows that the newest versions leave.
fn model(history: &History, counted: bool) -> BTreeMap<i32, Content> {
    let newest = history.versions.iter().filter_map(|(key, versions)| {
        let value = versions.last_key_value()?.1.clone()?;
        let sum = history.sums.get(key).copied().filter(|_| counted);
        Some((*key, (value, sum)))
    });
    newest.collect()
}

async fn rows(node: &Node, counted: bool) -> BTreeMap<i32, Content> {
    let sql = "SELECT id, value, hits FROM item";
    let rows = client::rows(&node.connect().await, sql).await.into_iter();
    rows.map(|row| {
        let mut row = row.into_iter().flatten();
        let mut next = || row.next().expect("a value");
        let key = next().parse().expect("a number");
        let value = next();
        let hits = next().parse().ok().filter(|_| counted);
        (key, (value, hits))
    })
    .collect()
}

/// What a node has and should not, or has not and should, with the last versions of each such key, and what the node
/// remembers of it.
async fn deviations(node: &Node, history: &History, counted: bool) -> String {
    let (found, wanted) = (rows(node, counted).await, model(history, counted));
    let mut text = String::new();
    for key in 1..=KEYS {
        if found.get(&key) != wanted.get(&key) {
            let (name, found, wanted) = (&node.name, found.get(&key), wanted.get(&key));
            text.push_str(&format!("{name} has {found:?} under key {key}, the model {wanted:?}; newest versions first:\n"));
            for ((timestamp, by), value) in history
                .versions
                .get(&key)
                .into_iter()
                .flatten()
                .rev()
                .take(6)
            {
                let left = value.as_deref().unwrap_or("deleted");
                text.push_str(&format!("  {timestamp} on n{by}: {left}\n"));
            }
            let mut added = history.added.get(&key).cloned().unwrap_or_default();
            added.sort();
            for ((timestamp, by), amount) in added.iter().rev().take(30) {
                text.push_str(&format!("  {timestamp} on n{by} added {amount}\n"));
            }
            text.push_str(&remembered(node, key).await);
        }
    }
    text
}

/// The lines about a key in Tandem's own tables, and whether the row is still the same.
async fn remembered(node: &Node, key: i32) -> String {
    let client = node.connect().await;
    let us = "(extract(epoch FROM";
    let tombstones = format!(
        "SELECT 'delete remembered: ' || {us} deleted) * 1000000)::bigint || ' of n' || node || coalesce(' with ' || counters, '') FROM tandem.tombstone WHERE key = '[{key}]'"
    );
    let conflicts = format!(
        "SELECT type || ' ' || outcome || ', local ' || coalesce({us} local_timestamp) * 1000000)::bigint || ' of n' || local_node, '-') \
         || ', remote ' || {us} remote_timestamp) * 1000000)::bigint || ' of n' || remote_node FROM tandem.conflict \
         WHERE coalesce(remote_image->>'id', local_image->>'id') = '{key}' ORDER BY id DESC LIMIT 6"
    );
    let row = format!("SELECT 'row now: ' || value FROM item WHERE id = {key}");
    let mut text = String::new();
    for sql in [tombstones, conflicts, row] {
        for line in client::rows(&client, &sql)
            .await
            .into_iter()
            .flatten()
            .flatten()
        {
            text.push_str(&format!("    {line}\n"));
        }
    }
    text
}

async fn ends_as_the_model_says(majors: &[u32], kills: u32, counted: bool) {
    Box::pin(so_configured(majors, kills, counted, "")).await;
}

/// `replication`: lines of that section.
async fn so_configured(majors: &[u32], kills: u32, counted: bool, replication: &str) {
    let seed = std::env::var("TANDEM_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    eprintln!("TANDEM_TEST_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let builder = Cluster::of(majors)
        .relays()
        .replication(replication)
        .schema(SCHEMA);
    let builder = if counted {
        builder.sections(COUNTED)
    } else {
        builder
    };
    let mut cluster = builder.start().await;
    let mut writers = JoinSet::new();
    for node in &cluster.nodes {
        writers.spawn(write(node.clone(), random.u64(..)));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&stop);
    let written = tokio::spawn(async move {
        let histories = writers.join_all().await;
        ended.store(true, Ordering::Relaxed);
        histories
    });
    for _ in 0..kills {
        let pause = AtomicBool::new(false);
        let meanwhile = tokio::time::timeout(
            Duration::from_millis(random.u64(200..500)),
            disturb(&cluster, &mut random, &pause),
        );
        // The time over is what it is for.
        let _ = meanwhile.await;
        cluster.daemon.kill9().await;
        cluster.daemon.start().await;
    }
    disturb(&cluster, &mut random, &stop).await;
    let history = by_key(written.await.expect("the writers end"));
    cluster
        .converge(tandem_tests::cluster::CONVERGE_LIMIT)
        .await;
    let mut text = String::new();
    for node in &cluster.nodes {
        text.push_str(&deviations(node, &history, counted).await);
    }
    assert!(text.is_empty(), "TANDEM_TEST_SEED={seed}\n{text}");
    cluster.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_history_on_bad_links_ends_as_the_model_says() {
    ends_as_the_model_says(&[15, 15, 15], 0, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_history_on_bad_links_over_three_majors_ends_as_the_model_says() {
    ends_as_the_model_says(&[15, 17, 18], 0, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_history_with_killed_daemons_ends_as_the_model_says() {
    ends_as_the_model_says(&[15, 18, 15], 3, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_in_a_random_history_end_as_the_sum_of_all_contributions() {
    ends_as_the_model_says(&[15, 17, 18], 0, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_in_a_random_history_with_killed_daemons_end_as_the_sum_of_all_contributions() {
    ends_as_the_model_says(&[18, 15, 15], 3, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_history_applied_in_runs_ends_as_the_model_says() {
    Box::pin(so_configured(&[15, 17, 18], 0, false, "group_apply = 2")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_history_applied_in_runs_by_killed_daemons_ends_as_the_model_says() {
    Box::pin(so_configured(&[18, 15, 15], 3, false, "group_apply = 2")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_in_a_random_history_applied_in_runs_end_as_the_sum_of_all_contributions() {
    Box::pin(so_configured(&[15, 17, 18], 3, true, "group_apply = 2")).await;
}
