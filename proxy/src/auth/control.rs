//! Owns the control connections: one per node, as Tandem's own role, for what authentication has to ask.
//!
//! **Invariant:** nothing a client sends as a startup parameter reaches them, `search_path` is pg_catalog, and every
//! wait is bounded. A client's name travels as a parameter of a prepared statement only.

use std::{sync::Arc, time::Duration};

use tandem_replicator::control::Control as Connection;
pub(crate) use tandem_replicator::control::ControlError;
use tokio::{sync::Mutex, time::timeout};
use tokio_postgres::{Row, types::ToSql};

use crate::{bound::Bound, node::Nodes};

/// The control connections of all nodes, opened when first needed and again when lost.
#[derive(Debug)]
pub(crate) struct Control {
    nodes: Nodes,
    database: String,
    bound: Bound,
    connections: Vec<Mutex<Option<Arc<Connection>>>>,
}

impl Control {
    /// Control connections to `database` of each node, with `bound` on each step.
    pub(crate) fn new(nodes: Nodes, database: String, bound: Bound) -> Control {
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
            Ok(connection.client().query(sql, params).await?)
        })
        .await
    }

    /// The number of columns a statement returns.
    pub(crate) async fn columns(&self, node: usize, sql: &str) -> Result<usize, ControlError> {
        self.with(node, |connection| async move {
            Ok(connection.client().prepare(sql).await?.columns().len())
        })
        .await
    }

    /// Runs something on a node's connection. One that was kept may have died unnoticed: then once more on a fresh one.
    async fn with<T, F>(
        &self,
        node: usize,
        run: impl Fn(Arc<Connection>) -> F,
    ) -> Result<T, ControlError>
    where
        F: Future<Output = Result<T, ControlError>>,
    {
        let (connection, kept) = self.connection(node).await?;
        let result = self.bounded(run(Arc::clone(&connection))).await;
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
        let bound = self.bound.get();
        timeout(bound, work)
            .await
            .unwrap_or(Err(ControlError::Timeout(bound)))
    }

    async fn forget(&self, node: usize, used: &Arc<Connection>) {
        if let Some(slot) = self.connections.get(node) {
            let mut slot = slot.lock().await;
            if slot.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, used)) {
                *slot = None;
            }
        }
    }

    /// The connection of a node, and whether it was there before.
    async fn connection(&self, node: usize) -> Result<(Arc<Connection>, bool), ControlError> {
        let unknown = || ControlError::Timeout(Duration::ZERO);
        let slot = self.connections.get(node).ok_or_else(unknown)?;
        let node = self.nodes.get(node).ok_or_else(unknown)?;
        // Connecting under the lock: those who ask meanwhile share the outcome's connection.
        let mut slot = slot.lock().await;
        if let Some(kept) = slot.as_ref().filter(|kept| !kept.is_closed()) {
            return Ok((Arc::clone(kept), true));
        }
        let options = node.own_options(&self.database, Vec::new(), self.bound.get());
        let fresh = Arc::new(Connection::connect(&options, APPLICATION).await?);
        *slot = Some(Arc::clone(&fresh));
        Ok((fresh, false))
    }
}

const APPLICATION: &str = "tandem auth";
