//! Owns the list of clients that are in: who they are, for the console. What they are doing is the registry's to know.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::answer::{Row, text};
use crate::session::{
    registry::{Registry, Seen},
    route::Hints,
};

/// So many kinds of clients are kept before those that nobody is of any more are looked for.
const KINDS_MIN: usize = 64;

/// A client. Kept once per session; the log and the choice of another node use it too.
#[derive(Debug)]
pub(crate) struct About {
    pub(crate) peer: Box<str>,
    pub(crate) who: Arc<Who>,
    pub(crate) tls: bool,
    pub(crate) since: Instant,
}

/// What many clients have in common; those who do share it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Who {
    pub(crate) user: Box<str>,
    pub(crate) database: Box<str>,
    pub(crate) hints: Hints,
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
    kinds: Mutex<Kinds>,
}

#[derive(Debug, Default)]
struct Kinds {
    known: HashSet<Arc<Who>>,
    /// So many, and those that nobody is of any more go.
    full: usize,
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

    /// The same as every other client has who is so.
    pub(crate) fn who(&self, who: Who) -> Arc<Who> {
        // No code that can panic runs under this lock.
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kinds.known.get(&who) {
            return Arc::clone(known);
        }
        if kinds.known.len() >= kinds.full {
            kinds.known.retain(|known| Arc::strong_count(known) > 1);
            kinds.full = kinds.known.len().saturating_mul(2).max(KINDS_MIN);
        }
        let who = Arc::new(who);
        kinds.known.insert(Arc::clone(&who));
        who
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
            .filter(|(_, about)| database.is_none_or(|database| *about.who.database == *database));
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
                text(&about.who.user),
                text(&about.who.database),
                now.map(|seen| seen.state.to_owned()),
                text(&about.peer),
                now.and_then(|seen| seen.server).map(|pid| pid.to_string()),
                text(&about.since.elapsed().as_secs()),
                super::answer::yes_no(about.tls),
                about
                    .who
                    .hints
                    .application_name
                    .as_deref()
                    .map(str::to_owned),
                text(&pid),
            ]
        };
        listed.into_iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(user: usize) -> Who {
        Who {
            user: user.to_string().into(),
            database: "app".into(),
            hints: Hints::default(),
        }
    }

    #[test]
    fn clients_who_are_alike_share_what_is_known_of_them() {
        let clients = Clients::default();
        let first = clients.who(who(1));
        assert!(Arc::ptr_eq(&first, &clients.who(who(1))));
        assert!(!Arc::ptr_eq(&first, &clients.who(who(2))));
    }

    #[test]
    fn what_nobody_is_any_more_is_not_kept_for_ever() {
        let clients = Clients::default();
        let stays = clients.who(who(0));
        for user in 1..10_000 {
            clients.who(who(user));
        }
        let known = clients.kinds.lock().expect("no panic").known.len();
        assert!(known <= KINDS_MIN, "{known}");
        assert!(Arc::ptr_eq(&stays, &clients.who(who(0))));
    }
}
