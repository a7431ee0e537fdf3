//! Owns the list of clients that are in: who they are, for the console. What they are doing is the registry's to know.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::answer::{Row, text};
use crate::session::{
    registry::{Registry, Seen},
    route::Hints,
};

/// Who a client is. Kept once per session; the log and the choice of another node use it too.
#[derive(Debug)]
pub(crate) struct About {
    pub(crate) peer: String,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) hints: Hints,
    pub(crate) tls: bool,
    pub(crate) since: Instant,
}

/// Columns of SHOW CLIENTS: PgBouncer's where it has them.
pub(super) const CLIENTS: &[&str] = &[
    "type",
    "user",
    "database",
    "state",
    "addr",
    "remote_pid",
    "age_s",
    "tls",
    "application_name",
    "id",
];

type ByPid = BTreeMap<i32, Arc<About>>;

/// Clients by the process number that they were given.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    listed: Arc<Mutex<ByPid>>,
}

/// A client's place in the list; leaves it when dropped.
#[derive(Debug)]
pub(crate) struct Listed {
    pid: i32,
    listed: Arc<Mutex<ByPid>>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        lock(&self.listed).remove(&self.pid);
    }
}

fn lock(listed: &Mutex<ByPid>) -> MutexGuard<'_, ByPid> {
    // No code that can panic runs under this lock.
    listed.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Clients {
    /// Lists a client until the answer is dropped.
    pub(crate) fn list(&self, pid: i32, about: &Arc<About>) -> Listed {
        lock(&self.listed).insert(pid, Arc::clone(about));
        Listed {
            pid,
            listed: Arc::clone(&self.listed),
        }
    }

    /// Who has this process number.
    pub(crate) fn about(&self, pid: i32) -> Option<Arc<About>> {
        lock(&self.listed).get(&pid).cloned()
    }

    /// The process numbers of a database's clients, or of all.
    pub(super) fn of_database(&self, database: Option<&str>) -> Vec<i32> {
        let listed = lock(&self.listed);
        let wanted = listed
            .iter()
            .filter(|(_, about)| database.is_none_or(|database| about.database == database));
        wanted.map(|(pid, _)| *pid).collect()
    }

    /// Rows of SHOW CLIENTS.
    pub(super) fn rows(&self, registry: &Registry) -> Vec<Row> {
        let seen = registry.seen();
        let listed: Vec<_> = lock(&self.listed)
            .iter()
            .map(|(pid, about)| (*pid, Arc::clone(about)))
            .collect();
        let row = |(pid, about): (i32, Arc<About>)| {
            let now: Option<&Seen> = seen.get(&pid);
            vec![
                text("C"),
                text(&about.user),
                text(&about.database),
                now.map(|seen| seen.state.to_owned()),
                text(&about.peer),
                now.and_then(|seen| seen.server).map(|pid| pid.to_string()),
                text(&about.since.elapsed().as_secs()),
                super::answer::yes_no(about.tls),
                about.hints.application_name.as_deref().map(str::to_owned),
                text(&pid),
            ]
        };
        listed.into_iter().map(row).collect()
    }
}
