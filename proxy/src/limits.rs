//! Owns how many clients each user and each database may have.
//!
//! Everybody is counted, because a limit may come later; who is in stays in when it does. The console does not count, so that
//! somebody can look who is in.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use tandem_wire::ErrorReport;

use crate::config::LimitsConfig;

/// Whose clients are counted. Those of one share its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    User(Arc<str>),
    Database(Arc<str>),
}

type Counts = HashMap<Subject, usize>;

/// Counts clients by user and by database.
#[derive(Debug)]
pub(crate) struct Limits {
    config: ArcSwap<LimitsConfig>,
    counts: Arc<Mutex<Counts>>,
}

/// A client that counts until this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    subjects: Option<[Subject; 2]>,
    counts: Arc<Mutex<Counts>>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        for subject in self.subjects.iter().flatten() {
            match counts.get_mut(subject) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(counts.remove(subject)),
            }
        }
    }
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    // No code that can panic runs under this lock.
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Limits {
    pub(crate) fn new(config: LimitsConfig) -> Limits {
        Limits {
            config: ArcSwap::from_pointee(config),
            counts: Arc::default(),
        }
    }

    /// Other limits, for those who come from now on.
    pub(crate) fn set(&self, config: LimitsConfig) {
        self.config.store(Arc::new(config));
    }

    /// Counts a client that is let in, unless its user or its database has as many as it may have. The texts are
    /// PostgreSQL's own.
    pub(crate) fn take(&self, user: &str, database: &str) -> Result<Counted, ErrorReport> {
        let config = self.config.load();
        let limits = [config.of_user(user), config.of_database(database)];
        let subjects = [
            Subject::User(user.into()),
            Subject::Database(database.into()),
        ];
        let mut counts = lock(&self.counts);
        for (limit, subject) in limits.iter().zip(&subjects) {
            let Some(limit) = *limit else { continue };
            if counts.get(subject).copied().unwrap_or(0) >= limit {
                let message = match subject {
                    Subject::User(name) => format!("too many connections for role \"{name}\""),
                    Subject::Database(name) => {
                        format!("too many connections for database \"{name}\"")
                    }
                };
                let hint = format!("Tandem's [limits] allow {limit}.");
                return Err(ErrorReport::fatal("53300", message).with_hint(hint));
            }
        }
        let subjects = subjects.map(|subject| {
            let known = counts
                .get_key_value(&subject)
                .map(|(known, _)| known.clone());
            let subject = known.unwrap_or(subject);
            *counts.entry(subject.clone()).or_default() += 1;
            subject
        });
        Ok(Counted {
            subjects: Some(subjects),
            counts: Arc::clone(&self.counts),
        })
    }

    /// Clients of a user now, and at most, where it has a limit.
    pub(crate) fn of_user(&self, user: &str) -> Option<(usize, usize)> {
        let limit = self.config.load().of_user(user)?;
        Some((self.count(&Subject::User(user.into())), limit))
    }

    /// Clients of a database now, and at most, where it has a limit.
    pub(crate) fn of_database(&self, database: &str) -> Option<(usize, usize)> {
        let limit = self.config.load().of_database(database)?;
        let count = self.count(&Subject::Database(database.into()));
        Some((count, limit))
    }

    fn count(&self, subject: &Subject) -> usize {
        lock(&self.counts).get(subject).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        let of = |name: &str, limit| HashMap::from([(name.to_owned(), limit)]);
        Limits::new(LimitsConfig {
            clients_per_user: None,
            clients_per_database: Some(3),
            users: of("batch", 1),
            databases: of("reports", 2),
        })
    }

    fn message(limits: &Limits, user: &str, database: &str) -> String {
        let refused = limits.take(user, database).expect_err("refused");
        refused.message
    }

    #[test]
    fn users_and_databases_have_limits_of_their_own_and_places_come_back() {
        let limits = limits();
        let batch = limits.take("batch", "app").expect("the first");
        assert_eq!(
            message(&limits, "batch", "other"),
            "too many connections for role \"batch\""
        );
        let others: Vec<_> = (0..2)
            .map(|_| limits.take("app", "app").expect("room"))
            .collect();
        assert_eq!(
            message(&limits, "app", "app"),
            "too many connections for database \"app\""
        );
        assert_eq!(limits.of_database("app"), Some((3, 3)));
        assert_eq!(limits.of_user("batch"), Some((1, 1)));
        assert_eq!(limits.of_user("app"), None);
        drop(batch);
        let again = limits.take("batch", "app").expect("a place came back");
        drop((again, others));
        let reports: Vec<_> = (0..2).map(|_| limits.take("app", "reports")).collect();
        assert_eq!(
            message(&limits, "x", "reports"),
            "too many connections for database \"reports\""
        );
        drop(reports);
        assert!(
            lock(&limits.counts).is_empty(),
            "nothing is kept of who is gone"
        );
    }

    #[test]
    fn a_limit_that_comes_later_counts_those_who_are_in() {
        let limits = limits();
        let inside: Vec<_> = (0..2)
            .map(|_| limits.take("app", "x").expect("room"))
            .collect();
        limits.set(LimitsConfig {
            clients_per_user: Some(2),
            ..LimitsConfig::default()
        });
        assert_eq!(limits.of_user("app"), Some((2, 2)));
        message(&limits, "app", "x");
        drop(inside);
        limits.take("app", "x").expect("room again");
    }

    #[test]
    fn who_is_refused_counts_nowhere() {
        let limits = limits();
        let _batch = limits.take("batch", "app").expect("the first");
        for _ in 0..5 {
            message(&limits, "batch", "reports");
        }
        assert_eq!(limits.of_database("reports"), Some((0, 2)));
    }
}
