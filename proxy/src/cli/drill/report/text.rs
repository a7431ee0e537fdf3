//! Owns the report as text: the verdict, what was measured beside the control run, the timeline as lines of blocks.

use super::{Phase, Report};
use crate::cli::drill::audit::Entry;
use crate::cli::drill::timeline::Step;
use crate::cli::drill::verdict::milliseconds;
use crate::cli::table::{Cell, Table, printable};

/// The widest timeline; longer ones put several steps into one column.
const COLUMNS_MAX: usize = 100;
/// Lines of a list that are shown; the rest is counted.
const LINES_MAX: usize = 10;
const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The whole report.
pub(in crate::cli::drill) fn text(report: &Report) -> String {
    let verdict = if report.passed { "PASSED" } else { "FAILED" };
    let load = &report.load;
    let mut lines = vec![
        format!(
            "{verdict}: {} of node {} in cluster {} ({})",
            report.scenario.word(),
            printable(&report.node),
            printable(&report.cluster),
            printable(&report.nodes.join(", "))
        ),
        format!(
            "load: pgbench {}{}",
            printable(&load.arguments.join(" ")),
            rate(report)
        ),
        String::new(),
    ];
    lines.extend(timeline(report));
    lines.extend([String::new(), figures(report), String::new()]);
    lines.push(match report.converge_ms {
        Some(time) => format!("converged {} after the mending", milliseconds(time)),
        None => "did not converge after the mending".to_owned(),
    });
    if let Some(hold) = report.invariants_hold {
        let sums = report.sums.iter().map(|sums| {
            let (node, accounts, tellers) = (printable(&sums.node), sums.accounts, sums.tellers);
            let (branches, history) = (sums.branches, sums.history);
            format!("  {node}: accounts {accounts}, tellers {tellers}, branches {branches}, history {history}")
        });
        lines.push(match hold {
            true => "pgbench's sums add up on every node".to_owned(),
            false => "pgbench's sums do NOT add up (a conflict loses what one side added, but for counters):".to_owned(),
        });
        lines.extend(sums.filter(|_| !hold));
    }
    for conflict in &report.conflicts {
        let (table, kind) = (printable(&conflict.table), printable(&conflict.kind));
        lines.push(format!(
            "conflicts: {} of {kind} in {table}",
            conflict.lines
        ));
    }
    let ledger = &report.ledger;
    list(&mut lines, "LOST: acknowledged, and missing", &ledger.lost);
    list(
        &mut lines,
        "lost in a conflict, and in the conflict log",
        &ledger.lost_in_conflicts,
    );
    list(
        &mut lines,
        "REFUSED, and yet there",
        &ledger.refused_yet_there,
    );
    list(&mut lines, "unknown, and where they are", &ledger.unknown);
    lines.extend(
        report
            .notes
            .iter()
            .map(|note| format!("note: {}", printable(note))),
    );
    lines.push(String::new());
    lines.push(checks(report));
    lines.join("\n")
}

fn rate(report: &Report) -> String {
    match (report.load.rate, report.load.saturation) {
        (Some(rate), Some(saturation)) => {
            format!(
                ", {rate} of at most {saturation:.0} transactions a second, seed {}",
                report.seed
            )
        }
        (Some(rate), None) => format!(", {rate} transactions a second, seed {}", report.seed),
        (None, _) => format!(", seed {}", report.seed),
    }
}

fn list(lines: &mut Vec<String>, title: &str, entries: &[Entry]) {
    if entries.is_empty() {
        return;
    }
    lines.push(format!("{title}: {}", entries.len()));
    for entry in entries.iter().take(LINES_MAX) {
        let nodes = match entry.nodes.as_slice() {
            [] => "no node".to_owned(),
            nodes => printable(&nodes.join(", ")),
        };
        let key = entry.key.as_deref().unwrap_or("no key");
        lines.push(format!(
            "  client {} ({}), write {}: {}, on {nodes}",
            entry.client,
            printable(key),
            entry.seq,
            printable(&entry.told)
        ));
    }
    if entries.len() > LINES_MAX {
        lines.push(format!("  and {} more", entries.len() - LINES_MAX));
    }
}

