//! Owns a whole test cluster: nodes, relays between them and the daemon, the daemon, and their end.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::{
    Daemon, Node, Program, client,
    clock::ClockLibrary,
    compare,
    node::tail,
    ports::Ports,
    process,
    relay::Relay,
    scratch::Scratch,
    template::{self, APP, DATABASE, TANDEM_PASSWORD},
};

/// How long the nodes may take until all is applied everywhere, where a test does not say.
pub const CONVERGE_LIMIT: Duration = Duration::from_secs(60);

/// How long a link may take to come into a state.
const LINK_LIMIT: Duration = Duration::from_secs(30);

/// Tests whose logs are kept after they failed.
const LOGS_KEPT: usize = 20;

/// What a cluster shall be like.
#[derive(Debug, Clone)]
pub struct ClusterBuilder {
    majors: Vec<u32>,
    durable: bool,
    settings: Vec<(String, String)>,
    relays: bool,
    clocks: bool,
    scale: Option<u32>,
    schema: String,
    proxy: String,
    probe_interval: String,
    sections: String,
    replication: String,
    rules: String,
    zones: Vec<String>,
    start_daemon: bool,
}

/// A running cluster. Dropping it ends and removes everything.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// One relay per node, where they were asked for.
    pub relays: Vec<Relay>,
    /// The daemon.
    pub daemon: Daemon,
    /// The proxy's port.
    pub proxy_port: u16,
    /// The admin port.
    pub admin_port: u16,
    /// Rows written before this time (by SQL) differ in version: each node wrote its own.
    since: String,
    /// Declared before the scratch directory: what uses it goes first.
    ports: Ports,
    scratch: Scratch,
}

impl ClusterBuilder {
    /// Makes all data without fear of a power cut, by default; this test kills nodes, so they keep what they commit.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// A setting of every server; it wins over the harness's own.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Puts a relay between the daemon and each node.
    #[must_use]
    pub fn relays(mut self) -> Self {
        self.relays = true;
        self
    }

    /// Gives every server a clock of its own, see [`Node::set_clock_offset_ms`].
    #[must_use]
    pub fn clocks(mut self) -> Self {
        self.clocks = true;
        self
    }

