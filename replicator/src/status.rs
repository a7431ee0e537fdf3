//! What the replicator tells about itself.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::meter::{Course, Rates};
use crate::node::{NodeState, Shared};
use crate::progress::{Link, LinkState};
use crate::version::pg_now;
use crate::vitals;

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
    /// What its clock says.
    pub clock: ClockStatus,
    /// What is read from it.
    pub capture: CaptureStatus,
    /// What is kept of its stream for targets.
    pub journal: JournalStatus,
    /// What its slot costs it; `None` while it is away.
    pub slot: Option<SlotStatus>,
}

/// The clock of one node.
#[derive(Debug, Clone, Serialize)]
pub struct ClockStatus {
    /// Its clock minus the one in the middle of all nodes that are up; milliseconds. `None` while it is away.
    pub offset_ms: Option<f64>,
    /// Its clock minus the daemon's; milliseconds.
    pub daemon_offset_ms: Option<f64>,
    /// By how much either may be wrong: half of the quickest round trip; milliseconds.
    pub error_ms: Option<f64>,
    /// Why the node is fenced: its clock lets it take no writes. `None`: it takes them.
    pub fenced: Option<String>,
}

/// What is read from one node's slot. Counted since the daemon started.
#[derive(Debug, Clone, Serialize)]
pub struct CaptureStatus {
    /// Transactions to deliver.
    pub transactions: u64,
    /// Changes of rows in them.
    pub rows: u64,
    /// Bytes of those changes.
    pub bytes: u64,
    /// How fast it goes; bytes are those of changes.
    pub rates: RateStatus,
    /// Bytes of the node's WAL that were not read yet, half a second ago.
    pub lag_bytes: Option<u64>,
}

/// Per second, over the last ten seconds.
#[derive(Debug, Clone, Serialize)]
pub struct RateStatus {
    /// Transactions.
    pub transactions: Option<f64>,
    /// Changes of rows; `None` where they were read before the daemon started.
    pub rows: Option<f64>,
    /// Bytes.
    pub bytes: Option<f64>,
}

impl From<Rates> for RateStatus {
    fn from(rates: Rates) -> Self {
        Self {
            transactions: rates.transactions,
            rows: rates.rows,
            bytes: rates.bytes,
        }
    }
}

/// What a slot costs its node: `pg_replication_slots`, half a second ago.
#[derive(Debug, Clone, Serialize)]
pub struct SlotStatus {
    /// Bytes of WAL that the node cannot remove.
    pub retained_bytes: u64,
    /// Bytes of WAL between what was confirmed and the end.
    pub unconfirmed_bytes: u64,
    /// Transactions since the oldest whose catalog rows VACUUM has to keep.
    pub xid_age: Option<i32>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Bytes of WAL until it is in danger, where the node has `max_slot_wal_keep_size`.
    pub safe_bytes: Option<i64>,
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
    /// `waiting`, `streaming`, `waiting_for_cause`, `waiting_for_clock` or `blocked`.
    pub state: &'static str,
    /// What it waits for or is blocked by.
    pub problem: Option<String>,
    /// Position in the source's WAL up to which the target has applied everything.
    pub applied: String,
    /// The same, flushed.
    pub durable: String,
    /// Bytes of the source's WAL between what was read from it and what is applied.
    pub lag_bytes: u64,
    /// Transactions that were read and are not applied: the queue. `None` while the target is at something that an earlier
    /// daemon has read. Exact when the target stands at the end of what one read brought.
    pub lag_transactions: Option<u64>,
    /// How long ago the next transaction to apply was committed, by its node's clock put right; milliseconds.
    pub lag_ms: Option<i64>,
    /// How fast it goes; bytes are those of the source's WAL.
    pub rates: RateStatus,
    /// What it waits for, while its state is `waiting_for_cause`.
    pub waiting: Option<WaitStatus>,
    /// For how long it has been in its state; milliseconds.
    pub state_ms: u64,
    /// Transactions applied since the daemon started.
    pub transactions: u64,
    /// Conflicts that its changes met since the daemon started.
    pub conflicts: u64,
    /// The same by type.
    pub conflicts_by_type: BTreeMap<&'static str, u64>,
    /// Transactions of the source that the target refused and keeps in `tandem.quarantine`.
    pub quarantined: usize,
}

