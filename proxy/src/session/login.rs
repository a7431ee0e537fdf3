//! Owns a client's way from the startup packet to its first ReadyForQuery.

use std::{fmt::Write as _, future::poll_fn, net::IpAddr, sync::Arc, task::Poll, time::Duration};

use bytes::BytesMut;
use tandem_wire::{
    ConnectError, Credentials, ErrorReport,
    auth::ClientIo,
    encode,
    startup::{Startup, TlsInfo},
};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Place, Shared,
    ask::ask,
    checkout::is_alive,
    parameters::Parameters,
    profile::Profile,
    registry::Registered,
    report,
    route::{self, Chosen, Hints},
    turning_away,
};
use crate::{
    auth::{Applicant, Denied},
    config::PoolMode,
    health::Verdict,
    node::CountedSession,
    pool::{Key, Kind, Known, Params, Pool, Server, WaitError, release},
};

/// Cancel keys in protocol 3.2 are as long as PostgreSQL 18's; in 3.0 they have four bytes.
const LONG_KEY: usize = 32;

/// How long one node may take to let a client in while another is there to be asked.
const HOP_MAX: Duration = Duration::from_millis(1500);

/// A client on its way in.
pub(super) struct Login<'a> {
    pub(super) shared: &'a Shared,
    pub(super) startup: &'a Startup,
    pub(super) tls: Option<&'a TlsInfo>,
    pub(super) peer: &'a str,
    pub(super) address: Option<IpAddr>,
}

/// A client who is in.
pub(super) struct Welcome {
    pub(super) pool: Arc<Pool>,
    /// The one that the client keeps.
    pub(super) server: Option<Box<Server>>,
    pub(super) profile: Profile,
    pub(super) hints: Hints,
    pub(super) registered: Registered,
    pub(super) counted: CountedSession,
    pub(super) place: Place,
}

/// A pool that takes the client.
struct Found {
    pool: Arc<Pool>,
    server: Option<Box<Server>>,
    profile: Profile,
    hints: Hints,
    counted: CountedSession,
}

/// What comes of trying a pool.
enum Entered {
    /// The client is in, perhaps with a server that it keeps.
    In(Option<Box<Server>>, Profile),
    /// These of its settings are for another pool: its servers say them when they log in.
    Apart(Arc<[String]>),
}

/// A login that failed.
pub(super) struct Ended {
    /// Whole messages for the client.
    pub(super) last_words: BytesMut,
    /// For the log.
    pub(super) reason: String,
}

impl Ended {
    fn new(report: &ErrorReport) -> Ended {
        Ended {
            last_words: report::bytes(report),
            reason: report.message.clone(),
        }
    }

    fn silent(reason: impl Into<String>) -> Ended {
        Ended {
            last_words: BytesMut::new(),
            reason: reason.into(),
        }
    }
}

