//! Owns the figure that does not change with the machine's mood: instructions of the proxy per transaction, as perf counts
//! them, in the program itself and in the kernel for it.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Duration;

use tandem_tests::Program;
use tandem_tests::template::{APP, DATABASE};

use super::load::{MODES, prepares, run};
use super::samples::Samples;
use super::stage::{Stage, Way};

/// `pgbench -S` in each mode, and with a login for each transaction.
pub(super) async fn measure(
    stage: &Stage,
    samples: &mut Samples,
    time: Duration,
) -> Result<(), Box<dyn Error>> {
    if !Path::new("/usr/bin/perf").exists() {
        eprintln!("SKIP: perf is not there");
        return Ok(());
    }
    for clients in ["8", "32"] {
        for mode in MODES {
            let row = format!("{mode}, {clients} clients");
            for way in stage.ways.iter().filter(|way| prepares(way, mode)) {
                count(
                    stage,
                    samples,
                    way,
                    &row,
                    &["-c", clients, "-M", mode],
                    time,
                )
                .await?;
            }
        }
    }
    for way in &stage.ways {
        count(
            stage,
            samples,
            way,
            "login each, 8 clients",
            &["-c", "8", "-C"],
            time,
        )
        .await?;
    }
    Ok(())
}

async fn count(
    stage: &Stage,
    samples: &mut Samples,
    way: &Way,
    row: &str,
    args: &[&str],
    time: Duration,
) -> Result<(), Box<dyn Error>> {
    let Some(pid) = way.pid else {
        return Ok(());
    };
    let counted = stage.dir().join("perf");
    let (file, pid) = (counted.display().to_string(), pid.to_string());
    let events = "instructions:u,instructions:k";
    let port = way.port.to_string();
    // perf counts for as long as the program behind `--` runs.
    let perf = Program::new("/usr/bin/perf")
        .env("PGSSLMODE", "disable")
        .env("PGUSER", APP)
        .args([
            "stat", "-x", ",", "-o", &file, "-e", events, "-p", &pid, "--",
        ])
        .args([stage.pgbench_path()])
        .args(["-h", "127.0.0.1", "-p", &port, "-n", "-S", "-j", "2"])
        .args(args.iter().chain(&[DATABASE]));
    // The options of pgbench may stand behind the database.
    let ran = run(way, perf, time).await?;
    let text = fs::read_to_string(&counted)?;
    for (event, figure) in [
        ("instructions:u", "own instructions"),
        ("instructions:k", "kernel's instructions"),
    ] {
        let line = text.lines().find(|line| line.contains(event));
        let number = line.and_then(|line| line.split(',').next()?.parse::<f64>().ok());
        if let Some(number) = number {
            let each = number / ran.transactions;
            samples.add("instructions per transaction", row, figure, way.name, each)?;
        }
    }
    Ok(())
}
