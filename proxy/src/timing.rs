//! Owns how long it takes what clients ask for: the workers' clock, and their histograms.
//!
//! Each worker thread has a clock and histograms of its own, so nothing is locked; who asks for figures has every worker
//! copy its own. Times are those of the turn of the worker's loop in which something came up, in microseconds.

use std::{
    cell::{Cell, RefCell},
    sync::LazyLock,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::runtime::Handle;

/// Uses of one reading of the clock at most, in a loop that has so much to do that it never sleeps.
const USES_MAX: u32 = 8;
/// What takes longer counts as this: an hour, in microseconds.
const LONGEST_US: u64 = 3_600_000_000;
/// Decimal digits that are kept of each time.
const DIGITS: u8 = 2;

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Span {
    /// From a transaction's first message to its last answer, as its client sees it.
    Transaction,
    /// From when messages are given to a server to when it is ready for the next ones.
    Query,
    /// Until a transaction has a server.
    Wait,
    /// Until its node shows what its session has seen elsewhere, where that had to be waited for.
    Consistency,
}

impl Span {
    /// All, in the order of [`NodeLatency`].
    pub(crate) const ALL: [Span; 4] = [
        Span::Transaction,
        Span::Query,
        Span::Wait,
        Span::Consistency,
    ];

    /// The word for figures.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Span::Transaction => "transaction",
            Span::Query => "query",
            Span::Wait => "wait",
            Span::Consistency => "consistency",
        }
    }
}

/// The times of one kind.
#[derive(Debug, Clone)]
pub(crate) struct Times {
    histogram: Option<Histogram<u64>>,
    /// Microseconds of all of them together.
    sum_us: u64,
}

impl Default for Times {
    fn default() -> Self {
        Times {
            // None only if the constants did not fit together.
            histogram: Histogram::new_with_bounds(1, LONGEST_US, DIGITS).ok(),
            sum_us: 0,
        }
    }
}

impl Times {
    fn record(&mut self, micros: u64) {
        self.sum_us = self.sum_us.saturating_add(micros);
        if let Some(histogram) = &mut self.histogram {
            histogram.saturating_record(micros);
        }
    }

    fn add(&mut self, other: &Times) {
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        if let (Some(histogram), Some(other)) = (&mut self.histogram, &other.histogram) {
            // Both have the same bounds.
            let _ = histogram.add(other);
        }
    }

    /// All of them together.
    pub(crate) fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_us)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.histogram.as_ref().map_or(0, Histogram::len)
    }

    /// The time that this share of them, from 0 to 1, did not exceed; 0 when there are none.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let histogram = self.histogram.as_ref();
        Duration::from_micros(histogram.map_or(0, |histogram| histogram.value_at_quantile(share)))
    }
}

/// The times of one node, by [`Span`].
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeLatency([Times; 4]);

impl NodeLatency {
    /// The times of each kind.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (Span, &Times)> {
        Span::ALL.into_iter().zip(&self.0)
    }
}

/// A reading of a worker's clock: microseconds, exact enough for figures and cheap to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Moment {
    /// Microseconds from an earlier one to this; 0 if that is later.
    pub(crate) fn micros_since(self, earlier: Moment) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// What the workers' clocks count from.
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

thread_local! {
    /// The time of this turn, and how often it was used.
    static CLOCK: Cell<Option<(Moment, u32)>> = const { Cell::new(None) };
    /// By the node's index.
    static LATENCY: RefCell<Vec<NodeLatency>> = const { RefCell::new(Vec::new()) };
}

/// The worker has slept: its clock is read again when it is next needed.
pub(crate) fn woken() {
    CLOCK.set(None);
}

/// The time, as of when this worker woke up or a few uses ago.
pub(crate) fn now() -> Moment {
    let (time, uses) = match CLOCK.get() {
        Some((time, uses)) if uses < USES_MAX => (time, uses + 1),
        _ => (read_clock(), 1),
    };
    CLOCK.set(Some((time, uses)));
    time
}

fn read_clock() -> Moment {
    let elapsed = BEGINNING.elapsed();
    // Microseconds of 584,000 years.
    Moment(elapsed.as_secs() * 1_000_000 + u64::from(elapsed.subsec_micros()))
}

/// Counts a time of a node, in microseconds.
pub(crate) fn record(node: usize, span: Span, micros: u64) {
    LATENCY.with_borrow_mut(|nodes| {
        if nodes.len() <= node {
            nodes.resize_with(node + 1, NodeLatency::default);
        }
        let times = nodes.get_mut(node);
        if let Some(times) = times.and_then(|node| node.0.get_mut(span as usize)) {
            times.record(micros);
        }
    });
}

/// The times of `nodes` nodes, of all workers together.
pub(crate) async fn merged(workers: &[Handle], nodes: usize) -> Vec<NodeLatency> {
    let mut all = vec![NodeLatency::default(); nodes];
    for worker in workers {
        let own = worker.spawn(async { LATENCY.with_borrow(Clone::clone) });
        // A worker that ends has nothing to tell any more.
        for (sum, own) in all.iter_mut().zip(own.await.unwrap_or_default()) {
            for (sum, own) in sum.0.iter_mut().zip(&own.0) {
                sum.add(own);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_all_workers_come_together_by_node_and_kind() {
        let runtime = || {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .build()
        };
        let workers = [runtime().expect("a runtime"), runtime().expect("a runtime")];
        for (worker, ms) in workers.iter().zip([1, 3]) {
            let recorded = worker.spawn(async move {
                record(1, Span::Query, ms * 1000);
            });
            workers[0].block_on(recorded).expect("recorded");
        }
        let handles: Vec<Handle> = workers
            .iter()
            .map(|worker| worker.handle().clone())
            .collect();
        let all = workers[0].block_on(merged(&handles, 2));
        let counts = |node: &NodeLatency| -> Vec<u64> {
            node.spans().map(|(_, times)| times.count()).collect()
        };
        assert_eq!(
            (counts(&all[0]), counts(&all[1])),
            (vec![0, 0, 0, 0], vec![0, 2, 0, 0])
        );
        let (_, times) = all[1].spans().nth(1).expect("queries");
        assert_eq!(times.sum(), Duration::from_millis(4));
        let half = times.quantile(0.5).as_micros();
        assert!((1000..1020).contains(&half), "{half}");
    }

    #[test]
    fn the_clock_goes_on_after_a_sleep_and_in_a_busy_loop() {
        let later_than = |moment: Moment| while read_clock() <= moment {};
        woken();
        let first = now();
        assert_eq!(now(), first);
        later_than(first);
        let later = (0..USES_MAX).map(|_| now());
        assert!(later.max() > Some(first));
        let before = now();
        later_than(before);
        woken();
        assert!(now().micros_since(before) > 0);
    }
}