    /// Fills pgbench's tables at this scale on every node.
    #[must_use]
    pub fn pgbench(mut self, scale: u32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Runs these statements as role `app` on every node before the daemon starts.
    #[must_use]
    pub fn schema(mut self, sql: &str) -> Self {
        self.schema.push_str(sql);
        self
    }

    /// Further lines of `[proxy]`.
    #[must_use]
    pub fn proxy(mut self, lines: &str) -> Self {
        let _ = writeln!(self.proxy, "{lines}");
        self
    }

    /// How often the proxy probes each node. Tests do not wait long for it; a probe costs the node a new session.
    #[must_use]
    pub fn probe_interval(mut self, interval: &str) -> Self {
        interval.clone_into(&mut self.probe_interval);
        self
    }

    /// Further lines of `[replication]`.
    #[must_use]
    pub fn replication(mut self, lines: &str) -> Self {
        let _ = writeln!(self.replication, "{lines}");
        self
    }

    /// Further sections of `tandem.toml`; `DIR` stands for the test's directory.
    #[must_use]
    pub fn sections(mut self, text: &str) -> Self {
        let _ = writeln!(self.sections, "{text}");
        self
    }

    /// The rules file, whole.
    #[must_use]
    pub fn rules(mut self, text: &str) -> Self {
        text.clone_into(&mut self.rules);
        self
    }

    /// The nodes' zones, in their order.
    #[must_use]
    pub fn zones(mut self, zones: &[&str]) -> Self {
        self.zones = zones.iter().map(|zone| (*zone).to_owned()).collect();
        self
    }

    /// Leaves the start of the daemon to the test.
    #[must_use]
    pub fn without_daemon(mut self) -> Self {
        self.start_daemon = false;
        self
    }

    /// Starts it all; returns once the daemon answers and the nodes have converged.
    ///
    /// # Panics
    /// Something does not start.
    pub async fn start(self) -> Cluster {
        self.start_in(Scratch::new().expect("a directory for the test"))
            .await
    }

    /// As [`Self::start`], in a directory that already holds files of the test, such as certificates.
    ///
    /// # Panics
    /// Something does not start.
    pub async fn start_in(self, scratch: Scratch) -> Cluster {
        let mut ports = Ports::take().expect("free ports");
        let nodes = self.start_nodes(&scratch, &mut ports).await;
        let mut relays = Vec::new();
        for node in nodes.iter().filter(|_| self.relays) {
            let target = SocketAddr::from((Ipv4Addr::LOCALHOST, node.port()));
            relays.push(Relay::start(target).await.expect("a relay"));
        }
        for node in &nodes {
            let client = node.connect().await;
            client::execute(&client, &format!("SET ROLE {APP}; {}", self.schema)).await;
        }
        let (proxy_port, admin_port) = (ports.port(), ports.port());
        let config = scratch.path().join("tandem.toml");
        write_private(
            &config,
            &self.config_text(&scratch, &nodes, &relays, proxy_port, admin_port),
        );
        let daemon = Daemon::new(&config, &scratch.path().join("daemon.log"), admin_port);
        let since = match nodes.first() {
            Some(node) => node.value("SELECT clock_timestamp()").await,
            None => String::new(),
        };
        let mut cluster = Cluster {
            nodes,
            relays,
            daemon,
            proxy_port,
            admin_port,
            since,
            ports,
            scratch,
        };
        if self.start_daemon {
            cluster.begin().await;
        }
        cluster
    }

    async fn start_nodes(&self, scratch: &Scratch, ports: &mut Ports) -> Vec<Node> {
        let clock = self.clocks.then(|| ClockLibrary::compile(scratch.path()));
        let mut starting = JoinSet::new();
        for (place, &major) in self.majors.iter().enumerate() {
            let (dir, port, scale) = (scratch.path().to_owned(), ports.port(), self.scale);
            let mut settings = template::settings(self.durable);
            settings.extend(self.settings.iter().cloned());
            let clock = clock.clone();
            starting.spawn_blocking(move || {
                let install = template::install(major);
                Node::start(&dir, place, install, port, settings, scale, clock)
            });
        }
        let mut nodes = starting.join_all().await;
        nodes.sort_by_key(|node| node.id);
        nodes
    }

    fn config_text(
        &self,
        scratch: &Scratch,
        nodes: &[Node],
        relays: &[Relay],
        proxy: u16,
        admin: u16,
    ) -> String {
        let mut text = format!(
            "cluster = \"test\"\n\n[proxy]\nlisten = [\"127.0.0.1:{proxy}\", \"unix:{dir}:{proxy}\"]\n{mode}\
             rules = \"rules.toml\"\nprobe_interval = \"{probe}\"\n{lines}\n[admin]\nlisten = \"127.0.0.1:{admin}\"\n\n\
             [replication]\ndatabase = \"{DATABASE}\"\n{replication}\n{sections}\n",
            dir = scratch.path().display(),
            mode = if self.proxy.contains("pool_mode") {
                ""
            } else {
                "pool_mode = \"session\"\n"
            },
            probe = self.probe_interval,
            lines = self.proxy,
            replication = self.replication,
            sections = self
                .sections
                .replace("DIR", &scratch.path().to_string_lossy()),
        );
        for (index, node) in nodes.iter().enumerate() {
            let port = relays
                .get(index)
                .map_or_else(|| node.port(), |relay| relay.address().port());
            let _ = write!(
                text,
                "\n[[node]]\nname = \"{}\"\nid = {}\nhost = \"127.0.0.1\"\nport = {port}\nuser = \"tandem\"\n\
                 password = \"{TANDEM_PASSWORD}\"\nsslmode = \"disable\"\n",
                node.name, node.id
            );
            if let Some(zone) = self.zones.get(index) {
                let _ = writeln!(text, "zone = \"{zone}\"");
            }
        }
        fs::write(scratch.path().join("rules.toml"), &self.rules).expect("rules can be written");
        text
    }
}

impl Cluster {
    /// Begins the description of a cluster with one node per given major.
    #[must_use]
    pub fn of(majors: &[u32]) -> ClusterBuilder {
        ClusterBuilder {
            majors: majors.to_vec(),
            durable: false,
            settings: Vec::new(),
            relays: false,
            clocks: false,
            scale: None,
            schema: String::new(),
            proxy: String::new(),
            probe_interval: "100ms".to_owned(),
            sections: String::new(),
            replication: String::new(),
            rules: "[default]\nwrite = \"home\"\n".to_owned(),
            zones: Vec::new(),
            start_daemon: true,
        }
    }

    /// The directory of the test.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// A port for a use of the test's own.
    pub fn port(&mut self) -> u16 {
        self.ports.port()
    }

    /// Starts the daemon, and waits until it has taken all nodes and clients may go to any of them.
    ///
    /// # Panics
    /// They are not within the limit.
    pub async fn begin(&mut self) {
        self.daemon.start().await;
        self.converge(CONVERGE_LIMIT).await;
        let up = |status: &Value| {
            let nodes = status["nodes"].as_array();
            nodes.is_some_and(|nodes| nodes.iter().all(|node| node["health"] == "up"))
        };
        let daemon = &self.daemon;
        daemon
            .status_when("all nodes are up", CONVERGE_LIMIT, up)
            .await;
    }

