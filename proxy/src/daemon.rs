//! Owns the daemon: starts everything a configuration asks for, and ends it in order.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tandem_replicator::Replicator;
use tandem_wire::tls::{TlsError, install_crypto_provider};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    acknowledged::Acknowledged,
    admin::{Admin, AdminError},
    auth::{Gate, UsersFileError, control::Control},
    backlog,
    bound::Bound,
    cancel::Canceller,
    config::Config,
    console::Console,
    fence,
    handoff::{self, Handoffs},
    health::{Before, HealthBoard, ProbeSettings},
    limits::Limits,
    listener::{ListenAddress, ListenError, Listener, accept_loop},
    log,
    node::{self, NodeTlsError},
    notifications::Notifications,
    placement::{Placement, PlacementError},
    pool::Pools,
    quiet,
    recovery::{self, Recoveries},
    reload::{self, Files, ReloadError, Reloaded, Settings},
    routing::Router,
    session::{
        Clients, Shared, losing,
        losses::Losses,
        registry::{Registry, Stop},
    },
    workers::Workers,
};

/// How long sessions may take to end once they were told to end at once.
const FAST_BOUND: Duration = Duration::from_secs(5);
/// Where another daemon takes over, sessions that are younger than this are not ended for being idle.
const JUST_COME: Duration = Duration::from_secs(2);
/// Descriptors needed beside two per client: listeners, probes, control and replication connections.
const EXTRA_DESCRIPTORS: u64 = 1100;
/// How long the roles' verifiers are waited for at the start until some node has answered.
const COMPARE_AFTER: Duration = Duration::from_secs(2);

