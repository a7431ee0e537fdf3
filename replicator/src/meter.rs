//! How much each source has written, how much of it each target has, and how fast both move. Only the capture counts,
//! once per read of its stream; everything else is derived from positions when somebody asks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tandem_wire::lsn::Lsn;
use tokio::time::{Instant, MissedTickBehavior};

use crate::clock::stream::{SetBack, StreamClock};
use crate::node::Shared;
use crate::transaction::Entry;
use crate::version::PgTimestamp;

/// How often rates are sampled.
const INTERVAL: Duration = Duration::from_secs(1);
/// Rates are those of so many intervals.
const INTERVALS: usize = 10;
/// Marks of one source: each is some 50 bytes.
const MARKS_MAX: usize = 4096;

/// What a source has written since its stream was first read by this daemon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Transactions to deliver.
    pub transactions: u64,
    /// Changes of rows in them.
    pub rows: u64,
    /// Bytes of those changes.
    pub bytes: u64,
}

impl Totals {
    fn since(self, earlier: Totals) -> Totals {
        Totals {
            transactions: self.transactions.saturating_sub(earlier.transactions),
            rows: self.rows.saturating_sub(earlier.rows),
            bytes: self.bytes.saturating_sub(earlier.bytes),
        }
    }

    /// So much of the way from here to `later`, in parts of `of`, rounded down.
    fn towards(self, later: Totals, part: u64, of: u64) -> Totals {
        let way = |from: u64, to: u64| {
            let whole = u128::from(to.saturating_sub(from)) * u128::from(part);
            let gone = whole / u128::from(of.max(1));
            from + u64::try_from(gone).unwrap_or(u64::MAX)
        };
        Totals {
            transactions: way(self.transactions, later.transactions),
            rows: way(self.rows, later.rows),
            bytes: way(self.bytes, later.bytes),
        }
    }
}

/// Up to a position, so much was written; the first of what is new since the mark before it at this time.
#[derive(Debug, Clone, Copy)]
struct Mark {
    lsn: Lsn,
    total: Totals,
    first: PgTimestamp,
}

/// The way of one source's stream: a mark per read, thinned where there are too many. Between two marks transactions are
/// taken to lie evenly.
#[derive(Debug, Default)]
pub(crate) struct Course {
    marks: VecDeque<Mark>,
    /// What came of a transaction whose end did not come yet.
    open: Totals,
    clock: StreamClock,
}

impl Course {
    /// The stream is read from here on. What lies before is unknown, unless it was read already.
    pub(crate) fn begin(&mut self, lsn: Lsn) {
        self.open = Totals::default();
        if self.marks.is_empty() {
            self.marks.push_back(Mark {
                lsn,
                total: Totals::default(),
                first: PgTimestamp::MIN,
            });
        }
    }

    /// Takes what one read of the stream brought. What was read before is not counted again.
    pub(crate) fn take(&mut self, entries: &[Entry]) {
        let Some(last) = self.marks.back().copied() else {
            return;
        };
        let mut mark = Mark {
            first: PgTimestamp::MAX,
            ..last
        };
        for entry in entries {
            let (Entry::Transaction(transaction)
            | Entry::Part {
                part: transaction, ..
            }
            | Entry::End(transaction)) = entry
            else {
                continue;
            };
            self.open.rows += transaction.changes.len() as u64;
            self.open.bytes += transaction.size as u64;
            if !entry.ends_transaction() {
                continue;
            }
            let whole = std::mem::take(&mut self.open);
            if transaction.end_lsn > last.lsn {
                mark.lsn = transaction.end_lsn;
                mark.first = mark.first.min(transaction.timestamp);
                self.clock.take(transaction.timestamp, transaction.xid);
                mark.total.transactions += 1;
                mark.total.rows += whole.rows;
                mark.total.bytes += whole.bytes;
            }
        }
        if mark.lsn > last.lsn {
            self.marks.push_back(mark);
        }
        if self.marks.len() > MARKS_MAX {
            self.thin();
        }
    }

    /// Every second mark goes; what it says of the time goes to the next one.
    fn thin(&mut self) {
        let mut kept = VecDeque::with_capacity(MARKS_MAX);
        let mut dropped: Option<Mark> = None;
        let last = self.marks.len().saturating_sub(1);
        for (index, mut mark) in self.marks.drain(..).enumerate() {
            if index % 2 == 1 && index != last {
                dropped = Some(mark);
                continue;
            }
            if let Some(before) = dropped.take() {
                mark.first = mark.first.min(before.first);
            }
            kept.push_back(mark);
        }
        self.marks = kept;
    }

    /// Nobody will ask for what lies before `lsn`.
    pub(crate) fn forget(&mut self, lsn: Lsn) {
        while self.marks.get(1).is_some_and(|second| second.lsn <= lsn) {
            self.marks.pop_front();
        }
    }

