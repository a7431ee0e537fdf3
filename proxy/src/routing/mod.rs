//! Owns which node a unit of work goes to: a transaction, or a statement outside of one.

mod class;

use tandem_routing_rules::{Consistency, DefaultWrite, Mode, ReadRoute, Rules, default_home};

pub(crate) use class::{Class, class};

use crate::session::Shared;

/// What is known of a unit of work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) class: Class,
    /// The node that the login chose: the nearest one then.
    pub(crate) near: usize,
    /// The rules name that node for the whole session.
    pub(crate) is_bound: bool,
    /// Where the session was last.
    pub(crate) last: Option<usize>,
}

/// Chooses among the nodes that can be used; none: none can.
pub(crate) fn node_for(shared: &Shared, rules: &Rules, database: &str, work: Work) -> Option<usize> {
    let usable = |node: &usize| shared.health.usable(*node);
    let near = Some(work.near).filter(usable);
    let is_replicated = database == shared.replicated.as_str();
    let goes_home = match work.class {
        Class::Read => {
            !is_replicated
                || rules.read.route == ReadRoute::Home
                || rules.read.consistency == Consistency::Home
        }
        Class::Write => !is_replicated || rules.default_write == DefaultWrite::Home,
        Class::Session => return work.last.filter(usable).or(near).or_else(|| any(shared)),
    };
    if work.is_bound || rules.mode == Mode::Advise || !goes_home {
        return near.or_else(|| any(shared));
    }
    home(shared, database)
}

/// The home of what has no key.
pub(crate) fn home(shared: &Shared, database: &str) -> Option<usize> {
    let usable = (0..shared.nodes.len()).filter(|node| shared.health.usable(*node));
    let id = |node: usize| shared.nodes.get(node).map(|node| node.config().id);
    let ids: Vec<u16> = usable.filter_map(id).collect();
    let home = default_home(database, &ids)?;
    (0..shared.nodes.len()).find(|node| id(*node) == Some(home))
}

fn any(shared: &Shared) -> Option<usize> {
    (0..shared.nodes.len()).find(|node| shared.health.usable(*node))
}
