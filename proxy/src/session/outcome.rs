//! Owns how it is found out what has become of a transaction whose server was lost while it was being committed, or prepared: from the
//! stream of its node's changes, or from the node, when it is back.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tandem_replicator::Replicator;
use tandem_routing_rules::state::Modes;
use tokio::time::{Instant, sleep};
use tokio_postgres::types::ToSql;

use super::{Shared, owed::Item, profile::ServerSettings, trace::Control};
use crate::{auth::control::Control as Connections, health::HealthBoard, pool::Server};

/// What has become of the transaction `$1` of a connection that is `$2` seconds old and was lost `$4` seconds ago: its state; whether
/// that is surely of this one; whether it is prepared; whether the node is the one of the system identifier `$3`.
///
/// A server that crashes gives numbers once more of which nothing was on disk. The checkpointer is started anew then
/// (`PostmasterStateMachine` in postmaster.c), and what was committed or prepared before that is of before. But it may have crashed
/// twice since: what came behind the loss decides nothing. Nor does what has an origin: its time is that of another node's commit. All
/// other times are the node's own.
const OUTCOME: &str = "SELECT pg_catalog.pg_xact_status(x.xid8), \
    life.begun < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $2) \
    OR coalesce(two.prepared, CASE done.roident WHEN 0 THEN done.timestamp END) \
    < LEAST(life.begun, pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $4)), \
    two.prepared IS NOT NULL, \
    $3::pg_catalog.int8 IS NULL OR $3 = (SELECT system_identifier FROM pg_catalog.pg_control_system()) \
    FROM (SELECT $1::pg_catalog.text::pg_catalog.xid8 AS xid8) AS x \
    CROSS JOIN (SELECT backend_start AS begun FROM pg_catalog.pg_stat_activity WHERE backend_type = 'checkpointer') AS life \
    CROSS JOIN pg_catalog.pg_xact_commit_timestamp_origin(x.xid8::pg_catalog.xid) AS done \
    LEFT JOIN pg_catalog.pg_prepared_xacts AS two ON two.transaction = x.xid8::pg_catalog.xid";
/// How often a node is asked for that which has no answer yet.
const NODE_GAP: Duration = Duration::from_millis(100);
/// How often it is looked at whether the stream has brought it.
const STREAM_GAP: Duration = Duration::from_millis(20);

/// A COMMIT of which nobody knows yet what has become, or a PREPARE TRANSACTION.
#[derive(Debug)]
pub(super) struct Doubt {
    pub(super) node: usize,
    /// What its client waits for.
    pub(super) items: Vec<Item>,
    /// What the server was taken to have set.
    pub(super) settings: ServerSettings,
    /// How its block was begun.
    pub(super) modes: Modes,
    /// Whether it has done what it was to do, once that is known.
    pub(super) found: Arc<OnceLock<bool>>,
}

/// A transaction of which somebody wants to know what has become.
pub(super) struct Question {
    node: usize,
    xid: u64,
    /// When its connection was begun.
    opened: Instant,
    /// When that was lost.
    lost: Instant,
    /// The node's system identifier then.
    system: Option<i64>,
    connections: Arc<Connections>,
    health: Arc<HealthBoard>,
    replicator: Arc<Replicator>,
    found: Arc<OnceLock<bool>>,
}

/// What a node says of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    status: Option<String>,
    is_ours: Option<bool>,
    is_prepared: Option<bool>,
    is_same_node: Option<bool>,
}

/// What that means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Means {
    /// It has committed, or is prepared, or not.
    Known(bool),
    /// It may be known later. A transaction that a server still works on is in progress, and one that was cut off by a crash is
    /// aborted.
    NotYet,
    /// Whoever was asked cannot know.
    Never,
}

impl Said {
    fn means(&self) -> Means {
        let is_ours = self.is_ours == Some(true);
        match self.status.as_deref() {
            _ if self.is_same_node == Some(false) => Means::Never,
            Some("committed") if is_ours => Means::Known(true),
            // Only PREPARE TRANSACTION brings it there.
            Some("in progress") if self.is_prepared == Some(true) && is_ours => Means::Known(true),
            // So is ours, if the number is another one's by now.
            Some("aborted") => Means::Known(false),
            _ => Means::NotYet,
        }
    }
}

