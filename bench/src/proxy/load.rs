//! Owns the cases that pgbench drives: as fast as it goes, at a fixed rate, with a login for each transaction.

use std::error::Error;
use std::fs;
use std::time::Duration;

use tandem_tests::Program;

use super::samples::Samples;
use super::stage::{Stage, Way};
use crate::{cpu_time, quantile};

type Done = Result<(), Box<dyn Error>>;

pub(super) const MODES: [&str; 3] = ["simple", "extended", "prepared"];
/// Of what the first proxy can do at most, in the fixed-rate case.
const LOAD: f64 = 0.4;

/// What came of one run.
#[derive(Debug, Default)]
pub(super) struct Ran {
    /// Without the time of the logins, unless each transaction has its own.
    pub(super) tps: f64,
    pub(super) transactions: f64,
    /// Microseconds of the proxy's CPU per transaction.
    pub(super) cpu_us: Option<f64>,
    /// Microseconds from when a transaction was due to its end, in order of size; empty when nobody asked.
    pub(super) latencies: Vec<f64>,
}

/// Runs pgbench for so long. pgbench counts whole seconds.
pub(super) async fn run(
    way: &Way,
    pgbench: Program,
    time: Duration,
) -> Result<Ran, Box<dyn Error>> {
    let before = way.pid.map(cpu_time).transpose()?;
    let seconds = time.as_secs_f64().round().max(1.0).to_string();
    let ran = pgbench
        .args(["-T", &seconds])
        .run(time + Duration::from_secs(60))
        .await;
    if !ran.status.success() {
        return Err(format!("{}: {}", way.name, ran.all()).into());
    }
    let number = |label: &str| {
        let mut lines = ran.stdout.lines();
        let rest = lines.find_map(|line| line.strip_prefix(label))?;
        rest.split_whitespace().next()?.parse::<f64>().ok()
    };
    let transactions = number("number of transactions actually processed: ")
        .ok_or_else(|| format!("pgbench says no number: {}", ran.stdout))?;
    let cpu_us = match (before, way.pid) {
        (Some(before), Some(pid)) => {
            Some(cpu_time(pid)?.saturating_sub(before).as_secs_f64() * 1e6 / transactions)
        }
        _ => None,
    };
    Ok(Ran {
        tps: number("tps = ").unwrap_or_default(),
        transactions,
        cpu_us,
        latencies: Vec::new(),
    })
}

/// As [`run`], at a fixed rate, and with the latency of each transaction.
pub(super) async fn run_at(
    stage: &Stage,
    way: &Way,
    pgbench: Program,
    rate: f64,
    time: Duration,
) -> Result<Ran, Box<dyn Error>> {
    let logs = stage.dir().join("pgbench-logs");
    fs::create_dir_all(&logs)?;
    let prefix = logs.join("log").display().to_string();
    let rate = format!("{:.0}", rate.max(1.0));
    let pgbench = pgbench.args(["-R", &rate, "-l", "--log-prefix", &prefix]);
    let mut ran = run(way, pgbench, time).await?;
    for entry in logs.read_dir()? {
        let text = fs::read_to_string(entry?.path())?;
        // client, transaction, microseconds, ...
        let latency = |line: &str| line.split(' ').nth(2)?.parse::<f64>().ok();
        ran.latencies.extend(text.lines().filter_map(latency));
    }
    fs::remove_dir_all(&logs)?;
    ran.latencies.sort_by(f64::total_cmp);
    Ok(ran)
}

fn add(samples: &mut Samples, case: &str, row: &str, way: &Way, ran: &Ran) -> Done {
    samples.add(case, row, "TPS", way.name, ran.tps)?;
    if let Some(cpu) = ran.cpu_us {
        samples.add(case, row, "proxy CPU us", way.name, cpu)?;
    }
    Ok(())
}

/// `pgbench -S`.
pub(super) async fn select(
    stage: &Stage,
    samples: &mut Samples,
    clients: &str,
    time: Duration,
) -> Done {
    for mode in MODES {
        let row = format!("{mode}, {clients} clients");
        let there = stage.ways.iter().filter(|way| prepares(way, mode));
        // There and back again: a machine that gets slower or faster meanwhile does so for all.
        for way in there.clone().chain(there.rev()) {
            let pgbench = stage.pgbench(way).args(["-S", "-c", clients, "-M", mode]);
            let ran = run(way, pgbench, time).await?;
            add(samples, "pgbench -S", &row, way, &ran)?;
        }
    }
    Ok(())
}

/// PgBouncer 1.18 knows nothing of prepared statements.
pub(super) fn prepares(way: &Way, mode: &str) -> bool {
    way.name != "pgbouncer 1.18" || mode != "prepared"
}

/// pgbench's own script. With prepared statements it blocks all clients of a thread while one prepares, those in a
/// transaction included: no more clients than servers.
pub(super) async fn tpcb(stage: &Stage, samples: &mut Samples, time: Duration) -> Done {
    for (mode, clients) in [
        ("simple", "8"),
        ("simple", "32"),
        ("extended", "32"),
        ("prepared", "8"),
    ] {
        for way in stage.ways.iter().filter(|way| prepares(way, mode)) {
            let pgbench = stage.pgbench(way).args(["-c", clients, "-M", mode]);
            let ran = run(way, pgbench, time).await?;
            let row = format!("{mode}, {clients} clients");
            add(samples, "TPC-B", &row, way, &ran)?;
        }
    }
    Ok(())
}

/// `pgbench -S` at a part of what the first proxy can do.
pub(super) async fn rate(stage: &Stage, samples: &mut Samples, time: Duration) -> Done {
    let case = "pgbench -S at 40 % of saturation";
    for (mode, clients) in [("simple", "8"), ("simple", "32"), ("prepared", "32")] {
        let row = format!("{mode}, {clients} clients");
        let pgbench = |way| stage.pgbench(way).args(["-S", "-c", clients, "-M", mode]);
        let first = stage.ways.iter().find(|way| way.pid.is_some());
        let first = first.ok_or("no proxy to measure")?;
        let rate = run(first, pgbench(first), time / 2).await?.tps * LOAD;
        for way in stage.ways.iter().filter(|way| prepares(way, mode)) {
            let ran = run_at(stage, way, pgbench(way), rate, time).await?;
            add(samples, case, &row, way, &ran)?;
            for (figure, part) in [("p50 us", 0.5), ("p99 us", 0.99)] {
                if let Some(latency) = quantile(&ran.latencies, part) {
                    samples.add(case, &row, figure, way.name, latency)?;
                }
            }
        }
    }
    Ok(())
}

/// `pgbench -S -C`: a login for each transaction. pgbench derives its SCRAM keys anew each time, which is most of the time
/// that it takes: the proxy's CPU is what counts. The servers have no TLS, so neither have the ways that are no pools.
pub(super) async fn churn(stage: &Stage, samples: &mut Samples, time: Duration) -> Done {
    for (row, mode) in [("8 clients", "disable"), ("8 clients, TLS", "prefer")] {
        for way in &stage.ways {
            let pgbench = stage.pgbench(way).env("PGSSLMODE", mode);
            let ran = run(way, pgbench.args(["-S", "-C", "-c", "8"]), time).await?;
            add(samples, "pgbench -S -C", row, way, &ran)?;
        }
    }
    Ok(())
}
