//! What a comparison tells while it runs.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::VerifyError;

/// One thing to tell; serialised as a JSON object with the member `event`.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// How far it is.
    Progress(Progress),
    /// A table that cannot be compared.
    Table {
        /// Schema and table.
        table: String,
        /// Why.
        problem: String,
    },
    /// A row that differs.
    Difference(Difference),
    /// A row that a repair did not mend.
    Left {
        /// Schema and table.
        table: String,
        /// The key as a JSON array of texts; `None` in a table without a key.
        key: Option<Vec<String>>,
        /// Why.
        problem: String,
    },
    /// The end.
    Summary(Summary),
    /// It could not be done to the end.
    Failed {
        /// Why.
        problem: String,
    },
}

/// How far a comparison is.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Progress {
    /// The table at hand.
    pub table: String,
    /// Tables that are done.
    pub tables_done: usize,
    /// Tables in all.
    pub tables: usize,
    /// Rows that are done: of the node that has most.
    pub rows_done: u64,
    /// Rows in all, as the nodes' statistics have it.
    pub rows_expected: u64,
    /// Differences so far.
    pub differences: u64,
}

/// A row that is not the same on all nodes.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// Schema and table.
    pub table: String,
    /// The primary key as a JSON array; `None` in a table without one.
    pub key: Option<Box<RawValue>>,
    /// What each node has.
    pub nodes: Vec<NodeRow>,
}

/// A row as a node has it.
#[derive(Debug, Serialize)]
pub struct NodeRow {
    /// The node's name.
    pub node: String,
    /// The row as a JSON object; `None` where there is none.
    pub row: Option<Box<RawValue>>,
    /// Which transaction wrote it; `None` beyond the commit-timestamp horizon.
    pub version: Option<VersionText>,
    /// The newest delete that the node remembers for the key.
    pub deleted: Option<VersionText>,
    /// In a table without a key: how often the row is there.
    pub copies: Option<i64>,
    /// In a repair: what is done there, such as `insert`, `replace`, `delete` or `keep`.
    pub action: Option<&'static str>,
}

/// A version for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VersionText {
    /// When the transaction committed.
    pub timestamp: String,
    /// The name of the node where it did.
    pub node: String,
}

/// What came of a comparison or repair.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Whether nothing differs, or nothing any more.
    pub equal: bool,
    /// Nodes that were compared.
    pub nodes: usize,
    /// Tables that were compared.
    pub tables: usize,
    /// Tables that could not be compared.
    pub tables_not_compared: usize,
    /// Rows that were compared: of the node that has most.
    pub rows: u64,
    /// Rows that differ, listed or not.
    pub differences: u64,
    /// Those of them that were listed.
    pub listed: u64,
    /// Rows that were written too often to be compared.
    pub changing: u64,
    /// Rows that a repair made the same everywhere.
    pub repaired: u64,
    /// Rows that a repair did not mend.
    pub left: u64,
    /// How long it took.
    pub milliseconds: u64,
}

/// Where a run tells what it finds.
#[derive(Debug, Clone)]
pub(super) struct Reporter {
    events: mpsc::Sender<Event>,
    progress: Arc<Mutex<Progress>>,
}

impl Reporter {
    /// A reporter, where its events come out, and where its progress can be seen.
    pub(super) fn new() -> (Self, mpsc::Receiver<Event>, Arc<Mutex<Progress>>) {
        // A reader that is slow slows the run; it does not fill the memory.
        let (events, receiver) = mpsc::channel(16);
        let progress = Arc::<Mutex<Progress>>::default();
        let reporter = Self {
            events,
            progress: Arc::clone(&progress),
        };
        (reporter, receiver, progress)
    }

    /// Tells something.
    ///
    /// # Errors
    /// When nobody listens any more.
    pub(super) async fn tell(&self, event: Event) -> Result<(), VerifyError> {
        self.events
            .send(event)
            .await
            .map_err(|_| VerifyError::Unheard)
    }

    /// Changes the progress that is shown next.
    pub(super) fn progress(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
