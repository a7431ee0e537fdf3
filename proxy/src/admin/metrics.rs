//! `/metrics`: the status in Prometheus' text format (version 0.0.4). Everything is read when it is asked for, so that
//! counting costs sessions and replication one atomic addition at most.

mod handoff;
mod losses;
mod recovery;
mod routing;

use std::{
    fmt::{Display, Write as _},
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use tandem_replicator::{LinkStatus, NodeStatus as Replicated};

use super::{Context, NodeStatus, Status};
use crate::{
    acknowledged::Waits,
    timing::{NodeLatency, Span},
};

/// The text format's media type.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Every state that a link can be in.
const LINK_STATES: [&str; 5] = [
    "waiting",
    "streaming",
    "waiting_for_cause",
    "waiting_for_clock",
    "blocked",
];

/// `GET /metrics`
pub(super) async fn metrics(State(context): State<Arc<Context>>) -> Response {
    let latency = context.shared.pools.latency().await;
    let plans = context.shared.router.bytes();
    let status = super::snapshot(&context);
    let mut text = Text(render(&status, &latency, plans));
    let waits = context.shared.acknowledged.waits();
    text.0.push_str(&consistency(&status.nodes, &waits));
    handoff::add_counts(&mut text, context.shared.handoffs.counts());
    losses::add(&mut text, context.shared.losses.counts());
    let settings = context.shared.settings.load();
    routing::add(
        &mut text,
        &context.shared.router.counts,
        &settings.config.rules,
        &settings.rule_counts,
    );
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text.0).into_response()
}

/// One family after the other; each sample has its labels in a fixed order.
#[derive(Default)]
struct Text(String);

/// A label's name and its value.
type Label<'a> = (&'static str, &'a str);

impl Text {
    fn family<'a, V: Display, const N: usize>(
        &mut self,
        kind: &str,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([Label<'a>; N], V)>,
    ) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        self.samples(name, samples);
    }

    fn samples<'a, V: Display, const N: usize>(
        &mut self,
        name: &str,
        samples: impl IntoIterator<Item = ([Label<'a>; N], V)>,
    ) {
        for (labels, value) in samples {
            self.0.push_str(name);
            for (index, (label, value)) in labels.into_iter().enumerate() {
                self.0.push(if index == 0 { '{' } else { ',' });
                let _ = write!(self.0, "{label}=\"{}\"", escaped(value));
            }
            let _ = writeln!(self.0, "{} {value}", if N > 0 { "}" } else { "" });
        }
    }

    fn gauge<'a, V: Display, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([Label<'a>; N], V)>,
    ) {
        self.family("gauge", name, help, samples);
    }

    fn counter<'a, V: Display, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([Label<'a>; N], V)>,
    ) {
        self.family("counter", name, help, samples);
    }
}

/// A label's value may hold anything; three characters are escaped.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn render(status: &Status, latency: &[NodeLatency], plans: usize) -> String {
    let mut text = Text::default();
    let info = [
        ("cluster", status.cluster.as_str()),
        ("version", status.version),
    ];
    text.gauge("tandem_info", "Always 1; what runs.", [(info, 1)]);
    clients(&mut text, status);
    text.gauge(
        "tandem_plan_cache_bytes",
        "What is known of statements, by their templates.",
        [([], plans)],
    );
    nodes(&mut text, &status.nodes);
    handoff::add(&mut text, status);
    recovery::add(&mut text, status);
    spans(&mut text, &status.nodes, latency);
    sources(&mut text, &status.replication.nodes);
    links(&mut text, &status.replication.links);
    text.0
}

fn clients(text: &mut Text, status: &Status) {
    let clients = &status.clients;
    text.gauge(
        "tandem_clients",
        "Client connections.",
        [([], clients.current)],
    );
    text.gauge(
        "tandem_clients_max",
        "Client connections that are allowed.",
        [([], clients.max)],
    );
    let states = [
        ("idle", clients.idle),
        ("in_transaction", clients.in_transaction),
        ("active", clients.active),
    ];
    text.gauge(
        "tandem_sessions",
        "Client sessions by what they are doing.",
        states.map(|(state, count)| ([("state", state)], count)),
    );
    text.counter(
        "tandem_panics_total",
        "Panics of the daemon's tasks.",
        [([], status.panics)],
    );
}

