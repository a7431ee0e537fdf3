//! Owns the authentication of clients: where a user's secret comes from, which exchange is used, who is refused.
//!
//! The exchange itself is `tandem_wire`'s. Order of sources: the users file, `auth_query`, and with neither of
//! them the nodes' own `pg_authid` (pass-through).

pub(crate) mod control;
mod hba;
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
use hba::{Access, Arrival, Certificate};
use query::AuthQuery;
use rate_limit::RateLimit;
use secret_cache::SecretCache;
use users_file::{Stamp, Users};

pub use hba::{HostRule, HostRules, TlsOffer};
pub(crate) use hba::{parse_host_rule, parse_host_rules};
pub use users_file::UsersFileError;
pub(crate) use users_file::{load as read_users_file, warn_if_open};

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
    rules: ArcSwap<HostRules>,
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
    /// The database named there.
    pub(crate) database: &'a str,
    /// The source address; None for a unix socket.
    pub(crate) address: Option<IpAddr>,
    /// TLS, if it is used.
    pub(crate) tls: Option<&'a TlsInfo>,
}

/// Who is let in.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// What logs in to a node as the user.
    pub(crate) credentials: Credentials,
    /// How the client has proved that it is the user.
    pub(crate) method: AuthMethod,
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
        let control = Arc::new(Control::new(nodes, database.to_owned(), bound));
        Ok(Gate {
            rules: ArcSwap::from_pointee(config.rules.clone()),
            source,
            control,
            health,
            rate_limit: Mutex::new(RateLimit::default()),
        })
    }

    /// Compares the verifiers of all login roles, if they are what clients are checked against. Returns how many differ.
    pub(crate) async fn compare_verifiers(&self) -> usize {
        match self.source {
            Source::PassThrough { .. } if self.rules.load().need_secrets() => {
                pass_through::compare_all(&self.control, &self.candidates()).await
            }
            Source::PassThrough { .. } | Source::UsersFile(_) | Source::Query { .. } => 0,
        }
    }

    /// The host rules as they are now.
    pub(crate) fn rules(&self) -> Arc<HostRules> {
        self.rules.load_full()
    }

    /// Replaces the host rules; answers whether they are others than before. Who is in stays in.
    pub(crate) fn set_rules(&self, rules: HostRules) -> bool {
        let rules = Arc::new(rules);
        self.rules.swap(Arc::clone(&rules)) != rules
    }

    /// The names in the users file, where there is one.
    pub(crate) async fn listed_users(&self) -> Vec<String> {
        match &self.source {
            Source::UsersFile(file) => {
                file.refresh().await;
                file.users.load().keys().cloned().collect()
            }
            Source::Query { .. } | Source::PassThrough { .. } => Vec::new(),
        }
    }

    /// Authenticates a client. Sends everything up to, and without, AuthenticationOk. Returns what logs in to a node.
    pub(crate) async fn authenticate(
        &self,
        io: &mut ClientIo,
        applicant: &Applicant<'_>,
    ) -> Result<Credentials, Denied> {
        let admitted = self.admit(io, applicant).await?;
        Ok(admitted.credentials)
    }

    /// As [`Gate::authenticate`]; answers also how the client has proved who it is.
    pub(crate) async fn admit(
        &self,
        io: &mut ClientIo,
        applicant: &Applicant<'_>,
    ) -> Result<Admitted, Denied> {
        if let Some(address) = applicant.address
            && !self.rate_limit().allows(address, Instant::now())
        {
            return Err(Denied::report(
                ErrorReport::fatal("53400", "too many failed logins from this address")
                    .with_hint("Wait a few seconds."),
                "login rate limit",
            ));
        }
        // Whom the rules keep away is told at once, and costs no node a question.
        let (method, certificate) = self.expected(io, applicant)?;
        // What the nodes fail to answer is not the client's fault.
        let lookup = match (&self.source, method.needs_secret()) {
            (Source::PassThrough { .. }, false) => Lookup::Unknown,
            _ => self
                .lookup(applicant.user)
                .await
                .map_err(|error| refuse(applicant.user, &error))?,
        };
        let attempt = self
            .attempt(io, applicant, method, certificate, &lookup)
            .await;
        if attempt.is_err() {
            self.failed(applicant.address);
        }
        Ok(Admitted {
            credentials: attempt?,
            method,
        })
    }

    /// What the host rules ask of an applicant.
    fn expected(
        &self,
        io: &ClientIo,
        applicant: &Applicant<'_>,
    ) -> Result<(AuthMethod, Certificate), Denied> {
        let local = io.stream.tcp().and_then(|tcp| tcp.local_addr().ok());
        let arrival = Arrival {
            user: applicant.user,
            database: applicant.database,
            address: applicant.address,
            local_address: local.map(|address| address.ip()),
            tls: applicant.tls.is_some(),
        };
        let rules = self.rules.load();
        let rule = rules.decide(&arrival);
        match rule.map(HostRule::access) {
            Some(Access::Prove(method)) => Ok((
                method,
                rule.map_or(Certificate::NotAsked, HostRule::certificate),
            )),
            Some(Access::Reject) => Err(Denied::report(
                ErrorReport::fatal("28000", format!("a host rule rejects {arrival}")),
                rule.map_or_else(String::new, |rule| {
                    format!("host rule {} (`{}`) rejects it", rule.line, rule.text)
                }),
            )),
            None => Err(Denied::report(
                ErrorReport::fatal("28000", format!("no host rule for {arrival}")),
                "no host rule matches",
            )),
        }
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
        method: AuthMethod,
        certificate: Certificate,
        lookup: &Lookup,
    ) -> Result<Credentials, Denied> {
        if certificate != Certificate::NotAsked && io.stream.peer_certificate().is_none() {
            let report =
                ErrorReport::fatal("28000", "connection requires a valid client certificate");
            return Err(Denied::report(
                report,
                "the client has shown no certificate",
            ));
        }
        let credentials = match method {
            AuthMethod::Trust | AuthMethod::Cert => stored_credentials(lookup),
            AuthMethod::ScramSha256 | AuthMethod::Md5 => {
                self.exchange(io, applicant, method, lookup).await?
            }
        };
        if method == AuthMethod::Cert || certificate == Certificate::OfUser {
            certificate_names(applicant)?;
        }
        Ok(credentials)
    }

    async fn exchange(
        &self,
        io: &mut ClientIo,
        applicant: &Applicant<'_>,
        method: AuthMethod,
        lookup: &Lookup,
    ) -> Result<Credentials, Denied> {
        let user = applicant.user;
        let verifier = match lookup {
            Lookup::Secret(secret) | Lookup::NoLogin(secret) => parse_secret(user, secret),
            Lookup::Unknown | Lookup::NoPassword | Lookup::Expired => None,
        };
        // As in PostgreSQL, the method md5 uses SCRAM for a user who has a SCRAM verifier.
        let method = match (method, &verifier) {
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
            // As PostgreSQL: only who has the password learns that the role may not log in.
            Ok(_) if matches!(lookup, Lookup::NoLogin(_)) => Err(Denied::report(
                ErrorReport::fatal(
                    "28000",
                    format!("role \"{user}\" is not permitted to log in"),
                ),
                "the role may not log in",
            )),
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

/// Whether the certificate that the client has shown is its user's.
fn certificate_names(applicant: &Applicant<'_>) -> Result<(), Denied> {
    let user = applicant.user;
    let name = applicant.tls.and_then(|tls| tls.client_cn.as_deref());
    if name == Some(user) {
        return Ok(());
    }
    let report = ErrorReport::fatal(
        "28000",
        format!("certificate authentication failed for user \"{user}\""),
    );
    let reason = format!("the certificate's common name is {name:?}");
    Err(Denied::report(report, reason))
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
        Lookup::Secret(_) | Lookup::NoLogin(_) => "the password is wrong",
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
