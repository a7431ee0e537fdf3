//! The newest entries of a journal, in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use tandem_wire::lsn::Lsn;

use crate::transaction::{Entry, Position};

/// Invariant: it has every entry that was appended and stands behind `begin`.
#[derive(Debug, Default)]
pub(super) struct Window {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    begin: Position,
    /// Where the last transaction ends that ends at or before `begin`.
    floor: Lsn,
    /// Behind the newest entry that it ever had.
    end: Position,
}

impl Window {
    /// An empty one at a position.
    pub(super) fn beginning_at(begin: Lsn, floor: Lsn) -> Self {
        Self {
            begin: begin.into(),
            floor,
            end: begin.into(),
            ..Self::default()
        }
    }

    /// Bytes of changes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// See [`Window`].
    pub(super) fn begin(&self) -> Position {
        self.begin
    }

    /// Behind the newest entry that it ever had.
    pub(super) fn end(&self) -> Position {
        self.end
    }

    /// Whether a target whose progress was moved to `has` lacks nothing that ends at or before `begin`.
    pub(super) fn suffices(&self, has: Lsn) -> bool {
        has >= self.floor
    }

    /// Adds an entry, unless it is read for the second time.
    pub(super) fn push(&mut self, entry: Arc<Entry>) {
        if entry.position() > self.end && !matches!(*entry, Entry::Empty { .. }) {
            self.end = entry.position();
            self.bytes += entry.size();
            self.entries.push_back(entry);
        }
    }

    fn pop(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes = self.bytes.saturating_sub(entry.size());
            self.begin = entry.position();
            if entry.ends_transaction() {
                self.floor = self.begin.lsn;
            }
        }
    }

    /// Drops what ends at or before `done`.
    pub(super) fn trim(&mut self, done: Lsn) {
        while self.front().is_some_and(|end| end <= done.into()) {
            self.pop();
        }
    }

    /// Drops the parts of a transaction whose end does not come. What is complete ends at `complete`, as far as it is in files.
    pub(super) fn cut(&mut self, complete: Lsn) {
        let inside = |entry: &Arc<Entry>| entry.position().is_inside();
        while let Some(part) = self.entries.back().filter(|&entry| inside(entry)) {
            self.bytes = self.bytes.saturating_sub(part.size());
            self.end = self.begin;
            self.entries.pop_back();
        }
        if let Some(last) = self.entries.back() {
            self.end = last.position();
        } else if self.end.is_inside() {
            // Its first parts were dropped because files had them, and with them all that stands before.
            (self.begin, self.end) = (complete.into(), complete.into());
        }
    }

    /// Drops the oldest beyond `bytes_max` that are also in files, which end at `written`. The newest stays.
    pub(super) fn shrink(&mut self, bytes_max: usize, written: Position) {
        while self.bytes > bytes_max
            && self.entries.len() > 1
            && self.front().is_some_and(|end| end <= written)
        {
            self.pop();
        }
    }

    fn front(&self) -> Option<Position> {
        self.entries.front().map(|entry| entry.position())
    }

    /// Where the last transaction ends that ends at or before `lsn`; `None` where it does not reach back so far, or has
    /// not come so far.
    pub(super) fn floor_at(&self, lsn: Lsn) -> Option<Lsn> {
        let before = self
            .entries
            .iter()
            .take_while(|entry| entry.position() <= lsn.into());
        let transactions = before.filter(|entry| entry.ends_transaction());
        let last = transactions
            .last()
            .map_or(self.floor, |entry| entry.position().lsn);
        (Position::from(lsn) >= self.begin).then_some(last)
    }

    /// What follows `position`, in order: at most so many entries, and so many bytes but for a single larger one. Nothing
    /// behind what [belongs to parts](Entry::is_of_parts), and nothing of the transaction whose commit begins at `withheld`.
    /// `position` is not before [`begin`](Self::begin).
    pub(super) fn after(
        &self,
        position: Position,
        entries_max: usize,
        bytes_max: usize,
        withheld: Option<Lsn>,
    ) -> Vec<Arc<Entry>> {
        let first = self
            .entries
            .partition_point(|entry| entry.position() <= position);
        let mut bytes = 0;
        let mut run = Vec::new();
        for entry in self.entries.range(first..).take(entries_max) {
            let at = entry.position();
            bytes += entry.size();
            if (!run.is_empty() && bytes > bytes_max)
                || (at.is_inside() && withheld == Some(at.lsn))
            {
                break;
            }
            run.push(Arc::clone(entry));
            if entry.is_of_parts() {
                break;
            }
        }
        run
    }
}
