//! Compares all nodes, row by row with versions, and mends what differs, while they are in use.
//!
//! A table is walked in ranges of its key ([`scan`]). Each node digests a range at once, into some hundred buckets; rows of
//! buckets whose digests differ are listed and compared. What differs then may be lag, so it is looked at again after
//! everything that was committed has been applied everywhere ([`look`]); a difference is what stays the same. A repair
//! gives every node the newest version ([`state`]), under that version ([`write`]).

mod bag;
mod look;
mod plan;
mod repair;
mod report;
mod scan;
mod side;
mod sql;
mod state;
mod write;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::control::ControlError;
use crate::node::Shared;
use crate::tables::TableFilter;
use crate::watermark::NotConverged;
use report::Reporter;
pub use report::{Difference, Event, NodeRow, Progress, Summary, VersionText};
use side::Side;

/// How often the progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// Differences that are listed where a request does not say.
const LIMIT_DEFAULT: u64 = 1000;

/// What to compare.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct VerifyRequest {
    /// Patterns of tables, `schema.table` or `table`, with `*`; none means all that are replicated.
    pub tables: Vec<String>,
    /// So many differences are listed; the rest is counted.
    pub limit: u64,
}

impl Default for VerifyRequest {
    fn default() -> Self {
        Self {
            tables: Vec::new(),
            limit: LIMIT_DEFAULT,
        }
    }
}

/// How to mend what differs.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct RepairRequest {
    /// What to compare.
    #[serde(flatten)]
    pub compare: VerifyRequest,
    /// The name of the node whose rows are right; without one the newest versions are.
    pub source: Option<String>,
    /// Only tell what would be done.
    pub dry_run: bool,
}

/// Another comparison or repair is running.
#[derive(Debug, Clone, Copy, Error)]
#[error("another comparison or repair is running; wait for it to end")]
pub struct VerifyBusy;

