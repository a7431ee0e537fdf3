//! A node's tail: what it had committed and nobody had read when it was found gone. It is counted as its stream brings it, and
//! named by the versions of its transactions, so that the conflict log tells later what became of it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use tandem_wire::lsn::Lsn;

use crate::transaction::{Change, Entry};
use crate::version::{PgTimestamp, timestamp_text};

/// What is counted of some transactions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Changes {
    rows: u64,
    counting: u64,
}

/// See the module. What is kept of it over a restart of the daemon is all of it but what a stream's end breaks off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// It lies behind this position; `None`: behind wherever the stream begins, as nobody has read it since the daemon's start.
    from: Option<u64>,
    /// And not behind this one.
    until: Option<u64>,
    /// Up to where the stream was read.
    read: u64,
    /// Nothing of it was read by a daemon that did not write down what it was.
    is_whole: bool,
    transactions: u64,
    rows: u64,
    counting: u64,
    /// The first and the last commit, by the node's clock.
    times: Option<(PgTimestamp, PgTimestamp)>,
    /// What came of a transaction whose end did not come yet.
    #[serde(skip)]
    open: Changes,
}

/// The same for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TailFigures {
    /// Transactions in it.
    pub transactions: u64,
    /// Changes of rows in them.
    pub rows: u64,
    /// Those of them that are of rows with counters: what they add is in the sums, whatever else became of them.
    pub counters_merged: u64,
    /// When the first was committed, by the node's clock.
    pub first_commit: Option<String>,
    /// When the last was.
    pub last_commit: Option<String>,
    /// The position in the node's WAL behind which it lies.
    pub from_lsn: Option<String>,
    /// Where it ends.
    pub to_lsn: Option<String>,
    /// Nothing of it was read by an earlier daemon that died before it had written down what it was.
    pub is_whole: bool,
}

impl Tail {
    /// That of a node whose stream was read up to here, if it was.
    pub(crate) fn behind(from: Option<Lsn>) -> Self {
        let from = from.map(|lsn| lsn.0);
        Self {
            from,
            read: from.unwrap_or_default(),
            is_whole: true,
            ..Self::default()
        }
    }

    /// The stream is read from here on.
    pub(crate) fn begin(&mut self, at: Lsn) {
        self.open = Changes::default();
        if self.from.is_none() {
            (self.from, self.read) = (Some(at.0), at.0);
        }
        if at.0 > self.read {
            (self.is_whole, self.read) = (false, at.0);
        }
    }

    /// Takes what one read of the stream brought; the node has written nothing else up to `read`. What was read before is not
    /// counted again. `counts`: whether a change is of a row with counters.
    pub(crate) fn take(
        &mut self,
        entries: &[Entry],
        read: Lsn,
        mut counts: impl FnMut(&Change) -> bool,
    ) {
        for entry in entries {
            if let Entry::Transaction(transaction)
            | Entry::Part {
                part: transaction, ..
            }
            | Entry::End(transaction) = entry
            {
                let changes = &transaction.changes;
                let counting = changes.iter().filter(|change| counts(change)).count();
                self.open.rows += changes.len() as u64;
                self.open.counting += counting as u64;
                if entry.ends_transaction() {
                    self.add(transaction.end_lsn, transaction.timestamp);
                }
            }
            let position = entry.position();
            if !position.is_inside() {
                self.read = self.read.max(position.lsn.0);
            }
        }
        self.read = self.read.max(read.0);
    }

    fn add(&mut self, end_lsn: Lsn, timestamp: PgTimestamp) {
        let changes = std::mem::take(&mut self.open);
        // One without changes is a watermark of ours.
        if changes.rows == 0
            || end_lsn.0 <= self.read
            || self.until.is_some_and(|until| end_lsn.0 > until)
        {
            return;
        }
        self.transactions += 1;
        self.rows += changes.rows;
        self.counting += changes.counting;
        let (first, last) = self.times.unwrap_or((timestamp, timestamp));
        self.times = Some((first.min(timestamp), last.max(timestamp)));
    }

    /// The node is back, and whatever it commits from now on is behind this position; `None`: it is gone again.
    pub(crate) fn set_end(&mut self, until: Option<Lsn>) {
        self.until = until.map(|lsn| lsn.0);
    }

    /// Whether it is known where it ends.
    pub fn has_end(&self) -> bool {
        self.until.is_some()
    }

    /// The first and the last commit in it; `None`: there is none.
    pub(crate) fn times(&self) -> Option<(PgTimestamp, PgTimestamp)> {
        self.times
    }

    /// What there is to tell.
    pub fn figures(&self) -> TailFigures {
        let lsn = |lsn: u64| Lsn(lsn).to_string();
        TailFigures {
            transactions: self.transactions,
            rows: self.rows,
            counters_merged: self.counting,
            first_commit: self.times.map(|(first, _)| timestamp_text(first)),
            last_commit: self.times.map(|(_, last)| timestamp_text(last)),
            from_lsn: self.from.map(lsn),
            to_lsn: self.until.map(lsn),
            is_whole: self.is_whole,
        }
    }
}