/// A daemon that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// An address for clients.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The admin port.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The certificate or key for clients.
    #[error("[proxy.tls]: {0}")]
    Tls(#[from] TlsError),
    /// The certificates to check a node by.
    #[error(transparent)]
    NodeTls(#[from] NodeTlsError),
    /// The file that says which nodes are out of service.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The users file.
    #[error(transparent)]
    Users(#[from] UsersFileError),
    /// The threads that serve clients.
    #[error("the threads for clients cannot be started: {0}")]
    Workers(#[source] std::io::Error),
    /// A listener cannot be given to a worker.
    #[error("a listener cannot be given to a worker thread: {0}")]
    Listener(#[source] std::io::Error),
    /// An address that was bound cannot be told.
    #[error("the system does not tell the address of a socket: {0}")]
    Address(#[source] std::io::Error),
}

/// How to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// No new sessions; those that are idle end now, the others after their transaction, all after
    /// `shutdown_timeout`.
    Smart,
    /// All sessions end now.
    Fast,
}

/// A running daemon.
pub struct Daemon {
    shared: Arc<Shared>,
    replicator: Arc<Replicator>,
    /// They end with it.
    _workers: Arc<Workers>,
    proxy_addresses: Vec<ListenAddress>,
    admin_address: SocketAddr,
    stop: watch::Sender<Stop>,
    /// The console asks for the end here.
    shutdown_asked: watch::Receiver<Option<Shutdown>>,
    deadline: watch::Sender<Option<Instant>>,
    /// One per listener; each ends when its last session has.
    listeners: JoinSet<()>,
    /// Probes, admin port, the comparison at the start.
    background: JoinSet<()>,
}

impl Daemon {
    /// Binds all addresses, then starts health probes, replicator, admin port and listeners. A node that is down is
    /// no error.
    ///
    /// # Errors
    /// [`DaemonError`] for an address that cannot be bound, and for certificates, users file or token that cannot be
    /// used. Nothing is left running then.
    pub async fn start(config: Config) -> Result<Daemon, DaemonError> {
        install_crypto_provider();
        raise_descriptor_limit(config.proxy.max_client_connections);
        let files = Files::read_just_now(&config.path);
        let settings = Settings::new(config)?;
        let config = &settings.config;
        log::set_level(config.log.level);
        let nodes = node::nodes(&config.nodes)?;
        let mut listeners = Vec::new();
        for listen in &config.proxy.listen {
            listeners.push(Listener::bind(listen, config.proxy.so_reuseport).await?);
        }
        let proxy_addresses = listeners
            .iter()
            .map(Listener::address)
            .collect::<Result<Vec<_>, _>>()
            .map_err(DaemonError::Address)?;
        let admin = Admin::bind(&config.admin, config.proxy.so_reuseport)?;
        let admin_address = admin.address();

        let mut background = JoinSet::new();
        let probes = ProbeSettings {
            interval: config.proxy.probe_interval,
            timeout: Bound::new(config.proxy.probe_timeout),
            restart_wait: config.proxy.restart_wait,
            database: config.replication.database.clone(),
            slot: (nodes.len() > 1).then(|| tandem_replicator::slot_name(&config.cluster)),
        };
        let bound = Bound::new(config.proxy.server_connect_timeout);
        let placement = Placement::read(&config.state_dir)?;
        let ids = || nodes.iter().map(|node| node.config().id);
        let (epoch, drained) = placement.known(ids()).await;
        let recoveries = Recoveries::read(&config.state_dir, ids());
        let before = Before { epoch, drained };
        let health = HealthBoard::start(&nodes, &probes, &before, &mut background);
        let (handoffs, asked) = Handoffs::new(placement, nodes.len());
        let database = &config.replication.database;
        let gate = Gate::new(
            &config.auth,
            Arc::clone(&nodes),
            Arc::clone(&health),
            database,
            bound.clone(),
        )?;
        let replicator = Arc::new(Replicator::start(
            replicator_config(config, &nodes),
            recoveries.tails(),
        ));
        let (stop, stop_seen) = watch::channel(Stop::No);
        let (deadline, deadline_seen) = watch::channel(None);
        let (ask_shutdown, shutdown_asked) = watch::channel(None);
        let registry = Arc::new(Registry::default());
        let workers = Arc::new(Workers::start(config.proxy.workers).map_err(DaemonError::Workers)?);
        let pools = Arc::new(Pools::new(
            &config.proxy.pool,
            bound.clone(),
            Arc::clone(&nodes),
            Arc::clone(&health),
            workers.handles().to_vec(),
        ));
        let ticking = Arc::clone(&pools);
        background.spawn(async move { ticking.tick().await });
        let shared = Arc::new(Shared {
            canceller: Canceller::new(Arc::clone(&registry), Arc::clone(&nodes), bound.clone()),
            clients: Clients::new(config.proxy.max_client_connections),
            limits: Limits::new(config.limits.clone()),
            control: Arc::new(Control::new(
                Arc::clone(&nodes),
                database.clone(),
                bound.clone(),
            )),
            notifications: Notifications::new(
                Arc::clone(&nodes),
                Arc::clone(&health),
                bound.clone(),
            ),
            console: Console::new(Arc::clone(&replicator), &config.admin, ask_shutdown),
            stop: stop_seen.clone(),
            acknowledged: Arc::new(Acknowledged::new(nodes.len())),
            nodes,
            router: Router::new(config.replication.database.clone()),
            replicator: Arc::clone(&replicator),
            health,
            handoffs,
            recoveries,
            gate,
            pools,
            registry,
            losses: Losses::default(),
            connect_timeout: bound,
            slow_statement: Bound::new(settings.config.log.slow_statement),
            files,
            shares_addresses: config.proxy.so_reuseport,
            settings: ArcSwap::from_pointee(settings),
        });
        background.spawn(admin.serve(
            Arc::clone(&shared),
            Arc::clone(&replicator),
            stop_seen.clone(),
        ));
        background.spawn(fence::keep(Arc::clone(&shared), Arc::clone(&replicator)));
        background.spawn(backlog::keep(Arc::clone(&shared)));
        background.spawn(handoff::keep(Arc::clone(&shared), asked));
        background.spawn(handoff::keep_epoch(Arc::clone(&shared)));
        if shared.nodes.len() > 1 {
            for node in 0..shared.nodes.len() {
                background.spawn(handoff::keep_node(Arc::clone(&shared), node));
                background.spawn(recovery::keep(Arc::clone(&shared), node));
            }
        }
        background.spawn(losing::wake(Arc::clone(&shared)));
        background.spawn(quiet::keep(Arc::clone(&shared)));
        background.spawn(compare_at_start(Arc::clone(&shared)));
        background.spawn(reload::watch(Arc::clone(&shared)));
        if shared.nodes.len() > 1 {
            let shared = Arc::clone(&shared);
            background
                .spawn(async move { shared.router.keep(&shared.nodes, &shared.health).await });
        }
        let mut accepting = JoinSet::new();
        for (listener, worker) in listeners.into_iter().zip(workers.handles().iter().cycle()) {
            let listener = {
                let _entered = worker.enter();
                listener.rehome().map_err(DaemonError::Listener)?
            };
            let accepts = accept_loop(
                listener,
                Arc::clone(&shared),
                Arc::clone(&workers),
                stop_seen.clone(),
                deadline_seen.clone(),
            );
            accepting.spawn_on(accepts, worker);
        }
        for address in &proxy_addresses {
            tracing::info!(%address, "listening for clients");
        }
        tracing::info!(address = %admin_address, "listening for admin requests");
        Ok(Daemon {
            shared,
            replicator,
            _workers: workers,
            proxy_addresses,
            admin_address,
            stop,
            shutdown_asked,
            deadline,
            listeners: accepting,
            background,
        })
    }

    /// Where clients connect, in the order of the configuration; with the real port where port 0 was asked for.
    pub fn proxy_addresses(&self) -> &[ListenAddress] {
        &self.proxy_addresses
    }

    /// Where the admin port is.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// The replicator.
    pub fn replicator(&self) -> &Replicator {
        &self.replicator
    }

    /// Reads the configuration with all files that it names again. What cannot change while the daemon runs stays, and is
    /// named in the answer. The users file needs no call: a change of it is noticed.
    ///
    /// # Errors
    /// [`ReloadError`] when something cannot be used. Everything stays as it was then.
    pub async fn reload(&self) -> Result<Reloaded, ReloadError> {
        reload::reload(&self.shared).await
    }

    /// Returns when somebody asks for the end in the console. The caller then calls [`Daemon::shutdown`].
    pub async fn shutdown_asked(&self) -> Shutdown {
        let mut asked = self.shutdown_asked.clone();
        // The sender lives as long as the daemon.
        let how = asked.wait_for(Option::is_some).await;
        how.ok().and_then(|how| *how).unwrap_or(Shutdown::Fast)
    }

    /// Ends the daemon. Bounded: `shutdown_timeout` for sessions of a smart one, then some seconds.
    pub async fn shutdown(mut self, how: Shutdown) {
        let registry = &self.shared.registry;
        if how == Shutdown::Smart {
            let bound = self.shared.settings.load().config.proxy.shutdown_timeout;
            self.stop.send_replace(Stop::WhenIdle);
            tracing::info!(
                sessions = registry.len(),
                seconds = bound.as_secs_f64(),
                "smart shutdown: waiting for transactions to end"
            );
            let shares_addresses = self.shared.shares_addresses;
            let listeners = &mut self.listeners;
            let all_ended = async {
                if shares_addresses {
                    // Who has just come is about to ask for something, and may be gone then.
                    if let Some(before) = Instant::now().checked_sub(JUST_COME) {
                        registry.stop_begun_before(before, Stop::WhenIdle);
                    }
                    let ended = async { while listeners.join_next().await.is_some() {} };
                    // Not in time: then the others are ended too.
                    let _ = timeout(JUST_COME, ended).await;
                }
                registry.stop_all(Stop::WhenIdle);
                while listeners.join_next().await.is_some() {}
            };
            if timeout(bound, all_ended).await.is_err() {
                tracing::warn!(
                    sessions = registry.len(),
                    "shutdown_timeout is over: ending the rest"
                );
            }
        }
        self.deadline
            .send_replace(Some(Instant::now() + FAST_BOUND));
        self.stop.send_replace(Stop::AtOnce);
        registry.stop_all(Stop::AtOnce);
        while self.listeners.join_next().await.is_some() {}
        self.shared.pools.close();
        self.background.shutdown().await;
        self.replicator.stop().await;
        tracing::info!("stopped");
    }
}

pub(crate) fn replicator_config(config: &Config, nodes: &node::Nodes) -> tandem_replicator::Config {
    let database = &config.replication.database;
    tandem_replicator::Config {
        cluster: config.cluster.clone(),
        nodes: nodes
            .iter()
            .map(|node| tandem_replicator::Node {
                name: node.name().to_owned(),
                id: node.config().id,
                connect: node.own_options(
                    database,
                    Vec::new(),
                    config.proxy.server_connect_timeout,
                ),
            })
            .collect(),
        tables: Arc::new(config.replication.tables()),
        journal: tandem_replicator::JournalConfig {
            dir: config.replication.journal_dir.clone(),
            bytes_max: config.replication.journal_max,
            carry_bytes: config.replication.journal_carry_bytes,
            carry_after: config.replication.journal_carry_after,
        },
        group_from: (config.replication.group_apply > 0).then_some(config.replication.group_apply),
        clock_offset_max: config.replication.clock_offset_max,
    }
}

/// Compares the verifiers of all login roles over all nodes, as soon as the nodes have been probed.
async fn compare_at_start(shared: Arc<Shared>) {
    let due = Instant::now() + COMPARE_AFTER;
    tokio::time::sleep_until(due).await;
    let differing = shared.gate.compare_verifiers().await;
    if differing > 0 {
        tracing::warn!(
            roles = differing,
            "roles whose verifiers differ between nodes cannot log in"
        );
    }
}

/// Two descriptors per client. What the system does not grant is said, not fatal.
pub(crate) fn raise_descriptor_limit(max_clients: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let wanted = u64::try_from(max_clients)
        .unwrap_or(u64::MAX)
        .saturating_mul(2);
    let wanted = wanted.saturating_add(EXTRA_DESCRIPTORS);
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let granted = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let raised = Rlimit {
        current: Some(granted),
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files was not raised");
    } else if granted < wanted {
        tracing::warn!(
            granted,
            wanted,
            "the limit of open files is too low for max_client_connections; raise it (ulimit -n)"
        );
    }
}