/// Name, unit and how to get it of a phase.
type Row = (&'static str, fn(&Phase) -> Option<String>);

fn figures(report: &Report) -> String {
    let rows: [Row; 14] = [
        ("transactions", |p| Some(p.transactions.to_string())),
        ("a second", |p| Some(format!("{:.0}", p.per_second))),
        ("latency p50", |p| p.p50_ms.map(milliseconds)),
        ("latency p99", |p| p.p99_ms.map(milliseconds)),
        ("slowest", |p| p.max_ms.map(milliseconds)),
        ("failed", |p| Some(p.failed.to_string())),
        ("retried", |p| Some(p.retried.to_string())),
        ("clients lost", |p| Some(p.clients_lost.to_string())),
        ("ledger: writes", |p| Some(p.acknowledged.to_string())),
        ("ledger: refused", |p| Some(refused(p))),
        ("ledger: unknown", |p| Some(p.unknown.to_string())),
        ("ledger: connections lost", |p| {
            Some(p.connections_lost.to_string())
        }),
        ("gap of moved keys", |p| p.gap_moved_ms.map(milliseconds)),
        ("gap of other keys", |p| p.gap_other_ms.map(milliseconds)),
    ];
    let mut headers = vec!["", report.scenario.word()];
    headers.extend(report.control.as_ref().map(|_| "control"));
    let mut table = Table::new(&headers);
    for (name, value) in rows {
        let phases = [Some(&report.drill), report.control.as_ref()];
        let values = phases.into_iter().flatten().map(value);
        let name = serde_json::Value::from(name);
        let cells = std::iter::once(Cell::new(Some(&name))).chain(values.map(Cell::quantity));
        table.cells(cells);
    }
    table.render()
}

/// How many, and with which SQLSTATEs.
fn refused(phase: &Phase) -> String {
    let total: u64 = phase.refused.values().sum();
    let codes: Vec<String> = phase
        .refused
        .iter()
        .map(|(code, count)| format!("{} {count}", printable(code)))
        .collect();
    match codes.is_empty() {
        true => total.to_string(),
        false => format!("{total} ({})", codes.join(", ")),
    }
}

fn checks(report: &Report) -> String {
    let mut table = Table::new(&["check", "measured", "allowed", ""]);
    for check in &report.checks {
        let cell = |text: &str| Cell::new(Some(&serde_json::Value::from(text)));
        table.cells([
            cell(check.name),
            cell(&check.measured),
            cell(&check.allowed),
            cell(if check.passed { "ok" } else { "FAILED" }),
        ]);
    }
    table.render()
}

/// One line of blocks for each thing, and one with what was done when.
fn timeline(report: &Report) -> Vec<String> {
    let steps = &report.timeline;
    let per_column = steps.len().div_ceil(COLUMNS_MAX).max(1);
    let columns: Vec<&[Step]> = steps.chunks(per_column).collect();
    let sum = |of: &dyn Fn(&Step) -> u64| -> Vec<u64> {
        let column = |steps: &&[Step]| steps.iter().map(of).sum();
        columns.iter().map(column).collect()
    };
    let slowest = |steps: &&[Step]| {
        let p99 = steps.iter().filter_map(|step| step.p99_ms);
        whole(p99.fold(0.0, f64::max))
    };
    let mut rows = vec![
        ("transactions".to_owned(), sum(&|step| step.transactions)),
        (
            "failed".to_owned(),
            sum(&|step| step.failed + step.refused + step.unknown),
        ),
        ("p99, ms".to_owned(), columns.iter().map(slowest).collect()),
    ];
    for (place, node) in report.nodes.iter().enumerate() {
        let written = |step: &Step| step.written.get(place).copied().unwrap_or(0);
        rows.push((format!("on {}", printable(node)), sum(&written)));
    }
    let width = rows.iter().map(|(name, _)| name.chars().count()).max();
    let width = width.unwrap_or(0);
    let mut lines: Vec<String> = rows
        .iter()
        .map(|(name, values)| {
            let most = values.iter().max().copied().unwrap_or(0);
            format!("{name:<width$} |{}| most {most}", blocks(values))
        })
        .collect();
    lines.push(format!("{:<width$}  {}", "", marks(report, per_column)));
    lines.push(format!(
        "a column is {} ms: {}",
        per_column * 100,
        moments(report)
    ));
    lines
}

/// Not negative, and far below 2^53.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

/// The largest value fills its column, and what is not nothing shows.
fn blocks(values: &[u64]) -> String {
    let most = values.iter().max().copied().unwrap_or(0).max(1);
    let block = |value: &u64| {
        let eighths = value.saturating_mul(8).div_ceil(most);
        let place = usize::try_from(eighths).unwrap_or(8);
        BLOCKS.get(place).copied().unwrap_or('█')
    };
    values.iter().map(block).collect()
}

/// A mark under each column in which something was done.
fn marks(report: &Report, per_column: usize) -> String {
    let column = |ms: u64| usize::try_from(ms / 100).unwrap_or(usize::MAX) / per_column;
    let places: Vec<usize> = report
        .moments
        .iter()
        .map(|moment| column(moment.ms))
        .collect();
    let last = places.iter().max().copied().unwrap_or(0).min(COLUMNS_MAX);
    let mark = |place| if places.contains(&place) { '^' } else { ' ' };
    (0..=last).map(mark).collect()
}

fn moments(report: &Report) -> String {
    let moment = |moment: &super::MomentReport| {
        let time = milliseconds(crate::cli::drill::timeline::ms(moment.ms * 1000));
        format!("{} at {time}", printable(&moment.what))
    };
    let count = report.moments.len();
    let mut shown: Vec<String> = report.moments.iter().take(LINES_MAX).map(moment).collect();
    if count > LINES_MAX {
        shown.push(format!("and {} more", count - LINES_MAX));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::drill::report::tests::report;
    use crate::cli::drill::verdict::{Thresholds, checks};

    #[test]
    fn the_verdict_comes_first_and_what_was_lost_is_named() {
        let mut report = report();
        report.checks = checks(&Thresholds::default(), &report);
        let text = text(&report);
        assert!(
            text.starts_with("FAILED: kill of node paris in cluster dev"),
            "{text}"
        );
        for wanted in [
            "400 of at most 1000 transactions a second, seed 7",
            "transactions |█  ██| most 40",
            "kill at 100 ms, mended at 300 ms",
            "LOST: acknowledged, and missing: 1",
            "client 2 (branch:3), write 41: acknowledged, on <delhi>",
            "converged 1500 ms after the mending",
            "2 (40001 2)",
            "conflicts: 2 of update_origin_differs in public.t",
        ] {
            assert!(text.contains(wanted), "{wanted} is missing in\n{text}");
        }
        let lost = text.lines().find(|line| line.starts_with("lost writes"));
        assert!(lost.unwrap().ends_with("FAILED"), "{text}");
        // The control run stands beside it.
        let gap = text.lines().find(|line| line.starts_with("gap of moved"));
        let words: Vec<&str> = gap.unwrap().split_ascii_whitespace().collect();
        assert_eq!(words[4..], ["212", "ms", "12.0", "ms"], "{text}");
    }

    #[test]
    fn a_long_timeline_fits_the_screen_and_a_small_value_shows() {
        let mut report = report();
        let step = report.timeline[0].clone();
        report.timeline = vec![step; 1050];
        let lines = timeline(&report);
        assert!(lines[0].chars().count() < 140, "{lines:?}");
        assert!(lines.last().unwrap().starts_with("a column is 1100 ms"));
        assert_eq!(blocks(&[0, 1, 1000]), " ▁█");
        assert_eq!(blocks(&[0, 0]), "  ");
    }
}