/// Whether a change is of a table that a question holds for, which is asked once for each shape of a table.
pub(crate) fn asked_once(ask: impl Fn(&Change) -> bool) -> impl FnMut(&Change) -> bool {
    let mut known = HashMap::new();
    move |change| {
        *known
            .entry(change.relation.id)
            .or_insert_with(|| ask(change))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::relation::Relation;
    use crate::transaction::{Operation, Transaction};

    /// One with so many changes.
    fn with(changes: usize, end: u64, timestamp: PgTimestamp) -> Transaction {
        let relation = Arc::new(Relation {
            id: 1,
            schema: "public".to_owned(),
            name: "t".to_owned(),
            columns: Vec::new(),
            message: Bytes::new(),
        });
        let change = Change {
            relation,
            operation: Operation::Insert,
            message: Bytes::new(),
        };
        Transaction {
            end_lsn: Lsn(end),
            timestamp,
            xid: None,
            changes: vec![change; changes],
            statements: Vec::new(),
            size: 0,
        }
    }

    fn transaction(end: u64, timestamp: PgTimestamp) -> Entry {
        Entry::Transaction(with(1, end, timestamp))
    }

    fn none(_: &Change) -> bool {
        false
    }

    #[test]
    fn only_what_comes_behind_the_position_at_death_and_up_to_the_return_is_counted() {
        let mut tail = Tail::behind(Some(Lsn(100)));
        // The stream is read again from before that.
        tail.begin(Lsn(80));
        tail.take(&[transaction(90, 1), transaction(100, 2)], Lsn(0), none);
        // Nobody has written that but us.
        let watermark = Entry::Transaction(with(0, 105, 1));
        tail.take(&[watermark], Lsn(0), none);
        assert_eq!(tail.figures().transactions, 0);
        assert_eq!(tail.times(), None);
        tail.take(&[transaction(110, 7), transaction(120, 5)], Lsn(125), none);
        tail.set_end(Some(Lsn(130)));
        tail.take(&[transaction(130, 6), transaction(140, 9)], Lsn(0), none);
        let told = tail.figures();
        assert_eq!((told.transactions, told.is_whole), (3, true));
        assert_eq!(tail.times(), Some((5, 7)));
        assert_eq!(told.from_lsn.as_deref(), Some("0/64"));
        assert_eq!(told.to_lsn.as_deref(), Some("0/82"));
        // It is read once more.
        tail.begin(Lsn(80));
        tail.take(&[transaction(110, 7)], Lsn(0), none);
        assert_eq!(tail.figures(), told);
    }

    #[test]
    fn a_daemon_that_begins_where_an_earlier_one_ended_has_the_whole_and_one_that_begins_later_says_so()
     {
        let mut fresh = Tail::behind(None);
        fresh.begin(Lsn(50));
        fresh.take(&[transaction(60, 1)], Lsn(0), none);
        let figures = fresh.figures();
        assert_eq!((figures.transactions, figures.is_whole), (1, true));
        let kept = serde_json::to_string(&fresh).expect("it can be written");
        let mut next: Tail = serde_json::from_str(&kept).expect("it can be read");
        assert_eq!(next, fresh);
        next.begin(Lsn(60));
        next.take(&[transaction(70, 2)], Lsn(0), none);
        let figures = next.figures();
        assert_eq!((figures.transactions, figures.is_whole), (2, true));
        next.begin(Lsn(90));
        assert!(!next.figures().is_whole);
    }

    #[test]
    fn a_transaction_in_parts_counts_once_and_one_that_breaks_off_not_at_all() {
        let part = |number| Entry::Part {
            number,
            part: with(2, 110, 3),
        };
        let end = with(1, 120, 3);
        let mut tail = Tail::behind(Some(Lsn(100)));
        tail.begin(Lsn(100));
        tail.take(&[part(1), part(2)], Lsn(0), none);
        tail.begin(Lsn(100));
        assert_eq!(tail.figures().transactions, 0);
        tail.take(&[part(1), part(2), Entry::End(end)], Lsn(0), none);
        let figures = tail.figures();
        assert_eq!((figures.transactions, figures.rows), (1, 5));
        assert!(figures.is_whole);
    }

    #[test]
    fn changes_of_rows_with_counters_are_counted_and_each_shape_of_a_table_is_asked_about_once() {
        let mut tail = Tail::behind(Some(Lsn(0)));
        let mut asked = 0;
        let once = std::cell::Cell::new(0);
        let mut counts = asked_once(|_| {
            once.set(once.get() + 1);
            true
        });
        for end in 1..=3 {
            tail.take(&[Entry::Transaction(with(2, end, 0))], Lsn(0), &mut counts);
            asked += 2;
        }
        assert_eq!((tail.figures().counters_merged, once.get()), (asked, 1));
    }

    proptest! {
        /// However often the stream breaks off and is read again from anywhere it was read before, each transaction of the
        /// tail counts once.
        #[test]
        fn each_transaction_counts_once(restarts in proptest::collection::vec((0usize..20, 1usize..20), 0..8)) {
            let all: Vec<u64> = (1..=20).map(|n| n * 10).collect();
            let mut tail = Tail::behind(Some(Lsn(40)));
            let mut read = 0_usize;
            for (back, count) in restarts.into_iter().chain([(20, 20)]) {
                let begin = read.saturating_sub(back);
                tail.begin(Lsn(begin as u64 * 10));
                for &end in all.iter().skip(begin).take(count) {
                    tail.take(&[transaction(end, 0)], Lsn(0), none);
                }
                read = read.max((begin + count).min(all.len()));
            }
            // The last one begins at the front at the latest twenty before the end.
            let counted = all.iter().take(read).filter(|&&end| end > 40).count() as u64;
            prop_assert_eq!(tail.figures().transactions, counted);
            prop_assert!(tail.figures().is_whole);
        }
    }
}
