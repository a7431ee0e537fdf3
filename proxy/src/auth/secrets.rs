//! Owns where a user's secret comes from: the users file, `auth_query`, and with neither of them the nodes' own
//! `pg_authid` (pass-through).

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tandem_wire::Secret;

use super::{
    UsersFileError,
    control::Control,
    pass_through,
    query::AuthQuery,
    secret_cache::SecretCache,
    users_file::{self, Stamp, Users},
};
use crate::{
    config::{AuthConfig, AuthMethod},
    health::HealthBoard,
};

/// PostgreSQL's `NAMEDATALEN - 1`: no role has a longer name.
const NAME_BYTES_MAX: usize = 63;
/// How often the users file is looked at for a change.
const USERS_FILE_LOOK: Duration = Duration::from_secs(1);

/// What is known of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// No such user.
    Unknown,
    /// The user has no password and cannot log in with one.
    NoPassword,
    /// The password is past its `VALID UNTIL`.
    Expired,
    /// The verifier, hash or password.
    Secret(Secret),
    /// The same, of a role that may not log in.
    NoLogin(Secret),
}

/// Why nothing could be learnt of a user.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum LookupError {
    /// No node answered; each with its reason.
    #[error("no node could be asked for the user's secret: {0}")]
    NoAnswer(String),
    /// The nodes do not agree; groups that agree among each other.
    #[error("the role's verifier differs between nodes: {}", pass_through::groups_text(.0))]
    Differs(Vec<Vec<String>>),
}

/// Where secrets come from.
#[derive(Debug)]
enum Source {
    UsersFile(UsersFile),
    Query {
        query: AuthQuery,
        cache: SecretCache,
    },
    PassThrough {
        cache: SecretCache,
    },
}

#[derive(Debug)]
struct UsersFile {
    path: PathBuf,
    users: ArcSwap<Users>,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    stamp: Option<Stamp>,
    looked: Instant,
}

/// Knows, or asks, what users are checked against.
#[derive(Debug)]
pub(super) struct Secrets {
    source: Source,
    control: Control,
    health: Arc<HealthBoard>,
}

impl Secrets {
    /// Reads the users file, where there is one.
    pub(super) fn new(
        config: &AuthConfig,
        control: Control,
        health: Arc<HealthBoard>,
    ) -> Result<Secrets, UsersFileError> {
        let source = match (&config.users_file, &config.query) {
            (Some(path), _) => {
                let (users, stamp) = users_file::load(path)?;
                Source::UsersFile(UsersFile {
                    path: path.clone(),
                    users: ArcSwap::from_pointee(users),
                    seen: Mutex::new(Seen {
                        stamp: Some(stamp),
                        looked: Instant::now(),
                    }),
                })
            }
            (None, Some(sql)) => Source::Query {
                query: AuthQuery::new(sql),
                cache: SecretCache::default(),
            },
            (None, None) => Source::PassThrough {
                cache: SecretCache::default(),
            },
        };
        Ok(Secrets {
            source,
            control,
            health,
        })
    }

    /// Compares the verifiers of all login roles, if they are what clients are checked against. Returns how many differ.
    pub(super) async fn compare_verifiers(&self) -> usize {
        match self.source {
            Source::PassThrough { .. } => {
                pass_through::compare_all(&self.control, &self.candidates()).await
            }
            Source::UsersFile(_) | Source::Query { .. } => 0,
        }
    }

    /// The names in the users file, where there is one.
    pub(super) async fn listed_users(&self) -> Vec<String> {
        match &self.source {
            Source::UsersFile(file) => {
                file.refresh().await;
                file.users.load().keys().cloned().collect()
            }
            Source::Query { .. } | Source::PassThrough { .. } => Vec::new(),
        }
    }

    /// What is known of a user who is to prove itself by `method`. Where the method needs no secret, the nodes are not
    /// asked for one.
    pub(super) async fn lookup(
        &self,
        user: &str,
        method: AuthMethod,
    ) -> Result<Lookup, LookupError> {
        if user.len() > NAME_BYTES_MAX {
            return Ok(Lookup::Unknown);
        }
        match &self.source {
            Source::PassThrough { .. } if !method.needs_secret() => Ok(Lookup::Unknown),
            Source::UsersFile(file) => {
                file.refresh().await;
                Ok(file
                    .users
                    .load()
                    .get(user)
                    .map_or(Lookup::Unknown, |secret| {
                        if secret.expose().is_empty() {
                            Lookup::NoPassword
                        } else {
                            Lookup::Secret(secret.clone())
                        }
                    }))
            }
            Source::Query { query, cache } => {
                let candidates = self.candidates();
                cache
                    .get(user, query.lookup(&self.control, &candidates, user))
                    .await
            }
            Source::PassThrough { cache } => {
                let candidates = self.candidates();
                cache
                    .get(user, pass_through::lookup(&self.control, &candidates, user))
                    .await
            }
        }
    }

    /// What is known of a user turned out to be wrong, or perhaps out of date.
    pub(super) fn invalidate(&self, user: &str) {
        match &self.source {
            Source::Query { cache, .. } | Source::PassThrough { cache } => cache.forget(user),
            Source::UsersFile(file) => file.reload_at_next_look(),
        }
    }

    /// Nodes worth asking; all of them when none is known to be up.
    fn candidates(&self) -> Vec<usize> {
        let all = 0..self.control.nodes().len();
        let usable: Vec<usize> = all
            .clone()
            .filter(|node| self.health.usable(*node))
            .collect();
        if usable.is_empty() {
            all.collect()
        } else {
            usable
        }
    }
}

impl UsersFile {
    /// Reads the file again when it has changed. A file that cannot be read leaves the users as they are.
    async fn refresh(&self) {
        let known = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.looked.elapsed() < USERS_FILE_LOOK {
                return;
            }
            seen.looked = Instant::now();
            seen.stamp
        };
        let path = self.path.clone();
        let look = move || match users_file::stamp(&path) {
            Ok(stamp) if Some(stamp) == known => None,
            _ => Some(users_file::load(&path)),
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(Some(Ok((users, stamp)))) => {
                tracing::info!(file = %self.path.display(), users = users.len(), "users file reloaded");
                self.users.store(Arc::new(users));
                self.seen
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .stamp = Some(stamp);
            }
            Ok(Some(Err(error))) => {
                tracing::warn!(%error, "the users known before stay in use");
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the users file was not looked at"),
        }
    }

    /// Somebody failed: perhaps the file has just changed.
    fn reload_at_next_look(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(earlier) = Instant::now().checked_sub(USERS_FILE_LOOK) {
            seen.looked = seen.looked.min(earlier);
        }
    }
}
