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
/// The runtime's timers count in milliseconds and are late by up to one, or two; the system's by some 50 us.
const TIMERS_LATE: Duration = Duration::from_millis(2);

/// How long to hold back a change of this timestamp so that it arrives when the target's clock is past it: what is sent
/// at the daemon's time `now` arrives `arrival_us` later by the target's clock, at the earliest.
pub(crate) fn wait(timestamp: PgTimestamp, now: PgTimestamp, arrival_us: i64) -> Option<Duration> {
    let early_us = timestamp.saturating_sub(now.saturating_add(arrival_us));
    let early_us = u64::try_from(early_us).ok()?;
    Some(Duration::from_micros(early_us.saturating_add(1)).min(WAIT_MAX))
}

/// How a link waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// By a timer, which may be late: what is then left is still to be waited for.
    Task(Duration),
    /// Its thread sleeps: to the point, and too short to hold anybody up.
    Thread(Duration),
}

impl Hold {
    /// How to wait so long, or the first part of it.
    pub(crate) fn of(wait: Duration) -> Self {
        match wait.checked_sub(TIMERS_LATE) {
            None | Some(Duration::ZERO) => Self::Thread(wait),
            Some(early) => Self::Task(early),
        }
    }

    /// Waits. The caller has a [thread of its own](crate::thread).
    pub(crate) async fn wait(self) {
        match self {
            Self::Task(wait) => tokio::time::sleep(wait).await,
            Self::Thread(wait) => std::thread::sleep(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_timer_is_asked_for_what_is_shorter_than_it_may_be_late() {
        let us = Duration::from_micros;
        assert_eq!(Hold::of(us(300)), Hold::Thread(us(300)));
        assert_eq!(Hold::of(TIMERS_LATE), Hold::Thread(TIMERS_LATE));
        // The rest is asked for again.
        assert_eq!(Hold::of(us(2_001)), Hold::Task(us(1)));
        assert_eq!(Hold::of(WAIT_MAX), Hold::Task(WAIT_MAX - TIMERS_LATE));
    }

    #[test]
    fn a_change_is_held_back_until_it_will_arrive_in_time() {
        assert_eq!(wait(1_000, 900, 200), None);
        assert_eq!(wait(1_000, 900, 100), Some(Duration::from_micros(1)));
        assert_eq!(wait(1_000, 900, -400), Some(Duration::from_micros(501)));
        assert_eq!(wait(9_000_000, 900, 0), Some(WAIT_MAX));
    }
}
