//! Owns the table of live sessions: who may cancel what, and how the daemon reaches each session to end it.
//!
//! The table is touched at login, at goodbye and by cancel requests only. What the relay reads on each wake-up is
//! a few atomics of its own entry.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering},
    },
    task::Waker,
    time::Duration,
};

use aws_lc_rs::{constant_time, rand};
use tandem_wire::Secret;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::state::Hold;
use crate::pool::{CancelUnderWay, Face};

/// What the daemon wants of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    /// Nothing.
    No,
    /// End when idle outside a transaction.
    WhenIdle,
    /// End at the next message boundary.
    AtOnce,
}

impl Stop {
    fn from_code(code: u8) -> Stop {
        match code {
            0 => Stop::No,
            1 => Stop::WhenIdle,
            _ => Stop::AtOnce,
        }
    }

    fn code(self) -> u8 {
        match self {
            Stop::No => 0,
            Stop::WhenIdle => 1,
            Stop::AtOnce => 2,
        }
    }
}

/// What a session is doing, as others see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Outside a transaction, and nothing is owed.
    Idle,
    /// Inside a transaction (or a failed one), and nothing is owed.
    InTransaction,
    /// The server owes an answer, or there is none yet.
    Active,
}

impl Activity {
    fn code(self) -> u8 {
        match self {
            Activity::Idle => 0,
            Activity::InTransaction => 1,
            Activity::Active => 2,
        }
    }

    fn from_code(code: u8) -> Activity {
        match code {
            0 => Activity::Idle,
            1 => Activity::InTransaction,
            _ => Activity::Active,
        }
    }
}

/// Where a session's statements run.
#[derive(Debug)]
enum Place {
    /// Nowhere: it has no server.
    Idle,
    /// Nowhere yet: it waits for a server.
    Waiting {
        /// A cancel request has come.
        cancelled: bool,
    },
    /// Nowhere yet: this server is being given the session's settings.
    Preparing {
        server: Arc<Face>,
        /// A cancel request has come.
        cancelled: bool,
    },
    /// On this server.
    Server(Arc<Face>),
}

/// What a cancel request has to do.
#[derive(Debug)]
pub(crate) enum Cancel {
    /// Nothing: nothing runs.
    Nothing,
    /// The session answers it by itself.
    Answered,
    /// It goes to the server, which the session keeps, and nobody else gets, until it has arrived.
    Forward(CancelUnderWay),
}

/// What a session is doing, to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// `idle`, `idle_in_transaction`, `active` or `waiting`.
    pub(crate) state: &'static str,
    /// The process number of its backend, while it has one.
    pub(crate) server: Option<i32>,
}

/// A session that has a server, to be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Running {
    /// The process number that its client was given.
    pub(crate) client: i32,
    /// The node.
    pub(crate) node: usize,
    /// The backend's process number there.
    pub(crate) server: i32,
    /// Which of its units of work, round 2^32: another number, another transaction.
    pub(crate) unit: u32,
    /// The unit may write.
    pub(crate) writes: bool,
    /// Why it keeps the server beyond this unit.
    pub(crate) hold: Option<Hold>,
}

/// What the daemon and cancel requests see of a session.
#[derive(Debug)]
pub(crate) struct SessionEntry {
    key: Secret,
    begun: Instant,
    place: Mutex<Place>,
    /// Units of work that have had a server, and whether the last one may write. They change under the lock of `place`.
    units: AtomicU32,
    writes: AtomicBool,
    waker: Mutex<Option<Waker>>,
    stop: AtomicU8,
    activity: AtomicU8,
    answered: AtomicU32,
    /// Somebody waits until the session has taken what its client has sent so far.
    awaited: AtomicBool,
    caught_up: Notify,
}

impl SessionEntry {
    /// The task to wake when the daemon wants something.
    pub(crate) fn register(&self, waker: &Waker) {
        let mut known = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(waker.clone());
    }

