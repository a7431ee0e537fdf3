//! Owns the server connections that clients share: one pool per node, database and user, and per startup
//! parameters that cannot be set later.
//!
//! A pool's queue (`queue.rs`) decides, under a lock that is held for a few instructions; opening and checking happen in
//! tasks of their own, so that a client that goes away takes no connection with it. Whoever has a [`Server`] uses it alone;
//! dropping it closes it.
//!
//! **Invariant:** a server goes from one client to the next through [`release`] only, which closes whatever is not settled.

pub(crate) mod figures;
mod kinds;
mod open;
mod pause;
mod queue;
mod server;
mod wait;

use std::{
    cell::Cell,
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tandem_wire::Credentials;
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
};

use crate::{
    bound::Bound,
    config::{PoolConfig, PoolMode},
    health::{Health, HealthBoard},
    node::{Node, Nodes},
    session::prepared::Interner,
};
use kinds::Kinds;
use pause::Paused;
use queue::{Asked, Job, Queue};
use wait::Ticket;

pub(crate) use kinds::{Kind, Known};
pub(crate) use open::OpenError;
pub(crate) use server::{CancelUnderWay, Face, Server, add};
pub(crate) use wait::{Wait, WaitError};

/// How often the queues are looked at for what is due by time; also the resolution of their clock.
const TICK: Duration = Duration::from_millis(100);

thread_local! {
    static WORKER: Cell<usize> = const { Cell::new(0) };
}

/// The number of the worker thread that this runs on; 0 on others.
pub(crate) fn current_worker() -> usize {
    WORKER.get()
}

/// Says which worker the current thread is.
pub(crate) fn set_current_worker(worker: usize) {
    WORKER.set(worker);
}

/// Names and values of settings.
pub(crate) type Params = Arc<[(String, String)]>;

/// What identifies a pool: only clients that are alike in all of it share servers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// Index of the node.
    pub(crate) node: usize,
    pub(crate) database: String,
    pub(crate) user: String,
    /// What else a server is told at its login: what no session can set. All that its client said in session mode.
    pub(crate) params: Params,
}

/// What all pools share.
#[derive(Debug)]
pub(crate) struct Env {
    mode: PoolMode,
    /// Of pools that come later; each has its own copy. Changes under the lock of `Pools::pools`.
    limits: ArcSwap<PoolConfig>,
    connect_timeout: Bound,
    nodes: Nodes,
    health: Arc<HealthBoard>,
    workers: Vec<Handle>,
    started: Instant,
    /// Milliseconds since `started`, moved by the tick.
    now_ms: AtomicU64,
    servers: AtomicU64,
    /// Changes under the lock of `Pools::pools`.
    paused: watch::Sender<Paused>,
    /// A server of a pool that is paused is closed.
    lost: Notify,
}

impl Env {
    /// The time of the queues, from the daemon's start.
    fn now(&self) -> Duration {
        Duration::from_millis(self.now_ms.load(Ordering::Relaxed))
    }

    fn node(&self, node: usize) -> Option<&Arc<Node>> {
        self.nodes.get(node)
    }
}

/// All pools.
#[derive(Debug)]
pub(crate) struct Pools {
    env: Arc<Env>,
    pools: Mutex<HashMap<Key, Arc<Pool>>>,
    /// The prepared statements of all clients.
    pub(crate) statements: Arc<Interner>,
    sessions: AtomicU32,
}

/// The servers of one [`Key`].
#[derive(Debug)]
pub(crate) struct Pool {
    key: Key,
    env: Arc<Env>,
    queue: Mutex<Queue<Box<Server>, Arc<Ticket>>>,
    credentials: Mutex<Credentials>,
    /// What its servers make of what clients set at login.
    kinds: Mutex<Kinds>,
    /// A client has looked at a sequence's value.
    looked: AtomicBool,
    /// Everyone that exists, for figures.
    faces: Mutex<Vec<Weak<Face>>>,
    /// What went through servers that are closed, and how clients have waited.
    totals: Mutex<figures::Totals>,
}

/// The limits of pools by a configuration.
fn effective(config: &PoolConfig) -> PoolConfig {
    let mut limits = config.clone();
    if limits.mode == PoolMode::Session {
        // Every session has a server of its own.
        limits.size = usize::MAX / 2;
        limits.min = 0;
    }
    limits
}

