//! The transactions of one source that some target still needs, in memory.
//!
//! One capture writes it, one link per target reads it. What all targets have durably applied is trimmed; at the
//! bound the capture waits. Nothing here survives a restart: the source's slot is confirmed only up to what was
//! trimmed, so everything else can be read again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tandem_wire::lsn::Lsn;
use tokio::sync::Notify;

use crate::transaction::Entry;

/// Where a reader stands. A feed that was filled anew (a new generation) is read from its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    generation: u64,
    sequence: u64,
}

/// What a reader gets.
pub(crate) enum Run {
    /// The next entries.
    Entries(Vec<Arc<Entry>>),
    /// Entries behind the reader's position are gone: the stream has to be read again.
    Missed,
    /// There are none, and the source is known to have written nothing else up to here.
    UpTo(Lsn),
}

struct Inner {
    generation: u64,
    entries: VecDeque<Arc<Entry>>,
    /// Sequence number of the first of `entries`.
    first: u64,
    bytes: usize,
    tail: Lsn,
    /// The end of the last entry that was trimmed in this generation.
    trimmed_to: Lsn,
}

/// See the module.
pub(crate) struct Feed {
    inner: Mutex<Inner>,
    written: Notify,
    trimmed: Notify,
    bytes_max: usize,
    /// How many want the bound ignored.
    lifted: AtomicUsize,
}

impl Feed {
    /// An empty feed that holds up to `bytes_max` bytes of changes, and a single transaction of any size.
    pub(crate) fn new(bytes_max: usize) -> Self {
        let inner = Inner {
            generation: 0,
            entries: VecDeque::new(),
            first: 0,
            bytes: 0,
            tail: Lsn(0),
            trimmed_to: Lsn(0),
        };
        Self {
            inner: Mutex::new(inner),
            written: Notify::new(),
            trimmed: Notify::new(),
            bytes_max,
            lifted: AtomicUsize::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets everything: the stream starts again, at a position that every target has durably applied.
    pub(crate) fn restart(&self) {
        let mut inner = self.lock();
        inner.generation += 1;
        inner.first = 0;
        inner.entries.clear();
        inner.bytes = 0;
        inner.tail = Lsn(0);
        inner.trimmed_to = Lsn(0);
        drop(inner);
        self.trimmed.notify_waiters();
    }

    /// Appends an entry.
    pub(crate) fn push(&self, entry: Entry) {
        let mut inner = self.lock();
        inner.tail = inner.tail.max(entry.end_lsn());
        inner.bytes += entry.size();
        inner.entries.push_back(Arc::new(entry));
        drop(inner);
        self.written.notify_waiters();
    }

    /// The source has written nothing else up to `lsn` (a keepalive between transactions).
    pub(crate) fn advance(&self, lsn: Lsn) {
        let mut inner = self.lock();
        if lsn > inner.tail {
            inner.tail = lsn;
            drop(inner);
            self.written.notify_waiters();
        }
    }

    /// Drops what ends at or before `durable`. Under pressure the caller may leave a target that is down out of
    /// account; that target then [`misses`](Self::misses) something and asks for the stream to be read again.
    pub(crate) fn trim(&self, durable: Lsn) {
        let mut inner = self.lock();
        while inner
            .entries
            .front()
            .is_some_and(|entry| entry.end_lsn() <= durable)
        {
            if let Some(entry) = inner.entries.pop_front() {
                inner.bytes = inner.bytes.saturating_sub(entry.size());
                inner.first += 1;
                inner.trimmed_to = entry.end_lsn();
            }
        }
        drop(inner);
        self.trimmed.notify_waiters();
    }

    /// Whether the bound is reached.
    pub(crate) fn is_full(&self) -> bool {
        self.lock().bytes >= self.bytes_max && self.lifted.load(Ordering::Acquire) == 0
    }

    /// Reads on beyond the bound while the answer lives.
    pub(crate) fn lift_bound(&self) -> LiftedBound<'_> {
        self.lifted.fetch_add(1, Ordering::AcqRel);
        self.trimmed.notify_waiters();
        LiftedBound { feed: self }
    }

    /// Waits until there is room for more.
    pub(crate) async fn has_room(&self) {
        loop {
            let trimmed = self.trimmed.notified();
            tokio::pin!(trimmed);
            trimmed.as_mut().enable();
            if !self.is_full() {
                return;
            }
            trimmed.await;
        }
    }

    /// Up to where the stream was read.
    pub(crate) fn tail(&self) -> Lsn {
        self.lock().tail
    }

    /// Bytes of changes it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Waits for entries behind `cursor`, or for the tail to move past `known`, the position up to which the reader has
    /// applied everything; moves the cursor over what it gives.
    pub(crate) async fn read(
        &self,
        cursor: &mut Cursor,
        known: Lsn,
        entries_max: usize,
        bytes_max: usize,
    ) -> Run {
        loop {
            let written = self.written.notified();
            tokio::pin!(written);
            written.as_mut().enable();
            if let Some(run) = self.take(cursor, known, entries_max, bytes_max) {
                return run;
            }
            written.await;
        }
    }

    fn take(
        &self,
        cursor: &mut Cursor,
        known: Lsn,
        entries_max: usize,
        bytes_max: usize,
    ) -> Option<Run> {
        let inner = self.lock();
        if cursor.generation != inner.generation || cursor.sequence < inner.first {
            // From its start: what the reader has applied already it knows to skip.
            if known < inner.trimmed_to {
                return Some(Run::Missed);
            }
            *cursor = Cursor {
                generation: inner.generation,
                sequence: inner.first,
            };
        }
        let skip = usize::try_from(cursor.sequence - inner.first).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let mut run = Vec::new();
        for entry in inner.entries.iter().skip(skip).take(entries_max) {
            bytes += entry.size();
            if !run.is_empty() && bytes > bytes_max {
                break;
            }
            run.push(Arc::clone(entry));
        }
        if run.is_empty() {
            return (inner.tail > known).then_some(Run::UpTo(inner.tail));
        }
        cursor.sequence += run.len() as u64;
        Some(Run::Entries(run))
    }
}

/// See [`Feed::lift_bound`].
pub(crate) struct LiftedBound<'a> {
    feed: &'a Feed,
}

