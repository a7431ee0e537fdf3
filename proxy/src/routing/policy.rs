//! Owns what the policies of the rules find in a statement that is about to go to a server.

use tandem_routing_rules::{
    ClusterView, CrossHome, Finding, Mode, StatementFacts,
    statement::{Class, Evidence},
};

use super::{Chooser, Run, glance, views};

/// What was found, in words where somebody is told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing.
    Nothing,
    /// It reaches over homes: what becomes of it, and which of its keys is at home elsewhere.
    CrossHome(CrossHome, Box<str>),
    /// It names no key and has to: why it has none.
    NoKey(Box<str>),
}

impl Chooser<'_> {
    /// What is found in this where its transaction stands on the node `at`. None: what it is cannot be told.
    pub(crate) fn examine(&self, run: Option<Run<'_>>, at: usize) -> Found {
        let config = &self.settings.config;
        if config.rules.mode == Mode::Advise || !self.is_replicated() {
            return Found::Nothing;
        }
        // Most of what runs inside of a block reads.
        if run.is_some_and(|run| glance::class(run.text) == Some(Class::Read)) && !self.has_views()
        {
            return Found::Nothing;
        }
        let Some(at) = self.nodes.get(at).map(|node| node.config().id) else {
            return Found::Nothing;
        };
        self.with_plan(run, |plan, evidence: Evidence<'_>, comment| {
            // Of most it is enough to know what they do.
            if !plan.writes_rows() {
                return Found::Nothing;
            }
            let views = views::live(self.nodes, self.health, |node| self.health.usable(node));
            let cluster = ClusterView {
                nodes: &views,
                zone: config.proxy.zone.as_deref(),
            };
            let facts = StatementFacts {
                session: self.session,
                comment,
                ..StatementFacts::default()
            };
            match config.rules.find(&facts, plan, evidence, at, &cluster) {
                None => Found::Nothing,
                Some(Finding::CrossHome(CrossHome::Allow, _)) => {
                    Found::CrossHome(CrossHome::Allow, Box::default())
                }
                Some(Finding::CrossHome(policy, away)) => {
                    Found::CrossHome(policy, away.to_string().into())
                }
                Some(Finding::NoKey(because)) => Found::NoKey(because.to_string().into()),
            }
        })
    }
}
