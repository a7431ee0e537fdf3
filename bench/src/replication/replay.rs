//! The floor of applying transaction by transaction: the very bytes that Tandem sends to its target, from a client that
//! only sends them and awaits the reply of each Sync.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tandem_tests::{Cluster, Node, client, eventually};
use tandem_wire::backend::ErrorFields;
use tandem_wire::connection::Connection;

use super::backlog::{Backlog, mark};
use super::{PGBENCH_SCALE, SCHEMA, SETTINGS, raw_session};

/// How long it may take until what is recorded is applied.
const LIMIT: Duration = Duration::from_secs(300);

/// The origin of the rows that are written anew.
const ORIGIN: &str = "bench_of_long_ago";

/// Recordings, and the server that they were made on.
#[derive(Debug)]
pub struct Replays {
    cluster: Cluster,
    tapes: Vec<Tape>,
}

#[derive(Debug)]
struct Tape {
    backlog: Backlog,
    size: u32,
    /// Each ends with a message that makes the server answer that it is ready.
    requests: Vec<Bytes>,
}

impl Replays {
    /// Lets Tandem apply one backlog of each kind and size through a relay that keeps what it sends.
    ///
    /// # Errors
    /// When a backlog cannot be made, or what was sent is no sequence of messages.
    ///
    /// # Panics
    /// A server or the daemon does not do what it should.
    pub async fn record(backlogs: &[(Backlog, u32)]) -> io::Result<Self> {
        let mut builder = Cluster::of(&[15, 15])
            .durable()
            .pgbench(PGBENCH_SCALE)
            .schema(SCHEMA)
            .replication("group_apply = 0")
            .relays();
        for (name, value) in SETTINGS {
            builder = builder.setting(name, value);
        }
        let mut cluster = builder.start().await;
        let mut tapes = Vec::new();
        for &(backlog, size) in backlogs {
            cluster.converge(LIMIT).await;
            cluster.daemon.terminate().await;
            let source = &cluster.nodes[0];
            let size = backlog.make(source, cluster.dir(), size).await?;
            let last = mark(source).await;
            cluster.relays[1].record("apply 1");
            cluster.daemon.start().await;
            let target = cluster.nodes[1].connect().await;
            let seen = format!("SELECT count(*) FROM mark WHERE id = {last}");
            eventually(
                "the backlog is applied",
                LIMIT,
                async || match client::value(&target, &seen).await.as_str() {
                    "1" => Ok(()),
                    count => Err(count.to_owned()),
                },
            )
            .await;
            tapes.push(Tape {
                backlog,
                size,
                requests: requests(cluster.relays[1].recorded())?,
            });
        }
        cluster.daemon.terminate().await;
        Ok(Self { cluster, tapes })
    }

    /// Sends once more what was sent for a backlog of this kind; answers its size and how long it took.
    ///
    /// # Errors
    /// When the server refuses something of it, or nothing was recorded.
    ///
    /// # Panics
    /// The server is not there.
    pub async fn run(&self, backlog: Backlog) -> io::Result<(u32, Duration)> {
        let tape = self.tapes.iter().find(|tape| tape.backlog == backlog);
        let tape = tape.ok_or_else(|| io::Error::other("nothing was recorded"))?;
        let target = &self.cluster.nodes[1];
        make_way(target).await;
        let mut session = raw_session(target.port(), &[]).await?;
        let began = Instant::now();
        for request in &tape.requests {
            session.out().extend_from_slice(request);
            answered(&mut session).await?;
        }
        let took = began.elapsed();
        session.close().await;
        Ok((tape.size, took))
    }
}

/// What is inserted is not there yet, and what is updated is older than anything that is sent: pgbench's rows are written
/// anew, by a transaction of long ago.
async fn make_way(target: &Node) {
    let mut sql = "BEGIN; TRUNCATE single, bulk, mark, pgbench_history;".to_owned();
    for table in ["accounts", "tellers", "branches"] {
        sql.push_str(&format!(
            "CREATE TEMP TABLE {table} AS TABLE pgbench_{table}; TRUNCATE pgbench_{table}; \
             INSERT INTO pgbench_{table} TABLE {table}; DROP TABLE {table};"
        ));
    }
    sql.push_str(&format!(
        "SELECT pg_replication_origin_create('{ORIGIN}') WHERE pg_replication_origin_oid('{ORIGIN}') IS NULL; \
         SELECT pg_replication_origin_session_setup('{ORIGIN}'), pg_replication_origin_xact_setup('0/1', '2001-01-01'); COMMIT"
    ));
    let session = target.connect().await;
    for sql in [sql.as_str(), "VACUUM ANALYZE", "CHECKPOINT"] {
        client::execute(&session, sql).await;
    }
}

/// Splits what a client sent behind its startup packet; what it sent to log in is left out.
fn requests(tape: Vec<u8>) -> io::Result<Vec<Bytes>> {
    let mut rest = Bytes::from(tape);
    let mut requests = Vec::new();
    let mut length = 0;
    while let Some(header) = rest.get(length..length + 5) {
        let &[tag, a, b, c, d] = header else {
            return Err(io::Error::other("a header has five bytes"));
        };
        let end = length + 1 + u32::from_be_bytes([a, b, c, d]) as usize;
        if end > rest.len() {
            return Err(io::Error::other("the recording ends inside a message"));
        }
        length = end;
        match tag {
            b'Q' | b'S' => requests.push(rest.split_to(std::mem::take(&mut length))),
            b'p' => drop(rest.split_to(std::mem::take(&mut length))),
            _ => {}
        }
    }
    Ok(requests)
}

/// Sends what is written and reads up to the server's readiness.
pub(super) async fn answered(session: &mut Connection) -> io::Result<()> {
    let mut frame = session.flush_and_recv().await.map_err(io::Error::other)?;
    while frame.tag != b'Z' {
        if frame.tag == b'E' {
            let error = ErrorFields::parse(&frame.body).map_err(io::Error::other)?;
            return Err(io::Error::other(error.to_owned()));
        }
        frame = session.recv().await.map_err(io::Error::other)?;
    }
    Ok(())
}
