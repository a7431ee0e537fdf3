//! Owns one probe of one node, and what its outcome means.

use std::{
    io,
    time::{Duration, Instant},
};

use tandem_wire::{ConnectError, ConnectionError};
use tokio::time::timeout;

use super::{ProbeSettings, machine::Event};
use crate::node::Node;

/// What a probe has shown.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// For the machine.
    pub(crate) event: Event,
    /// For people; None when all is well.
    pub(crate) problem: Option<String>,
    /// The node has not answered in time.
    pub(crate) is_silent: bool,
    /// The system identifier of the node, if it is known to be well.
    pub(crate) system: Option<i64>,
}

/// What the answer to a probe's question tells.
struct Answered {
    /// Time from sending a statement to its answer.
    rtt: Duration,
    /// The system identifier of the node.
    system: Option<i64>,
}

/// Opens a fresh connection and runs statements on it. A fresh one, because a server whose postmaster hangs goes on
/// serving the connections it has. How long it is waited for is not decided here; it ends by itself after `most`.
pub(crate) async fn probe(node: &Node, settings: &ProbeSettings, most: Duration) -> Outcome {
    let params = [
        ("application_name", "tandem probe"),
        (
            "options",
            "-c search_path=pg_catalog -c statement_timeout=10s",
        ),
    ];
    let params = params.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let options = node.own_options(&settings.database, params.to_vec(), most);
    let asked = question(settings.slot.as_deref());
    let attempt = async {
        let mut connection = tandem_wire::connect(&options)
            .await
            .map_err(ProbeError::Connect)?;
        let rows = connection
            .simple_query(&asked)
            .await
            .map_err(ProbeError::Query)?;
        let mut answers = rows.into_iter().next().unwrap_or_default().into_iter();
        let (recovering, taken) = (answers.next().flatten(), answers.next().flatten());
        let system = answers.next().flatten();
        let system = system.and_then(|system| system.parse().ok());
        // The first statement warmed up the backend's caches; the second tells how far away the node is.
        let sent = Instant::now();
        connection
            .simple_query("SELECT 1")
            .await
            .map_err(ProbeError::Query)?;
        let rtt = sent.elapsed();
        connection.close().await;
        match (&settings.slot, recovering.as_deref(), taken.as_deref()) {
            (None, Some("f"), _) | (Some(_), Some("f"), Some("t")) => Ok(Answered { rtt, system }),
            (Some(slot), Some("f"), _) => Err(ProbeError::Untaken(slot.clone())),
            _ => Err(ProbeError::Recovering),
        }
    };
    let result = timeout(most, attempt)
        .await
        .unwrap_or(Err(ProbeError::Timeout(most)));
    match result {
        Ok(Answered { rtt, system }) => Outcome {
            event: Event::Success { rtt },
            problem: None,
            is_silent: false,
            system,
        },
        Err(error) => Outcome {
            event: judge(&error),
            problem: Some(error.to_string()),
            is_silent: matches!(
                error,
                ProbeError::Timeout(_) | ProbeError::Connect(ConnectError::Timeout { .. })
            ),
            system: None,
        },
    }
}

impl Outcome {
    /// Whether the node works.
    pub(crate) fn is_answer(&self) -> bool {
        matches!(self.event, Event::Success { .. } | Event::Untaken)
    }

    /// Two probes have had no answer for so long, while another node answers.
    pub(crate) fn silent(silence: Duration) -> Outcome {
        Outcome {
            event: Event::Silent,
            problem: Some(format!(
                "no answer within {} ms, on two connections, while another node answers",
                silence.as_millis()
            )),
            is_silent: true,
            system: None,
        }
    }

    /// A probe has had no answer for as long as one may take.
    pub(crate) fn late(bound: Duration) -> Outcome {
        let error = ProbeError::Timeout(bound);
        Outcome {
            event: judge(&error),
            problem: Some(error.to_string()),
            is_silent: true,
            system: None,
        }
    }
}

/// Whether the node is a primary, and whether the stream of its changes begins before what clients will write: a slot
/// without a confirmed position is still being made (`CreateInitDecodingContext` in PostgreSQL's logical.c).
fn question(slot: Option<&str>) -> String {
    let taken = slot.map_or_else(
        || "NULL".to_owned(),
        |slot| {
            // The name of a cluster is of letters, digits and underscores.
            format!(
                "EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = '{slot}' \
             AND database = pg_catalog.current_database() AND confirmed_flush_lsn IS NOT NULL \
             AND wal_status IS DISTINCT FROM 'lost')"
            )
        },
    );
    format!(
        "SELECT pg_catalog.pg_is_in_recovery(), {taken}, \
         (SELECT system_identifier FROM pg_catalog.pg_control_system())"
    )
}

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("{0}")]
    Connect(ConnectError),
    #[error("{0}")]
    Query(ConnectionError),
    #[error("the node is in recovery: a primary is needed")]
    Recovering,
    #[error(
        "its changes would reach no other node: replication slot {0} is not there, or not usable; it is made when replication \
         takes the node, and `tandem status` says what keeps it from that"
    )]
    Untaken(String),
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
}

