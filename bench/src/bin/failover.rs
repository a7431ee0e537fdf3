//! What a node's loss costs, beside HAProxy: `failover [scenario ...]`, all by default.
//!
//! `BENCH_RATE` (400) transactions a second, `BENCH_ROUNDS` (1), `BENCH_SAMPLES` (a file: samples of earlier runs count too).

use std::error::Error;
use std::path::PathBuf;

use tandem_bench::failover::{Course, PEERS, Primaries, SCENARIOS, Tandem};
use tandem_bench::proxy::Samples;

/// What HAProxy is drilled with too.
const PEERS_SCENARIOS: [&str; 2] = ["kill", "stop"];

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tandem_wire::tls::install_crypto_provider();
    let number = |name: &str, default: u32| match std::env::var(name) {
        Ok(text) => text.parse(),
        Err(_) => Ok(default),
    };
    let course = Course::new(number("BENCH_RATE", 400)?);
    let rounds = number("BENCH_ROUNDS", 1)?;
    let mut samples = Samples::open(std::env::var_os("BENCH_SAMPLES").map(PathBuf::from))?;
    let mut scenarios: Vec<String> = std::env::args().skip(1).collect();
    if scenarios.is_empty() {
        scenarios = SCENARIOS.map(str::to_owned).into();
    }
    if let Some(other) = scenarios
        .iter()
        .find(|one| !SCENARIOS.contains(&one.as_str()))
    {
        let known = SCENARIOS.join(", ");
        return Err(format!("there is no scenario {other:?}; there are {known}").into());
    }
    for _ in 0..rounds {
        let tandem = Tandem::start().await;
        for scenario in &scenarios {
            eprintln!("{scenario}: tandem");
            tandem.drill(scenario, course, &mut samples).await?;
        }
        tandem.end().await;
        let mut primaries = Primaries::start().await;
        let both = scenarios
            .iter()
            .filter(|one| PEERS_SCENARIOS.contains(&one.as_str()));
        for scenario in both {
            for kind in PEERS {
                eprintln!("{scenario}: {kind:?}");
                primaries
                    .drill(kind, scenario, course, &mut samples)
                    .await?;
            }
        }
    }
    eprintln!("{}", samples.tables());
    Ok(())
}