    /// Waits until every change committed so far is applied everywhere.
    ///
    /// # Panics
    /// It is not within `limit`.
    pub async fn converge(&self, limit: Duration) {
        let ran = self.daemon.wait_converged(limit).await;
        assert!(
            ran.status.success(),
            "not converged within {limit:?}: {}",
            ran.all()
        );
    }

    /// Waits until all is applied everywhere, then compares all nodes: every row of every table, with its version.
    ///
    /// # Panics
    /// The nodes differ.
    pub async fn assert_converged(&self) {
        self.converge(CONVERGE_LIMIT).await;
        self.assert_equal().await;
    }

    /// Compares all nodes as they are.
    ///
    /// # Panics
    /// The nodes differ.
    pub async fn assert_equal(&self) {
        let differences = compare::differences(&self.nodes, &self.since).await;
        assert!(differences.is_empty(), "the nodes differ:\n{differences}");
    }

    /// What the status says of the link from one node to another (counted from 0).
    ///
    /// # Panics
    /// The daemon does not tell.
    pub async fn link(&self, source: usize, target: usize) -> Value {
        let status = self.daemon.status().await.expect("a status");
        link_of(&status, &self.nodes[source].name, &self.nodes[target].name)
    }

    /// Waits until the status says of a link what is wanted.
    ///
    /// # Panics
    /// It does not say so in time.
    pub async fn link_when(
        &self,
        what: &str,
        source: usize,
        target: usize,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let (source, target) = (&self.nodes[source].name, &self.nodes[target].name);
        let status = self
            .daemon
            .status_when(what, LINK_LIMIT, |status| {
                wanted(&link_of(status, source, target))
            })
            .await;
        link_of(&status, source, target)
    }

    /// A client of role `app` through the proxy.
    ///
    /// # Errors
    /// The proxy refuses.
    pub async fn try_proxy(&self) -> Result<Client, tokio_postgres::Error> {
        client::connect(self.proxy_port, APP, Some(APP), DATABASE).await
    }

    /// A client of role `app` through the proxy.
    ///
    /// # Panics
    /// The proxy refuses.
    pub async fn proxy(&self) -> Client {
        self.try_proxy()
            .await
            .unwrap_or_else(|error| panic!("the proxy: {}", client::describe(&error)))
    }

    /// psql of the first node's installation, through the proxy.
    #[must_use]
    pub fn psql(&self) -> Program {
        Program::psql(self.nodes[0].install()).port(self.proxy_port)
    }

    /// The admin token.
    ///
    /// # Panics
    /// The daemon has not written it.
    #[must_use]
    pub fn token(&self) -> String {
        fs::read_to_string(self.dir().join("state/admin.token"))
            .expect("the admin token")
            .trim()
            .to_owned()
    }

    /// Writes the configuration anew: `change` is given the text.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn change_config(&self, change: impl FnOnce(String) -> String) {
        let path: PathBuf = self.daemon.config().to_owned();
        let text = fs::read_to_string(&path).expect("the configuration");
        write_private(&path, &change(text));
    }
}

impl Cluster {
    /// The whole logs of a test that fails stay beside the templates, until enough others have failed.
    fn keep_logs(&self) {
        let failed = process::cache_dir().join("failed");
        let mut earlier: Vec<_> = fs::read_dir(&failed)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        earlier.sort_by_cached_key(|path| {
            fs::metadata(path)
                .and_then(|metadata| metadata.modified())
                .ok()
        });
        for old in earlier.iter().rev().skip(LOGS_KEPT) {
            // Another test may be removing it too.
            let _ = fs::remove_dir_all(old);
        }
        let kept = failed.join(self.dir().file_name().unwrap_or_default());
        let copied = fs::create_dir_all(&kept).and_then(|()| {
            for entry in fs::read_dir(self.dir())? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "log") {
                    fs::copy(&path, kept.join(path.file_name().unwrap_or_default()))?;
                }
            }
            Ok(())
        });
        match copied {
            Ok(()) => eprintln!("whole logs: {}", kept.display()),
            Err(error) => eprintln!("the logs were not kept: {error}"),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.daemon.kill_now();
        if std::thread::panicking() {
            eprintln!("daemon:\n{}", tail(&self.daemon.log(), 40));
            for node in &self.nodes {
                eprintln!("{}:\n{}", node.name, node.log_tail(12));
            }
            self.keep_logs();
        }
    }
}

fn link_of(status: &Value, source: &str, target: &str) -> Value {
    let links = status["replication"]["links"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let found = links
        .iter()
        .find(|link| link["source"] == source && link["target"] == target);
    found
        .unwrap_or_else(|| panic!("no link from {source} to {target} in {status}"))
        .clone()
}

/// The configuration holds a password.
fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).expect("a file can be written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("a mode can be set");
}
