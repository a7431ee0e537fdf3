//! Writers: random transactions on one node, and what each that was committed left behind.

use std::{collections::BTreeMap, time::Duration};

use fastrand::Rng;
use tandem_tests::{Node, client};
use tokio::time::Instant;
use tokio_postgres::{Client, Error};

/// Few, so that they are fought over.
pub(super) const KEYS: i32 = 12;
/// Values of the column that has to be unique in some tables.
const PLACES: i32 = 30;
const TRANSACTIONS: i32 = 250;
/// Pause before a node that is away is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How long a node may be away.
const AWAY_LIMIT: Duration = Duration::from_secs(60);

/// Microseconds since the epoch, and node: the order of versions.
pub(super) type Version = (i64, u16);

/// A table and a key.
pub(super) type Key = (&'static str, i32);

/// What stands in a row.
pub(super) type Content = (String, Option<i32>);

/// What one committed transaction did.
#[derive(Debug)]
pub(super) struct Written {
    pub version: Version,
    /// What it left under the keys that it touched; `None` where it deleted.
    pub rows: BTreeMap<Key, Option<Content>>,
    /// What it added to the counters of the keys.
    pub added: Vec<(Key, i64)>,
}

/// A table that is written to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    pub name: &'static str,
    /// Whether rows collide on their place.
    pub collides: bool,
}

/// What a writer does.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub tables: Vec<Table>,
    /// Whether tables are truncated now and then, and some values are large.
    pub coarse: bool,
    /// Whether some transactions are so large that they come in parts.
    pub bulky: bool,
}

/// Writes more than comes in one piece: six megabytes that do not compress.
async fn write_ballast(client: &Client, node: &Node, number: i32) -> Result<(), Error> {
    let sql = format!(
        "INSERT INTO ballast SELECT {}, {number}, g, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 64) i) \
         FROM generate_series(1, 3000) g",
        node.id
    );
    client.batch_execute(&sql).await
}

/// The row that a statement left under a key, and what it added to the key's counter.
type Touched = (Key, Option<Content>, i64);

/// One random statement; answers what it did under each key that it touched.
async fn change(
    client: &Client,
    random: &mut Rng,
    plan: &Plan,
    value: &str,
) -> Result<Vec<Touched>, Error> {
    let table = plan.tables[random.usize(..plan.tables.len())];
    let name = table.name;
    let (key, to) = (random.i32(1..=KEYS), random.i32(1..=KEYS));
    let amount = random.i32(-9..=9);
    let place = (table.collides && random.bool()).then(|| random.i32(1..=PLACES));
    let place = place.map_or_else(|| "NULL::int".to_owned(), |place| place.to_string());
    let large = plan.coarse && random.u32(..20) == 0;
    // Does not compress; NULL where it shall be small.
    let padding = format!(
        "(SELECT string_agg(md5('{value}' || i), '') FROM generate_series(1, {}) i)",
        if large { 1280 } else { 0 }
    );
    let choice = random.u32(..10);
    if plan.coarse && random.u32(..60) == 0 {
        return truncate(client, name).await;
    }
    let returning = format!("RETURNING id, value, place, {amount}");
    let sql = match choice {
        0..=2 => format!(
            "INSERT INTO {name} AS r VALUES ({key}, '{value}', {padding}, {amount}, {place}) ON CONFLICT (id) DO UPDATE \
             SET value = '{value}', hits = r.hits + {amount}, place = {place} {returning}"
        ),
        3 => format!(
            "INSERT INTO {name} VALUES ({key}, '{value}', {padding}, {amount}, {place}) ON CONFLICT (id) DO NOTHING {returning}"
        ),
        4..=5 => format!(
            "UPDATE {name} SET value = '{value}', hits = hits + {amount}, place = {place} WHERE id = {key} {returning}"
        ),
        6 => format!("UPDATE {name} SET hits = hits + {amount} WHERE id = {key} {returning}"),
        7..=8 => format!("DELETE FROM {name} WHERE id = {key} RETURNING id, value, place, -hits"),
        _ => format!(
            "UPDATE {name} SET id = {to} WHERE id = {key} AND {to} <> {key} AND NOT EXISTS (SELECT FROM {name} WHERE id = {to}) \
             RETURNING id, value, place, hits"
        ),
    };
    let rows = client.query(&sql, &[]).await?;
    let touched = rows.iter().flat_map(|row| {
        let content: Content = (row.get(1), row.get(2));
        let (id, added) = (row.get(0), i64::from(row.get::<_, i32>(3)));
        match choice {
            7..=8 => vec![((name, id), None, added)],
            9 => vec![
                ((name, key), None, -added),
                ((name, id), Some(content), added),
            ],
            _ => vec![((name, id), Some(content), added)],
        }
    });
    Ok(touched.collect())
}

