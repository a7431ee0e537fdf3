//! One node: taken, kept, and worked on by its capture, the links into it, and the flush that makes them durable.

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tandem_wire::lsn::Lsn;
use tokio::sync::{Mutex as AsyncMutex, RwLock, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::apply::{self, ApplyError, Carried, LinkContext, Place, Severity};
use crate::capture::{Capture, CaptureError};
use crate::carry::Bounds;
use crate::control::{Control, ControlError};
use crate::journal::Journal;
use crate::meter::Meter;
use crate::position::Positions;
use crate::progress::{LinkState, Links};
use crate::quarantine::Quarantine;
use crate::relation::Interner;
use crate::resolve::{self, Contests};
use crate::runs::Runs;
use crate::setup::{NodeFacts, OriginProgress, SetupError, own, take};
use crate::shadow::Shadows;
use crate::tables::Tables;
use crate::tail::Tail;
use crate::thread::on_own_thread;
use crate::turns::Turns;
use crate::vitals::{self, Vitals};
use crate::witness::Witness;
use crate::{Config, Node, counters, identity};

/// Pause before a node, a capture or a link that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// The same for a link that failed for the first time, or for what passes by itself.
const SHORT_PAUSE: Duration = Duration::from_millis(20);
/// The pause grows up to this while a link makes no progress.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often one transaction may lose a race in a row before its link is called blocked.
const RACES_MAX: u32 = 20;
/// How often new tables are looked for.
const TABLES_INTERVAL: Duration = Duration::from_secs(5);
/// How often a target is flushed while something is applied to it.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

/// Whether a node is worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodeState {
    /// Not reached yet.
    Connecting,
    /// Taken; its stream is read and changes are applied to it.
    Up,
    /// Not usable; it is tried again.
    Down {
        /// Why, and how to mend it.
        problem: String,
    },
}

/// What all nodes share.
pub(crate) struct Shared {
    /// The configuration.
    pub config: Config,
    /// Positions of all links.
    pub links: Arc<Links>,
    /// Positions that sessions were given.
    pub(crate) positions: Positions,
    /// How much goes where, and how fast.
    pub(crate) meter: Meter,
    /// What was seen of each node last.
    pub(crate) vitals: Vec<Arc<Vitals>>,
    /// The journals, by source.
    pub journals: Vec<Arc<Journal>>,
    /// Which transactions the streams have brought, by source.
    pub(crate) witnesses: Vec<Arc<Mutex<Witness>>>,
    /// Why a source's stream is not read, by source.
    pub captures: Vec<Mutex<Option<String>>>,
    /// What is counted of a source that is gone, or has come back, by source.
    pub(crate) tails: Vec<Arc<Mutex<Option<Tail>>>>,
    /// The shapes of all sources' tables.
    pub(crate) interner: Arc<Interner>,
    /// Node ids by index.
    pub node_ids: Arc<[u16]>,
    /// Which of them other daemons own.
    pub(crate) turns: Turns,
    /// State of each node.
    pub states: Vec<Mutex<NodeState>>,
    /// By target: what deletes holds the gate alone, everything else shares it. A change that reads which deletes are
    /// remembered must not run beside one that adds to them.
    pub(crate) gates: Vec<Arc<RwLock<()>>>,
    /// Counts each node's changes of its schema, as far as they are known, by target.
    pub(crate) schemas: Vec<Arc<AtomicU64>>,
    /// Which tables have shadowed rows, by target.
    pub(crate) shadows: Vec<Arc<Shadows>>,
    /// Which runs of each node an older change may still meet, by target.
    pub(crate) runs: Vec<Arc<Runs>>,
    /// What each node refused, by target.
    pub(crate) quarantines: Vec<Arc<Quarantine>>,
    /// Conflicts that a layered resolver has yet to settle, by target.
    pub(crate) contests: Vec<Arc<Contests>>,
    /// Held while deletes are forgotten, and while a repair reads them and writes what they say.
    pub(crate) collecting: AsyncMutex<()>,
    /// Held by the comparison or repair that is running.
    pub(crate) verifying: Arc<AsyncMutex<()>>,
    /// Control connections of the nodes that are up.
    pub controls: Vec<watch::Sender<Option<Arc<Control>>>>,
}

