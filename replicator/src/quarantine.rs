//! Transactions that a target refused. They are kept on the target, in order, with the keys that they hold up: later
//! changes of those keys, from any source, queue behind them, and everything else flows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::control::{Control, ControlError};

/// What a quarantined transaction holds up.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Hold {
    /// Schema and table, quoted.
    pub table: String,
    /// The values of the primary key as text; `None` stands for the whole table.
    pub key: Option<Vec<String>>,
}

/// A quarantined transaction as it was read: it is applied, or an attempt noted, only while nobody has edited it since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    /// Its number.
    pub id: i64,
    /// How often it had been edited.
    pub edits: i32,
}

#[derive(Debug)]
struct Entry {
    source: u16,
    holds: Vec<Hold>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<i64, Entry>,
    /// Which entries hold what; the whole table stands under `None`.
    held: HashMap<String, HashMap<Option<Vec<String>>, BTreeSet<i64>>>,
}

impl Inner {
    fn add(&mut self, id: i64, entry: Entry) {
        for hold in &entry.holds {
            let keys = self.held.entry(hold.table.clone()).or_default();
            keys.entry(hold.key.clone()).or_default().insert(id);
        }
        self.entries.insert(id, entry);
    }

    fn remove(&mut self, id: i64) {
        let Some(entry) = self.entries.remove(&id) else {
            return;
        };
        for hold in &entry.holds {
            let Some(keys) = self.held.get_mut(&hold.table) else {
                continue;
            };
            if let Some(ids) = keys.get_mut(&hold.key) {
                ids.remove(&id);
                if ids.is_empty() {
                    keys.remove(&hold.key);
                }
            }
            if keys.is_empty() {
                self.held.remove(&hold.table);
            }
        }
    }

    /// The first entry that holds what `hold` names.
    fn first(&self, hold: &Hold) -> Option<i64> {
        let keys = self.held.get(&hold.table)?;
        let first = |ids: &BTreeSet<i64>| ids.first().copied();
        match &hold.key {
            Some(_) => [&hold.key, &None]
                .into_iter()
                .filter_map(|key| keys.get(key).and_then(first))
                .min(),
            None => keys.values().filter_map(first).min(),
        }
    }
}

/// What one target has in quarantine, as the daemon knows it. `tandem.quarantine` on the target holds the
/// transactions themselves.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    inner: Mutex<Inner>,
    count: AtomicUsize,
    /// Somebody asks for another attempt.
    pub(crate) retry: Notify,
}

impl Quarantine {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing is held up.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// How many transactions of a source are held.
    pub(crate) fn of_source(&self, source: u16) -> usize {
        let inner = self.lock();
        let entries = inner.entries.values();
        entries.filter(|entry| entry.source == source).count()
    }

    /// Waits until nothing of a source is held.
    pub(crate) async fn none_of(&self, source: u16) {
        loop {
            let removed = self.retry.notified();
            tokio::pin!(removed);
            removed.as_mut().enable();
            if self.of_source(source) == 0 {
                return;
            }
            removed.await;
        }
    }

    /// Reads what the target keeps of a source; that source's link may not be adding to it meanwhile.
    ///
    /// # Errors
    /// When the target cannot be asked.
    pub(crate) async fn load(&self, control: &Control, source: u16) -> Result<(), ControlError> {
        let sql = "SELECT id, holds::text FROM tandem.quarantine WHERE source = $1";
        let mut loaded = BTreeMap::new();
        for row in control.query(sql, &[&i32::from(source)]).await? {
            let holds: String = row.try_get(1)?;
            let holds: Vec<Hold> = serde_json::from_str(&holds)
                .map_err(|_| ControlError::Unexpected("tandem.quarantine"))?;
            loaded.insert(row.try_get::<_, i64>(0)?, holds);
        }
        let mut inner = self.lock();
        let known: Vec<_> = inner
            .entries
            .iter()
            .map(|(&id, entry)| (id, entry.source))
            .collect();
        for (id, _) in known.into_iter().filter(|(_, of)| *of == source) {
            inner.remove(id);
        }
        for (id, holds) in loaded {
            inner.add(id, Entry { source, holds });
        }
        self.count.store(inner.entries.len(), Ordering::Release);
        Ok(())
    }

