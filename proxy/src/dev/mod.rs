//! Owns local PostgreSQL servers for development: programs, data directories, and the cluster of `tandem dev`.
//!
//! `tandem dev` is [`run`]: decide and check ([`plan`]), make or resume the servers ([`cluster`]), run the daemon in this
//! process, say `ready` once a write on each node is visible on all, and end everything on SIGINT or SIGTERM.

mod cluster;
mod config_text;
mod data_dir;
pub mod install;
mod layout;
mod plan;
pub mod process;
pub(crate) mod relay;
pub mod server;
pub(crate) mod servers;
mod setup;
mod wheel;

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::{JoinError, spawn_blocking},
};
use tokio_postgres::NoTls;

pub use self::layout::LayoutError;
pub(crate) use self::setup::APP;
use self::{
    cluster::Cluster,
    plan::Plan,
    relay::Relays,
    server::{Server, StopMode},
};
use crate::{
    cli::dev_options::DevOptions,
    config::{Config, ConfigError, Listen},
    daemon::{Daemon, DaemonError, Shutdown},
};

/// How long one question to the replicator waits before we say what it waits for.
const CONVERGE_STEP: Duration = Duration::from_secs(5);

/// How long a first login through the proxy may take before we go on with a note.
const LOGIN_LIMIT: Duration = Duration::from_secs(10);

/// How often ended servers are looked for.
const WATCH: Duration = Duration::from_millis(500);

