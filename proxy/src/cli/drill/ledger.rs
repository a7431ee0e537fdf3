//! Owns the ledger: clients beside pgbench that write down of each of their own writes what they were told of it.
//!
//! Each client keeps to one key, so to one home, and writes every few milliseconds: a row of its own for each write, and in
//! the same transaction the number of the write into a row that it keeps. Whatever the proxy acknowledged must be on every
//! node in the end; what it refused must be nowhere. Every other write is a block, so that a COMMIT is lost now and then.

use std::collections::BTreeMap;
use std::time::Duration;

use tandem_wire::backend::ErrorFields;
use tandem_wire::encode::frontend as encode;
use tandem_wire::{ConnectOptions, Connection, ConnectionError, Reader};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::timeline::{Span, longest_gap_us, now_us};

/// The ledger's table. It is made by hand on every node, and goes when nothing was found to be wrong.
pub const TABLE: &str = "public.tandem_drill";

/// Its columns. The row with `seq` 0 is the one that a client keeps: `last` is the number of its last write.
pub const DEFINITION: &str = "(run bigint, client int, seq bigint, last bigint NOT NULL, \
    PRIMARY KEY (run, client, seq))";

/// What a node calls itself, so that the node that ran a write is known however the proxy reaches it.
pub const WHO: &str =
    "pg_catalog.concat_ws(' ', pg_catalog.inet_server_addr(), pg_catalog.inet_server_port())";

/// A write that has no answer for so long never gets one.
const WRITE_LIMIT: Duration = Duration::from_secs(60);

/// What a client was told of one write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is committed, on this node of the configuration where that is known.
    Acknowledged {
        /// Its place.
        node: Option<usize>,
    },
    /// It is not, by this SQLSTATE; or the connection was lost before a COMMIT was sent.
    Refused {
        /// The SQLSTATE, or what happened.
        code: String,
    },
    /// It may be.
    Unknown {
        /// The SQLSTATE, or what happened.
        reason: String,
    },
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Its number, from 1 on.
    pub seq: u64,
    /// When its client had its answer, in microseconds since 1970.
    pub ended_us: u64,
    /// What the answer was.
    pub outcome: Outcome,
}

/// All writes of one client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Its number.
    pub client: u32,
    /// `PLACEMENT:KEY`, if it has one.
    pub key: Option<String>,
    /// In their order.
    pub writes: Vec<Write>,
    /// When its connection was lost under it.
    pub lost_us: Vec<u64>,
}

impl History {
    fn successes(&self) -> impl Iterator<Item = (u64, Option<usize>)> {
        self.writes.iter().filter_map(|write| match write.outcome {
            Outcome::Acknowledged { node } => Some((write.ended_us, node)),
            _ => None,
        })
    }

    /// The node that wrote for this client last before `time_us`.
    pub fn home_before(&self, time_us: u64) -> Option<usize> {
        let before = self.successes().filter(|(time, _)| *time < time_us);
        before.last().and_then(|(_, node)| node)
    }

    /// The longest time within `span` without a successful write.
    pub fn gap_us(&self, span: Span) -> u64 {
        longest_gap_us(span, self.successes().map(|(time, _)| time))
    }
}

/// What the ledger comes to within a span.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Writes that were.
    pub acknowledged: u64,
    /// Writes that were, by SQLSTATE.
    pub refused: BTreeMap<String, u64>,
    /// Writes whose outcome nobody told.
    pub unknown: u64,
    /// How often a client's connection was lost under it.
    pub connections_lost: u64,
    /// The worst of the clients whose home was the broken node; none: there is no such client.
    pub gap_moved_us: Option<u64>,
    /// The worst of the others.
    pub gap_other_us: Option<u64>,
}

