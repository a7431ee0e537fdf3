//! `[proxy]`: the keys that say how server connections are shared, with PgBouncer's names where it has them.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use tandem_routing_rules::document::{Section, Value};

use super::reader::Reader;

/// For how long a client keeps its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolMode {
    /// For a transaction.
    Transaction,
    /// From login to disconnect.
    Session,
}

impl fmt::Display for PoolMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PoolMode::Transaction => "transaction",
            PoolMode::Session => "session",
        })
    }
}

/// How server connections are shared by the clients of one node, database and user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// For how long a client keeps its server.
    pub mode: PoolMode,
    /// Server connections per node, database and user.
    pub size: usize,
    /// Further ones when a client has waited for `reserve_after`.
    pub reserve: usize,
    /// After what wait the reserve is opened.
    pub reserve_after: Duration,
    /// Connections that are kept open though nobody needs them.
    pub min: usize,
    /// The longest a client may wait for a server.
    pub wait_max: Duration,
    /// After what wait a client is told that it waits; zero: never.
    pub notice_after: Duration,
    /// Idle connections beyond `min` are closed after this; zero: never.
    pub idle_max: Duration,
    /// A connection is closed when it is this old and not in use; zero: never.
    pub lifetime_max: Duration,
    /// A connection that was idle for longer is asked for a sign of life before it is used.
    pub check_after: Duration,
    /// After an attempt to connect failed, the next one waits so long, as long as other connections are there.
    pub retry_after: Duration,
    /// Prepared statements kept on one server connection.
    pub prepared_max: usize,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            mode: PoolMode::Transaction,
            size: 20,
            reserve: 0,
            reserve_after: Duration::from_secs(5),
            min: 0,
            wait_max: Duration::from_secs(120),
            notice_after: Duration::from_secs(5),
            idle_max: Duration::from_secs(600),
            lifetime_max: Duration::from_secs(3600),
            check_after: Duration::from_secs(30),
            retry_after: Duration::from_secs(1),
            prepared_max: 200,
        }
    }
}

impl Reader<'_> {
    /// Reads the keys of `[proxy]` that are about pools.
    pub(super) fn pool(&mut self, section: &mut Section<'_>) -> PoolConfig {
        let default = PoolConfig::default();
        let modes = [
            ("transaction", PoolMode::Transaction),
            ("session", PoolMode::Session),
        ];
        let mode = section
            .take("pool_mode")
            .and_then(|value| value.choice(&modes, &mut self.problems))
            .unwrap_or(default.mode);
        let size = section.take("pool_size");
        if mode == PoolMode::Session
            && let Some(value) = &size
        {
            self.warn(
                value,
                "`pool_size` has no effect with pool_mode = \"session\"",
            );
        }
        PoolConfig {
            mode,
            size: self.number(size.as_ref(), default.size, 1),
            reserve: self.count(section, "reserve_pool_size", default.reserve, 0),
            reserve_after: self.duration(
                section,
                "reserve_pool_timeout",
                default.reserve_after,
                Duration::ZERO,
            ),
            min: self.count(section, "min_pool_size", default.min, 0),
            wait_max: self.duration(
                section,
                "query_wait_timeout",
                default.wait_max,
                Duration::from_millis(10),
            ),
            notice_after: self.duration(
                section,
                "query_wait_notify",
                default.notice_after,
                Duration::ZERO,
            ),
            idle_max: self.duration(
                section,
                "server_idle_timeout",
                default.idle_max,
                Duration::ZERO,
            ),
            lifetime_max: self.duration(
                section,
                "server_lifetime",
                default.lifetime_max,
                Duration::ZERO,
            ),
            check_after: self.duration(
                section,
                "server_check_delay",
                default.check_after,
                Duration::ZERO,
            ),
            retry_after: self.duration(
                section,
                "server_login_retry",
                default.retry_after,
                Duration::from_millis(10),
            ),
            prepared_max: self.count(section, "max_prepared_statements", default.prepared_max, 1),
        }
    }

    /// A number of things; `default` when it is missing or wrong.
    pub(super) fn count(
        &mut self,
        section: &mut Section<'_>,
        key: &'static str,
        default: usize,
        min: i64,
    ) -> usize {
        let value = section.take(key);
        self.number(value.as_ref(), default, min)
    }

    fn number(&mut self, value: Option<&Value<'_>>, default: usize, min: i64) -> usize {
        value
            .and_then(|value| value.integer(min..=100_000, &mut self.problems))
            .and_then(|number| usize::try_from(number).ok())
            .unwrap_or(default)
    }
}