    /// A transaction was put there.
    pub(crate) fn add(&self, id: i64, source: u16, holds: Vec<Hold>) {
        let mut inner = self.lock();
        inner.add(id, Entry { source, holds });
        self.count.store(inner.entries.len(), Ordering::Release);
    }

    /// A transaction left it. Those behind it may now go on.
    pub(crate) fn remove(&self, id: i64) {
        let mut inner = self.lock();
        inner.remove(id);
        self.count.store(inner.entries.len(), Ordering::Release);
        drop(inner);
        self.retry.notify_waiters();
    }

    /// The first transaction behind which one that touches `holds` has to queue.
    pub(crate) fn first_in_the_way(&self, holds: &[Hold]) -> Option<i64> {
        let inner = self.lock();
        holds.iter().filter_map(|hold| inner.first(hold)).min()
    }

    /// The first transaction that one has to wait for; `None` where nothing stands before it.
    pub(crate) fn before(&self, id: i64) -> Option<i64> {
        let inner = self.lock();
        let holds = inner.entries.get(&id)?.holds.iter();
        let first = holds.filter_map(|hold| inner.first(hold)).min();
        first.filter(|&first| first < id)
    }

    /// Transactions of a source that nothing stands before, in order.
    pub(crate) fn ready(&self, source: u16) -> Vec<i64> {
        let inner = self.lock();
        let is_first = |id: i64, entry: &Entry| {
            let mut before = entry.holds.iter().filter_map(|hold| inner.first(hold));
            before.all(|first| first >= id)
        };
        let entries = inner.entries.iter();
        entries
            .filter(|&(&id, entry)| entry.source == source && is_first(id, entry))
            .map(|(&id, _)| id)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(table: &str, key: &str) -> Hold {
        Hold {
            table: table.to_owned(),
            key: Some(vec![key.to_owned()]),
        }
    }

    fn whole(table: &str) -> Hold {
        Hold {
            table: table.to_owned(),
            key: None,
        }
    }

    #[test]
    fn later_changes_of_a_held_key_queue_and_others_do_not() {
        let quarantine = Quarantine::default();
        assert!(quarantine.is_empty());
        quarantine.add(4, 1, vec![key("t", "1"), key("u", "2")]);
        assert_eq!(quarantine.first_in_the_way(&[key("t", "1")]), Some(4));
        assert_eq!(quarantine.first_in_the_way(&[key("u", "2")]), Some(4));
        assert_eq!(
            quarantine.first_in_the_way(&[key("t", "2"), key("v", "1")]),
            None
        );
        quarantine.remove(4);
        assert!(quarantine.is_empty());
        assert_eq!(quarantine.first_in_the_way(&[key("t", "1")]), None);
    }

    #[test]
    fn a_held_table_holds_every_key_and_a_held_key_holds_a_change_of_the_whole_table() {
        let quarantine = Quarantine::default();
        quarantine.add(1, 1, vec![whole("t")]);
        quarantine.add(2, 1, vec![key("u", "7")]);
        assert_eq!(quarantine.first_in_the_way(&[key("t", "9")]), Some(1));
        assert_eq!(quarantine.first_in_the_way(&[whole("u")]), Some(2));
    }

    #[test]
    fn only_what_nothing_stands_before_is_ready_whatever_its_source() {
        let quarantine = Quarantine::default();
        quarantine.add(1, 1, vec![key("t", "1")]);
        quarantine.add(2, 2, vec![key("t", "1"), key("t", "2")]);
        quarantine.add(3, 2, vec![key("t", "3")]);
        quarantine.add(4, 1, vec![key("t", "2")]);
        assert_eq!(quarantine.ready(1), [1]);
        assert_eq!(quarantine.ready(2), [3]);
        let before = [1, 2, 3, 4, 5].map(|id| quarantine.before(id));
        assert_eq!(before, [None, Some(1), None, Some(2), None]);
        quarantine.remove(1);
        assert_eq!(quarantine.ready(2), [2, 3]);
        assert_eq!(quarantine.ready(1), [0i64; 0]);
        assert_eq!((quarantine.of_source(1), quarantine.of_source(2)), (1, 2));
    }
}
