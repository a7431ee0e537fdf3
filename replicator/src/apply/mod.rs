//! One link: brings one source's transactions to one target, in order, exactly once, after their causes. The link of a
//! node to itself only learns what its own clients deleted.

mod batch;
mod copy;
mod counter;
mod decided;
mod fast;
mod fetch;
mod fold;
mod gate;
mod group;
mod incomplete;
mod kept;
mod load;
mod multiset;
mod net;
mod own;
mod params;
mod parts;
mod quarantine;
mod row;
mod schema;
mod session;
mod shadow;
mod slow;
mod sql;
mod tombstone;
mod traits;
mod truth;
mod unique;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tandem_wire::ServerError;
use tandem_wire::lsn::Lsn;
use tokio::sync::RwLock;

use gate::Gate;
use group::{Grouping, Settled};
use parts::Way;
use quarantine::Refusal;
pub(crate) use session::{ApplyError, Place, Severity, is_poison};
use session::{Session, is_about_schema};
use slow::{Slow, Unknown};
use sql::qualified;
pub(crate) use sql::quote;
pub(crate) use tombstone::remember;

use crate::clock;
use crate::journal::{Cursor, Journal, Run};
use crate::origin::OriginName;
use crate::progress::{Link, LinkState, Links};
use crate::quarantine::{Held, Quarantine};
use crate::resolve::Contests;
use crate::runs::Runs;
use crate::setup::OriginProgress;
use crate::transaction::{Entry, Position, Transaction};
use crate::version::{PgTimestamp, Version, pg_now};
use crate::vitals::Vitals;
use crate::watermark;

/// Transactions that are taken from a journal at once where there is no backlog; a batch (`fast.rs`) takes fewer.
const BATCH_TRANSACTIONS: usize = 500;
/// Bytes of changes of one batch. A single transaction may be larger.
const BATCH_BYTES: usize = 4 << 20;
/// How often the proved progress is noted (PostgreSQL 16 and later): bounds what has to be searched for the proof.
const NOTE_INTERVAL: Duration = Duration::from_secs(5);
/// Who waits longer than this for a clock says so.
const CLOCK_WAIT_SHOWN: Duration = Duration::from_millis(100);
/// At most so many transactions take the slow path unasked after one that had to.
const CAREFUL_MAX: u32 = 64;
/// The same for those that only have to be merged, which costs less.
const MERGED_MAX: u32 = 4096;

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
    /// What is known of the target's clock.
    pub(crate) target_vitals: Arc<Vitals>,
    /// What the target refused.
    pub quarantine: Arc<Quarantine>,
    /// The target's conflicts that a layered resolver has yet to settle.
    pub contests: Arc<Contests>,
    /// The target's open runs.
    pub runs: Arc<Runs>,
    /// Counts the target's changes of its schema, as far as they are known.
    pub schema: Arc<AtomicU64>,
    /// So many transactions make a backlog that is merged instead of replayed; `None`: none do.
    pub group_from: Option<usize>,
}

/// What goes from one run of a link to the next.
#[derive(Default)]
pub(crate) struct Carried {
    /// Held on where the run ended with the session lost, until that one has surely ended.
    gate: Option<Gate>,
    /// The first transaction that was being applied when the run ended.
    current: Option<Lsn>,
    /// A transaction that cannot be applied as things are, and why.
    poison: Option<(Lsn, String)>,
    /// One that could not be applied; what was known of the target's tables may have been old.
    doubted: Option<Lsn>,
    /// The last number in the quarantine that was tried again.
    retried: i64,
    /// Timestamps of what was committed since the progress was last noted (PostgreSQL 16 and later).
    unnoted: Vec<PgTimestamp>,
    /// How runs went.
    grouping: Grouping,
}

