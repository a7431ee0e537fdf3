//! Where a session goes: the decision of session mode, with its reason. What decides per statement is in [`statement`].

mod finding;
mod statement;

use core::fmt;
use std::net::IpAddr;

use crate::model::{Placement, Rules, SessionMatch, SessionRule};
use crate::pattern::Pattern;
use crate::placement::{Home, HomeReason, Key};

pub use finding::{Away, Finding};
pub use statement::{
    DefaultHomeReason, NamedBy, NearestNode, StatementDecision, StatementFacts, StatementReason,
    Transaction,
};

/// Nodes within this much of the best round trip are equally near.
const EQUALLY_NEAR_US: u32 = 1_000;

/// A node as it stands at the moment of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView<'a> {
    /// Its id.
    pub id: u16,
    /// Its name.
    pub name: &'a str,
    /// Its zone.
    pub zone: Option<&'a str>,
    /// Whether new sessions may go there.
    pub healthy: bool,
    /// Measured round trip in microseconds; `None`: not measured yet, counts as farther than any measured one.
    pub rtt_us: Option<u32>,
    /// Sessions it has through this proxy now.
    pub sessions: u32,
}

/// The cluster at the moment of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterView<'a> {
    /// All nodes; their order means nothing.
    pub nodes: &'a [NodeView<'a>],
    /// The zone this proxy stands in.
    pub zone: Option<&'a str>,
}

/// What is known of a session when it connects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionFacts<'a> {
    /// The user.
    pub user: &'a str,
    /// The database.
    pub database: &'a str,
    /// What the client calls itself.
    pub application_name: Option<&'a str>,
    /// The startup option `tandem.key`, `placement:key`.
    pub key: Option<&'a str>,
    /// Where the client comes from; `None`: by a unix socket.
    pub client: Option<IpAddr>,
    /// The settings in the client's startup message, by their name in any case; of one that is given twice the last counts.
    pub options: &'a [(Box<str>, Box<str>)],
}

impl<'a> SessionFacts<'a> {
    /// What the client's startup message sets an option to; empty: it does not.
    fn option(&self, name: &str) -> &'a str {
        let mut given = self.options.iter().rev();
        let found = given.find(|(given, _)| given.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }
}

/// Where a session goes, why, and which evidence could not be followed. Displays as one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The node's id.
    pub node: u16,
    /// Its name.
    pub node_name: String,
    /// Why this one.
    pub reason: Reason,
    /// Evidence that came first and could not be followed.
    pub passed_over: Vec<PassedOver>,
}

/// Why a session goes to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// `tandem.key` was given: the node is the home of that key.
    Key {
        /// The key space.
        placement: String,
        /// The key.
        key: Key,
        /// Why the key has this home.
        because: HomeReason,
    },
    /// A session rule names the node.
    SessionRule {
        /// Which one, counted from 1 in the order of the file.
        rule: usize,
        /// What it matches.
        matches: SessionMatch,
    },
    /// The nearest healthy node.
    Nearest {
        /// Whether it stands in the proxy's zone.
        same_zone: bool,
        /// Its round trip in microseconds, if measured.
        rtt_us: Option<u32>,
        /// How many nodes were equally near; the one with the fewest sessions was taken.
        equally_near: usize,
    },
}

/// Evidence that could not be followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PassedOver {
    /// `tandem.key` is not `placement:key`.
    KeyWithoutPlacement {
        /// What was given.
        text: String,
    },
    /// `tandem.key` names a placement that the rules do not have.
    UnknownPlacement {
        /// Its name.
        placement: String,
    },
    /// The statement itself names another key than `tandem.key` or its leading comment.
    KeyOverruled {
        /// What was given.
        text: String,
    },
    /// A session rule's node is not healthy.
    RuleNodeDown {
        /// Which rule, counted from 1.
        rule: usize,
        /// The node's name, or its id when the cluster does not have it.
        node: String,
    },
}

/// No node is healthy: there is nowhere to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no node is healthy")]
pub struct NoHealthyNode;