    /// Wakes the session, as often as somebody wants something.
    pub(crate) fn wake(&self) {
        let known = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        let waker = known.clone();
        drop(known);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What the daemon wants now.
    pub(crate) fn stop(&self) -> Stop {
        Stop::from_code(self.stop.load(Ordering::Acquire))
    }

    /// Tells others what the session is doing.
    pub(crate) fn publish(&self, activity: Activity) {
        self.activity.store(activity.code(), Ordering::Release);
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session has this server now, for something that writes or may come to do so, or for a read. Answers whether a cancel
    /// request has come while it waited for one: then it must not use it.
    pub(crate) fn attach(&self, face: &Arc<Face>, writes: bool) -> bool {
        let mut place = self.place();
        let before = std::mem::replace(&mut *place, Place::Server(Arc::clone(face)));
        let unit = self.units.load(Ordering::Relaxed).wrapping_add(1);
        self.units.store(unit, Ordering::Relaxed);
        self.writes.store(writes, Ordering::Relaxed);
        drop(place);
        matches!(before, Place::Waiting { cancelled: true })
    }

    /// What it does on its server may write from now on.
    pub(crate) fn may_write(&self) {
        let _place = self.place();
        self.writes.store(true, Ordering::Relaxed);
    }

    fn running(&self, client: i32) -> Option<Running> {
        let place = self.place();
        let (Place::Preparing { server: face, .. } | Place::Server(face)) = &*place else {
            return None;
        };
        Some(Running {
            client,
            node: face.node,
            server: face.pid,
            unit: self.units.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            hold: face.hold(),
        })
    }

    /// What the session's server is sent now is not the client's.
    pub(crate) fn prepare(&self) {
        let mut place = self.place();
        if let Place::Server(server) = &*place {
            *place = Place::Preparing {
                server: Arc::clone(server),
                cancelled: false,
            };
        }
    }

    /// The session's server has what it needs. Answers whether a cancel request has come meanwhile: then the session must
    /// not use it.
    pub(crate) fn prepared(&self) -> bool {
        let mut place = self.place();
        let Place::Preparing { server, cancelled } = &*place else {
            return false;
        };
        let (server, cancelled) = (Arc::clone(server), *cancelled);
        *place = Place::Server(server);
        cancelled
    }

    /// The session waits for a server. A cancel request that came before it had one, or while that was prepared, stays.
    pub(crate) fn wait(&self) {
        let mut place = self.place();
        let cancelled = matches!(
            *place,
            Place::Waiting { cancelled: true }
                | Place::Preparing {
                    cancelled: true,
                    ..
                }
        );
        *place = Place::Waiting { cancelled };
    }

    /// The session has no server any more, and wants none.
    pub(crate) fn detach(&self) {
        *self.place() = Place::Idle;
    }

    /// Whether a cancel request has come for a session that waits.
    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(*self.place(), Place::Waiting { cancelled: true })
    }

    /// Takes a cancel request, of which the key was right.
    pub(crate) fn cancel(&self) -> Cancel {
        let mut place = self.place();
        match &mut *place {
            Place::Idle => Cancel::Nothing,
            Place::Waiting { cancelled } => {
                *cancelled = true;
                drop(place);
                self.wake();
                Cancel::Answered
            }
            Place::Preparing { cancelled, .. } => {
                *cancelled = true;
                Cancel::Answered
            }
            Place::Server(_) if self.activity() != Activity::Active => Cancel::Nothing,
            Place::Server(face) => Cancel::Forward(face.begin_cancel()),
        }
    }

    /// Cancels once more what was cancelled when `answered` answers were complete, if it still runs: PostgreSQL ignores
    /// a signal that comes before its backend has got round to reading the statement.
    pub(crate) fn cancel_again(&self, answered: u32) -> Option<CancelUnderWay> {
        let place = self.place();
        match &*place {
            Place::Server(face)
                if self.activity() == Activity::Active && self.answered() == answered =>
            {
                Some(face.begin_cancel())
            }
            _ => None,
        }
    }

    /// How often the session has become ready for the next query, round 2^32.
    pub(crate) fn answered(&self) -> u32 {
        self.answered.load(Ordering::Acquire)
    }

    /// The session is ready for the next query. Only its own task says so.
    pub(crate) fn ready(&self) {
        let next = self.answered.load(Ordering::Relaxed).wrapping_add(1);
        self.answered.store(next, Ordering::Release);
    }

    fn activity(&self) -> Activity {
        Activity::from_code(self.activity.load(Ordering::Acquire))
    }

    /// Waits until the session has taken what its client sent before now, `bound` at most: a cancel request comes on a
    /// connection of its own, and may be seen before the statement that it is for.
    pub(crate) async fn catch_up(&self, bound: Duration) {
        let mut caught_up = pin!(self.caught_up.notified());
        caught_up.as_mut().enable();
        self.awaited.store(true, Ordering::Release);
        self.wake();
        // A session that does not get round to it is busy with something.
        let _ = timeout(bound, caught_up).await;
    }

    /// Whether somebody waits in `catch_up`.
    pub(crate) fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Acquire)
    }

    /// The session has taken what its client has sent so far.
    pub(crate) fn has_caught_up(&self) {
        self.awaited.store(false, Ordering::Release);
        self.caught_up.notify_waiters();
    }

    fn seen(&self) -> Seen {
        let (waiting, server) = match &*self.place() {
            Place::Idle => (false, None),
            Place::Waiting { .. } => (true, None),
            Place::Preparing { server, .. } | Place::Server(server) => (false, Some(server.pid)),
        };
        let state = match self.activity() {
            _ if waiting => "waiting",
            Activity::Idle => "idle",
            Activity::InTransaction => "idle_in_transaction",
            Activity::Active => "active",
        };
        Seen { state, server }
    }

    /// Whether it has a server on this node; one that it will give back after its transaction does not count for `WhenIdle`.
    fn is_on(&self, node: usize, stop: Stop) -> bool {
        match &*self.place() {
            Place::Preparing { server: face, .. } | Place::Server(face) => {
                face.node == node && (stop == Stop::AtOnce || face.hold().is_some())
            }
            Place::Idle | Place::Waiting { .. } => false,
        }
    }

    fn request(&self, stop: Stop) {
        self.stop.fetch_max(stop.code(), Ordering::AcqRel);
        self.wake();
    }
}

