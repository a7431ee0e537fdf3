//! Keeps all nodes converged: reads each node's WAL once and applies it to all the others, in causal order, under
//! one order of versions.
//!
//! This crate knows no client session and no consensus. Its state lives in the nodes (origins, slots, schema
//! `tandem`) and in the journals on local disk; a daemon that is killed at any point loses nothing and repeats nothing.

mod apply;
mod capture;
mod carry;
pub mod check;
mod clock;
mod collect;
mod conflict;
pub mod control;
mod counters;
mod ddl;
mod debt;
mod identity;
mod image;
mod journal;
mod meter;
mod node;
pub mod operator;
mod origin;
pub mod pgoutput;
mod position;
mod progress;
mod quarantine;
mod relation;
mod resolve;
mod runs;
mod setup;
mod shadow;
mod status;
mod tables;
mod tail;
mod thread;
mod transaction;
mod turns;
mod verify;
mod version;
mod vitals;
mod watermark;
mod witness;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tandem_wire::connect::ConnectOptions;
use tandem_wire::lsn::Lsn;
use tokio::sync::{Mutex as AsyncMutex, RwLock, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use check::Problem;
pub use conflict::resolver::Resolver;
use control::{Control, ControlError};
pub use ddl::{DdlClass, DdlPolicy, DdlRule};
use journal::Journal;
use meter::Meter;
use node::{NodeState, Shared};
use operator::Operator;
pub use position::Point;
use position::Positions;
use progress::Links;
use relation::Interner;
pub use setup::slot_name;
pub use status::{
    CaptureStatus, ClockStatus, JournalStatus, LinkStatus, NodeStatus, RateStatus, SlotStatus,
    Status, WaitStatus,
};
pub use tables::{TableFilter, TablePolicy, Tables};
pub use tail::{Tail, TailFigures};
use turns::Turns;
pub use verify::{
    Difference, Event, NodeRow, Progress, RepairRequest, Summary, Verification, VerifyBusy,
    VerifyRequest, VersionText,
};
pub use version::Moment;
use vitals::Vitals;
pub use watermark::NotConverged;

/// A member of the cluster.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its id, 1 to 1023: part of every row's version, so it is never used again for another node.
    pub id: u16,
    /// How to reach it, as Tandem's own role, in the database that is kept converged.
    pub connect: ConnectOptions,
}

/// What to keep converged, and where.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's name; part of the slots' names, so `[a-z0-9_]` only.
    pub cluster: String,
    /// The members.
    pub nodes: Vec<Node>,
    /// Which tables, and how.
    pub tables: Arc<Tables>,
    /// Where what targets still need is kept.
    pub journal: JournalConfig,
    /// When so many transactions of a node wait to be applied to another, they are brought together and applied as one;
    /// `None`: each is applied by itself always.
    pub group_from: Option<usize>,
    /// A node whose clock is further from the others' gets no writes.
    pub clock_offset_max: Duration,
}

/// Where what targets still need is kept, and how much of it.
#[derive(Debug, Clone)]
pub struct JournalConfig {
    /// The directory; made with mode 0700 where it is missing. No other cluster may use it.
    pub dir: PathBuf,
    /// Bytes of the files of one source at most, but for a single transaction that is larger.
    pub bytes_max: u64,
    /// A target that is more bytes of WAL behind than this no longer holds back the source's slot.
    pub carry_bytes: u64,
    /// The same for one that is behind for longer than this.
    pub carry_after: Duration,
}

/// The running replicator.
pub struct Replicator {
    shared: Arc<Shared>,
    tasks: Mutex<JoinSet<()>>,
}

impl std::fmt::Debug for Replicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replicator").finish_non_exhaustive()
    }
}