impl Drop for LiftedBound<'_> {
    fn drop(&mut self) {
        self.feed.lifted.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty(lsn: u64) -> Entry {
        Entry::Empty { end_lsn: Lsn(lsn) }
    }

    async fn read(feed: &Feed, cursor: &mut Cursor) -> Vec<u64> {
        match feed.read(cursor, Lsn(0), 10, 1 << 20).await {
            Run::Entries(entries) => entries.iter().map(|entry| entry.end_lsn().0).collect(),
            Run::UpTo(lsn) => vec![lsn.0 + 1_000_000],
            Run::Missed => panic!("nothing was trimmed past this reader"),
        }
    }

    #[tokio::test]
    async fn each_reader_sees_every_entry_once_and_in_order() {
        let feed = Feed::new(1 << 20);
        let (mut one, mut two) = (Cursor::default(), Cursor::default());
        feed.push(empty(10));
        feed.push(empty(20));
        assert_eq!(read(&feed, &mut one).await, [10, 20]);
        feed.push(empty(30));
        assert_eq!(read(&feed, &mut one).await, [30]);
        assert_eq!(read(&feed, &mut two).await, [10, 20, 30]);
    }

    #[tokio::test]
    async fn trimming_does_not_shift_a_reader() {
        let feed = Feed::new(1 << 20);
        let mut cursor = Cursor::default();
        for lsn in [10, 20, 30] {
            feed.push(empty(lsn));
        }
        assert_eq!(read(&feed, &mut cursor).await, [10, 20, 30]);
        feed.trim(Lsn(20));
        feed.push(empty(40));
        assert_eq!(read(&feed, &mut cursor).await, [40]);
    }

    #[tokio::test]
    async fn after_a_restart_everything_is_read_again() {
        let feed = Feed::new(1 << 20);
        let mut cursor = Cursor::default();
        feed.push(empty(10));
        feed.push(empty(20));
        assert_eq!(read(&feed, &mut cursor).await, [10, 20]);
        feed.restart();
        feed.push(empty(20));
        assert_eq!(read(&feed, &mut cursor).await, [20]);
    }

    #[tokio::test]
    async fn a_target_behind_a_trim_is_told_that_it_misses_something() {
        let feed = Feed::new(1 << 20);
        feed.push(empty(10));
        feed.push(empty(20));
        feed.trim(Lsn(15));
        let behind = feed.read(&mut Cursor::default(), Lsn(5), 10, 1 << 20).await;
        assert!(matches!(behind, Run::Missed));
        let there = feed
            .read(&mut Cursor::default(), Lsn(10), 10, 1 << 20)
            .await;
        assert!(matches!(there, Run::Entries(entries) if entries.len() == 1));
    }

    #[tokio::test]
    async fn the_bound_does_not_hold_while_somebody_has_lifted_it() {
        let feed = Feed::new(1);
        feed.push(empty(10));
        let lifted = feed.lift_bound();
        feed.has_room().await;
        drop(lifted);
        assert!(feed.is_full());
    }

    #[tokio::test]
    async fn an_idle_source_still_tells_how_far_it_is() {
        let feed = Feed::new(1 << 20);
        feed.advance(Lsn(77));
        assert_eq!(read(&feed, &mut Cursor::default()).await, [77 + 1_000_000]);
    }

    #[tokio::test]
    async fn the_writer_waits_at_the_bound_until_a_trim() {
        let feed = Feed::new(1);
        feed.push(empty(10));
        tokio::select! {
            biased;
            () = feed.has_room() => panic!("the feed is full"),
            () = tokio::task::yield_now() => {}
        }
        feed.trim(Lsn(10));
        feed.has_room().await;
    }
}
