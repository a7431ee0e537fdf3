//! Where a statement goes: the decision of transaction mode, with its reason.

use core::fmt;

use super::{
    ClusterView, NoHealthyNode, NodeView, PassedOver, Reason, SessionFacts, named_key,
    nearest_node, session_rule,
};
use crate::model::{Consistency, DefaultWrite, Placement, ReadRoute, Rules, SessionMatch};
use crate::placement::{HomeReason, Key};
use crate::rendezvous::default_home_among;
use crate::state::Homed;
use crate::statement::{Access, Class, Evidence, NoKey, Plan};

/// The transaction that a statement begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Transaction {
    /// Its own.
    #[default]
    Autocommit,
    /// It is the first statement of a READ WRITE transaction: what follows will go where it goes.
    ReadWrite,
    /// It is one of a READ ONLY transaction.
    ReadOnly,
}

/// What is known besides the statement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StatementFacts<'a> {
    /// The session. Its key is what `tandem.key` is now.
    pub session: SessionFacts<'a>,
    /// The key of the leading comment ([`Shape::key`](crate::template::Shape::key)).
    pub comment: Option<&'a str>,
    /// The transaction.
    pub transaction: Transaction,
    /// Whether it is SERIALIZABLE.
    pub serializable: bool,
    /// Where the session wrote last.
    pub last_home: Option<u16>,
    /// What it uses that all sessions have to use on one node.
    pub homed: Option<Homed>,
}

/// Where a statement goes, and why. Displays as one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementDecision<'a> {
    /// The node's id.
    pub node: u16,
    /// Its name.
    pub node_name: &'a str,
    /// Why this one.
    pub reason: StatementReason<'a>,
    /// Whether it counts as a write ([`Class::is_write`]).
    pub write: bool,
    /// Another home of keys that the statement names: it reaches over homes.
    pub split: Option<u16>,
    /// Evidence that came first and could not be followed.
    pub passed_over: Vec<PassedOver>,
}

/// Why a statement goes to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatementReason<'a> {
    /// It is the home of a key.
    Key {
        /// The key space.
        placement: &'a str,
        /// The key.
        key: Key,
        /// Why the key has this home.
        because: HomeReason,
        /// Who named it.
        named_by: NamedBy,
    },
    /// A session rule names the node.
    SessionRule {
        /// Which one, counted from 1 in the order of the file.
        rule: usize,
        /// What it matches.
        matches: &'a SessionMatch,
    },
    /// The session wrote there last, and what its transaction will write is not known yet.
    LastHome,
    /// It is the database's default home.
    DefaultHome(DefaultHomeReason<'a>),
    /// It is the nearest healthy node.
    Nearest(NearestNode),
}

/// Who named a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedBy {
    /// The statement, by its conditions or values.
    Statement,
    /// Its leading comment.
    Comment,
    /// The session's `tandem.key`.
    Setting,
}

/// Why a statement goes to the default home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultHomeReason<'a> {
    /// It has no key.
    NoKey(NoKey<'a>),
    /// Several keys are named, of key spaces that the rules do not have any more.
    UnknownPlacement,
    /// Its transaction is SERIALIZABLE: only there all such see each other.
    Serializable,
    /// It locks a whole table.
    LockTable,
    /// It gives back advisory locks, or asks for them.
    AdvisoryLock,
    /// It uses what all sessions have to use on one node.
    Homed(Homed),
}

/// How near the nearest node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NearestNode {
    /// Whether it stands in the proxy's zone.
    pub same_zone: bool,
    /// Its round trip in microseconds, if measured.
    pub rtt_us: Option<u32>,
    /// How many nodes were equally near; the one with the fewest sessions was taken.
    pub equally_near: usize,
}

impl Rules {
    /// Decides where a statement goes that is not bound to its transaction's node yet.
    ///
    /// A write, or one that takes locks, goes to the home of its key, which the statement names, else its leading comment,
    /// else `tandem.key`; without a key to the node of a session rule; else, at the beginning of a READ WRITE transaction, to
    /// where the session wrote last; else to the database's default home, or under `[default] write = "nearest"` to the
    /// nearest node. What must see all others of its kind (SERIALIZABLE, LOCK TABLE, FOR UPDATE without a key, whatever is
    /// [`Homed`]) goes to the default home. A read goes to the nearest node, unless a comment or a session rule names one, the rules
    /// have reads go to the home, or it begins a READ WRITE transaction. [`Rules::mode`] is not looked at: under
    /// `mode = "advise"` the caller only says what was decided.
    ///
    /// # Errors
    /// No node is healthy.
    pub fn decide_statement<'a>(
        &'a self,
        facts: &StatementFacts<'a>,
        plan: &Plan,
        evidence: Evidence<'a>,
        cluster: &ClusterView<'a>,
    ) -> Result<StatementDecision<'a>, NoHealthyNode> {
        let mut deciding = Deciding {
            rules: self,
            facts,
            cluster,
            split: None,
            passed_over: Vec::new(),
        };
        let (node, reason) = deciding.choose(plan, evidence).ok_or(NoHealthyNode)?;
        Ok(StatementDecision {
            node: node.id,
            node_name: node.name,
            reason,
            write: plan.class.is_write(),
            split: deciding.split,
            passed_over: deciding.passed_over,
        })
    }
}

