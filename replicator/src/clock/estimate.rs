//! How far a node's clock is from the daemon's, from questions and their answers. Pure.

use std::collections::VecDeque;

use crate::version::PgTimestamp;

/// Measurements that are kept: the best of them counts.
const SAMPLES: usize = 16;
/// How far two clocks may drift apart over that many measurements: some hundred parts per million.
const DRIFT_US: i64 = 2_000;

/// One question for the time. Both ends are the daemon's clock, at the same distance as a monotonic one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sample {
    /// When it was asked.
    pub sent: PgTimestamp,
    /// What the node said.
    pub said: PgTimestamp,
    /// Microseconds until the answer was there.
    pub round_trip_us: i64,
}

/// What is known of a node's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Estimate {
    /// Its clock minus the daemon's, microseconds.
    pub offset_us: i64,
    /// By how much that may be wrong: half of the round trip, because nobody knows which way took how long.
    pub error_us: i64,
    /// What is sent at the daemon's time `t` arrives at the node's time `t` + this, or later.
    pub arrival_us: i64,
}

impl From<Sample> for Estimate {
    fn from(sample: Sample) -> Self {
        let arrival_us = sample.said - sample.sent;
        let error_us = sample.round_trip_us / 2;
        Self {
            offset_us: arrival_us - error_us,
            error_us,
            arrival_us,
        }
    }
}

impl Estimate {
    fn agrees(&self, other: &Self) -> bool {
        let apart = self
            .offset_us
            .saturating_sub(other.offset_us)
            .saturating_abs();
        apart <= self.error_us + other.error_us + DRIFT_US
    }
}

/// The last measurements of one node's clock.
#[derive(Debug, Default)]
pub(crate) struct Estimator {
    samples: VecDeque<Sample>,
}

impl Estimator {
    /// Takes a measurement. One that cannot be true together with the best one before it says that a clock was set:
    /// what was measured before means nothing then.
    pub(crate) fn take(&mut self, sample: Sample) {
        let contradicts = self
            .estimate()
            .is_some_and(|before| !before.agrees(&sample.into()));
        if contradicts {
            self.samples.clear();
        }
        if self.samples.len() >= SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// By the quickest answer, as NTP does it: it can be wrong by the least.
    pub(crate) fn estimate(&self) -> Option<Estimate> {
        let best = self
            .samples
            .iter()
            .min_by_key(|sample| sample.round_trip_us);
        best.copied().map(Estimate::from)
    }

    /// Nothing is known any more.
    pub(crate) fn forget(&mut self) {
        self.samples.clear();
    }
}

/// What the nodes' clocks are compared with: the one in the middle, so that no single clock, the daemon's neither, can
/// put all others in the wrong. Of two in the middle the one that is nearer to the daemon's.
pub(crate) fn reference(offsets_us: &mut [i64]) -> Option<i64> {
    offsets_us.sort_unstable();
    let upper = *offsets_us.get(offsets_us.len() / 2)?;
    let lower = *offsets_us.get((offsets_us.len() - 1) / 2)?;
    Some(if lower.saturating_abs() <= upper.saturating_abs() {
        lower
    } else {
        upper
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(sent: i64, said: i64, round_trip_us: i64) -> Sample {
        Sample {
            sent,
            said,
            round_trip_us,
        }
    }

    #[test]
    fn the_quickest_answer_counts() {
        let mut estimator = Estimator::default();
        assert_eq!(estimator.estimate(), None);
        estimator.take(sample(1_000, 1_900, 1_000));
        estimator.take(sample(9_000, 9_550, 100));
        estimator.take(sample(20_000, 20_700, 600));
        let estimate = estimator.estimate().expect("measured");
        assert_eq!(
            (estimate.offset_us, estimate.error_us, estimate.arrival_us),
            (500, 50, 550)
        );
    }

    #[test]
    fn a_clock_that_was_set_is_believed_at_once() {
        let mut estimator = Estimator::default();
        for second in 0..8 {
            estimator.take(sample(second * 1_000_000, second * 1_000_000 + 50, 100));
        }
        let back = 9_000_000 - 10_000_000;
        estimator.take(sample(9_000_000, back + 400, 800));
        assert_eq!(
            estimator.estimate().map(|estimate| estimate.offset_us),
            Some(-10_000_000)
        );
    }

    #[test]
    fn the_clock_in_the_middle_is_right() {
        let reference = |offsets: &[i64]| reference(&mut offsets.to_vec());
        assert_eq!(reference(&[]), None);
        assert_eq!(reference(&[7]), Some(7));
        assert_eq!(reference(&[2_000, 5]), Some(5));
        assert_eq!(reference(&[0, 3, 2_000]), Some(3));
        // The daemon's own clock is off.
        assert_eq!(reference(&[-9_000, -9_001, -7_000]), Some(-9_000));
        assert_eq!(reference(&[-3, 1, 2, 9_000]), Some(1));
    }

    proptest! {
        /// Whatever the delays on both ways: the truth lies within the error, and nothing arrives earlier than promised.
        #[test]
        fn the_truth_lies_within_the_error(
            offset in -5_000_000_i64..5_000_000,
            ways in proptest::collection::vec((0_i64..200_000, 0_i64..200_000), 1..40),
        ) {
            let mut estimator = Estimator::default();
            let mut now = 0;
            for (out, back) in &ways {
                estimator.take(sample(now, now + out + offset, out + back));
                now += 500_000;
            }
            let estimate = estimator.estimate().expect("measured");
            // Half a round trip is rounded down.
            prop_assert!((estimate.offset_us - offset).abs() <= estimate.error_us + 1);
            let (out, back) = ways.iter().rev().take(SAMPLES).min_by_key(|(out, back)| out + back).expect("one");
            prop_assert!(estimate.error_us <= (out + back) / 2);
        }
    }
}
