//! The files of a journal: found, continued, written, removed. Everything here blocks.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tandem_wire::lsn::Lsn;
use thiserror::Error;

use super::identity::{Identity, Source};
use super::reader::{self, Scan};
use super::segment::{self, Header, Segment, SegmentError, SegmentWriter};
use crate::relation::Interner;
use crate::transaction::{Entry, Position};

/// So much is encoded before it is written.
const WRITE_BYTES: u64 = 4 << 20;
/// A file is closed at this size, or earlier where little is allowed in all.
const SEGMENT_BYTES: u64 = 64 << 20;
const SEGMENT_BYTES_MIN: u64 = 64 << 10;

/// Why a journal cannot be opened or written.
#[derive(Debug, Error)]
pub(crate) enum StoreError {
    /// A file of it.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// Its directory.
    #[error("{}: {source}", path.display())]
    Dir {
        /// Which.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("the journal in {} is used by another daemon", .0.display())]
    Locked(PathBuf),
    /// The bound is reached.
    #[error("the journal has reached journal_max ({0} bytes)")]
    Full(u64),
}

/// What the node says about its journal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// The id of the journal that was last used with the slot; `None`: there was none yet.
    pub id: Option<u64>,
    /// Up to where the slot is confirmed.
    pub confirmed: Lsn,
    /// Where the slot was created: what ends before is nobody's business.
    pub created: Lsn,
    /// At or before `confirmed` a transaction ends here, and every target that is not carried has it.
    pub floor: Lsn,
}

/// A file to be made safe.
#[derive(Debug, Clone)]
struct Written {
    segment: Arc<Segment>,
    file: Arc<File>,
}

/// Makes everything safe that a store has written so far. Blocks, and needs no lock on the store.
#[derive(Debug)]
pub(super) struct Sync {
    /// Everything up to here is safe afterwards.
    pub end: Lsn,
    files: Vec<Written>,
    dir: PathBuf,
}

