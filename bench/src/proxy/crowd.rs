//! Owns the case of far more clients than servers: whether all are served, and in turn.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_wire::Connection;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::generator::{Generator, QUERY};
use super::samples::Samples;
use super::stage::{Stage, Way};
use crate::quantile;

/// Clients, on a pool of 20.
const CLIENTS: usize = 5_000;

/// Every client asks again as soon as it has an answer.
pub(super) async fn measure(
    stage: &Stage,
    samples: &mut Samples,
    time: Duration,
) -> Result<(), Box<dyn Error>> {
    for way in stage.ways.iter().filter(|way| way.crowds) {
        let (waits, errors) = all_at_once(stage, way, time).await?;
        let quantile = |part| quantile(&waits, part).unwrap_or_default() / 1_000.0;
        let (median, longest) = (quantile(0.5), quantile(1.0));
        #[allow(clippy::cast_precision_loss)]
        let figures = [
            ("queries/s", waits.len() as f64 / time.as_secs_f64()),
            ("median ms", median),
            ("p99 ms", quantile(0.99)),
            ("longest ms", longest),
            ("longest of median", longest / median),
            ("errors", errors as f64),
        ];
        for (figure, value) in figures {
            samples.add(
                "crowd",
                "5,000 clients, pool of 20",
                figure,
                way.name,
                value,
            )?;
        }
    }
    Ok(())
}

/// Microseconds of every query, in order of size, and how many failed.
async fn all_at_once(
    stage: &Stage,
    way: &Way,
    time: Duration,
) -> Result<(Vec<f64>, usize), Box<dyn Error>> {
    let clients = Generator::new(stage, way, false)?.crowd(CLIENTS).await?;
    let start = Arc::new(Barrier::new(CLIENTS));
    let mut asking = JoinSet::new();
    for client in clients {
        asking.spawn(ask(client, Arc::clone(&start), time));
    }
    let (mut waits, mut errors) = (Vec::new(), 0);
    while let Some(asked) = asking.join_next().await {
        let (of_one, failed) = asked?;
        waits.extend(of_one);
        errors += usize::from(failed);
    }
    waits.sort_by(f64::total_cmp);
    Ok((waits, errors))
}

async fn ask(mut client: Connection, start: Arc<Barrier>, time: Duration) -> (Vec<f64>, bool) {
    start.wait().await;
    let end = Instant::now() + time;
    let mut waits = Vec::new();
    loop {
        let asked = Instant::now();
        if asked >= end {
            return (waits, false);
        }
        if client.simple_query(QUERY).await.is_err() {
            return (waits, true);
        }
        waits.push(asked.elapsed().as_secs_f64() * 1e6);
    }
}
