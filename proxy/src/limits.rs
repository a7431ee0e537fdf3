//! Owns how many clients each user and each database may have.
//!
//! Only those with a limit are counted. The console does not count, so that somebody can look who is in.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tandem_wire::ErrorReport;

use crate::config::LimitsConfig;

/// Whose clients are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Database(String),
}

type Counts = HashMap<Subject, usize>;

/// Counts clients by user and by database.
#[derive(Debug)]
pub(crate) struct Limits {
    config: LimitsConfig,
    counts: Arc<Mutex<Counts>>,
}

/// A client that counts until this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    subjects: Vec<Subject>,
    counts: Arc<Mutex<Counts>>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        for subject in &self.subjects {
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
            config,
            counts: Arc::default(),
        }
    }

    /// Counts a client that is let in, unless its user or its database has as many as it may have. The texts are
    /// PostgreSQL's own.
    pub(crate) fn take(&self, user: &str, database: &str) -> Result<Counted, ErrorReport> {
        let limited = [
            (self.config.of_user(user), Subject::User(user.to_owned())),
            (
                self.config.of_database(database),
                Subject::Database(database.to_owned()),
            ),
        ];
        let mut counts = lock(&self.counts);
        for (limit, subject) in &limited {
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
        let subjects = limited.into_iter();
        let subjects: Vec<Subject> = subjects
            .filter_map(|(limit, subject)| limit.map(|_| subject))
            .collect();
        for subject in &subjects {
            *counts.entry(subject.clone()).or_default() += 1;
        }
        Ok(Counted {
            subjects,
            counts: Arc::clone(&self.counts),
        })
    }

    /// Clients of a user now, and at most, where it has a limit.
    pub(crate) fn of_user(&self, user: &str) -> Option<(usize, usize)> {
        let limit = self.config.of_user(user)?;
        Some((self.count(&Subject::User(user.to_owned())), limit))
    }

    /// Clients of a database now, and at most, where it has a limit.
    pub(crate) fn of_database(&self, database: &str) -> Option<(usize, usize)> {
        let limit = self.config.of_database(database)?;
        let count = self.count(&Subject::Database(database.to_owned()));
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
    fn who_is_refused_counts_nowhere() {
        let limits = limits();
        let _batch = limits.take("batch", "app").expect("the first");
        for _ in 0..5 {
            message(&limits, "batch", "reports");
        }
        assert_eq!(limits.of_database("reports"), Some((0, 2)));
    }
}