fn nodes(text: &mut Text, nodes: &[NodeStatus]) {
    let each = || {
        nodes
            .iter()
            .map(|node| (node, [("node", node.name.as_str())]))
    };
    text.gauge(
        "tandem_node_up",
        "Whether new sessions may go to the node.",
        each().map(|(node, labels)| (labels, u8::from(node.usable))),
    );
    text.gauge(
        "tandem_node_behind",
        "Whether reads go elsewhere, because the node is further behind than read_lag_max.",
        each().map(|(node, labels)| (labels, u8::from(node.behind))),
    );
    text.gauge(
        "tandem_node_sessions",
        "Sessions that the node serves.",
        each().map(|(node, labels)| (labels, node.sessions)),
    );
    text.gauge(
        "tandem_node_round_trip_seconds",
        "Time that a probe's statement took.",
        each().filter_map(|(node, labels)| Some((labels, node.rtt_ms? / 1000.0))),
    );
}

/// A summary, whose sum and count have names of their own.
fn spans(text: &mut Text, nodes: &[NodeStatus], latency: &[NodeLatency]) {
    const NAME: &str = "tandem_latency_seconds";
    const QUANTILES: [(&str, f64); 4] =
        [("0.5", 0.5), ("0.9", 0.9), ("0.99", 0.99), ("0.999", 0.999)];
    let each = || {
        nodes.iter().zip(latency).flat_map(|(node, latency)| {
            let labels = |span: Span| [("node", node.name.as_str()), ("span", span.word())];
            latency
                .spans()
                .map(move |(span, times)| (labels(span), times))
        })
    };
    text.family(
        "summary",
        NAME,
        "Times since the start: of transactions as clients see them, of queries at the node, of waits for a server and for consistency.",
        each().flat_map(|([node, span], times)| {
            QUANTILES.map(|(label, share)| {
                let time = times.quantile(share).as_secs_f64();
                ([node, span, ("quantile", label)], time)
            })
        }),
    );
    text.samples(
        &format!("{NAME}_sum"),
        each().map(|(labels, times)| (labels, times.sum().as_secs_f64())),
    );
    text.samples(
        &format!("{NAME}_count"),
        each().map(|(labels, times)| (labels, times.count())),
    );
}

/// How long they took is in `tandem_latency_seconds`.
fn consistency(nodes: &[NodeStatus], waits: &[Waits]) -> String {
    let mut text = Text::default();
    let each = || {
        let nodes = nodes.iter().map(|node| [("node", node.name.as_str())]);
        nodes.zip(waits)
    };
    text.counter(
        "tandem_consistency_waits_total",
        "Units of work that waited until the node showed what was seen elsewhere.",
        each().map(|(labels, waits)| (labels, waits.all)),
    );
    text.counter(
        "tandem_consistency_timeouts_total",
        "Those of them that waited in vain.",
        each().map(|(labels, waits)| (labels, waits.timeouts)),
    );
    text.0
}

