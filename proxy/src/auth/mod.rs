//! Owns the authentication of clients: what the host rules ask, which exchange is used, who is refused.
//!
//! The exchange itself is `tandem_wire`'s; where a user's secret comes from is in `secrets.rs`.

pub(crate) mod control;
mod hba;
pub(crate) mod pass_through;
mod query;
mod rate_limit;
mod secret_cache;
mod secrets;
mod users_file;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use arc_swap::ArcSwap;
use tandem_wire::{
    Credentials, ErrorReport, Secret,
    auth::{AuthError, ClientIo, Method, Verifier, authenticate_client},
    startup::TlsInfo,
};

use crate::{
    bound::Bound,
    config::{AuthConfig, AuthMethod},
    health::HealthBoard,
    node::Nodes,
};
use control::Control;
use hba::{Access, Arrival, Certificate};
use rate_limit::RateLimit;
use secrets::Secrets;

pub use hba::{HostRule, HostRules, TlsOffer};
pub(crate) use hba::{parse_host_rule, parse_host_rules};
pub(crate) use secrets::{Lookup, LookupError};
pub use users_file::UsersFileError;
pub(crate) use users_file::{load as read_users_file, warn_if_open};

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

/// Decides who may come in, and as whom.
#[derive(Debug)]
pub(crate) struct Gate {
    rules: ArcSwap<HostRules>,
    secrets: Secrets,
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
        bound: Bound,
    ) -> Result<Gate, UsersFileError> {
        let control = Control::new(nodes, database.to_owned(), bound);
        Ok(Gate {
            rules: ArcSwap::from_pointee(config.rules.clone()),
            secrets: Secrets::new(config, control, health)?,
            rate_limit: Mutex::new(RateLimit::default()),
        })
    }

    /// Compares the verifiers of all login roles, if they are what clients are checked against. Returns how many differ.
    pub(crate) async fn compare_verifiers(&self) -> usize {
        match self.rules.load().need_secrets() {
            true => self.secrets.compare_verifiers().await,
            false => 0,
        }
    }

    /// The host rules as they are now.
    pub(crate) fn rules(&self) -> Arc<HostRules> {
        self.rules.load_full()
    }

    /// Replaces the host rules. Who is in stays in.
    pub(crate) fn set_rules(&self, rules: HostRules) {
        self.rules.store(Arc::new(rules));
    }

    /// The names in the users file, where there is one.
    pub(crate) async fn listed_users(&self) -> Vec<String> {
        self.secrets.listed_users().await
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
        let lookup = self
            .secrets
            .lookup(applicant.user, method)
            .await
            .map_err(|error| refuse(applicant.user, &error))?;
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

    /// What is known of a user turned out to be wrong, or perhaps out of date.
    pub(crate) fn invalidate(&self, user: &str) {
        self.secrets.invalidate(user);
    }

    fn rate_limit(&self) -> std::sync::MutexGuard<'_, RateLimit> {
        self.rate_limit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
