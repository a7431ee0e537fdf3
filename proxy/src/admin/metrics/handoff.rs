//! What the placement and its changes come to, in figures.

use super::Text;
use crate::{
    admin::Status,
    handoff::{Kind, Outcome},
    health::Health,
};

/// Every state that a node can be in.
const STATES: [Health; 10] = [
    Health::Unknown,
    Health::Untaken,
    Health::CatchingUp,
    Health::Up,
    Health::Suspect { failures: 0 },
    Health::Restarting,
    Health::Down,
    Health::Fenced,
    Health::Draining,
    Health::Drained,
];

/// The nodes' states, the epoch, and what the last handoffs took.
pub(super) fn add(text: &mut Text, status: &Status) {
    text.gauge(
        "tandem_placement_epoch",
        "Counts the changes of which node takes what.",
        [([], status.epoch)],
    );
    text.gauge(
        "tandem_node_state",
        "1 for the state that the node is in.",
        status.nodes.iter().flat_map(|node| {
            STATES.map(|state| {
                let labels = [("node", node.name.as_str()), ("state", state.word())];
                (labels, u8::from(state.word() == node.health))
            })
        }),
    );
    text.gauge(
        "tandem_node_client_connections",
        "Connections to the node that are for clients, in use or not.",
        status
            .nodes
            .iter()
            .map(|node| ([("node", node.name.as_str())], node.connections)),
    );
    let last = || {
        let nodes = status.nodes.iter();
        let nodes = nodes.filter_map(|node| Some((node, node.handoff.as_ref()?)));
        nodes.filter(|(_, report)| report.outcome.is_some())
    };
    text.gauge(
        "tandem_handoff_last_seconds",
        "How long the last handoff of the node's keys took.",
        last().map(|(node, report)| ([("node", node.name.as_str())], report.took.as_secs_f64())),
    );
    text.gauge(
        "tandem_handoff_last_parked_seconds",
        "How long writes of the node's keys waited at most in its last handoff.",
        last().map(|(node, report)| ([("node", node.name.as_str())], report.parked.as_secs_f64())),
    );
}

/// How many handoffs there were.
pub(super) fn add_counts(text: &mut Text, counts: impl Iterator<Item = (Kind, Outcome, u64)>) {
    text.counter(
        "tandem_handoffs_total",
        "Handoffs, by what they were made for and what has come of them.",
        counts.map(|(kind, outcome, count)| {
            ([("kind", kind.word()), ("outcome", outcome.word())], count)
        }),
    );
}
