//! The transactions of one source that some target still needs: on local disk, with the newest of them in memory too.
//!
//! One capture [appends](Journal::append), one link per target [reads](Journal::read), each at its own pace. What all
//! targets have durably applied is [trimmed](Journal::trim). An entry is in a file before any link can see it.
//!
//! Where the disk refuses, or the bound is reached, entries go on through memory only ([`Journal::problem`]): targets that
//! keep up notice nothing, for the others the source's slot has to keep what they need. When there is room again the
//! stream is read once more from the end of the files.
//!
//! A large transaction comes in parts, each written and shown as it comes, so nobody needs to hold the whole. The journal's
//! bound is looked at where it begins. When its stream ends before its end has come, its parts are taken back. Through
//! memory only it is shown when its end is there; one that is larger than the memory waits until the files take it.

pub(crate) mod codec;
mod cursor;
mod identity;
mod reader;
mod segment;
mod store;
mod window;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tandem_wire::lsn::Lsn;
use thiserror::Error;
use tokio::sync::{Notify, OwnedMutexGuard};

pub(crate) use cursor::{Cursor, Hole, Run};
pub(crate) use identity::Source;
pub(crate) use store::{Known, StoreError};

use crate::relation::Interner;
use crate::transaction::{Entry, Position};
use segment::Segment;
use store::Store;
use window::Window;

/// Bytes of changes that are held in memory besides.
const WINDOW_BYTES: usize = 64 << 20;

/// Why a journal cannot be used.
#[derive(Debug, Error)]
pub(crate) enum JournalError {
    /// The files.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It was not opened.
    #[error("the journal is not open")]
    Closed,
    /// It was opened again since.
    #[error("the journal was opened again by another reader of the stream")]
    Superseded,
    /// The process is ending.
    #[error("the work on the journal was interrupted")]
    Interrupted,
    /// The server does not have what was read from it.
    #[error(
        "the server's WAL ends at {server}, but it was read up to {journal}: it was restored from an older state, so it and the \
         other nodes have to be brought together by hand before it is taken back"
    )]
    Rewound {
        /// The end of the server's WAL.
        server: Lsn,
        /// The end of the journal.
        journal: Lsn,
    },
}

/// What files and memory have, as readers see it.
struct Inner {
    /// Empty until the journal is open.
    segments: Vec<Arc<Segment>>,
    /// How often it was opened: who writes now.
    writer: u64,
    /// Where the slot began.
    created: Lsn,
    /// Where the journal began.
    origin: Lsn,
    /// The end of what is in the files, parts included.
    written: Position,
    /// The same without the parts of a transaction whose end is not there.
    complete: Lsn,
    /// The stream has ended in the middle of the transaction that is [open](Self::open).
    interrupted: bool,
    /// The end of what is safe on disk.
    synced: Lsn,
    window: Window,
    /// Up to where the source is known to have written nothing else than what was read, now or before it was opened anew.
    tail: Lsn,
    /// Up to where the present writer has come: what went through memory only, before it began, is not in the files yet.
    read: Lsn,
    /// Why entries go through memory only.
    problem: Option<String>,
    /// What happened to the journal before this one.
    lost: Option<String>,
    /// The targets for whose sake the slot may have moved on, and up to where each has everything surely.
    carried: BTreeMap<u16, Lsn>,
    /// Up to where the slot may be confirmed.
    confirmed: Lsn,
}

/// See the module.
pub(crate) struct Journal {
    dir: PathBuf,
    bytes_max: u64,
    interner: Arc<Interner>,
    inner: Mutex<Inner>,
    store: Arc<tokio::sync::Mutex<Option<Store>>>,
    written: Notify,
    /// The same for the node's own link.
    written_own: Notify,
    room: Notify,
    /// How many want the bound of the memory ignored.
    lifted: AtomicUsize,
}

/// What a stream needs to know to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opened {
    /// The journal's id.
    pub id: u64,
    /// From where the stream has to be read.
    pub end: Lsn,
    /// See [`Segment`].
    pub floor: Lsn,
    /// Who may append what is read from there.
    pub writer: u64,
}

/// What there is to tell about a journal.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes of changes in memory.
    pub memory_bytes: usize,
    /// Where it begins and ends.
    pub range: Option<(Lsn, Lsn)>,
    /// Bytes of WAL behind the slot's position, as far as it was read.
    pub slot_bytes: u64,
    /// Targets that it carries.
    pub carried: Vec<u16>,
    /// What is wrong.
    pub problem: Option<String>,
}

