//! Owns HAProxy before two primaries: how it is told of both, and what comes of it when the first one is lost.

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use tandem::cli::drill::ledger::{Ledger, figures};
use tandem::cli::drill::load::{Ended, Load, Ran};
use tandem::cli::drill::timeline::{Span, now_us};
use tandem::dev::install::find_client_program;
use tandem_tests::template::{APP, DATABASE};
use tandem_tests::{Cluster, client, ledger};
use tokio::process::Command;
use tokio::time::sleep;

use super::{Course, SCALE};
use crate::proxy::{Peer, Samples};

const HAPROXY: &str = "/usr/sbin/haproxy";
/// Clients of the ledger, and how often each writes: as many as a drill of three nodes has.
const CLIENTS: u32 = 6;
const EVERY: Duration = Duration::from_millis(10);
/// pgbench's tries, a drill's default.
const TRIES: u32 = 10;
/// How long a proxy may take until it answers.
const ANSWERS: Duration = Duration::from_secs(20);

/// A proxy, and how it is told to watch its servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `check` and nothing else: a connection every 2 s, three failures.
    HaproxyDefault,
    /// A login is begun every 100 ms, two failures; sessions of a server that is down are ended.
    HaproxyTuned,
}

/// All of them.
pub const PEERS: [Kind; 2] = [Kind::HaproxyDefault, Kind::HaproxyTuned];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::HaproxyDefault => "haproxy",
            Self::HaproxyTuned => "haproxy, 100 ms checks",
        }
    }

    /// Starts it at `port`, its files in a directory of its own.
    fn start(self, dir: &Path, port: u16, nodes: [u16; 2]) -> io::Result<Peer> {
        let dir = dir.join(format!("peer-{port}"));
        fs::create_dir(&dir)?;
        let mut command = Command::new(HAPROXY);
        let [first, second] = nodes;
        let checks = match self {
            Self::HaproxyDefault => "",
            Self::HaproxyTuned => {
                "  option pgsql-check user app\n  timeout check 500ms\n  \
                 default-server inter 100ms fall 2 rise 2 on-marked-down shutdown-sessions\n"
            }
        };
        let text = format!(
            "global\n  nbthread 1\n  maxconn 1000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  \
             timeout server 1h\nlisten postgres\n  bind 127.0.0.1:{port}\n{checks}  \
             server first 127.0.0.1:{first} check\n  server second 127.0.0.1:{second} check backup\n"
        );
        let config = dir.join("haproxy.cfg");
        fs::write(&config, text)?;
        command.args(["-q", "-db", "-f"]).arg(config);
        let log = fs::File::create(dir.join("log"))?;
        command.stdout(log.try_clone()?).stderr(log);
        Peer::start(command.current_dir("/"))
    }
}

/// Two primaries with the same tables, each alone.
#[derive(Debug)]
pub struct Primaries {
    cluster: Cluster,
}

impl Primaries {
    /// Starts them.
    pub async fn start() -> Self {
        let cluster = Cluster::of(&[15, 15])
            .durable()
            .pgbench(SCALE)
            .schema(&ledger::schema())
            .without_daemon()
            .start()
            .await;
        Self { cluster }
    }

    /// Kills (SIGKILL) or stops (SIGSTOP) the first one behind a proxy, and adds what came of it to the samples.
    ///
    /// # Errors
    /// Something cannot be started.
    pub async fn drill(
        &mut self,
        kind: Kind,
        scenario: &str,
        course: Course,
        samples: &mut Samples,
    ) -> Result<(), Box<dyn Error>> {
        if !Path::new(HAPROXY).exists() {
            eprintln!("SKIP: {} is not there", kind.name());
            return Ok(());
        }
        let port = self.cluster.port();
        let cluster = &self.cluster;
        let nodes = [cluster.nodes[0].port(), cluster.nodes[1].port()];
        for node in &cluster.nodes {
            node.execute("TRUNCATE tandem_drill").await;
        }
        let peer = kind.start(cluster.dir(), port, nodes)?;
        tandem_tests::eventually(kind.name(), ANSWERS, async || {
            let asked = client::connect(port, APP, Some(APP), DATABASE).await;
            asked.map(drop).map_err(|error| client::describe(&error))
        })
        .await;
        let measured = measure(cluster, port, scenario, course).await;
        peer.end().await?;
        for (row, figure, value) in measured? {
            samples.add(scenario, row, figure, kind.name(), value)?;
        }
        Ok(())
    }
}