impl Carried {
    /// Takes note of how a run ended. `hopeless`: what was lost against others so often is not tried again.
    /// Answers whether the next run tries a transaction once more, or puts it into quarantine.
    pub(crate) fn ended(&mut self, error: &ApplyError, hopeless: bool) -> bool {
        let poisons = error.is_poison() || hopeless;
        let Some(lsn) = self.current.take_if(|_| poisons) else {
            self.poison = None;
            return false;
        };
        let is_known = self.doubted.replace(lsn) == Some(lsn) || hopeless;
        self.poison = is_known.then(|| (lsn, error.to_string()));
        true
    }
}

/// Runs the link until it fails. Everything that was committed is remembered by the target.
///
/// # Errors
/// Whatever ended it; the caller opens it again after a pause.
pub(crate) async fn run(
    context: &LinkContext,
    progress: OriginProgress,
    carried: &mut Carried,
) -> Result<(), ApplyError> {
    let link = context.link()?;
    carried.current = None;
    context.place.end_session().await?;
    carried.gate = None;
    let (session, said) = Session::open(context.place.clone()).await?;
    // What a node has learnt of itself moves its progress only where there was something to learn.
    let said = if context.is_own() {
        said.max(link.durable())
    } else {
        said
    };
    // Before anybody may learn how far this link is: what it says to be applied may be in quarantine.
    let (control, source) = (&context.place.control, context.place.source);
    context.quarantine.load(control, source).await?;
    context.runs.load(control, source).await?;
    // Nobody else holds the origin now, so what it says is final.
    let unproved = if context.version < 160_000 {
        link.reset(said);
        None
    } else {
        let noted = session.noted_progress().await?;
        if noted > link.applied() {
            // A run noted it, and was committed without saying so: what was not noted before it is by now.
            carried.unnoted.clear();
        }
        let applied = progress.applied.max(link.applied()).max(noted).min(said);
        link.reset(applied);
        // What a node learns of itself may be learnt twice, so there it is not proved but done again.
        (said > applied && !context.is_own()).then_some(said)
    };
    let mut worker = Worker {
        carried,
        context,
        link,
        session,
        unproved,
        noted: Instant::now(),
        retried: Instant::now(),
        careful: 0,
        penalty: 0,
        unmerged: false,
        settled: None,
        schema: context.schema.load(Ordering::Acquire),
        way: None,
    };
    let ended = worker
        .run(Cursor::new(context.place.target, said, !context.is_own()))
        .await;
    if !matches!(ended, Err(ApplyError::Connection(_))) {
        // Every reply was read: nothing is under way any more.
        worker.carried.gate = None;
    }
    ended
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

struct Worker<'a> {
    context: &'a LinkContext,
    link: &'a Link,
    session: Session,
    carried: &'a mut Carried,
    /// Where the origin is; what it takes to prove is that the transaction there was committed, and did not merely move it.
    unproved: Option<Lsn>,
    noted: Instant,
    /// When what is in quarantine was last tried again.
    retried: Instant,
    /// So many of the next transactions take the slow path, because one before them had to.
    careful: u32,
    penalty: u32,
    /// The next transaction stopped a batch that merges.
    unmerged: bool,
    /// What is known of the target's own transactions, for runs.
    settled: Option<Settled>,
    /// Which of the target's schemas the session knows.
    schema: u64,
    /// How the transaction in parts whose commit begins there has to be applied.
    way: Option<(Lsn, Way)>,
}