    /// What the commit timestamps say of the source's clock.
    pub(crate) fn clock(&self) -> &StreamClock {
        &self.clock
    }

    /// Whether the source's clock was set back since this was asked last.
    pub(crate) fn take_set_back(&mut self) -> Option<SetBack> {
        self.clock.take_set_back()
    }

    /// Everything that was read.
    pub(crate) fn total(&self) -> Totals {
        self.marks.back().map(|mark| mark.total).unwrap_or_default()
    }

    /// What was read up to `lsn`; `None` for positions that an earlier daemon has read.
    pub(crate) fn total_at(&self, lsn: Lsn) -> Option<Totals> {
        let behind = self.marks.partition_point(|mark| mark.lsn <= lsn);
        let before = self.marks.get(behind.checked_sub(1)?)?;
        let Some(next) = self.marks.get(behind) else {
            return Some(before.total);
        };
        let (part, of) = (lsn.0 - before.lsn.0, next.lsn.0 - before.lsn.0);
        Some(before.total.towards(next.total, part, of))
    }

    /// What was read behind `lsn`; `None` as above.
    pub(crate) fn behind(&self, lsn: Lsn) -> Option<Totals> {
        Some(self.total().since(self.total_at(lsn)?))
    }

    /// When about the first transaction behind `lsn` was committed; `None` when there is none.
    pub(crate) fn first_behind(&self, lsn: Lsn) -> Option<PgTimestamp> {
        let behind = self.marks.partition_point(|mark| mark.lsn <= lsn);
        self.marks
            .get(behind)
            .map(|mark| mark.first)
            .filter(|&first| first != PgTimestamp::MIN)
    }
}

/// Counters as they were at some times. One that is not known is `None`.
#[derive(Debug, Default)]
struct Window<const N: usize> {
    samples: VecDeque<(Instant, [Option<u64>; N])>,
}

impl<const N: usize> Window<N> {
    fn take(&mut self, now: Instant, counters: [Option<u64>; N]) {
        if self.samples.len() > INTERVALS {
            self.samples.pop_front();
        }
        self.samples.push_back((now, counters));
    }

    /// Per second, over the part of the window in which the counter is known. One that went back, as after a crash of the
    /// target, has none for a while.
    fn rates(&self) -> [Option<f64>; N] {
        std::array::from_fn(|counter| {
            let known = |(at, counters): &(Instant, [Option<u64>; N])| {
                let count = counters.get(counter).copied().flatten()?;
                Some((*at, count))
            };
            let (from, first) = self.samples.iter().find_map(known)?;
            let (to, last) = self.samples.back().and_then(known)?;
            let seconds = to.duration_since(from).as_secs_f64();
            let counted = last.checked_sub(first).filter(|_| seconds > 0.0)?;
            // Counters are far below 2^52.
            #[expect(clippy::cast_precision_loss, reason = "a rate to show")]
            let counted = counted as f64;
            Some(counted / seconds)
        })
    }
}

/// Transactions, rows and bytes per second, over the last ten seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Rates {
    /// Transactions.
    pub transactions: Option<f64>,
    /// Rows.
    pub rows: Option<f64>,
    /// Bytes.
    pub bytes: Option<f64>,
}

impl From<[Option<f64>; 3]> for Rates {
    fn from([transactions, rows, bytes]: [Option<f64>; 3]) -> Self {
        Self {
            transactions,
            rows,
            bytes,
        }
    }
}

/// See the module.
pub(crate) struct Meter {
    nodes: usize,
    courses: Vec<Arc<Mutex<Course>>>,
    captured: Mutex<Vec<Window<3>>>,
    /// By source and target, as [`Links`](crate::progress::Links) has them.
    applied: Mutex<Vec<Window<3>>>,
}

impl Meter {
    /// For so many nodes.
    pub(crate) fn new(nodes: usize) -> Self {
        let windows = |count: usize| Mutex::new((0..count).map(|_| Window::default()).collect());
        Self {
            nodes,
            courses: (0..nodes).map(|_| Arc::default()).collect(),
            captured: windows(nodes),
            applied: windows(nodes * nodes),
        }
    }

    /// The course of a source's stream, for its capture.
    pub(crate) fn course(&self, source: usize) -> Arc<Mutex<Course>> {
        self.courses.get(source).map(Arc::clone).unwrap_or_default()
    }

    /// Asks the course of a source's stream.
    pub(crate) fn read<T: Default>(&self, source: usize, ask: impl FnOnce(&Course) -> T) -> T {
        self.courses
            .get(source)
            .map(|course| ask(&lock(course)))
            .unwrap_or_default()
    }

    /// How fast a source writes; bytes are those of its changes.
    pub(crate) fn captured(&self, source: usize) -> Rates {
        let windows = lock(&self.captured);
        windows
            .get(source)
            .map(|window| window.rates().into())
            .unwrap_or_default()
    }

