//! Transactions that come in parts: the target applies the parts as they come, in one transaction of its own, so that
//! neither memory nor time depends on the whole. Nothing is committed before the end is there.
//!
//! Only what the fast path takes goes this way. What needs a closer look is rolled back, read again, and put together in
//! memory for the ways that other transactions go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_wire::lsn::Lsn;

use super::batch::{Batch, Failure, Sent, Step};
use super::gate::Gate;
use super::session::{ApplyError, Session, is_poison};
use super::{BATCH_BYTES, Worker};
use crate::ddl::Statement;
use crate::journal::{Cursor, Run};
use crate::transaction::{Entry, Transaction};

/// While a transaction is open on the target it holds the gate and its rows. So long it may wait there for its source at
/// least; beyond that, no longer than it worked.
const PATIENCE: Duration = Duration::from_secs(1);
/// The target ends a session that is idle in a transaction for longer than this.
const PATIENCE_MAX: Duration = Duration::from_secs(30);

/// How a transaction is to be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// As its parts come.
    InParts {
        /// Alone at the gate.
        alone: bool,
    },
    /// Put together in memory.
    Whole,
}

/// How that went.
#[derive(Debug)]
enum Attempt {
    Applied,
    /// Nothing is done: it has to be this way.
    Instead(Way),
    /// Nothing is done: its end takes too long to come.
    Late,
    /// Nothing is done: it comes again from its beginning.
    Broken,
}

/// How long a transaction has waited for its source.
struct Patience {
    begun: Instant,
    waited: Duration,
}

impl Patience {
    /// How much longer it may wait now.
    fn left(&self, now: Instant) -> Duration {
        let worked = (now - self.begun).saturating_sub(self.waited);
        let most = PATIENCE + worked;
        most.saturating_sub(self.waited).min(PATIENCE_MAX)
    }
}