/// A server now, or a place in the queue.
#[derive(Debug)]
pub(crate) enum Turn {
    /// One that nobody else used.
    Now(Box<Server>),
    /// It will come.
    Later(Wait),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that panics half-way runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pools {
    /// No pool yet. Servers are opened on `workers`, each within `connect_timeout`.
    pub(crate) fn new(
        config: &PoolConfig,
        connect_timeout: Bound,
        nodes: Nodes,
        health: Arc<HealthBoard>,
        workers: Vec<Handle>,
    ) -> Pools {
        Pools {
            env: Arc::new(Env {
                mode: config.mode,
                limits: ArcSwap::from_pointee(effective(config)),
                connect_timeout,
                nodes,
                health,
                workers,
                started: Instant::now(),
                now_ms: AtomicU64::new(0),
                servers: AtomicU64::new(0),
                paused: watch::Sender::default(),
                lost: Notify::new(),
            }),
            pools: Mutex::default(),
            statements: Arc::default(),
            sessions: AtomicU32::new(0),
        }
    }

    /// Other limits from now on, for all pools. Their connections stay, but for what is one too many; the number of prepared
    /// statements counts for connections that are opened later.
    pub(crate) fn set_limits(&self, config: &PoolConfig) {
        let limits = effective(config);
        let pools = lock(&self.pools);
        self.env.limits.store(Arc::new(limits.clone()));
        for pool in pools.values() {
            lock(&pool.queue).set_limits(limits.clone());
        }
    }

    /// The pool for these clients. Servers are opened with the credentials that were proven last.
    pub(crate) fn get(&self, key: Key, credentials: &Credentials) -> Arc<Pool> {
        let mut pools = lock(&self.pools);
        if let Some(pool) = pools.get(&key) {
            // Who came in by trust or with a certificate brings nothing that opens a server.
            if *credentials != Credentials::None {
                *lock(&pool.credentials) = credentials.clone();
            }
            return Arc::clone(pool);
        }
        let mut queue = Queue::new(
            self.env.limits.load().as_ref().clone(),
            self.env.workers.len(),
        );
        if self.paused().covers(&key.database) {
            queue.pause();
        }
        queue.retire(self.env.health.health(key.node) == Health::Drained);
        let pool = Arc::new(Pool {
            key: key.clone(),
            env: Arc::clone(&self.env),
            queue: Mutex::new(queue),
            credentials: Mutex::new(credentials.clone()),
            kinds: Mutex::default(),
            looked: AtomicBool::new(false),
            faces: Mutex::default(),
            totals: Mutex::default(),
        });
        pools.insert(key, Arc::clone(&pool));
        pool
    }

    /// A number for a session, from 1.
    pub(crate) fn next_session(&self) -> u32 {
        self.sessions
            .fetch_add(1, Ordering::Relaxed)
            .wrapping_add(1)
            .max(1)
    }

    /// Does for ever what is due by time.
    pub(crate) async fn tick(&self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let elapsed = self.env.started.elapsed();
            let now_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
            self.env.now_ms.store(now_ms, Ordering::Relaxed);
            let pools: Vec<_> = lock(&self.pools).values().cloned().collect();
            for pool in pools {
                pool.tick();
            }
            lock(&self.pools).retain(|_, pool| Arc::strong_count(pool) > 1 || !pool.is_unused());
        }
    }

    /// Closes the connections of clients to a node, each as soon as it is free, and keeps none that is opened later; or does so
    /// no more. Who waits for one there hears of it.
    pub(crate) fn retire(&self, node: usize, retired: bool) {
        let of_node = self.all().into_iter().filter(|pool| pool.key.node == node);
        for pool in of_node {
            let (idle, waiting) = lock(&pool.queue).retire(retired);
            idle.into_iter().for_each(Server::close);
            for ticket in waiting {
                ticket.fail(WaitError::Left);
            }
        }
    }

    /// Connections of clients to a node, in use or not.
    pub(crate) fn connections(&self, node: usize) -> usize {
        let pools = self.all();
        let of_node = pools.iter().filter(|pool| pool.key.node == node);
        of_node.map(|pool| lock(&pool.queue).counts().open).sum()
    }

    /// All pools now.
    fn all(&self) -> Vec<Arc<Pool>> {
        lock(&self.pools).values().cloned().collect()
    }

    /// Closes every idle connection: at the daemon's end.
    pub(crate) fn close(&self) {
        for pool in self.all() {
            pool.close_idle();
        }
    }
}

impl Pool {
    /// What identifies it.
    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// The name of its node.
    pub(crate) fn node_name(&self) -> &str {
        self.env.node(self.key.node).map_or("?", |node| node.name())
    }

    /// A client's connection to its node has shown something that may be the node's end.
    pub(crate) fn note_evidence(&self) {
        self.env.health.evidence(self.key.node);
    }

    /// One of its servers ended without a word, or said that another server process of its node has crashed.
    pub(crate) fn note_crash(&self) {
        self.env.health.crashed(self.key.node);
    }

    /// What is known of clients that set this at login.
    pub(crate) fn know(&self, settings: &Params) -> Known {
        lock(&self.kinds).know(settings)
    }

