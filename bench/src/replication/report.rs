//! Medians over the rounds, as tables.

use std::fmt::Write as _;
use std::time::Duration;

use super::lag::Lag;
use super::stage::Drain;
use crate::median;

/// What was measured of one way and one backlog, by round.
#[derive(Debug, Default)]
struct Samples {
    case: String,
    way: String,
    rate: Vec<f64>,
    startup: Vec<f64>,
    first: Vec<f64>,
    source_cpu: Vec<f64>,
    target_cpu: Vec<f64>,
    daemon_cpu: Vec<f64>,
    daemon_mb: Vec<f64>,
}

/// The catch-up table: a line per case and way, in the order of their first measurement.
#[derive(Debug, Default)]
pub struct CatchUp {
    samples: Vec<Samples>,
}

impl CatchUp {
    /// Adds how a way drained `size` transactions or rows.
    pub fn drain(&mut self, case: &str, way: &str, size: u32, drain: &Drain) {
        let per_100k = |time: Duration| time.as_secs_f64() * 1e5 / f64::from(size);
        let samples = self.bound(case, way, size, drain.all);
        samples.startup.push(drain.startup.as_secs_f64());
        samples.first.push(drain.first.as_secs_f64());
        samples.source_cpu.push(per_100k(drain.source_cpu));
        samples.target_cpu.push(per_100k(drain.target_cpu));
        if let Some((time, memory)) = drain.daemon {
            samples.daemon_cpu.push(per_100k(time));
            // Megabytes are far below what an f64 holds exactly.
            let megabytes = u32::try_from(memory >> 20).unwrap_or(u32::MAX);
            samples.daemon_mb.push(megabytes.into());
        }
    }

    /// Adds a figure that has only a duration.
    pub fn time(&mut self, case: &str, way: &str, size: u32, took: Duration) {
        self.bound(case, way, size, took);
    }

    /// Adds how the daemon alone read `size` transactions or rows: the time, and the CPU time of the source and the daemon.
    pub fn journal(&mut self, case: &str, size: u32, took: Duration, cpu: [Duration; 2]) {
        let [source, daemon] = cpu.map(|time| time.as_secs_f64() * 1e5 / f64::from(size));
        let samples = self.bound(case, "tandem, journal only", size, took);
        samples.source_cpu.push(source);
        samples.daemon_cpu.push(daemon);
    }

    fn bound(&mut self, case: &str, way: &str, size: u32, took: Duration) -> &mut Samples {
        let known = |samples: &Samples| samples.case == case && samples.way == way;
        let index = self.samples.iter().position(known).unwrap_or_else(|| {
            self.samples.push(Samples {
                case: case.to_owned(),
                way: way.to_owned(),
                ..Samples::default()
            });
            self.samples.len() - 1
        });
        let samples = &mut self.samples[index];
        samples.rate.push(f64::from(size) / took.as_secs_f64());
        samples
    }

    /// The table, in Markdown; empty without samples.
    pub fn table(&self) -> String {
        let mut table = String::new();
        if !self.samples.is_empty() {
            table.push_str(
                "| backlog | way | a second | least to most | of native | start s | first s | CPU s per 100,000: source | target | daemon \
                 | daemon peak MB |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
            );
        }
        for samples in &self.samples {
            let rate = median(&samples.rate).unwrap_or_default();
            let native = self
                .samples
                .iter()
                .find(|other| other.case == samples.case && other.way == "native")
                .and_then(|native| median(&native.rate));
            let of_native = native.map_or_else(dash, |native| format!("{:.2}", rate / native));
            let least = samples.rate.iter().copied().fold(f64::INFINITY, f64::min);
            let most = samples.rate.iter().copied().fold(0.0, f64::max);
            let _ = writeln!(
                table,
                "| {} | {} | {rate:.0} | {least:.0} to {most:.0} | {of_native} | {} | {} | {} | {} | {} | {} |",
                samples.case,
                samples.way,
                number(&samples.startup, 2),
                number(&samples.first, 2),
                number(&samples.source_cpu, 2),
                number(&samples.target_cpu, 2),
                number(&samples.daemon_cpu, 2),
                number(&samples.daemon_mb, 0),
            );
        }
        table
    }
}

/// The table of lags, in Markdown; empty without samples.
pub fn lag_table(samples: &[(&'static str, Vec<Lag>)]) -> String {
    let mut table = String::new();
    if !samples.is_empty() {
        table.push_str(
            "| way | commits a second | lag p50 ms | p99 ms | max ms |\n|---|---|---|---|---|\n",
        );
    }
    for (way, lags) in samples {
        let of = |part: fn(&Lag) -> f64, digits| {
            number(&lags.iter().map(part).collect::<Vec<_>>(), digits)
        };
        let _ = writeln!(
            table,
            "| {way} | {} | {} | {} | {} |",
            of(|lag| lag.rate, 0),
            of(|lag| lag.p50_ms, 2),
            of(|lag| lag.p99_ms, 2),
            of(|lag| lag.max_ms, 1)
        );
    }
    table
}

fn number(values: &[f64], digits: usize) -> String {
    median(values).map_or_else(dash, |value| format!("{value:.digits$}"))
}

fn dash() -> String {
    "-".to_owned()
}
