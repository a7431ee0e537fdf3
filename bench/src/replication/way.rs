//! The ways to bring changes from the source to targets: set-up, start, stop.

use std::time::{Duration, Instant};

use tandem_tests::template::DATABASE;
use tandem_tests::{Daemon, Node, client, eventually};
use tokio_postgres::Client;

use super::TABLES_WITH_KEY;

/// How long a way may take to come up or to go down.
const LIMIT: Duration = Duration::from_secs(60);

/// Which replication it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Tandem's daemon.
    Tandem,
    /// A subscription.
    Native,
    /// A pglogical subscription.
    Pglogical,
}

/// A way with its targets. It is stopped unless it is being measured.
#[derive(Debug)]
pub struct Way {
    /// Which one.
    pub kind: Kind,
    /// Where its changes go.
    pub targets: Vec<Node>,
    /// Its slots on the source.
    pub slots: Vec<String>,
}

impl Way {
    /// What it is called in tables.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Tandem => "tandem",
            Kind::Native => "native",
            Kind::Pglogical => "pglogical",
        }
    }

    /// Native subscriptions, disabled, with their slots made.
    ///
    /// # Panics
    /// A server refuses.
    pub async fn native(source: &Node, targets: Vec<Node>) -> Self {
        let mut slots = Vec::new();
        for (index, target) in targets.iter().enumerate() {
            let slot = format!("native_{index}");
            let sql = format!(
                "CREATE SUBSCRIPTION native CONNECTION '{}' PUBLICATION bench WITH (copy_data = false, slot_name = '{slot}')",
                dsn(source)
            );
            target.execute(&sql).await;
            slots.push(slot);
        }
        let way = Self {
            kind: Kind::Native,
            targets,
            slots,
        };
        way.switch_native("DISABLE").await;
        way.wait_inactive(source).await;
        way
    }

    /// pglogical subscriptions, disabled, with their slots made.
    ///
    /// # Panics
    /// A server refuses.
    pub async fn pglogical(source: &Node, targets: Vec<Node>) -> Self {
        source.execute("CREATE EXTENSION pglogical").await;
        source.execute(&create_node("source", source)).await;
        for table in TABLES_WITH_KEY {
            let sql = format!("SELECT pglogical.replication_set_add_table('default', '{table}')");
            source.execute(&sql).await;
        }
        source
            .execute("SELECT pglogical.replication_set_add_table('default_insert_only', 'pgbench_history')")
            .await;
        for (index, target) in targets.iter().enumerate() {
            target.execute("CREATE EXTENSION pglogical").await;
            target
                .execute(&create_node(&format!("target{index}"), target))
                .await;
            let sql = format!(
                "SELECT pglogical.create_subscription('bench{index}', '{}', ARRAY['default', 'default_insert_only'], false, false, '{{}}')",
                dsn(source)
            );
            target.execute(&sql).await;
            replicating(index, target).await;
        }
        let rows = client::rows(
            &source.connect().await,
            "SELECT slot_name FROM pg_replication_slots WHERE plugin = 'pglogical_output'",
        )
        .await;
        let way = Self {
            kind: Kind::Pglogical,
            targets,
            slots: rows.into_iter().flatten().flatten().collect(),
        };
        way.switch_pglogical("disable").await;
        way.wait_inactive(source).await;
        way
    }

    /// `to`: `enable` or `disable`.
    async fn switch_pglogical(&self, to: &str) {
        for (index, target) in self.targets.iter().enumerate() {
            let sql = format!("SELECT pglogical.alter_subscription_{to}('bench{index}', true)");
            target.execute(&sql).await;
        }
    }

    /// `to`: `ENABLE` or `DISABLE`.
    async fn switch_native(&self, to: &str) {
        for target in &self.targets {
            let sql = format!("ALTER SUBSCRIPTION native {to}");
            target.execute(&sql).await;
        }
    }

    /// Starts it; answers without waiting for anything.
    ///
    /// # Panics
    /// It cannot be started.
    pub async fn start(&self, daemon: &mut Daemon) {
        match self.kind {
            Kind::Tandem => daemon.spawn(),
            Kind::Native => self.switch_native("ENABLE").await,
            Kind::Pglogical => self.switch_pglogical("enable").await,
        }
    }

    /// Stops it and waits until its slots are free.
    ///
    /// # Panics
    /// It does not stop.
    pub async fn stop(&self, source: &Node, daemon: &mut Daemon) {
        match self.kind {
            Kind::Tandem => {
                daemon.terminate().await;
            }
            Kind::Native => self.switch_native("DISABLE").await,
            Kind::Pglogical => self.switch_pglogical("disable").await,
        }
        self.wait_inactive(source).await;
    }

    async fn wait_inactive(&self, source: &Node) {
        let client = source.connect().await;
        eventually("the slots are free", LIMIT, async || {
            match self.active(&client).await {
                0 => Ok(()),
                active => Err(format!("{active} are active")),
            }
        })
        .await;
    }

    /// How many of its slots are being read.
    ///
    /// # Panics
    /// The source does not tell.
    pub async fn active(&self, source: &Client) -> usize {
        let sql = format!(
            "SELECT count(*) FROM pg_replication_slots WHERE active AND slot_name IN ({})",
            self.slot_list()
        );
        let active = client::value(source, &sql).await;
        active.parse().expect("a number")
    }

    /// Waits until everything that the source has written is sent.
    ///
    /// # Panics
    /// It is not.
    pub async fn wait_sent(&self, source: &Client) {
        let end = client::value(source, "SELECT pg_current_wal_flush_lsn()").await;
        let sent = format!(
            "SELECT count(*) FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid \
             WHERE s.slot_name IN ({}) AND r.sent_lsn >= '{end}'",
            self.slot_list()
        );
        let began = Instant::now();
        while client::value(source, &sent).await == "0" {
            assert!(began.elapsed() < LIMIT, "it is not sent");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Whether the sessions are there in which it applies.
    ///
    /// # Panics
    /// A server does not tell.
    pub async fn is_applying(&self, source: &Client, targets: &[Client]) -> bool {
        if self.kind != Kind::Tandem {
            return self.active(source).await == self.slots.len();
        }
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'tandem:%:apply 1'";
        for target in targets {
            if client::value(target, sql).await == "0" {
                return false;
            }
        }
        true
    }

    /// Waits until all its slots on the node are confirmed up to where the node's WAL ends now.
    ///
    /// # Panics
    /// They do not get there.
    pub async fn wait_confirmed(&self, node: &Node) {
        let client = node.connect().await;
        let lsn = client::value(&client, "SELECT pg_current_wal_flush_lsn()").await;
        let sql = format!(
            "SELECT coalesce(bool_and(confirmed_flush_lsn >= '{lsn}'), true) FROM pg_replication_slots \
             WHERE slot_name IN ({})",
            self.slot_list()
        );
        eventually(
            "the slots are confirmed",
            LIMIT,
            async || match client::value(&client, &sql).await.as_str() {
                "t" => Ok(()),
                _ => Err(format!("{} not at {lsn}", self.name())),
            },
        )
        .await;
    }

    fn slot_list(&self) -> String {
        let quoted: Vec<_> = self.slots.iter().map(|slot| format!("'{slot}'")).collect();
        quoted.join(", ")
    }
}

async fn replicating(index: usize, target: &Node) {
    let client = target.connect().await;
    let sql = format!("SELECT status FROM pglogical.show_subscription_status('bench{index}')");
    eventually(
        "pglogical replicates",
        LIMIT,
        async || match client::value(&client, &sql).await.as_str() {
            "replicating" => Ok(()),
            other => Err(other.to_owned()),
        },
    )
    .await;
}

fn create_node(name: &str, node: &Node) -> String {
    format!("SELECT pglogical.create_node('{name}', '{}')", dsn(node))
}

fn dsn(node: &Node) -> String {
    format!(
        "host=127.0.0.1 port={} user=postgres dbname={DATABASE}",
        node.port()
    )
}
