//! The nodes' clocks: how far they are off, when a node is fenced for it, and what is mended afterwards.
//!
//! Nothing here decides what is applied: the applied statement itself compares the target's clock with the change's
//! timestamp.

pub(crate) mod estimate;
mod fence;
pub(crate) mod guard;
pub(crate) mod stream;
mod touch;

use std::time::Duration;

use crate::version::PgTimestamp;

/// The estimate is looked at again after so long.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// How long to hold back a change of this timestamp so that it arrives when the target's clock is past it: what is sent
/// at the daemon's time `now` arrives `arrival_us` later by the target's clock, at the earliest.
pub(crate) fn wait(timestamp: PgTimestamp, now: PgTimestamp, arrival_us: i64) -> Option<Duration> {
    let early_us = timestamp.saturating_sub(now.saturating_add(arrival_us));
    let early_us = u64::try_from(early_us).ok()?;
    Some(Duration::from_micros(early_us.saturating_add(1)).min(WAIT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_held_back_until_it_will_arrive_in_time() {
        assert_eq!(wait(1_000, 900, 200), None);
        assert_eq!(wait(1_000, 900, 100), Some(Duration::from_micros(1)));
        assert_eq!(wait(1_000, 900, -400), Some(Duration::from_micros(501)));
        assert_eq!(wait(9_000_000, 900, 0), Some(WAIT_MAX));
    }
}