impl Replicator {
    /// Starts it. A node that is down is no error: it is tried again for ever, and [`status`](Self::status) says why.
    /// `tails`: what an earlier daemon has counted of nodes that were gone, by their index in the configuration.
    pub fn start(config: Config, tails: Vec<Option<Tail>>) -> Self {
        let count = config.nodes.len();
        let interner = Arc::new(Interner::default());
        let journal = |node: &Node| {
            let dir = config.journal.dir.join(format!("node-{}", node.id));
            let interner = Arc::clone(&interner);
            Arc::new(Journal::new(dir, config.journal.bytes_max, interner))
        };
        let shared = Arc::new(Shared {
            links: Arc::new(Links::new(count)),
            positions: Positions::new(count),
            meter: Meter::new(count),
            vitals: (0..count)
                .map(|node| Arc::new(Vitals::new(node, config.clock_offset_max)))
                .collect(),
            journals: config.nodes.iter().map(journal).collect(),
            witnesses: (0..count).map(|_| Arc::default()).collect(),
            captures: (0..count).map(|_| Mutex::new(None)).collect(),
            tails: (tails.into_iter().chain(std::iter::repeat(None)))
                .take(count)
                .map(|tail| Arc::new(Mutex::new(tail)))
                .collect(),
            node_ids: config.nodes.iter().map(|node| node.id).collect(),
            turns: Turns::new(config.nodes.iter().map(|node| node.id).collect()),
            states: (0..count)
                .map(|_| Mutex::new(NodeState::Connecting))
                .collect(),
            controls: (0..count).map(|_| watch::Sender::new(None)).collect(),
            interner,
            shadows: (0..count).map(|_| Arc::default()).collect(),
            runs: (0..count).map(|_| Arc::default()).collect(),
            quarantines: (0..count).map(|_| Arc::default()).collect(),
            contests: (0..count).map(|_| Arc::default()).collect(),
            gates: (0..count).map(|_| Arc::new(RwLock::new(()))).collect(),
            schemas: (0..count).map(|_| Arc::default()).collect(),
            collecting: AsyncMutex::new(()),
            verifying: Arc::new(AsyncMutex::new(())),
            config,
        });
        let mut tasks = JoinSet::new();
        for index in 0..count {
            tasks.spawn(node::keep(Arc::clone(&shared), index));
        }
        tasks.spawn(meter::keep(Arc::clone(&shared)));
        if count > 1 {
            tasks.spawn(collect::keep(Arc::clone(&shared)));
        }
        Self {
            shared,
            tasks: Mutex::new(tasks),
        }
    }

    /// The state of everything.
    pub fn status(&self) -> Status {
        status::status(&self.shared)
    }

    /// Why the node with this index in the configuration should get no writes: its clock is off, or was set back.
    pub fn fenced(&self, node: usize) -> Option<String> {
        status::fenced(&self.shared, node)
    }

    /// What an operator does to single rows and transactions.
    pub fn operator(&self) -> Operator {
        Operator::new(Arc::clone(&self.shared))
    }

    /// Waits until every change that was committed on any node before the call is applied on all.
    ///
    /// # Errors
    /// [`NotConverged`] after `timeout`, with what is behind.
    pub async fn wait_converged(&self, timeout: Duration) -> Result<(), NotConverged> {
        watermark::settled(&self.shared, Instant::now() + timeout).await
    }