    /// How fast a target takes what a source writes; bytes are those of the source's WAL.
    pub(crate) fn applied(&self, source: usize, target: usize) -> Rates {
        let windows = lock(&self.applied);
        windows
            .get(source * self.nodes + target)
            .map(|window| window.rates().into())
            .unwrap_or_default()
    }

    fn sample(&self, shared: &Shared, now: Instant) {
        for source in 0..self.nodes {
            let total = self.read(source, Course::total);
            let counters = [total.transactions, total.rows, total.bytes].map(Some);
            if let Some(window) = lock(&self.captured).get_mut(source) {
                window.take(now, counters);
            }
            let mut slowest = None;
            for link in shared.links.of_source(source) {
                let applied = link.applied();
                slowest = Some(applied.min(slowest.unwrap_or(applied)));
                let rows = self.read(source, |course| course.total_at(applied));
                let rows = rows.map(|total| total.rows);
                let counters = [Some(link.transactions()), rows, Some(applied.0)];
                if let Some(window) = lock(&self.applied).get_mut(source * self.nodes + link.target)
                {
                    window.take(now, counters);
                }
            }
            if let (Some(slowest), Some(course)) = (slowest, self.courses.get(source)) {
                lock(course).forget(slowest);
            }
        }
    }
}

/// Samples for ever.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        shared.meter.sample(&shared, now);
    }
}

/// Nothing that can panic runs under these locks.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transaction::Transaction;

    fn transaction(end: u64, timestamp: PgTimestamp) -> Entry {
        Entry::Transaction(Transaction {
            end_lsn: Lsn(end),
            timestamp,
            xid: None,
            statements: Vec::new(),
            changes: Vec::new(),
            size: 10,
        })
    }

    #[test]
    fn a_target_is_behind_by_what_lies_between_its_position_and_the_end() {
        let mut course = Course::default();
        assert_eq!(course.behind(Lsn(0)), None);
        course.begin(Lsn(100));
        course.take(&[transaction(110, 1), Entry::Empty { end_lsn: Lsn(120) }]);
        course.take(&[transaction(130, 2), transaction(150, 3)]);
        let behind = |lsn| course.behind(Lsn(lsn)).map(|total| total.transactions);
        assert_eq!(behind(90), None);
        assert_eq!(
            [100, 110, 130, 150, 900].map(behind),
            [3, 2, 1, 0, 0].map(Some)
        );
        assert_eq!(course.behind(Lsn(110)).map(|total| total.bytes), Some(20));
        assert_eq!(course.first_behind(Lsn(100)), Some(1));
        assert_eq!(course.first_behind(Lsn(120)), Some(2));
        assert_eq!(course.first_behind(Lsn(150)), None);
    }

    #[test]
    fn what_is_read_twice_is_counted_once() {
        let mut course = Course::default();
        course.begin(Lsn(0));
        course.take(&[transaction(10, 1), transaction(20, 2)]);
        course.begin(Lsn(10));
        course.take(&[transaction(20, 2), transaction(30, 3)]);
        assert_eq!(course.total().transactions, 3);
    }

    #[test]
    fn a_long_backlog_costs_bounded_memory_and_is_still_counted() {
        let mut course = Course::default();
        course.begin(Lsn(0));
        let count = 10 * MARKS_MAX as u64;
        for number in 1..=count {
            course.take(&[transaction(number * 8, number.cast_signed())]);
        }
        assert!(course.marks.len() <= MARKS_MAX);
        assert_eq!(
            course.behind(Lsn(0)).map(|total| total.transactions),
            Some(count)
        );
        // Each transaction is as long as the others here, so the guess is right.
        let half = course
            .behind(Lsn(count * 4))
            .map(|total| total.transactions);
        assert_eq!(half, Some(count / 2));
        let first = course.first_behind(Lsn(count * 4)).expect("there is more");
        let exact = (count / 2).cast_signed() + 1;
        assert!(first <= exact && exact - first < 64, "{first} for {exact}");
        course.forget(Lsn(count * 8));
        assert_eq!(course.marks.len(), 1);
        assert_eq!(course.behind(Lsn(count * 8)), Some(Totals::default()));
    }

    #[test]
    fn rates_are_those_of_the_window() {
        let mut window = Window::default();
        let start = Instant::now();
        assert_eq!(window.rates(), [None, None]);
        for second in 0..30 {
            let now = start + Duration::from_secs(second);
            let known = (second >= 25).then_some(second);
            window.take(now, [Some(second * second), known]);
        }
        // From 19 squared to 29 squared in ten seconds; the other one is known for four.
        assert_eq!(window.rates(), [Some(48.0), Some(1.0)]);
        window.take(start + Duration::from_secs(30), [Some(3), None]);
        assert_eq!(window.rates(), [None, None]);
    }
}
