//! Owns what the pools tell about themselves: plain values, taken at one moment.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, SystemTime},
};

use serde::Serialize;

use super::{Face, Pools, lock};
use crate::{
    config::PoolMode,
    timing::{self, NodeLatency},
};

/// All pools and their servers.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figures {
    /// By node, database and user.
    pub(crate) pools: Vec<PoolFigures>,
    /// In the order in which they were opened.
    pub(crate) servers: Vec<ServerFigures>,
}

/// One pool.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PoolFigures {
    /// The node's name.
    pub(crate) node: String,
    pub(crate) database: String,
    pub(crate) user: String,
    pub(crate) mode: PoolMode,
    /// Clients that have a server.
    pub(crate) clients_active: usize,
    /// Clients that wait for one.
    pub(crate) clients_waiting: usize,
    /// Servers that a client has.
    pub(crate) servers_active: usize,
    /// Servers that wait until a cancel request has arrived.
    pub(crate) servers_canceling: usize,
    /// Servers that nobody uses.
    pub(crate) servers_idle: usize,
    /// Servers that are being opened or checked.
    pub(crate) servers_opening: usize,
    /// How long the first in the queue has waited.
    pub(crate) wait_max: Duration,
    /// What went through it since the daemon's start.
    pub(crate) totals: Totals,
}

/// What went through servers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Totals {
    /// Times that a server was given back.
    pub(crate) transactions: u64,
    /// How long transactions took, as their clients saw them.
    pub(crate) transaction_time: Duration,
    /// Query, Execute and FunctionCall messages.
    pub(crate) queries: u64,
    /// How long servers had something to do.
    pub(crate) query_time: Duration,
    /// Bytes from clients.
    pub(crate) received: u64,
    /// Bytes to clients.
    pub(crate) sent: u64,
    /// Times that a client had to wait for a server.
    pub(crate) waits: u64,
    /// The time of all those waits.
    pub(crate) waited: Duration,
}

/// What a server is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ServerState {
    /// A client has it.
    Active,
    /// A cancel request is on its way to it.
    Canceling,
    /// Nobody uses it.
    Idle,
}

/// One server connection.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ServerFigures {
    /// Counts the daemon's server connections.
    pub(crate) id: u64,
    /// The node's name.
    pub(crate) node: String,
    pub(crate) database: String,
    pub(crate) user: String,
    pub(crate) state: ServerState,
    /// The backend's process number.
    pub(crate) pid: i32,
    /// The process number that its client was given.
    pub(crate) client: Option<u32>,
    pub(crate) opened: SystemTime,
    pub(crate) tls: bool,
    /// Why its client keeps it beyond its transaction.
    pub(crate) hold: Option<String>,
    /// Prepared statements on it.
    pub(crate) prepared: u32,
    pub(crate) totals: Totals,
}

impl Totals {
    pub(super) fn add(&mut self, face: &Face) {
        let counters = &face.counters;
        self.transactions += counters.transactions.load(Ordering::Relaxed);
        self.transaction_time +=
            Duration::from_micros(counters.transaction_us.load(Ordering::Relaxed));
        self.query_time += Duration::from_micros(counters.query_us.load(Ordering::Relaxed));
        self.queries += counters.queries.load(Ordering::Relaxed);
        self.received += counters.received.load(Ordering::Relaxed);
        self.sent += counters.sent.load(Ordering::Relaxed);
    }
}

/// What went to the servers of a node, and what came from them, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) asked: u64,
    pub(crate) said: u64,
}

impl Pools {
    /// What has flowed to and from each node. It may fall back when a pool goes.
    pub(crate) fn flows(&self) -> Vec<Flow> {
        let mut flows = vec![Flow::default(); self.env.nodes.len()];
        for pool in self.all() {
            let Some(flow) = flows.get_mut(pool.key.node) else {
                continue;
            };
            let totals = *lock(&pool.totals);
            flow.asked = flow.asked.wrapping_add(totals.received);
            flow.said = flow.said.wrapping_add(totals.sent);
            for face in lock(&pool.faces).iter().filter_map(Weak::upgrade) {
                let counters = &face.counters;
                let asked = counters.received.load(Ordering::Relaxed);
                let said = counters.sent.load(Ordering::Relaxed);
                flow.asked = flow.asked.wrapping_add(asked);
                flow.said = flow.said.wrapping_add(said);
            }
        }
        flows
    }

    /// The server processes of a node's connections.
    pub(crate) fn backends(&self, node: usize) -> Vec<i32> {
        let pools = self.all().into_iter().filter(|pool| pool.key.node == node);
        let of_pool = |pool: Arc<super::Pool>| -> Vec<i32> {
            let faces = lock(&pool.faces);
            let faces = faces.iter().filter_map(Weak::upgrade);
            faces.map(|face| face.pid).collect()
        };
        pools.flat_map(of_pool).collect()
    }

    /// The times of all nodes, from all workers.
    pub(crate) async fn latency(&self) -> Vec<NodeLatency> {
        timing::merged(&self.env.workers, self.env.nodes.len()).await
    }

    /// What there is now.
    pub(crate) fn figures(&self) -> Figures {
        let mut figures = Figures {
            pools: Vec::new(),
            servers: Vec::new(),
        };
        for pool in self.all() {
            let key = pool.key();
            let node = pool.node_name().to_owned();
            let mut totals = *lock(&pool.totals);
            let faces: Vec<Arc<Face>> =
                lock(&pool.faces).iter().filter_map(Weak::upgrade).collect();
            let (mut active, mut canceling) = (0, 0);
            for face in faces {
                totals.add(&face);
                let client = face.client.load(Ordering::Relaxed);
                let state = if client != 0 {
                    active += 1;
                    ServerState::Active
                } else if face.cancels_under_way() > 0 {
                    canceling += 1;
                    ServerState::Canceling
                } else {
                    ServerState::Idle
                };
                let mut own = Totals::default();
                own.add(&face);
                figures.servers.push(ServerFigures {
                    id: face.id,
                    node: node.clone(),
                    database: key.database.clone(),
                    user: key.user.clone(),
                    state,
                    pid: face.pid,
                    client: (client != 0).then_some(client),
                    opened: face.opened,
                    tls: face.tls,
                    hold: face.hold().map(|hold| hold.to_string()),
                    prepared: face.prepared.load(Ordering::Relaxed),
                    totals: own,
                });
            }
            let counts = lock(&pool.queue).counts();
            figures.pools.push(PoolFigures {
                node,
                database: key.database.clone(),
                user: key.user.clone(),
                mode: self.env.mode,
                clients_active: active,
                clients_waiting: counts.waiting,
                servers_active: active,
                servers_canceling: canceling,
                servers_idle: counts.idle,
                servers_opening: counts.opening,
                wait_max: counts
                    .waiting_since
                    .map_or(Duration::ZERO, |since| self.env.now().saturating_sub(since)),
                totals,
            });
        }
        figures
            .pools
            .sort_by(|a, b| (&a.node, &a.database, &a.user).cmp(&(&b.node, &b.database, &b.user)));
        figures.servers.sort_by_key(|server| server.id);
        figures
    }
}