    /// Waits until the node `to` shows these points of other nodes to whoever reads it: what was committed there, and what they
    /// had of others. Nodes by their index in the configuration. Whether that is so within `timeout`; never when a node of
    /// which a time is wanted cannot be asked.
    pub fn shows(
        &self,
        points: Vec<(usize, Point)>,
        to: usize,
        timeout: Duration,
    ) -> impl Future<Output = bool> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        position::shows(shared, points, to, Instant::now() + timeout)
    }

    /// Waits until a node has what the others wrote while it was away, and those that answer have what it wrote: all that was
    /// committed before the call. Whether that is so within `timeout`.
    pub fn caught_up(
        &self,
        node: usize,
        answering: Vec<usize>,
        timeout: Duration,
    ) -> impl Future<Output = bool> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        position::caught_up(shared, node, answering, Instant::now() + timeout)
    }

    /// Whether the stream of this node has shown that the transaction of this number is committed, which a connection worked on that
    /// was begun at `since`. That it has not proves nothing.
    pub fn has_committed(&self, node: usize, number: u64, since: Instant) -> bool {
        let witness = self.shared.witnesses.get(node);
        witness.is_some_and(|witness| meter::lock(witness).has_committed(number, since))
    }

    /// How long ago the oldest change of another node was committed that this node lacks, as far as it was read.
    pub fn lag(&self, node: usize) -> Duration {
        status::lag(&self.shared, node)
    }

    /// From now on what is read of this node, which was found gone, is counted as its tail.
    pub fn begin_tail(&self, node: usize) {
        let read = self.shared.journals.get(node).map(|journal| journal.tail());
        // Before the first stream nothing is known of where it begins.
        let read = read.filter(|read| *read > Lsn(0));
        self.with_tail(node, |tail| *tail = Some(Tail::behind(read)));
    }

    /// The node is back: a watermark ends its tail, unless it cannot be asked within `timeout`. What it commits later is none.
    pub fn end_tail(
        &self,
        node: usize,
        timeout: Duration,
    ) -> impl Future<Output = ()> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        async move {
            let now = Instant::now();
            let end = position::position(Arc::clone(&shared), node, now, now + timeout).await;
            if let (Some(end), Some(tail)) = (end, shared.tails.get(node))
                && let Some(tail) = meter::lock(tail).as_mut()
            {
                tail.set_end(Some(end));
            }
        }
    }

    /// The node is gone again before its tail was judged: what follows belongs to it too.
    pub fn reopen_tail(&self, node: usize) {
        self.with_tail(node, |tail| {
            if let Some(tail) = tail {
                tail.set_end(None);
            }
        });
    }

    /// What was counted so far of a node that was found gone.
    pub fn tail(&self, node: usize) -> Option<Tail> {
        let tail = self.shared.tails.get(node)?;
        meter::lock(tail).clone()
    }

    /// The node's tail is judged: nothing more is counted.
    pub fn forget_tail(&self, node: usize) {
        self.with_tail(node, |tail| *tail = None);
    }

    fn with_tail(&self, node: usize, change: impl FnOnce(&mut Option<Tail>)) {
        if let Some(tail) = self.shared.tails.get(node) {
            change(&mut meter::lock(tail));
        }
    }

    /// Whether another daemon works on this node, as far as is known.
    pub fn is_foreign(&self, node: usize) -> bool {
        self.shared.turns.is_foreign(node)
    }

    /// Whether the node `to` is known to show this of the node `from`, without asking anybody.
    pub fn has_shown(&self, from: usize, point: Point, to: usize) -> bool {
        position::has_shown(&self.shared, from, point, to)
    }

    /// A position in the WAL of a node behind all that was to be seen there at `since`. None: it cannot be asked within `timeout`.
    pub fn position(
        &self,
        node: usize,
        since: Instant,
        timeout: Duration,
    ) -> impl Future<Output = Option<Lsn>> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        position::position(shared, node, since, Instant::now() + timeout)
    }

    /// The same, if somebody has asked for one already.
    pub fn known_position(&self, node: usize, since: Instant) -> Option<Lsn> {
        position::known_position(&self.shared, node, since)
    }

    /// Compares all nodes, row by row with versions, while they are in use. Everything that it finds comes out of the
    /// answer.
    ///
    /// # Errors
    /// [`VerifyBusy`] while another one, or a repair, is running.
    pub fn diff(&self, request: VerifyRequest) -> Result<Verification, VerifyBusy> {
        Verification::start(&self.shared, request, None)
    }

    /// The same, and mends what differs: every node gets the newest version of a row, or what `request` says.
    ///
    /// # Errors
    /// [`VerifyBusy`] while another one, or a comparison, is running.
    pub fn repair(&self, request: RepairRequest) -> Result<Verification, VerifyBusy> {
        Verification::start(&self.shared, request.compare.clone(), Some(request))
    }

    /// Ends all work. What is in flight is committed or not; either way the next start goes on exactly there.
    pub async fn stop(&self) {
        let mut tasks = std::mem::take(
            &mut *self
                .tasks
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        tasks.shutdown().await;
    }
}

/// Asks a node what keeps it from being a member of a cluster of `nodes` nodes that keeps `tables` converged.
///
/// # Errors
/// When it cannot be reached.
pub async fn check_node(
    node: &Node,
    nodes: usize,
    tables: &Tables,
) -> Result<Vec<Problem>, ControlError> {
    let control = Control::connect(&node.connect, "tandem check").await?;
    let mut problems = check::check(&control, nodes, &tables.filter).await?;
    problems.extend(identity::problems(&control, tables).await?);
    Ok(problems)
}