/// Counts and gaps; a client is one of the moved ones by where it wrote before `struck_us`.
pub fn figures(histories: &[History], span: Span, broken: usize, struck_us: u64) -> Figures {
    let mut figures = Figures::default();
    for history in histories {
        for write in history
            .writes
            .iter()
            .filter(|write| span.contains(write.ended_us))
        {
            match &write.outcome {
                Outcome::Acknowledged { .. } => figures.acknowledged += 1,
                Outcome::Refused { code } => {
                    *figures.refused.entry(code.clone()).or_default() += 1;
                }
                Outcome::Unknown { .. } => figures.unknown += 1,
            }
        }
        let lost = history.lost_us.iter().filter(|time| span.contains(**time));
        figures.connections_lost += lost.count() as u64;
        let gap = match history.home_before(struck_us) == Some(broken) {
            true => &mut figures.gap_moved_us,
            false => &mut figures.gap_other_us,
        };
        *gap = (*gap).max(Some(history.gap_us(span)));
    }
    figures
}

/// Why a step of a write failed.
#[derive(Debug, PartialEq, Eq)]
enum Problem {
    /// The server said so. A fatal error ends the session.
    Server { code: String, fatal: bool },
    /// The connection broke.
    Lost(String),
}

impl From<ConnectionError> for Problem {
    fn from(error: ConnectionError) -> Self {
        Self::Lost(error.to_string())
    }
}

impl Problem {
    /// What became of a write. An error is a refusal, unless it is about the connection, or says itself that nobody
    /// knows (08007, 40003), while what commits had been sent.
    fn outcome(&self, commit_sent: bool) -> Outcome {
        match self {
            Self::Server { code, fatal } => {
                let nobody_knows = *fatal || code.starts_with("08") || code == "40003";
                match commit_sent && nobody_knows {
                    true => Outcome::unknown(code),
                    false => Outcome::refused(code),
                }
            }
            Self::Lost(reason) => match commit_sent {
                true => Outcome::unknown(reason),
                false => Outcome::refused("connection lost"),
            },
        }
    }

    fn ends_session(&self) -> bool {
        match self {
            Self::Server { fatal, .. } => *fatal,
            Self::Lost(_) => true,
        }
    }
}

impl Outcome {
    pub(super) fn refused(code: &str) -> Self {
        Self::Refused {
            code: code.to_owned(),
        }
    }

    pub(super) fn unknown(reason: &str) -> Self {
        Self::Unknown {
            reason: reason.to_owned(),
        }
    }
}

/// The answer to one Query: the first value of its last row, and the last command's tag.
#[derive(Debug, Default)]
struct Reply {
    value: Option<String>,
    tag: String,
}

async fn query(connection: &mut Connection, sql: &str) -> Result<Reply, Problem> {
    encode::query(connection.out(), sql).map_err(|error| Problem::Lost(error.to_string()))?;
    let mut reply = Reply::default();
    let mut failed = None;
    loop {
        let frame = match connection.flush_and_recv().await {
            Ok(frame) => frame,
            // Behind a fatal error the server closes.
            Err(error) => return Err(failed.unwrap_or_else(|| error.into())),
        };
        match frame.tag {
            b'D' => {
                let row = tandem_wire::backend::DataRow::parse(&frame.body)
                    .map_err(ConnectionError::from)?;
                let value = row.columns().next().flatten();
                reply.value = value.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
            }
            b'C' => {
                let tag = Reader::new(&frame.body)
                    .cstr()
                    .map_err(ConnectionError::from)?;
                reply.tag = String::from_utf8_lossy(tag).into_owned();
            }
            b'E' => {
                let error = ErrorFields::parse(&frame.body)
                    .map_err(ConnectionError::from)?
                    .to_owned();
                failed = failed.or(Some(Problem::Server {
                    fatal: matches!(error.severity.as_str(), "FATAL" | "PANIC"),
                    code: error.code,
                }));
            }
            b'Z' => return failed.map_or(Ok(reply), Err),
            _ => {}
        }
    }
}

/// A block up to its COMMIT.
async fn in_block(
    connection: &mut Connection,
    also: Option<&str>,
    statement: &str,
) -> Result<Reply, Problem> {
    query(connection, "BEGIN").await?;
    if let Some(also) = also {
        query(connection, also).await?;
    }
    query(connection, statement).await
}

