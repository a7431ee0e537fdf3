//! Watermarks: WAL records that say, once they are applied, that everything before them is.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tandem_wire::lsn::Lsn;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::control::{Control, ControlError};
use crate::node::{NodeState, Shared};
use crate::status::{self, LinkStatus};

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

/// Waits until every change that was committed on any node before the call is applied on all.
///
/// # Errors
/// [`NotConverged`] at the deadline, with what is behind.
pub(crate) async fn everywhere(
    shared: &Arc<Shared>,
    deadline: Instant,
) -> Result<(), NotConverged> {
    let mut waits = JoinSet::new();
    for index in 0..shared.config.nodes.len() {
        let shared = Arc::clone(shared);
        waits.spawn(async move { (index, applied(&shared, index, deadline).await) });
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

/// The same, and that their conflicts are settled: what layered resolvers write again is applied on all, too.
///
/// # Errors
/// [`NotConverged`] at the deadline, with what is behind.
pub(crate) async fn settled(shared: &Arc<Shared>, deadline: Instant) -> Result<(), NotConverged> {
    let rewritten = || -> u64 { shared.contests.iter().map(|node| node.rewritten()).sum() };
    loop {
        let before = rewritten();
        everywhere(shared, deadline).await?;
        for (contests, node) in shared.contests.iter().zip(&shared.config.nodes) {
            let idle = tokio::time::timeout_at(deadline, contests.idle()).await;
            if idle.is_err() {
                return Err(NotConverged {
                    unreachable: vec![format!("{}: conflicts are not settled", node.name)],
                    lags: Vec::new(),
                });
            }
        }
        if rewritten() == before {
            return Ok(());
        }
    }
}

/// Writes a watermark on a node and waits until it is applied on all others; answers the links that are behind.
async fn applied(
    shared: &Shared,
    source: usize,
    deadline: Instant,
) -> Result<Vec<LinkStatus>, String> {
    let watermark = loop {
        let problem = match write_on(shared, source, deadline).await {
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
        let applied = async {
            link.wait_applied(watermark).await;
            // What is in quarantine is not applied.
            if let (Some(quarantine), Some(&source)) = (
                shared.quarantines.get(link.target),
                shared.node_ids.get(link.source),
            ) {
                quarantine.none_of(source).await;
            }
        };
        if tokio::time::timeout_at(deadline, applied).await.is_err() {
            behind.push(status::link_status(shared, link));
        }
    }
    Ok(behind)
}

/// Writes a watermark on the node with this index, once it can be asked.
///
/// # Errors
/// With the reason why it cannot be asked before the deadline.
pub(crate) async fn write_on(
    shared: &Shared,
    node: usize,
    deadline: Instant,
) -> Result<Lsn, String> {
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
    write(&control).await.map_err(|error| error.to_string())
}

/// Writes a watermark: a transaction of its own, which flushes, travels in the stream, and moves progress like any
/// other. Answers its position.
///
/// # Errors
/// When the node cannot be asked.
pub(crate) async fn write(control: &Control) -> Result<Lsn, ControlError> {
    let sql = "SELECT pg_logical_emit_message(true, 'tandem.wm', '')::text";
    let rows = control.query(sql, &[]).await?;
    let text: Option<String> = rows.first().and_then(|row| row.try_get(0).ok());
    text.and_then(|text| text.parse().ok())
        .ok_or(ControlError::Unexpected("pg_logical_emit_message"))
}
