//! Owns the authentication of clients: where a user's secret comes from, which exchange is used, who is refused.
//!
//! The exchange itself is `tandem_wire`'s. Order of sources: the users file, `auth_query`, and with neither of
//! them the nodes' own `pg_authid` (pass-through).

pub(crate) mod control;
pub(crate) mod pass_through;
mod query;
mod rate_limit;
mod secret_cache;
mod users_file;

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tandem_wire::{
    Credentials, ErrorReport, Secret,
    auth::{AuthError, ClientIo, Method, Verifier, authenticate_client},
    startup::TlsInfo,
};

use crate::{
    config::{AuthConfig, AuthMethod},
    health::HealthBoard,
    node::Nodes,
};
use control::Control;
use query::AuthQuery;
use rate_limit::RateLimit;
use secret_cache::SecretCache;
use users_file::{Stamp, Users};

pub use users_file::UsersFileError;
pub(crate) use users_file::warn_if_open;

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

/// Why a client may not come in.
#[derive(Debug)]
pub(crate) enum Denied {
    /// Tell the client this and close.
    Report {
        /// For the client.
        report: Box<ErrorReport>,
        /// For the log, where it differs.
        reason: String,
    },
    /// The client went away; psql does, to ask its user for a password.
    Gone(std::io::Error),
}

impl Denied {
    fn report(report: ErrorReport, reason: impl Into<String>) -> Denied {
        Denied::Report {
            report: Box::new(report),
            reason: reason.into(),
        }
    }
}

/// Where secrets come from.
#[derive(Debug)]
enum Source {
    /// Nowhere: nobody needs one.
    None,
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

/// Decides who may come in, and as whom.
#[derive(Debug)]
pub(crate) struct Gate {
    method: AuthMethod,
    source: Source,
    control: Arc<Control>,
    health: Arc<HealthBoard>,
    rate_limit: Mutex<RateLimit>,
}

/// Who wants in.
#[derive(Debug)]
pub(crate) struct Applicant<'a> {
    /// The user named in the startup packet.
    pub(crate) user: &'a str,
    /// The source address; None for a unix socket.
    pub(crate) address: Option<IpAddr>,
    /// TLS, if it is used.
    pub(crate) tls: Option<&'a TlsInfo>,
}