type Choice<'a> = (&'a NodeView<'a>, StatementReason<'a>);

struct Deciding<'d, 'a> {
    rules: &'a Rules,
    facts: &'d StatementFacts<'a>,
    cluster: &'d ClusterView<'a>,
    split: Option<u16>,
    passed_over: Vec<PassedOver>,
}

impl<'a> Deciding<'_, 'a> {
    fn choose(&mut self, plan: &Plan, evidence: Evidence<'a>) -> Option<Choice<'a>> {
        if let Some(homed) = self.facts.homed {
            return self.default_home(DefaultHomeReason::Homed(homed));
        }
        if self.facts.serializable {
            return self.default_home(DefaultHomeReason::Serializable);
        }
        if plan.locks_table {
            return self.default_home(DefaultHomeReason::LockTable);
        }
        let locks_rows = || plan.tables.iter().any(|table| table.access == Access::Lock);
        if plan.class == Class::Lock && !locks_rows() {
            return self.default_home(DefaultHomeReason::AdvisoryLock);
        }
        match plan.class.is_write() && self.facts.transaction != Transaction::ReadOnly {
            true => self.write(plan, evidence),
            false => self.read(plan, evidence),
        }
    }

    fn write(&mut self, plan: &Plan, evidence: Evidence<'a>) -> Option<Choice<'a>> {
        let (found, because) = self.by_evidence(evidence);
        let keyed = found
            .or_else(|| self.by_text(self.facts.comment, NamedBy::Comment))
            .or_else(|| self.by_text(self.facts.session.key, NamedBy::Setting));
        // Rows that are locked without a key are to be locked for everybody.
        if keyed.is_some() || plan.class == Class::Lock {
            return keyed.or_else(|| self.default_home(because));
        }
        if let Some(choice) = self.by_session_rule() {
            return Some(choice);
        }
        match plan.class {
            Class::Ddl => self.default_home(because),
            _ => self.without_key(because),
        }
    }

    fn read(&mut self, plan: &Plan, evidence: Evidence<'a>) -> Option<Choice<'a>> {
        let read = self.rules.read;
        let reads_at_home = read.route == ReadRoute::Home || read.consistency == Consistency::Home;
        let begins = self.facts.transaction == Transaction::ReadWrite;
        let by_key = reads_at_home || begins;
        let (found, because) = match by_key {
            true => self.by_evidence(evidence),
            false => (None, DefaultHomeReason::NoKey(NoKey::NoRule)),
        };
        let setting = self.facts.session.key.filter(|_| by_key);
        let chosen = found
            .or_else(|| self.by_text(self.facts.comment, NamedBy::Comment))
            .or_else(|| self.by_text(setting, NamedBy::Setting))
            .or_else(|| self.by_session_rule());
        if chosen.is_some() {
            return chosen;
        }
        if begins {
            return self.without_key(because);
        }
        // The home of a table without a rule is the default home; a table with one has as many as there are keys.
        let has_default_home = plan.tables.iter().any(|table| table.placement.is_none());
        match reads_at_home && has_default_home {
            true => self.default_home(because),
            false => self.nearest(),
        }
    }

    fn without_key(&self, because: DefaultHomeReason<'a>) -> Option<Choice<'a>> {
        let last = match self.facts.transaction {
            Transaction::ReadWrite => self.facts.last_home,
            Transaction::Autocommit | Transaction::ReadOnly => None,
        };
        let last = last
            .and_then(|id| self.node(id))
            .filter(|node| node.healthy);
        match (last, self.rules.default_write) {
            (Some(node), _) => Some((node, StatementReason::LastHome)),
            (None, DefaultWrite::Home) => self.default_home(because),
            (None, DefaultWrite::Nearest) => self.nearest(),
        }
    }

    fn by_evidence(
        &mut self,
        evidence: Evidence<'a>,
    ) -> (Option<Choice<'a>>, DefaultHomeReason<'a>) {
        let keys = match evidence {
            Evidence::None(because) => return (None, DefaultHomeReason::NoKey(because)),
            Evidence::Key { placement, key } => {
                self.overrule(placement, Some(&key));
                let found = self.rules.placement(placement);
                let found =
                    found.and_then(|placement| self.home(placement, key, NamedBy::Statement));
                return (found, DefaultHomeReason::UnknownPlacement);
            }
            Evidence::Keys(keys) => keys,
        };
        let mut chosen: Option<Choice<'a>> = None;
        for (name, key) in keys {
            let Some(placement) = self.rules.placement(name) else {
                continue;
            };
            match &chosen {
                None => {
                    self.overrule(name, None);
                    chosen = self.home(placement, key, NamedBy::Statement);
                }
                Some((first, _)) => {
                    let home = placement.home(&key, self.cluster.nodes);
                    self.split = home.map(|home| home.node).filter(|node| *node != first.id);
                    if self.split.is_some() {
                        break;
                    }
                }
            }
        }
        (chosen, DefaultHomeReason::UnknownPlacement)
    }

    /// Notes what else was said of the key, if it was not the same.
    fn overrule(&mut self, placement: &str, key: Option<&Key>) {
        let said = self.facts.comment.or(self.facts.session.key);
        let Some(text) = said else { return };
        let is_same = text
            .split_once(':')
            .is_some_and(|(name, said)| name == placement && Some(&Key::from_text(said)) == key);
        if !is_same {
            let text = text.to_owned();
            self.passed_over.push(PassedOver::KeyOverruled { text });
        }
    }

    fn by_text(&mut self, text: Option<&str>, named_by: NamedBy) -> Option<Choice<'a>> {
        let (placement, key) = named_key(self.rules, text?, &mut self.passed_over)?;
        self.home(placement, key, named_by)
    }

    fn home(&self, placement: &'a Placement, key: Key, named_by: NamedBy) -> Option<Choice<'a>> {
        let home = placement.home(&key, self.cluster.nodes)?;
        let reason = StatementReason::Key {
            placement: &placement.name,
            key,
            because: home.because,
            named_by,
        };
        Some((self.node(home.node)?, reason))
    }

    fn by_session_rule(&mut self) -> Option<Choice<'a>> {
        let (node, rule, matches) = session_rule(
            self.rules,
            &self.facts.session,
            self.cluster,
            &mut self.passed_over,
        )?;
        Some((node, StatementReason::SessionRule { rule, matches }))
    }

    fn default_home(&self, because: DefaultHomeReason<'a>) -> Option<Choice<'a>> {
        let healthy = self.cluster.nodes.iter().filter(|node| node.healthy);
        let home = default_home_among(self.facts.session.database, healthy.map(|node| node.id))?;
        Some((self.node(home)?, StatementReason::DefaultHome(because)))
    }

    fn nearest(&self) -> Option<Choice<'a>> {
        let (node, reason) = nearest_node(self.cluster)?;
        let Reason::Nearest {
            same_zone,
            rtt_us,
            equally_near,
        } = reason
        else {
            return None;
        };
        let nearest = NearestNode {
            same_zone,
            rtt_us,
            equally_near,
        };
        Some((node, StatementReason::Nearest(nearest)))
    }

    fn node(&self, id: u16) -> Option<&'a NodeView<'a>> {
        self.cluster.nodes.iter().find(|node| node.id == id)
    }
}

impl fmt::Display for StatementDecision<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}: {}", self.node_name, self.reason)?;
        if let Some(other) = self.split {
            write!(f, "; keys of it are at home on node id {other} too")?;
        }
        for passed_over in &self.passed_over {
            write!(f, "; {passed_over}")?;
        }
        Ok(())
    }
}