/// Decides where a session goes: the home of its `tandem.key`; else the node of the first session rule that matches;
/// else the nearest healthy node (same zone first, then the measured round trip; nodes within 1 ms or 20 % of the
/// best, whichever is more, are equally near and share by sessions).
pub fn decide_session(
    rules: &Rules,
    facts: &SessionFacts<'_>,
    cluster: &ClusterView<'_>,
) -> Result<Decision, NoHealthyNode> {
    let mut passed_over = Vec::new();
    let followed = match facts.key {
        Some(text) => by_key(rules, text, cluster, &mut passed_over),
        None => None,
    };
    let (node, reason) = followed
        .or_else(|| by_session_rule(rules, facts, cluster, &mut passed_over))
        .or_else(|| nearest_node(cluster))
        .ok_or(NoHealthyNode)?;
    Ok(Decision {
        node: node.id,
        node_name: node.name.to_owned(),
        reason,
        passed_over,
    })
}

type Choice<'a> = (&'a NodeView<'a>, Reason);

fn by_key<'a>(
    rules: &Rules,
    text: &str,
    cluster: &ClusterView<'a>,
    passed_over: &mut Vec<PassedOver>,
) -> Option<Choice<'a>> {
    let (placement, key) = named_key(rules, text, passed_over)?;
    let Home { node, because } = placement.home(&key, cluster.nodes)?;
    let node = cluster
        .nodes
        .iter()
        .find(|candidate| candidate.id == node)?;
    Some((
        node,
        Reason::Key {
            placement: placement.name.clone(),
            key,
            because,
        },
    ))
}

/// What `placement:key` names.
fn named_key<'r>(
    rules: &'r Rules,
    text: &str,
    passed_over: &mut Vec<PassedOver>,
) -> Option<(&'r Placement, Key)> {
    let Some((name, key)) = text.split_once(':') else {
        passed_over.push(PassedOver::KeyWithoutPlacement {
            text: text.to_owned(),
        });
        return None;
    };
    let Some(placement) = rules.placement(name) else {
        passed_over.push(PassedOver::UnknownPlacement {
            placement: name.to_owned(),
        });
        return None;
    };
    Some((placement, Key::from_text(key)))
}

fn by_session_rule<'a>(
    rules: &Rules,
    facts: &SessionFacts<'_>,
    cluster: &ClusterView<'a>,
    passed_over: &mut Vec<PassedOver>,
) -> Option<Choice<'a>> {
    let (node, rule, matches) = session_rule(rules, facts, cluster, passed_over)?;
    let matches = matches.clone();
    Some((node, Reason::SessionRule { rule, matches }))
}

/// The node of the first session rule that matches, which one it is, counted from 1, and what it matches.
fn session_rule<'a, 'r>(
    rules: &'r Rules,
    facts: &SessionFacts<'_>,
    cluster: &ClusterView<'a>,
    passed_over: &mut Vec<PassedOver>,
) -> Option<(&'a NodeView<'a>, usize, &'r SessionMatch)> {
    let (index, rule): (usize, &SessionRule) = rules
        .sessions
        .iter()
        .enumerate()
        .find(|(_, rule)| rule.matches.accepts(facts))?;
    let named = cluster.nodes.iter().find(|node| node.id == rule.node);
    match named {
        Some(node) if node.healthy => Some((node, index + 1, &rule.matches)),
        _ => {
            let node = named.map_or_else(|| format!("{}", rule.node), |node| node.name.to_owned());
            passed_over.push(PassedOver::RuleNodeDown {
                rule: index + 1,
                node,
            });
            None
        }
    }
}

fn nearest_node<'a>(cluster: &ClusterView<'a>) -> Option<Choice<'a>> {
    let in_zone = |node: &NodeView<'_>| cluster.zone.is_some() && node.zone == cluster.zone;
    let healthy = || cluster.nodes.iter().filter(|node| node.healthy);
    let same_zone = healthy().any(in_zone);
    let candidates = || healthy().filter(|node| !same_zone || in_zone(node));

    // Without any measurement all are equally near.
    let limit_us = candidates()
        .filter_map(|node| node.rtt_us)
        .min()
        .map(|best| {
            let slack = (best / 5).max(EQUALLY_NEAR_US);
            best.saturating_add(slack)
        });
    let near = || {
        candidates().filter(|node| match (limit_us, node.rtt_us) {
            (Some(limit), Some(rtt)) => rtt <= limit,
            (Some(_), None) => false,
            (None, _) => true,
        })
    };
    let node = near().min_by_key(|node| (node.sessions, node.id))?;
    Some((
        node,
        Reason::Nearest {
            same_zone,
            rtt_us: node.rtt_us,
            equally_near: near().count(),
        },
    ))
}

