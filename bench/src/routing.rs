//! What routing is for: pgbench's transactions on three nodes whose links take their time, with each transaction at the home of
//! its branch, and without.

use std::error::Error;
use std::fs;
use std::time::Duration;

use tandem_tests::{Cluster, Program};

const RULES: &str = include_str!("../../examples/pgbench/rules.toml");
const NEAREST: &str = "[default]\nwrite = \"nearest\"\n";
const SCRIPT: &str = include_str!("../../examples/pgbench/one-branch.sql");
/// pgbench's scale: so many branches.
const SCALE: &str = "10";
/// What each link adds.
const DELAY: Duration = Duration::from_millis(5);
/// How long the nodes may take to converge.
const LIMIT: Duration = Duration::from_secs(600);

/// Where writes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// To the home of their branch, by `examples/pgbench/rules.toml`.
    Home,
    /// To the node that is nearest to their session.
    Nearest,
}

/// A run of pgbench.
#[derive(Debug, Clone, Copy)]
pub struct Load<'a> {
    /// `-M`
    pub protocol: &'a str,
    /// `-R`
    pub rate: u32,
    /// `-T`
    pub time: Duration,
}

/// What came of one.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Transactions that pgbench has counted.
    pub transactions: u64,
    /// Those that failed.
    pub failed: u64,
    /// Rows that were written on two nodes at once: what one of them wrote is lost.
    pub conflicts: u64,
    /// By how much the sum of all accounts misses the sum of what was booked.
    pub missing: i64,
    /// Average latency as pgbench says it, milliseconds.
    pub latency_ms: f64,
}

/// Three nodes with slow links, and pgbench's tables on them.
#[derive(Debug)]
pub struct Stage {
    cluster: Cluster,
}

impl Stage {
    /// Starts it.
    ///
    /// # Errors
    /// A file cannot be written.
    ///
    /// # Panics
    /// A node or the daemon does not start.
    pub async fn start(writes: Writes) -> Result<Stage, Box<dyn Error>> {
        let rules = match writes {
            Writes::Home => RULES,
            Writes::Nearest => NEAREST,
        };
        let cluster = Cluster::of(&[15, 17, 18])
            .pgbench(SCALE.parse()?)
            .relays()
            .proxy("pool_mode = \"transaction\"")
            .rules(rules)
            .start()
            .await;
        for relay in &cluster.relays {
            relay.delay("apply ", DELAY);
        }
        fs::write(cluster.dir().join("one-branch.sql"), SCRIPT)?;
        Ok(Stage { cluster })
    }

    /// Runs pgbench with 16 clients, and waits until the nodes are equal.
    ///
    /// # Errors
    /// pgbench does not run.
    ///
    /// # Panics
    /// The nodes are not equal in the end.
    pub async fn run(&self, load: Load<'_>) -> Result<Ran, Box<dyn Error>> {
        let before = (self.conflicts().await?, self.missing().await?);
        let pgbench = Program::pgbench(self.cluster.nodes[0].install());
        let seconds = load.time.as_secs().max(1).to_string();
        let rate = load.rate.to_string();
        let ran = pgbench
            .port(self.cluster.proxy_port)
            .args(["-n", "-M", load.protocol, "-s", SCALE, "-R", &rate])
            .args(["-c", "16", "-j", "16", "-T", &seconds, "-f"])
            .args([self.cluster.dir().join("one-branch.sql")])
            .run(load.time + Duration::from_secs(60))
            .await;
        if !ran.status.success() {
            return Err(ran.all().into());
        }
        self.cluster.converge(LIMIT).await;
        self.cluster.assert_equal().await;
        let number = |label: &str| {
            let rest = ran.stdout.lines().find_map(|line| line.strip_prefix(label));
            rest.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
                .ok_or_else(|| format!("pgbench says no {label:?}: {}", ran.stdout))
        };
        let count = |label: &str| -> Result<u64, Box<dyn Error>> {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            Ok(number(label)? as u64)
        };
        Ok(Ran {
            transactions: count("number of transactions actually processed: ")?,
            failed: count("number of failed transactions: ")?,
            conflicts: self.conflicts().await? - before.0,
            missing: self.missing().await? - before.1,
            latency_ms: number("latency average = ")?,
        })
    }

    /// Rows of the conflict logs of all nodes.
    async fn conflicts(&self) -> Result<u64, Box<dyn Error>> {
        let mut sum = 0;
        for node in &self.cluster.nodes {
            let count = node.value("SELECT count(*) FROM tandem.conflict").await;
            sum += count.parse::<u64>()?;
        }
        Ok(sum)
    }

    async fn missing(&self) -> Result<i64, Box<dyn Error>> {
        let sums = "SELECT (SELECT coalesce(sum(delta), 0) FROM pgbench_history) - (SELECT sum(abalance) FROM pgbench_accounts)";
        Ok(self.cluster.nodes[0].value(sums).await.parse()?)
    }
}