/// A TRUNCATE deletes under every key, whether there is a row or not.
async fn truncate(client: &Client, name: &'static str) -> Result<Vec<Touched>, Error> {
    let lock = format!("LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE");
    client.batch_execute(&lock).await?;
    let rows = client
        .query(&format!("SELECT id, -hits FROM {name}"), &[])
        .await?;
    client.batch_execute(&format!("TRUNCATE {name}")).await?;
    let taken: BTreeMap<i32, i32> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let touched = (1..=KEYS).map(|key| {
        let taken = taken.get(&key).copied().unwrap_or(0);
        ((name, key), None, taken.into())
    });
    Ok(touched.collect())
}

/// Runs random transactions of one to four statements on one node, which may go away and come back.
pub(super) async fn write(node: Node, seed: u64, plan: Plan) -> Vec<Written> {
    let mut random = Rng::with_seed(seed);
    let mut client = node.connect().await;
    let mut history = Vec::new();
    for number in 0..TRANSACTIONS {
        let mut done = Done::default();
        let name = (&node, number);
        let committed = transaction(&client, &mut random, &plan, name, &mut done).await;
        // Where the node went away, what it knows when it is back tells what became of the transaction.
        if !matches!(committed, Ok(false)) && !done.rows.is_empty() {
            let (connected, timestamp) = committed_at(&node, client, number).await;
            client = connected;
            assert!(timestamp.is_some() || committed.is_err(), "lost at once");
            history.extend(timestamp.map(|timestamp| Written {
                version: (timestamp, node.id),
                rows: done.rows,
                added: done.added,
            }));
        } else if let Err(error) = committed {
            assert!(
                client.is_closed() || error.as_db_error().is_some(),
                "{}: {}",
                node.name,
                client::describe(&error)
            );
            client = again(&node).await;
        }
        if random.bool() {
            tokio::time::sleep(Duration::from_millis(random.u64(..6))).await;
        }
    }
    history
}

/// What a transaction has done so far.
#[derive(Debug, Default)]
struct Done {
    rows: BTreeMap<Key, Option<Content>>,
    added: Vec<(Key, i64)>,
}

/// Answers whether it is committed.
async fn transaction(
    client: &Client,
    random: &mut Rng,
    plan: &Plan,
    (node, number): (&Node, i32),
    done: &mut Done,
) -> Result<bool, Error> {
    let statements = random.usize(1..=4);
    client.batch_execute("BEGIN").await?;
    let mut failed = false;
    if plan.bulky && random.u32(..100) == 0 {
        write_ballast(client, node, number).await?;
    }
    for statement in 0..statements {
        let value = format!("{} {number}.{statement}", node.name);
        match change(client, random, plan, &value).await {
            Ok(touched) => {
                for (key, row, amount) in touched {
                    done.rows.insert(key, row);
                    done.added.push((key, amount));
                }
            }
            // A deadlock or a duplicate with what is being applied: the transaction is as if it had never been.
            Err(error) if error.as_db_error().is_some() => {
                failed = true;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    if failed || random.u32(..12) == 0 {
        client.batch_execute("ROLLBACK").await?;
        return Ok(false);
    }
    if !done.rows.is_empty() {
        let sql = format!("INSERT INTO done VALUES ({}, {number})", node.id);
        client.batch_execute(&sql).await?;
    }
    client.batch_execute("COMMIT").await?;
    Ok(true)
}

/// A new session, once the node answers again.
async fn again(node: &Node) -> Client {
    let deadline = Instant::now() + AWAY_LIMIT;
    loop {
        match client::connect(node.port(), "postgres", None, "app").await {
            Ok(client) => return client,
            Err(error) => assert!(
                Instant::now() < deadline,
                "{} does not come back: {}",
                node.name,
                client::describe(&error)
            ),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// When a node has committed a transaction of its own, if it has; answers the session that knows, too.
async fn committed_at(node: &Node, mut client: Client, number: i32) -> (Client, Option<i64>) {
    let sql = format!(
        "SELECT (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint FROM done \
         WHERE node = {} AND number = {number}",
        node.id
    );
    loop {
        match client.query_opt(&sql, &[]).await {
            Ok(row) => return (client, row.map(|row| row.get(0))),
            Err(_) => client = again(node).await,
        }
    }
}
