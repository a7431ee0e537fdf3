//! Owns the nodes as the proxy reaches them: address, TLS, Tandem's own role, and how many sessions each has.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tandem_wire::{
    ConnectOptions, Credentials,
    tls::{ClientTls, TlsError},
};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::config::NodeConfig;

/// All nodes, in the order of the configuration. An index into it names a node inside of the proxy.
pub(crate) type Nodes = Arc<[Arc<Node>]>;

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    config: NodeConfig,
    tls: ClientTls,
    sessions: AtomicU32,
    logins: Semaphore,
}

/// Logins of clients under way to one node at the same time; the others wait for their turn. A thousand at once would
/// be slower for all of them.
const LOGINS_AT_ONCE: usize = 64;

/// A node's TLS settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("node {node}: {source}")]
pub struct NodeTlsError {
    /// The node's name.
    pub node: String,
    /// What is wrong.
    pub source: TlsError,
}

/// Prepares the nodes of a configuration.
pub(crate) fn nodes(configs: &[NodeConfig]) -> Result<Nodes, NodeTlsError> {
    configs
        .iter()
        .map(|config| {
            let tls = ClientTls::new(config.sslmode, config.sslrootcert.as_deref()).map_err(
                |source| NodeTlsError {
                    node: config.name.clone(),
                    source,
                },
            )?;
            let node = Node {
                config: config.clone(),
                tls,
                sessions: AtomicU32::new(0),
                logins: Semaphore::new(LOGINS_AT_ONCE),
            };
            Ok(Arc::new(node))
        })
        .collect()
}

impl Node {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// Its configuration.
    pub(crate) fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// Sessions through this proxy now.
    pub(crate) fn sessions(&self) -> u32 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// A turn to log in there. None when the node is closed for ever, which it never is.
    pub(crate) async fn login_turn(&self) -> Option<SemaphorePermit<'_>> {
        self.logins.acquire().await.ok()
    }

    /// Counts a session until the returned value is dropped.
    pub(crate) fn count_session(self: &Arc<Node>) -> CountedSession {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        CountedSession {
            node: Arc::clone(self),
        }
    }

    /// How to connect as a client's user.
    pub(crate) fn client_options(
        &self,
        user: &str,
        database: &str,
        credentials: Credentials,
        params: Vec<(String, String)>,
        connect_timeout: Duration,
    ) -> ConnectOptions {
        ConnectOptions {
            host: self.config.host.clone(),
            port: self.config.port,
            user: user.to_owned(),
            database: database.to_owned(),
            credentials,
            tls: self.tls.clone(),
            params,
            connect_timeout,
        }
    }

    /// How to connect as Tandem's own role. No parameter of any client comes near it.
    pub(crate) fn own_options(
        &self,
        database: &str,
        params: Vec<(String, String)>,
        connect_timeout: Duration,
    ) -> ConnectOptions {
        let credentials = match &self.config.password {
            Some(password) => Credentials::Password(password.clone()),
            None => Credentials::None,
        };
        self.client_options(
            &self.config.user,
            database,
            credentials,
            params,
            connect_timeout,
        )
    }
}

/// A session that counts for its node.
#[derive(Debug)]
pub(crate) struct CountedSession {
    node: Arc<Node>,
}

impl Drop for CountedSession {
    fn drop(&mut self) {
        self.node.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}
