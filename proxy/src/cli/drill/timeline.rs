//! Owns what happened when: transactions and ledger writes in steps of 100 ms, gaps and percentiles. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::ledger::{Outcome, Write};
use super::load::{Ended, Transaction};

/// How long one step of the timeline is.
pub(super) const STEP_US: u64 = 100_000;

/// More steps than a drill of a day has: bounds what a wrong time in pgbench's log costs.
const STEPS_MAX: u64 = 864_000;

/// The time, in microseconds since 1970: the unit of pgbench's log, which is why it is everybody's here.
pub fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(0))
}

/// Microseconds as milliseconds with three places.
#[allow(clippy::cast_precision_loss)] // 2^52 microseconds are 142 years.
pub(super) fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}

/// From one time up to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Where it begins, in microseconds since 1970.
    pub from_us: u64,
    /// Where it has ended.
    pub to_us: u64,
}

impl Span {
    pub(super) fn contains(self, time_us: u64) -> bool {
        (self.from_us..self.to_us).contains(&time_us)
    }

    pub(super) fn length_us(self) -> u64 {
        self.to_us.saturating_sub(self.from_us)
    }
}

/// 100 ms of a drill.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Step {
    /// When it begins, counted from the load's start.
    pub(super) ms: u64,
    /// Transactions of pgbench that ended well.
    pub(super) transactions: u64,
    /// Those that it gave up.
    pub(super) failed: u64,
    /// Those that needed more than one try.
    pub(super) retried: u64,
    pub(super) p50_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
    /// The ledger's acknowledged writes, by the node that ran them, in the order of the configuration.
    pub(super) written: Vec<u64>,
    /// The ledger's writes that were refused.
    pub(super) refused: u64,
    /// Those whose outcome nobody told.
    pub(super) unknown: u64,
}

/// The steps of `span`: each thing counts where it ended.
pub(super) fn steps<'a>(
    span: Span,
    nodes: usize,
    transactions: &[Transaction],
    writes: impl Iterator<Item = &'a Write>,
) -> Vec<Step> {
    let count = span.length_us().div_ceil(STEP_US).min(STEPS_MAX);
    let mut steps: Vec<Step> = (0..count)
        .map(|place| Step {
            ms: place * STEP_US / 1000,
            written: vec![0; nodes],
            ..Step::default()
        })
        .collect();
    let place = |time_us: u64| {
        let place = time_us.saturating_sub(span.from_us) / STEP_US;
        span.contains(time_us)
            .then(|| usize::try_from(place).ok())?
    };
    let mut latencies: Vec<Vec<u64>> = vec![Vec::new(); steps.len()];
    for transaction in transactions {
        let Some(place) = place(transaction.ended_us) else {
            continue;
        };
        let (Some(step), Some(latencies)) = (steps.get_mut(place), latencies.get_mut(place)) else {
            continue;
        };
        match transaction.ended {
            Ended::Well { latency_us } => {
                step.transactions += 1;
                latencies.push(latency_us);
            }
            Ended::Failed => step.failed += 1,
            Ended::Skipped => {}
        }
        step.retried += u64::from(transaction.retries > 0);
    }
    for (step, latencies) in steps.iter_mut().zip(&mut latencies) {
        latencies.sort_unstable();
        step.p50_ms = percentile(latencies, 50).map(ms);
        step.p99_ms = percentile(latencies, 99).map(ms);
    }
    for write in writes {
        let Some(step) = place(write.ended_us).and_then(|place| steps.get_mut(place)) else {
            continue;
        };
        match &write.outcome {
            Outcome::Acknowledged { node } => {
                if let Some(written) = node.and_then(|node| step.written.get_mut(node)) {
                    *written += 1;
                }
            }
            Outcome::Refused { .. } => step.refused += 1,
            Outcome::Unknown { .. } => step.unknown += 1,
        }
    }
    steps
}

/// The smallest value that so many percent of all do not exceed; nothing of nothing.
pub(super) fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

/// The longest time without a success within `span`. One that begins before the span counts from the last success before
/// it, and one that nothing ended counts up to the span's end.
pub(super) fn longest_gap_us(span: Span, successes: impl Iterator<Item = u64>) -> u64 {
    let mut times: Vec<u64> = successes.filter(|time| *time < span.to_us).collect();
    times.sort_unstable();
    let before = times.iter().rev().find(|time| **time < span.from_us);
    let mut last = before.copied().unwrap_or(span.from_us);
    let mut longest = 0;
    for time in times.into_iter().filter(|time| *time >= span.from_us) {
        longest = longest.max(time - last);
        last = time;
    }
    longest.max(span.to_us.saturating_sub(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Span = Span {
        from_us: 1_000_000,
        to_us: 1_250_000,
    };

    fn well(ended_us: u64, latency_us: u64, retries: u64) -> Transaction {
        Transaction {
            ended_us,
            ended: Ended::Well { latency_us },
            retries,
        }
    }

    fn write(ended_us: u64, outcome: Outcome) -> Write {
        Write {
            seq: 1,
            ended_us,
            outcome,
        }
    }

    #[test]
    fn everything_counts_in_the_step_where_it_ended_and_nothing_outside_of_the_span() {
        let failed = Transaction {
            ended_us: 1_100_000,
            ended: Ended::Failed,
            retries: 9,
        };
        let transactions = [
            well(999_999, 1, 0),
            well(1_000_000, 2000, 0),
            well(1_099_999, 4000, 1),
            failed,
            well(1_250_000, 1, 0),
        ];
        let writes = [
            write(1_050_000, Outcome::Acknowledged { node: Some(1) }),
            write(1_050_001, Outcome::Acknowledged { node: None }),
            write(1_240_000, Outcome::refused("40001")),
            write(1_249_999, Outcome::unknown("lost")),
        ];
        let steps = steps(SPAN, 2, &transactions, writes.iter());
        assert_eq!(steps.len(), 3, "a step that is begun counts");
        let wanted = Step {
            ms: 0,
            transactions: 2,
            retried: 1,
            p50_ms: Some(2.0),
            p99_ms: Some(4.0),
            written: vec![0, 1],
            ..Step::default()
        };
        assert_eq!(steps[0], wanted);
        assert_eq!((steps[1].failed, steps[1].retried), (1, 1));
        assert_eq!((steps[1].p50_ms, steps[1].transactions), (None, 0));
        assert_eq!((steps[2].refused, steps[2].unknown), (1, 1));
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<u64> = (1..=200).collect();
        assert_eq!(percentile(&values, 50), Some(100));
        assert_eq!(percentile(&values, 99), Some(198));
        assert_eq!(percentile(&[7], 99), Some(7));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn a_gap_reaches_from_the_last_success_before_to_the_first_one_behind() {
        let gap = |times: &[u64]| longest_gap_us(SPAN, times.iter().copied());
        // It began 10 ms before the span.
        assert_eq!(
            gap(&[900_000, 990_000, 1_120_000, 1_200_000, 1_240_000]),
            130_000
        );
        // Order does not matter, and what comes after the span does not count.
        assert_eq!(gap(&[1_200_000, 1_010_000, 1_100_000, 9_000_000]), 100_000);
        // What nothing ended lasts until the end.
        assert_eq!(gap(&[1_000_000, 1_020_000]), 230_000);
        assert_eq!(gap(&[]), 250_000);
    }
}