/// Why `tandem dev` ended.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum DevError {
    /// The user asked to stop during the start.
    #[error("interrupted during the start")]
    Interrupted,
    /// `--nodes 0`.
    #[error("--nodes must be at least 1")]
    NoNodes,
    /// The nodes' ports do not fit.
    #[error("{nodes} nodes from --base-port {base_port} on go beyond port 65535")]
    PortRange {
        /// How many nodes.
        nodes: u16,
        /// The first port.
        base_port: u16,
    },
    /// Two flags ask for one port.
    #[error("{first} and {second} both ask for port {port}")]
    SamePort {
        /// One flag.
        first: &'static str,
        /// The other.
        second: &'static str,
        /// The port.
        port: u16,
    },
    /// A port is taken.
    #[error("{address} is in use by {holder}: stop it, or choose another with {flag}")]
    PortInUse {
        /// The address.
        address: SocketAddr,
        /// Who listens there.
        holder: String,
        /// What to change.
        flag: &'static str,
    },
    /// A port cannot be listened on for another reason.
    #[error("cannot listen on {address}: {source}; choose another with {flag}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What to change.
        flag: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// There is no room.
    #[error(
        "only {free_mb} MB are free on the file system of {dir}, this cluster needs about {needed_mb} MB: free some, or choose another --dir"
    )]
    DiskFull {
        /// Where.
        dir: PathBuf,
        /// What is free.
        free_mb: u64,
        /// What is needed.
        needed_mb: u64,
    },
    /// The directory's cluster has another number of nodes.
    #[error(
        "{dir} holds a cluster of {found} nodes ({names}), but --nodes is {wanted}: say --nodes {found}, or choose another --dir"
    )]
    NodeCount {
        /// The directory.
        dir: PathBuf,
        /// How many it has.
        found: usize,
        /// Their names.
        names: String,
        /// How many were asked for.
        wanted: u16,
    },
    /// The directory's cluster has another database.
    #[error(
        "{dir} holds a cluster of database \"{found}\", but --database is \"{wanted}\": say --database {found}, or choose another --dir"
    )]
    Database {
        /// The directory.
        dir: PathBuf,
        /// Its database.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// The configuration has other node names than the cluster was made with.
    #[error(
        "{dir} was made with the nodes {found}, but the configuration names {wanted}: a node keeps its name"
    )]
    Renamed {
        /// The directory.
        dir: PathBuf,
        /// Its nodes.
        found: String,
        /// The configuration's.
        wanted: String,
    },
    /// `--pg-bin NODE=` names no node.
    #[error(
        "--pg-bin {node}=…: there is no such node; there are {names} (or their numbers from 1)"
    )]
    UnknownNode {
        /// What was given.
        node: String,
        /// What there is.
        names: String,
    },
    /// The programs are not of the version that made the data.
    #[error(
        "the data of node {node} was made by PostgreSQL {made_by}, the programs found are {found}: give those of {made_by} with --pg-bin {node}=DIR"
    )]
    Major {
        /// The node.
        node: String,
        /// The data's major.
        made_by: u32,
        /// The programs' major.
        found: u32,
    },
    /// A file that the user named cannot be read.
    #[error("{path}: {source}")]
    Input {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The configuration cannot be completed.
    #[error(transparent)]
    ConfigText(#[from] config_text::ConfigTextError),
    /// The configuration or the rules are wrong.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Config(#[from] ConfigError),
    /// The directory cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// There is no PostgreSQL.
    #[error(transparent)]
    Install(#[from] install::InstallError),
    /// A server does not start or stop.
    #[error(transparent)]
    Server(#[from] server::ServerError),
    /// A new node could not be filled.
    #[error(transparent)]
    Setup(#[from] setup::SetupError),
    /// The daemon does not start.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// Signals cannot be received.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    /// A task of ours was lost.
    #[error("internal: {0}")]
    Task(#[from] JoinError),
    /// The thread that prepares was lost.
    #[error("internal: the preparation ended without a result")]
    Lost,
}

/// Runs a dev cluster until SIGINT, SIGTERM or SIGHUP; then, and on every error, stops all that it started. A second
/// signal ends the servers at once.
///
/// # Errors
/// Whatever keeps the cluster from starting or stopping, with what to change.
pub async fn run(options: DevOptions) -> Result<(), DevError> {
    let started = Instant::now();
    let mut signals = Signals::new().map_err(DevError::Signals)?;
    let interrupt = Arc::new(AtomicBool::new(false));
    let options = Arc::new(options);
    let mut plan = tokio::select! {
        plan = prepare(Arc::clone(&options)) => plan?,
        // Nothing runs yet.
        () = signals.next() => return Ok(()),
    };
    let mut cluster = Cluster::new(plan.nodes.clone(), Arc::clone(&interrupt));
    let bring_up = cluster.bring_up(&mut plan, &options);
    let outcome = match signals.note_during(bring_up, &interrupt).await {
        Some(Ok(())) => serve(&plan, &mut cluster, &mut signals, started).await,
        Some(Err(error)) => Err(error),
        None => return stop_at_once(cluster.places()).await,
    };
    let stopped = stop(&mut cluster, &mut signals).await;
    match outcome {
        Err(DevError::Interrupted) | Ok(()) => stopped,
        Err(error) => Err(error),
    }
}

/// [`Plan::prepare`] on a thread of its own: unlike a runtime's, it does not keep the process from ending while it
/// fetches PostgreSQL.
async fn prepare(options: Arc<DevOptions>) -> Result<Plan, DevError> {
    let (done, waiting) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || done.send(Plan::prepare(&options)).is_ok());
    waiting.await.map_err(|_| DevError::Lost)?
}

/// Runs the daemon until a signal comes or the console asks for the end.
async fn serve(
    plan: &Plan,
    cluster: &mut Cluster,
    signals: &mut Signals,
    started: Instant,
) -> Result<(), DevError> {
    for warning in &plan.config.warnings {
        eprintln!("Warning: {warning}");
    }
    let _relays = match plan.marker.relays {
        true => Some(Relays::start(&plan.nodes, &plan.layout.cut_file()).await?),
        false => None,
    };
    let daemon = Daemon::start(plan.config.clone()).await?;
    run_until_signal(&daemon, plan, cluster, signals, started).await;
    eprintln!("Stopping …");
    tokio::select! {
        () = daemon.shutdown(Shutdown::Fast) => {}
        () = signals.next() => {}
    }
    Ok(())
}

/// Waits until the cluster is ready and says so; then watches over the servers.
async fn run_until_signal(
    daemon: &Daemon,
    plan: &Plan,
    cluster: &mut Cluster,
    signals: &mut Signals,
    started: Instant,
) {
    let mut wait = std::pin::pin!(async {
        wait_converged(daemon).await;
        wait_login(&plan.config).await;
        announce(plan, started);
    });
    let mut ready = false;
    let mut watch = tokio::time::interval(WATCH);
    loop {
        tokio::select! {
            () = &mut wait, if !ready => ready = true,
            _ = watch.tick() => cluster.watch(),
            () = signals.next() => return,
            _ = daemon.shutdown_asked() => return,
        }
    }
}

/// A marker written on each node has reached all others. Keeps waiting and says for what: after a long absence there
/// may be much to deliver.
async fn wait_converged(daemon: &Daemon) {
    let mut told = String::new();
    while let Err(lags) = daemon.replicator().wait_converged(CONVERGE_STEP).await {
        let problem = lags.to_string();
        if problem != told {
            eprintln!("Not ready yet: {problem}");
            told = problem;
        }
        // It may have given up at once.
        tokio::time::sleep(WATCH).await;
    }
}

/// The application's role can log in through the proxy. A user's own `[auth]` may not know that role, or TLS may be
/// required: then it only says so.
async fn wait_login(config: &Config) {
    let Some(address) = tcp_address(config) else {
        return;
    };
    let mut client = tokio_postgres::Config::new();
    client
        .host(address.ip().to_string())
        .port(address.port())
        .user(APP)
        .password(APP);
    client
        .dbname(&config.replication.database)
        .application_name("tandem dev");
    let login = async || {
        let (client, connection) = client.connect(NoTls).await?;
        let driver = tokio::spawn(connection);
        let answer = client.simple_query("SELECT 1").await.map(drop);
        driver.abort();
        answer
    };
    let deadline = Instant::now() + LOGIN_LIMIT;
    loop {
        let (problem, refused) = match tokio::time::timeout(LOGIN_LIMIT, login()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => match error.as_db_error() {
                // Class 28: who may log in, and how, does not change by waiting.
                Some(answer) => (
                    answer.message().to_owned(),
                    answer.code().code().starts_with("28"),
                ),
                None => (error.to_string(), false),
            },
            Err(_) => ("no answer".to_owned(), false),
        };
        if refused || Instant::now() >= deadline {
            eprintln!(
                "Note: a login as role \"{APP}\" through {address}, without TLS, fails: {problem}"
            );
            return;
        }
        tokio::time::sleep(WATCH).await;
    }
}

/// The first TCP address of the proxy.
fn tcp_address(config: &Config) -> Option<SocketAddr> {
    config.proxy.listen.iter().find_map(|listen| match listen {
        Listen::Tcp(address) => Some(*address),
        Listen::Unix { .. } => None,
    })
}

/// Prints how to connect, and the line that scripts wait for.
fn announce(plan: &Plan, started: Instant) {
    let database = &plan.config.replication.database;
    let url = |user: &str, address: &str| format!("postgres://{user}@{address}/{database}");
    let mut text = format!(
        "\nCluster \"{}\" in {}\n",
        plan.config.cluster,
        plan.layout.dir.display()
    );
    for node in &plan.nodes {
        let address = format!("127.0.0.1:{}", node.port);
        text.push_str(&format!(
            "  {:<8} PostgreSQL {:<6} psql {}\n",
            node.name,
            node.spec.install.version,
            url("postgres", &address)
        ));
    }
    let proxy = plan
        .config
        .proxy
        .listen
        .first()
        .map_or_else(String::new, |listen| match listen {
            Listen::Tcp(address) => format!(
                "psql {}",
                url(&format!("{APP}:{APP}"), &address.to_string())
            ),
            Listen::Unix { dir, port } => {
                format!("psql -h {} -p {port} -U {} {database}", dir.display(), APP)
            }
        });
    text.push_str(&format!(
        "  admin    http://{}, token in {}\n  role     \"{app}\", password \"{app}\"\n  Ctrl-C stops all of it; the data stays.\n\n\
         ready in {:.1} s: {proxy}\n",
        plan.config.admin.listen,
        plan.config.admin.token_file.display(),
        started.elapsed().as_secs_f64(),
        app = APP,
    ));
    let mut stdout = io::stdout().lock();
    // Nobody may be reading any more; the cluster runs all the same.
    let _ = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
}

/// Stops the servers: fast, and at once after another signal.
async fn stop(cluster: &mut Cluster, signals: &mut Signals) -> Result<(), DevError> {
    let places = cluster.places();
    tokio::select! {
        stopped = cluster.stop(StopMode::Fast) => return stopped,
        () = signals.next() => {}
    }
    stop_at_once(places).await
}

async fn stop_at_once(places: Vec<(PathBuf, PathBuf)>) -> Result<(), DevError> {
    eprintln!("Stopping at once: the next start will recover from the WAL.");
    let hard = spawn_blocking(move || {
        for (data_dir, log) in places {
            if let Some(mut server) = Server::adopt(&data_dir, &log) {
                server.stop(StopMode::Immediate, Duration::from_secs(5))?;
            }
        }
        Ok::<_, server::ServerError>(())
    });
    Ok(hard.await??)
}

/// The signals that end us.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next of them.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }

    /// Runs `work` to its end; a signal meanwhile sets `interrupt`, which it looks at between its steps. `None` when
    /// a second one comes.
    async fn note_during<T>(
        &mut self,
        work: impl Future<Output = T>,
        interrupt: &AtomicBool,
    ) -> Option<T> {
        let mut work = std::pin::pin!(work);
        tokio::select! {
            done = &mut work => return Some(done),
            () = self.next() => interrupt.store(true, Ordering::Relaxed),
        }
        eprintln!("Stopping …");
        tokio::select! {
            done = &mut work => Some(done),
            () = self.next() => None,
        }
    }
}
