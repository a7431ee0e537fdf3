//! Owns everything that runs while the proxies are measured: two nodes, Tandem before each, the peers before the first; and three
//! nodes that Tandem keeps converged and routes among.

use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tandem_tests::cluster::ClusterBuilder;
use tandem_tests::scratch::Scratch;
use tandem_tests::template::APP;
use tandem_tests::{Cluster, Program};

use super::peers::{Peer, pgbouncers, start_haproxy, start_pgbouncer};

const RULES: &str = include_str!("../../../examples/pgbench/rules.toml");

/// A way to a server.
#[derive(Debug, Clone)]
pub struct Way {
    /// As in the tables.
    pub name: &'static str,
    /// Of 127.0.0.1.
    pub port: u16,
    /// The proxy's process; none: directly.
    pub pid: Option<u32>,
    /// Whether it takes crowds: its clients share servers, and may speak protocol 3.2, as the generator's do.
    pub crowds: bool,
}

/// All of it. Dropping it ends and removes everything.
#[derive(Debug)]
pub struct Stage {
    /// In the order in which they are measured.
    pub ways: Vec<Way>,
    /// The verifier of role `app` on the nodes.
    pub verifier: String,
    // Ended before the directories go that they lie in.
    _peers: Vec<Peer>,
    clusters: [Cluster; 3],
}

/// Nodes that are alike, and Tandem with so many threads before them. Its reads go to the first one; pgbench's writes go to the
/// homes of their keys.
async fn cluster(nodes: usize, workers: u32) -> Result<Cluster, Box<dyn Error>> {
    let scratch = Scratch::new()?;
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = rcgen::generate_simple_self_signed(names)?;
    fs::write(scratch.path().join("server.crt"), certificate.cert.pem())?;
    let key = scratch.path().join("server.key");
    fs::write(&key, certificate.signing_key.serialize_pem())?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    let zones = ["here", "there", "there"];
    let builder: ClusterBuilder = Cluster::of(&vec![15; nodes]).pgbench(10);
    let builder = builder
        .rules(RULES)
        .zones(zones.get(..nodes).unwrap_or(&zones))
        .setting("shared_buffers", "256MB")
        .setting("max_connections", "400")
        .probe_interval("1s")
        .proxy(&format!(
            "pool_mode = \"transaction\"\nzone = \"here\"\npool_size = 20\nworkers = {workers}\nmax_client_connections = 15000"
        ))
        .sections("[proxy.tls]\ncert = \"server.crt\"\nkey = \"server.key\"\nmode = \"allow\"");
    let mut cluster = builder.without_daemon().start_in(scratch).await;
    cluster.daemon.log_little();
    cluster.daemon.start().await;
    Ok(cluster)
}

impl Stage {
    /// Starts it all.
    ///
    /// # Errors
    /// Something does not start.
    pub async fn start() -> Result<Self, Box<dyn Error>> {
        let (one, two, three) = tokio::try_join!(cluster(1, 1), cluster(1, 2), cluster(3, 1))?;
        let mut clusters = [one, two, three];
        let [one, two, three] = &mut clusters;
        let node = one.nodes[0].port();
        let verifier = one.nodes[0]
            .value(&format!(
                "SELECT rolpassword FROM pg_authid WHERE rolname = '{APP}'"
            ))
            .await;
        let tandem = |name, cluster: &Cluster| Way {
            name,
            port: cluster.proxy_port,
            pid: cluster.daemon.pid(),
            crowds: true,
        };
        let mut ways = vec![
            Way {
                name: "direct",
                port: node,
                pid: None,
                crowds: false,
            },
            tandem("tandem", one),
            tandem("tandem, 2 workers", two),
            tandem("tandem, 3 nodes", three),
        ];
        let mut peers = Vec::new();
        for (name, program) in pgbouncers() {
            let port = one.port();
            let peer = start_pgbouncer(&program, one.dir(), port, node, &verifier)?;
            ways.push(Way {
                name,
                port,
                pid: peer.pid(),
                crowds: name != "pgbouncer 1.18",
            });
            peers.push(peer);
        }
        let port = one.port();
        if let Some(peer) = start_haproxy(one.dir(), port, node)? {
            ways.push(Way {
                name: "haproxy",
                port,
                pid: peer.pid(),
                crowds: false,
            });
            peers.push(peer);
        }
        let wanted = std::env::var("BENCH_WAYS").unwrap_or_default();
        let wanted: Vec<_> = wanted.split(';').filter(|name| !name.is_empty()).collect();
        ways.retain(|way| wanted.is_empty() || wanted.contains(&way.name));
        let stage = Self {
            ways,
            verifier,
            _peers: peers,
            clusters,
        };
        for way in &stage.ways {
            stage.answers(way).await;
        }
        Ok(stage)
    }

    /// Waits until a way answers.
    async fn answers(&self, way: &Way) {
        let install = self.clusters[0].nodes[0].install();
        tandem_tests::eventually(way.name, Duration::from_secs(20), || async {
            let psql = Program::psql(install).port(way.port);
            let ran = psql
                .args(["-c", "SELECT 1"])
                .run(Duration::from_secs(20))
                .await;
            if ran.status.success() {
                Ok(())
            } else {
                Err(ran.all())
            }
        })
        .await;
    }

    /// pgbench on a way, without vacuuming and without TLS.
    pub fn pgbench(&self, way: &Way) -> Program {
        let pgbench = Program::pgbench(self.clusters[0].nodes[0].install());
        pgbench
            .port(way.port)
            .env("PGSSLMODE", "disable")
            .args(["-n", "-j", "2"])
    }

    /// The program that [`Self::pgbench`] runs.
    pub fn pgbench_path(&self) -> std::path::PathBuf {
        let install = self.clusters[0].nodes[0].install();
        install.client_program("pgbench").unwrap_or_default()
    }

    /// Where to put files.
    pub fn dir(&self) -> &std::path::Path {
        self.clusters[0].dir()
    }
}