impl Sync {
    /// Does it.
    ///
    /// # Errors
    /// The file system refuses, or somebody has removed a file.
    pub(super) fn run(&self) -> Result<(), StoreError> {
        for written in &self.files {
            let path = &written.segment.path;
            let sync = || {
                if fs::metadata(path)?.ino() != written.file.metadata()?.ino() {
                    return Err(io::ErrorKind::NotFound.into());
                }
                written.file.sync_data()
            };
            sync().map_err(dir_error(path))?;
        }
        let dir = File::open(&self.dir).and_then(|dir| dir.sync_all());
        dir.map_err(dir_error(&self.dir))
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Store {
    /// Whose entries these are.
    pub identity: Identity,
    /// Where what is written and complete ends: the stream goes on from here.
    pub end: Lsn,
    /// The last part that is written of a transaction whose end is not.
    part: Option<Position>,
    /// Where the last transaction ends that is written, or was before the journal began.
    pub last_transaction: Lsn,
    /// Closed files, oldest first.
    closed: VecDeque<Arc<Segment>>,
    /// Closed files that may not be safe yet, oldest first.
    unsynced: Vec<Written>,
    current: SegmentWriter,
    dir: PathBuf,
    bytes_max: u64,
    _lock: File,
}

impl Store {
    /// Opens the journal in `dir`, or begins one at the slot's position where there is none that fits; what was found
    /// is then set aside. Answers what is wrong with it, too.
    ///
    /// # Errors
    /// The file system refuses, or another process has it open.
    pub(super) fn open(
        dir: &Path,
        source: &Source,
        known: Known,
        bytes_max: u64,
        interner: &Interner,
    ) -> Result<(Self, Option<String>), StoreError> {
        let lock = lock(dir)?;
        make_dir(dir)?;
        let found = find(dir, known.confirmed, interner)?;
        let problem = match &found {
            Some(found) => found.judge(source, known),
            None => known.id.map(|_| "its files are gone".to_owned()),
        };
        if let (Some(found), None) = (found, &problem) {
            for path in &found.unreadable {
                fs::remove_file(path).map_err(dir_error(path))?;
            }
            let current = SegmentWriter::resume(found.last, &found.scan)?;
            let store = Self {
                identity: found.identity,
                end: found.scan.end,
                part: None,
                last_transaction: found.scan.last_transaction,
                closed: found.closed,
                unsynced: found.unsynced,
                current,
                dir: dir.to_owned(),
                bytes_max,
                _lock: lock,
            };
            return Ok((store, None));
        }
        set_aside(dir)?;
        let identity = Identity::new(source.clone(), known.confirmed);
        let header = Header {
            begin: known.confirmed,
            floor: known.floor,
            identity: identity.clone(),
        };
        let store = Self {
            identity,
            end: known.confirmed,
            part: None,
            last_transaction: known.floor,
            closed: VecDeque::new(),
            unsynced: Vec::new(),
            current: SegmentWriter::create(dir, &header)?,
            dir: dir.to_owned(),
            bytes_max,
            _lock: lock,
        };
        Ok((store, problem))
    }

    /// All files, oldest first.
    pub(super) fn segments(&self) -> Vec<Arc<Segment>> {
        let current = std::iter::once(&self.current.segment);
        self.closed.iter().chain(current).cloned().collect()
    }

    /// The end of what is written, parts included.
    pub(super) fn position(&self) -> Position {
        self.part.unwrap_or_else(|| self.end.into())
    }

    /// Whether the transaction that was last written has no end yet.
    pub(super) fn is_open(&self) -> bool {
        self.part.is_some()
    }

    /// Takes back the parts of a transaction whose end does not come.
    pub(super) fn cut(&mut self) {
        if self.part.take().is_some() {
            self.current.cut();
        }
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        let closed: u64 = self.closed.iter().map(|segment| segment.len()).sum();
        closed + self.current.segment.len()
    }

    /// What has to be done to make everything safe that is written.
    pub(super) fn sync(&self) -> Sync {
        let mut files = self.unsynced.clone();
        files.push(self.current_file());
        Sync {
            end: self.end,
            files,
            dir: self.dir.clone(),
        }
    }

    /// Takes note of what is safe now.
    pub(super) fn synced(&mut self, sync: &Sync) {
        let done = |file: &Written| {
            sync.files
                .iter()
                .any(|done| Arc::ptr_eq(&done.file, &file.file))
        };
        self.unsynced.retain(|file| !done(file));
    }

    fn current_file(&self) -> Written {
        Written {
            segment: Arc::clone(&self.current.segment),
            file: self.current.file(),
        }
    }

    /// Whether the next write begins a new file, which takes longer.
    pub(super) fn is_file_full(&self) -> bool {
        self.current.segment.len() >= self.segment_bytes()
    }

    fn segment_bytes(&self) -> u64 {
        (self.bytes_max / 8).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES)
    }

    /// Whether half of what is allowed is free again.
    pub(super) fn has_room(&self) -> bool {
        self.bytes() <= self.bytes_max / 2
    }

    /// Writes the entries that it does not have yet.
    ///
    /// # Errors
    /// The bound is reached, or the file system refuses; [`end`](Self::end) says how far it came.
    pub(super) fn append<'a>(
        &mut self,
        entries: impl Iterator<Item = &'a Entry>,
    ) -> Result<(), StoreError> {
        let mut reached = Reached {
            position: self.position(),
            end: self.end,
            transaction: self.last_transaction,
        };
        for entry in entries {
            if entry.position() <= reached.position || matches!(entry, Entry::Empty { .. }) {
                continue;
            }
            // What comes in parts stays in one file.
            if self.current.staged() == 0 && self.is_file_full() && !self.is_open() {
                self.begin(reached.end, reached.transaction)?;
            }
            if let Err(error) = self.current.stage(entry) {
                self.current.discard();
                return Err(error.into());
            }
            reached.pass(entry);
            if self.current.staged() >= WRITE_BYTES {
                self.write(reached)?;
            }
        }
        self.write(reached)
    }

