//! What nodes' losses have cost, in figures.

use super::Text;
use crate::{
    admin::{NodeStatus, Status},
    recovery::Report,
};

/// How many reports there were of each node, and what the last one says.
pub(super) fn add(text: &mut Text, status: &Status) {
    let nodes = || {
        let nodes = status.nodes.iter();
        nodes.map(|node| (node, [("node", node.name.as_str())]))
    };
    text.counter(
        "tandem_recoveries_total",
        "How often the node was gone and has caught up, as far as the state directory knows.",
        nodes().map(|(node, labels)| (labels, node.recoveries)),
    );
    let last = || {
        let report = |node: &NodeStatus| node.recovery.clone();
        nodes().filter_map(move |(node, labels)| Some((report(node)?, labels)))
    };
    text.gauge(
        "tandem_recovery_last_seconds",
        "How long it took the last time until it had caught up.",
        last().map(|(report, labels)| {
            let took = std::time::Duration::from_millis(report.took_ms);
            (labels, took.as_secs_f64())
        }),
    );
    text.gauge(
        "tandem_recovery_last_tail_transactions",
        "Transactions that it had committed the last time and nobody had read.",
        last().map(|(report, labels)| (labels, report.tail.transactions)),
    );
    text.gauge(
        "tandem_recovery_last_rows",
        "What became of their rows that met other nodes' writes.",
        last().flat_map(|(report, [node])| {
            outcomes(&report).map(|(outcome, rows)| ([node, ("outcome", outcome)], rows))
        }),
    );
}

fn outcomes(report: &Report) -> [(&'static str, u64); 5] {
    let judged = &report.judged;
    [
        ("lost", judged.lost),
        ("won", judged.won),
        ("pending", judged.pending),
        ("shadowed", judged.shadowed),
        ("counters_merged", report.tail.counters_merged),
    ]
}
