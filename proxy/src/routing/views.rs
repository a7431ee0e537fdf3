//! Owns the nodes as decisions see them.
//!
//! Each decision looks at them as they are at that moment: a list kept for longer would send clients to a node that has just
//! died. Of few nodes the list is made on the stack.

use smallvec::SmallVec;
use tandem_routing_rules::NodeView;

use crate::{config::NodeConfig, health::HealthBoard, node::Nodes};

/// Nodes up to which a list needs no memory of its own.
const FEW: usize = 8;

/// All nodes, in the order of the configuration.
pub(crate) type Views<'a> = SmallVec<[NodeView<'a>; FEW]>;

/// What is not configured of a node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// Whether sessions may go there.
    pub(crate) healthy: bool,
    /// Its round trip in microseconds, if measured.
    pub(crate) rtt_us: Option<u32>,
    /// Sessions that it has through this proxy.
    pub(crate) sessions: u32,
}

/// These nodes; `now` is asked by their place.
pub(crate) fn views<'a>(
    nodes: impl IntoIterator<Item = &'a NodeConfig>,
    now: impl Fn(usize) -> Now,
) -> Views<'a> {
    let view = |(place, node): (usize, &'a NodeConfig)| {
        let now = now(place);
        NodeView {
            id: node.id,
            name: &node.name,
            zone: node.zone.as_deref(),
            healthy: now.healthy,
            rtt_us: now.rtt_us,
            sessions: now.sessions,
        }
    };
    nodes.into_iter().enumerate().map(view).collect()
}

/// The proxy's nodes as they are now, `usable` those to which sessions may go.
pub(crate) fn live<'a>(
    nodes: &'a Nodes,
    health: &HealthBoard,
    usable: impl Fn(usize) -> bool,
) -> Views<'a> {
    views(nodes.iter().map(|node| node.config()), |place| Now {
        healthy: usable(place),
        rtt_us: health.rtt_us(place),
        sessions: nodes.get(place).map_or(0, |node| node.sessions()),
    })
}
