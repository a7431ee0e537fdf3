//! Tandem's proxy beside PgBouncer, HAProxy and no proxy: `proxy [case ...]`, all cases by default.
//!
//! `BENCH_ROUNDS` (1), `BENCH_SIZE` (1.0, stretches the time of each cell), `BENCH_SAMPLES` (a file: samples of
//! earlier runs count too), `BENCH_WAYS` (names, by semicolon), `PGBOUNCER_CURRENT` (a program). With the only case
//! `tables` nothing is measured. The idle cases want a run of their own each: memory that was given back before counts
//! for nothing.

use std::error::Error;
use std::path::PathBuf;

use tandem_bench::proxy::{CASES, Samples, Stage, measure};

// One thread: the order in which the generator's clients get on is theirs then, not that of a scheduler's queues.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    tandem_wire::tls::install_crypto_provider();
    let file = std::env::var_os("BENCH_SAMPLES").map(PathBuf::from);
    let mut samples = Samples::open(file)?;
    let mut cases: Vec<String> = std::env::args().skip(1).collect();
    if cases.is_empty() {
        cases = CASES.map(str::to_owned).into();
    }
    if cases != ["tables"] {
        raise_descriptor_limit()?;
        let number = |name: &str| std::env::var(name).ok()?.parse::<f64>().ok();
        let scale = number("BENCH_SIZE").unwrap_or(1.0);
        let mut rounds = number("BENCH_ROUNDS").unwrap_or(1.0);
        let mut stage = Stage::start().await?;
        while rounds >= 1.0 {
            for case in &cases {
                eprintln!("{case}");
                measure(case, &stage, &mut samples, scale).await?;
            }
            // Who comes first changes from round to round.
            stage.ways.rotate_left(1);
            rounds -= 1.0;
        }
    }
    eprintln!("{}", samples.tables());
    Ok(())
}

/// Some cases have ten thousand connections, and so have the programs that are started from here.
fn raise_descriptor_limit() -> std::io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let all = Rlimit {
        current: maximum,
        maximum,
    };
    Ok(setrlimit(Resource::Nofile, all)?)
}