/// Sessions by the process number that their client was given.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    sessions: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    by_pid: HashMap<i32, Arc<SessionEntry>>,
    /// What every session is asked for, those that come later included.
    stop: Option<Stop>,
}

/// A session's place in the table; leaves it when dropped, also on a panic.
#[derive(Debug)]
pub(crate) struct Registered {
    registry: Arc<Registry>,
    pid: i32,
    entry: Arc<SessionEntry>,
}

impl Registered {
    /// The process number for the client.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// The cancel key for the client.
    pub(crate) fn key(&self) -> &[u8] {
        self.entry.key.expose()
    }

    /// What others see of the session.
    pub(crate) fn entry(&self) -> &Arc<SessionEntry> {
        &self.entry
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.table().by_pid.remove(&self.pid);
        self.entry.has_caught_up();
    }
}

/// No random bytes could be had from the system.
#[derive(Debug, thiserror::Error)]
#[error("the system has no random bytes for a cancel key")]
pub(crate) struct NoRandomness;

impl Registry {
    fn table(&self) -> MutexGuard<'_, Table> {
        // No code that can panic runs under this lock, so a poisoned table is whole.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a session under a fresh process number, with a key of `key_len` bytes: 4 in protocol 3.0, 32 in 3.2.
    ///
    /// The process number is random too, so that with the short key of protocol 3.0 there are
    /// 63 bits to guess, not 32.
    pub(crate) fn enter(self: &Arc<Registry>, key_len: usize) -> Result<Registered, NoRandomness> {
        let mut key = vec![0; key_len];
        rand::fill(&mut key).map_err(|_| NoRandomness)?;
        let mut table = self.table();
        let pid = loop {
            let mut bytes = [0; 4];
            rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
            let pid = i32::from_be_bytes(bytes) & i32::MAX;
            if pid > 0 && !table.by_pid.contains_key(&pid) {
                break pid;
            }
        };
        let entry = Arc::new(SessionEntry {
            key: Secret::new(key),
            begun: Instant::now(),
            place: Mutex::new(Place::Idle),
            units: AtomicU32::new(0),
            writes: AtomicBool::new(false),
            waker: Mutex::default(),
            stop: AtomicU8::new(table.stop.unwrap_or(Stop::No).code()),
            activity: AtomicU8::new(Activity::Idle.code()),
            answered: AtomicU32::new(0),
            awaited: AtomicBool::new(false),
            caught_up: Notify::new(),
        });
        table.by_pid.insert(pid, Arc::clone(&entry));
        drop(table);
        Ok(Registered {
            registry: Arc::clone(self),
            pid,
            entry,
        })
    }

