//! What a rules file says, after validation: node names are resolved to ids, expressions are parsed.

use std::collections::BTreeMap;

use crate::document::Problem;
use crate::expression::Expression;
use crate::network::Network;
use crate::pattern::Pattern;
use crate::placement::Key;

/// A node as the rules file may name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// The node's id in the cluster, never reused.
    pub id: u16,
    /// Its unique name.
    pub name: String,
    /// The zone it stands in.
    pub zone: Option<String>,
}

/// A validated rules file. The default is what holds without one: everything without a rule, writes at the default
/// home.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Whether decisions are carried out.
    pub mode: Mode,
    /// The named key spaces, in the order of their place in the file.
    pub placements: Vec<Placement>,
    /// Which table's rows belong to which key. A table occurs at most once.
    pub affinities: Vec<Affinity>,
    /// Rules for whole sessions; the first that matches counts.
    pub sessions: Vec<SessionRule>,
    /// Where a write without key or rule goes.
    pub default_write: DefaultWrite,
    /// What is asked of writes, where the rule of their table does not say otherwise.
    pub policy: Policy,
    /// Where reads go and what they see.
    pub read: ReadRules,
}

impl Rules {
    /// Whether every read outside of a READ WRITE transaction goes to the nearest node, whatever it reads, unless its leading
    /// comment names a key.
    pub fn read_nearest(&self) -> bool {
        let ReadRules {
            route, consistency, ..
        } = self.read;
        route == ReadRoute::Nearest && consistency != Consistency::Home && self.sessions.is_empty()
    }

    /// The placement called `name`.
    pub fn placement(&self, name: &str) -> Option<&Placement> {
        self.placements
            .iter()
            .find(|placement| placement.name == name)
    }

    /// Whether anything is asked of writes: then there is one that is refused, or that its client is told of.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        let of_tables = self.affinities.iter().map(|affinity| affinity.policy);
        of_tables
            .chain([self.policy])
            .any(|policy| policy != Policy::default())
    }
}

/// Whether decisions are carried out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// Each write goes where the rules say.
    #[default]
    Enforce,
    /// The rules only log where each write would have gone.
    Advise,
}

/// `[default] write`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DefaultWrite {
    /// The database's one default home.
    #[default]
    Home,
    /// The nearest healthy node.
    Nearest,
}

/// What is asked of writes: `cross_home` and `require_key`, of `[default]` or of an `[[affinity]]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// What becomes of a write some of whose keys are at home elsewhere.
    pub cross_home: CrossHome,
    /// Whether a write that names no key is refused.
    pub require_key: bool,
}

impl Policy {
    /// What both ask.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            cross_home: self.cross_home.max(other.cross_home),
            require_key: self.require_key || other.require_key,
        }
    }
}

/// `cross_home`: what becomes of a write some of whose keys are at home on another node than where its transaction stands.
/// The later one asks more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum CrossHome {
    /// It is counted.
    #[default]
    Allow,
    /// Its client gets a NOTICE.
    Notice,
    /// It is refused.
    Reject,
}

/// `[read]`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadRules {
    /// Where reads go.
    pub route: ReadRoute,
    /// What reads are sure to see.
    pub consistency: Consistency,
    /// Whose writes count for [`Consistency::Session`].
    pub scope: Scope,
    /// What a session hears of what it has seen on a node that is down.
    pub lost: Lost,
}

/// `[read] route`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReadRoute {
    /// The nearest healthy node.
    #[default]
    Nearest,
    /// The home of the key.
    Home,
}

/// `[read] consistency`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Whatever the node has.
    Eventual,
    /// At least what the session (see [`Scope`]) wrote and saw.
    #[default]
    Session,
    /// What the home has.
    Home,
}

/// `[read] scope`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scope {
    /// The session's own writes.
    #[default]
    Session,
    /// Every commit acknowledged through this proxy.
    Database,
}

/// `[read] lost`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Lost {
    /// A NOTICE, once, and it goes on without.
    #[default]
    Notice,
    /// An ERROR for one statement or transaction, then it goes on without.
    Error,
}

/// `[placement.NAME]`: a named key space and how its keys are shared out among nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Its name; part of what is hashed, so that two key spaces spread apart.
    pub name: String,
    /// How a key finds its home.
    pub strategy: Strategy,
}

/// How a key finds its home. Nodes are ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Strategy {
    /// Weighted rendezvous hashing.
    Hash {
        /// Node and weight; empty: all nodes alike.
        weights: Vec<(u16, u16)>,
    },
    /// Keys are listed.
    Map {
        /// Home by canonical key text.
        homes: BTreeMap<String, u16>,
        /// Home of a key that is not listed; without it, hashing decides.
        otherwise: Option<u16>,
    },
    /// Ranges of keys are listed.
    Range {
        /// Ranges that do not overlap, in rising order.
        ranges: Vec<KeyRange>,
        /// Home of a key in no range; without it, hashing decides.
        otherwise: Option<u16>,
    },
    /// The key itself names its home.
    Column {
        /// What the key names.
        names: ColumnNames,
        /// Home of a key that names nothing known; without it, hashing decides.
        otherwise: Option<u16>,
    },
    /// All keys have one home.
    Single {
        /// That home; without it, one is chosen by hashing the placement's name.
        node: Option<u16>,
    },
}

/// Keys from `from`, inclusive, to `to`, exclusive, as in PostgreSQL's range partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    /// Lowest key; `None`: no bound.
    pub from: Option<Key>,
    /// First key above; `None`: no bound.
    pub to: Option<Key>,
    /// The home.
    pub node: u16,
}

impl KeyRange {
    /// Whether `key` lies inside. An integer never lies in a range of texts, nor the other way round.
    pub fn contains(&self, key: &Key) -> bool {
        let alike = self
            .from
            .iter()
            .chain(&self.to)
            .all(|bound| bound.is_like(key));
        alike
            && self.from.as_ref().is_none_or(|from| key >= from)
            && self.to.as_ref().is_none_or(|to| key < to)
    }
}

/// What the key names under `strategy = "column"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ColumnNames {
    /// A node, by name or by id.
    #[default]
    Node,
    /// A zone; hashing chooses among its nodes.
    Zone,
}

/// Which key a table's rows belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affinity {
    /// `table` or `schema.table`.
    pub table: String,
    /// The key space's name; it exists in [`Rules::placements`].
    pub placement: String,
    /// The column that the key comes from.
    pub column: String,
    /// How the key comes from the column; `None`: the column's value is the key.
    pub key: Option<Expression>,
    /// What is asked of writes to the table.
    pub policy: Policy,
}

/// `[[session]]`: sends whole sessions to one node, by what is known when they connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRule {
    /// What the session must look like.
    pub matches: SessionMatch,
    /// Where it goes.
    pub node: u16,
}

/// Patterns over what a session told when it connected. All that are given must match; at least one is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionMatch {
    /// The user who connects.
    pub user: Option<Pattern>,
    /// The database connected to.
    pub database: Option<Pattern>,
    /// What the client calls itself; empty if it does not say.
    pub application_name: Option<Pattern>,
    /// The client's address. One that comes by a unix socket has none.
    pub client: Option<Network>,
    /// Settings in its startup message, by their name in lower case; what it does not set is empty.
    pub options: BTreeMap<String, Pattern>,
}

/// Why a rules file was refused: all that is wrong with it, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the rules file has {} problem(s)", problems.len())]
pub struct RuleErrors {
    /// Each problem with its place; never empty.
    pub problems: Vec<Problem>,
}
