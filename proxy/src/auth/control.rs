//! Owns the control connections: one per node, as Tandem's own role, for what authentication has to ask.
//!
//! **Invariant:** nothing a client sends as a startup parameter reaches them, `search_path` is pg_catalog, and every
//! wait is bounded. A client's name travels as a parameter of a prepared statement only.

use std::{sync::Arc, time::Duration};

use tandem_wire::ConnectError;
use tokio::{sync::Mutex, task::AbortHandle, time::timeout};
use tokio_postgres::{Client, Config, NoTls, Row, config::SslMode, types::ToSql};

use crate::node::{CONTROL_SETTINGS, Node, Nodes};

/// A question to a node that got no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// The node cannot be reached.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// The login as Tandem's role or the statement failed.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// No answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
}

/// tokio_postgres shows only the outermost words of an error.
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!(
            "{}: {} (SQLSTATE {})",
            db.severity(),
            db.message(),
            db.code().code()
        ),
        None => {
            let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
            format!("{error}{}", cause.unwrap_or_default())
        }
    }
}

/// The control connections of all nodes, opened when first needed and again when lost.
#[derive(Debug)]
pub(crate) struct Control {
    nodes: Nodes,
    database: String,
    bound: Duration,
    connections: Vec<Mutex<Option<Connection>>>,
}

#[derive(Debug, Clone)]
struct Connection {
    client: Arc<Client>,
    /// Ends the driver with the last clone.
    _driver: Arc<Driver>,
}

#[derive(Debug)]
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Control {
    /// Control connections to `database` of each node, with `bound` on each step.
    pub(crate) fn new(nodes: Nodes, database: String, bound: Duration) -> Control {
        let connections = nodes.iter().map(|_| Mutex::new(None)).collect();
        Control {
            nodes,
            database,
            bound,
            connections,
        }
    }

    /// The nodes.
    pub(crate) fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// Runs one prepared statement on a node.
    pub(crate) async fn query(
        &self,
        node: usize,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, ControlError> {
        self.with(node, |connection| async move {
            Ok(connection.client.query(sql, params).await?)
        })
        .await
    }

    /// The number of columns a statement returns.
    pub(crate) async fn columns(&self, node: usize, sql: &str) -> Result<usize, ControlError> {
        self.with(node, |connection| async move {
            Ok(connection.client.prepare(sql).await?.columns().len())
        })
        .await
    }

    /// Runs something on a node's connection. One that was kept may have died unnoticed: then once more on a fresh one.
    async fn with<T, F>(
        &self,
        node: usize,
        run: impl Fn(Connection) -> F,
    ) -> Result<T, ControlError>
    where
        F: Future<Output = Result<T, ControlError>>,
    {
        let (connection, kept) = self.connection(node).await?;
        let result = self.bounded(run(connection.clone())).await;
        match result {
            Err(ControlError::Postgres(error)) if error.as_db_error().is_none() && kept => {
                self.forget(node, &connection).await;
                let (connection, _) = self.connection(node).await?;
                self.bounded(run(connection)).await
            }
            Err(ControlError::Timeout(_)) => {
                // Whatever hangs there, the next question does not wait behind it.
                self.forget(node, &connection).await;
                result
            }
            _ => result,
        }
    }

    async fn bounded<T>(
        &self,
        work: impl Future<Output = Result<T, ControlError>>,
    ) -> Result<T, ControlError> {
        timeout(self.bound, work)
            .await
            .unwrap_or(Err(ControlError::Timeout(self.bound)))
    }

    async fn forget(&self, node: usize, used: &Connection) {
        if let Some(slot) = self.connections.get(node) {
            let mut slot = slot.lock().await;
            if slot
                .as_ref()
                .is_some_and(|kept| Arc::ptr_eq(&kept.client, &used.client))
            {
                *slot = None;
            }
        }
    }

    /// The connection of a node, and whether it was there before.
    async fn connection(&self, node: usize) -> Result<(Connection, bool), ControlError> {
        let unknown = || ControlError::Timeout(Duration::ZERO);
        let slot = self.connections.get(node).ok_or_else(unknown)?;
        let node = self.nodes.get(node).ok_or_else(unknown)?;
        // Connecting under the lock: those who ask meanwhile share the outcome's connection.
        let mut slot = slot.lock().await;
        if let Some(kept) = slot.as_ref().filter(|kept| !kept.client.is_closed()) {
            return Ok((kept.clone(), true));
        }
        let fresh = self.bounded(self.connect(node)).await?;
        *slot = Some(fresh.clone());
        Ok((fresh, false))
    }

    async fn connect(&self, node: &Node) -> Result<Connection, ControlError> {
        let options = node.control_options(&self.database, APPLICATION, self.bound);
        let stream = tandem_wire::dial(&options).await?;
        let mut config = Config::new();
        config
            .user(&node.config().user)
            .dbname(&self.database)
            .application_name(APPLICATION)
            .options(CONTROL_SETTINGS)
            // The stream is encrypted already where the node's sslmode says so.
            .ssl_mode(SslMode::Disable);
        if let Some(password) = &node.config().password {
            config.password(password.expose());
        }
        let (client, connection) = config.connect_raw(stream, NoTls).await?;
        let name = node.name().to_owned();
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(node = name, %error, "control connection ended");
            }
        });
        Ok(Connection {
            client: Arc::new(client),
            _driver: Arc::new(Driver(driver.abort_handle())),
        })
    }
}

const APPLICATION: &str = "tandem auth";
