//! How a link reads a journal: from memory where it can, from the files where it has to.

use std::fmt;
use std::sync::Arc;

use tandem_wire::lsn::Lsn;

use super::codec::Record;
use super::reader::SegmentReader;
use super::segment::{Segment, SegmentError};
use super::{Inner, Journal, JournalError};
use crate::transaction::{Entry, Position};

/// Where a reader stands.
#[derive(Debug)]
pub(crate) struct Cursor {
    target: u16,
    /// The target's progress, as the target itself remembers it.
    has: Lsn,
    /// Whether each transaction moves that. A node that reads its own stream remembers only what it learnt.
    exact: bool,
    position: Option<Position>,
    /// Where it stood before the transaction in parts in which it stands, or of which it has just read the end.
    outside: Option<Lsn>,
    /// Of the transaction whose commit begins here it wants nothing before its end is there.
    patient: Option<Lsn>,
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
            outside: None,
            patient: None,
            disk: None,
        }
    }

    /// Goes back to where the transaction in parts begins in which it stands, or of which it has just read the end.
    pub(crate) fn rewind(&mut self) {
        self.position = self.outside.map(Position::from);
        self.disk = None;
    }

    /// Wants nothing of the transaction whose commit begins there before its end has come.
    pub(crate) fn await_end(&mut self, commit_lsn: Lsn) {
        self.patient = Some(commit_lsn);
    }

    /// Whether it wanted that.
    pub(crate) fn awaited_end(&self, commit_lsn: Lsn) -> bool {
        self.patient == Some(commit_lsn)
    }

    fn is_inside(&self) -> bool {
        self.position.is_some_and(Position::is_inside)
    }

    fn move_to(&mut self, position: Position, entries: &[Arc<Entry>]) {
        let outside = |at: &Position| !at.is_inside();
        let before = self.position.filter(outside);
        let whole = entries.iter().filter(|entry| !entry.is_of_parts());
        let passed = whole.map(|entry| entry.position()).next_back();
        // Not yet the end of a transaction in parts: who has just read that may want the whole again.
        let nothing = Some(position).filter(|at| entries.is_empty() && outside(at));
        let last = nothing.or(passed).or(before);
        self.outside = last.map_or(self.outside, |at| Some(at.lsn));
        self.position = Some(position);
    }
}

/// What a reader gets.
#[derive(Debug)]
pub(crate) enum Run {
    /// The next entries. Nothing follows what [belongs to parts](Entry::is_of_parts).
    Entries(Vec<Arc<Entry>>),
    /// The stream has ended in the middle of the transaction of which parts were given. It comes again, from its first part
    /// on: the cursor stands before it.
    Broken,
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
    /// Read a file.
    Files(Arc<Segment>, Reading),
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
                    match &run {
                        Run::Entries(entries) => {
                            if let Some(last) = entries.last() {
                                cursor.move_to(last.position(), entries);
                            }
                        }
                        Run::Broken => cursor.rewind(),
                        Run::UpTo(_) | Run::Hole(_) => {}
                    }
                    return Ok(Some(run));
                }
                Step::Files(segment, reading) => {
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
        let cuts = reading.cuts;
        let reader = cursor
            .disk
            .take()
            .filter(|reader| Arc::ptr_eq(&reader.segment, &segment) && reader.cuts == cuts);
        let journal = Arc::clone(self);
        let file = Arc::clone(&segment);
        let read = tokio::task::spawn_blocking(move || reading.run(&journal, reader, file));
        let read = read.await.map_err(|_| JournalError::Interrupted)?;
        if segment.cuts() != cuts {
            return Ok(Vec::new());
        }
        let (entries, reached, reader) = read.map_err(super::StoreError::from)?;
        cursor.move_to(reached, &entries);
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
        let withheld = self.withheld(cursor);
        let position = cursor.position.unwrap_or_else(|| known.into());
        let newest = self.window.end().max(self.written);
        if position.is_inside() && (position > newest || withheld == Some(position.lsn)) {
            return Step::Give(Run::Broken);
        }
        let mut position = position.max(first.begin.into());
        let readable = match withheld {
            Some(_) => self.complete.into(),
            None => self.written,
        };
        if position < self.window.begin() && position < readable {
            let segment = self.segments.partition_point(|s| s.begin <= position.lsn);
            let segment = self.segments.get(segment.saturating_sub(1));
            let files = |segment: &Arc<Segment>| {
                let reading = Reading {
                    position,
                    entries_max,
                    bytes_max,
                    limit: match withheld {
                        Some(_) => segment.complete(),
                        None => segment.len(),
                    },
                    cuts: segment.cuts(),
                };
                Step::Files(Arc::clone(segment), reading)
            };
            return segment.map_or(Step::Wait, files);
        }
        if position < self.window.begin() {
            // What was between went through memory only. Targets that keep up have it; for others it comes again.
            let begins = cursor.position.is_none() && !self.carried.contains_key(&cursor.target);
            if !begins
                || self.window.begin().is_inside()
                || (cursor.exact && !self.window.suffices(self.has(cursor)))
            {
                return Step::Wait;
            }
            position = self.window.begin();
        }
        let run = self
            .window
            .after(position, entries_max, bytes_max, withheld);
        if !run.is_empty() {
            return Step::Give(Run::Entries(run));
        }
        if cursor.is_inside() {
            return Step::Wait;
        }
        // What is withheld is not passed over.
        let tail = self.tail.min(withheld.unwrap_or(self.tail));
        if tail > known {
            return Step::Give(Run::UpTo(tail));
        }
        Step::Wait
    }

    /// Where the commit of the transaction begins of which a reader gets nothing, because its end has not come.
    fn withheld(&self, cursor: &Cursor) -> Option<Lsn> {
        self.open().filter(|&open| {
            // Through memory alone its end may have to wait for room, and a target would have to wait for it in the middle.
            self.interrupted || self.problem.is_some() || cursor.patient == Some(open)
        })
    }

    fn has(&self, cursor: &Cursor) -> Lsn {
        cursor.has.max(self.created)
    }

    fn hole(&self, cursor: &Cursor, first: &Segment) -> Option<Hole> {
        let to = first.begin.max(self.origin);
        // In the middle of its work a reader knows exactly where it is.
        if let Some(Position { lsn: position, .. }) = cursor.position {
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

/// What is wanted of a file.
struct Reading {
    position: Position,
    entries_max: usize,
    bytes_max: usize,
    /// Bytes of the file that may be read.
    limit: u64,
    /// See [`Segment::cuts`].
    cuts: u64,
}

type Read = (Vec<Arc<Entry>>, Position, SegmentReader);

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
        let mut reached = self.position;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while entries.len() < self.entries_max && bytes < self.bytes_max {
            match reader.next(self.limit, self.position, &journal.interner)? {
                Some(Record::Entry(entry)) => {
                    bytes += entry.size();
                    reached = entry.position();
                    let last = entry.is_of_parts();
                    entries.push(Arc::new(entry));
                    if last {
                        break;
                    }
                }
                Some(Record::Position(lsn)) => reached = reached.max(lsn.into()),
                Some(Record::Skipped { .. } | Record::Shape(_)) => {}
                None => break,
            }
        }
        if entries.is_empty() && reached == self.position {
            return Err(SegmentError::Short {
                path: reader.segment.path.clone(),
                position: self.position.lsn,
            });
        }
        Ok((entries, reached, reader))
    }
}