/// What a link waits for: what the next transaction may have seen.
#[derive(Debug, Clone, Serialize)]
pub struct WaitStatus {
    /// Name of the node whose transactions the target lacks.
    pub node: String,
    /// Up to where in that node's WAL; `None` while that is being found out.
    pub position: Option<String>,
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
    let middle = vitals::middle(&shared.vitals);
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
            clock: clock_status(shared, index, middle),
            capture: capture_status(shared, index),
            journal: journal_status(shared, index),
            slot: slot_status(shared, index),
        }
    });
    // The link of a node to itself is nobody's business unless something is wrong with it.
    let shown = |link: &&Link| {
        link.source != link.target || matches!(link.state().0, LinkState::Blocked { .. })
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

/// Why a node is fenced, if it is.
pub(crate) fn fenced(shared: &Shared, index: usize) -> Option<String> {
    shared.vitals.get(index).and_then(|vitals| vitals.fenced())
}

fn clock_status(shared: &Shared, index: usize, middle: Option<i64>) -> ClockStatus {
    let estimate = shared.vitals.get(index).and_then(|vitals| vitals.clock());
    let offset = estimate.map(|estimate| estimate.offset_us);
    ClockStatus {
        fenced: fenced(shared, index),
        offset_ms: offset
            .zip(middle)
            .map(|(offset, middle)| milliseconds(offset - middle)),
        daemon_offset_ms: offset.map(milliseconds),
        error_ms: estimate.map(|estimate| milliseconds(estimate.error_us)),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure to show")]
fn milliseconds(us: i64) -> f64 {
    us as f64 / 1000.0
}

fn capture_status(shared: &Shared, index: usize) -> CaptureStatus {
    let total = shared.meter.read(index, Course::total);
    let end = shared.vitals.get(index).and_then(|vitals| vitals.slot());
    let tail = shared.journals.get(index).map(|journal| journal.tail());
    CaptureStatus {
        transactions: total.transactions,
        rows: total.rows,
        bytes: total.bytes,
        rates: shared.meter.captured(index).into(),
        lag_bytes: end
            .zip(tail)
            .map(|(slot, tail)| slot.wal_end.0.saturating_sub(tail.0)),
    }
}

fn slot_status(shared: &Shared, index: usize) -> Option<SlotStatus> {
    let slot = shared.vitals.get(index).and_then(|vitals| vitals.slot())?;
    Some(SlotStatus {
        retained_bytes: u64::try_from(slot.retained_bytes).unwrap_or(0),
        unconfirmed_bytes: u64::try_from(slot.unconfirmed_bytes).unwrap_or(0),
        xid_age: slot.xid_age,
        wal_status: slot.wal_status,
        safe_bytes: slot.safe_bytes,
    })
}

/// How long ago the oldest change of another node was committed that a node lacks.
pub(crate) fn lag(shared: &Shared, target: usize) -> Duration {
    let links = shared.links.of_target(target);
    let others = links.filter(|link| link.source != target);
    let lags = others.filter_map(|link| u64::try_from(lag_ms(shared, link)?).ok());
    Duration::from_millis(lags.max().unwrap_or_default())
}

fn lag_ms(shared: &Shared, link: &Link) -> Option<i64> {
    let applied = link.applied();
    let journal = shared.journals.get(link.source);
    let tail = journal.map_or(applied, |journal| journal.tail());
    let (behind, next) = shared.meter.read(link.source, |course| {
        (course.behind(applied), course.first_behind(applied))
    });
    let transactions = behind.map(|behind| behind.transactions);
    if tail <= applied || transactions == Some(0) {
        return Some(0);
    }
    // What was read by an earlier daemon is at least as old as what was applied last.
    let next = match behind {
        Some(_) => next,
        None => link.last_timestamp(),
    };
    let vitals = shared.vitals.get(link.source);
    let offset_us = vitals
        .and_then(|vitals| vitals.clock())
        .map_or(0, |clock| clock.offset_us);
    next.map(|next| ((pg_now() + offset_us - next) / 1000).max(0))
}

pub(crate) fn link_status(shared: &Shared, link: &Link) -> LinkStatus {
    let name = |index: usize| {
        shared
            .config
            .nodes
            .get(index)
            .map_or_else(String::new, |node| node.name.clone())
    };
    let (state, since) = link.state();
    let mut waiting = None;
    let (state, problem) = match state {
        LinkState::Waiting => ("waiting", None),
        LinkState::Streaming => ("streaming", None),
        LinkState::WaitingForClock => {
            let problem = format!("the clock of {} to pass the next change", name(link.target));
            ("waiting_for_clock", Some(problem))
        }
        LinkState::WaitingForCause { node, lsn } => {
            let cause = shared.node_ids.iter().position(|&id| id == node);
            let wait = WaitStatus {
                node: cause.map_or_else(|| node.to_string(), name),
                position: lsn.map(|lsn| lsn.to_string()),
            };
            let problem = match &wait.position {
                Some(position) => format!("transactions of {} up to {position}", wait.node),
                None => format!("transactions of {}", wait.node),
            };
            waiting = Some(wait);
            ("waiting_for_cause", Some(problem))
        }
        LinkState::Blocked { problem } => ("blocked", Some(problem)),
    };
    let applied = link.applied();
    let journal = shared.journals.get(link.source);
    let tail = journal.map_or(applied, |journal| journal.tail());
    let lag_bytes = tail.0.saturating_sub(applied.0);
    let behind = shared
        .meter
        .read(link.source, |course| course.behind(applied));
    let lag_transactions = behind.map(|behind| behind.transactions);
    let conflicts_by_type = link.conflicts();
    LinkStatus {
        source: name(link.source),
        target: name(link.target),
        state,
        problem,
        applied: applied.to_string(),
        durable: link.durable().to_string(),
        lag_bytes,
        lag_transactions: if lag_bytes == 0 {
            Some(0)
        } else {
            lag_transactions
        },
        lag_ms: lag_ms(shared, link),
        rates: shared.meter.applied(link.source, link.target).into(),
        waiting,
        state_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
        transactions: link.transactions(),
        conflicts: conflicts_by_type.values().sum(),
        conflicts_by_type,
        quarantined: quarantined(shared, link),
    }
}