impl Login<'_> {
    /// Authenticates, finds a node, connects to it and greets the client.
    pub(super) async fn run(&self, io: &mut ClientIo, deadline: Instant) -> Result<Welcome, Ended> {
        let steps = self.steps(io);
        let outcome = tokio::select! {
            outcome = timeout_at(deadline, steps) => outcome,
            () = turning_away(self.shared) => return Err(Ended::new(&report::shutting_down())),
        };
        let (place, found) = match outcome {
            Ok(outcome) => outcome?,
            Err(_) => {
                // Who waits for the end of a pause has guessed nothing.
                let paused = self.shared.pools.paused().covers(&self.startup.database);
                if !paused {
                    self.shared.gate.failed(self.address);
                }
                return Err(Ended::new(&report::login_timeout()));
            }
        };
        let greeted = timeout_at(deadline, self.greet(io, place, found)).await;
        greeted.unwrap_or_else(|_| {
            Err(Ended::silent(
                "the client did not take the greeting in time",
            ))
        })
    }

    async fn steps(&self, io: &mut ClientIo) -> Result<(Place, Found), Ended> {
        if self
            .startup
            .replication
            .as_deref()
            .is_some_and(wants_replication)
        {
            return Err(Ended::new(&report::replication_refused()));
        }
        let clients = &self.shared.clients;
        let place = clients
            .take()
            .ok_or_else(|| Ended::new(&report::too_many_clients(clients.max())))?;
        let applicant = Applicant {
            user: &self.startup.user,
            database: &self.startup.database,
            address: self.address,
            tls: self.tls,
        };
        let credentials = self
            .shared
            .gate
            .authenticate(io, &applicant)
            .await
            .map_err(|denied| match denied {
                Denied::Report { report, reason } => Ended {
                    last_words: report::bytes(&report),
                    reason,
                },
                Denied::Gone(error) => Ended::silent(format!("the client went away: {error}")),
            })?;
        let counted = self
            .shared
            .limits
            .take(&self.startup.user, &self.startup.database)
            .map_err(|report| Ended::new(&report))?;
        let place = place.counted(counted);
        Ok((place, self.connect(&credentials).await?))
    }

    /// Comes to a node's pool: of the node that the rules choose, or the next one while nobody serves there.
    async fn connect(&self, credentials: &Credentials) -> Result<Found, Ended> {
        let shared = self.shared;
        let (user, database) = (&self.startup.user, &self.startup.database);
        let mode = shared.settings.load().config.proxy.pool.mode;
        let mut parameters = Parameters::new(&self.startup.params, self.address, mode);
        let limit = shared.connect_timeout.get();
        // Who waits in vain is told by the choice below.
        let _ = timeout(limit, shared.health.first_verdicts()).await;
        if shared.nodes.len() > 1 && !shared.settings.load().config.rules.affinities.is_empty() {
            // Without it the types of keys are not known, and they could have other homes.
            let _ = timeout(limit, shared.router.catalogs.first()).await;
        }
        let any_usable = (0..shared.nodes.len()).any(|node| shared.health.usable(node));
        if shared.nodes.len() > 1 && mode == PoolMode::Transaction && any_usable {
            // Without it clients could be told OIDs of several nodes.
            let _ = timeout(limit, shared.router.identities.first()).await;
        }
        let mut unusable = route::unusable(shared);
        let mut tried = String::new();
        while let Some(Chosen { node: index, why }) =
            route::choose(shared, user, database, &parameters.hints, &unusable)
        {
            let Some(node) = shared.nodes.get(index) else {
                break;
            };
            // Counted from now on, so that many who come at once do not all choose the same node.
            let counted = node.count_session();
            let another = unusable.iter().filter(|unusable| !**unusable).count() > 1;
            let (pool, outcome) = loop {
                let key = Key {
                    node: index,
                    database: database.clone(),
                    user: user.clone(),
                    params: Arc::clone(&parameters.login),
                };
                let pool = shared.pools.get(key, credentials);
                match self.enter(&pool, another, mode, &parameters.settings).await {
                    Ok(Entered::Apart(names)) => parameters.set_apart(&names),
                    Ok(Entered::In(server, profile)) => break (pool, Ok((server, profile))),
                    Err(error) => break (pool, Err(error)),
                }
            };
            let error = match outcome {
                Ok((server, profile)) => {
                    tracing::debug!(
                        peer = self.peer,
                        user,
                        database,
                        node = node.name(),
                        why,
                        "session begins"
                    );
                    return Ok(Found {
                        pool,
                        server,
                        profile,
                        hints: parameters.hints,
                        counted,
                    });
                }
                Err(error) => error,
            };
            match &error {
                Some(WaitError::Open(open)) if open.verdict == Verdict::Answer => {
                    if matches!(&open.error, ConnectError::Server(error) if error.code == "28P01") {
                        // The verifier that Tandem checked against is perhaps out of date.
                        shared.gate.invalidate(user);
                    }
                    return Err(answered(node.name(), &open.error));
                }
                Some(WaitError::Open(open)) if open.verdict == Verdict::Ours => {
                    tracing::error!(error = %open, "cannot open a connection to a node");
                    return Err(Ended::new(&report::out_of_descriptors()));
                }
                Some(WaitError::Open(_) | WaitError::Left) => {}
                // It works, for others.
                Some(error @ WaitError::TooLong(_)) if pool.has_served() => {
                    return Err(Ended::new(&report::no_server(node.name(), error)));
                }
                Some(WaitError::TooLong(_)) | None => shared.health.evidence(index),
            }
            let error = error.map_or_else(
                || "no connection in time".to_owned(),
                |error| error.to_string(),
            );
            tracing::info!(
                node = node.name(),
                error,
                "connect failed, trying the next node"
            );
            let _ = write!(tried, "{}: {error}; ", node.name());
            if let Some(unusable) = unusable.get_mut(index) {
                *unusable = true;
            }
        }
        route::add_problems(shared, &mut tried);
        tracing::warn!(user, tried, "no node can take a session");
        Err(Ended::new(&report::no_node(
            &shared.settings.load().config.cluster,
            tried.trim_end_matches([';', ' ']),
        )))
    }

    /// What the client is greeted with, and the server that it keeps. The first client with its settings waits until a server
    /// has said what it makes of them. An error without a reason: it took too long, or a server was lost.
    async fn enter(
        &self,
        pool: &Arc<Pool>,
        another: bool,
        mode: PoolMode,
        settings: &Params,
    ) -> Result<Entered, Option<WaitError>> {
        if mode == PoolMode::Session {
            let server = self.first_server(pool, another).await?;
            let Known::Begins(profile) = pool.know(settings) else {
                return Err(None);
            };
            return Ok(Entered::In(Some(server), profile));
        }
        loop {
            match pool.know(settings) {
                Known::Begins(profile) => return Ok(Entered::In(None, profile)),
                Known::Refused(names) => return Ok(Entered::Apart(names)),
                Known::Nothing => release(self.first_server(pool, another).await?),
                Known::Ask { .. } => {
                    pool.resumed().await;
                    // In turn, as for a statement.
                    let mut server = pool.server().await?;
                    if !poll_fn(|cx| Poll::Ready(is_alive(cx, &mut server))).await {
                        continue;
                    }
                    // Somebody else may have asked meanwhile.
                    let Known::Ask { kind, reported } = pool.know(settings) else {
                        release(server);
                        continue;
                    };
                    let limit = self.shared.connect_timeout.get();
                    let asked = timeout(limit, ask(&mut server, &kind, &reported)).await;
                    let said = match asked {
                        Ok(Ok(said)) => said,
                        // What an earlier session left there cannot be undone, say. There are only so many that have
                        // served somebody, and none comes back.
                        Ok(Err(error)) if server.face.has_served() => {
                            tracing::warn!(
                                backend = server.face.pid,
                                %error,
                                "a server connection could not be asked about a client's settings"
                            );
                            server.close();
                            continue;
                        }
                        Ok(Err(_)) | Err(_) => return Err(None),
                    };
                    release(server);
                    match said {
                        Kind::Refused {
                            names,
                            lasting: false,
                        } => return Ok(Entered::Apart(names)),
                        said => pool.learn(kind, said),
                    }
                }
            }
        }
    }

    /// A server, from a pool that is not known to have any. While the database is paused this waits for the end of that.
    async fn first_server(
        &self,
        pool: &Arc<Pool>,
        another: bool,
    ) -> Result<Box<Server>, Option<WaitError>> {
        let limit = self.shared.connect_timeout.get();
        let limit = if another { limit.min(HOP_MAX) } else { limit };
        loop {
            pool.resumed().await;
            match timeout(limit, pool.server()).await {
                Ok(server) => return Ok(server?),
                Err(_) if pool.is_paused() => {}
                Err(_) => return Err(None),
            }
        }
    }

    /// The version that is told to clients whose work goes to several nodes.
    fn server_version(&self) -> Option<String> {
        let shared = self.shared;
        let settings = shared.settings.load();
        let is_routed = settings.config.proxy.pool.mode == PoolMode::Transaction
            && self.startup.database == settings.config.replication.database;
        is_routed
            .then(|| shared.router.identities.server_version())
            .flatten()
    }

    /// Sends what a server sends after a login, with our own cancel key.
    async fn greet(&self, io: &mut ClientIo, place: Place, found: Found) -> Result<Welcome, Ended> {
        let key_len = if self.startup.protocol >= (3, 2) {
            LONG_KEY
        } else {
            4
        };
        let registered = self
            .shared
            .registry
            .enter(key_len)
            .map_err(|error| Ended::silent(error.to_string()))?;
        let mut greeting = BytesMut::with_capacity(512);
        encode::backend::authentication_ok(&mut greeting);
        let version = self.server_version();
        for (name, value) in &*found.profile.greeting {
            let value = match (name.as_str(), &version) {
                ("server_version", Some(version)) => version,
                _ => value,
            };
            encode::backend::parameter_status(&mut greeting, name, value)
                .map_err(|error| Ended::silent(error.to_string()))?;
        }
        encode::backend::backend_key_data(&mut greeting, registered.pid(), registered.key())
            .map_err(|error| Ended::silent(error.to_string()))?;
        encode::backend::ready_for_query(&mut greeting, b'I');
        io.send(&greeting)
            .await
            .map_err(|error| Ended::silent(format!("the client went away: {error}")))?;
        Ok(Welcome {
            pool: found.pool,
            server: found.server,
            profile: found.profile,
            hints: found.hints,
            registered,
            counted: found.counted,
            place,
        })
    }
}

/// A node's refusal, in its own words where it has some.
fn answered(node: &str, error: &ConnectError) -> Ended {
    let last_words = match error {
        ConnectError::Server(error) => report::server_error(error),
        other => {
            tracing::warn!(node, error = %other, "a node does not accept what the client proved");
            report::bytes(&report::node_login(node, other))
        }
    };
    Ended {
        last_words,
        reason: format!("node {node}: {error}"),
    }
}

/// PostgreSQL takes a boolean or `database` here; false is an ordinary connection.
fn wants_replication(value: &str) -> bool {
    !matches!(
        value.to_ascii_lowercase().as_str(),
        "" | "false" | "f" | "no" | "n" | "off" | "0"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replication_is_told_from_a_false_boolean() {
        for value in ["database", "true", "on", "1", "yes"] {
            assert!(wants_replication(value), "{value}");
        }
        for value in ["false", "off", "0", "no", "F"] {
            assert!(!wants_replication(value), "{value}");
        }
    }
}
