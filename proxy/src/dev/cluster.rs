//! Owns the servers of a dev cluster: making them, starting or adopting them, watching them, stopping them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::task::{JoinSet, spawn_blocking};

use super::{
    DevError,
    layout::Stage,
    plan::{NodePlan, Plan},
    server::{Server, ServerError, ServerSpec, StopMode, Sync},
    setup::{self, NewNode, SetupError, Verifiers},
};
use crate::cli::dev_options::DevOptions;

/// How long a fast shutdown may take: it writes a checkpoint.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// The servers that run.
pub(super) struct Cluster {
    nodes: Vec<NodePlan>,
    /// One per node; `None` while it does not run.
    servers: Vec<Option<Server>>,
    interrupt: Arc<AtomicBool>,
}

impl Cluster {
    pub(super) fn new(nodes: Vec<NodePlan>, interrupt: Arc<AtomicBool>) -> Self {
        let servers = nodes.iter().map(|_| None).collect();
        Self {
            nodes,
            servers,
            interrupt,
        }
    }

    /// Makes the nodes if they are new, then starts or adopts them all. After an error some may run: see [`Self::stop`].
    pub(super) async fn bring_up(
        &mut self,
        plan: &mut Plan,
        options: &DevOptions,
    ) -> Result<(), DevError> {
        if plan.is_new() {
            self.make(plan, options).await?;
            plan.marker.stage = Stage::Complete;
            plan.layout.write_marker(&plan.marker)?;
        }
        self.check_interrupt()?;
        let starting: Vec<_> = self
            .nodes
            .iter()
            .cloned()
            .map(|node| spawn_blocking(move || start_or_adopt(&node)))
            .collect();
        let mut failed = None;
        for (slot, task) in self.servers.iter_mut().zip(starting) {
            match task.await? {
                Ok(server) => *slot = Some(server),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or_else(|| self.check_interrupt(), |error| Err(error.into()))
    }

    /// initdb, roles, database, `--init`, `--pgbench` on all nodes at once.
    async fn make(&self, plan: &Plan, options: &DevOptions) -> Result<(), DevError> {
        let work = Arc::new(Making::new(plan, options, Arc::clone(&self.interrupt))?);
        let mut tasks = JoinSet::new();
        for node in self.nodes.clone() {
            let work = Arc::clone(&work);
            tasks.spawn(async move {
                Ok::<_, DevError>((node.name.clone(), work.make_node(&node).await?))
            });
        }
        let mut found = Vec::new();
        let mut failed = None;
        // Every task is awaited, so that each has stopped its server before we return.
        while let Some(done) = tasks.join_next().await {
            match done? {
                Ok(node) => found.push(node),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            self.check_interrupt()?;
            return Err(error);
        }
        found.sort();
        Ok(setup::compare(&found)?)
    }

    /// Tells on stderr which servers have ended or come back since the last call.
    pub(super) fn watch(&mut self) {
        for (node, slot) in self.nodes.iter().zip(&mut self.servers) {
            let spec = &node.spec;
            if let Some(server) = slot {
                if !server.is_running() {
                    eprintln!(
                        "Node {} (pid {}) has ended; its log is {}. To start it again: {}",
                        node.name,
                        server.pid(),
                        spec.log.display(),
                        start_command(spec)
                    );
                    *slot = None;
                }
            } else if let Some(server) = Server::adopt(&spec.data_dir, &spec.log) {
                eprintln!("Node {} runs again (pid {}).", node.name, server.pid());
                *slot = Some(server);
            }
        }
    }

    /// Stops every server of the cluster, also one that somebody started again behind our back.
    pub(super) async fn stop(&mut self, mode: StopMode) -> Result<(), DevError> {
        let stopping: Vec<_> = self
            .nodes
            .iter()
            .zip(&mut self.servers)
            .filter_map(|(node, slot)| {
                let mut running = slot.take();
                if !running.as_mut().is_some_and(Server::is_running) {
                    running = Server::adopt(&node.spec.data_dir, &node.spec.log);
                }
                let mut server = running?;
                Some(spawn_blocking(move || server.stop(mode, STOP_LIMIT)))
            })
            .collect();
        let mut failed = None;
        for task in stopping {
            if let Err(error) = task.await? {
                failed = failed.or(Some(error));
            }
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// The data directories and logs, for a stop that cannot wait for [`Self::stop`].
    pub(super) fn places(&self) -> Vec<(PathBuf, PathBuf)> {
        self.nodes
            .iter()
            .map(|node| (node.spec.data_dir.clone(), node.spec.log.clone()))
            .collect()
    }

    fn check_interrupt(&self) -> Result<(), DevError> {
        if self.interrupt.load(Ordering::Relaxed) {
            Err(DevError::Interrupted)
        } else {
            Ok(())
        }
    }
}

/// What all new nodes get alike.
struct Making {
    database: String,
    verifiers: Verifiers,
    init: Vec<PathBuf>,
    scale: Option<u32>,
    psql: Option<PathBuf>,
    pgbench: Option<PathBuf>,
    interrupt: Arc<AtomicBool>,
}

impl Making {
    fn new(
        plan: &Plan,
        options: &DevOptions,
        interrupt: Arc<AtomicBool>,
    ) -> Result<Self, DevError> {
        let path = plan.layout.password_file();
        let password =
            fs::read_to_string(&path).map_err(|source| DevError::Input { path, source })?;
        let program = |option, program, wanted: bool| match plan
            .clients
            .client_program(program)
            .filter(|_| wanted)
        {
            None if wanted => Err(SetupError::NoProgram { option, program }),
            found => Ok(found),
        };
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).map_err(|source| DevError::Input {
                path: path.clone(),
                source,
            })
        };
        Ok(Self {
            database: options.database.clone(),
            verifiers: Verifiers::new(password.trim())?,
            init: options
                .init
                .iter()
                .map(absolute)
                .collect::<Result<_, _>>()?,
            scale: options.pgbench,
            psql: program("init", "psql", !options.init.is_empty())?,
            pgbench: program("pgbench", "pgbench", options.pgbench.is_some())?,
            interrupt,
        })
    }

    /// Makes one node, fills it, stops it again. Returns what its tables hold, for comparison.
    async fn make_node(
        self: &Arc<Self>,
        node: &NodePlan,
    ) -> Result<BTreeMap<String, String>, DevError> {
        eprintln!(
            "{}: making a PostgreSQL {} server …",
            node.name, node.spec.install.version
        );
        let mut spec = node.spec.clone();
        spec.settings
            .push(("track_commit_timestamp".to_owned(), "off".to_owned()));
        let interrupt = Arc::clone(&self.interrupt);
        let started = spawn_blocking(move || {
            // The kernel has it on disk half a minute later; a developer waits for `ready` now.
            Server::init_data(&spec, Sync::No)?;
            if interrupt.load(Ordering::Relaxed) {
                return Ok(None);
            }
            Server::start(&spec).map(Some)
        });
        let Some(mut server) = started.await?? else {
            return Err(DevError::Interrupted);
        };
        let outcome = self.fill_node(node).await;
        spawn_blocking(move || server.stop(StopMode::Fast, STOP_LIMIT)).await??;
        outcome
    }

    async fn fill_node(
        self: &Arc<Self>,
        node: &NodePlan,
    ) -> Result<BTreeMap<String, String>, DevError> {
        self.new_node(node).make_roles(&self.verifiers).await?;
        let (work, node_too) = (Arc::clone(self), node.clone());
        let loading = spawn_blocking(move || -> Result<(), SetupError> {
            let new_node = work.new_node(&node_too);
            if let Some((pgbench, scale)) = work.pgbench.as_ref().zip(work.scale) {
                eprintln!(
                    "{}: filling pgbench's tables, scale {scale} …",
                    node_too.name
                );
                new_node.run_pgbench(pgbench, scale)?;
            }
            for file in &work.init {
                if let Some(psql) = &work.psql {
                    eprintln!("{}: running {} …", node_too.name, file.display());
                    new_node.run_file(psql, file)?;
                }
            }
            Ok(())
        });
        loading.await??;
        // pgbench's own data never differs; a user's file may.
        if self.init.is_empty() {
            return Ok(BTreeMap::new());
        }
        Ok(self.new_node(node).fingerprint().await?)
    }

    fn new_node<'a>(&'a self, node: &'a NodePlan) -> NewNode<'a> {
        NewNode {
            name: &node.name,
            port: node.spec.port,
            database: &self.database,
            interrupt: &self.interrupt,
        }
    }
}

/// Takes over the server that runs already, on the port that is wanted now, or starts one.
fn start_or_adopt(node: &NodePlan) -> Result<Server, ServerError> {
    let spec = &node.spec;
    if let Some(mut server) = Server::adopt(&spec.data_dir, &spec.log) {
        server.resume()?;
        server.wait_ready(spec.start_timeout)?;
        if server.port() == spec.port {
            eprintln!(
                "{}: adopting the server that runs already (pid {}).",
                node.name,
                server.pid()
            );
            return Ok(server);
        }
        server.stop(StopMode::Fast, STOP_LIMIT)?;
    }
    Server::start(spec)
}

/// Stops whatever servers run on the data directories in `dir`, which are about to be removed.
pub(super) fn stop_all_below(dir: &Path) -> Result<(), ServerError> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if let Some(mut server) = Server::adopt(&entry.path(), &entry.path()) {
            server.stop(StopMode::Immediate, STOP_LIMIT)?;
        }
    }
    Ok(())
}

/// What a user types to start a node's server by hand.
fn start_command(spec: &ServerSpec) -> String {
    let as_user = spec.run_as.as_ref().map_or_else(String::new, |user| {
        format!(
            "setpriv --reuid={0} --regid={1} --clear-groups ",
            user.name, user.gid
        )
    });
    let (program, data_dir, log) = (
        spec.install.program("pg_ctl"),
        spec.data_dir.display(),
        spec.log.display(),
    );
    format!(
        "{as_user}{} -D {data_dir} -l {log} start",
        program.display()
    )
}
