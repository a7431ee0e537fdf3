//! One link: brings one source's transactions to one target, in order, exactly once, after their causes. The link of a
//! node to itself only learns what its own clients deleted.

mod batch;
mod decided;
mod fast;
mod fetch;
mod incomplete;
mod own;
mod row;
mod session;
mod slow;
mod sql;
mod tombstone;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_wire::lsn::Lsn;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use session::Session;
pub(crate) use session::{ApplyError, Place, Severity};
use slow::Slow;

use crate::journal::{Cursor, Journal, Run};
use crate::origin::OriginName;
use crate::progress::{Link, LinkState, Links};
use crate::setup::OriginProgress;
use crate::transaction::{Change, Entry, Operation, Transaction};
use crate::version::PgTimestamp;
use crate::watermark;

/// Transactions of one batch.
const BATCH_TRANSACTIONS: usize = 500;
/// Bytes of changes of one batch. A single transaction may be larger.
const BATCH_BYTES: usize = 4 << 20;
/// How often the proved progress is noted (PostgreSQL 16 and later): bounds what has to be searched for the proof.
const NOTE_INTERVAL: Duration = Duration::from_secs(5);
/// At most so many transactions take the slow path unasked after one that had to.
const CAREFUL_MAX: u32 = 64;

/// What a link works with.
pub(crate) struct LinkContext {
    /// Both ends.
    pub place: Place,
    /// The target's `server_version_num`.
    pub version: i32,
    /// Where the source's stream is.
    pub journal: Arc<Journal>,
    /// Where the target's own stream is.
    pub target_journal: Arc<Journal>,
    /// Names of source and target.
    pub names: [String; 2],
    /// Positions of all links.
    pub links: Arc<Links>,
    /// Index of the source in the configuration.
    pub source: usize,
    /// Index of the target in the configuration.
    pub target: usize,
    /// Node ids by index.
    pub node_ids: Arc<[u16]>,
    /// The target's gate, see [`Shared`](crate::node::Shared).
    pub gate: Arc<RwLock<()>>,
}

/// Runs the link until it fails. Everything that was committed is remembered by the target. `held` goes from one run to
/// the next.
///
/// # Errors
/// Whatever ended it; the caller opens it again after a pause.
pub(crate) async fn run(
    context: &LinkContext,
    progress: OriginProgress,
    held: &mut Option<Gate>,
) -> Result<(), ApplyError> {
    let link = context.link()?;
    let (session, said) = Session::open(context.place.clone()).await?;
    *held = None;
    // Nobody else holds the origin now, so what it says is final.
    let unproved = if context.version < 160_000 {
        link.reset(said);
        None
    } else {
        let applied = progress.applied.max(link.applied()).min(said);
        link.reset(applied);
        // What a node learns of itself may be learnt twice, so there it is not proved but done again.
        let proof = || Proof {
            said,
            timestamps: Vec::new(),
        };
        (said > applied && !context.is_own()).then(proof)
    };
    let mut worker = Worker {
        held,
        context,
        link,
        cursor: Cursor::new(context.place.target, said, !context.is_own()),
        session,
        unproved,
        noted: Instant::now(),
        careful: 0,
        penalty: 0,
    };
    if worker.unproved.is_none() {
        worker.note().await?;
    }
    worker.run().await
}

impl LinkContext {
    fn is_own(&self) -> bool {
        self.source == self.target
    }

    fn link(&self) -> Result<&Link, ApplyError> {
        self.links
            .get(self.source, self.target)
            .ok_or(ApplyError::Unexpected("no such link"))
    }
}

/// What it takes to prove that the transaction at `said` was committed, and did not merely move the origin.
struct Proof {
    said: Lsn,
    /// Timestamps of the transactions before it that are not noted.
    timestamps: Vec<PgTimestamp>,
}

struct Worker<'a> {
    context: &'a LinkContext,
    link: &'a Link,
    cursor: Cursor,
    session: Session,
    held: &'a mut Option<Gate>,
    unproved: Option<Proof>,
    noted: Instant,
    /// So many of the next transactions take the slow path, because one before them had to.
    careful: u32,
    penalty: u32,
}

impl<'a> Worker<'a> {
    async fn run(&mut self) -> Result<(), ApplyError> {
        self.link.set_state(LinkState::Streaming);
        loop {
            let journal = &self.context.journal;
            let applied = self.link.applied();
            let run = journal.read(&mut self.cursor, applied, BATCH_TRANSACTIONS, BATCH_BYTES);
            match run.await? {
                Run::UpTo(lsn) => self.link.advance(lsn),
                Run::Entries(entries) => self.entries(&entries).await?,
                Run::Hole(hole) => {
                    let [of, target] = self.context.names.clone();
                    let origin = OriginName {
                        node: self.context.place.source,
                        worker: 0,
                    };
                    return Err(ApplyError::Hole {
                        target,
                        of,
                        origin,
                        hole,
                    });
                }
            }
            if self.session.is_worn() {
                return Err(ApplyError::Worn);
            }
        }
    }

