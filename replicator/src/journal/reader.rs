//! Reads one file of a journal: entry by entry, or over all of it to find out what it holds.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tandem_wire::lsn::Lsn;
use tandem_wire::reader::Reader;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::codec::{self, Record};
use super::segment::{Header, RECORD_PREFIX, Segment, SegmentError, io_error};
use crate::relation::{Interner, Relation};
use crate::transaction::Position;

/// How much of a file is read at once; a longer record is read whole.
const CHUNK: u64 = 1 << 20;

/// Reads records one after the other.
#[derive(Debug)]
pub(super) struct SegmentReader {
    /// The file.
    pub segment: Arc<Segment>,
    /// How often something was cut off the file before this began to read it, see [`Segment::cuts`].
    pub cuts: u64,
    file: File,
    offset: u64,
    shapes: Vec<Arc<Relation>>,
    /// Bytes of the file from `offset` on.
    chunk: Bytes,
}

impl SegmentReader {
    /// From the first record on.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn open(segment: Arc<Segment>) -> Result<Self, SegmentError> {
        let cuts = segment.cuts();
        let (_, offset) = Header::read(&segment.path)?;
        let file = File::open(&segment.path).map_err(io_error(&segment.path))?;
        Ok(Self {
            segment,
            cuts,
            file,
            offset,
            shapes: Vec::new(),
            chunk: Bytes::new(),
        })
    }

    /// The next record that is no shape, within the first `limit` bytes of the file. What stands at or before `after` is not
    /// looked into.
    ///
    /// # Errors
    /// The file cannot be read or is damaged; the reader has not moved.
    pub(super) fn next(
        &mut self,
        limit: u64,
        after: Position,
        interner: &Interner,
    ) -> Result<Option<Record>, SegmentError> {
        while self.offset < limit {
            let prefix = self.bytes(0, RECORD_PREFIX, limit)?;
            let mut reader = Reader::new(&prefix);
            let damaged = |what: &str| self.damaged(what);
            let length = reader.u32().map_err(|_| damaged("a record is cut off"))?;
            let sum = reader.u64().map_err(|_| damaged("a record is cut off"))?;
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let body = self.bytes(RECORD_PREFIX, length, limit)?;
            if xxh3_64_with_seed(&body, self.offset) != sum {
                return Err(self.damaged("a checksum is wrong"));
            }
            let record = codec::decode_record(&body, &self.shapes, after, interner)
                .map_err(|error| self.damaged(&error.to_string()))?;
            let whole = RECORD_PREFIX + body.len();
            self.chunk.advance(whole);
            self.offset += whole as u64;
            match record {
                Record::Shape(shape) => self.shapes.push(shape),
                record => return Ok(Some(record)),
            }
        }
        Ok(None)
    }

    /// `length` bytes, `skip` bytes from here.
    fn bytes(&mut self, skip: usize, length: usize, limit: u64) -> Result<Bytes, SegmentError> {
        let end = skip.saturating_add(length);
        let left = limit.saturating_sub(self.offset);
        if end as u64 > left {
            return Err(self.damaged("a record is cut off"));
        }
        if self.chunk.len() < end {
            let wanted = usize::try_from(left.min(CHUNK)).unwrap_or(usize::MAX);
            let mut bytes = vec![0; wanted.max(end)];
            self.file
                .read_exact_at(&mut bytes, self.offset)
                .map_err(io_error(&self.segment.path))?;
            self.chunk = bytes.into();
        }
        Ok(self.chunk.slice(skip..end))
    }

    fn damaged(&self, what: &str) -> SegmentError {
        SegmentError::Damaged {
            path: self.segment.path.clone(),
            offset: self.offset,
            what: what.to_owned(),
        }
    }
}

/// What a file was found to hold.
#[derive(Debug)]
pub(super) struct Scan {
    /// Bytes up to the end of the last sound record.
    pub len: u64,
    /// Where that record ends; `begin` where there is none.
    pub end: Lsn,
    /// Where the last transaction ends; `floor` where there is none.
    pub last_transaction: Lsn,
    /// What follows the last sound record, if anything does.
    pub torn: Option<SegmentError>,
    /// The shapes of its tables, by their numbers.
    pub shapes: Vec<Arc<Relation>>,
}

/// Walks over a file up to the first record that is cut off, damaged, or goes back.
///
/// # Errors
/// The file cannot be read.
pub(super) fn scan(segment: &Arc<Segment>, interner: &Interner) -> Result<Scan, SegmentError> {
    let limit = segment.len();
    let mut reader = SegmentReader::open(Arc::clone(segment))?;
    let mut shapes = 0;
    let mut scan = Scan {
        len: reader.offset,
        end: segment.begin,
        last_transaction: segment.floor,
        torn: None,
        shapes: Vec::new(),
    };
    let everything = Position {
        lsn: Lsn(u64::MAX),
        part: u32::MAX,
    };
    let mut last = Position::from(segment.begin);
    loop {
        let (position, ends_transaction) = match reader.next(limit, everything, interner) {
            Ok(Some(Record::Skipped {
                position,
                ends_transaction,
            })) => (position, ends_transaction),
            Ok(Some(Record::Position(lsn))) => (lsn.into(), false),
            Ok(Some(Record::Entry(_) | Record::Shape(_)) | None) => break,
            Err(error @ SegmentError::Io { .. }) => return Err(error),
            Err(error) => {
                scan.torn = Some(error);
                break;
            }
        };
        if position <= last {
            scan.torn = Some(reader.damaged("positions go back"));
            break;
        }
        last = position;
        // Without its end, what came of a transaction is worth nothing.
        if position.is_inside() {
            continue;
        }
        scan.end = position.lsn;
        if ends_transaction {
            scan.last_transaction = position.lsn;
        }
        scan.len = reader.offset;
        shapes = reader.shapes.len();
    }
    scan.shapes = reader.shapes;
    // Those behind the last sound entry are cut off with the rest.
    scan.shapes.truncate(shapes);
    Ok(scan)
}
