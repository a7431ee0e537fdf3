//! Owns the forwarding of cancel requests to the node that works for a session.
//!
//! A request with a wrong key is ignored without a word, as PostgreSQL does. One with the right key is never
//! dropped silently: it waits, bounded, for its turn and for what the client sent before it, and is repeated while the
//! statement goes on as if nothing had been.

use std::{sync::Arc, time::Duration};

use tandem_wire::Credentials;
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

use crate::{
    bound::Bound,
    node::Nodes,
    pool::CancelUnderWay,
    session::registry::{Cancel, Registry},
};

/// Cancel requests under way to nodes at the same time.
const FORWARDS_AT_ONCE: usize = 128;

/// How long a session may take to look at what its client has sent.
const CATCH_UP: Duration = Duration::from_secs(1);

/// How long a statement may go on after each request before the next one is sent.
const PATIENCE: [Duration; 3] = [
    Duration::from_millis(5),
    Duration::from_millis(25),
    Duration::from_millis(125),
];

/// Forwards cancel requests.
#[derive(Debug)]
pub(crate) struct Canceller {
    registry: Arc<Registry>,
    nodes: Nodes,
    turns: Semaphore,
    bound: Bound,
}

impl Canceller {
    /// `bound` limits the wait for a turn, and then the request itself.
    pub(crate) fn new(registry: Arc<Registry>, nodes: Nodes, bound: Bound) -> Canceller {
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
        let Some(session) = self.registry.holder(pid, key) else {
            tracing::debug!(peer, pid, "cancel request with a wrong key");
            return;
        };
        session.catch_up(CATCH_UP).await;
        let answered = session.answered();
        match session.cancel() {
            Cancel::Forward(cancel) => {
                self.forward(cancel).await;
                for patience in PATIENCE {
                    sleep(patience).await;
                    match session.cancel_again(answered) {
                        Some(cancel) => self.forward(cancel).await,
                        None => break,
                    }
                }
            }
            Cancel::Answered => tracing::debug!(peer, pid, "a statement that waited is cancelled"),
            Cancel::Nothing => tracing::debug!(peer, pid, "cancel request while nothing runs"),
        }
    }

    /// Cancels what a backend is doing. Whoever has the server keeps it until the request has arrived; one of which
    /// nobody knows whether it did is closed.
    pub(crate) async fn forward(&self, cancel: CancelUnderWay) {
        let face = cancel.face();
        let Some(node) = self.nodes.get(face.node) else {
            return;
        };
        let (pid, bound) = (face.pid, self.bound.get());
        let send = async {
            let _turn = self.turns.acquire().await.ok()?;
            // Neither user nor database matter for a cancel request.
            let user = &node.config().user;
            let options = node.client_options(user, "", Credentials::None, Vec::new(), bound);
            let sent = timeout(
                bound,
                tandem_wire::cancel::cancel(&options, pid, face.secret.expose()),
            );
            Some(sent.await)
        };
        let sent = timeout(bound * 2, send).await;
        match sent {
            Ok(Some(Ok(Ok(())))) => {
                tracing::debug!(node = node.name(), backend = pid, "cancel forwarded");
                cancel.arrived();
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
