//! pgbench on three nodes with slow links, each transaction at the home of its branch, and each where its session is:
//! conflicts, beside each other in one run.
//!
//! `BENCH_SECONDS` (60) for each cell, `BENCH_RATE` (60) transactions a second: more conflicts than that are not resolved as fast as they come.

use std::error::Error;
use std::time::Duration;

use tandem_bench::routing::{Load, Stage, Writes};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let number = |name: &str, default: u32| match std::env::var(name) {
        Ok(text) => text.parse(),
        Err(_) => Ok(default),
    };
    let (seconds, rate) = (number("BENCH_SECONDS", 60)?, number("BENCH_RATE", 60)?);
    eprintln!(
        "| protocol | writes go | transactions | failed | conflicts | of 1,000 | missing in the sum | latency ms |"
    );
    eprintln!("|---|---|---|---|---|---|---|---|");
    for (writes, name) in [
        (Writes::Home, "to the home of their branch"),
        (Writes::Nearest, "to the nearest node"),
    ] {
        let stage = Stage::start(writes).await?;
        for protocol in ["simple", "extended", "prepared"] {
            let load = Load {
                protocol,
                rate,
                time: Duration::from_secs(seconds.into()),
            };
            let ran = stage.run(load).await?;
            #[allow(clippy::cast_precision_loss)]
            let share = 1000.0 * ran.conflicts as f64 / ran.transactions.max(1) as f64;
            eprintln!(
                "| {protocol} | {name} | {} | {} | {} | {share:.1} | {} | {:.1} |",
                ran.transactions, ran.failed, ran.conflicts, ran.missing, ran.latency_ms
            );
        }
    }
    Ok(())
}
