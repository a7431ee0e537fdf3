//! The configuration: `tandem.toml` and the rules file it names, read and validated as a whole.

mod auth;
mod error;
mod limits;
mod listen;
mod node;
mod pool;
mod quantity;
mod read;
mod reader;
mod replication;
mod secrets;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tandem_replicator::{DdlPolicy, TableFilter, TablePolicy, Tables};
use tandem_routing_rules::Rules;
use tandem_wire::Secret;
use tandem_wire::tls::{ClientTlsMode, SslMode};
use tracing::level_filters::LevelFilter;

use crate::auth::HostRules;

pub use error::{ConfigError, ConfigProblem};
pub use limits::LimitsConfig;
pub use pool::{PoolConfig, PoolMode};
pub use quantity::parse_duration;
pub use settings::{Changes, Setting};

/// A valid configuration. Paths are absolute. Its `Debug` output shows no secret.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from.
    pub path: PathBuf,
    /// The cluster's name, `[a-z0-9_]{1,32}`; part of replication slot names.
    pub cluster: String,
    /// Where the daemon keeps what must survive it.
    pub state_dir: PathBuf,
    /// `[proxy]`
    pub proxy: ProxyConfig,
    /// `[auth]`
    pub auth: AuthConfig,
    /// `[limits]`
    pub limits: LimitsConfig,
    /// `[admin]`
    pub admin: AdminConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[replication]`
    pub replication: ReplicationConfig,
    /// `[[node]]`, at least one, with unique names and ids.
    pub nodes: Vec<NodeConfig>,
    /// The rules file's content; the default rules when none is named.
    pub rules: Rules,
    /// The rules file.
    pub rules_file: Option<PathBuf>,
    /// What is allowed but should be known, one sentence each.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads and validates a configuration with all files it names.
    ///
    /// # Errors
    /// [`ConfigError`] with every problem of all files at once.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        read::load(path, &|name| std::env::var(name).ok())
    }

    /// The files whose contents make a configuration: its own and the rules file that it names, as far as it can be read.
    pub(crate) fn files(path: &Path) -> Vec<PathBuf> {
        read::files(path)
    }
}

/// `[proxy]`
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// Where clients connect; at least one.
    pub listen: Vec<Listen>,
    /// Whether another daemon of the same user may listen on the same addresses, as for a rolling restart.
    pub so_reuseport: bool,
    /// The zone this daemon stands in; nodes of the same zone are nearest.
    pub zone: Option<String>,
    /// Threads that serve clients.
    pub workers: usize,
    /// How server connections are shared.
    pub pool: PoolConfig,
    /// More clients than this get 53300.
    pub max_client_connections: usize,
    /// Bound on a client's TLS handshake and login.
    pub client_login_timeout: Duration,
    /// Bound on connecting and logging in to a node.
    pub server_connect_timeout: Duration,
    /// How long a client waits to hear what has become of its COMMIT when its node is lost.
    pub commit_outcome_wait: Duration,
    /// How long a smart shutdown waits for sessions to end.
    pub shutdown_timeout: Duration,
    /// Time between two probes of a node.
    pub probe_interval: Duration,
    /// A probe without an answer after this long has failed.
    pub probe_timeout: Duration,
    /// How long a node keeps its keys while it restarts because a server process of it has crashed.
    pub restart_wait: Duration,
    /// Reads leave a node that lacks what others wrote longer ago than this; zero: never.
    pub read_lag_max: Duration,
    /// How keys get another home.
    pub handoff: HandoffConfig,
    /// TLS towards clients.
    pub tls: Option<ProxyTls>,
}

/// `handoff_…` of `[proxy]`: how keys get another home while they are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandoffConfig {
    /// New writes are made to wait only while no transaction is older than this, and wait no longer for one.
    pub soft: Duration,
    /// After this, what is in the way is dealt with.
    pub hard: Duration,
    /// How.
    pub at_bound: AtBound,
}

/// What is done when transactions, or sessions that keep their servers, are still in the way of a handoff at its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AtBound {
    /// Nothing: all stays as it was.
    #[default]
    Stay,
    /// They are ended.
    Abort,
    /// The keys move all the same.
    GoOn,
}

impl fmt::Display for AtBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stay => "stay",
            Self::Abort => "abort",
            Self::GoOn => "go_on",
        })
    }
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket `.s.PGSQL.PORT` in a directory, where libpq looks for it.
    Unix {
        /// The directory.
        dir: PathBuf,
        /// The port in the socket's name.
        port: u16,
    },
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { dir, port } => write!(f, "unix:{}:{port}", dir.display()),
        }
    }
}

/// `[proxy.tls]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyTls {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// Certificates that sign client certificates, PEM.
    pub client_ca: Option<PathBuf>,
    /// Whether clients may or must use TLS.
    pub mode: ClientTlsMode,
}