    /// Applies entries in order. Transactions gather to a batch that ends where a cause is not there yet.
    async fn entries(&mut self, entries: &[Arc<Entry>]) -> Result<(), ApplyError> {
        let mut batch: Vec<&Transaction> = Vec::new();
        for entry in entries {
            self.pass_said(entry.end_lsn());
            match entry.as_ref() {
                Entry::Transaction(transaction) => {
                    if !self.is_applied(transaction).await? {
                        batch.push(transaction);
                    }
                }
                // What stands before an applied transaction was there when that one was applied. Waiting for it again
                // could wait for ever: the other link may itself not know yet how far it is.
                Entry::Cause { end_lsn, .. }
                    if self.context.is_own() || self.is_behind_us(*end_lsn) => {}
                Entry::Cause { node, lsn, .. } => {
                    if let Some(cause) = Self::missing_cause(self.context, *node, *lsn) {
                        self.apply(&batch).await?;
                        batch.clear();
                        self.link
                            .set_state(LinkState::WaitingForCause { node: *node });
                        cause.wait_applied(*lsn).await;
                        self.link.set_state(LinkState::Streaming);
                    }
                }
                Entry::Empty { .. } => {}
            }
        }
        self.apply(&batch).await?;
        if let Some(last) = entries.last() {
            self.move_to(last.end_lsn());
        }
        if self.context.version >= 160_000
            && self.unproved.is_none()
            && self.noted.elapsed() > NOTE_INTERVAL
        {
            self.note().await?;
        }
        Ok(())
    }

    /// The position may only move over what is proved.
    fn move_to(&mut self, lsn: Lsn) {
        match &self.unproved {
            Some(proof) if lsn < proof.said => {}
            _ => {
                self.unproved = None;
                self.link.advance(lsn);
            }
        }
    }