impl Shared {
    /// The state of a node.
    pub(crate) fn state(&self, node: usize) -> NodeState {
        let state = self
            .states
            .get(node)
            .map(|state| state.lock().unwrap_or_else(PoisonError::into_inner).clone());
        state.unwrap_or(NodeState::Connecting)
    }

    /// Why the node's stream is not read, if it is not.
    pub(crate) fn capture_problem(&self, node: usize) -> Option<String> {
        let problem = self.captures.get(node)?;
        problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Answers whether that is news.
    fn set_capture_problem(&self, node: usize, problem: Option<String>) -> bool {
        let Some(slot) = self.captures.get(node) else {
            return false;
        };
        let mut current = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *current != problem;
        *current = problem;
        news
    }

    fn set_state(&self, node: usize, state: NodeState) {
        if let Some(slot) = self.states.get(node) {
            let mut current = slot.lock().unwrap_or_else(PoisonError::into_inner);
            if *current != state {
                let name = self
                    .config
                    .nodes
                    .get(node)
                    .map_or("?", |node| node.name.as_str());
                match &state {
                    NodeState::Down { problem } => {
                        tracing::warn!(node = name, problem, "replication: node not usable")
                    }
                    NodeState::Up => tracing::info!(node = name, "replication: node taken"),
                    NodeState::Connecting => {}
                }
            }
            *current = state;
        }
    }
}

/// Keeps one node for ever: takes it when it is its turn, works on it until it fails, and tries again.
pub(crate) async fn keep(shared: Arc<Shared>, index: usize) {
    loop {
        let served = tokio::select! {
            biased;
            () = shared.turns.pass(index) => Err(not_its_turn(&shared, index)),
            served = serve(&shared, index) => served,
        };
        let Err(error) = served else {
            continue;
        };
        let owned = matches!(error, SetupError::Owned(_));
        shared.turns.set_foreign(index, owned);
        shared.set_state(
            index,
            NodeState::Down {
                problem: error.to_string(),
            },
        );
        if let Some(control) = shared.controls.get(index) {
            control.send_replace(None);
        }
        if let Some(vitals) = shared.vitals.get(index) {
            vitals.forget();
        }
        for link in shared.links.of_target(index) {
            link.set_state(LinkState::Waiting);
        }
        tokio::time::sleep(RETRY_PAUSE).await;
        shared.turns.come(index).await;
    }
}

fn not_its_turn(shared: &Shared, index: usize) -> SetupError {
    let before = shared.turns.before(index);
    let before = before.and_then(|before| shared.config.nodes.get(before));
    SetupError::NotItsTurn(before.map_or("?", |node| &node.name).to_owned())
}

/// Works on the node as long as its control connection, and with it the ownership, holds.
async fn serve(shared: &Arc<Shared>, index: usize) -> Result<(), SetupError> {
    let node = shared
        .config
        .nodes
        .get(index)
        .ok_or(SetupError::Unexpected("node index"))?;
    let cluster = &shared.config.cluster;
    let control = Control::connect(&node.connect, &format!("tandem:{cluster}:control")).await?;
    let control = Arc::new(control);
    let tables = &shared.config.tables;
    own(&control, cluster, shared.config.nodes.len(), tables).await?;
    shared.turns.set_foreign(index, false);
    let facts = take(&control, cluster, &shared.node_ids, tables).await?;
    if let Some(shadows) = shared.shadows.get(index) {
        shadows.load(&control).await?;
    }
    if let Some(runs) = shared.runs.get(index) {
        runs.clear();
    }
    // Before any link works: what one link has applied, in what runs, and what is in quarantine, decides what another may apply.
    for link in shared.links.of_target(index) {
        let source = shared
            .node_ids
            .get(link.source)
            .copied()
            .unwrap_or_default();
        if let Some(quarantine) = shared.quarantines.get(index) {
            quarantine.load(&control, source).await?;
        }
        if let Some(runs) = shared.runs.get(index) {
            runs.load(&control, source).await?;
        }
        let progress = facts.progress.get(&source);
        let applied = progress.map_or(Lsn(0), |progress| progress.applied);
        // What it has learnt of itself before is there, though it need not have moved the progress.
        link.reset(if link.source == index {
            applied.max(link.durable())
        } else {
            applied
        });
    }
    let mut tasks = JoinSet::new();
    let capture = on_own_thread(
        format!("capture-{}", node.name),
        keep_capture(
            Arc::clone(shared),
            index,
            node.clone(),
            facts.clone(),
            Arc::clone(&control),
        ),
    );
    tasks.spawn(vitals::keep(
        Arc::clone(shared),
        index,
        Arc::clone(&control),
    ));
    let mut links = JoinSet::new();
    let members = shared.config.nodes.len();
    // The link of a node to itself learns its own deletes; alone there is nobody to delete anything for.
    for source in (0..members).filter(|_| members > 1) {
        let origins = Arc::new(facts.origins.clone());
        let (
            Some(journal),
            Some(target_journal),
            Some(gate),
            Some(quarantine),
            Some(shadows),
            Some(contests),
            Some(runs),
            Some(schema),
            Some(source_control),
            Some(of),
            Some(target_vitals),
        ) = (
            shared.journals.get(source),
            shared.journals.get(index),
            shared.gates.get(index),
            shared.quarantines.get(index),
            shared.shadows.get(index),
            shared.contests.get(index),
            shared.runs.get(index),
            shared.schemas.get(index),
            shared.controls.get(source),
            shared.config.nodes.get(source),
            shared.vitals.get(index),
        )
        else {
            continue;
        };
        let source_id = shared.node_ids.get(source).copied().unwrap_or_default();
        let context = LinkContext {
            place: Place {
                cluster: cluster.clone(),
                source: source_id,
                target: node.id,
                connect: node.connect.clone(),
                epoch: facts.epoch,
                origins,
                control: Arc::clone(&control),
                shadows: Arc::clone(shadows),
                tables: Arc::clone(&shared.config.tables),
                interner: Arc::clone(&shared.interner),
                source_control: source_control.subscribe(),
            },
            gate: Arc::clone(gate),
            quarantine: Arc::clone(quarantine),
            contests: Arc::clone(contests),
            runs: Arc::clone(runs),
            schema: Arc::clone(schema),
            group_from: shared.config.group_from,
            target_vitals: Arc::clone(target_vitals),
            version: facts.version,
            journal: Arc::clone(journal),
            target_journal: Arc::clone(target_journal),
            names: [of.name.clone(), node.name.clone()],
            links: Arc::clone(&shared.links),
            source,
            target: index,
            node_ids: Arc::clone(&shared.node_ids),
        };
        let none = OriginProgress {
            applied: Lsn(0),
            unproved: None,
        };
        let progress = facts.progress.get(&source_id).copied().unwrap_or(none);
        let name = format!("apply-{}-{}", of.name, node.name);
        links.spawn(on_own_thread(name, keep_link(context, progress)));
    }
    tasks.spawn(resolve::keep(Arc::clone(shared), index));
    tasks.spawn(keep_tables(
        Arc::clone(&control),
        Arc::clone(&shared.config.tables),
        node.name.clone(),
    ));
    shared.set_state(index, NodeState::Up);
    if let Some(slot) = shared.controls.get(index) {
        slot.send_replace(Some(Arc::clone(&control)));
    }
    tokio::select! {
        ended = flush(shared, index, &control) => ended,
        ended = capture => Err(ended.map_or_else(SetupError::Capture, |()| {
            SetupError::Unexpected("end of the reader of the node's stream")
        })),
        Some(ended) = links.join_next() => {
            let ended = ended.map_err(io::Error::other).flatten();
            Err(ended.map_or_else(SetupError::Link, |()| SetupError::Unexpected("end of a link")))
        }
    }
}

/// Prepares tables that are made later.
async fn keep_tables(control: Arc<Control>, tables: Arc<Tables>, node: String) {
    let mut told = Vec::new();
    loop {
        tokio::time::sleep(TABLES_INTERVAL).await;
        let prepared = async {
            let mut problems = counters::prepare(&control, &tables).await?;
            problems.extend(identity::prepare(&control, &tables).await?);
            Ok::<_, ControlError>(problems)
        };
        match prepared.await {
            Ok(problems) if problems == told => {}
            Ok(problems) => {
                for problem in &problems {
                    tracing::error!(
                        node,
                        problem = problem.what,
                        hint = problem.hint,
                        "replication: a table does not fit"
                    );
                }
                told = problems;
            }
            Err(error) => {
                tracing::warn!(node, %error, "replication: a table is not prepared")
            }
        }
    }
}

async fn keep_capture(
    shared: Arc<Shared>,
    index: usize,
    node: Node,
    facts: NodeFacts,
    control: Arc<Control>,
) {
    let (Some(journal), Some(witness)) = (shared.journals.get(index), shared.witnesses.get(index))
    else {
        return;
    };
    let mut capture = Capture {
        cluster: shared.config.cluster.clone(),
        connect: node.connect.clone(),
        epoch: facts.epoch,
        slot: facts.slot,
        tables: shared.config.tables.filter.clone(),
        node: node.id,
        journal: Arc::clone(journal),
        links: Arc::clone(&shared.links),
        source: index,
        node_ids: Arc::clone(&shared.node_ids),
        interner: Arc::clone(&shared.interner),
        control,
        course: shared.meter.course(index),
        witness: Arc::clone(witness),
        tail: shared.tails.get(index).map(Arc::clone).unwrap_or_default(),
        policies: Arc::clone(&shared.config.tables),
        bounds: Bounds {
            bytes: shared.config.journal.carry_bytes,
            time: shared.config.journal.carry_after,
        },
    };
    loop {
        let begun = || _ = shared.set_capture_problem(index, None);
        let pause = match capture.run(begun).await {
            Ok(()) | Err(CaptureError::Room) => SHORT_PAUSE,
            Err(error) => {
                if shared.set_capture_problem(index, Some(error.to_string())) {
                    tracing::warn!(node = node.name, %error, "replication: the stream ended; it is read again");
                }
                RETRY_PAUSE
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn keep_link(context: LinkContext, progress: OriginProgress) {
    let Some(link) = context.links.get(context.source, context.target) else {
        return;
    };
    let (source, target) = (context.place.source, context.place.target);
    let mut pause = SHORT_PAUSE;
    let mut raced = 0;
    let mut carried = Carried::default();
    loop {
        let before = link.transactions();
        let Err(error) = apply::run(&context, progress, &mut carried).await else {
            continue;
        };
        raced = if link.transactions() == before && matches!(error, ApplyError::Raced) {
            raced + 1
        } else {
            0
        };
        // What does not pass after so many attempts does not pass by itself.
        let hopeless = raced > RACES_MAX;
        let severity = if carried.ended(&error, hopeless) {
            Severity::Passing
        } else if hopeless {
            Severity::Blocking
        } else {
            error.severity()
        };
        let news = match severity {
            Severity::Passing => false,
            Severity::Connection => link.set_state(LinkState::Waiting),
            Severity::Blocking => link.set_state(LinkState::Blocked {
                problem: error.to_string(),
            }),
        };
        if news {
            tracing::warn!(source, target, %error, "replication: link stopped; it tries again by itself");
        } else {
            tracing::debug!(source, target, %error, "replication: link opens again");
        }
        pause = if link.transactions() > before || severity == Severity::Passing {
            SHORT_PAUSE
        } else {
            (pause * 2).min(RETRY_PAUSE_MAX)
        };
        tokio::time::sleep(pause).await;
    }
}

/// Flushes up to where each origin's last transaction ends.
const FLUSH: &str = "SELECT pg_replication_origin_progress(roname, true) FROM pg_replication_origin \
     WHERE roname LIKE 'tandem\\_%'";

/// Makes what was applied durable: the appliers commit asynchronously, and a slot may be confirmed only to what a
/// crash of the target cannot take back. Ends when the control connection does.
async fn flush(shared: &Arc<Shared>, index: usize, control: &Control) -> Result<(), SetupError> {
    let flushing = control.prepare(FLUSH).await?;
    let mut ticks = tokio::time::interval(FLUSH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut idle_ticks = 0;
    loop {
        ticks.tick().await;
        let applied: Vec<_> = shared
            .links
            .of_target(index)
            .map(|link| (link, link.applied()))
            .collect();
        let moved = applied
            .iter()
            .any(|(link, applied)| *applied > link.durable());
        idle_ticks = if moved { 0 } else { idle_ticks + 1 };
        // An idle node is asked now and then all the same, so that a dead connection is noticed.
        if !moved && idle_ticks % 20 != 0 {
            if control.is_closed() {
                return Err(closed());
            }
            continue;
        }
        control.ask(&flushing, &[]).await?;
        for (link, applied) in applied {
            link.set_durable(applied);
        }
    }
}

fn closed() -> SetupError {
    let lost = io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the control connection was lost",
    );
    SetupError::Control(ControlError::Lost(lost))
}