impl SessionMatch {
    /// Whether all given patterns match.
    pub fn accepts(&self, facts: &SessionFacts<'_>) -> bool {
        let accepts = |pattern: &Option<Pattern>, fact: &str| {
            pattern.as_ref().is_none_or(|p| p.matches(fact))
        };
        accepts(&self.user, facts.user)
            && accepts(&self.database, facts.database)
            && accepts(&self.application_name, facts.application_name.unwrap_or(""))
            && self
                .client
                .is_none_or(|network| facts.client.is_some_and(|client| network.contains(client)))
            && self
                .options
                .iter()
                .all(|(name, pattern)| pattern.matches(facts.option(name)))
    }

    /// Whether every session that `other` matches is surely matched by this one too.
    pub fn covers(&self, other: &Self) -> bool {
        let covers = |mine: &Option<Pattern>, others: &Option<Pattern>| match (mine, others) {
            (None, _) => true,
            (Some(mine), _) if mine.is_any() => true,
            (Some(mine), Some(others)) => mine == others,
            (Some(_), None) => false,
        };
        covers(&self.user, &other.user)
            && covers(&self.database, &other.database)
            && covers(&self.application_name, &other.application_name)
            && self
                .client
                .is_none_or(|mine| other.client.is_some_and(|others| mine.covers(&others)))
            && self
                .options
                .iter()
                .all(|(name, mine)| mine.is_any() || other.options.get(name) == Some(mine))
    }
}

impl fmt::Display for SessionMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = [
            ("user", &self.user),
            ("database", &self.database),
            ("application_name", &self.application_name),
        ];
        let mut separator = "";
        for (name, pattern) in given {
            if let Some(pattern) = pattern {
                write!(f, "{separator}{name} = {pattern}")?;
                separator = ", ";
            }
        }
        if let Some(client) = &self.client {
            write!(f, "{separator}client = {client}")?;
            separator = ", ";
        }
        for (name, pattern) in &self.options {
            write!(f, "{separator}{name} = {pattern}")?;
            separator = ", ";
        }
        Ok(())
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}: {}", self.node_name, self.reason)?;
        for passed_over in &self.passed_over {
            write!(f, "; {passed_over}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key {
                placement,
                key,
                because,
            } => {
                // The key is the client's text: escaped, so that it cannot forge a log line.
                write!(
                    f,
                    "home of key {placement}:{} ({because})",
                    key.to_string().escape_debug()
                )
            }
            Self::SessionRule { rule, matches } => write!(f, "session rule {rule} ({matches})"),
            Self::Nearest {
                same_zone,
                rtt_us,
                equally_near,
            } => {
                f.write_str("nearest healthy node (")?;
                if *same_zone {
                    f.write_str("same zone, ")?;
                }
                match rtt_us {
                    Some(rtt_us) => {
                        write!(f, "round trip {}.{:03} ms", rtt_us / 1_000, rtt_us % 1_000)?;
                    }
                    None => f.write_str("round trip not measured")?,
                }
                if *equally_near > 1 {
                    write!(f, ", fewest sessions of {equally_near} equally near")?;
                }
                f.write_str(")")
            }
        }
    }
}

impl fmt::Display for HomeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hash => f.write_str("by hash"),
            Self::Map => f.write_str("listed in the map"),
            Self::Range => f.write_str("inside a listed range"),
            Self::Column => f.write_str("named by the key itself"),
            Self::Single => f.write_str("the placement's single home"),
            Self::Otherwise => f.write_str("not listed, `otherwise`"),
            Self::HashOfUnlisted => f.write_str("not listed, by hash"),
            Self::HomeDown { proper } => write!(f, "by hash, because node id {proper} is down"),
        }
    }
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyWithoutPlacement { text } => {
                write!(
                    f,
                    "tandem.key `{}` ignored: it is not placement:key",
                    text.escape_debug()
                )
            }
            Self::UnknownPlacement { placement } => {
                write!(
                    f,
                    "tandem.key ignored: the rules have no placement `{}`",
                    placement.escape_debug()
                )
            }
            Self::KeyOverruled { text } => {
                write!(
                    f,
                    "`{}` ignored: the statement itself names its keys",
                    text.escape_debug()
                )
            }
            Self::RuleNodeDown { rule, node } => {
                write!(f, "session rule {rule} not followed: node {node} is down")
            }
        }
    }
}

#[cfg(test)]
mod tests;
