//! Owns the table of live sessions: who may cancel what, and how the daemon reaches each session to end it.
//!
//! The table is touched at login, at goodbye and by cancel requests only. What the relay reads on each wake-up is
//! a pair of atomics of its own entry.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    task::Waker,
};

use aws_lc_rs::{constant_time, rand};
use futures_util::task::AtomicWaker;
use tandem_wire::Secret;

use super::progress::Activity;

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

/// The backend that works for a session.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Index of the node in the configuration.
    pub(crate) node: usize,
    /// Its process number there.
    pub(crate) pid: i32,
    /// The key that cancels it.
    pub(crate) secret: Secret,
}

/// What the daemon and cancel requests see of a session.
#[derive(Debug)]
pub(crate) struct SessionEntry {
    key: Secret,
    target: Target,
    waker: AtomicWaker,
    stop: AtomicU8,
    activity: AtomicU8,
}

impl SessionEntry {
    /// The task to wake when the daemon wants something.
    pub(crate) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// What the daemon wants now.
    pub(crate) fn stop(&self) -> Stop {
        Stop::from_code(self.stop.load(Ordering::Acquire))
    }

    /// Tells others what the session is doing.
    pub(crate) fn publish(&self, activity: Activity) {
        self.activity.store(activity.code(), Ordering::Relaxed);
    }

    fn request(&self, stop: Stop) {
        self.stop.fetch_max(stop.code(), Ordering::AcqRel);
        self.waker.wake();
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

    /// The backend that works for the session.
    pub(crate) fn target(&self) -> &Target {
        &self.entry.target
    }

    /// What others see of the session.
    pub(crate) fn entry(&self) -> &SessionEntry {
        &self.entry
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.table().by_pid.remove(&self.pid);
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
    pub(crate) fn enter(
        self: &Arc<Registry>,
        key_len: usize,
        target: Target,
    ) -> Result<Registered, NoRandomness> {
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
            target,
            waker: AtomicWaker::new(),
            stop: AtomicU8::new(table.stop.unwrap_or(Stop::No).code()),
            activity: AtomicU8::new(Activity::Idle.code()),
        });
        table.by_pid.insert(pid, Arc::clone(&entry));
        drop(table);
        Ok(Registered {
            registry: Arc::clone(self),
            pid,
            entry,
        })
    }

    /// The backend that a cancel request may reach: only with the right key, compared in constant time.
    pub(crate) fn target(&self, pid: i32, key: &[u8]) -> Option<Target> {
        let entry = self.table().by_pid.get(&pid).cloned()?;
        constant_time::verify_slices_are_equal(entry.key.expose(), key)
            .is_ok()
            .then(|| entry.target.clone())
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

    /// Asks the sessions that a node serves to stop; answers how many there are.
    pub(crate) fn stop_node(&self, node: usize, stop: Stop) -> usize {
        let table = self.table();
        let of_node = table.by_pid.values();
        let of_node = of_node.filter(|entry| entry.target.node == node);
        let entries: Vec<_> = of_node.cloned().collect();
        drop(table);
        for entry in &entries {
            entry.request(stop);
        }
        entries.len()
    }

    /// How many sessions there are.
    pub(crate) fn len(&self) -> usize {
        self.table().by_pid.len()
    }

    /// How many sessions are in each activity: idle, in a transaction, active.
    pub(crate) fn activities(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for entry in self.table().by_pid.values() {
            let slot = match Activity::from_code(entry.activity.load(Ordering::Relaxed)) {
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
mod tests {
    use super::*;

    fn target(pid: i32) -> Target {
        Target {
            node: 1,
            pid,
            secret: Secret::new([7; 4]),
        }
    }

    #[test]
    fn only_the_right_key_reaches_the_backend_and_only_while_the_session_lives() {
        let registry = Arc::new(Registry::default());
        let session = registry.enter(4, target(42)).expect("entered");
        let (pid, key) = (session.pid(), session.key().to_vec());
        assert!(pid > 0);
        assert_eq!(registry.target(pid, &key).map(|t| t.pid), Some(42));
        let mut wrong = key.clone();
        wrong[3] ^= 1;
        assert!(registry.target(pid, &wrong).is_none());
        assert!(registry.target(pid, &key[..3]).is_none());
        assert!(registry.target(pid, &[]).is_none());
        assert!(registry.target(pid ^ 1, &key).is_none());
        drop(session);
        assert!(registry.target(pid, &key).is_none());
        assert_eq!(registry.len(), 0);
    }

    #[test]
    fn keys_have_the_length_of_the_protocol_and_differ() {
        let registry = Arc::new(Registry::default());
        let old = registry.enter(4, target(1)).expect("entered");
        let new = registry.enter(32, target(2)).expect("entered");
        assert_eq!((old.key().len(), new.key().len()), (4, 32));
        assert_ne!(old.pid(), new.pid());
        assert_ne!(old.key(), &new.key()[..4]);
    }

    #[test]
    fn a_stop_reaches_sessions_that_come_later_and_only_grows() {
        let registry = Arc::new(Registry::default());
        let before = registry.enter(4, target(1)).expect("entered");
        assert_eq!(before.entry().stop(), Stop::No);
        registry.stop_all(Stop::AtOnce);
        registry.stop_all(Stop::WhenIdle);
        let after = registry.enter(4, target(2)).expect("entered");
        assert_eq!(before.entry().stop(), Stop::AtOnce);
        assert_eq!(after.entry().stop(), Stop::AtOnce);
    }

    #[test]
    fn only_the_sessions_of_one_node_are_stopped() {
        let registry = Arc::new(Registry::default());
        let here = registry.enter(4, target(1)).expect("entered");
        let elsewhere = Target {
            node: 2,
            ..target(2)
        };
        let there = registry.enter(4, elsewhere).expect("entered");
        assert_eq!(registry.stop_node(2, Stop::WhenIdle), 1);
        assert_eq!(here.entry().stop(), Stop::No);
        assert_eq!(there.entry().stop(), Stop::WhenIdle);
        assert_eq!(registry.stop_node(2, Stop::AtOnce), 1);
        assert_eq!(there.entry().stop(), Stop::AtOnce);
    }

    #[test]
    fn activities_are_counted() {
        let registry = Arc::new(Registry::default());
        let sessions: Vec<_> = (0..3)
            .map(|n| registry.enter(4, target(n)).expect("entered"))
            .collect();
        sessions[1].entry().publish(Activity::Active);
        sessions[2].entry().publish(Activity::InTransaction);
        assert_eq!(registry.activities(), [1, 1, 1]);
    }
}
