//! The newest entries of a journal, in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use tandem_wire::lsn::Lsn;

use crate::transaction::Entry;

/// Invariant: it has every entry that was appended and ends behind `begin`.
#[derive(Debug, Default)]
pub(super) struct Window {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    begin: Lsn,
    /// Where the last transaction ends that ends at or before `begin`.
    floor: Lsn,
    /// The end of the newest entry that it ever had.
    end: Lsn,
}

impl Window {
    /// An empty one at a position.
    pub(super) fn beginning_at(begin: Lsn, floor: Lsn) -> Self {
        Self {
            begin,
            floor,
            end: begin,
            ..Self::default()
        }
    }

    /// Bytes of changes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// See [`Window`].
    pub(super) fn begin(&self) -> Lsn {
        self.begin
    }

    /// Whether a target whose progress was moved to `has` lacks nothing that ends at or before `begin`.
    pub(super) fn suffices(&self, has: Lsn) -> bool {
        has >= self.floor
    }

    /// Adds an entry, unless it is read for the second time.
    pub(super) fn push(&mut self, entry: Arc<Entry>) {
        if entry.end_lsn() > self.end && !matches!(*entry, Entry::Empty { .. }) {
            self.end = entry.end_lsn();
            self.bytes += entry.size();
            self.entries.push_back(entry);
        }
    }

    fn pop(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes = self.bytes.saturating_sub(entry.size());
            self.begin = entry.end_lsn();
            if matches!(*entry, Entry::Transaction(_)) {
                self.floor = self.begin;
            }
        }
    }

    /// Drops what ends at or before `done`.
    pub(super) fn trim(&mut self, done: Lsn) {
        while self.front().is_some_and(|end| end <= done) {
            self.pop();
        }
    }

    /// Drops the oldest beyond `bytes_max` that are also in files, which end at `written`. The newest stays.
    pub(super) fn shrink(&mut self, bytes_max: usize, written: Lsn) {
        while self.bytes > bytes_max
            && self.entries.len() > 1
            && self.front().is_some_and(|end| end <= written)
        {
            self.pop();
        }
    }

    fn front(&self) -> Option<Lsn> {
        self.entries.front().map(|entry| entry.end_lsn())
    }

    /// Where the last transaction ends that ends at or before `lsn`; `None` where it does not reach back so far, or has
    /// not come so far.
    pub(super) fn floor_at(&self, lsn: Lsn) -> Option<Lsn> {
        let before = self
            .entries
            .iter()
            .take_while(|entry| entry.end_lsn() <= lsn);
        let transactions = before.filter(|entry| matches!(***entry, Entry::Transaction(_)));
        let last = transactions
            .last()
            .map_or(self.floor, |entry| entry.end_lsn());
        (lsn >= self.begin).then_some(last)
    }

    /// What follows `position`, in order: at most so many entries, and so many bytes but for a single larger one.
    /// `position` is not before [`begin`](Self::begin).
    pub(super) fn after(
        &self,
        position: Lsn,
        entries_max: usize,
        bytes_max: usize,
    ) -> Vec<Arc<Entry>> {
        let first = self
            .entries
            .partition_point(|entry| entry.end_lsn() <= position);
        let mut bytes = 0;
        let mut run = Vec::new();
        for entry in self.entries.range(first..).take(entries_max) {
            bytes += entry.size();
            if !run.is_empty() && bytes > bytes_max {
                break;
            }
            run.push(Arc::clone(entry));
        }
        run
    }
}
