//! The server-side floor: the same changes and commits from a bare pipelining client, one Sync per batch, nothing
//! guarded and nothing decided.

use std::io;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tandem_tests::Node;
use tandem_wire::connection::Connection;
use tandem_wire::encode::frontend;

use super::backlog::Backlog;
use super::replay::answered;
use super::{PGBENCH_SCALE, raw_session};

/// Transactions of one batch (of [`Backlog::Bulk`]: rows), as many as Tandem's.
const BATCH: u32 = 500;
/// The origin of the stamped transactions.
const ORIGIN: &str = "bench";

/// What each transaction does beside its changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Floor {
    /// BEGIN and COMMIT.
    Bare,
    /// Also `pg_replication_origin_xact_setup` before COMMIT, which gives it position and timestamp of its source.
    Stamped,
}

impl Floor {
    /// What it is called in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "floor",
            Self::Stamped => "floor, stamped",
        }
    }

    /// Runs `size` transactions on a server of its own; answers how long it took.
    ///
    /// # Errors
    /// When the server refuses, or the connection is lost.
    pub async fn run(self, node: &Node, backlog: Backlog, size: u32) -> io::Result<Duration> {
        node.execute("CHECKPOINT").await;
        let next = |table: &str| format!("SELECT coalesce(max(id), 0) + 1 FROM {table}");
        let next = match backlog {
            Backlog::Bulk => node.value(&next("bulk")).await,
            _ => node.value(&next("single")).await,
        };
        let mut session = self.open(node).await?;
        let mut plan = Plan {
            floor: self,
            backlog,
            first: next.parse().map_err(io::Error::other)?,
            random: fastrand::Rng::with_seed(1),
        };
        let began = Instant::now();
        if backlog == Backlog::Bulk {
            execute(session.out(), "begin", &[])?;
        }
        for start in (0..size).step_by(BATCH as usize) {
            for index in start..size.min(start + BATCH) {
                plan.transaction(session.out(), index)?;
            }
            if backlog == Backlog::Bulk && start + BATCH >= size {
                plan.commit(session.out(), i64::from(size))?;
            }
            sync(&mut session).await?;
        }
        let took = began.elapsed();
        session.close().await;
        Ok(took)
    }

    /// A session as Tandem's apply sessions are, with the statements prepared.
    async fn open(self, node: &Node) -> io::Result<Connection> {
        let mut session = raw_session(node.port(), &[]).await?;
        let mut settings =
            "SET session_replication_role = replica; SET synchronous_commit = off;".to_owned();
        if self == Self::Stamped {
            settings.push_str(&format!(
                "SELECT pg_replication_origin_create('{ORIGIN}') \
                 WHERE NOT EXISTS (SELECT FROM pg_replication_origin WHERE roname = '{ORIGIN}'); \
                 SELECT pg_replication_origin_session_setup('{ORIGIN}')"
            ));
        }
        let answer = session.simple_query(&settings).await;
        answer.map_err(io::Error::other)?;
        for (name, sql) in STATEMENTS {
            frontend::parse(session.out(), name, sql, [])?;
        }
        sync(&mut session).await?;
        Ok(session)
    }
}

/// Every column is written, as by an applier that knows only the new row.
const STATEMENTS: [(&str, &str); 9] = [
    ("begin", "BEGIN"),
    ("commit", "COMMIT"),
    (
        "stamp",
        "SELECT pg_replication_origin_xact_setup($1, clock_timestamp())",
    ),
    ("single", "INSERT INTO single (id, v) VALUES ($1, $2)"),
    ("bulk", "INSERT INTO bulk (id, v) VALUES ($1, $2)"),
    (
        "account",
        "UPDATE pgbench_accounts SET bid = $2, abalance = $3, filler = $4 WHERE aid = $1",
    ),
    (
        "teller",
        "UPDATE pgbench_tellers SET bid = $2, tbalance = $3, filler = $4 WHERE tid = $1",
    ),
    (
        "branch",
        "UPDATE pgbench_branches SET bbalance = $2, filler = $3 WHERE bid = $1",
    ),
    (
        "history",
        "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime, filler) VALUES ($1, $2, $3, $4, $5, $6)",
    ),
];

/// What to run.
struct Plan {
    floor: Floor,
    backlog: Backlog,
    /// The id of the first new row.
    first: i64,
    random: fastrand::Rng,
}

impl Plan {
    /// One transaction; of [`Backlog::Bulk`] one row of it.
    fn transaction(&mut self, out: &mut BytesMut, index: u32) -> io::Result<()> {
        let id = self.first + i64::from(index);
        match self.backlog {
            Backlog::Bulk => {
                let text = format!("row number {id}");
                return execute(out, "bulk", &[Some(&id.to_string()), Some(&text)]);
            }
            Backlog::SingleRow => {
                execute(out, "begin", &[])?;
                let text = "some text of a plain row";
                execute(out, "single", &[Some(&id.to_string()), Some(text)])?;
            }
            Backlog::TpcB => {
                execute(out, "begin", &[])?;
                self.tpc_b(out)?;
            }
        }
        self.commit(out, id)
    }

    fn tpc_b(&mut self, out: &mut BytesMut) -> io::Result<()> {
        let mut pick = |count: u32| self.random.u32(1..=count).to_string();
        let account = pick(100_000 * PGBENCH_SCALE);
        let teller = pick(10 * PGBENCH_SCALE);
        let branch = pick(PGBENCH_SCALE);
        let balance = pick(5000);
        let (account, teller, branch) = (Some(&*account), Some(&*teller), Some(&*branch));
        let balance = Some(&*balance);
        let filler = " ".repeat(84);
        execute(out, "account", &[account, branch, balance, Some(&filler)])?;
        execute(out, "teller", &[teller, branch, balance, None])?;
        execute(out, "branch", &[branch, balance, None])?;
        let time = Some("2026-01-01 00:00:00.000001");
        execute(
            out,
            "history",
            &[teller, branch, account, balance, time, None],
        )
    }

    /// `position` counts up, as positions in a source's WAL do.
    fn commit(&self, out: &mut BytesMut, position: i64) -> io::Result<()> {
        if self.floor == Floor::Stamped {
            execute(out, "stamp", &[Some(&format!("0/{position:X}"))])?;
        }
        execute(out, "commit", &[])
    }
}

fn execute(out: &mut BytesMut, statement: &str, values: &[Option<&str>]) -> io::Result<()> {
    let values = values.iter().map(|value| value.map(str::as_bytes));
    frontend::bind_text(out, "", statement, values)?;
    frontend::execute(out, "", 0)
}

/// Sends what was written, closed by a Sync, and reads every reply.
async fn sync(session: &mut Connection) -> io::Result<()> {
    frontend::sync(session.out());
    answered(session).await
}
