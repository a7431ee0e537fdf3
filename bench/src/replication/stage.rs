//! The servers of a benchmark, and the draining of one backlog by one way.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tandem_tests::{Cluster, Node, client, eventually, template};
use tokio::task::spawn_blocking;
use tokio_postgres::Client;

use super::backlog::{Backlog, digest, mark};
use super::way::{Kind, Way};
use super::{PGBENCH_SCALE, SCHEMA, SETTINGS, TABLES_WITH_KEY, has_pglogical};
use crate::{cpu_time, cpu_time_with_children, peak_memory};

/// PostgreSQL's major version.
const MAJOR: u32 = 15;
/// How often Tandem's proxy opens a session on each node to see whether it is well: the default, not the tests' tenth of it.
const PROBE_INTERVAL: &str = "1s";
/// How long a drain may take.
const DRAIN_LIMIT: Duration = Duration::from_secs(300);
/// The slot that is only read.
pub const CAPTURE_SLOT: &str = "capture";

/// A source, the ways from it with as many targets each, and a server for the bare statements.
#[derive(Debug)]
pub struct Stage {
    /// Tandem's nodes, with its daemon; the first is the source of every way.
    pub cluster: Cluster,
    /// The ways, stopped.
    pub ways: Vec<Way>,
    /// A server on its own.
    pub floor: Node,
}

/// How a way drained a backlog.
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    /// From its start until its slot was active.
    pub startup: Duration,
    /// From then until the first transaction was visible on every target.
    pub first: Duration,
    /// From the slot's activity until the last transaction was visible on every target.
    pub all: Duration,
    /// CPU time of the source server until everything was confirmed.
    pub source_cpu: Duration,
    /// CPU time of the target servers, summed.
    pub target_cpu: Duration,
    /// CPU time and peak memory (bytes) of the daemon, where there is one.
    pub daemon: Option<(Duration, u64)>,
}