    /// A server was asked what it makes of this kind of settings.
    pub(crate) fn learn(&self, kind: Params, said: Kind) {
        lock(&self.kinds).learn(kind, said);
    }

    /// Whether it has ever had a server.
    pub(crate) fn has_served(&self) -> bool {
        lock(&self.kinds).is_any()
    }

    /// A client looks at a sequence's value.
    pub(crate) fn note_look(&self) {
        self.looked.store(true, Ordering::Relaxed);
    }

    /// Whether a client has ever looked at a sequence's value.
    pub(crate) fn has_looked(&self) -> bool {
        self.looked.load(Ordering::Relaxed)
    }

    /// When a connection was begun.
    pub(crate) fn opened(&self, server: &Server) -> tokio::time::Instant {
        (self.env.started + server.born).into()
    }

    /// What its servers are opened with.
    pub(crate) fn credentials(&self) -> Credentials {
        lock(&self.credentials).clone()
    }

    /// Asks for a server.
    pub(crate) fn ask(self: &Arc<Pool>) -> Turn {
        let now = self.env.now();
        let mut ticket = None;
        let asked = lock(&self.queue).ask(current_worker(), now, || {
            Arc::clone(ticket.insert(Arc::new(Ticket::new())))
        });
        match asked {
            Asked::Have(server) => match server.move_here() {
                Ok(server) => Turn::Now(server),
                Err(error) => {
                    tracing::warn!(%error, "a server connection could not be moved between threads");
                    self.ask()
                }
            },
            Asked::Wait(job) => {
                self.start(job);
                let ticket = ticket.unwrap_or_else(|| Arc::new(Ticket::new()));
                Turn::Later(Wait::new(Arc::clone(self), ticket))
            }
        }
    }

    /// Starts what brings a server, on the worker that asked for it, or on any.
    fn start(self: &Arc<Pool>, job: Job<Box<Server>>) {
        let worker = self.env.workers.get(current_worker());
        let Some(worker) = worker.or_else(|| self.env.workers.first()) else {
            return;
        };
        match job {
            Job::None => {}
            Job::Open => {
                worker.spawn(open::open(Arc::clone(self)));
            }
            Job::Check(server) => {
                worker.spawn(open::check(Arc::clone(self), server));
            }
        }
    }

    /// Takes back a server that may be used again.
    fn give(&self, server: Box<Server>) {
        let (home, born, now) = (server.home, server.born, self.env.now());
        let refused = lock(&self.queue).give(server, home, born, now);
        // Closed outside of the lock, which its end takes again.
        if let Err(server) = refused {
            server.close();
        }
    }

    /// A connection is closed.
    fn on_lost(self: &Arc<Pool>) {
        let (job, paused) = {
            let mut queue = lock(&self.queue);
            (queue.lost(self.env.now()), queue.is_paused())
        };
        if paused {
            self.env.lost.notify_waiters();
        }
        self.start(job);
    }

    fn close_idle(&self) {
        let idle = lock(&self.queue).drain_idle();
        idle.into_iter().for_each(Server::close);
    }

    fn tick(self: &Arc<Pool>) {
        let now = self.env.now();
        let (due, wait_max) = {
            let mut queue = lock(&self.queue);
            (queue.tick(now), queue.limits().wait_max)
        };
        for ticket in due.expired {
            ticket.fail(WaitError::TooLong(wait_max));
        }
        for ticket in due.told {
            ticket.tell();
        }
        due.surplus.into_iter().for_each(Server::close);
        for _ in 0..due.open {
            self.start(Job::Open);
        }
        if !self.env.health.is_up(self.key.node) {
            self.close_idle();
        }
        lock(&self.faces).retain(|face| face.strong_count() > 0);
    }

    /// A client has waited for a server.
    fn note_wait(&self, since: Instant) {
        let mut totals = lock(&self.totals);
        totals.waits += 1;
        totals.waited += since.elapsed();
    }

    /// A server is gone; what went through it stays counted. Its process may not know yet.
    fn keep_totals(&self, face: &Face) {
        lock(&self.totals).add(face);
        self.env.health.left(self.key.node, face.pid);
    }

    fn is_unused(&self) -> bool {
        let counts = lock(&self.queue).counts();
        counts.open == 0 && counts.waiting == 0
    }
}

/// Gives a server back that a client has done with. One that is not settled is closed; one that a cancel request may
/// still hit waits until it has.
pub(crate) fn release(server: Box<Server>) {
    let Some(server) = Face::wait_for_cancels(server) else {
        return;
    };
    if !server.is_reusable() {
        server.close();
        return;
    }
    if let Some(pool) = server.pool() {
        pool.give(server);
    }
}
