//! One file of a journal.
//!
//! All integers are big-endian. A file begins with its header:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `TNDMJRNL` |
//! | 2 | version of the format, [`VERSION`] |
//! | 4 | length of the part up to the checksum |
//! | 8 | `begin`: of what the source wrote, this file has all that ends behind this position, up to the next file's `begin` |
//! | 8 | `floor`: where the last transaction ends that ends at or before `begin` |
//! | n | the journal's identity, see [`Identity::encode`] |
//! | 8 | XXH3 (64 bits, no seed) of all before |
//!
//! Then come records, each 4 bytes length, 8 bytes XXH3 of the body with the record's offset in the file as seed, and
//! the body ([`codec`](super::codec)). The positions at which they end never go back. A file needs no other file to be
//! read: it repeats the shapes of the tables that its changes are of. A large transaction is several records, all in one
//! file, which readers see as they are written. If its end never comes they are cut off again.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BufMut;
use tandem_wire::lsn::Lsn;
use tandem_wire::reader::Reader;
use thiserror::Error;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::codec::{self, CodecError};
use super::identity::Identity;
use super::reader::Scan;
use crate::relation::Relation;
use crate::transaction::Entry;

const MAGIC: &[u8; 8] = b"TNDMJRNL";
/// Version of the file format.
const VERSION: u16 = 3;
/// Magic, version and length.
const PREFIX: usize = 14;
/// A header is shorter than this.
const HEADER_MAX: usize = 4096;
/// Length and checksum before each record's body.
pub(super) const RECORD_PREFIX: usize = 12;
/// So much room is kept for what is to be written; a large change does not keep its own for ever.
const STAGED_KEPT: usize = 8 << 20;

/// Why a file cannot be read or written.
#[derive(Debug, Error)]
pub(crate) enum SegmentError {
    /// The file system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The header is not one, or is damaged.
    #[error("{} does not begin as a journal does", .0.display())]
    Header(PathBuf),
    /// A record is cut off or damaged.
    #[error("{} is damaged at byte {offset}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// How.
        what: String,
    },
    /// A record is missing at the end.
    #[error("{} ends too early: nothing follows {position}", path.display())]
    Short {
        /// The file.
        path: PathBuf,
        /// What should be followed by something.
        position: Lsn,
    },
    /// An entry that cannot be written.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

pub(super) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> SegmentError {
    let path = path.to_owned();
    |source| SegmentError::Io { path, source }
}

/// A file, as readers see it.
#[derive(Debug)]
pub(super) struct Segment {
    /// Where it is.
    pub path: PathBuf,
    /// See the module.
    pub begin: Lsn,
    /// See the module.
    pub floor: Lsn,
    /// Bytes that may be read; what is behind is being written.
    len: AtomicU64,
    /// The same without the parts of a transaction whose end has not come yet.
    complete: AtomicU64,
    cuts: AtomicU64,
}

impl Segment {
    /// Bytes that may be read.
    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Bytes up to which all transactions have their end.
    pub(super) fn complete(&self) -> u64 {
        self.complete.load(Ordering::Acquire)
    }

    /// How often something was cut off that may have been read. Whoever has read beside that may have read anything.
    pub(super) fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Acquire)
    }

    fn new(path: PathBuf, begin: Lsn, floor: Lsn, len: u64) -> Self {
        Self {
            path,
            begin,
            floor,
            len: AtomicU64::new(len),
            complete: AtomicU64::new(len),
            cuts: AtomicU64::new(0),
        }
    }

    fn show(&self, len: u64, complete: u64) {
        self.complete.store(complete, Ordering::Release);
        self.len.store(len, Ordering::Release);
    }
}

