//! Owns a client's way from the startup packet to its first ReadyForQuery.

use std::{fmt::Write as _, net::IpAddr, time::Duration};

use bytes::BytesMut;
use tandem_routing_rules::{ClusterView, NodeView, SessionFacts, decide_session};
use tandem_wire::{
    ConnectError, Connection, Credentials, ErrorReport, Secret, Stream,
    auth::ClientIo,
    connection::Parts,
    encode,
    startup::{Startup, TlsInfo},
};
use tokio::time::{Instant, timeout_at};

use super::{
    Place, Shared,
    registry::{Registered, Target},
    report, stopping,
};
use crate::{
    auth::{Applicant, Denied},
    health::{Verdict, verdict},
    node::CountedSession,
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
    pub(super) server: Stream,
    pub(super) from_server: BytesMut,
    pub(super) registered: Registered,
    pub(super) node: usize,
    pub(super) counted: CountedSession,
    pub(super) place: Place,
}

/// A node that has taken the login.
struct Found {
    node: usize,
    connection: Connection,
    counted: CountedSession,
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
        let mut stop = self.shared.stop.clone();
        let outcome = tokio::select! {
            outcome = timeout_at(deadline, steps) => outcome,
            () = stopping(&mut stop) => return Err(Ended::new(&report::shutting_down())),
        };
        let (place, found) = match outcome {
            Ok(outcome) => outcome?,
            Err(_) => {
                self.shared.gate.failed(self.address);
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
        Ok((place, self.connect(credentials).await?))
    }

    /// Connects to the node that the rules choose; to the next one while nobody serves there.
    async fn connect(&self, credentials: Credentials) -> Result<Found, Ended> {
        let shared = self.shared;
        let mut unusable: Vec<bool> = (0..shared.nodes.len())
            .map(|node| !shared.health.usable(node))
            .collect();
        let mut tried = String::new();
        while let Some((index, why)) = self.choose(&unusable) {
            let Some(node) = shared.nodes.get(index) else {
                break;
            };
            let limit = shared.config.proxy.server_connect_timeout;
            let another = unusable.iter().filter(|unusable| !**unusable).count() > 1;
            let options = node.client_options(
                &self.startup.user,
                &self.startup.database,
                credentials.clone(),
                self.startup.params.clone(),
                if another { limit.min(HOP_MAX) } else { limit },
            );
            // Counted from now on, so that many who come at once do not all choose the same node.
            let counted = node.count_session();
            let turn = node.login_turn().await;
            let error = match tandem_wire::connect(&options).await {
                Ok(connection) => {
                    tracing::debug!(
                        peer = self.peer,
                        user = self.startup.user,
                        database = self.startup.database,
                        node = node.name(),
                        why,
                        backend = connection.backend_pid(),
                        "session begins"
                    );
                    return Ok(Found {
                        node: index,
                        connection,
                        counted,
                    });
                }
                Err(error) => error,
            };
            drop(turn);
            match verdict(&error) {
                Verdict::Answer => {
                    if matches!(&error, ConnectError::Server(error) if error.code == "28P01") {
                        // The verifier that Tandem checked against is perhaps out of date.
                        shared.gate.invalidate(&self.startup.user);
                    }
                    return Err(answered(node.name(), &error));
                }
                Verdict::Ours => {
                    tracing::error!(%error, "cannot open a connection to a node");
                    return Err(Ended::new(&report::out_of_descriptors()));
                }
                Verdict::NobodyThere => shared.health.refused(index, node, &error.to_string()),
                Verdict::Broken | Verdict::Unclear => shared.health.evidence(index),
            }
            tracing::info!(node = node.name(), %error, "connect failed, trying the next node");
            let _ = write!(tried, "{}: {error}; ", node.name());
            if let Some(unusable) = unusable.get_mut(index) {
                *unusable = true;
            }
        }
        for (index, node) in shared.nodes.iter().enumerate() {
            if let Some(problem) = shared.health.problem(index)
                && !tried.contains(&format!("{}: ", node.name()))
            {
                let _ = write!(tried, "{}: {problem}; ", node.name());
            }
        }
        tracing::warn!(
            user = self.startup.user,
            tried,
            "no node can take a session"
        );
        Err(Ended::new(&report::no_node(
            &shared.config.cluster,
            tried.trim_end_matches([';', ' ']),
        )))
    }

    /// The rules' choice among the nodes that are left, and its reason.
    fn choose(&self, unusable: &[bool]) -> Option<(usize, String)> {
        let shared = self.shared;
        let views: Vec<NodeView<'_>> = shared
            .nodes
            .iter()
            .zip(unusable)
            .enumerate()
            .map(|(index, (node, unusable))| NodeView {
                id: node.config().id,
                name: node.name(),
                zone: node.config().zone.as_deref(),
                healthy: !unusable,
                rtt_us: shared.health.rtt_us(index),
                sessions: node.sessions(),
            })
            .collect();
        let cluster = ClusterView {
            nodes: &views,
            zone: shared.config.proxy.zone.as_deref(),
        };
        let param = |name: &str| {
            self.startup
                .params
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.as_str())
        };
        let key = param("tandem.key")
            .map(str::to_owned)
            .or_else(|| param("options").and_then(|options| option_setting(options, "tandem.key")));
        let facts = SessionFacts {
            user: &self.startup.user,
            database: &self.startup.database,
            application_name: param("application_name"),
            key: key.as_deref(),
        };
        let decision = decide_session(&shared.rules, &facts, &cluster).ok()?;
        let index = views.iter().position(|view| view.id == decision.node)?;
        Some((index, decision.to_string()))
    }

