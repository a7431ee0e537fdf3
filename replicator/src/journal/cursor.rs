//! How a link reads a journal: from memory where it can, from the files where it has to.

use std::fmt;
use std::sync::Arc;

use tandem_wire::lsn::Lsn;

use super::codec::Record;
use super::reader::SegmentReader;
use super::segment::{Segment, SegmentError};
use super::{Inner, Journal, JournalError};
use crate::transaction::Entry;

/// Where a reader stands.
#[derive(Debug)]
pub(crate) struct Cursor {
    target: u16,
    /// The target's progress, as the target itself remembers it.
    has: Lsn,
    /// Whether each transaction moves that. A node that reads its own stream remembers only what it learnt.
    exact: bool,
    position: Option<Lsn>,
    disk: Option<SegmentReader>,
}

impl Cursor {
    /// A reader for a target that remembers its progress as `has`; `exact`: each transaction moves that.
    pub(crate) fn new(target: u16, has: Lsn, exact: bool) -> Self {
        Self {
            target,
            has,
            exact,
            position: None,
            disk: None,
        }
    }
}

/// What a reader gets.
#[derive(Debug)]
pub(crate) enum Run {
    /// The next entries.
    Entries(Vec<Arc<Entry>>),
    /// There are none, and the source is known to have written nothing else up to here.
    UpTo(Lsn),
    /// Entries that the target needs are neither here nor in the slot.
    Hole(Hole),
}

/// Transactions that a target needs and that are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hole {
    /// The target has everything up to here.
    pub from: Lsn,
    /// What follows this is there.
    pub to: Lsn,
    /// How it came.
    pub why: String,
}

impl fmt::Display for Hole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "between {} and {}: {}", self.from, self.to, self.why)
    }
}

/// What to do next for a reader.
enum Step {
    Give(Run),
    /// Read files from this position.
    Files(Lsn, Arc<Segment>),
    Wait,
}

impl Journal {
    /// Waits for entries behind `cursor`, or for the source's tail to move past `known`, the position up to which the
    /// reader has applied everything; moves the cursor over what it gives. When cancelled, the cursor stays.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(crate) async fn read(
        self: &Arc<Self>,
        cursor: &mut Cursor,
        known: Lsn,
        entries_max: usize,
        bytes_max: usize,
    ) -> Result<Run, JournalError> {
        loop {
            let written = if cursor.exact {
                self.written.notified()
            } else {
                self.written_own.notified()
            };
            tokio::pin!(written);
            written.as_mut().enable();
            let run = self.read_ready(cursor, known, entries_max, bytes_max);
            if let Some(run) = run.await? {
                return Ok(run);
            }
            written.await;
        }
    }

    /// The same, but does not wait where there is nothing yet.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(crate) async fn read_ready(
        self: &Arc<Self>,
        cursor: &mut Cursor,
        known: Lsn,
        entries_max: usize,
        bytes_max: usize,
    ) -> Result<Option<Run>, JournalError> {
        loop {
            // Taken in a statement of its own: the lock must not live on over an await.
            let step = self.lock().step(cursor, known, entries_max, bytes_max);
            match step {
                Step::Give(run) => {
                    cursor.disk = None;
                    if let Run::Entries(entries) = &run {
                        cursor.position = entries.last().map(|entry| entry.end_lsn());
                    }
                    return Ok(Some(run));
                }
                Step::Files(position, segment) => {
                    let reading = Reading {
                        position,
                        entries_max,
                        bytes_max,
                    };
                    let entries = self.read_files(cursor, segment, reading).await?;
                    if !entries.is_empty() {
                        return Ok(Some(Run::Entries(entries)));
                    }
                }
                Step::Wait => return Ok(None),
            }
        }
    }

    async fn read_files(
        self: &Arc<Self>,
        cursor: &mut Cursor,
        segment: Arc<Segment>,
        reading: Reading,
    ) -> Result<Vec<Arc<Entry>>, JournalError> {
        let reader = cursor
            .disk
            .take()
            .filter(|reader| Arc::ptr_eq(&reader.segment, &segment));
        let journal = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || reading.run(&journal, reader, segment));
        let (entries, reached, reader) = read
            .await
            .map_err(|_| JournalError::Interrupted)?
            .map_err(super::StoreError::from)?;
        cursor.position = Some(reached);
        cursor.disk = Some(reader);
        Ok(entries)
    }
}

