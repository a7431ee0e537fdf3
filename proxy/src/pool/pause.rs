//! Owns PAUSE, RESUME and RECONNECT: which databases are paused, and what that means for their pools. With PgBouncer's meaning
//! (its manual, "Admin console").

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::watch;

use super::{Pool, Pools, Server, lock};

/// Which databases are paused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Paused {
    /// All, those of later included.
    pub(crate) all: bool,
    databases: BTreeSet<String>,
}

impl Paused {
    /// Whether this one is.
    pub(crate) fn covers(&self, database: &str) -> bool {
        self.all || self.databases.contains(database)
    }

    fn pause(&mut self, database: Option<&str>) {
        match database {
            Some(database) => _ = self.databases.insert(database.to_owned()),
            None => self.all = true,
        }
    }

    /// Whether it was paused by that name. Without a name everything goes on.
    fn resume(&mut self, database: Option<&str>) -> bool {
        match database {
            Some(database) => self.databases.remove(database),
            None => std::mem::take(self) != Paused::default(),
        }
    }
}

/// Closes what nobody uses.
fn close(idle: impl IntoIterator<Item = Box<Server>>) {
    idle.into_iter().for_each(Server::close);
}

impl Pools {
    /// Which databases are paused.
    pub(crate) fn paused(&self) -> watch::Ref<'_, Paused> {
        self.env.paused.borrow()
    }

    /// Whether there are pools of a database.
    pub(crate) fn has_database(&self, database: &str) -> bool {
        let pools = lock(&self.pools);
        pools.keys().any(|key| key.database == database)
    }

    fn of(&self, database: Option<&str>) -> Vec<Arc<Pool>> {
        let mut pools = self.all();
        pools.retain(|pool| database.is_none_or(|database| pool.key.database == database));
        pools
    }

    /// Gives no server of a database, or of any, to anybody from now on, and closes each as soon as it is free.
    pub(crate) fn pause(&self, database: Option<&str>) {
        // Under the lock under which pools are made, so that none is left out.
        let pools = lock(&self.pools);
        self.env.paused.send_modify(|paused| paused.pause(database));
        let covered = |pool: &&Arc<Pool>| self.paused().covers(&pool.key.database);
        let mut idle = Vec::new();
        for pool in pools.values().filter(covered) {
            idle.extend(lock(&pool.queue).pause());
        }
        drop(pools);
        close(idle);
    }

    /// Returns when no server of a database, or of any, is left, or when they are paused no more.
    pub(crate) async fn released(&self, database: Option<&str>) {
        let mut paused = self.env.paused.subscribe();
        loop {
            let lost = self.env.lost.notified();
            let mut lost = std::pin::pin!(lost);
            // Before the look, so that nothing is missed after it.
            lost.as_mut().enable();
            let is_paused = match database {
                Some(database) => paused.borrow_and_update().covers(database),
                None => paused.borrow_and_update().all,
            };
            let pools = self.of(database);
            if !is_paused
                || pools
                    .iter()
                    .all(|pool| lock(&pool.queue).counts().open == 0)
            {
                return;
            }
            tokio::select! {
                () = lost => {}
                // The sender lives as long as the pools.
                _ = paused.changed() => {}
            }
        }
    }

    /// Goes on. Answers whether it was paused.
    pub(crate) fn resume(&self, database: Option<&str>) -> bool {
        let pools = lock(&self.pools);
        let mut was_paused = false;
        self.env
            .paused
            .send_modify(|paused| was_paused = paused.resume(database));
        let mut resumed: Vec<Arc<Pool>> = pools.values().cloned().collect();
        resumed.retain(|pool| !self.paused().covers(&pool.key.database));
        for pool in &resumed {
            lock(&pool.queue).resume();
        }
        drop(pools);
        // Who waits gets servers.
        resumed.iter().for_each(Pool::tick);
        was_paused
    }

    /// Closes each server of a database, or of any, as soon as it is free. New ones are opened when they are needed.
    pub(crate) fn reconnect(&self, database: Option<&str>) {
        let now = self.env.started.elapsed();
        for pool in self.of(database) {
            let idle = lock(&pool.queue).renew(now);
            close(idle);
        }
    }
}

impl Pool {
    /// Whether its database is paused.
    pub(crate) fn is_paused(&self) -> bool {
        self.env.paused.borrow().covers(&self.key.database)
    }

    /// Returns when its database is not paused.
    pub(crate) async fn resumed(&self) {
        let mut paused = self.env.paused.subscribe();
        // The sender lives as long as the pool.
        let _ = paused
            .wait_for(|paused| !paused.covers(&self.key.database))
            .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_paused_by_its_name_or_with_all_others() {
        let mut paused = Paused::default();
        assert!(!paused.resume(None) && !paused.resume(Some("a")));
        paused.pause(Some("a"));
        assert!(paused.covers("a") && !paused.covers("b"));
        assert!(!paused.resume(Some("b")) && paused.resume(Some("a")));
        assert!(!paused.covers("a"));
        paused.pause(None);
        paused.pause(Some("a"));
        assert!(paused.covers("b"));
        assert!(paused.resume(None));
        assert_eq!(paused, Paused::default());
    }
}