/// The header of a file, whatever follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// See the module.
    pub begin: Lsn,
    /// See the module.
    pub floor: Lsn,
    /// Whose it is.
    pub identity: Identity,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut rest = Vec::new();
        rest.put_u64(self.begin.0);
        rest.put_u64(self.floor.0);
        self.identity.encode(&mut rest);
        let mut out = MAGIC.to_vec();
        out.put_u16(VERSION);
        out.put_u32(u32::try_from(rest.len()).unwrap_or(u32::MAX));
        out.append(&mut rest);
        out.put_u64(xxh3_64(&out));
        out
    }

    /// The header and its length, if `bytes` begin with one.
    fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let mut reader = Reader::new(bytes);
        if reader.bytes(MAGIC.len()).ok()? != MAGIC || reader.u16().ok()? != VERSION {
            return None;
        }
        let length = usize::try_from(reader.u32().ok()?).ok()?;
        let mut rest = Reader::new(reader.bytes(length).ok()?);
        let sum = xxh3_64(bytes.get(..PREFIX + length)?);
        if reader.u64().ok()? != sum {
            return None;
        }
        let header = Self {
            begin: Lsn(rest.u64().ok()?),
            floor: Lsn(rest.u64().ok()?),
            identity: Identity::decode(&mut rest).ok()?,
        };
        rest.finish().ok()?;
        Some((header, PREFIX + length + 8))
    }

    /// Reads the header of a file; answers its length too.
    ///
    /// # Errors
    /// The file cannot be read, or does not begin with a header.
    pub(super) fn read(path: &Path) -> Result<(Self, u64), SegmentError> {
        let file = File::open(path).map_err(io_error(path))?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, HEADER_MAX as u64), &mut bytes)
            .map_err(io_error(path))?;
        let (header, length) =
            Self::decode(&bytes).ok_or_else(|| SegmentError::Header(path.to_owned()))?;
        Ok((header, length as u64))
    }
}

/// The name of the file that begins at a position; names sort as positions do.
pub(super) fn file_name(begin: Lsn) -> String {
    format!("{:016x}.segment", begin.0)
}

type Shapes = HashMap<u64, (u32, Arc<Relation>)>;

/// A place in a file.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// Bytes before it.
    len: u64,
    /// How many shapes stand before it. The same shape may be there more than once.
    shapes: u32,
}

/// Writes one file.
#[derive(Debug)]
pub(super) struct SegmentWriter {
    /// What readers see of it.
    pub segment: Arc<Segment>,
    file: Arc<File>,
    /// Shapes that are in the file, or staged, and their numbers; by [`Relation::id`]. Held, so that the ids last.
    shapes: Shapes,
    /// The end of what is written.
    written: Mark,
    /// The end of the last entry that is written and no part of a transaction.
    complete: Mark,
    /// The same of what is staged.
    complete_staged: Option<Mark>,
    /// How many shapes are written or staged.
    shapes_staged: u32,
    staged: Vec<u8>,
}

impl SegmentWriter {
    /// Begins a file.
    ///
    /// # Errors
    /// The file system refuses.
    pub(super) fn create(dir: &Path, header: &Header) -> Result<Self, SegmentError> {
        let path = dir.join(file_name(header.begin));
        let bytes = header.encode();
        let create = || {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all_at(&bytes, 0)?;
            Ok(file)
        };
        let file = create().map_err(|source| {
            // Half a file would be found at the next start, and be removed then.
            let _ = std::fs::remove_file(&path);
            SegmentError::Io {
                path: path.clone(),
                source,
            }
        })?;
        let len = bytes.len() as u64;
        let segment = Segment::new(path, header.begin, header.floor, len);
        let end = Mark { len, shapes: 0 };
        Ok(Self::at(Arc::new(segment), file, end, HashMap::new()))
    }

    fn at(segment: Arc<Segment>, file: File, end: Mark, shapes: Shapes) -> Self {
        Self {
            segment,
            file: Arc::new(file),
            shapes,
            written: end,
            complete: end,
            complete_staged: None,
            shapes_staged: end.shapes,
            staged: Vec::new(),
        }
    }

    /// Goes on with a file that was [scanned](super::reader::scan); what lies behind its last sound record is cut off.
    ///
    /// # Errors
    /// The file system refuses.
    pub(super) fn resume(segment: Arc<Segment>, scan: &Scan) -> Result<Self, SegmentError> {
        let open = || {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(&segment.path)?;
            file.set_len(scan.len)?;
            Ok(file)
        };
        let file = open().map_err(io_error(&segment.path))?;
        segment.show(scan.len, scan.len);
        let end = Mark {
            len: scan.len,
            shapes: u32::try_from(scan.shapes.len()).unwrap_or(u32::MAX),
        };
        let shapes = (0..)
            .zip(&scan.shapes)
            .map(|(number, shape)| (shape.id, (number, Arc::clone(shape))))
            .collect();
        Ok(Self::at(segment, file, end, shapes))
    }

    /// The file, to sync it.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Bytes that were staged since the last [`write`](Self::write).
    pub(super) fn staged(&self) -> u64 {
        self.staged.len() as u64
    }