/// Row, figure and value.
type Measured = Vec<(&'static str, &'static str, f64)>;

async fn measure(
    cluster: &Cluster,
    port: u16,
    scenario: &str,
    course: Course,
) -> Result<Measured, Box<dyn Error>> {
    let environment = vec![
        ("PGHOST", "127.0.0.1".to_owned()),
        ("PGPORT", port.to_string()),
        ("PGUSER", APP.to_owned()),
        ("PGPASSWORD", APP.to_owned()),
        ("PGDATABASE", DATABASE.to_owned()),
        ("PGSSLMODE", "disable".to_owned()),
    ];
    let pgbench = find_client_program("pgbench");
    let load = Load::new(pgbench, environment, &[], Some(SCALE.into()), (TRIES, 1))?;
    let names = ledger::names(&cluster.nodes).await;
    let mut clients = Vec::new();
    for number in 1..=CLIENTS {
        let client = ledger::client(port, number, None, &names);
        let (connection, _) = client.enrol().await?;
        clients.push((client, connection));
    }
    let writing = Ledger::start(clients, EVERY);

    let from_us = now_us();
    let running = load.start("control", course.control, Some(course.rate))?;
    let control = (from_us, running.finish().await?, now_us());

    let from_us = now_us();
    let time = course.at + course.hold + course.after;
    let running = load.start("drill", time, Some(course.rate))?;
    sleep(course.at).await;
    let struck_us = now_us();
    let node = &cluster.nodes[0];
    match scenario {
        "stop" => {
            node.pause().await;
            sleep(course.hold).await;
            node.resume().await;
        }
        _ => {
            node.kill9().await;
            sleep(course.hold).await;
            node.start_again().await;
        }
    }
    let drill = (from_us, running.finish().await?, now_us());
    let histories = writing.finish().await?;

    let mut measured = Vec::new();
    for (row, (from_us, ran, to_us)) in [("with it", drill), ("without", control)] {
        let span = Span { from_us, to_us };
        let ledger = figures(&histories, span, 0, struck_us);
        #[allow(clippy::cast_precision_loss)] // Counts and times of one run.
        let mut add = |figure, value: u64| measured.push((row, figure, value as f64));
        if let Some(gap_us) = ledger.gap_moved_us {
            add("gap of its keys, ms", gap_us / 1000);
        }
        add("slowest transaction, ms", slowest_us(&ran) / 1000);
        let failed = ran.transactions.iter();
        let failed = failed.filter(|transaction| transaction.ended == Ended::Failed);
        add("failed", failed.count() as u64);
        let retried = ran.transactions.iter();
        let retried = retried.filter(|transaction| transaction.retries > 0);
        add("retried", retried.count() as u64);
        add(
            "pgbench's clients lost, of 16",
            ran.clients_lost.len() as u64,
        );
        add("ledger: writes", ledger.acknowledged);
        add("ledger: told nobody", ledger.unknown);
        add("ledger: connections lost", ledger.connections_lost);
    }
    Ok(measured)
}

fn slowest_us(ran: &Ran) -> u64 {
    let latency = |ended| match ended {
        Ended::Well { latency_us } => Some(latency_us),
        Ended::Failed | Ended::Skipped => None,
    };
    let latencies = ran.transactions.iter();
    let latencies = latencies.filter_map(|transaction| latency(transaction.ended));
    latencies.max().unwrap_or(0)
}
