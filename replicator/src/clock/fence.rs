//! Whether a node's clock lets it take writes: a pure state machine over what is seen of the clock.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

/// A clock that was set back by less has caught up before anybody could be told.
const BACK_MAX_US: i64 = 100_000;
/// A fenced node comes back once it was good for so long.
const HOLD: Duration = Duration::from_secs(2);

/// Why a node gets no writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Its clock is off.
    Off {
        /// By how much, against the clock in the middle.
        offset_us: i64,
    },
    /// Its clock is behind timestamps that it has given, or whose changes it has taken.
    Back {
        /// By how much.
        behind_us: i64,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off { offset_us } => {
                let side = if *offset_us < 0 { "behind" } else { "ahead of" };
                let ms = offset_us.unsigned_abs() / 1000;
                write!(f, "its clock is {ms} ms {side} the other nodes'")
            }
            Self::Back { behind_us } => {
                let ms = behind_us / 1000;
                write!(
                    f,
                    "its clock was set back: it is {ms} ms behind what it said before"
                )
            }
        }
    }
}

/// One look at a node's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// Its clock minus the one in the middle of all nodes.
    pub offset_us: i64,
    /// By how much that may be wrong.
    pub error_us: i64,
    /// By how much it is behind the newest timestamp that it has given or taken; negative when it is past it.
    pub behind_us: i64,
    /// Rows that were written meanwhile have still to get a newer version.
    pub untouched: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Fenced {
        reason: Reason,
        good_since: Option<Instant>,
    },
}

/// The fence of one node.
#[derive(Debug)]
pub(crate) struct Fence {
    offset_max_us: i64,
    state: State,
}

impl Fence {
    /// An open one; a clock may be off by `offset_max`.
    pub(crate) fn new(offset_max: Duration) -> Self {
        Self {
            offset_max_us: i64::try_from(offset_max.as_micros()).unwrap_or(i64::MAX),
            state: State::Open,
        }
    }

    /// Takes a look; the only place where the state changes. Answers whether the node was fenced or let in again.
    ///
    /// Fenced is what is surely off; let in what is surely within four fifths of the bound, for a while.
    pub(crate) fn on(&mut self, look: Look, now: Instant) -> bool {
        let off_us = look.offset_us.saturating_abs();
        let bad = if look.behind_us > BACK_MAX_US {
            let behind_us = look.behind_us;
            Some(Reason::Back { behind_us })
        } else if off_us.saturating_sub(look.error_us) > self.offset_max_us {
            let offset_us = look.offset_us;
            Some(Reason::Off { offset_us })
        } else {
            None
        };
        let within = off_us.saturating_add(look.error_us) <= self.offset_max_us / 5 * 4;
        let good = bad.is_none() && within && look.behind_us <= 0 && !look.untouched;
        let before = self.state;
        self.state = match (before, bad) {
            (_, Some(reason)) => State::Fenced {
                reason,
                good_since: None,
            },
            (State::Open, None) => State::Open,
            (State::Fenced { reason, .. }, None) if !good => State::Fenced {
                reason,
                good_since: None,
            },
            (State::Fenced { reason, good_since }, None) => {
                let since = good_since.unwrap_or(now);
                if now.duration_since(since) >= HOLD {
                    State::Open
                } else {
                    State::Fenced {
                        reason,
                        good_since: Some(since),
                    }
                }
            }
        };
        matches!(before, State::Open) != matches!(self.state, State::Open)
    }

    /// Why the node is fenced, if it is.
    pub(crate) fn reason(&self) -> Option<Reason> {
        match self.state {
            State::Open => None,
            State::Fenced { reason, .. } => Some(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHT: Look = Look {
        offset_us: 0,
        error_us: 100,
        behind_us: -5,
        untouched: false,
    };

    fn off(offset_us: i64) -> Look {
        Look { offset_us, ..RIGHT }
    }

    fn fence() -> Fence {
        Fence::new(Duration::from_millis(500))
    }

    #[test]
    fn a_clock_beyond_the_bound_fences_and_the_reason_says_so() {
        let now = Instant::now();
        for offset in [501_000, -501_000] {
            let mut fence = fence();
            assert!(!fence.on(off(499_000), now) && !fence.on(off(-499_000), now));
            assert!(fence.on(off(offset), now));
            assert_eq!(fence.reason(), Some(Reason::Off { offset_us: offset }));
        }
        let text = Reason::Off {
            offset_us: -501_000,
        }
        .to_string();
        assert_eq!(text, "its clock is 501 ms behind the other nodes'");
    }

    #[test]
    fn what_may_be_an_error_of_measurement_does_not_fence() {
        let mut fence = fence();
        let look = Look {
            error_us: 300_000,
            ..off(700_000)
        };
        assert!(!fence.on(look, Instant::now()));
        assert_eq!(fence.reason(), None);
    }

    #[test]
    fn a_fenced_node_comes_back_after_it_was_good_for_a_while() {
        let (mut fence, start) = (fence(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert!(fence.on(off(2_000_000), at(0)));
        // Within the bound, but only just: neither good nor bad.
        assert!(!fence.on(off(450_000), at(500)));
        assert!(!fence.on(off(450_000), at(9_000)));
        assert!(!fence.on(off(100), at(10_000)));
        assert!(!fence.on(off(600_000), at(11_000)));
        assert!(!fence.on(off(100), at(12_000)));
        assert!(!fence.on(off(100), at(13_900)));
        assert!(fence.reason().is_some());
        assert!(fence.on(off(100), at(14_000)));
        assert_eq!(fence.reason(), None);
    }

    #[test]
    fn a_clock_that_was_set_back_fences_until_it_is_past_and_the_rows_are_touched() {
        let (mut fence, start) = (fence(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let back = |behind_us, untouched| Look {
            behind_us,
            untouched,
            ..RIGHT
        };
        assert!(
            !fence.on(back(50_000, true), at(0)),
            "it is past that before anybody is told"
        );
        assert!(fence.on(back(10_000_000, true), at(500)));
        assert!(!fence.on(back(1, true), at(10_000)));
        assert!(!fence.on(back(-1, true), at(20_000)));
        assert!(!fence.on(back(-1, false), at(20_500)));
        assert!(fence.on(back(-1, false), at(22_500)));
    }

    #[test]
    fn the_reason_follows_the_clock() {
        let mut fence = fence();
        let now = Instant::now();
        assert!(fence.on(off(2_000_000), now));
        let look = Look {
            behind_us: 3_000_000,
            ..RIGHT
        };
        assert!(!fence.on(look, now));
        assert_eq!(
            fence.reason(),
            Some(Reason::Back {
                behind_us: 3_000_000
            })
        );
    }
}