    /// The link that has yet to bring what the next change may have seen.
    fn missing_cause(context: &'a LinkContext, node: u16, lsn: Lsn) -> Option<&'a Link> {
        let source = context.node_ids.iter().position(|&id| id == node)?;
        context
            .links
            .get(source, context.target)
            .filter(|link| link.applied() < lsn)
    }

    /// The stream goes on behind the transaction that was to be proved without having shown it: then the slot was
    /// confirmed past it, which happens only to what is surely applied. Others may be waiting to hear of that.
    fn pass_said(&mut self, lsn: Lsn) {
        if let Some(proof) = self.unproved.take_if(|proof| lsn > proof.said) {
            self.link.advance(proof.said);
        }
    }

    fn is_behind_us(&self, lsn: Lsn) -> bool {
        let said = self.unproved.as_ref().map_or(Lsn(0), |proof| proof.said);
        lsn <= self.link.applied().max(said)
    }

    async fn is_applied(&mut self, transaction: &Transaction) -> Result<bool, ApplyError> {
        if transaction.end_lsn <= self.link.applied() {
            return Ok(true);
        }
        let Some(proof) = &mut self.unproved else {
            return Ok(false);
        };
        if transaction.end_lsn < proof.said {
            // The session is sequential: the origin moves to a transaction only after all before it are committed.
            proof.timestamps.push(transaction.timestamp);
            return Ok(true);
        }
        let before = proof
            .timestamps
            .iter()
            .filter(|&&timestamp| timestamp == transaction.timestamp)
            .count();
        let before = i64::try_from(before).unwrap_or(i64::MAX);
        let committed = self.session.committed_with(transaction.timestamp).await? > before;
        if !committed {
            tracing::warn!(
                source = self.context.place.source,
                target = self.context.place.target,
                lsn = %transaction.end_lsn,
                "an aborted transaction had moved the origin; applying it again"
            );
        }
        self.unproved = None;
        if committed {
            self.link.advance(transaction.end_lsn);
        }
        Ok(committed)
    }

    async fn apply(&mut self, transactions: &[&Transaction]) -> Result<(), ApplyError> {
        if self.context.is_own() {
            return self.learn(transactions).await;
        }
        let mut rest = transactions;
        while let Some((&first, others)) = rest.split_first() {
            if self.careful > 0 || needs_locks(first) {
                self.careful = self.careful.saturating_sub(1);
                self.apply_one(first).await?;
                rest = others;
                continue;
            }
            let run = rest
                .iter()
                .take_while(|transaction| !needs_locks(transaction))
                .count();
            let batch = rest.get(..run).unwrap_or_default();
            *self.held = Some(Gate::pass(&self.context.gate, batch).await);
            let applied = self.session.apply_batch(batch).await?;
            *self.held = None;
            let (done, left) = rest.split_at(applied.committed.min(rest.len()));
            if let Some(last) = done.last() {
                self.link.count(done.len() as u64, last.timestamp);
                self.link.advance(last.end_lsn);
            }
            rest = left;
            if applied.stopped {
                self.penalty = (self.penalty * 2 + 1).min(CAREFUL_MAX);
                self.careful = self.penalty;
            }
        }
        Ok(())
    }

    async fn apply_one(&mut self, transaction: &Transaction) -> Result<(), ApplyError> {
        let mut settled = false;
        let conflicts = loop {
            *self.held = Some(Gate::pass(&self.context.gate, &[transaction]).await);
            let outcome = self.session.apply_slowly(transaction, settled).await?;
            *self.held = None;
            match outcome {
                Slow::Applied { conflicts } => break conflicts,
                Slow::Unsettled => {
                    self.settle(transaction).await?;
                    settled = true;
                }
            }
        };
        if conflicts == 0 {
            self.penalty /= 2;
            self.careful = self.careful.min(self.penalty);
        }
        self.link.count(1, transaction.timestamp);
        self.link.count_conflicts(conflicts);
        self.link.advance(transaction.end_lsn);
        Ok(())
    }

    /// Waits until what the target's own clients are committing now is visible, and everything that they have deleted
    /// so far is remembered. A commit has its timestamp before it is visible, so one that is older than the change may
    /// still be on its way; whatever begins later is newer.
    async fn settle(&mut self, transaction: &Transaction) -> Result<(), ApplyError> {
        let context = self.context;
        let own = context.links.get(context.target, context.target);
        let own = own.ok_or(ApplyError::Unexpected("no link of the target to itself"))?;
        self.link.set_state(LinkState::WaitingForCause {
            node: context.place.target,
        });
        self.session.wait_for_writers(transaction).await?;
        let lsn = watermark::write(&context.place.control).await?;
        // The watermark lies behind everything that the target has written: its stream has to be read up to there
        // even if its own targets are slow, or two nodes could wait for each other.
        let _unbounded = context.target_journal.lift_bound();
        own.wait_applied(lsn).await;
        self.link.set_state(LinkState::Streaming);
        Ok(())
    }

    async fn learn(&mut self, transactions: &[&Transaction]) -> Result<(), ApplyError> {
        let deletes: Vec<_> = transactions
            .iter()
            .copied()
            .filter(|transaction| buries(transaction))
            .collect();
        if !deletes.is_empty() {
            *self.held = Some(Gate::pass(&self.context.gate, &deletes).await);
            self.session.learn(&deletes).await?;
            *self.held = None;
        }
        Ok(())
    }

    async fn note(&mut self) -> Result<(), ApplyError> {
        if self.context.version >= 160_000 {
            self.session.note_progress(self.link.applied()).await?;
            self.noted = Instant::now();
        }
        Ok(())
    }
}

/// The target's gate, held while a batch is under way. After a failure it is held on until the next session has the
/// origin: only then the old one has surely ended, and with it what it may still have been working on.
pub(crate) enum Gate {
    /// Beside others that remember no delete.
    Shared {
        /// Held, not read.
        _guard: OwnedRwLockReadGuard<()>,
    },
    /// Alone.
    Alone {
        /// Held, not read.
        _guard: OwnedRwLockWriteGuard<()>,
    },
}

impl Gate {
    async fn pass(gate: &Arc<RwLock<()>>, transactions: &[&Transaction]) -> Self {
        let gate = Arc::clone(gate);
        if transactions.iter().any(|transaction| buries(transaction)) {
            Self::Alone {
                _guard: gate.write_owned().await,
            }
        } else {
            Self::Shared {
                _guard: gate.read_owned().await,
            }
        }
    }
}

/// Whether the transaction leaves deletes to be remembered.
fn buries(transaction: &Transaction) -> bool {
    let delete = |operation| matches!(operation, Operation::Delete | Operation::Truncate);
    transaction
        .changes
        .iter()
        .any(|change| delete(change.operation))
        || moves_key(transaction)
}

/// Whether the transaction cannot take the fast path.
fn needs_locks(transaction: &Transaction) -> bool {
    let truncates = |change: &Change| change.operation == Operation::Truncate;
    moves_key(transaction) || transaction.changes.iter().any(truncates)
}

/// Whether the transaction may move a key: its stream then carries the old one.
fn moves_key(transaction: &Transaction) -> bool {
    transaction
        .changes
        .iter()
        .any(|change| change.operation == Operation::Update && change.has_old_key())
}
