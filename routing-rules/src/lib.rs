//! The routing rules: the rules file, placement of keys on nodes, and the decision where a session or a statement goes;
//! SQL's tokens ([`lex`]), what texts have in common ([`template`]), what a statement does ([`statement`]) and what it does
//! to its session ([`state`]).
//!
//! Pure: no I/O, no async, no clock. What the cluster looks like comes in as a value.
//!
//! ```
//! use tandem_routing_rules::{ClusterView, NodeInfo, NodeView, Rules, SessionFacts, decide_session};
//!
//! let nodes = [NodeInfo { id: 1, name: "paris".into(), zone: None }, NodeInfo { id: 2, name: "oslo".into(), zone: None }];
//! let rules = Rules::parse("[[session]]\nmatch = { user = \"batch*\" }\nnode = \"oslo\"\n", &nodes)?;
//!
//! let node = |id, name| NodeView { id, name, zone: None, healthy: true, rtt_us: Some(300), sessions: 0 };
//! let nodes = [node(1, "paris"), node(2, "oslo")];
//! let cluster = ClusterView { nodes: &nodes, zone: None };
//! let facts = SessionFacts { user: "batch_7", database: "app", ..SessionFacts::default() };
//! let decision = decide_session(&rules, &facts, &cluster)?;
//! assert_eq!(decision.to_string(), "node oslo: session rule 1 (user = batch*)");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod catalog;
pub mod check;
mod decide;
pub mod document;
pub mod expression;
pub mod lex;
mod model;
mod nearest;
pub mod network;
mod parse;
pub mod pattern;
mod placement;
mod rendezvous;
pub mod schema;
pub mod state;
pub mod statement;
pub mod template;

pub use decide::{
    Away, ClusterView, Decision, DefaultHomeReason, Finding, NamedBy, NearestNode, NoHealthyNode,
    NodeView, PassedOver, Reason, SessionFacts, StatementDecision, StatementFacts, StatementReason,
    Transaction, decide_session,
};
pub use model::{
    Affinity, ColumnNames, Consistency, CrossHome, DefaultWrite, KeyRange, Lost, Mode, NodeInfo,
    Placement, Policy, ReadRoute, ReadRules, RuleErrors, Rules, Scope, SessionMatch, SessionRule,
    Strategy,
};
pub use nearest::nearest;
pub use placement::{Home, HomeReason, Key};
pub use rendezvous::default_home;
