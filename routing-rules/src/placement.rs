//! From a key to its home.

use core::fmt;

use crate::decide::NodeView;
use crate::model::{ColumnNames, Placement, Strategy};
use crate::rendezvous::{key_digest, winner};

/// The value of a key. Two spellings of one integer are one key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// An integer of any width.
    Integer(i64),
    /// Any other value in its canonical text form, ordered bytewise.
    Text(String),
}

impl Key {
    /// Reads a key whose column type is not known: what PostgreSQL would read as a bigint is one (`007`, ` 7 `, `0x7`), all
    /// else is text. That two texts of a text column may become one key that way does no harm.
    pub fn from_text(text: &str) -> Self {
        bigint(text).map_or_else(|| Self::Text(text.to_owned()), Self::Integer)
    }

    /// Whether both are integers or both are texts.
    pub fn is_like(&self, other: &Self) -> bool {
        core::mem::discriminant(self) == core::mem::discriminant(other)
    }
}

/// Reads a bigint as `pg_strtoint64` does (numutils.c; the newest major's).
fn bigint(text: &str) -> Option<i64> {
    // What Rust reads PostgreSQL reads alike.
    if let Ok(value) = text.parse() {
        return Some(value);
    }
    let text = text.trim_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    let prefix = digits.get(..2).map(str::to_ascii_lowercase);
    let (radix, digits) = match prefix.as_deref() {
        Some("0x") => (16, digits.get(2..)?),
        Some("0o") => (8, digits.get(2..)?),
        Some("0b") => (2, digits.get(2..)?),
        _ => (10, digits),
    };
    // An underscore stands between two digits, or behind the prefix.
    let lone = digits.ends_with('_') || digits.contains("__");
    if lone || digits.starts_with(['+', '-']) || (radix == 10 && digits.starts_with('_')) {
        return None;
    }
    let digits = digits.replace('_', "");
    let value = i128::from_str_radix(&digits, radix).ok()?;
    i64::try_from(if negative { -value } else { value }).ok()
}

/// The canonical text, which is what gets hashed.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(value) => write!(f, "{value}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// Where a key lives now and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home {
    /// The node's id.
    pub node: u16,
    /// Why this one.
    pub because: HomeReason,
}

/// Why a node is the home of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HomeReason {
    /// Hashing chose it.
    Hash,
    /// The key is listed.
    Map,
    /// The key lies in a listed range.
    Range,
    /// The key names it, or its zone.
    Column,
    /// The placement has one home.
    Single,
    /// The key is not listed; `otherwise` names the node.
    Otherwise,
    /// The key is not listed; hashing chose the node.
    HashOfUnlisted,
    /// The home proper is down; hashing chose among the rest.
    HomeDown {
        /// The home proper.
        proper: u16,
    },
}

/// What the rules alone say of a key, before anybody looks who is alive.
enum Named {
    /// One node.
    Node(u16, HomeReason),
    /// Hashing among some nodes.
    Among(HomeReason),
}

impl Placement {
    /// The home of `key` among the healthy ones of `nodes`, whose order means nothing. `None`: none is healthy.
    pub fn home(&self, key: &Key, nodes: &[NodeView<'_>]) -> Option<Home> {
        match self.named(key, nodes) {
            Named::Node(node, because) if is_healthy(node, nodes) => Some(Home { node, because }),
            Named::Node(proper, _) => {
                let node = self.hashed(key, nodes, |_| true)?;
                Some(Home {
                    node,
                    because: HomeReason::HomeDown { proper },
                })
            }
            Named::Among(because) => {
                // The nodes that the strategy prefers; all of them when none of those is healthy.
                let node = self
                    .hashed(key, nodes, |node| self.prefers(key, node))
                    .or_else(|| self.hashed(key, nodes, |_| true))?;
                Some(Home { node, because })
            }
        }
    }

    fn named(&self, key: &Key, nodes: &[NodeView<'_>]) -> Named {
        let unlisted = |otherwise: &Option<u16>| match otherwise {
            Some(node) => Named::Node(*node, HomeReason::Otherwise),
            None => Named::Among(HomeReason::HashOfUnlisted),
        };
        match &self.strategy {
            Strategy::Hash { .. } => Named::Among(HomeReason::Hash),
            Strategy::Map { homes, otherwise } => match homes.get(&key.to_string()) {
                Some(node) => Named::Node(*node, HomeReason::Map),
                None => unlisted(otherwise),
            },
            Strategy::Range { ranges, otherwise } => {
                match ranges.iter().find(|range| range.contains(key)) {
                    Some(range) => Named::Node(range.node, HomeReason::Range),
                    None => unlisted(otherwise),
                }
            }
            Strategy::Column {
                names: ColumnNames::Node,
                otherwise,
            } => match nodes.iter().find(|node| names_node(key, node)) {
                Some(node) => Named::Node(node.id, HomeReason::Column),
                None => unlisted(otherwise),
            },
            Strategy::Column {
                names: ColumnNames::Zone,
                otherwise,
            } => match nodes.iter().any(|node| names_zone(key, node)) {
                true => Named::Among(HomeReason::Column),
                false => unlisted(otherwise),
            },
            Strategy::Single { node: Some(node) } => Named::Node(*node, HomeReason::Single),
            Strategy::Single { node: None } => Named::Among(HomeReason::Single),
        }
    }

    fn prefers(&self, key: &Key, node: &NodeView<'_>) -> bool {
        match &self.strategy {
            Strategy::Hash { weights } => {
                weights.is_empty() || weights.iter().any(|(id, _)| *id == node.id)
            }
            Strategy::Column {
                names: ColumnNames::Zone,
                ..
            } => names_zone(key, node),
            _ => true,
        }
    }

    fn hashed(
        &self,
        key: &Key,
        nodes: &[NodeView<'_>],
        eligible: impl Fn(&NodeView<'_>) -> bool,
    ) -> Option<u16> {
        let digest = match self.strategy {
            // All keys of a single home hash alike.
            Strategy::Single { .. } => key_digest(&self.name, ""),
            _ => key_digest(&self.name, &key.to_string()),
        };
        let candidates = nodes.iter().filter(|node| node.healthy && eligible(node));
        winner(
            digest,
            candidates.map(|node| (node.id, self.weight(node.id))),
        )
    }

    fn weight(&self, node: u16) -> u16 {
        let Strategy::Hash { weights } = &self.strategy else {
            return 1;
        };
        weights
            .iter()
            .find(|(id, _)| *id == node)
            .map_or(1, |(_, weight)| *weight)
    }
}

fn is_healthy(id: u16, nodes: &[NodeView<'_>]) -> bool {
    nodes.iter().any(|node| node.id == id && node.healthy)
}

fn names_node(key: &Key, node: &NodeView<'_>) -> bool {
    match key {
        Key::Integer(id) => *id == i64::from(node.id),
        Key::Text(name) => name == node.name,
    }
}

fn names_zone(key: &Key, node: &NodeView<'_>) -> bool {
    node.zone.is_some_and(|zone| zone == key.to_string())
}

#[cfg(test)]
mod tests;