fn sources(text: &mut Text, nodes: &[Replicated]) {
    let each = || {
        nodes
            .iter()
            .map(|node| (node, [("node", node.name.as_str())]))
    };
    text.gauge(
        "tandem_replication_node_up",
        "Whether the node takes part in replication.",
        each().map(|(node, labels)| (labels, u8::from(node.state == "up"))),
    );
    text.gauge(
        "tandem_node_clock_offset_seconds",
        "The node's clock minus the one in the middle of all nodes.",
        each().filter_map(|(node, labels)| Some((labels, node.clock.offset_ms? / 1000.0))),
    );
    text.gauge(
        "tandem_node_clock_error_seconds",
        "By how much the offset may be wrong.",
        each().filter_map(|(node, labels)| Some((labels, node.clock.error_ms? / 1000.0))),
    );
    text.gauge(
        "tandem_node_fenced",
        "Whether the node's clock lets it take no writes.",
        each().map(|(node, labels)| (labels, u8::from(node.clock.fenced.is_some()))),
    );
    text.counter(
        "tandem_capture_transactions_total",
        "Transactions read from the node for others, since the daemon started.",
        each().map(|(node, labels)| (labels, node.capture.transactions)),
    );
    text.counter(
        "tandem_capture_rows_total",
        "Changes of rows in them.",
        each().map(|(node, labels)| (labels, node.capture.rows)),
    );
    text.counter(
        "tandem_capture_bytes_total",
        "Bytes of those changes.",
        each().map(|(node, labels)| (labels, node.capture.bytes)),
    );
    text.gauge(
        "tandem_capture_lag_bytes",
        "Bytes of the node's WAL that were not read yet.",
        each().filter_map(|(node, labels)| Some((labels, node.capture.lag_bytes?))),
    );
    text.gauge(
        "tandem_journal_bytes",
        "Bytes of the node's stream that are kept on disk.",
        each().map(|(node, labels)| (labels, node.journal.bytes)),
    );
    text.gauge(
        "tandem_journal_memory_bytes",
        "Bytes of the node's stream that are kept in memory.",
        each().map(|(node, labels)| (labels, node.journal.memory_bytes)),
    );
    text.gauge(
        "tandem_journal_refuses",
        "Whether the journal takes nothing more, so that WAL is held back on the node.",
        each().map(|(node, labels)| (labels, u8::from(node.journal.problem.is_some()))),
    );
    text.gauge(
        "tandem_slot_retained_bytes",
        "Bytes of WAL that the node cannot remove.",
        each().filter_map(|(node, labels)| Some((labels, node.slot.as_ref()?.retained_bytes))),
    );
    text.gauge(
        "tandem_slot_safe_bytes",
        "Bytes of WAL until the slot is in danger, where the node has max_slot_wal_keep_size.",
        each().filter_map(|(node, labels)| Some((labels, node.slot.as_ref()?.safe_bytes?))),
    );
    text.gauge(
        "tandem_slot_xid_age_transactions",
        "Transactions since the oldest whose catalog rows VACUUM has to keep.",
        each().filter_map(|(node, labels)| Some((labels, node.slot.as_ref()?.xid_age?))),
    );
}

fn links(text: &mut Text, links: &[LinkStatus]) {
    let each = || {
        links.iter().map(|link| {
            let ends = [
                ("source", link.source.as_str()),
                ("target", link.target.as_str()),
            ];
            (link, ends)
        })
    };
    text.gauge(
        "tandem_link_state",
        "1 for the state that the link is in.",
        each().flat_map(|(link, [source, target])| {
            LINK_STATES.map(|state| {
                (
                    [source, target, ("state", state)],
                    u8::from(link.state == state),
                )
            })
        }),
    );
    text.gauge(
        "tandem_link_state_seconds",
        "For how long the link has been in its state.",
        each().map(|(link, labels)| (labels, Duration::from_millis(link.state_ms).as_secs_f64())),
    );
    text.gauge(
        "tandem_link_lag_bytes",
        "Bytes of the source's WAL that were read and are not applied.",
        each().map(|(link, labels)| (labels, link.lag_bytes)),
    );
    text.gauge(
        "tandem_link_lag_transactions",
        "Transactions of the source that were read and are not applied.",
        each().filter_map(|(link, labels)| Some((labels, link.lag_transactions?))),
    );
    text.gauge(
        "tandem_link_lag_seconds",
        "How long ago the next transaction to apply was committed; 0 when there is none.",
        each().filter_map(|(link, labels)| {
            let lag_ms = u64::try_from(link.lag_ms?).ok()?;
            Some((labels, Duration::from_millis(lag_ms).as_secs_f64()))
        }),
    );
    text.counter(
        "tandem_link_transactions_total",
        "Transactions applied since the daemon started.",
        each().map(|(link, labels)| (labels, link.transactions)),
    );
    text.counter(
        "tandem_link_conflicts_total",
        "Conflicts met since the daemon started, by type; tandem.conflict on the target has them all.",
        each().flat_map(|(link, [source, target])| {
            link.conflicts_by_type
                .iter()
                .map(move |(name, count)| ([source, target, ("type", *name)], *count))
        }),
    );
    text.gauge(
        "tandem_link_quarantined_transactions",
        "Transactions of the source that the target refuses.",
        each().map(|(link, labels)| (labels, link.quarantined)),
    );
}

#[cfg(test)]
mod tests;
