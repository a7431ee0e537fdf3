//! What the replicator tells about itself.

use std::fmt;

use serde::Serialize;

use crate::node::{NodeState, Shared};
use crate::progress::{Link, LinkState};
use crate::version::pg_now;

/// The state of everything.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The nodes, in the configuration's order.
    pub nodes: Vec<NodeStatus>,
    /// Each (source, target).
    pub links: Vec<LinkStatus>,
}

/// One node.
#[derive(Debug, Clone, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u16,
    /// `connecting`, `up` or `down`.
    pub state: &'static str,
    /// Why it is not up, and how to mend it.
    pub problem: Option<String>,
    /// Why its stream is not read.
    pub capture_problem: Option<String>,
    /// What is kept of its stream for targets.
    pub journal: JournalStatus,
}

/// The journal of one node's stream.
#[derive(Debug, Clone, Serialize)]
pub struct JournalStatus {
    /// Bytes on disk.
    pub bytes: u64,
    /// Bytes of changes in memory.
    pub memory_bytes: usize,
    /// Position in the node's WAL behind which it has everything; `None` until the stream was first read.
    pub first: Option<String>,
    /// Where what is on disk ends.
    pub last: Option<String>,
    /// Bytes of the node's WAL that its slot holds back, as far as they were read.
    pub slot_bytes: u64,
    /// Names of the targets that are so far behind that the slot has moved on without them.
    pub carried: Vec<String>,
    /// Why it takes nothing more, so that targets which are behind hold back WAL on the node.
    pub problem: Option<String>,
}

/// One link.
#[derive(Debug, Clone, Serialize)]
pub struct LinkStatus {
    /// Name of the source.
    pub source: String,
    /// Name of the target.
    pub target: String,
    /// `waiting`, `streaming`, `waiting_for_cause` or `blocked`.
    pub state: &'static str,
    /// What it waits for or is blocked by.
    pub problem: Option<String>,
    /// Position in the source's WAL up to which the target has applied everything.
    pub applied: String,
    /// The same, flushed.
    pub durable: String,
    /// Bytes of the source's WAL between what was read from it and what is applied.
    pub lag_bytes: u64,
    /// Age of the last transaction applied, while there is something left to apply; milliseconds.
    pub lag_ms: Option<i64>,
    /// Transactions applied since the daemon started.
    pub transactions: u64,
    /// Conflicts that its changes met since the daemon started.
    pub conflicts: u64,
    /// Transactions of the source that the target refused and keeps in `tandem.quarantine`.
    pub quarantined: usize,
}

impl fmt::Display for LinkStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} to {}: {}, {} bytes behind",
            self.source, self.target, self.state, self.lag_bytes
        )?;
        if self.quarantined > 0 {
            write!(f, ", {} transactions in quarantine", self.quarantined)?;
        }
        match &self.problem {
            Some(problem) => write!(f, " ({problem})"),
            None => Ok(()),
        }
    }
}

/// Takes a picture of everything.
pub(crate) fn status(shared: &Shared) -> Status {
    let nodes = shared.config.nodes.iter().enumerate().map(|(index, node)| {
        let (state, problem) = match shared.state(index) {
            NodeState::Connecting => ("connecting", None),
            NodeState::Up => ("up", None),
            NodeState::Down { problem } => ("down", Some(problem)),
        };
        NodeStatus {
            name: node.name.clone(),
            id: node.id,
            state,
            problem,
            capture_problem: shared.capture_problem(index),
            journal: journal_status(shared, index),
        }
    });
    // The link of a node to itself is nobody's business unless something is wrong with it.
    let shown = |link: &&Link| {
        link.source != link.target || matches!(link.state(), LinkState::Blocked { .. })
    };
    let links = shared.links.iter().filter(shown);
    Status {
        nodes: nodes.collect(),
        links: links.map(|link| link_status(shared, link)).collect(),
    }
}

/// How many transactions of the link's source its target holds in quarantine.
pub(crate) fn quarantined(shared: &Shared, link: &Link) -> usize {
    let held = shared.quarantines.get(link.target);
    let source = shared.node_ids.get(link.source);
    held.zip(source)
        .map_or(0, |(held, &source)| held.of_source(source))
}

fn journal_status(shared: &Shared, index: usize) -> JournalStatus {
    let journal = shared.journals.get(index);
    let figures = journal.map(|journal| journal.figures()).unwrap_or_default();
    let nodes = shared.config.nodes.iter();
    let carried = nodes.filter(|node| figures.carried.contains(&node.id));
    JournalStatus {
        bytes: figures.bytes,
        memory_bytes: figures.memory_bytes,
        first: figures.range.map(|(first, _)| first.to_string()),
        last: figures.range.map(|(_, last)| last.to_string()),
        slot_bytes: figures.slot_bytes,
        carried: carried.map(|node| node.name.clone()).collect(),
        problem: figures.problem,
    }
}

pub(crate) fn link_status(shared: &Shared, link: &Link) -> LinkStatus {
    let name = |index: usize| {
        shared
            .config
            .nodes
            .get(index)
            .map_or_else(String::new, |node| node.name.clone())
    };
    let (state, problem) = match link.state() {
        LinkState::Waiting => ("waiting", None),
        LinkState::Streaming => ("streaming", None),
        LinkState::WaitingForCause { node } => {
            let cause = shared
                .node_ids
                .iter()
                .position(|&id| id == node)
                .map_or_else(|| node.to_string(), name);
            (
                "waiting_for_cause",
                Some(format!("transactions of {cause}")),
            )
        }
        LinkState::Blocked { problem } => ("blocked", Some(problem)),
    };
    let applied = link.applied();
    let tail = shared
        .journals
        .get(link.source)
        .map_or(applied, |journal| journal.tail());
    let lag_bytes = tail.0.saturating_sub(applied.0);
    let age = link
        .last_timestamp()
        .map(|timestamp| (pg_now() - timestamp) / 1000);
    LinkStatus {
        source: name(link.source),
        target: name(link.target),
        state,
        problem,
        applied: applied.to_string(),
        durable: link.durable().to_string(),
        lag_bytes,
        lag_ms: if lag_bytes == 0 { Some(0) } else { age },
        transactions: link.transactions(),
        conflicts: link.conflicts(),
        quarantined: quarantined(shared, link),
    }
}
