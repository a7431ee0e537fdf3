//! Owns the cases of many SCRAM logins: how many a second, and what they do to those who are in.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::generator::Generator;
use super::load::run_at;
use super::samples::Samples;
use super::stage::Stage;
use crate::{cpu_time, quantile};

/// Clients that log in, ask once, go, and come again.
const VISITORS: usize = 16;
/// Logins a second of the storm.
const STORM: f64 = 1_000.0;
/// Queries a second of those who are in.
const QUERIES: f64 = 1_000.0;

/// As many logins as go, each with one query.
pub(super) async fn logins(
    stage: &Stage,
    samples: &mut Samples,
    time: Duration,
) -> Result<(), Box<dyn Error>> {
    for way in stage.ways.iter().filter(|way| way.crowds) {
        let generator = Generator::new(stage, way, false)?;
        generator.visit().await?;
        let before = way.pid.map(cpu_time).transpose()?.unwrap_or_default();
        let (begin, mut visiting) = (Instant::now(), JoinSet::new());
        for _ in 0..VISITORS {
            let generator = generator.clone();
            visiting.spawn(async move {
                let mut count = 0_u32;
                while begin.elapsed() < time {
                    generator.visit().await?;
                    count += 1;
                }
                Ok::<_, String>(count)
            });
        }
        let mut count = 0.0;
        while let Some(visited) = visiting.join_next().await {
            count += f64::from(visited??);
        }
        let row = format!("{VISITORS} clients, one query a login");
        let rate = count / begin.elapsed().as_secs_f64();
        samples.add("SCRAM logins", &row, "logins/s", way.name, rate)?;
        let spent = way.pid.map(cpu_time).transpose()?.unwrap_or_default();
        let cpu = spent.saturating_sub(before).as_secs_f64() * 1e6 / count;
        samples.add("SCRAM logins", &row, "proxy CPU us", way.name, cpu)?;
    }
    Ok(())
}

/// The same queries at a fixed rate, without and with a storm of logins at a fixed rate.
pub(super) async fn measure(
    stage: &Stage,
    samples: &mut Samples,
    time: Duration,
) -> Result<(), Box<dyn Error>> {
    for way in stage.ways.iter().filter(|way| way.crowds) {
        let generator = Generator::new(stage, way, false)?;
        generator.visit().await?;
        for (row, storm) in [("quiet", false), ("1,000 logins/s", true)] {
            let come = Arc::new(AtomicUsize::new(0));
            let storm = storm.then(|| tokio::spawn(blow(generator.clone(), Arc::clone(&come))));
            let pgbench = stage.pgbench(way).args(["-S", "-c", "8"]);
            let ran = run_at(stage, way, pgbench, QUERIES, time).await?;
            if let Some(storm) = storm {
                storm.abort();
                #[allow(clippy::cast_precision_loss)]
                let rate = come.load(Ordering::Relaxed) as f64 / time.as_secs_f64();
                samples.add("login storm", row, "logins/s", way.name, rate)?;
            }
            for (figure, part) in [("p50 us", 0.5), ("p99 us", 0.99), ("longest us", 1.0)] {
                if let Some(latency) = quantile(&ran.latencies, part) {
                    samples.add("login storm", row, figure, way.name, latency)?;
                }
            }
        }
    }
    Ok(())
}

/// Logins at a fixed rate, until it is aborted.
async fn blow(generator: Generator, come: Arc<AtomicUsize>) {
    let mut visiting = JoinSet::new();
    let mut beat = tokio::time::interval(Duration::from_secs_f64(1.0 / STORM));
    loop {
        beat.tick().await;
        let (generator, come) = (generator.clone(), Arc::clone(&come));
        visiting.spawn(async move {
            match generator.visit().await {
                Ok(()) => come.fetch_add(1, Ordering::Relaxed),
                Err(error) => {
                    eprintln!("storm: {error}");
                    0
                }
            }
        });
        while visiting.try_join_next().is_some() {}
    }
}