/// One client of the ledger.
#[derive(Debug, Clone)]
pub struct Client {
    /// What sets its rows apart from those of other runs.
    pub run: u64,
    /// What sets them apart from those of the run's other clients.
    pub number: u32,
    /// `PLACEMENT:KEY`, where the rules have a placement.
    pub key: Option<String>,
    /// How it connects.
    pub options: ConnectOptions,
    /// What the nodes call themselves, in the order of the configuration.
    pub names: Vec<String>,
    /// What each write does ahead of its own rows in the same transaction: statements, of the client's number and the write's.
    pub also: Option<fn(u32, u64) -> String>,
}

impl Client {
    /// Logs in and makes the row that this client keeps. Answers the node that it was made on.
    ///
    /// # Errors
    /// What the proxy said.
    pub async fn enrol(&self) -> Result<(Connection, Option<usize>), String> {
        let mut connection = tandem_wire::connect(&self.options)
            .await
            .map_err(|error| error.to_string())?;
        let sql = format!(
            "INSERT INTO {TABLE} (run, client, seq, last) VALUES ({}, {}, 0, 0) RETURNING {WHO}",
            self.run, self.number
        );
        let rows = connection.simple_query(&sql).await;
        let rows = rows.map_err(|error| error.to_string())?;
        let name = rows.into_iter().flatten().flatten().next();
        Ok((connection, self.node(name.as_deref())))
    }

    fn node(&self, name: Option<&str>) -> Option<usize> {
        let name = name?;
        self.names.iter().position(|known| known == name)
    }

    fn statement(&self, seq: u64) -> String {
        let Self { run, number, .. } = self;
        format!(
            "WITH kept AS (UPDATE {TABLE} SET last = {seq} WHERE run = {run} AND client = {number} AND seq = 0) \
             INSERT INTO {TABLE} (run, client, seq, last) VALUES ({run}, {number}, {seq}, {seq}) RETURNING {WHO}"
        )
    }

    /// Tries one write. Answers also whether the session lives on.
    async fn write(&self, connection: &mut Connection, seq: u64) -> (Outcome, bool) {
        let statement = self.statement(seq);
        let also = self.also.map(|also| also(self.number, seq));
        if seq.is_multiple_of(2) {
            let whole = match also {
                Some(also) => format!("{also}; {statement}"),
                None => statement,
            };
            return match query(connection, &whole).await {
                Ok(reply) => (self.acknowledged(reply.value.as_deref()), true),
                Err(problem) => (problem.outcome(true), !problem.ends_session()),
            };
        }
        let written = match in_block(connection, also.as_deref(), &statement).await {
            Ok(reply) => reply.value,
            Err(problem) => {
                let lives = !problem.ends_session() && query(connection, "ROLLBACK").await.is_ok();
                return (problem.outcome(false), lives);
            }
        };
        match query(connection, "COMMIT").await {
            Ok(reply) if reply.tag == "COMMIT" => (self.acknowledged(written.as_deref()), true),
            Ok(reply) => (Outcome::refused(&reply.tag), true),
            Err(problem) => (problem.outcome(true), !problem.ends_session()),
        }
    }

    fn acknowledged(&self, name: Option<&str>) -> Outcome {
        Outcome::Acknowledged {
            node: self.node(name),
        }
    }

    /// Writes until told to stop.
    async fn run(
        self,
        connection: Connection,
        every: Duration,
        mut stop: watch::Receiver<bool>,
    ) -> History {
        let mut history = History {
            client: self.number,
            key: self.key.clone(),
            ..History::default()
        };
        let mut session = Some(connection);
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seq = 0;
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                _ = ticks.tick() => {}
            }
            let mut connection = match session.take() {
                Some(connection) => connection,
                // Who cannot log in tries again; that no write succeeds meanwhile is what counts.
                None => match tandem_wire::connect(&self.options).await {
                    Ok(connection) => connection,
                    Err(_) => continue,
                },
            };
            seq += 1;
            let written = timeout(WRITE_LIMIT, self.write(&mut connection, seq)).await;
            let (outcome, lives) = written.unwrap_or_else(|_| {
                let reason = format!("no answer within {} s", WRITE_LIMIT.as_secs());
                (Outcome::Unknown { reason }, false)
            });
            let ended_us = now_us();
            history.writes.push(Write {
                seq,
                ended_us,
                outcome,
            });
            match lives {
                true => session = Some(connection),
                false => history.lost_us.push(ended_us),
            }
        }
        if let Some(connection) = session {
            connection.close().await;
        }
        history
    }
}