impl Stage {
    /// Starts everything, makes every way's slot, and stops every way.
    ///
    /// # Panics
    /// Something does not start.
    /// `group_apply` is Tandem's setting of that name, its default where `None`.
    pub async fn set_up(targets: u32, group_apply: Option<u32>) -> Self {
        let install = template::install(MAJOR);
        let pglogical = has_pglogical(&install.bin_dir);
        let mut settings: Vec<_> = SETTINGS.to_vec();
        if pglogical {
            settings.push(("shared_preload_libraries", "pglogical"));
        } else {
            eprintln!("SKIP: pglogical is not installed (Debian: postgresql-{MAJOR}-pglogical)");
        }
        let majors = vec![MAJOR; 1 + targets as usize];
        let group_apply = group_apply.map(|count| format!("\ngroup_apply = {count}"));
        let group_apply = group_apply.unwrap_or_default();
        let mut builder = Cluster::of(&majors)
            .durable()
            .pgbench(PGBENCH_SCALE)
            .schema(SCHEMA)
            .probe_interval(PROBE_INTERVAL)
            .replication(&format!("exclude = [\"pglogical.*\"]{group_apply}"))
            .without_daemon();
        for (name, value) in &settings {
            builder = builder.setting(name, value);
        }
        let mut cluster = builder.start().await;
        let source = cluster.nodes[0].clone();
        let mut others = Others {
            place: majors.len(),
            settings: template::settings(true),
        };
        let own = settings
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()));
        others.settings.extend(own);
        let floor = others.start(&mut cluster).await;

        let published = TABLES_WITH_KEY.join(", ");
        source
            .execute(&format!(
                "CREATE PUBLICATION bench FOR TABLE {published}, pgbench_history"
            ))
            .await;
        source
            .execute(&format!(
                "SELECT pg_create_logical_replication_slot('{CAPTURE_SLOT}', 'pgoutput')"
            ))
            .await;
        let native_targets = others.start_many(&mut cluster, targets).await;
        let mut ways = vec![Way::native(&source, native_targets).await];
        if pglogical {
            let targets = others.start_many(&mut cluster, targets).await;
            ways.push(Way::pglogical(&source, targets).await);
        }
        cluster.daemon.start().await;
        cluster.converge(Duration::from_secs(60)).await;
        cluster.daemon.terminate().await;
        ways.push(Way {
            kind: Kind::Tandem,
            targets: cluster.nodes[1..].to_vec(),
            slots: vec!["tandem_test".to_owned()],
        });
        Self {
            cluster,
            ways,
            floor,
        }
    }

    /// Where everything is written.
    pub fn source(&self) -> Node {
        self.cluster.nodes[0].clone()
    }

    /// Writes a backlog between two marks; answers its exact size and the marks.
    ///
    /// # Errors
    /// When pgbench's script cannot be written.
    ///
    /// # Panics
    /// The source refuses it.
    pub async fn make(&self, backlog: Backlog, size: u32) -> std::io::Result<(u32, [i64; 2])> {
        let source = self.source();
        let first = mark(&source).await;
        let size = backlog.make(&source, self.cluster.dir(), size).await?;
        Ok((size, [first, mark(&source).await]))
    }

    /// Lets the `index`-th way drain the backlog between the marks, and checks that nothing is missing.
    ///
    /// # Errors
    /// When /proc cannot be read.
    ///
    /// # Panics
    /// It does not drain it, or the targets differ from the source afterwards.
    pub async fn drain(&mut self, index: usize, marks: [i64; 2]) -> std::io::Result<Drain> {
        let source = self.source();
        let way = &self.ways[index];
        let watching = source.connect().await;
        source.execute("CHECKPOINT").await;
        let mut clients = Vec::new();
        for target in &way.targets {
            target.execute("CHECKPOINT").await;
            clients.push(target.connect().await);
        }
        let started = Instant::now();
        way.start(&mut self.cluster.daemon).await;
        while way.active(&watching).await == 0 {
            assert!(
                started.elapsed() < DRAIN_LIMIT,
                "{} does not start",
                way.name()
            );
        }
        self.drained(index, marks, clients, [started, Instant::now()])
            .await
    }

    /// Lets a backlog be written while the targets of the `index`-th way are down, and the way drain it when they return;
    /// answers its size too. A way that can reads it meanwhile. The clock starts when the way's sessions are there again.
    ///
    /// # Errors
    /// When pgbench's script cannot be written, or /proc cannot be read.
    ///
    /// # Panics
    /// It does not come to that, or the targets differ from the source afterwards.
    pub async fn returning(
        &mut self,
        index: usize,
        backlog: Backlog,
        size: u32,
    ) -> std::io::Result<(u32, Drain)> {
        self.start_way(index).await;
        let source = self.source();
        let watching = source.connect().await;
        let way = &self.ways[index];
        for target in &way.targets {
            target.stop_fast().await;
        }
        let (size, marks) = self.make(backlog, size).await?;
        if way.kind == Kind::Tandem {
            way.wait_sent(&watching).await;
        }
        source.execute("CHECKPOINT").await;
        let started = Instant::now();
        let mut clients = Vec::new();
        for target in &way.targets {
            target.start_again().await;
            clients.push(target.connect().await);
        }
        while !way.is_applying(&watching, &clients).await {
            assert!(started.elapsed() < DRAIN_LIMIT, "{}", way.name());
        }
        let times = [started, Instant::now()];
        Ok((size, self.drained(index, marks, clients, times).await?))
    }

    /// Waits until a backlog is drained by a way that was `started` and became `active`, stops it, and checks what came of it.
    async fn drained(
        &mut self,
        index: usize,
        marks: [i64; 2],
        clients: Vec<Client>,
        [started, active]: [Instant; 2],
    ) -> std::io::Result<Drain> {
        let source = self.source();
        let way = &self.ways[index];
        let before = Spent::of(&source, way, self.cluster.daemon.pid()).await?;

        let seen = format!(
            "SELECT count(*) FROM mark WHERE id IN ({}, {})",
            marks[0], marks[1]
        );
        let mut first = None;
        let mut waiting: BTreeMap<usize, i64> =
            (0..clients.len()).map(|target| (target, 0)).collect();
        while !waiting.is_empty() {
            assert!(
                active.elapsed() < DRAIN_LIMIT,
                "{} does not drain",
                way.name()
            );
            for (target, count) in &mut waiting {
                *count = client::value(&clients[*target], &seen)
                    .await
                    .parse()
                    .expect("a number");
            }
            if first.is_none() && waiting.values().all(|&count| count > 0) {
                first = Some(active.elapsed());
            }
            waiting.retain(|_, count| *count < 2);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let all = active.elapsed();
        way.wait_confirmed(&source).await;
        let after = Spent::of(&source, way, self.cluster.daemon.pid()).await?;
        let daemon_memory = self.cluster.daemon.pid().map(peak_memory).transpose()?;
        // A slot is read again from the last list of running transactions that lies before what it has confirmed, and a
        // checkpoint writes one: without it the next start would begin with this backlog.
        source.execute("CHECKPOINT").await;
        way.wait_confirmed(&source).await;
        if way.kind == Kind::Tandem {
            // Its targets' own streams hold what was applied.
            for target in &way.targets {
                target.execute("CHECKPOINT").await;
                way.wait_confirmed(target).await;
            }
        }
        way.stop(&source, &mut self.cluster.daemon).await;

        let expected = digest(&source).await;
        for target in &way.targets {
            assert_eq!(digest(target).await, expected, "{} differs", way.name());
        }
        Ok(Drain {
            startup: active - started,
            first: first.unwrap_or(all),
            all,
            source_cpu: after.source.saturating_sub(before.source),
            target_cpu: after.targets.saturating_sub(before.targets),
            daemon: after
                .daemon
                .zip(before.daemon)
                .map(|(after, before)| after.saturating_sub(before))
                .zip(daemon_memory),
        })
    }

    /// Lets Tandem's daemon read what its slot holds while its target is down, so that only the journal is written; answers
    /// how long the source took to send it, its CPU time and the daemon's. Afterwards the target has everything too.
    ///
    /// # Errors
    /// When /proc cannot be read.
    ///
    /// # Panics
    /// It does not come to that.
    pub async fn journal(&mut self) -> std::io::Result<(Duration, [Duration; 2])> {
        let source = self.source();
        let index = self.ways.iter().position(|way| way.kind == Kind::Tandem);
        let way = &self.ways[index.expect("Tandem is among the ways")];
        let target = way.targets[0].clone();
        let watching = source.connect().await;
        source.execute("CHECKPOINT").await;
        target.stop_fast().await;
        way.start(&mut self.cluster.daemon).await;
        while way.active(&watching).await == 0 {}
        let active = Instant::now();
        let before = [server_cpu(&source).await?, self.daemon_cpu()?];
        way.wait_sent(&watching).await;
        let took = active.elapsed();
        let source_cpu = server_cpu(&source).await?.saturating_sub(before[0]);
        let daemon_cpu = self.daemon_cpu()?.saturating_sub(before[1]);
        target.start_again().await;
        way.wait_confirmed(&source).await;
        way.stop(&source, &mut self.cluster.daemon).await;
        Ok((took, [source_cpu, daemon_cpu]))
    }

    fn daemon_cpu(&self) -> std::io::Result<Duration> {
        let pid = self.cluster.daemon.pid();
        cpu_time(pid.ok_or_else(|| std::io::Error::other("the daemon has ended"))?)
    }

    /// Starts the `index`-th way and waits until a write of now is visible on its targets.
    ///
    /// # Panics
    /// It does not come to that.
    pub async fn start_way(&mut self, index: usize) {
        let way = &self.ways[index];
        let id = mark(&self.cluster.nodes[0]).await;
        way.start(&mut self.cluster.daemon).await;
        let seen = format!("SELECT count(*) FROM mark WHERE id = {id}");
        for target in &way.targets {
            let client = target.connect().await;
            eventually(
                "a mark is visible",
                DRAIN_LIMIT,
                async || match client::value(&client, &seen).await.as_str() {
                    "1" => Ok(()),
                    _ => Err(format!("{}: not there", way.name())),
                },
            )
            .await;
        }
    }

    /// Stops the `index`-th way.
    ///
    /// # Panics
    /// It does not stop.
    pub async fn stop_way(&mut self, index: usize) {
        let source = self.source();
        self.ways[index]
            .stop(&source, &mut self.cluster.daemon)
            .await;
    }
}