/// Why a run ended before its end.
#[derive(Debug, Error)]
pub(crate) enum VerifyError {
    /// A node cannot be asked.
    #[error("{node}: {error}")]
    Node {
        /// Its name.
        node: String,
        /// What it or the connection said.
        error: Box<ControlError>,
    },
    /// A node that replication cannot use cannot be compared either.
    #[error("{node}: {problem}")]
    NotUsable {
        /// Its name.
        node: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A node does not catch up, so lag cannot be told from a difference.
    #[error("{0}")]
    NotConverged(#[from] NotConverged),
    /// A pattern that fits no table.
    #[error("no replicated table is named {0}")]
    NoSuchTable(String),
    /// `source` names no node.
    #[error("no node is named {0}")]
    NoSuchNode(String),
    /// A write was cut off by the end of the process.
    #[error("the daemon is stopping")]
    Stopping,
    /// Whoever asked has gone.
    #[error("nobody listens any more")]
    Unheard,
}

/// How a run mends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mending {
    /// The index of the node that is right; without one the newest versions are.
    truth: Option<usize>,
    dry_run: bool,
}

/// A run under way. It ends when this is dropped, but for a transaction that is being written.
#[derive(Debug)]
pub struct Verification {
    events: mpsc::Receiver<Event>,
    progress: Arc<Mutex<Progress>>,
    ticks: Interval,
    run: AbortHandle,
}

impl Drop for Verification {
    fn drop(&mut self) {
        self.run.abort();
    }
}

impl Verification {
    /// Starts a run.
    pub(crate) fn start(
        shared: &Arc<Shared>,
        request: VerifyRequest,
        repair: Option<RepairRequest>,
    ) -> Result<Self, VerifyBusy> {
        let alone = Arc::clone(&shared.verifying)
            .try_lock_owned()
            .map_err(|_| VerifyBusy)?;
        let (reporter, events, progress) = Reporter::new();
        let mut ticks =
            tokio::time::interval_at(Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let run = tokio::spawn(carry_out(
            alone,
            Arc::clone(shared),
            request,
            repair,
            reporter,
        ));
        Ok(Self {
            events,
            progress,
            ticks,
            run: run.abort_handle(),
        })
    }

    /// The next event; `None` after the last, which is a [`Event::Summary`] or [`Event::Failed`].
    pub async fn next(&mut self) -> Option<Event> {
        tokio::select! {
            biased;
            event = self.events.recv() => event,
            _ = self.ticks.tick() => {
                let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
                Some(Event::Progress(progress.clone()))
            }
        }
    }
}

async fn carry_out(
    _alone: OwnedMutexGuard<()>,
    shared: Arc<Shared>,
    request: VerifyRequest,
    repair: Option<RepairRequest>,
    reporter: Reporter,
) {
    let last = match Box::pin(run(shared, request, repair, &reporter)).await {
        Ok(summary) => Event::Summary(summary),
        Err(error) => Event::Failed {
            problem: error.to_string(),
        },
    };
    // Nobody may be there to hear it.
    let _ = reporter.tell(last).await;
}

/// What a run works with.
struct Run {
    shared: Arc<Shared>,
    sides: Vec<Side>,
    mending: Option<Mending>,
    writers: write::Writers,
    limit: u64,
    reporter: Reporter,
    summary: Summary,
}

async fn run(
    shared: Arc<Shared>,
    request: VerifyRequest,
    repair: Option<RepairRequest>,
    reporter: &Reporter,
) -> Result<Summary, VerifyError> {
    let begin = Instant::now();
    let truth = repair
        .as_ref()
        .and_then(|repair| repair.source.as_ref())
        .map(|name| {
            let nodes = &shared.config.nodes;
            let found = nodes.iter().position(|node| node.name == *name);
            found.ok_or_else(|| VerifyError::NoSuchNode(name.clone()))
        })
        .transpose()?;
    let sides = side::open(&shared).await?;
    let plan = tables(&shared.config.tables.filter, &sides, &request.tables).await?;
    let mut run = Run {
        writers: write::Writers::new(&shared),
        shared,
        mending: repair.map(|repair| Mending {
            truth,
            dry_run: repair.dry_run,
        }),
        limit: request.limit,
        reporter: reporter.clone(),
        summary: Summary {
            nodes: sides.len(),
            tables: plan.tables.len(),
            tables_not_compared: plan.problems.len(),
            ..Summary::default()
        },
        sides,
    };
    for (table, problem) in plan.problems {
        reporter.tell(Event::Table { table, problem }).await?;
    }
    reporter.progress(|progress| {
        progress.tables = plan.tables.len();
        progress.rows_expected = plan.tables.iter().map(|table| table.rows).sum();
    });
    for table in &plan.tables {
        reporter.progress(|progress| progress.table.clone_from(&table.title));
        if table.has_key() {
            Box::pin(run.compare(table)).await?;
        } else {
            Box::pin(run.compare_bag(table)).await?;
        }
        reporter.progress(|progress| progress.tables_done += 1);
    }
    let summary = &mut run.summary;
    summary.equal = summary.differences == summary.repaired && summary.tables_not_compared == 0;
    summary.milliseconds = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(run.summary)
}

/// The tables that `filter` replicates and one of `patterns` names.
async fn tables(
    filter: &TableFilter,
    sides: &[Side],
    patterns: &[String],
) -> Result<plan::Plan, VerifyError> {
    let mut nodes = Vec::new();
    for side in sides {
        let tables = plan::read(&side.control, filter).await;
        nodes.push(tables.map_err(|error| side.failed(error))?);
    }
    let full = |pattern: &String| match pattern.contains('.') {
        true => pattern.clone(),
        false => format!("*.{pattern}"),
    };
    for pattern in patterns {
        let wanted = TableFilter::only(vec![full(pattern)]);
        let fits = |table: &plan::NodeTable| wanted.allows(&table.schema, &table.name);
        if !nodes.iter().flatten().any(fits) {
            return Err(VerifyError::NoSuchTable(pattern.clone()));
        }
    }
    let wanted = TableFilter::only(patterns.iter().map(full).collect());
    for tables in &mut nodes {
        tables.retain(|table| wanted.allows(&table.schema, &table.name));
    }
    let names: Vec<&str> = sides.iter().map(|side| side.name.as_str()).collect();
    Ok(plan::plan(&names, nodes))
}