    /// Sends what a server sends after a login, with our own cancel key.
    async fn greet(&self, io: &mut ClientIo, place: Place, found: Found) -> Result<Welcome, Ended> {
        let Found {
            node,
            connection,
            counted,
        } = found;
        let shared = self.shared;
        let Parts {
            stream,
            rx,
            parameters,
            backend_pid,
            cancel_secret,
        } = connection.into_parts();
        let target = Target {
            node,
            pid: backend_pid,
            secret: Secret::new(cancel_secret),
        };
        let key_len = if self.startup.protocol >= (3, 2) {
            LONG_KEY
        } else {
            4
        };
        let registered = shared
            .registry
            .enter(key_len, target)
            .map_err(|error| Ended::silent(error.to_string()))?;
        let mut greeting = BytesMut::with_capacity(512);
        encode::backend::authentication_ok(&mut greeting);
        for (name, value) in &parameters {
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
            server: stream,
            from_server: rx,
            registered,
            node,
            counted,
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

/// The value of `-c name=value` or `--name=value` in a startup packet's `options`.
///
/// Words are separated by white space; a backslash takes the next character as it is (`pg_split_opts` in PostgreSQL's
/// postinit.c). The last one counts.
fn option_setting(options: &str, name: &str) -> Option<String> {
    let mut found = None;
    let mut words = split_options(options).into_iter();
    while let Some(word) = words.next() {
        let setting = if word == "-c" {
            words.next()
        } else {
            word.strip_prefix("-c")
                .or_else(|| word.strip_prefix("--"))
                .map(str::to_owned)
        };
        if let Some((known, value)) = setting
            .as_deref()
            .and_then(|setting| setting.split_once('='))
            && known == name
        {
            found = Some(value.to_owned());
        }
    }
    found
}

fn split_options(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        if c.is_ascii_whitespace() {
            words.extend(word.take());
        } else {
            let c = if c == '\\' { chars.next() } else { Some(c) };
            word.get_or_insert_default().extend(c);
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_found_in_the_options() {
        let table = [
            ("-c tandem.key=station:42", Some("station:42")),
            ("-ctandem.key=a", Some("a")),
            ("--tandem.key=a", Some("a")),
            ("-c geqo=off  -c tandem.key=a\\ b -c x=y", Some("a b")),
            ("-c tandem.key=a -c tandem.key=b", Some("b")),
            ("-c other.key=a", None),
            ("-c", None),
            ("", None),
            ("-c tandem.key", None),
            ("\\", None),
        ];
        for (options, expected) in table {
            assert_eq!(
                option_setting(options, "tandem.key").as_deref(),
                expected,
                "{options}"
            );
        }
    }

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