impl Question {
    /// What has become of the transaction of this number that a server which is lost was working on.
    pub(super) fn new(
        shared: &Shared,
        server: &Server,
        xid: u64,
        opened: Instant,
        found: Arc<OnceLock<bool>>,
    ) -> Question {
        Question {
            node: server.face.node,
            xid,
            opened,
            lost: Instant::now(),
            system: server.face.system,
            connections: Arc::clone(&shared.control),
            health: Arc::clone(&shared.health),
            replicator: Arc::clone(&shared.replicator),
            found,
        }
    }

    /// Asks until it is known, or known that it will never be.
    pub(super) async fn ask(self) {
        let found = tokio::select! {
            biased;
            () = self.is_in_stream() => Some(true),
            found = self.ask_node() => found,
        };
        if let Some(found) = found {
            // Nobody else says so.
            let _ = self.found.set(found);
        }
    }

    /// Returns when the stream of the node has shown that it is committed, which may be before the node is lost. That it has not
    /// shown it proves nothing.
    async fn is_in_stream(&self) {
        while !self
            .replicator
            .has_committed(self.node, self.xid, self.opened)
        {
            sleep(STREAM_GAP).await;
        }
    }

    async fn ask_node(&self) -> Option<bool> {
        let xid = self.xid.to_string();
        loop {
            let news = self.health.news(self.node);
            let age = self.opened.elapsed().as_secs_f64();
            let lost = self.lost.elapsed().as_secs_f64();
            let asked: [&(dyn ToSql + Sync); 4] = [&xid, &age, &self.system, &lost];
            let rows = self.connections.query(self.node, OUTCOME, &asked).await;
            let rows = rows.unwrap_or_default();
            let said = rows.first().map(|row| Said {
                status: row.try_get(0).ok().flatten(),
                is_ours: row.try_get(1).ok().flatten(),
                is_prepared: row.try_get(2).ok().flatten(),
                is_same_node: row.try_get(3).ok().flatten(),
            });
            match said.map_or(Means::NotYet, |said| said.means()) {
                Means::Known(found) => return Some(found),
                Means::Never => return None,
                Means::NotYet => {}
            }
            tokio::select! {
                () = news => {}
                () = sleep(NODE_GAP) => {}
            }
        }
    }
}

impl Doubt {
    /// What it was to end its transaction with.
    pub(super) fn control(&self) -> Control {
        self.ends().map_or(Control::None, |item| item.control)
    }

    /// The message that was to end its transaction.
    pub(super) fn ends(&self) -> Option<&Item> {
        let mut items = self.items.iter();
        items.find(|item| item.control.can_be_asked_for().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_surely_is_the_same_transaction_of_the_same_node_is_believed() {
        let (yes, no) = (Some(true), Some(false));
        let table = [
            ("committed", yes, no, yes, Means::Known(true)),
            // The number may have been given once more.
            ("committed", no, no, yes, Means::NotYet),
            ("committed", None, no, yes, Means::NotYet),
            ("aborted", yes, no, yes, Means::Known(false)),
            ("aborted", no, no, yes, Means::Known(false)),
            ("in progress", yes, no, yes, Means::NotYet),
            ("in progress", yes, yes, yes, Means::Known(true)),
            ("in progress", no, yes, yes, Means::NotYet),
            // Another node of the same name.
            ("committed", yes, no, no, Means::Never),
            ("aborted", yes, no, no, Means::Never),
            ("in progress", yes, yes, no, Means::Never),
        ];
        for (status, is_ours, is_prepared, is_same_node, wanted) in table {
            let said = Said {
                status: Some(status.to_owned()),
                is_ours,
                is_prepared,
                is_same_node,
            };
            assert_eq!(said.means(), wanted, "{said:?}");
        }
        let nothing = Said {
            status: None,
            is_ours: None,
            is_prepared: None,
            is_same_node: None,
        };
        assert_eq!(nothing.means(), Means::NotYet);
    }
}