/// `[auth]`. With neither `users_file` nor `query`, the verifier is read from a node's `pg_authid` (pass-through).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthConfig {
    /// Who may come in from where, and how they prove who they are: `method` for everybody, or the rules of `hba` or
    /// `hba_file`.
    pub rules: HostRules,
    /// Users and verifiers in PgBouncer's format.
    pub users_file: Option<PathBuf>,
    /// A query that returns user and verifier for `$1`.
    pub query: Option<String>,
}

/// How clients prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    /// `scram-sha-256`
    ScramSha256,
    /// `md5`
    Md5,
    /// `trust`: no proof.
    Trust,
    /// `cert`: a client certificate whose common name is the user.
    Cert,
}

impl AuthMethod {
    /// Whether a client is checked against its user's secret.
    pub fn needs_secret(self) -> bool {
        match self {
            Self::ScramSha256 | Self::Md5 => true,
            Self::Trust | Self::Cert => false,
        }
    }
}

impl fmt::Display for AuthMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ScramSha256 => "scram-sha-256",
            Self::Md5 => "md5",
            Self::Trust => "trust",
            Self::Cert => "cert",
        })
    }
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminConfig {
    /// Where the admin HTTP server listens.
    pub listen: SocketAddr,
    /// The file with the token; the daemon writes it (mode 0600) when it is missing.
    pub token_file: PathBuf,
    /// Users who may do everything in the console.
    pub users: Vec<String>,
    /// Users who may look at figures in the console.
    pub readers: Vec<String>,
}

impl AdminConfig {
    /// Reads only what is needed to reach the daemon's admin port. All else in the file may be wrong, or meant for
    /// another environment (`password_env`).
    ///
    /// # Errors
    /// [`ConfigError`] with every problem of that part.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        read::load_admin(path)
    }
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// The least severe lines that are written. The environment variable `TANDEM_LOG` wins over it.
    pub level: LevelFilter,
    /// Statements that take at least as long are logged without their literals; zero: none.
    pub slow_statement: Duration,
}

/// `[replication]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicationConfig {
    /// The database kept converged.
    pub database: String,
    /// `schema.table` patterns; empty: every table.
    pub include: Vec<String>,
    /// `schema.table` patterns taken out of `include`.
    pub exclude: Vec<String>,
    /// `[replication.table."schema.table"]`, by schema and table.
    pub policies: HashMap<(String, String), TablePolicy>,
    /// `[replication.ddl]`: which DDL goes to the other nodes.
    pub ddl: DdlPolicy,
    /// Where the journals are; nobody else may use it.
    pub journal_dir: PathBuf,
    /// Bytes of one node's journal at most.
    pub journal_max: u64,
    /// A node that is more bytes of WAL behind than this is carried by the journal.
    pub journal_carry_bytes: u64,
    /// A node that is behind for longer than this is carried by the journal.
    pub journal_carry_after: Duration,
    /// So many transactions that wait to be applied to a node are merged instead of replayed; 0: never.
    pub group_apply: usize,
    /// A node whose clock is further from the others' than this gets no sessions.
    pub clock_offset_max: Duration,
    /// What becomes of large objects, which are in no node's stream of changes.
    pub large_objects: LargeObjects,
}

/// What becomes of large objects in the replicated database, with several nodes and in transaction mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LargeObjects {
    /// There are none: what uses them fails with 0A000.
    #[default]
    Refuse,
    /// They are on the database's default home only.
    Home,
}

impl fmt::Display for LargeObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refuse => "refuse",
            Self::Home => "home",
        })
    }
}

impl ReplicationConfig {
    /// Which tables are kept converged, and how.
    pub fn tables(&self) -> Tables {
        Tables {
            filter: TableFilter {
                include: self.include.clone(),
                exclude: self.exclude.clone(),
            },
            policies: self.policies.clone(),
            ddl: self.ddl.clone(),
        }
    }
}

/// `[[node]]`
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Unique name.
    pub name: String,
    /// Unique id, 1 to 1023, never reused.
    pub id: u16,
    /// Name, IP address, or the absolute directory of a unix socket.
    pub host: String,
    /// TCP port, or the one in the socket's name.
    pub port: u16,
    /// Tandem's own role.
    pub user: String,
    /// That role's password, from wherever it was given.
    pub password: Option<Secret>,
    /// The zone the node stands in.
    pub zone: Option<String>,
    /// TLS towards the node, in libpq's words.
    pub sslmode: SslMode,
    /// Certificates that sign the node's certificate, PEM.
    pub sslrootcert: Option<PathBuf>,
}