impl Worker<'_> {
    /// Applies the transaction that begins with this part. What comes behind that is read here; where it has to be begun
    /// again, the cursor stands before it.
    pub(super) async fn apply_parts(
        &mut self,
        cursor: &mut Cursor,
        first: &Transaction,
    ) -> Result<(), ApplyError> {
        let commit = first.end_lsn;
        if commit < self.link.applied().max(self.unproved.unwrap_or(Lsn(0))) {
            return self.pass_over(cursor).await;
        }
        let known = self.way.filter(|(lsn, _)| *lsn == commit);
        let way = known.map_or(Way::InParts { alone: false }, |(_, way)| way);
        // Both ask for the transaction as a whole.
        let asked = self.carried.poison.is_some() || !self.context.quarantine.is_empty();
        let attempt = match way {
            _ if self.context.is_own() && way != Way::Whole => {
                self.learn_in_parts(cursor, first).await?
            }
            Way::InParts { alone } if !asked => self.apply_in_parts(cursor, first, alone).await?,
            Way::InParts { .. } | Way::Whole => self.apply_whole(cursor, first).await?,
        };
        let place = &self.context.place;
        tracing::debug!(source = place.source, target = place.target, %commit, ?way, ?attempt, "a transaction in parts");
        match attempt {
            Attempt::Applied => self.way = None,
            Attempt::Instead(way) => {
                self.way = Some((commit, way));
                cursor.rewind();
            }
            Attempt::Late => {
                cursor.await_end(commit);
                cursor.rewind();
            }
            Attempt::Broken => {}
        }
        Ok(())
    }

    /// What follows a part of so many; `None`: the transaction comes again from its beginning, where the cursor now stands.
    async fn next_part(
        &mut self,
        cursor: &mut Cursor,
        parts: u32,
    ) -> Result<Option<Arc<Entry>>, ApplyError> {
        let applied = self.link.applied();
        let journal = &self.context.journal;
        let run = journal.read(cursor, applied, 1, BATCH_BYTES).await?;
        let Run::Entries(entries) = run else {
            // A hole shows itself again there.
            cursor.rewind();
            return Ok(None);
        };
        let next = entries.into_iter().next();
        match next.as_deref() {
            Some(Entry::End(_)) => Ok(next),
            Some(Entry::Part { number, .. }) if *number == parts + 1 => Ok(next),
            _ => Err(ApplyError::Unexpected("parts of a transaction")),
        }
    }

    /// Passes over a transaction that the target has, or may have.
    async fn pass_over(&mut self, cursor: &mut Cursor) -> Result<(), ApplyError> {
        let mut parts = 1;
        while let Some(entry) = self.next_part(cursor, parts).await? {
            if let Entry::End(rest) = entry.as_ref() {
                if self.is_applied(rest).await? {
                    self.move_to(rest.end_lsn);
                } else {
                    cursor.rewind();
                }
                return Ok(());
            }
            parts += 1;
        }
        Ok(())
    }

    /// Puts the transaction together.
    async fn apply_whole(
        &mut self,
        cursor: &mut Cursor,
        first: &Transaction,
    ) -> Result<Attempt, ApplyError> {
        let mut changes = first.changes.clone();
        let mut statements = first.statements.clone();
        let mut size = first.size;
        let mut parts = 1;
        while let Some(entry) = self.next_part(cursor, parts).await? {
            if let Entry::Part { part, .. } | Entry::End(part) = entry.as_ref() {
                statements.extend(part.statements.iter().map(|statement| Statement {
                    before: changes.len() + statement.before,
                    message: statement.message.clone(),
                }));
                changes.extend_from_slice(&part.changes);
                size += part.size;
            }
            if let Entry::End(rest) = entry.as_ref() {
                let (end_lsn, timestamp, xid) = (rest.end_lsn, rest.timestamp, rest.xid);
                let whole = Transaction {
                    end_lsn,
                    timestamp,
                    xid,
                    changes,
                    statements,
                    size,
                };
                Box::pin(self.apply(&[&whole])).await?;
                self.move_to(end_lsn);
                return Ok(Attempt::Applied);
            }
            parts += 1;
        }
        Ok(Attempt::Broken)
    }

    /// Each part is learnt in a transaction of its own.
    async fn learn_in_parts(
        &mut self,
        cursor: &mut Cursor,
        first: &Transaction,
    ) -> Result<Attempt, ApplyError> {
        let mut parts = 0;
        let mut next: Option<Arc<Entry>> = None;
        loop {
            let (part, is_end) = part_of(first, next.as_deref());
            if !self.learn_part(part).await? {
                return Ok(Attempt::Instead(Way::Whole));
            }
            if is_end {
                self.move_to(part.end_lsn);
                return Ok(Attempt::Applied);
            }
            parts += 1;
            next = self.next_part(cursor, parts).await?;
            if next.is_none() {
                return Ok(Attempt::Broken);
            }
        }
    }

    async fn apply_in_parts(
        &mut self,
        cursor: &mut Cursor,
        first: &Transaction,
        alone: bool,
    ) -> Result<Attempt, ApplyError> {
        self.carried.current = None;
        let alone = match self.other_way(first, alone).await? {
            Some(Way::InParts { alone }) => alone,
            Some(Way::Whole) => return Ok(Attempt::Instead(Way::Whole)),
            None => alone,
        };
        self.wait_for_clock(&[first]).await;
        self.carried.gate = Some(Gate::pass(&self.context.gate, alone).await);
        let mut open = Open::default();
        let attempt = self.send_parts(cursor, &mut open, first, alone).await?;
        if !matches!(attempt, Attempt::Applied) {
            self.session.abandon(&mut open).await?;
        }
        self.carried.gate = None;
        self.carried.current = None;
        Ok(attempt)
    }

    /// Sends the parts as they come. Unless it is applied, the transaction may be left open.
    async fn send_parts(
        &mut self,
        cursor: &mut Cursor,
        open: &mut Open,
        first: &Transaction,
        alone: bool,
    ) -> Result<Attempt, ApplyError> {
        let mut patience = Patience {
            begun: Instant::now(),
            waited: Duration::ZERO,
        };
        let mut parts = 0;
        let mut next: Option<Arc<Entry>> = None;
        loop {
            let (part, is_end) = part_of(first, next.as_deref());
            if is_end {
                self.carried.current = Some(part.end_lsn);
            }
            if let Some(way) = self.other_way(part, alone).await? {
                return Ok(Attempt::Instead(way));
            }
            if !self.session.send_part(open, part, is_end).await? {
                // The next one, which is this one, gets a closer look.
                self.learn_from(true, false, 0);
                return Ok(Attempt::Instead(Way::Whole));
            }
            if is_end {
                self.learn_from(false, false, 1);
                self.link.count(1, part.timestamp);
                self.moved(&[part], part.end_lsn);
                self.move_to(part.end_lsn);
                return Ok(Attempt::Applied);
            }
            parts += 1;
            let waits = Instant::now();
            let left = if cursor.awaited_end(first.end_lsn) {
                PATIENCE_MAX
            } else {
                patience.left(waits)
            };
            let Ok(came) = tokio::time::timeout(left, self.next_part(cursor, parts)).await else {
                return Ok(Attempt::Late);
            };
            patience.waited += waits.elapsed();
            next = came?;
            if next.is_none() {
                return Ok(Attempt::Broken);
            }
        }
    }

    /// How the transaction has to be applied because of one of its parts, if it is in another way.
    async fn other_way(
        &mut self,
        part: &Transaction,
        alone: bool,
    ) -> Result<Option<Way>, ApplyError> {
        if !part.statements.is_empty() {
            return Ok(Some(Way::Whole));
        }
        let traits = match self.session.traits(part, false).await {
            Ok(traits) => traits,
            // Whoever applies it as a whole says what is wrong.
            Err(error) if error.is_poison() => return Ok(Some(Way::Whole)),
            Err(error) => return Err(error),
        };
        Ok(if traits.needs_locks() {
            Some(Way::Whole)
        } else if traits.buries() && !alone {
            Some(Way::InParts { alone: true })
        } else {
            None
        })
    }
}

