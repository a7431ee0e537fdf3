//! Commit-to-visible lag at a fixed rate: one client commits on the source, another asks the target without pause.

use std::time::{Duration, Instant};

use tandem_tests::Node;
use tokio::runtime::Builder;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_postgres::{Client, Error};

/// Transactions a second.
pub const RATE: u32 = 500;
/// How long the last ones may take to become visible.
const LIMIT: Duration = Duration::from_secs(30);

/// Lags of one run.
#[derive(Debug, Clone, Copy)]
pub struct Lag {
    /// Median, milliseconds.
    pub p50_ms: f64,
    /// 99th percentile, milliseconds.
    pub p99_ms: f64,
    /// The largest, milliseconds.
    pub max_ms: f64,
    /// Commits a second that the source really made.
    pub rate: f64,
}

/// Commits [`RATE`] rows a second on the source for `seconds`. A lag runs from when the client has the reply of its
/// commit until the reply with the row has come from the target; one that is visible before has none.
///
/// # Errors
/// A server refuses.
///
/// # Panics
/// The target does not get the rows.
pub async fn measure(source: &Node, target: &Node, seconds: u32) -> Result<Lag, Error> {
    let count = RATE * seconds;
    let client = source.connect().await;
    let first = highest(&client, &client.prepare(HIGHEST).await?).await? + 1;
    let polling = alone(poll(target.clone(), first, count));
    let writing = alone(write(source.clone(), first, count));
    let committed = writing.await.expect("not cancelled")?;
    let visible = polling.await.expect("not cancelled")?;
    let took = committed
        .last()
        .zip(committed.first())
        .map_or(Duration::ZERO, |(last, first)| *last - *first);
    let mut lags: Vec<f64> = committed
        .iter()
        .zip(&visible)
        .map(|(committed, visible)| {
            visible.saturating_duration_since(*committed).as_secs_f64() * 1000.0
        })
        .collect();
    lags.sort_by(f64::total_cmp);
    let at = |part: usize| lags.get((lags.len() * part / 100).min(lags.len() - 1));
    Ok(Lag {
        p50_ms: at(50).copied().unwrap_or_default(),
        p99_ms: at(99).copied().unwrap_or_default(),
        max_ms: at(100).copied().unwrap_or_default(),
        rate: f64::from(count) / took.as_secs_f64(),
    })
}

const HIGHEST: &str = "SELECT coalesce(max(id), 0) FROM lag";

async fn highest(client: &Client, statement: &tokio_postgres::Statement) -> Result<i64, Error> {
    client.query_one(statement, &[]).await?.try_get(0)
}

/// On one thread with its connection: handed from thread to thread, each question would take several times as long, and take the
/// processors away from what is measured.
fn alone<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    spawn_blocking(move || {
        let runtime = Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(work)
    })
}

/// Answers when each row was visible first.
async fn poll(target: Node, first: i64, count: u32) -> Result<Vec<Instant>, Error> {
    let client = target.connect().await;
    let statement = client.prepare(HIGHEST).await?;
    let last = first + i64::from(count);
    let mut visible = Vec::with_capacity(count as usize);
    let deadline = Instant::now() + Duration::from_secs((count / RATE).into()) + LIMIT;
    let mut next = first;
    while next < last {
        let now_visible = highest(&client, &statement).await?;
        let now = Instant::now();
        assert!(
            now < deadline,
            "row {next} is not visible on {}",
            target.name
        );
        while next <= now_visible {
            visible.push(now);
            next += 1;
        }
    }
    Ok(visible)
}

/// Answers when each commit was acknowledged.
async fn write(source: Node, first: i64, count: u32) -> Result<Vec<Instant>, Error> {
    let client = source.connect().await;
    let insert = client.prepare("INSERT INTO lag VALUES ($1, 'x')").await?;
    let mut committed = Vec::with_capacity(count as usize);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE);
    for id in first..first + i64::from(count) {
        ticks.tick().await;
        client.execute(&insert, &[&id]).await?;
        committed.push(Instant::now());
    }
    Ok(committed)
}