/// Servers that are not Tandem's.
struct Others {
    /// The next one's place: names its directory, chooses its template.
    place: usize,
    settings: Vec<(String, String)>,
}

impl Others {
    async fn start(&mut self, cluster: &mut Cluster) -> Node {
        let (dir, place, port) = (PathBuf::from(cluster.dir()), self.place, cluster.port());
        self.place += 1;
        let settings = self.settings.clone();
        let started = spawn_blocking(move || {
            let install = template::install(MAJOR);
            let scale = Some(PGBENCH_SCALE);
            Node::start(&dir, place, install, port, settings, scale, None)
        });
        let node = started.await.expect("not cancelled");
        node.execute(SCHEMA).await;
        node
    }

    async fn start_many(&mut self, cluster: &mut Cluster, count: u32) -> Vec<Node> {
        let mut nodes = Vec::new();
        for _ in 0..count {
            nodes.push(self.start(cluster).await);
        }
        nodes
    }
}

/// CPU time at one moment.
struct Spent {
    source: Duration,
    targets: Duration,
    daemon: Option<Duration>,
}

impl Spent {
    async fn of(source: &Node, way: &Way, daemon: Option<u32>) -> std::io::Result<Self> {
        let mut targets = Duration::ZERO;
        for target in &way.targets {
            targets += server_cpu(target).await?;
        }
        Ok(Self {
            source: server_cpu(source).await?,
            targets,
            daemon: daemon.map(cpu_time).transpose()?,
        })
    }
}

/// CPU time of a server with all its processes.
async fn server_cpu(node: &Node) -> std::io::Result<Duration> {
    let dir = node.value("SHOW data_directory").await;
    let pid_file = std::fs::read_to_string(PathBuf::from(dir).join("postmaster.pid"))?;
    let pid = pid_file.lines().next().and_then(|line| line.parse().ok());
    cpu_time_with_children(pid.ok_or_else(|| std::io::Error::other("postmaster.pid is empty"))?)
}
