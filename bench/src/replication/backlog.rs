//! The backlogs: what is written at the source while nobody replicates it.

use std::path::Path;
use std::time::Duration;

use tandem_tests::{Node, Program, client};

/// pgbench's clients while a backlog is made.
const CLIENTS: u32 = 8;
/// How long making one may take.
const MAKE_LIMIT: Duration = Duration::from_secs(300);

/// A kind of backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backlog {
    /// Transactions of one INSERT.
    SingleRow,
    /// pgbench's TPC-B: three UPDATEs and an INSERT.
    TpcB,
    /// One transaction of many rows.
    Bulk,
}

impl Backlog {
    /// What it is called in tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::SingleRow => "single-row",
            Self::TpcB => "tpc-b",
            Self::Bulk => "bulk",
        }
    }

    /// How many transactions (of [`Self::Bulk`]: rows) the full benchmark has.
    pub fn full_size(self) -> u32 {
        match self {
            Self::SingleRow => 100_000,
            Self::TpcB => 60_000,
            Self::Bulk => 1_000_000,
        }
    }

    /// Writes one of about `size` on the source; answers its exact size. It is made without waiting for flushes, which
    /// changes nothing of what is decoded.
    ///
    /// # Errors
    /// When the script cannot be written.
    ///
    /// # Panics
    /// The server refuses it.
    pub async fn make(self, source: &Node, dir: &Path, size: u32) -> std::io::Result<u32> {
        let script = dir.join("single-row.sql");
        let per_client = (size / CLIENTS).max(1);
        let (clients, transactions) = (CLIENTS.to_string(), per_client.to_string());
        let mut arguments = vec![
            "-n",
            "-M",
            "prepared",
            "-j",
            "2",
            "-c",
            &clients,
            "-t",
            &transactions,
        ];
        let script_path = script.to_string_lossy();
        match self {
            Self::Bulk => {
                let sql = format!(
                    "INSERT INTO bulk SELECT coalesce((SELECT max(id) FROM bulk), 0) + g, 'row number ' || g \
                     FROM generate_series(1, {size}) g"
                );
                source.execute(&sql).await;
                return Ok(size);
            }
            Self::SingleRow => {
                let sql = "INSERT INTO single (v) VALUES ('some text of a plain row');\n";
                std::fs::write(&script, sql)?;
                arguments.extend(["-f", &script_path]);
            }
            Self::TpcB => {}
        }
        let pgbench = Program::pgbench(source.install())
            .port(source.port())
            .env("PGUSER", "postgres")
            .env("PGOPTIONS", "-c synchronous_commit=off")
            .args(arguments);
        pgbench.run(MAKE_LIMIT).await.expect_success();
        Ok(per_client * CLIENTS)
    }
}

/// Marks a place in the source's stream; answers the row's id.
///
/// # Panics
/// The server refuses it.
pub async fn mark(source: &Node) -> i64 {
    let id = source
        .value("INSERT INTO mark DEFAULT VALUES RETURNING id")
        .await;
    id.parse().expect("a bigserial")
}

/// What the tables hold, to compare source and target.
///
/// # Panics
/// The server refuses to tell.
pub async fn digest(node: &Node) -> Vec<Vec<Option<String>>> {
    let sql = "SELECT (SELECT (count(*), max(id)) FROM single), (SELECT (count(*), max(id)) FROM bulk), \
         (SELECT (count(*), max(id)) FROM lag), (SELECT max(id) FROM mark), \
         (SELECT (count(*), sum(delta), sum(aid)) FROM pgbench_history), (SELECT sum(abalance) FROM pgbench_accounts), \
         (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches)";
    client::rows(&node.connect().await, sql).await
}
