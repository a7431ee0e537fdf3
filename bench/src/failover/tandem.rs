//! Owns three nodes as `tandem dev` makes them, and what `tandem drill` reports of each scenario.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tandem_tests::dev::{Dev, Running};
use tandem_tests::{Program, daemon};

use super::{Course, SCALE};
use crate::proxy::Samples;

/// What can befall a node.
pub const SCENARIOS: [&str; 6] = ["kill", "stop", "partition", "drain", "restart", "flap"];
const WAY: &str = "tandem";
/// How long a drill may take.
const LIMIT: Duration = Duration::from_secs(600);
/// What the report has of each run, and what it is called in the table.
const FIGURES: [(&str, &str); 9] = [
    ("gap_moved_ms", "gap of its keys, ms"),
    ("gap_other_ms", "gap of other keys, ms"),
    ("max_ms", "slowest transaction, ms"),
    ("failed", "failed"),
    ("retried", "retried"),
    ("clients_lost", "pgbench's clients lost, of 16"),
    ("acknowledged", "ledger: writes"),
    ("unknown", "ledger: told nobody"),
    ("connections_lost", "ledger: connections lost"),
];

/// A running cluster.
#[derive(Debug)]
pub struct Tandem {
    dev: Dev,
    running: Running,
}

impl Tandem {
    /// Starts it, with pgbench's tables and relays.
    pub async fn start() -> Self {
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/pgbench/rules.toml");
        let rules = rules.to_string_lossy();
        let scale = SCALE.to_string();
        let mut dev = Dev::new(3);
        let more = ["--relays", "--pgbench", &scale, "--rules", &rules];
        let running = dev.ready(&more).await;
        Self { dev, running }
    }

    /// Ends it.
    pub async fn end(self) {
        self.running.end(Signal::INT).await;
    }

    /// Carries out one scenario, and adds what came of it to the samples.
    ///
    /// # Errors
    /// The drill could not be carried out, or what must always hold does not.
    pub async fn drill(
        &self,
        scenario: &str,
        course: Course,
        samples: &mut Samples,
    ) -> Result<(), Box<dyn Error>> {
        let time = |time: Duration| format!("{}ms", time.as_millis());
        let ran = Program::new(daemon::program())
            .args(["drill", scenario, "--json", "--config"])
            .args([self.dev.dir().join("tandem.toml")])
            .args(["--rate", &course.rate.to_string(), "--at", &time(course.at)])
            .args(["--for", &time(course.hold), "--after", &time(course.after)])
            .args(["--control", &time(course.control)])
            .run(LIMIT)
            .await;
        let report: Value = serde_json::from_str(&ran.stdout).map_err(|_| ran.all())?;
        let checks = report["checks"].as_array().into_iter().flatten();
        let failed: Vec<&Value> = checks.filter(|check| check["passed"] == false).collect();
        if !failed.is_empty() {
            return Err(format!("{scenario}: {failed:?}").into());
        }
        for (row, phase) in [("with it", "drill"), ("without", "control")] {
            for (field, figure) in FIGURES {
                if let Some(value) = report[phase][field].as_f64() {
                    samples.add(scenario, row, figure, WAY, value)?;
                }
            }
        }
        if let Some(time) = report["converge_ms"].as_f64() {
            samples.add(scenario, "with it", "converged after, ms", WAY, time)?;
        }
        let conflicts = report["conflicts"].as_array().into_iter().flatten();
        let conflicts: f64 = conflicts.filter_map(|lines| lines["lines"].as_f64()).sum();
        samples.add(scenario, "with it", "conflicts", WAY, conflicts)?;
        Ok(())
    }
}