impl Gate {
    /// Reads what must be read at the start.
    pub(crate) fn new(
        config: &AuthConfig,
        nodes: Nodes,
        health: Arc<HealthBoard>,
        database: &str,
        bound: Duration,
    ) -> Result<Gate, UsersFileError> {
        let source = match (&config.users_file, &config.query, config.method) {
            (Some(path), _, _) => {
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
            (None, Some(sql), _) => Source::Query {
                query: AuthQuery::new(sql),
                cache: SecretCache::default(),
            },
            (None, None, AuthMethod::Trust | AuthMethod::Cert) => Source::None,
            (None, None, AuthMethod::ScramSha256 | AuthMethod::Md5) => Source::PassThrough {
                cache: SecretCache::default(),
            },
        };
        let control = Arc::new(Control::new(nodes, database.to_owned(), bound));
        Ok(Gate {
            method: config.method,
            source,
            control,
            health,
            rate_limit: Mutex::new(RateLimit::default()),
        })
    }

    /// Compares the verifiers of all login roles, if they are what clients are checked against. Returns how many differ.
    pub(crate) async fn compare_verifiers(&self) -> usize {
        match self.source {
            Source::PassThrough { .. } => {
                pass_through::compare_all(&self.control, &self.candidates()).await
            }
            Source::None | Source::UsersFile(_) | Source::Query { .. } => 0,
        }
    }

    /// Authenticates a client. Sends everything up to, and without, AuthenticationOk. Returns what logs in to a node.
    pub(crate) async fn authenticate(
        &self,
        io: &mut ClientIo,
        applicant: &Applicant<'_>,
    ) -> Result<Credentials, Denied> {
        if let Some(address) = applicant.address
            && !self.rate_limit().allows(address, Instant::now())
        {
            return Err(Denied::report(
                ErrorReport::fatal("53400", "too many failed logins from this address")
                    .with_hint("Wait a few seconds."),
                "login rate limit",
            ));
        }
        // What the nodes fail to answer is not the client's fault.
        let lookup = self
            .lookup(applicant.user)
            .await
            .map_err(|error| refuse(applicant.user, &error))?;
        let attempt = self.attempt(io, applicant, &lookup).await;
        if attempt.is_err() {
            self.failed(applicant.address);
        }
        attempt
    }

    /// An applicant failed, or did not finish in time.
    pub(crate) fn failed(&self, address: Option<IpAddr>) {
        if let Some(address) = address {
            self.rate_limit().failed(address, Instant::now());
        }
    }

    async fn attempt(
        &self,
        io: &mut ClientIo,
        applicant: &Applicant<'_>,
        lookup: &Lookup,
    ) -> Result<Credentials, Denied> {
        let user = applicant.user;
        match self.method {
            AuthMethod::Trust => Ok(stored_credentials(lookup)),
            AuthMethod::Cert => {
                let name = applicant.tls.and_then(|tls| tls.client_cn.as_deref());
                if name != Some(user) {
                    let report = ErrorReport::fatal(
                        "28000",
                        format!("certificate authentication failed for user \"{user}\""),
                    );
                    let reason = format!("the certificate's common name is {name:?}");
                    return Err(Denied::report(report, reason));
                }
                Ok(stored_credentials(lookup))
            }
            AuthMethod::ScramSha256 | AuthMethod::Md5 => self.exchange(io, applicant, lookup).await,
        }
    }

    async fn exchange(
        &self,
        io: &mut ClientIo,
        applicant: &Applicant<'_>,
        lookup: &Lookup,
    ) -> Result<Credentials, Denied> {
        let user = applicant.user;
        let verifier = match lookup {
            Lookup::Secret(secret) => parse_secret(user, secret),
            Lookup::Unknown | Lookup::NoPassword | Lookup::Expired => None,
        };
        // As in PostgreSQL, the method md5 uses SCRAM for a user who has a SCRAM verifier.
        let method = match (self.method, &verifier) {
            (AuthMethod::Md5, Some(Verifier::Md5(_) | Verifier::Plain(_)) | None) => Method::Md5,
            _ => Method::Scram,
        };
        let usable = match (&method, &verifier) {
            (Method::Scram, Some(Verifier::Md5(_))) => {
                tracing::info!(
                    user,
                    "the user has an md5 hash; scram-sha-256 needs a SCRAM verifier"
                );
                None
            }
            _ => verifier.as_ref(),
        };
        let binding = applicant
            .tls
            .and_then(|tls| tls.endpoint_binding.as_deref());
        match authenticate_client(io, method, user, usable, binding).await {
            Ok(proven) => Ok(match verifier {
                // A password is good for every node, whatever its verifier there.
                Some(Verifier::Plain(password)) => Credentials::Password(password),
                _ => proven.credentials,
            }),
            Err(AuthError::Rejected) => {
                self.invalidate(user);
                Err(Denied::report(wrong_password(user), rejection(lookup)))
            }
            Err(AuthError::Protocol(what)) => Err(Denied::report(
                ErrorReport::fatal("08P01", what.clone()),
                what,
            )),
            Err(AuthError::Io(error)) => Err(Denied::Gone(error)),
        }
    }

    async fn lookup(&self, user: &str) -> Result<Lookup, LookupError> {
        if user.len() > NAME_BYTES_MAX {
            return Ok(Lookup::Unknown);
        }
        match &self.source {
            Source::None => Ok(Lookup::Unknown),
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
    pub(crate) fn invalidate(&self, user: &str) {
        match &self.source {
            Source::Query { cache, .. } | Source::PassThrough { cache } => cache.forget(user),
            Source::UsersFile(file) => file.reload_at_next_look(),
            Source::None => {}
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

    fn rate_limit(&self) -> std::sync::MutexGuard<'_, RateLimit> {
        self.rate_limit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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

/// What the stored secret is good for without an exchange.
fn stored_credentials(lookup: &Lookup) -> Credentials {
    let Lookup::Secret(secret) = lookup else {
        return Credentials::None;
    };
    match std::str::from_utf8(secret.expose()).map(Verifier::parse) {
        Ok(Ok(Verifier::Plain(password))) => Credentials::Password(password),
        Ok(Ok(Verifier::Md5(hash))) => Credentials::Md5Hash(hash),
        // A verifier alone proves nothing to a node.
        Ok(Ok(Verifier::Scram(_)) | Err(_)) | Err(_) => Credentials::None,
    }
}

fn parse_secret(user: &str, secret: &Secret) -> Option<Verifier> {
    let parsed = std::str::from_utf8(secret.expose())
        .ok()
        .map(Verifier::parse);
    match parsed {
        Some(Ok(verifier)) => Some(verifier),
        Some(Err(error)) => {
            tracing::warn!(user, %error, "the user's stored secret cannot be used");
            None
        }
        None => {
            tracing::warn!(user, "the user's stored secret is not UTF-8");
            None
        }
    }
}

/// PostgreSQL's own text: the client never learns why.
fn wrong_password(user: &str) -> ErrorReport {
    ErrorReport::fatal(
        "28P01",
        format!("password authentication failed for user \"{user}\""),
    )
}

fn rejection(lookup: &Lookup) -> &'static str {
    match lookup {
        Lookup::Unknown => "no such user",
        Lookup::NoPassword => "the user has no password",
        Lookup::Expired => "the password has expired",
        Lookup::Secret(_) => "the password is wrong",
    }
}

fn refuse(user: &str, error: &LookupError) -> Denied {
    let report = match error {
        LookupError::NoAnswer(_) => ErrorReport::fatal(
            "57P03",
            format!("user \"{user}\" cannot be authenticated now: no node could be asked"),
        )
        .with_hint("Tandem's log says why. Its role must be able to read pg_authid, or [auth] must name users_file or query."),
        LookupError::Differs(groups) => ErrorReport::fatal(
            "28000",
            format!("the password of role \"{user}\" is not the same on all nodes"),
        )
        .with_detail(format!(
            "Nodes that agree stand together: {}.",
            pass_through::groups_text(groups)
        ))
        .with_hint(pass_through::MEND),
    };
    Denied::report(report, error.to_string())
}
