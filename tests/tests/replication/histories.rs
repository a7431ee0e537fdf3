//! Random histories against a model: whatever is written where, and whatever fails meanwhile, every node ends with the
//! newest version of each key, and with nothing else; counters with the sum of what was added.
//!
//! The seed is printed. The same seed gives the same operations and faults; what the scheduler makes of them may differ.
//! `make soak` takes seed after seed for `SOAK_MINUTES`, from `SOAK_SEED` on.

mod faults;
mod model;
mod write;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use faults::{Faults, disturb};
use model::{History, Shown};
use tandem_tests::{
    Cluster, Node, audit, client,
    seeds::{Enough, Seeds, number_of},
};
use tokio::task::JoinSet;
use write::{Content, KEYS, Plan, Table};

/// How long the nodes may take to converge after the worst.
const CONVERGE_LIMIT: Duration = Duration::from_secs(120);
/// Histories of one run of the tests.
const SEEDS: u64 = 20;
/// Histories at the same time.
const AT_ONCE: usize = 2;

const ITEM: Table = Table {
    name: "item",
    collides: false,
};
const PLAIN: Table = Table {
    name: "plain",
    collides: false,
};
const SEAT: Table = Table {
    name: "seat",
    collides: true,
};

/// A line of each transaction that is committed.
const DONE: &str = "CREATE TABLE done (node int, number int, PRIMARY KEY (node, number));";

/// What makes some of them large.
const BALLAST: &str = "CREATE TABLE ballast (node int, number int, line int, value text, PRIMARY KEY (node, number, line));";

/// What a history is like.
#[derive(Debug, Clone)]
struct Kind {
    majors: [u32; 3],
    faults: Faults,
    /// Whether `item` has a counter.
    counted: bool,
    plan: Plan,
    /// Lines of `[replication]`.
    replication: &'static str,
}

impl Kind {
    fn item(majors: [u32; 3], kills: u32, counted: bool) -> Self {
        Self {
            majors,
            faults: Faults::Links { kills },
            counted,
            plan: Plan {
                tables: vec![ITEM],
                coarse: false,
                bulky: false,
            },
            replication: "",
        }
    }

    /// Wherever two transactions are there to be merged they are.
    fn in_runs(mut self) -> Self {
        self.replication = "group_apply = 2";
        self
    }

    /// All tables, all faults, and the rest by the seed.
    fn of(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let majors = [[15, 17, 18], [15, 15, 15], [18, 15, 17], [18, 18, 15]];
        let replication = [
            "",
            "group_apply = 2",
            "journal_carry_after = \"100ms\"",
            "journal_max = \"1MB\"\njournal_carry_after = \"100ms\"",
        ];
        Self {
            majors: majors[random.usize(..majors.len())],
            faults: Faults::All,
            counted: random.bool(),
            plan: Plan {
                tables: vec![ITEM, PLAIN, SEAT],
                coarse: true,
                bulky: random.u32(..3) == 0,
            },
            replication: replication[random.usize(..replication.len())],
        }
    }

    fn schema(&self) -> String {
        let table = |table: &Table| {
            format!(
                "CREATE TABLE {} (id int PRIMARY KEY, value text NOT NULL, padding text, hits int NOT NULL, place int{});",
                table.name,
                if table.collides { " UNIQUE" } else { "" }
            )
        };
        let tables: String = self.plan.tables.iter().map(table).collect();
        format!("{tables} {DONE} {BALLAST}")
    }

    fn counts(&self, table: Table) -> bool {
        self.counted && table.name == ITEM.name
    }
}

async fn rows(node: &Node, table: Table, counted: bool) -> BTreeMap<i32, Shown> {
    let sql = format!("SELECT id, value, place, hits FROM {}", table.name);
    let rows = node.connect().await.query(&sql, &[]).await;
    let rows = rows.unwrap_or_else(|error| panic!("{}: {}", node.name, client::describe(&error)));
    let shown = rows.iter().map(|row| {
        let content: Content = (row.get(1), row.get(2));
        let hits = counted.then(|| i64::from(row.get::<_, i32>(3)));
        (row.get(0), (content, hits))
    });
    shown.collect()
}

/// What a node has and should not, or has not and should, with the last versions of each such key, and what the node and
/// its WAL say of it.
async fn deviations(node: &Node, history: &History, table: Table, counted: bool) -> String {
    let (found, wanted) = (
        rows(node, table, counted).await,
        history.rows(table, counted),
    );
    let mut text = String::new();
    for key in (1..=KEYS).filter(|key| found.get(key) != wanted.get(key)) {
        let (found, wanted) = (found.get(&key), wanted.get(&key));
        text.push_str(&format!(
            "{} has {found:?} under key {key} of {}, the model {wanted:?}; newest versions first:\n",
            node.name, table.name
        ));
        let versions = history.versions.get(&(table.name, key));
        for ((timestamp, by), value) in versions.into_iter().flatten().rev().take(6) {
            text.push_str(&format!("  {timestamp} on n{by}: {value:?}\n"));
        }
        let added = history.added.get(&(table.name, key));
        for ((timestamp, by), amount) in added.into_iter().flatten().rev() {
            text.push_str(&format!("  {timestamp} on n{by} added {amount}\n"));
        }
        text.push_str(&remembered(node, table, key).await);
        let name = table.name;
        let row = format!("public.{name}: ");
        let line = format!("'\"public\".\"{name}\"' key[jsonb]:'[{key}]'");
        let changes = audit::changes(node, &[&line, &format!("id[integer]:{key} ")]).await;
        let changes = changes
            .lines()
            .filter(|change| !change.contains("table public.") || change.contains(&row));
        text.extend(changes.map(|change| format!("{}\n", short(change))));
    }
    text
}