impl fmt::Display for StatementReason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key {
                placement,
                key,
                because,
                named_by,
            } => {
                // The key is the client's text: escaped, so that it cannot forge a log line.
                let key = key.to_string();
                let key = key.escape_debug();
                write!(
                    f,
                    "home of key {placement}:{key} ({because}), named by {named_by}"
                )
            }
            Self::SessionRule { rule, matches } => write!(f, "session rule {rule} ({matches})"),
            Self::LastHome => f.write_str("where this session wrote last"),
            Self::DefaultHome(because) => write!(f, "default home: {because}"),
            Self::Nearest(nearest) => Reason::Nearest {
                same_zone: nearest.same_zone,
                rtt_us: nearest.rtt_us,
                equally_near: nearest.equally_near,
            }
            .fmt(f),
        }
    }
}

impl fmt::Display for NamedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Statement => "the statement",
            Self::Comment => "its leading comment",
            Self::Setting => "tandem.key",
        })
    }
}

impl fmt::Display for DefaultHomeReason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKey(because) => because.fmt(f),
            Self::UnknownPlacement => f.write_str("the rules do not have its placement any more"),
            Self::Serializable => f.write_str("the transaction is SERIALIZABLE"),
            Self::LockTable => f.write_str("LOCK TABLE"),
            Self::AdvisoryLock => f.write_str("it takes advisory locks"),
            Self::Homed(homed) => write!(f, "that is where {homed} are"),
        }
    }
}

#[cfg(test)]
mod tests;