fn judge(error: &ProbeError) -> Event {
    match error {
        ProbeError::Recovering => Event::Refused,
        ProbeError::Untaken(_) => Event::Untaken,
        ProbeError::Timeout(_) | ProbeError::Query(_) => Event::Failed,
        ProbeError::Connect(error) => match verdict(error) {
            Verdict::NobodyThere | Verdict::Broken => Event::Refused,
            Verdict::Unready => Event::Unready,
            Verdict::Ours => Event::NotTried,
            Verdict::Unclear | Verdict::Answer => Event::Failed,
        },
    }
}

/// What a failed connect says about the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nobody listens there.
    NobodyThere,
    /// It says that it is starting up, shutting down or in recovery.
    Unready,
    /// Reset or closed during the login.
    Broken,
    /// The proxy's own lack of something; nothing was learnt of the node.
    Ours,
    /// Nothing certain: a timeout, a name that did not resolve, a broken handshake.
    Unclear,
    /// The node works and said no to this login.
    Answer,
}

impl Verdict {
    /// What a *session's* failed connect decides: no client can provoke these.
    pub(crate) fn decides(self) -> Option<Event> {
        match self {
            Verdict::NobodyThere => Some(Event::Refused),
            Verdict::Unready => Some(Event::Unready),
            Verdict::Broken | Verdict::Ours | Verdict::Unclear | Verdict::Answer => None,
        }
    }
}

/// Judges a failed connect.
pub(crate) fn verdict(error: &ConnectError) -> Verdict {
    match error {
        ConnectError::Server(error) if error.code == "57P03" => Verdict::Unready,
        ConnectError::Server(_) | ConnectError::Auth(_) => Verdict::Answer,
        ConnectError::Closed => Verdict::Broken,
        ConnectError::Resolve { source, .. } if crate::listener::is_out_of_descriptors(source) => {
            Verdict::Ours
        }
        // A name server that fails says nothing of the node; one without the name says nothing certain.
        ConnectError::Resolve { .. } => Verdict::Unclear,
        _ => io_error(error).map_or(Verdict::Unclear, io_verdict),
    }
}

fn io_verdict(error: &io::Error) -> Verdict {
    if crate::listener::is_out_of_descriptors(error) {
        return Verdict::Ours;
    }
    match error.kind() {
        // The second is a unix socket that is not there.
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Verdict::NobodyThere,
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => Verdict::Broken,
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::OutOfMemory => Verdict::Ours,
        _ => Verdict::Unclear,
    }
}

/// The first I/O error in a chain of causes.
fn io_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_wire::ServerError;

    fn unreachable(kind: io::ErrorKind) -> ConnectError {
        ConnectError::Unreachable {
            address: "192.0.2.1:5432".into(),
            source: kind.into(),
        }
    }

    fn server(code: &str) -> ConnectError {
        ConnectError::Server(ServerError {
            severity: "FATAL".into(),
            code: code.into(),
            message: "no".into(),
            detail: None,
            hint: None,
        })
    }

    #[test]
    fn only_what_the_node_did_counts_against_it() {
        let descriptors = ConnectError::Unreachable {
            address: "192.0.2.1:5432".into(),
            source: io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error()),
        };
        let no_name = ConnectError::Resolve {
            host: "nowhere".into(),
            source: io::ErrorKind::NotFound.into(),
        };
        let late = ConnectError::Timeout {
            address: "192.0.2.1:5432".into(),
            after: Duration::from_secs(2),
        };
        let table = [
            (
                unreachable(io::ErrorKind::ConnectionRefused),
                Verdict::NobodyThere,
                Event::Refused,
            ),
            (
                unreachable(io::ErrorKind::NotFound),
                Verdict::NobodyThere,
                Event::Refused,
            ),
            (
                ConnectError::Io(io::ErrorKind::ConnectionReset.into()),
                Verdict::Broken,
                Event::Refused,
            ),
            (ConnectError::Closed, Verdict::Broken, Event::Refused),
            (server("57P03"), Verdict::Unready, Event::Unready),
            (
                unreachable(io::ErrorKind::HostUnreachable),
                Verdict::Unclear,
                Event::Failed,
            ),
            (late, Verdict::Unclear, Event::Failed),
            (no_name, Verdict::Unclear, Event::Failed),
            (server("53300"), Verdict::Answer, Event::Failed),
            (server("28P01"), Verdict::Answer, Event::Failed),
            (descriptors, Verdict::Ours, Event::NotTried),
        ];
        for (error, expected, event) in table {
            assert_eq!(verdict(&error), expected, "{error}");
            assert_eq!(judge(&ProbeError::Connect(error)), event);
        }
    }
}
