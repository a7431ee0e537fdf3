//! Owns the forwarding of cancel requests to the node that works for a session.
//!
//! A request with a wrong key is ignored without a word, as PostgreSQL does. One with the right key is never
//! dropped silently: it waits, bounded, for its turn.

use std::{sync::Arc, time::Duration};

use tandem_wire::Credentials;
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    node::Nodes,
    session::registry::{Registry, Target},
};

/// Cancel requests under way to nodes at the same time.
const FORWARDS_AT_ONCE: usize = 128;

/// Forwards cancel requests.
#[derive(Debug)]
pub(crate) struct Canceller {
    registry: Arc<Registry>,
    nodes: Nodes,
    turns: Semaphore,
    bound: Duration,
}

impl Canceller {
    /// `bound` limits the wait for a turn, and then the request itself.
    pub(crate) fn new(registry: Arc<Registry>, nodes: Nodes, bound: Duration) -> Canceller {
        Canceller {
            registry,
            nodes,
            turns: Semaphore::new(FORWARDS_AT_ONCE),
            bound,
        }
    }

    /// Answers a client's request. Returns when the node has taken it, as PostgreSQL closes the
    /// connection only then.
    pub(crate) async fn on_request(&self, pid: i32, key: &[u8], peer: &str) {
        match self.registry.target(pid, key) {
            Some(target) => self.forward(&target).await,
            None => tracing::debug!(
                peer,
                pid,
                "cancel request with a wrong key or for no session"
            ),
        }
    }

    /// Cancels what a backend is doing.
    pub(crate) async fn forward(&self, target: &Target) {
        let Some(node) = self.nodes.get(target.node) else {
            return;
        };
        let send = async {
            let _turn = self.turns.acquire().await.ok()?;
            // Neither user nor database matter for a cancel request.
            let user = &node.config().user;
            let options = node.client_options(user, "", Credentials::None, Vec::new(), self.bound);
            let sent = timeout(
                self.bound,
                tandem_wire::cancel::cancel(&options, target.pid, target.secret.expose()),
            );
            Some(sent.await)
        };
        match timeout(self.bound * 2, send).await {
            Ok(Some(Ok(Ok(())))) => {
                tracing::debug!(node = node.name(), backend = target.pid, "cancel forwarded");
            }
            Ok(Some(Ok(Err(error)))) => {
                tracing::warn!(node = node.name(), %error, "a cancel request did not reach the node");
            }
            Ok(Some(Err(_)) | None) | Err(_) => {
                tracing::warn!(
                    node = node.name(),
                    "a cancel request did not reach the node in time"
                );
            }
        }
    }
}