impl Journal {
    /// One that keeps its files in `dir`, and up to `bytes_max` bytes of them. It holds nothing before it is
    /// [opened](Self::open).
    pub(crate) fn new(dir: PathBuf, bytes_max: u64, interner: Arc<Interner>) -> Self {
        Self {
            dir,
            bytes_max,
            interner,
            inner: Mutex::new(Inner {
                segments: Vec::new(),
                writer: 0,
                created: Lsn(0),
                origin: Lsn(0),
                written: Position::default(),
                complete: Lsn(0),
                interrupted: false,
                synced: Lsn(0),
                window: Window::default(),
                tail: Lsn(0),
                read: Lsn(0),
                problem: None,
                lost: None,
                carried: BTreeMap::new(),
                confirmed: Lsn(0),
            }),
            store: Arc::default(),
            written: Notify::new(),
            written_own: Notify::new(),
            room: Notify::new(),
            lifted: AtomicUsize::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs work on the files where it may take its time. The work is finished even if the caller goes away.
    async fn on_files<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self, &mut Option<Store>) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let mut store = self.files().await;
        let journal = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&journal, &mut store))
            .await
            .map_err(|_| JournalError::Interrupted)?
    }

    async fn files(&self) -> OwnedMutexGuard<Option<Store>> {
        Arc::clone(&self.store).lock_owned().await
    }

    /// Opens it, or makes sure that what is open still fits the source, and that there is room; answers from where the
    /// stream has to be read. A journal that does not fit is set aside, and a new one begins at the slot's position.
    ///
    /// `server` is the end of the server's WAL, `carried` what the node says about its targets.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub(crate) async fn open(
        self: &Arc<Self>,
        source: Source,
        known: Known,
        server: Lsn,
        carried: BTreeMap<u16, Lsn>,
    ) -> Result<Opened, JournalError> {
        self.on_files(move |journal, slot| {
            if let Some(store) = slot {
                journal.lock().cut(store);
                let gone_on = journal.lock().floor_beyond_files(known.confirmed);
                if store.identity.source == source
                    && (store.end >= known.confirmed || gone_on.is_some())
                {
                    if let Some(floor) = gone_on {
                        store.restart(known.confirmed, floor)?;
                    }
                    let mut inner = journal.lock();
                    inner.problem = None;
                    inner.carried = carried;
                    inner.take_over(store);
                    drop(inner);
                    return journal.opened(store, server);
                }
            }
            // The lock on the files has to go first.
            let before = slot.take().map(|store| store.identity.id);
            let known = Known {
                id: before.or(known.id),
                ..known
            };
            let (store, lost) = Store::open(
                &journal.dir,
                &source,
                known,
                journal.bytes_max,
                &journal.interner,
            )?;
            if let Some(lost) = &lost {
                tracing::warn!(
                    dir = %journal.dir.display(),
                    problem = lost,
                    "replication: the journal cannot be used; a new one begins"
                );
            }
            let mut inner = journal.lock();
            inner.window = Window::beginning_at(store.end, store.last_transaction);
            inner.interrupted = false;
            inner.created = known.created;
            inner.confirmed = known.confirmed;
            inner.origin = store.identity.origin;
            inner.tail = store.end;
            inner.problem = None;
            inner.lost = lost.or_else(|| inner.lost.take());
            inner.carried = carried;
            // What is behind may be lost yet.
            inner.synced = known.confirmed;
            inner.take_over(&store);
            drop(inner);
            journal.wake_readers();
            let opened = journal.opened(&store, server);
            *slot = Some(store);
            opened
        })
        .await
    }

    fn opened(&self, store: &Store, server: Lsn) -> Result<Opened, JournalError> {
        self.room.notify_waiters();
        if store.end > server {
            return Err(JournalError::Rewound {
                server,
                journal: store.end,
            });
        }
        let mut inner = self.lock();
        inner.writer += 1;
        inner.read = store.end;
        Ok(Opened {
            id: store.identity.id,
            end: store.end,
            writer: inner.writer,
            floor: store.segments().first().map_or(Lsn(0), |first| first.floor),
        })
    }

    /// Appends what one read of the stream brought to the `writer` that [`open`](Self::open) named. The source has written
    /// nothing else up to `tail`. Blocks while the files are written.
    ///
    /// # Errors
    /// It is not open, or was opened again: what that reader brings would otherwise be missed where this one went on
    /// before it. That the files take nothing is no error, see the module.
    pub(crate) async fn append(
        &self,
        writer: u64,
        entries: Vec<Entry>,
        tail: Lsn,
    ) -> Result<(), JournalError> {
        // Most reads bring a part of a transaction: nobody is woken for that.
        if entries.is_empty() && tail <= self.lock().read {
            return Ok(());
        }
        let mut store = self.files().await;
        let store = store.as_mut().ok_or(JournalError::Closed)?;
        if self.lock().writer != writer {
            return Err(JournalError::Superseded);
        }
        let entries: Vec<_> = entries.into_iter().map(Arc::new).collect();
        let memory_only = self.lock().problem.is_some();
        let written = if memory_only || entries.is_empty() {
            Ok(())
        } else {
            store.append(entries.iter().map(Arc::as_ref))
        };
        let mut inner = self.lock();
        // Half of a transaction in the files and half in memory: it is read once more from its beginning.
        let broken = match written {
            Err(error) if store.is_open() => Err(error.into()),
            written => {
                inner.note_problem(written);
                Ok(())
            }
        };
        inner.take_over(store);
        for entry in entries {
            inner.read = inner.read.max(entry.position().lsn);
            inner.window.push(entry);
        }
        inner.read = inner.read.max(tail);
        inner.tail = inner.tail.max(inner.read);
        let written = inner.written;
        inner.window.shrink(WINDOW_BYTES, written);
        drop(inner);
        self.wake_readers();
        broken
    }

    /// The stream that the `writer` reads ends when the answer is dropped.
    pub(crate) fn streaming(&self, writer: u64) -> Streaming<'_> {
        Streaming {
            journal: self,
            writer,
        }
    }

    /// The node's own link comes last: what it learns is seldom waited for, what the others bring is.
    fn wake_readers(&self) {
        self.written.notify_waiters();
        self.written_own.notify_waiters();
    }

    /// Drops what every target has durably, and from memory what those that keep up have. While entries go through
    /// memory only, finds out whether there is room again: the stream then has to be opened anew.
    ///
    /// # Errors
    /// It is not open, or the file system refuses to remove a file.
    pub(crate) async fn trim(
        self: &Arc<Self>,
        durable: Lsn,
        keeping_up: Lsn,
        probe: bool,
    ) -> Result<bool, JournalError> {
        {
            let mut inner = self.lock();
            let memory_only = inner.problem.is_some();
            inner
                .window
                .trim(if memory_only { keeping_up } else { durable });
            let removable = inner
                .segments
                .get(1)
                .is_some_and(|next| next.begin <= durable);
            if !memory_only && !removable {
                drop(inner);
                self.room.notify_waiters();
                return Ok(false);
            }
        }
        self.room.notify_waiters();
        self.on_files(move |journal, store| {
            let store = store.as_mut().ok_or(JournalError::Closed)?;
            store.trim(durable)?;
            let mut inner = journal.lock();
            inner.take_over(store);
            if inner.problem.is_none() {
                return Ok(false);
            }
            drop(inner);
            // Everything in the files is done with: they can begin anew.
            if durable >= store.end {
                let (end, floor) = (store.end, store.last_transaction);
                store.restart(end, floor)?;
                journal.lock().take_over(store);
            }
            Ok(store.has_room() && probe && store.probe())
        })
        .await
    }

    /// Notes on disk that the source has written nothing else than what the files have up to where its stream has been read,
    /// so that the slot may be confirmed up to there.
    ///
    /// # Errors
    /// It is not open.
    pub(crate) async fn note_read(self: &Arc<Self>) -> Result<(), JournalError> {
        let read = self.lock().read;
        self.note(read).await
    }

    /// Notes on disk that nobody needs from the source what is not in the files, up to `lsn`.
    ///
    /// # Errors
    /// It is not open.
    pub(crate) async fn note(self: &Arc<Self>, lsn: Lsn) -> Result<(), JournalError> {
        if Position::from(lsn) <= self.lock().written {
            return Ok(());
        }
        self.on_files(move |journal, store| {
            let store = store.as_mut().ok_or(JournalError::Closed)?;
            if journal.problem().is_none() {
                let noted = store.note(lsn);
                let mut inner = journal.lock();
                inner.note_problem(noted);
                inner.take_over(store);
            }
            Ok(())
        })
        .await
    }

    /// Makes everything safe that is in the files.
    ///
    /// # Errors
    /// The file system refuses, or somebody has removed the file. What is safe is then unknown, so this position does not
    /// move any more.
    pub(crate) async fn sync(self: &Arc<Self>) -> Result<(), JournalError> {
        let store = self.files().await;
        let sync = store.as_ref().ok_or(JournalError::Closed)?.sync();
        drop(store);
        if sync.end <= self.lock().synced {
            return Ok(());
        }
        // Without the lock: the capture writes on meanwhile.
        let synced = tokio::task::spawn_blocking(move || sync.run().map(|()| sync));
        let sync = synced.await.map_err(|_| JournalError::Interrupted)??;
        let mut store = self.files().await;
        store.as_mut().ok_or(JournalError::Closed)?.synced(&sync);
        drop(store);
        let mut inner = self.lock();
        inner.synced = inner.synced.max(sync.end);
        Ok(())
    }

    /// Waits until there is room in memory. There always is while the files take everything.
    pub(crate) async fn has_room(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if !self.is_full() {
                return;
            }
            room.await;
        }
    }

    fn is_full(&self) -> bool {
        let inner = self.lock();
        inner.problem.is_some()
            && inner.window.bytes() >= WINDOW_BYTES
            && self.lifted.load(Ordering::Acquire) == 0
    }

    /// Reads on beyond the bound of the memory while the answer lives.
    pub(crate) fn lift_bound(&self) -> LiftedBound<'_> {
        self.lifted.fetch_add(1, Ordering::AcqRel);
        self.room.notify_waiters();
        LiftedBound { journal: self }
    }

    /// Why entries go through memory only, if they do.
    pub(crate) fn problem(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    /// Up to where the stream was read.
    pub(crate) fn tail(&self) -> Lsn {
        self.lock().tail
    }

    /// The end of what is safe on disk.
    pub(crate) fn synced(&self) -> Lsn {
        self.lock().synced
    }

    /// Where the last transaction ends that no file has any more.
    pub(crate) fn floor(&self) -> Lsn {
        self.lock().floor()
    }

    /// Says who is carried now, and up to where the slot may be confirmed.
    pub(crate) fn set_carried(&self, carried: BTreeMap<u16, Lsn>, confirmed: Lsn) {
        let mut inner = self.lock();
        inner.carried = carried;
        inner.confirmed = confirmed;
    }

    /// What there is to tell.
    pub(crate) fn figures(&self) -> Figures {
        let inner = self.lock();
        let first = inner.segments.first().map(|first| first.begin);
        Figures {
            bytes: inner.segments.iter().map(|segment| segment.len()).sum(),
            memory_bytes: inner.window.bytes(),
            range: first.map(|first| (first, inner.complete)),
            slot_bytes: inner.tail.0.saturating_sub(inner.confirmed.0),
            carried: inner.carried.keys().copied().collect(),
            problem: inner.problem.clone(),
        }
    }
}

