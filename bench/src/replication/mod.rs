//! Replication benchmarks: one source, several ways to bring its changes to targets, and the bounds of all of them.
//!
//! Every way drains the *same* backlog: all their slots exist before it is written, and each way is started in its turn,
//! alone, onto servers with the same settings. The clock starts when the way's slot becomes active on the source, and
//! stops when the last transaction of the backlog, a marked row, is visible on every target.

pub mod backlog;
pub mod capture;
pub mod floor;
pub mod lag;
pub mod replay;
pub mod report;
pub mod stage;
pub mod way;

use std::path::Path;

use tandem_tests::template::DATABASE;
use tandem_wire::auth::Credentials;
use tandem_wire::connect::{ConnectOptions, connect};
use tandem_wire::connection::Connection;
use tandem_wire::tls::ClientTls;

/// Beyond the harness's settings for durable servers, the same on every server. Checkpoints and vacuum run between the
/// timed parts only; `wal_retrieve_retry_interval` lets native's workers start at once.
pub const SETTINGS: [(&str, &str); 5] = [
    ("shared_buffers", "512MB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "1h"),
    ("autovacuum", "off"),
    ("wal_retrieve_retry_interval", "100ms"),
];

/// The tables, beside pgbench's. `mark` bounds each backlog.
pub const SCHEMA: &str = "CREATE TABLE single (id bigserial PRIMARY KEY, v text); \
    CREATE TABLE bulk (id bigint PRIMARY KEY, v text); CREATE TABLE lag (id bigint PRIMARY KEY, v text); \
    CREATE TABLE mark (id bigserial PRIMARY KEY);";

/// Tables with a key, by which their rows are replicated; `pgbench_history` has none.
pub const TABLES_WITH_KEY: [&str; 7] = [
    "single",
    "bulk",
    "lag",
    "mark",
    "pgbench_accounts",
    "pgbench_branches",
    "pgbench_tellers",
];

/// pgbench's scale.
pub const PGBENCH_SCALE: u32 = 10;

/// pglogical's library for the server programs in `bin_dir`, where its package is installed (Debian's layout).
pub fn has_pglogical(bin_dir: &Path) -> bool {
    bin_dir
        .parent()
        .is_some_and(|home| home.join("lib/pglogical.so").exists())
}

/// A session of superuser `postgres` on the protocol's own level.
///
/// # Errors
/// When the server is not reached.
pub async fn raw_session(port: u16, params: &[(&str, &str)]) -> std::io::Result<Connection> {
    let options = ConnectOptions {
        host: "127.0.0.1".to_owned(),
        port,
        user: "postgres".to_owned(),
        database: DATABASE.to_owned(),
        credentials: Credentials::None,
        tls: ClientTls::disabled(),
        params: params
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        connect_timeout: std::time::Duration::from_secs(10),
    };
    connect(&options).await.map_err(std::io::Error::other)
}