impl<'a> Worker<'a> {
    async fn run(&mut self, mut cursor: Cursor) -> Result<(), ApplyError> {
        if self.unproved.is_none() {
            self.note().await?;
        }
        self.link.set_state(LinkState::Streaming);
        let context = self.context;
        let journal = &context.journal;
        let mut backlog = false;
        // What was read while that before it was applied.
        let mut ahead = None;
        loop {
            let (most, bytes) = context.read_limits(backlog);
            let applied = self.link.applied();
            let reading = async {
                match ahead.take() {
                    Some(run) => Ok(run),
                    None => journal.read(&mut cursor, applied, most, bytes).await,
                }
            };
            let run = tokio::select! {
                run = reading => run?,
                () = Self::retry_due(context, self.retried) => {
                    self.retry_quarantined().await?;
                    continue;
                }
            };
            match run {
                Run::UpTo(lsn) => self.link.advance(lsn),
                Run::Entries(entries) => {
                    backlog = entries.len() >= BATCH_TRANSACTIONS;
                    let (most, bytes) = context.read_limits(backlog);
                    let last = entries.last().map_or(applied, |entry| entry.position().lsn);
                    if let Some(Entry::Part { part, .. }) = entries.last().map(Arc::as_ref) {
                        self.entries(&entries).await?;
                        self.apply_parts(&mut cursor, part).await?;
                    } else if backlog {
                        let reading = journal.read_ready(&mut cursor, last, most, bytes);
                        let (applied, read) = tokio::join!(self.entries(&entries), reading);
                        applied?;
                        ahead = read?;
                    } else {
                        self.entries(&entries).await?;
                    }
                }
                // It stands before the transaction again.
                Run::Broken => {}
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
            self.pass_said(entry.position());
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
                        self.link.set_state(LinkState::WaitingForCause {
                            node: *node,
                            lsn: Some(*lsn),
                        });
                        cause.wait_applied(*lsn).await;
                        self.link.set_state(LinkState::Streaming);
                    }
                }
                // The last one, if at all: it is begun when all before it is done.
                Entry::Part { .. } | Entry::Empty { .. } => {}
                Entry::End(_) => return Err(ApplyError::Unexpected("an end without its parts")),
            }
        }
        self.apply(&batch).await?;
        if let Some(last) = entries.last() {
            self.move_to(last.position().lsn);
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
        match self.unproved {
            Some(said) if lsn < said => {}
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
    fn pass_said(&mut self, position: Position) {
        if let Some(said) = self.unproved.take_if(|said| position > (*said).into()) {
            self.link.advance(said);
        }
    }

    fn is_behind_us(&self, lsn: Lsn) -> bool {
        lsn <= self.link.applied().max(self.unproved.unwrap_or(Lsn(0)))
    }

    async fn is_applied(&mut self, transaction: &Transaction) -> Result<bool, ApplyError> {
        if transaction.end_lsn <= self.link.applied() {
            return Ok(true);
        }
        let Some(said) = self.unproved else {
            return Ok(false);
        };
        if transaction.end_lsn < said {
            // The session is sequential: the origin moves to a transaction only after all before it are committed.
            self.moved(&[transaction], transaction.end_lsn);
            return Ok(true);
        }
        let unnoted = self.carried.unnoted.iter();
        let before = unnoted
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
            self.moved(&[transaction], transaction.end_lsn);
        }
        Ok(committed)
    }

    async fn apply(&mut self, transactions: &[&Transaction]) -> Result<(), ApplyError> {
        if self.context.is_own() {
            return self.learn(transactions).await;
        }
        self.wait_for_clock(transactions).await;
        let mut rest = transactions;
        while let Some((&first, others)) = rest.split_first() {
            self.carried.current = None;
            self.look_at_schema();
            let without_ddl = rest.iter().take_while(|t| t.statements.is_empty()).count();
            let before_ddl = rest.get(..without_ddl).unwrap_or_default();
            let merged = Box::pin(self.apply_runs(before_ddl)).await?;
            if merged > 0 {
                rest = rest.get(merged..).unwrap_or_default();
                continue;
            }
            self.carried.current = Some(first.end_lsn);
            if let Some(refusal) = self.refusal(first).await? {
                self.quarantine(first, refusal).await?;
                rest = others;
                continue;
            }
            if !first.statements.is_empty() {
                self.apply_one(first).await?;
                rest = others;
                continue;
            }
            let traits = self.session.traits(first, false).await?;
            let merging = self.careful > 0 && traits.counts && !std::mem::take(&mut self.unmerged);
            if traits.needs_locks() || (self.careful > 0 && !merging) {
                self.careful = self.careful.saturating_sub(1);
                self.apply_one(first).await?;
                rest = others;
                continue;
            }
            let mut run = 1;
            let mut size = first.size;
            let mut alone = merging || traits.buries();
            for transaction in others {
                let is_full = run >= BATCH_TRANSACTIONS || size >= BATCH_BYTES;
                if is_full || !transaction.statements.is_empty() {
                    break;
                }
                size += transaction.size;
                if self.refusal(transaction).await?.is_some() {
                    break;
                }
                let traits = self.session.traits(transaction, true).await?;
                if traits.needs_locks() || (merging && !traits.counts) {
                    break;
                }
                alone |= traits.buries();
                run += 1;
            }
            let batch = rest.get(..run).unwrap_or_default();
            self.carried.gate = Some(Gate::pass(&self.context.gate, alone).await);
            if batch
                .iter()
                .any(|transaction| self.session.may_meet_shadows(transaction))
            {
                // Since another link was alone: looked at anew.
                self.carried.gate = None;
                continue;
            }
            let applied = self.session.apply_batch(batch, merging).await?;
            self.carried.gate = None;
            let (done, left) = rest.split_at(applied.committed.min(rest.len()));
            if let Some(last) = done.last() {
                self.link.count(done.len() as u64, last.timestamp);
                self.moved(done, last.end_lsn);
            }
            rest = left;
            self.learn_from(applied.stopped, merging, done.len());
        }
        self.carried.current = None;
        Ok(())
    }

    /// Where the target's schema has changed, what the session knows of it is forgotten.
    fn look_at_schema(&mut self) {
        let now = self.context.schema.load(Ordering::Acquire);
        if std::mem::replace(&mut self.schema, now) != now {
            self.session.forget_schema(false);
            self.settled = None;
        }
    }

    /// The target refuses a change that its clock is behind, and what was sent with it. So it is sent when it will arrive
    /// in time, as far as the clock is known.
    async fn wait_for_clock(&self, transactions: &[&Transaction]) {
        let timestamps = transactions.iter().map(|transaction| transaction.timestamp);
        let Some(newest) = timestamps.max() else {
            return;
        };
        let mut waited = false;
        while let Some(clock) = self.context.target_vitals.clock()
            && let Some(wait) = clock::wait(newest, pg_now(), clock.arrival_us)
        {
            if wait > CLOCK_WAIT_SHOWN {
                waited |= self.link.set_state(LinkState::WaitingForClock);
            }
            clock::Hold::of(wait).wait().await;
        }
        if waited {
            self.link.set_state(LinkState::Streaming);
        }
    }

    /// Sets how much care the next transactions get by how a batch went.
    fn learn_from(&mut self, stopped: bool, merging: bool, done: usize) {
        let done = u32::try_from(done).unwrap_or(u32::MAX);
        if merging {
            self.careful = self.careful.saturating_sub(done);
        }
        // What cannot be merged needs a look of its own.
        self.unmerged = stopped && merging;
        if stopped {
            let most = if merging { CAREFUL_MAX } else { MERGED_MAX };
            self.penalty = (self.penalty * 2 + 1).min(most);
            self.careful = self.careful.max(self.penalty);
        } else if !merging {
            self.penalty /= 2;
        }
    }

    /// Transactions up to `lsn` are committed.
    fn moved(&mut self, done: &[&Transaction], lsn: Lsn) {
        self.carried.grouping.passed(done.len());
        if self.context.version >= 160_000 {
            let timestamps = done.iter().map(|transaction| transaction.timestamp);
            self.carried.unnoted.extend(timestamps);
        }
        self.link.advance(lsn);
    }

    async fn apply_one(&mut self, transaction: &Transaction) -> Result<(), ApplyError> {
        let mut applied = self.apply_settled(transaction, None).await?;
        if applied
            .as_ref()
            .is_err_and(|error| is_about_schema(&error.code))
        {
            // What was known of its tables may be old.
            self.session.forget_schema(false);
            applied = self.apply_settled(transaction, None).await?;
        }
        let conflicts = match applied {
            Ok(conflicts) => conflicts,
            Err(error) => {
                let refusal = Refusal::by(error.to_string());
                return self.quarantine(transaction, refusal).await;
            }
        };
        if conflicts == 0 {
            self.penalty /= 2;
            self.careful = self.careful.min(self.penalty);
        }
        self.link.count(1, transaction.timestamp);
        self.link.count_conflicts(self.session.take_conflicts());
        self.moved(&[transaction], transaction.end_lsn);
        Ok(())
    }

    /// The slow path, with the waits that it asks for. Answers the conflicts, or why the target refuses it. `quarantined`:
    /// what leaves the quarantine with it.
    async fn apply_settled(
        &mut self,
        transaction: &Transaction,
        quarantined: Option<Held>,
    ) -> Result<Result<u64, ServerError>, ApplyError> {
        let mut settled = Unknown::default();
        let version = Version {
            timestamp: transaction.timestamp,
            node: self.context.place.source,
        };
        let has_commands = !transaction.statements.is_empty();
        let traits = self.session.traits(transaction, has_commands).await?;
        let mut shadowing = traits.shadowed || traits.multiset;
        loop {
            let runs = &self.context.runs;
            let alone = has_commands
                || traits.buries()
                || traits.counts
                || shadowing
                || runs.may_deceive(version);
            self.carried.gate = Some(Gate::pass(&self.context.gate, alone).await);
            if runs.may_deceive(version) {
                if !alone {
                    // Another link has applied a run since.
                    self.carried.gate = None;
                    continue;
                }
                self.session.note_true_versions(transaction, runs).await?;
            }
            let session = &mut self.session;
            if !has_commands && !shadowing && session.may_meet_shadows(transaction) {
                // Since another link was alone. Kept, the gate would be waited for by its own holder.
                self.carried.gate = None;
                shadowing = true;
                continue;
            }
            let outcome = if has_commands {
                let applying =
                    session.apply_with_commands(transaction, &settled, quarantined, shadowing);
                Box::pin(applying).await?
            } else if shadowing {
                Box::pin(session.apply_with_shadows(transaction, &settled, quarantined)).await?
            } else {
                Box::pin(session.apply_slowly(transaction, &settled, quarantined)).await?
            };
            self.carried.gate = None;
            match outcome {
                Slow::Applied { conflicts } => {
                    if has_commands {
                        self.context.schema.fetch_add(1, Ordering::AcqRel);
                        self.look_at_schema();
                    }
                    if traits.layered && conflicts > 0 {
                        self.context.contests.raise();
                    }
                    return Ok(Ok(conflicts));
                }
                Slow::Refused(error) => return Ok(Err(error)),
                Slow::Collides => shadowing = true,
                Slow::Unsettled(unknown) => {
                    let changes = transaction.changes.iter();
                    let tables = changes.map(|change| qualified(&change.relation));
                    self.settle(tables.collect()).await?;
                    settled.add(unknown);
                }
            }
        }
    }

    /// Waits until what the target's own clients are committing to some tables now is visible, and everything that they have deleted
    /// so far is remembered. A commit has its timestamp before it is visible, so one that is older than the change may
    /// still be on its way; whatever begins later is newer.
    async fn settle(&mut self, tables: Vec<String>) -> Result<(), ApplyError> {
        let context = self.context;
        let own = context.links.get(context.target, context.target);
        let own = own.ok_or(ApplyError::Unexpected("no link of the target to itself"))?;
        let waiting = |lsn| LinkState::WaitingForCause {
            node: context.place.target,
            lsn,
        };
        self.link.set_state(waiting(None));
        self.session.wait_for_writers(tables).await?;
        let lsn = watermark::write(&context.place.control).await?;
        // The watermark lies behind everything that the target has written: its stream has to be read up to there
        // even if its own targets are slow, or two nodes could wait for each other.
        let _unbounded = context.target_journal.lift_bound();
        self.link.set_state(waiting(Some(lsn)));
        own.wait_applied(lsn).await;
        self.link.set_state(LinkState::Streaming);
        Ok(())
    }

    async fn note(&mut self) -> Result<(), ApplyError> {
        if self.context.version >= 160_000 {
            self.session.note_progress(self.link.applied()).await?;
            self.carried.unnoted.clear();
            self.noted = Instant::now();
        }
        Ok(())
    }
}