    /// Prepares an entry to be written, after the shapes of its tables that the file does not have.
    ///
    /// # Errors
    /// It cannot be encoded; [`discard`](Self::discard) what is staged.
    pub(super) fn stage(&mut self, entry: &Entry) -> Result<(), SegmentError> {
        if let Entry::Transaction(changed)
        | Entry::Part { part: changed, .. }
        | Entry::End(changed) = entry
        {
            for change in &changed.changes {
                self.stage_shape(&change.relation)?;
            }
        }
        self.record(|out, shapes| codec::put_entry(entry, out, numbered(shapes)))?;
        if !entry.position().is_inside() {
            self.complete_staged = Some(self.staged_end());
        }
        Ok(())
    }

    fn stage_shape(&mut self, shape: &Arc<Relation>) -> Result<(), SegmentError> {
        if let std::collections::hash_map::Entry::Vacant(vacant) = self.shapes.entry(shape.id) {
            vacant.insert((self.shapes_staged, Arc::clone(shape)));
            self.shapes_staged += 1;
            self.record(|out, _| {
                codec::put_shape(shape, out);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Prepares a position to be written.
    ///
    /// # Errors
    /// As [`stage`](Self::stage).
    pub(super) fn stage_position(&mut self, lsn: Lsn) -> Result<(), SegmentError> {
        self.record(|out, _| {
            codec::put_position(lsn, out);
            Ok(())
        })?;
        self.complete_staged = Some(self.staged_end());
        Ok(())
    }

    fn record(
        &mut self,
        put: impl FnOnce(&mut Vec<u8>, &Shapes) -> Result<(), CodecError>,
    ) -> Result<(), SegmentError> {
        let start = self.staged.len();
        self.staged.extend([0; RECORD_PREFIX]);
        put(&mut self.staged, &self.shapes)?;
        let seed = self.written.len + start as u64;
        let (_, record) = self.staged.split_at_mut(start);
        let (prefix, body) = record.split_at_mut(RECORD_PREFIX);
        let length = u32::try_from(body.len()).map_err(|_| CodecError::TooLong(body.len()))?;
        let (length_at, sum_at) = prefix.split_at_mut(4);
        length_at.copy_from_slice(&length.to_be_bytes());
        sum_at.copy_from_slice(&xxh3_64_with_seed(body, seed).to_be_bytes());
        Ok(())
    }

    fn staged_end(&self) -> Mark {
        Mark {
            len: self.written.len + self.staged(),
            shapes: self.shapes_staged,
        }
    }

    /// Writes what is staged, with one write, and shows it to readers. When it fails nothing of it is in the file, nor
    /// staged any more.
    ///
    /// # Errors
    /// The file system refuses.
    pub(super) fn write(&mut self) -> Result<(), SegmentError> {
        let written = self.file.write_all_at(&self.staged, self.written.len);
        if let Err(error) = written.map_err(io_error(&self.segment.path)) {
            self.discard();
            return Err(error);
        }
        self.written = self.staged_end();
        self.complete = self.complete_staged.take().unwrap_or(self.complete);
        self.segment.show(self.written.len, self.complete.len);
        self.staged.clear();
        self.staged.shrink_to(STAGED_KEPT);
        Ok(())
    }

    /// Forgets what is staged.
    pub(super) fn discard(&mut self) {
        self.back_to(self.written);
    }

    /// Forgets what is staged, and takes back the parts of a transaction whose end does not come.
    pub(super) fn cut(&mut self) {
        if self.written.len > self.complete.len {
            // Before anything else is written there: see `Segment::cuts`.
            self.segment.cuts.fetch_add(1, Ordering::AcqRel);
        }
        self.back_to(self.complete);
    }

    fn back_to(&mut self, end: Mark) {
        self.segment.show(end.len, self.complete.len);
        // What a failed write left would otherwise be found after a crash: true, but twice.
        let _ = self.file.set_len(end.len);
        self.shapes.retain(|_, (number, _)| *number < end.shapes);
        self.shapes_staged = end.shapes;
        self.written = end;
        self.complete_staged = None;
        self.staged.clear();
    }
}

fn numbered(shapes: &Shapes) -> impl Fn(&Relation) -> Option<u32> {
    |relation| shapes.get(&relation.id).map(|(number, _)| *number)
}

/// The segment that a file with this header is.
///
/// # Errors
/// Its length cannot be found out.
pub(super) fn found(path: &Path, header: &Header) -> Result<Segment, SegmentError> {
    let length = std::fs::metadata(path).map_err(io_error(path))?.len();
    Ok(Segment::new(
        path.to_owned(),
        header.begin,
        header.floor,
        length,
    ))
}