impl Inner {
    /// Takes back the parts of a transaction whose end does not come: it comes again.
    fn cut(&mut self, store: &mut Store) {
        store.cut();
        self.window.cut(store.end);
        self.interrupted = false;
        self.take_over(store);
    }

    /// Where the commit of the newest transaction begins, if its end did not come yet. What memory has whole is not open
    /// although the stream brings it for the files once more.
    fn open(&self) -> Option<Lsn> {
        let end = self.window.end();
        end.is_inside().then_some(end.lsn)
    }

    /// Takes over what the files hold now.
    fn take_over(&mut self, store: &Store) {
        self.written = store.position();
        self.complete = store.end;
        self.segments = store.segments();
    }

    /// While entries went through memory only, every target may have come further than the files: the slot is then
    /// confirmed up to `confirmed`, and the files have to begin anew there, behind a transaction that ends here.
    fn floor_beyond_files(&self, confirmed: Lsn) -> Option<Lsn> {
        let read = confirmed > self.complete && confirmed <= self.tail;
        read.then(|| self.window.floor_at(confirmed)).flatten()
    }

    fn floor(&self) -> Lsn {
        self.segments.first().map_or(Lsn(0), |first| first.floor)
    }

    fn note_problem(&mut self, written: Result<(), StoreError>) {
        if let (Err(error), None) = (written, &self.problem) {
            let text = error.to_string();
            tracing::warn!(
                problem = text,
                "replication: the journal takes no more; targets that are behind hold back WAL on the source"
            );
            self.problem = Some(text);
        }
    }
}

/// See [`Journal::streaming`].
pub(crate) struct Streaming<'a> {
    journal: &'a Journal,
    writer: u64,
}

impl Drop for Streaming<'_> {
    fn drop(&mut self) {
        let mut inner = self.journal.lock();
        if inner.writer == self.writer && inner.open().is_some() {
            inner.interrupted = true;
            drop(inner);
            self.journal.wake_readers();
        }
    }
}

/// See [`Journal::lift_bound`].
pub(crate) struct LiftedBound<'a> {
    journal: &'a Journal,
}

impl Drop for LiftedBound<'_> {
    fn drop(&mut self) {
        self.journal.lifted.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;