/// The clients, writing.
#[derive(Debug)]
pub struct Ledger {
    stop: watch::Sender<bool>,
    clients: Vec<JoinHandle<History>>,
}

impl Ledger {
    /// Lets the clients write, each of them `every` so often.
    pub fn start(clients: Vec<(Client, Connection)>, every: Duration) -> Self {
        let stop = watch::Sender::new(false);
        let clients = clients
            .into_iter()
            .map(|(client, connection)| {
                tokio::spawn(client.run(connection, every, stop.subscribe()))
            })
            .collect();
        Self { stop, clients }
    }

    /// Ends all and answers what they noted; each ends the write that it is at.
    ///
    /// # Errors
    /// A client's task has ended by itself.
    pub async fn finish(self) -> Result<Vec<History>, tokio::task::JoinError> {
        self.stop.send_replace(true);
        let mut histories = Vec::with_capacity(self.clients.len());
        for client in self.clients {
            histories.push(client.await?);
        }
        Ok(histories)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: &str, fatal: bool) -> Problem {
        Problem::Server {
            code: code.to_owned(),
            fatal,
        }
    }

    #[test]
    fn only_what_was_never_sent_or_plainly_refused_counts_as_refused() {
        let lost = || Problem::Lost("reset".to_owned());
        let table = [
            (server("40001", false), true, Outcome::refused("40001")),
            (server("23505", false), true, Outcome::refused("23505")),
            (server("08007", false), true, Outcome::unknown("08007")),
            (server("40003", false), true, Outcome::unknown("40003")),
            // The session ended while a COMMIT was under way: it may have been carried out before.
            (server("57P01", true), true, Outcome::unknown("57P01")),
            (server("57P01", true), false, Outcome::refused("57P01")),
            (lost(), true, Outcome::unknown("reset")),
            (lost(), false, Outcome::refused("connection lost")),
        ];
        for (problem, commit_sent, wanted) in table {
            assert_eq!(problem.outcome(commit_sent), wanted, "{problem:?}");
        }
    }

    fn history(client: u32, writes: &[(u64, Outcome)]) -> History {
        let writes = writes
            .iter()
            .zip(1..)
            .map(|((ended_us, outcome), seq)| Write {
                seq,
                ended_us: *ended_us,
                outcome: outcome.clone(),
            });
        History {
            client,
            writes: writes.collect(),
            ..History::default()
        }
    }

    #[test]
    fn a_key_has_moved_if_its_last_write_before_the_blow_was_on_the_broken_node() {
        let on = |node| Outcome::Acknowledged { node: Some(node) };
        let mut moved = history(
            1,
            &[
                (90, on(0)),
                (105, Outcome::refused("40001")),
                (106, Outcome::unknown("lost")),
                (140, on(1)),
                (190, on(1)),
            ],
        );
        moved.lost_us = vec![106, 300];
        let other = history(2, &[(95, on(1)), (110, on(1)), (130, on(1)), (180, on(1))]);
        let span = Span {
            from_us: 100,
            to_us: 200,
        };
        let found = figures(&[moved, other], span, 0, 100);
        let wanted = Figures {
            acknowledged: 5,
            refused: BTreeMap::from([("40001".to_owned(), 1)]),
            unknown: 1,
            connections_lost: 1,
            gap_moved_us: Some(50),
            gap_other_us: Some(50),
        };
        assert_eq!(found, wanted);
        assert_eq!(figures(&[], span, 0, 100).gap_moved_us, None);
    }
}