/// Without the values that are there for their size only.
fn short(line: &str) -> String {
    line.chars().take(400).collect()
}

/// The lines about a key in Tandem's own tables.
async fn remembered(node: &Node, table: Table, key: i32) -> String {
    let client = node.connect().await;
    let us = "(extract(epoch FROM";
    let name = table.name;
    let tombstones = format!(
        "SELECT 'delete remembered: ' || {us} deleted) * 1000000)::bigint || ' of n' || node || coalesce(' with ' || counters::text, '') \
         FROM tandem.tombstone WHERE relation = '\"public\".\"{name}\"' AND key IN ('[{key}]', '[]')"
    );
    let conflicts = format!(
        "SELECT type || ' ' || outcome || ', local ' || coalesce({us} local_timestamp) * 1000000)::bigint || ' of n' || local_node, '-') \
         || ', remote ' || {us} remote_timestamp) * 1000000)::bigint || ' of n' || remote_node FROM tandem.conflict \
         WHERE relation = 'public.{name}' AND coalesce(remote_image->>'id', local_image->>'id') = '{key}' ORDER BY id DESC LIMIT 6"
    );
    let shadowed = format!(
        "SELECT 'shadowed: ' || left(s::text, 300) FROM tandem.shadow s WHERE s::text LIKE '%{name}%' AND key = '[{key}]'"
    );
    let mut text = String::new();
    for sql in [tombstones, conflicts, shadowed] {
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

async fn ends_as_the_model_says(kind: &Kind, seed: u64) {
    let mut random = Rng::with_seed(seed);
    let builder = Cluster::of(&kind.majors)
        .relays()
        .schema(&kind.schema())
        .replication(kind.replication);
    let builder = if kind.counted {
        builder.sections("[replication.table.\"public.item\"]\ncounters = [\"hits\"]")
    } else {
        builder
    };
    let mut cluster = builder.start().await;
    audit::begin(&cluster.nodes).await;
    let mut writers = JoinSet::new();
    for node in &cluster.nodes {
        writers.spawn(write::write(
            node.clone(),
            random.u64(..),
            kind.plan.clone(),
        ));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&stop);
    let written = tokio::spawn(async move {
        let histories = writers.join_all().await;
        ended.store(true, Ordering::Relaxed);
        histories
    });
    disturb(&mut cluster, &mut random, kind.faults, &stop).await;
    let written = written.await.expect("the writers end");
    let committed: usize = written.iter().map(Vec::len).sum();
    let history = History::of(written);
    cluster.converge(CONVERGE_LIMIT).await;
    let mut text = String::new();
    for node in &cluster.nodes {
        let done = node.value("SELECT count(*) FROM done").await;
        if done != committed.to_string() {
            let name = &node.name;
            text.push_str(&format!("{name} has {done} transactions of {committed}\n"));
        }
        for &table in &kind.plan.tables {
            text.push_str(&deviations(node, &history, table, kind.counts(table)).await);
        }
    }
    if !text.is_empty() {
        audit::keep(&cluster).await;
    }
    assert!(text.is_empty(), "{text}");
    cluster.assert_equal().await;
}

async fn one(kind: Kind) {
    let seed = number_of("TANDEM_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    eprintln!("TANDEM_TEST_SEED={seed}");
    ends_as_the_model_says(&kind, seed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_history_on_bad_links_ends_as_the_model_says() {
    one(Kind::item([15, 15, 15], 0, false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_history_on_bad_links_over_three_majors_ends_as_the_model_says() {
    one(Kind::item([15, 17, 18], 0, false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_history_with_killed_daemons_ends_as_the_model_says() {
    one(Kind::item([15, 18, 15], 3, false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_in_a_random_history_end_as_the_sum_of_all_contributions() {
    one(Kind::item([15, 17, 18], 0, true)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_in_a_random_history_with_killed_daemons_end_as_the_sum_of_all_contributions() {
    one(Kind::item([18, 15, 15], 3, true)).await;
}

#[test]
fn random_histories_with_every_fault_end_as_the_model_says() {
    let minutes = number_of("SOAK_MINUTES").map(|minutes| Duration::from_secs(60 * minutes));
    let seeds = Seeds {
        test: (
            "replication",
            "histories::random_histories_with_every_fault_end_as_the_model_says",
        ),
        at_once: AT_ONCE,
    };
    let enough = minutes.map_or(Enough::Count(SEEDS), Enough::Time);
    seeds.take(enough, async |seed| {
        let kind = Kind::of(seed);
        eprintln!("seed {seed}: {kind:?}");
        ends_as_the_model_says(&kind, seed).await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_history_applied_in_runs_ends_as_the_model_says() {
    one(Kind::item([15, 17, 18], 0, false).in_runs()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_history_applied_in_runs_by_killed_daemons_ends_as_the_model_says() {
    one(Kind::item([18, 15, 15], 3, false).in_runs()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_in_a_random_history_applied_in_runs_end_as_the_sum_of_all_contributions() {
    one(Kind::item([15, 17, 18], 3, true).in_runs()).await;
}