/// The changes of the first part, or of what came behind it, and whether the transaction ends with them.
fn part_of<'a>(first: &'a Transaction, next: Option<&'a Entry>) -> (&'a Transaction, bool) {
    match next {
        Some(Entry::End(rest)) => (rest, true),
        Some(Entry::Part { part, .. }) => (part, false),
        _ => (first, false),
    }
}

/// A transaction on the target that takes several batches. They do not commit it before the last.
#[derive(Default)]
struct Open {
    begun: bool,
    under_way: Option<Sent>,
    /// It writes a table with deferrable constraints.
    deferrable: bool,
}

impl Session {
    /// Sends a part, and when that is the end the COMMIT. Answers whether the server has taken everything so far, as far
    /// as is known; if not, nothing is left of the transaction.
    async fn send_part(
        &mut self,
        open: &mut Open,
        part: &Transaction,
        is_end: bool,
    ) -> Result<bool, ApplyError> {
        let mut batch = Batch::default();
        if let Err(error) = self.add_part(&mut batch, open, part, is_end).await {
            batch.discard(self.connection.out(), &mut self.statements);
            self.abandon(open).await?;
            return if error.is_poison() {
                Ok(false)
            } else {
                Err(error)
            };
        }
        if let Some(failure) = self.replies(open).await? {
            batch.discard(self.connection.out(), &mut self.statements);
            return self.give_up(open, &failure).await;
        }
        open.begun = true;
        open.under_way = Some(batch.send(&mut self.connection).await);
        if is_end {
            if let Some(failure) = self.replies(open).await? {
                return self.give_up(open, &failure).await;
            }
            open.begun = false;
        }
        Ok(true)
    }

    async fn add_part(
        &mut self,
        batch: &mut Batch,
        open: &mut Open,
        part: &Transaction,
        is_end: bool,
    ) -> Result<(), ApplyError> {
        if !open.begun {
            batch.execute(self.connection.out(), "begin", &[], Step::Work)?;
        }
        open.deferrable |= self.add_changes(batch, part, false).await?;
        if is_end {
            self.finish(batch, part, open.deferrable)?;
        }
        Ok(())
    }

    /// Waits for what is under way; answers its error.
    async fn replies(&mut self, open: &mut Open) -> Result<Option<Failure>, ApplyError> {
        let Some(sent) = open.under_way.take() else {
            return Ok(None);
        };
        let replies = sent.replies(&mut self.connection, &mut self.statements);
        Ok(replies.await?.failure)
    }

    async fn give_up(&mut self, open: &mut Open, failure: &Failure) -> Result<bool, ApplyError> {
        tracing::debug!(error = %failure.error, "a transaction in parts stopped");
        open.begun = false;
        self.roll_back(failure).await?;
        if is_poison(&failure.error.code) {
            Ok(false)
        } else {
            // It passes, and then the same way is right.
            Err(ApplyError::Refused(failure.error.clone()))
        }
    }

    /// Leaves nothing of a transaction that is open.
    async fn abandon(&mut self, open: &mut Open) -> Result<(), ApplyError> {
        match self.replies(open).await? {
            Some(failure) => self.roll_back(&failure).await?,
            None if open.begun => {
                self.connection.simple_query("ROLLBACK").await?;
            }
            None => {}
        }
        open.begun = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_waits_for_its_source_a_while_and_then_no_longer_than_it_worked() {
        let begun = Instant::now();
        let left = |waited: u64, now: u64| {
            let waited = Duration::from_secs(waited);
            Patience { begun, waited }
                .left(begun + Duration::from_secs(now))
                .as_secs()
        };
        assert_eq!(left(0, 0), 1);
        assert_eq!(left(1, 1), 0);
        // Three seconds of work.
        assert_eq!(left(1, 4), 3);
        assert_eq!(left(4, 7), 0);
        assert_eq!(left(0, 1000), PATIENCE_MAX.as_secs());
    }
}