    /// The session that a cancel request is for: only with the right key, compared in constant time.
    pub(crate) fn holder(&self, pid: i32, key: &[u8]) -> Option<Arc<SessionEntry>> {
        let entry = self.table().by_pid.get(&pid).cloned()?;
        let same = constant_time::verify_slices_are_equal(entry.key.expose(), key);
        same.is_ok().then_some(entry)
    }

    /// Asks every session, and all that are still to come, to stop.
    pub(crate) fn stop_all(&self, stop: Stop) {
        let entries: Vec<_> = {
            let mut table = self.table();
            table.stop = table.stop.max(Some(stop));
            table.by_pid.values().cloned().collect()
        };
        for entry in entries {
            entry.request(stop);
        }
    }

    /// Asks the sessions that began before `when` to stop; none that is still to come.
    pub(crate) fn stop_begun_before(&self, when: Instant, stop: Stop) {
        let table = self.table();
        let old = table.by_pid.values().filter(|entry| entry.begun < when);
        let entries: Vec<_> = old.cloned().collect();
        drop(table);
        for entry in entries {
            entry.request(stop);
        }
    }

    /// Asks the sessions that have a server on a node to stop, when idle only those that keep it; answers how many there are.
    pub(crate) fn stop_node(&self, node: usize, stop: Stop) -> usize {
        let table = self.table();
        let of_node = table.by_pid.values();
        let of_node = of_node.filter(|entry| entry.is_on(node, stop));
        let entries: Vec<_> = of_node.cloned().collect();
        drop(table);
        for entry in &entries {
            entry.request(stop);
        }
        entries.len()
    }

    /// Has every session look at what it is doing.
    pub(crate) fn wake_all(&self) {
        let entries: Vec<_> = self.table().by_pid.values().cloned().collect();
        for entry in &entries {
            entry.wake();
        }
    }

    /// Asks one session to end at once; answers whether there is one.
    pub(crate) fn stop_one(&self, pid: i32) -> bool {
        let entry = self.table().by_pid.get(&pid).cloned();
        if let Some(entry) = &entry {
            entry.request(Stop::AtOnce);
        }
        entry.is_some()
    }

    /// Whether a session waits for an answer of a server of this node.
    pub(crate) fn awaits(&self, node: usize) -> bool {
        let table = self.table();
        let mut sessions = table.by_pid.values();
        sessions
            .any(|entry| entry.activity() == Activity::Active && entry.is_on(node, Stop::AtOnce))
    }

    /// The sessions that have a server now.
    pub(crate) fn running(&self) -> Vec<Running> {
        let table = self.table();
        let sessions = table.by_pid.iter();
        sessions
            .filter_map(|(pid, entry)| entry.running(*pid))
            .collect()
    }

    /// What every session is doing, by process number.
    pub(crate) fn seen(&self) -> HashMap<i32, Seen> {
        let table = self.table();
        let sessions = table.by_pid.iter();
        sessions.map(|(pid, entry)| (*pid, entry.seen())).collect()
    }

    /// How many sessions there are.
    pub(crate) fn len(&self) -> usize {
        self.table().by_pid.len()
    }

    /// How many sessions are in each activity: idle, in a transaction, active.
    pub(crate) fn activities(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for entry in self.table().by_pid.values() {
            let slot = match entry.activity() {
                Activity::Idle => 0,
                Activity::InTransaction => 1,
                Activity::Active => 2,
            };
            if let Some(count) = counts.get_mut(slot) {
                *count += 1;
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests;
