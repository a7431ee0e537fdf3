//! Owns the choice of a node for a session, from what is known of it at its login.

use std::{fmt::Write as _, net::IpAddr};

use tandem_routing_rules::{ClusterView, SessionFacts, decide_session};

use super::Shared;
use crate::routing::views;

/// What a client says at login that decides where it goes, besides who it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Hints {
    pub(crate) application_name: Option<Box<str>>,
    /// `tandem.key`
    pub(crate) key: Option<Box<str>>,
    /// Where it comes from; none: by a unix socket.
    pub(crate) client: Option<IpAddr>,
    /// What its startup message sets, by name as it is written there; of one that is given twice the last counts.
    pub(crate) options: Box<[(Box<str>, Box<str>)]>,
}

impl Hints {
    /// The same in the words of the rules.
    pub(crate) fn facts<'a>(&'a self, user: &'a str, database: &'a str) -> SessionFacts<'a> {
        SessionFacts {
            user,
            database,
            application_name: self.application_name.as_deref(),
            key: self.key.as_deref(),
            client: self.client,
            options: &self.options,
        }
    }
}

/// Which nodes take no sessions now.
pub(crate) fn unusable(shared: &Shared) -> Vec<bool> {
    (0..shared.nodes.len())
        .map(|node| !shared.health.takes_all(node))
        .collect()
}

/// A node for a session.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// Its index.
    pub(crate) node: usize,
    /// The reason, for people.
    pub(crate) why: String,
}

/// The rules' choice among the nodes that are left.
pub(crate) fn choose(
    shared: &Shared,
    user: &str,
    database: &str,
    hints: &Hints,
    unusable: &[bool],
) -> Option<Chosen> {
    let usable = |node: usize| unusable.get(node) == Some(&false);
    let views = views::live(&shared.nodes, &shared.health, usable);
    let settings = shared.settings.load();
    let cluster = ClusterView {
        nodes: &views,
        zone: settings.config.proxy.zone.as_deref(),
    };
    let facts = hints.facts(user, database);
    let decision = decide_session(&settings.config.rules, &facts, &cluster).ok()?;
    let node = views.iter().position(|view| view.id == decision.node)?;
    Some(Chosen {
        node,
        why: decision.to_string(),
    })
}

/// What is wrong with each node that was not tried.
pub(super) fn add_problems(shared: &Shared, tried: &mut String) {
    for (index, node) in shared.nodes.iter().enumerate() {
        if let Some(problem) = shared.health.problem(index)
            && !tried.contains(&format!("{}: ", node.name()))
        {
            let _ = write!(tried, "{}: {problem}; ", node.name());
        }
    }
}
