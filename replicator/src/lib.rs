//! Keeps all nodes converged: reads each node's WAL once and applies it to all the others, in causal order, under
//! one order of versions.
//!
//! This crate knows no client session and no consensus. Its state lives in the nodes (origins, slots, schema
//! `tandem`); a daemon that is killed at any point loses nothing and repeats nothing.

mod apply;
mod capture;
pub mod check;
mod collect;
mod conflict;
pub mod control;
mod feed;
mod node;
mod origin;
pub mod pgoutput;
mod progress;
mod setup;
mod status;
mod tables;
mod transaction;
mod version;
mod watermark;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tandem_wire::connect::ConnectOptions;
use tokio::sync::{Notify, RwLock, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use check::Problem;
use control::{Control, ControlError};
use feed::Feed;
use node::{NodeState, Shared};
use progress::Links;
pub use status::{LinkStatus, NodeStatus, Status};
pub use tables::TableFilter;
pub use watermark::NotConverged;

/// A member of the cluster.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its id, 1 to 1023: part of every row's version, so it is never used again for another node.
    pub id: u16,
    /// How to reach it, as Tandem's own role, in the database that is kept converged.
    pub connect: ConnectOptions,
}

/// What to keep converged, and where.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's name; part of the slots' names, so `[a-z0-9_]` only.
    pub cluster: String,
    /// The members.
    pub nodes: Vec<Node>,
    /// Which tables.
    pub tables: TableFilter,
}

/// The running replicator.
pub struct Replicator {
    shared: Arc<Shared>,
    tasks: Mutex<JoinSet<()>>,
}

impl Replicator {
    /// Starts it. A node that is down is no error: it is tried again for ever, and [`status`](Self::status) says why.
    pub fn start(config: Config) -> Self {
        let count = config.nodes.len();
        let shared = Arc::new(Shared {
            links: Arc::new(Links::new(count)),
            feeds: (0..count)
                .map(|_| Arc::new(Feed::new(node::FEED_BYTES_MAX)))
                .collect(),
            rereads: (0..count).map(|_| Arc::new(Notify::new())).collect(),
            node_ids: config.nodes.iter().map(|node| node.id).collect(),
            states: (0..count)
                .map(|_| Mutex::new(NodeState::Connecting))
                .collect(),
            controls: (0..count).map(|_| watch::Sender::new(None)).collect(),
            gates: (0..count).map(|_| Arc::new(RwLock::new(()))).collect(),
            config,
        });
        let mut tasks = JoinSet::new();
        for index in 0..count {
            tasks.spawn(node::keep(Arc::clone(&shared), index));
        }
        if count > 1 {
            tasks.spawn(collect::keep(Arc::clone(&shared)));
        }
        Self {
            shared,
            tasks: Mutex::new(tasks),
        }
    }

    /// The state of everything.
    pub fn status(&self) -> Status {
        status::status(&self.shared)
    }

    /// Waits until every change that was committed on any node before the call is applied on all.
    ///
    /// # Errors
    /// [`NotConverged`] after `timeout`, with what is behind.
    pub async fn wait_converged(&self, timeout: Duration) -> Result<(), NotConverged> {
        watermark::everywhere(&self.shared, Instant::now() + timeout).await
    }

    /// Ends all work. What is in flight is committed or not; either way the next start goes on exactly there.
    pub async fn stop(&self) {
        let mut tasks = std::mem::take(
            &mut *self
                .tasks
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        tasks.shutdown().await;
    }
}

/// Asks a node what keeps it from being a member of a cluster of `nodes` nodes.
///
/// # Errors
/// When it cannot be reached.
pub async fn check_node(node: &Node, nodes: usize) -> Result<Vec<Problem>, ControlError> {
    let control = Control::connect(&node.connect, "tandem check").await?;
    check::check(&control, nodes).await
}