    /// Notes that the source has written nothing else up to `lsn`.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub(super) fn note(&mut self, lsn: Lsn) -> Result<(), StoreError> {
        if Position::from(lsn) > self.position() {
            // Nothing ends between the parts of a transaction and its end.
            self.cut();
            if self.is_file_full() {
                self.begin(self.end, self.last_transaction)?;
            }
            self.current.stage_position(lsn)?;
            self.write(Reached {
                position: lsn.into(),
                end: lsn,
                transaction: self.last_transaction,
            })?;
        }
        Ok(())
    }

    fn write(&mut self, reached: Reached) -> Result<(), StoreError> {
        if self.current.staged() == 0 {
            return Ok(());
        }
        let more = self.bytes() + self.current.staged();
        // One transaction of any size has to find its way through: a target that waits for it may be what others wait for.
        // And what was begun comes to its end.
        let refused = !self.has_room() && !self.is_empty() && !self.is_open();
        if more > self.bytes_max && refused {
            self.current.discard();
            return Err(StoreError::Full(self.bytes_max));
        }
        self.current.write()?;
        (self.end, self.last_transaction) = (reached.end, reached.transaction);
        self.part = Some(reached.position).filter(|position| position.is_inside());
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.closed.is_empty() && self.end == self.current.segment.begin
    }

    fn begin(&mut self, begin: Lsn, floor: Lsn) -> Result<(), StoreError> {
        let header = Header {
            begin,
            floor,
            identity: self.identity.clone(),
        };
        let next = SegmentWriter::create(&self.dir, &header)?;
        let closed = self.current_file();
        self.current = next;
        self.closed.push_back(Arc::clone(&closed.segment));
        self.unsynced.push(closed);
        (self.end, self.last_transaction) = (begin, floor);
        Ok(())
    }

    /// Removes files of which every target has all durably.
    ///
    /// # Errors
    /// The file system refuses.
    pub(super) fn trim(&mut self, durable: Lsn) -> Result<bool, StoreError> {
        let mut trimmed = false;
        while let Some(oldest) = self.closed.front() {
            let next = self.closed.get(1).unwrap_or(&self.current.segment);
            if next.begin > durable {
                break;
            }
            match fs::remove_file(&oldest.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(dir_error(&oldest.path)(error));
                }
                _ => {}
            }
            self.unsynced
                .retain(|file| !Arc::ptr_eq(&file.segment, oldest));
            self.closed.pop_front();
            trimmed = true;
        }
        Ok(trimmed)
    }

    /// Goes on at `begin` in a new file, without what is before. `begin` is not before the end.
    ///
    /// # Errors
    /// The file system refuses.
    pub(super) fn restart(&mut self, begin: Lsn, floor: Lsn) -> Result<(), StoreError> {
        self.cut();
        if !self.is_empty() || begin > self.end {
            self.begin(begin, floor)?;
            self.trim(begin)?;
        }
        Ok(())
    }

    /// Whether the file system takes as much as a burst of changes needs.
    pub(super) fn probe(&self) -> bool {
        let path = self.dir.join("probe");
        let written = fs::write(&path, vec![0; 1 << 20]);
        // It may not have been made at all.
        let _ = fs::remove_file(&path);
        written.is_ok()
    }
}

/// How far what is staged comes.
#[derive(Debug, Clone, Copy)]
struct Reached {
    position: Position,
    /// See [`Store::end`].
    end: Lsn,
    /// See [`Store::last_transaction`].
    transaction: Lsn,
}

impl Reached {
    fn pass(&mut self, entry: &Entry) {
        self.position = entry.position();
        if !self.position.is_inside() {
            self.end = self.position.lsn;
        }
        if entry.ends_transaction() {
            self.transaction = self.end;
        }
    }
}

