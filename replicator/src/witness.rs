//! Owns which transactions of a node its stream has shown to be committed, for who was cut off while one of its own was committing.
//!
//! A transaction is known by its number. A server that crashes gives numbers once more of which nothing was on disk, so a number says
//! something only to those whose connection is not older than the stream that brought it: what a stream brings is on the disk of its
//! node, and its number is never given again.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::transaction::Entry;

/// So many of a node's newest transactions are remembered. Of a node that is lost nothing newer comes.
const NUMBERS_MAX: usize = 16 * 1024;

/// What the stream of one node has shown.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    /// When the stream had begun that brought these.
    begun: Option<Instant>,
    numbers: VecDeque<u32>,
}

impl Witness {
    /// Another stream has begun.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.begun = Some(now);
        self.numbers.clear();
    }

    /// It has brought these.
    pub(crate) fn take(&mut self, entries: &[Entry]) {
        for entry in entries {
            let (Entry::Transaction(transaction) | Entry::End(transaction)) = entry else {
                continue;
            };
            let Some(number) = transaction.xid else {
                continue;
            };
            if self.numbers.len() >= NUMBERS_MAX {
                self.numbers.pop_front();
            }
            self.numbers.push_back(number);
        }
    }

    /// Whether the transaction of this number is known to be committed, which a connection worked on that was begun at `since`. That
    /// it is not known proves nothing.
    pub(crate) fn has_committed(&self, number: u64, since: Instant) -> bool {
        let Ok(low) = u32::try_from(number & u64::from(u32::MAX)) else {
            return false;
        };
        // Among so few the lower half of a number is never one of another round.
        self.begun.is_some_and(|begun| begun <= since) && self.numbers.contains(&low)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tandem_wire::lsn::Lsn;

    use super::*;
    use crate::transaction::Transaction;
    use crate::version::PgTimestamp;

    fn transaction(xid: Option<u32>) -> Transaction {
        Transaction {
            end_lsn: Lsn(1),
            timestamp: PgTimestamp::MIN,
            xid,
            changes: Vec::new(),
            statements: Vec::new(),
            size: 0,
        }
    }

    #[test]
    fn a_number_counts_for_connections_that_are_younger_than_the_stream() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let mut witness = Witness::default();
        witness.take(&[Entry::Transaction(transaction(Some(7)))]);
        assert!(!witness.has_committed(7, later), "no stream has begun");
        witness.begin(start);
        witness.take(&[
            Entry::Transaction(transaction(Some(7))),
            Entry::Empty { end_lsn: Lsn(2) },
            Entry::Part {
                number: 1,
                part: transaction(Some(8)),
            },
            Entry::End(transaction(Some(9))),
            Entry::Transaction(transaction(None)),
        ]);
        let known = |witness: &Witness| {
            let numbers = [7, 8, 9, (1 << 32) + 7];
            numbers.map(|number| witness.has_committed(number, later))
        };
        assert_eq!(known(&witness), [true, false, true, true]);
        assert!(witness.has_committed(7, start));
        // After a crash the number may be another one's.
        witness.begin(later);
        assert_eq!(known(&witness), [false; 4]);
        witness.take(&[Entry::Transaction(transaction(Some(7)))]);
        assert!(!witness.has_committed(7, start));
        assert!(witness.has_committed(7, later));
    }

    #[test]
    fn only_the_newest_are_remembered() {
        let start = Instant::now();
        let mut witness = Witness::default();
        witness.begin(start);
        for number in 0..20_000 {
            witness.take(&[Entry::Transaction(transaction(Some(number)))]);
        }
        assert_eq!(witness.numbers.len(), NUMBERS_MAX);
        assert!(!witness.has_committed(20_000 - 16_385, start));
        assert!(witness.has_committed(20_000 - 16_384, start));
        assert!(witness.has_committed(19_999, start));
    }
}
