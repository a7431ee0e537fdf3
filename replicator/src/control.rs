//! Control connections to a node: short queries of Tandem's own, over `tokio-postgres`.

use std::fmt;
use std::time::Duration;

use tandem_wire::auth::Credentials;
use tandem_wire::connect::{ConnectError, ConnectOptions, dial};
use thiserror::Error;
use tokio_postgres::{Client, NoTls, Statement};

/// How long one control query may take. They touch catalogs and single rows only.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a control connection could not be opened or used.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The node was not reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The node refused the login or a query.
    #[error("{}", explain(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// The connection ended while nothing was asked.
    #[error("{0}")]
    Lost(std::io::Error),
    /// An answer that makes no sense.
    #[error("unexpected answer to {0}")]
    Unexpected(&'static str),
    /// No answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
}

impl ControlError {
    /// The SQLSTATE with which the node refused.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Postgres(error) => Some(error.as_db_error()?.code().code()),
            _ => None,
        }
    }
}

/// tokio-postgres prints "db error" alone; the server's words are what helps.
fn explain(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(server) => {
            let mut text = format!("{} (SQLSTATE {})", server.message(), server.code().code());
            for more in [server.detail(), server.hint()].into_iter().flatten() {
                text.push_str("; ");
                text.push_str(more);
            }
            text
        }
        None => {
            use std::error::Error as _;
            error
                .source()
                .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
        }
    }
}

/// A control connection. Its driver task ends with it.
pub struct Control {
    client: Client,
    driver: tokio::task::JoinHandle<()>,
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Control")
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Control {
    /// Opens one. The session's settings are pinned, so that those of the role or database do not leak in; its DDL is the
    /// node's own affair.
    ///
    /// # Errors
    /// When the node cannot be reached or refuses the login.
    pub async fn connect(
        options: &ConnectOptions,
        application_name: &str,
    ) -> Result<Self, ControlError> {
        let stream = dial(options).await?;
        let mut config = tokio_postgres::Config::new();
        config
            .user(&options.user)
            .dbname(&options.database)
            .application_name(application_name);
        config.options(
            "-c client_min_messages=warning -c search_path=pg_catalog -c synchronous_commit=on -c statement_timeout=0 -c lock_timeout=0 \
             -c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0 -c default_transaction_read_only=off \
             -c default_transaction_isolation=read\\ committed -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 \
             -c tcp_keepalives_count=3 \
             -c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=3 -c bytea_output=hex -c timezone=UTC \
             -c tandem.ddl=off",
        );
        if let Credentials::Password(password) = &options.credentials {
            config.password(password.expose());
        }
        let login = config.connect_raw(stream, NoTls);
        let (client, connection) = tokio::time::timeout(options.connect_timeout, login)
            .await
            .map_err(|_| ControlError::Timeout(options.connect_timeout))??;
        let driver = tokio::spawn(async move {
            // The client's next query reports how the connection ended.
            let _ = connection.await;
        });
        Ok(Self { client, driver })
    }

    /// The client, for queries that the caller bounds in time.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Runs a query under [`QUERY_TIMEOUT`].
    ///
    /// # Errors
    /// When the server refuses it, or does not answer in time.
    pub async fn query(
        &self,
        sql: &str,
        params: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Vec<tokio_postgres::Row>, ControlError> {
        bounded(self.client.query(sql, params)).await
    }

    /// Prepares a query that is asked often, under [`QUERY_TIMEOUT`].
    ///
    /// # Errors
    /// When the server refuses it, or does not answer in time.
    pub async fn prepare(&self, sql: &str) -> Result<Statement, ControlError> {
        bounded(self.client.prepare(sql)).await
    }

    /// Runs a prepared query under [`QUERY_TIMEOUT`]: one round trip.
    ///
    /// # Errors
    /// When the server refuses it, or does not answer in time.
    pub async fn ask(
        &self,
        statement: &Statement,
        params: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Vec<tokio_postgres::Row>, ControlError> {
        bounded(self.client.query(statement, params)).await
    }

    /// Runs statements without parameters under [`QUERY_TIMEOUT`].
    ///
    /// # Errors
    /// When the server refuses one, or does not answer in time.
    pub async fn execute(&self, sql: &str) -> Result<(), ControlError> {
        bounded(self.client.batch_execute(sql)).await
    }
}

async fn bounded<T>(
    query: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, ControlError> {
    Ok(tokio::time::timeout(QUERY_TIMEOUT, query)
        .await
        .map_err(|_| ControlError::Timeout(QUERY_TIMEOUT))??)
}
