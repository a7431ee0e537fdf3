//! What the policies of the rules have to say of a write where its transaction stands.

use core::fmt;

use super::{ClusterView, NodeView, StatementFacts, named_key};
use crate::model::{CrossHome, Rules};
use crate::placement::{HomeReason, Key};
use crate::statement::{Evidence, NoKey, Plan};

/// What is remarkable of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding<'a> {
    /// It reaches over homes. What becomes of it, and the first of its keys that is at home elsewhere.
    CrossHome(CrossHome, Away<'a>),
    /// It names no key, and has to.
    NoKey(NoKey<'a>),
}

/// A key that is at home on another node than where the transaction stands. Displays as a clause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Away<'a> {
    /// The key space.
    pub placement: &'a str,
    /// The key.
    pub key: Key,
    /// Its home.
    pub home: &'a str,
    /// Why that is its home.
    pub because: HomeReason,
}

impl Rules {
    /// What there is to be said of a statement whose transaction stands on the node `at`. A key is what the statement names,
    /// else its leading comment, else `tandem.key`, as in [`Rules::decide_statement`]. Nothing is found in what writes no
    /// rows ([`Plan::writes_rows`]).
    pub fn find<'a>(
        &'a self,
        facts: &StatementFacts<'a>,
        plan: &Plan,
        evidence: Evidence<'a>,
        at: u16,
        cluster: &ClusterView<'a>,
    ) -> Option<Finding<'a>> {
        if !plan.writes_rows() {
            return None;
        }
        let away = |placement, key| self.away(placement, key, at, cluster);
        let found = match evidence {
            Evidence::Key { placement, key } => away(placement, key),
            Evidence::Keys(keys) => keys
                .into_iter()
                .find_map(|(placement, key)| away(placement, key)),
            Evidence::None(because) => {
                let said = |text: Option<&'a str>| named_key(self, text?, &mut Vec::new());
                match said(facts.comment).or_else(|| said(facts.session.key)) {
                    Some((placement, key)) => away(&placement.name, key),
                    None if plan.policy(self.policy).require_key => {
                        return Some(Finding::NoKey(because));
                    }
                    None => None,
                }
            }
        };
        found.map(|away| Finding::CrossHome(plan.policy(self.policy).cross_home, away))
    }

    fn away<'a>(
        &'a self,
        placement: &str,
        key: Key,
        at: u16,
        cluster: &ClusterView<'a>,
    ) -> Option<Away<'a>> {
        let placement = self.placement(placement)?;
        let home = placement.home(&key, cluster.nodes)?;
        if home.node == at {
            return None;
        }
        let is_home = |node: &&NodeView<'_>| node.id == home.node;
        Some(Away {
            placement: &placement.name,
            key,
            home: cluster.nodes.iter().find(is_home)?.name,
            because: home.because,
        })
    }
}

impl fmt::Display for Away<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key is the client's text: escaped, so that it cannot forge a log line.
        let key = self.key.to_string();
        write!(
            f,
            "key {}:{} is at home on node {} ({})",
            self.placement,
            key.escape_debug(),
            self.home,
            self.because
        )
    }
}

#[cfg(test)]
mod tests;