impl Inner {
    fn step(&self, cursor: &Cursor, known: Lsn, entries_max: usize, bytes_max: usize) -> Step {
        let Some(first) = self.segments.first() else {
            return Step::Wait;
        };
        if let Some(hole) = self.hole(cursor, first) {
            return Step::Give(Run::Hole(hole));
        }
        let mut position = cursor.position.unwrap_or(known).max(first.begin);
        if position < self.window.begin() && position < self.written {
            let segment = self.segments.partition_point(|s| s.begin <= position);
            let segment = self.segments.get(segment.saturating_sub(1));
            return match segment {
                Some(segment) => Step::Files(position, Arc::clone(segment)),
                None => Step::Wait,
            };
        }
        if position < self.window.begin() {
            // What was between went through memory only. Targets that keep up have it; for others it comes again.
            let begins = cursor.position.is_none() && !self.carried.contains_key(&cursor.target);
            if !begins || (cursor.exact && !self.window.suffices(self.has(cursor))) {
                return Step::Wait;
            }
            position = self.window.begin();
        }
        let run = self.window.after(position, entries_max, bytes_max);
        if !run.is_empty() {
            return Step::Give(Run::Entries(run));
        }
        if self.tail > known {
            return Step::Give(Run::UpTo(self.tail));
        }
        Step::Wait
    }

    fn has(&self, cursor: &Cursor) -> Lsn {
        cursor.has.max(self.created)
    }

    fn hole(&self, cursor: &Cursor, first: &Segment) -> Option<Hole> {
        let to = first.begin.max(self.origin);
        // In the middle of its work a reader knows exactly where it is.
        if let Some(position) = cursor.position {
            return (position < first.begin && position < first.floor).then(|| Hole {
                from: position,
                to,
                why: "the journal was replaced while it was read".to_owned(),
            });
        }
        let lost = || {
            self.lost
                .as_deref()
                .unwrap_or("it was lost before this daemon started")
        };
        if let Some(&depends) = self.carried.get(&cursor.target) {
            let from = depends.max(self.has(cursor));
            if self.origin > from {
                return Some(Hole {
                    from,
                    to,
                    why: format!("the journal that alone held it is gone ({})", lost()),
                });
            }
        }
        let has = self.has(cursor);
        let why = if cursor.has < self.created {
            "it has applied nothing of it yet, and the journal and the slot do not reach back to the slot's creation"
        } else {
            "it once had it, so the journal and the slot let go of it; was it restored from a backup?"
        };
        (cursor.exact && has < first.floor).then(|| Hole {
            from: has,
            to,
            why: why.to_owned(),
        })
    }
}

struct Reading {
    position: Lsn,
    entries_max: usize,
    bytes_max: usize,
}

type Read = (Vec<Arc<Entry>>, Lsn, SegmentReader);

impl Reading {
    /// Reads on in one file. Answers up to where there is nothing else, too.
    fn run(
        self,
        journal: &Journal,
        reader: Option<SegmentReader>,
        segment: Arc<Segment>,
    ) -> Result<Read, SegmentError> {
        let mut reader = match reader {
            Some(reader) => reader,
            None => SegmentReader::open(segment)?,
        };
        let limit = reader.segment.len();
        let mut reached = self.position;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while entries.len() < self.entries_max && bytes < self.bytes_max {
            match reader.next(limit, self.position, &journal.interner)? {
                Some(Record::Entry(entry)) => {
                    bytes += entry.size();
                    reached = entry.end_lsn();
                    entries.push(Arc::new(entry));
                }
                Some(Record::Position(lsn)) => reached = reached.max(lsn),
                Some(
                    Record::Skipped { .. }
                    | Record::Shape(_)
                    | Record::Piece(..)
                    | Record::SkippedPiece,
                ) => {}
                None => break,
            }
        }
        if entries.is_empty() && reached == self.position {
            return Err(SegmentError::Short {
                path: reader.segment.path.clone(),
                position: self.position,
            });
        }
        Ok((entries, reached, reader))
    }
}
