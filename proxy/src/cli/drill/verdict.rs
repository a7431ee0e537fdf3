//! Owns the verdict: what was measured against what the command line allows. Pure.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::report::Report;
use super::timeline::ms;
use crate::config::parse_duration;

/// What a drill may cost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Thresholds")]
pub(super) struct Thresholds {
    /// The longest time without a successful write of a key whose home is the broken node, such as 50ms
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    max_gap: Option<Duration>,
    /// The same of all other keys
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    max_other_gap: Option<Duration>,
    /// Transactions that pgbench gave up after all its tries
    #[arg(long, value_name = "N")]
    max_failed: Option<u64>,
    /// Writes of the ledger whose outcome nobody told
    #[arg(long, value_name = "N")]
    max_unknown: Option<u64>,
    /// Clients of pgbench, and connections of the ledger, that were lost
    #[arg(long, value_name = "N")]
    max_disconnected: Option<u64>,
    /// Conflicts, in the conflict log
    #[arg(long, value_name = "N")]
    max_conflicts: Option<u64>,
    /// Acknowledged writes that are not on every node in the end and are no losers of conflicts
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_lost: u64,
    /// From the mending until all nodes have everything, such as 10s
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    max_converge: Option<Duration>,
}

/// One thing that was measured, and its bound.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) measured: String,
    pub(super) allowed: String,
    pub(super) passed: bool,
}

impl Check {
    /// At most so many.
    fn count(name: &'static str, measured: u64, allowed: u64) -> Self {
        Self {
            name,
            measured: measured.to_string(),
            allowed: format!("at most {allowed}"),
            passed: measured <= allowed,
        }
    }

    /// At most so long; what was not measured does not pass.
    fn time(name: &'static str, measured_ms: Option<f64>, allowed: Duration) -> Self {
        let allowed_ms = ms(u64::try_from(allowed.as_micros()).unwrap_or(u64::MAX));
        Self {
            name,
            measured: measured_ms.map_or_else(|| "never".to_owned(), milliseconds),
            allowed: format!("at most {}", milliseconds(allowed_ms)),
            passed: measured_ms.is_some_and(|measured| measured <= allowed_ms),
        }
    }

    fn holds(name: &'static str, passed: bool) -> Self {
        Self {
            name,
            measured: if passed { "yes" } else { "no" }.to_owned(),
            allowed: "yes".to_owned(),
            passed,
        }
    }
}

/// A time for people.
pub(super) fn milliseconds(time: f64) -> String {
    match time {
        time if time < 100.0 => format!("{time:.1} ms"),
        time if time < 10_000.0 => format!("{time:.0} ms"),
        time => format!("{:.1} s", time / 1000.0),
    }
}

/// The verdict. What must always hold is checked without being asked for.
pub(super) fn checks(thresholds: &Thresholds, report: &Report) -> Vec<Check> {
    let drill = &report.drill;
    let audit = &report.ledger;
    let count = |entries: &[_]| entries.len() as u64;
    let mut checks = vec![
        Check::count("lost writes", count(&audit.lost), thresholds.max_lost),
        Check::count(
            "refused writes that are there",
            count(&audit.refused_yet_there),
            0,
        ),
        Check::holds("converged", report.converged),
        Check::holds(
            "nodes agree on unknown writes",
            !report.converged || !audit.nodes_differ,
        ),
        Check::holds("pgbench ended by itself", !drill.hung),
    ];
    if let Some(invariants) = report.invariants_hold {
        checks.push(Check::holds("sums add up on every node", invariants));
    }
    let times = [
        // A drill in which no key has moved says nothing of them.
        ("gap of moved keys", drill.gap_moved_ms, thresholds.max_gap),
        (
            "gap of other keys",
            drill.gap_other_ms.or(Some(0.0)),
            thresholds.max_other_gap,
        ),
        (
            "time to converge",
            report.converge_ms,
            thresholds.max_converge,
        ),
    ];
    for (name, measured, allowed) in times {
        checks.extend(allowed.map(|allowed| Check::time(name, measured, allowed)));
    }
    let counts = [
        ("failed transactions", drill.failed, thresholds.max_failed),
        ("unknown writes", drill.unknown, thresholds.max_unknown),
        (
            "disconnected clients",
            drill.clients_lost + drill.connections_lost,
            thresholds.max_disconnected,
        ),
        (
            "conflicts",
            report.conflicts.iter().map(|conflict| conflict.lines).sum(),
            thresholds.max_conflicts,
        ),
    ];
    for (name, measured, allowed) in counts {
        checks.extend(allowed.map(|allowed| Check::count(name, measured, allowed)));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::drill::report::tests::report;

    fn failing(thresholds: &Thresholds, report: &Report) -> Vec<&'static str> {
        let checks = checks(thresholds, report);
        let failing = checks.into_iter().filter(|check| !check.passed);
        failing.map(|check| check.name).collect()
    }

    #[test]
    fn without_thresholds_only_safety_counts() {
        let none = Thresholds::default();
        let mut report = report();
        assert_eq!(failing(&none, &report), ["lost writes"]);
        report.ledger.refused_yet_there = report.ledger.lost.clone();
        report.ledger.lost.clear();
        assert_eq!(failing(&none, &report), ["refused writes that are there"]);
        report.ledger.refused_yet_there.clear();
        assert!(failing(&none, &report).is_empty());
        report.invariants_hold = Some(false);
        report.drill.hung = true;
        report.converged = false;
        let wanted = [
            "converged",
            "pgbench ended by itself",
            "sums add up on every node",
        ];
        assert_eq!(failing(&none, &report), wanted);
        report.invariants_hold = None;
        assert_eq!(failing(&none, &report), wanted[..2]);
    }

    #[test]
    fn a_bound_is_met_by_what_equals_it_and_not_by_what_was_never_measured() {
        let mut report = report();
        report.ledger.lost.clear();
        let mut thresholds = Thresholds {
            max_gap: Some(Duration::from_micros(212_500)),
            max_failed: Some(3),
            max_disconnected: Some(2),
            max_converge: Some(Duration::from_secs(2)),
            ..Thresholds::default()
        };
        assert!(failing(&thresholds, &report).is_empty());
        thresholds.max_gap = Some(Duration::from_millis(212));
        thresholds.max_failed = Some(2);
        thresholds.max_disconnected = Some(1);
        let wanted = [
            "gap of moved keys",
            "failed transactions",
            "disconnected clients",
        ];
        assert_eq!(failing(&thresholds, &report), wanted);
        report.drill.gap_moved_ms = None;
        report.converge_ms = None;
        assert!(failing(&thresholds, &report).contains(&"gap of moved keys"));
        assert!(failing(&thresholds, &report).contains(&"time to converge"));
        // One node that has all keys leaves no other ones, which cannot have had a gap.
        report.drill.gap_other_ms = None;
        thresholds.max_other_gap = Some(Duration::ZERO);
        assert!(!failing(&thresholds, &report).contains(&"gap of other keys"));
    }

    #[test]
    fn more_lost_writes_than_allowed_fail() {
        let mut thresholds = Thresholds::default();
        assert_eq!(failing(&thresholds, &report()), ["lost writes"]);
        thresholds.max_lost = 1;
        assert!(failing(&thresholds, &report()).is_empty());
    }
}
