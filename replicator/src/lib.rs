//! Keeps all nodes converged: reads each node's WAL once and applies it to all the others, in causal order, under
//! one order of versions.
//!
//! This crate knows no client session and no consensus. Its state lives in the nodes (origins, slots, schema
//! `tandem`); a daemon that is killed at any point loses nothing and repeats nothing.

mod apply;
mod capture;
pub mod check;
mod conflict;
pub mod control;
mod feed;
mod node;
mod origin;
mod pgoutput;
mod progress;
mod setup;
mod status;
mod tables;
mod transaction;
mod version;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;
use tandem_wire::connect::ConnectOptions;
use tandem_wire::lsn::Lsn;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use check::Problem;
use control::{Control, ControlError};
use feed::Feed;
use node::{NodeState, Shared};
use progress::Links;
pub use status::{LinkStatus, NodeStatus, Status};
pub use tables::TableFilter;

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

/// Not everything was applied everywhere in time.
#[derive(Debug, Clone, Serialize)]
pub struct NotConverged {
    /// Nodes whose position could not be taken, with the reason.
    pub unreachable: Vec<String>,
    /// Links that are behind.
    pub lags: Vec<LinkStatus>,
}

impl fmt::Display for NotConverged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not converged")?;
        for node in &self.unreachable {
            write!(f, "\n  {node}")?;
        }
        for lag in &self.lags {
            write!(f, "\n  {lag}")?;
        }
        Ok(())
    }
}

impl std::error::Error for NotConverged {}

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
            config,
        });
        let mut tasks = JoinSet::new();
        for index in 0..count {
            tasks.spawn(node::keep(Arc::clone(&shared), index));
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
        let deadline = Instant::now() + timeout;
        let shared = &self.shared;
        let mut waits = JoinSet::new();
        for index in 0..shared.config.nodes.len() {
            let shared = Arc::clone(shared);
            waits.spawn(async move { (index, watermark_applied(&shared, index, deadline).await) });
        }
        let mut failed = NotConverged {
            unreachable: Vec::new(),
            lags: Vec::new(),
        };
        while let Some(done) = waits.join_next().await {
            let Ok((index, result)) = done else { continue };
            let name = shared
                .config
                .nodes
                .get(index)
                .map_or("?", |node| node.name.as_str());
            match result {
                Ok(lags) => failed.lags.extend(lags),
                Err(problem) => failed.unreachable.push(format!("{name}: {problem}")),
            }
        }
        if failed.unreachable.is_empty() && failed.lags.is_empty() {
            Ok(())
        } else {
            Err(failed)
        }
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

/// Writes a watermark on a node and waits until it is applied on all others; answers the links that are behind.
async fn watermark_applied(
    shared: &Shared,
    source: usize,
    deadline: Instant,
) -> Result<Vec<LinkStatus>, String> {
    let watermark = loop {
        let problem = match write_watermark(shared, source, deadline).await {
            Ok(lsn) => break lsn,
            Err(problem) => problem,
        };
        if Instant::now() >= deadline {
            return Err(problem);
        }
        tokio::time::sleep_until(deadline.min(Instant::now() + Duration::from_millis(100))).await;
    };
    let mut behind = Vec::new();
    for link in shared.links.of_source(source) {
        if tokio::time::timeout_at(deadline, link.wait_applied(watermark))
            .await
            .is_err()
        {
            behind.push(status::link_status(shared, link));
        }
    }
    Ok(behind)
}

/// A watermark is a transaction of its own: it flushes, travels in the stream, and moves progress like any other.
async fn write_watermark(shared: &Shared, node: usize, deadline: Instant) -> Result<Lsn, String> {
    let problem = || match shared.state(node) {
        NodeState::Down { problem } => problem,
        NodeState::Connecting | NodeState::Up => "not connected yet".to_owned(),
    };
    let mut control = shared.controls.get(node).ok_or("no such node")?.subscribe();
    let control = tokio::time::timeout_at(deadline, control.wait_for(Option::is_some)).await;
    let control: Arc<Control> = control
        .ok()
        .and_then(|slot| slot.ok()?.clone())
        .ok_or_else(problem)?;
    let sql = "SELECT pg_logical_emit_message(true, 'tandem.wm', '')::text";
    let rows = control
        .query(sql, &[])
        .await
        .map_err(|error| error.to_string())?;
    let text: Option<String> = rows.first().and_then(|row| row.try_get(0).ok());
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| "unexpected answer to pg_logical_emit_message".to_owned())
}

/// Asks a node what keeps it from being a member of a cluster of `nodes` nodes.
///
/// # Errors
/// When it cannot be reached.
pub async fn check_node(node: &Node, nodes: usize) -> Result<Vec<Problem>, ControlError> {
    let control = Control::connect(&node.connect, "tandem check").await?;
    check::check(&control, nodes).await
}