/// What a directory holds.
struct Found {
    identity: Identity,
    closed: VecDeque<Arc<Segment>>,
    unsynced: Vec<Written>,
    last: Arc<Segment>,
    scan: Scan,
    /// Files behind the last that can be used.
    unreadable: Vec<PathBuf>,
}

impl Found {
    /// What keeps it from being used.
    fn judge(&self, source: &Source, known: Known) -> Option<String> {
        if self.identity.source != *source {
            return Some("what is there belongs to another server, timeline or slot".to_owned());
        }
        if known.id != Some(self.identity.id) {
            return Some("what is there is not the journal that was last used".to_owned());
        }
        if self.scan.end < known.confirmed {
            let torn = self.scan.torn.as_ref().map(ToString::to_string);
            let unreadable = self.unreadable.first();
            let why =
                torn.or_else(|| unreadable.map(|path| format!("{} is damaged", path.display())));
            return Some(format!(
                "it ends at {}, before the slot's position {}{}",
                self.scan.end,
                known.confirmed,
                why.map_or_else(String::new, |why| format!(" ({why})"))
            ));
        }
        None
    }
}

/// What the slot was confirmed to was safe on disk, or nobody needs it any more. What is behind that may be damaged or
/// missing anywhere if the machine lost its power, so it is looked at whole, and ends where the first damage is.
fn find(dir: &Path, confirmed: Lsn, interner: &Interner) -> Result<Option<Found>, StoreError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(dir_error(dir))? {
        let path = entry.map_err(dir_error(dir))?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "segment")
        {
            paths.push(path);
        }
    }
    paths.sort();
    let mut identity: Option<Identity> = None;
    let mut segments = Vec::new();
    let mut readable = 0;
    for path in &paths {
        let header = match Header::read(path) {
            Ok((header, _)) => header,
            Err(SegmentError::Header(_)) => break,
            Err(error) => return Err(error.into()),
        };
        if identity
            .as_ref()
            .is_some_and(|first| *first != header.identity)
        {
            break;
        }
        segments.push(Arc::new(segment::found(path, &header)?));
        identity = Some(header.identity);
        readable += 1;
    }
    let Some(identity) = identity else {
        return Ok(None);
    };
    let mut closed = VecDeque::new();
    let mut unsynced = Vec::new();
    let mut rest = segments.into_iter().peekable();
    while let Some(last) = rest.next() {
        let next = rest.peek().map(|next| next.begin);
        if next.is_none_or(|next| next > confirmed) {
            let scan = reader::scan(&last, interner)?;
            if scan.torn.is_some() || next != Some(scan.end) {
                let sound = readable - rest.len();
                return Ok(Some(Found {
                    identity,
                    closed,
                    unsynced,
                    last,
                    scan,
                    unreadable: paths.split_off(sound),
                }));
            }
            let file = File::open(&last.path).map_err(dir_error(&last.path))?;
            unsynced.push(Written {
                segment: Arc::clone(&last),
                file: Arc::new(file),
            });
        }
        closed.push_back(last);
    }
    // The last one is always looked at, and nothing follows it.
    Ok(None)
}

fn dir_error(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    |source| StoreError::Dir { path, source }
}

fn make_dir(dir: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(dir_error(dir))
}

/// Beside the directory, so that the directory can be set aside.
fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.with_extension("lock");
    if let Some(parent) = dir.parent() {
        make_dir(parent)?;
    }
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(dir_error(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(StoreError::Dir { path, source }),
    }
}

/// Keeps what is there for a person to look at, until the next time.
fn set_aside(dir: &Path) -> Result<(), StoreError> {
    if fs::read_dir(dir).map_err(dir_error(dir))?.next().is_none() {
        return Ok(());
    }
    let aside = dir.with_extension("aside");
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(dir_error(&aside)(error));
        }
        _ => {}
    }
    fs::rename(dir, &aside).map_err(dir_error(&aside))?;
    make_dir(dir)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
