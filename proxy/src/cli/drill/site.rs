//! Owns what a drill knows of its cluster: the proxy, each node directly, the daemon's admin port.

use std::str::FromStr;
use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::Value;
use tandem_wire::tls::{ClientTls, SslMode};
use tandem_wire::{ConnectOptions, Credentials, Secret};
use tokio::time::{Instant, sleep, timeout};

use super::DrillError;
use super::audit::Found;
use super::ledger::{Client, DEFINITION, TABLE, WHO};
use super::load::Environment;
use super::report::{ConflictReport, Sums};
use crate::cli::Failure;
use crate::cli::admin::AdminPort;
use crate::config::{Config, Listen};
use crate::dev::APP;
use crate::node::{Node, Nodes, nodes};

/// Bound on a login.
const LOGIN_LIMIT: Duration = Duration::from_secs(10);
/// Bound on what a node is asked, the sums of large tables included.
const ANSWER_LIMIT: Duration = Duration::from_secs(300);
/// Bound on the daemon's answer beyond what it was told to wait.
const ADMIN_LIMIT: Duration = Duration::from_secs(60);
/// How soon a daemon that gave up is asked again whether all is everywhere.
const CONVERGE_POLL: Duration = Duration::from_millis(50);
/// Lines of the conflict log that are looked through for the ledger's writes.
const CONFLICTS_MAX: u32 = 10_000;

/// States in which a node stays by itself.
const SETTLED: [&str; 3] = ["up", "drained", "fenced"];

/// What pgbench's four tables add up to.
const SUMS: &str = "SELECT (SELECT coalesce(sum(abalance), 0) FROM pgbench_accounts), \
    (SELECT coalesce(sum(tbalance), 0) FROM pgbench_tellers), (SELECT coalesce(sum(bbalance), 0) FROM pgbench_branches), \
    (SELECT coalesce(sum(delta), 0) FROM pgbench_history)";
const HAS_TABLES: &str = "SELECT count(*) FROM pg_catalog.unnest('{pgbench_accounts,pgbench_tellers,pgbench_branches,\
    pgbench_history}'::text[]) name WHERE pg_catalog.to_regclass(name) IS NOT NULL";

/// Rows of text.
type Rows = Vec<Vec<Option<String>>>;

/// The cluster.
pub(super) struct Site {
    pub(super) config: Config,
    nodes: Nodes,
    port: AdminPort,
    /// How clients connect to the proxy.
    proxy: ConnectOptions,
    /// The same for pgbench.
    environment: Environment,
}

impl Site {
    /// From the configuration and, where the cluster is none of `tandem dev`, the URL that clients use.
    pub(super) fn new(config: Config, url: Option<&str>, is_dev: bool) -> Result<Self, Failure> {
        let (proxy, environment) = match url {
            Some(url) => from_url(url).map_err(Failure::Usage)?,
            None if is_dev => of_dev(&config).map_err(Failure::Usage)?,
            None => {
                return Err(Failure::Usage(
                    "how do clients connect? say --url postgres://USER:PASSWORD@HOST:PORT/DATABASE"
                        .to_owned(),
                ));
            }
        };
        let nodes = nodes(&config.nodes).map_err(Failure::other)?;
        let port = AdminPort::of(&config.admin)?;
        Ok(Self {
            config,
            nodes,
            port,
            proxy,
            environment,
        })
    }

    /// The nodes' names.
    pub(super) fn names(&self) -> Vec<String> {
        let names = self.nodes.iter().map(|node| node.name().to_owned());
        names.collect()
    }

    pub(super) fn environment(&self) -> Environment {
        self.environment.clone()
    }

    /// Asks a node directly, as Tandem's own role.
    async fn ask(&self, node: &Node, sql: &str) -> Result<Rows, DrillError> {
        let params = [
            ("application_name", "tandem drill"),
            // Each node is asked by itself: what it does stays there.
            ("options", "-c search_path=public -c tandem.ddl=off"),
        ];
        let params = params.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let database = &self.config.replication.database;
        let options = node.own_options(database, params.to_vec(), LOGIN_LIMIT);
        let failed = |problem: String| DrillError::Node {
            node: node.name().to_owned(),
            problem,
        };
        let asking = async {
            let mut connection = tandem_wire::connect(&options)
                .await
                .map_err(|error| failed(error.to_string()))?;
            let rows = connection.simple_query(sql).await;
            connection.close().await;
            rows.map_err(|error| failed(error.to_string()))
        };
        timeout(ANSWER_LIMIT, asking)
            .await
            .unwrap_or_else(|_| Err(failed("no answer in time".to_owned())))
    }

    /// What the nodes call themselves: another thing each, or nobody could tell where a write was.
    pub(super) async fn identities(&self) -> Result<Vec<String>, DrillError> {
        let mut identities: Vec<String> = Vec::new();
        for node in self.nodes.iter() {
            let rows = self.ask(node, &format!("SELECT {WHO}")).await?;
            let name = rows.into_iter().flatten().flatten().next();
            let name = name.unwrap_or_default();
            if identities.contains(&name) {
                return Err(DrillError::Alike { name });
            }
            identities.push(name);
        }
        Ok(identities)
    }

    /// Makes the ledger's table on every node.
    pub(super) async fn make_table(&self) -> Result<(), DrillError> {
        let (schema, table) = TABLE.split_once('.').unwrap_or(("public", TABLE));
        if !self
            .config
            .replication
            .tables()
            .filter
            .allows(schema, table)
        {
            return Err(DrillError::NotReplicated);
        }
        let user = self.proxy.user.replace('"', "\"\"");
        let sql = format!(
            "CREATE TABLE IF NOT EXISTS {TABLE} {DEFINITION}; GRANT SELECT, INSERT, UPDATE ON {TABLE} TO \"{user}\""
        );
        for node in self.nodes.iter() {
            self.ask(node, &sql).await?;
        }
        Ok(())
    }

    /// Drops it again.
    pub(super) async fn drop_table(&self) -> Result<(), DrillError> {
        for node in self.nodes.iter() {
            self.ask(node, &format!("DROP TABLE IF EXISTS {TABLE}"))
                .await?;
        }
        Ok(())
    }

    /// What each node has of a run.
    pub(super) async fn found(&self, run: u64) -> Result<Vec<Found>, DrillError> {
        let sql = format!("SELECT client, seq, last FROM {TABLE} WHERE run = {run}");
        let mut found = Vec::new();
        for node in self.nodes.iter() {
            found.push(Found::read(node.name(), &self.ask(node, &sql).await?));
        }
        Ok(found)
    }

    /// How many branches pgbench's tables have; none: they are not on every node.
    pub(super) async fn branches(&self) -> Result<Option<u64>, DrillError> {
        let mut branches = None;
        for node in self.nodes.iter() {
            if first_number(&self.ask(node, HAS_TABLES).await?) != Some(4) {
                return Ok(None);
            }
            let rows = self
                .ask(node, "SELECT count(*) FROM pgbench_branches")
                .await?;
            branches = first_number(&rows).and_then(|count| u64::try_from(count).ok());
        }
        Ok(branches)
    }

    /// What pgbench's tables add up to on each node.
    pub(super) async fn sums(&self) -> Result<Vec<Sums>, DrillError> {
        let mut sums = Vec::new();
        for node in self.nodes.iter() {
            let rows = self.ask(node, SUMS).await?;
            let values: Vec<i64> = rows
                .into_iter()
                .flatten()
                .filter_map(|value| value?.parse().ok())
                .collect();
            let [accounts, tellers, branches, history] = values.as_slice() else {
                return Err(DrillError::Node {
                    node: node.name().to_owned(),
                    problem: "pgbench's tables do not add up to numbers".to_owned(),
                });
            };
            sums.push(Sums {
                node: node.name().to_owned(),
                accounts: *accounts,
                tellers: *tellers,
                branches: *branches,
                history: *history,
            });
        }
        Ok(sums)
    }

    /// A client of the ledger.
    pub(super) fn client(
        &self,
        run: u64,
        number: u32,
        key: Option<String>,
        names: &[String],
    ) -> Client {
        let mut options = self.proxy.clone();
        options
            .params
            .push(("application_name".to_owned(), "tandem drill".to_owned()));
        if let Some(key) = &key {
            // In `options` a backslash goes before a space or a backslash.
            let value = key.replace('\\', "\\\\").replace(' ', "\\ ");
            let setting = format!("-c tandem.key={value}");
            options.params.push(("options".to_owned(), setting));
        }
        Client {
            run,
            number,
            key,
            options,
            names: names.to_vec(),
            also: None,
        }
    }

    /// Waits until all that had been committed when this was called is on every node. Answers how long it took; none: it
    /// did not come to that in time.
    pub(super) async fn converge(&self, limit: Duration) -> Result<Option<Duration>, Failure> {
        let begun = Instant::now();
        loop {
            let left = limit.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            let path = format!("/api/wait-converged?timeout_ms={}", left.as_millis());
            let answer = self
                .port
                .ask(Method::POST, &path, left.saturating_add(ADMIN_LIMIT))
                .await?;
            match answer.status {
                StatusCode::OK => return Ok(Some(begun.elapsed())),
                // It gives up at once where a node is not there yet.
                StatusCode::GATEWAY_TIMEOUT => sleep(CONVERGE_POLL).await,
                _ => return Err(self.port.unexpected(&answer).into()),
            }
        }
    }

    /// Waits until every node serves clients, but for those that are kept out of service.
    pub(super) async fn in_service(&self, limit: Duration) -> Result<(), Failure> {
        let begun = Instant::now();
        loop {
            let status = self.get("/api/status").await?;
            let Some((node, health)) = unsettled(&status) else {
                return Ok(());
            };
            if begun.elapsed() >= limit {
                return Err(DrillError::NotInService { node, health }.into());
            }
            sleep(CONVERGE_POLL).await;
        }
    }

    /// What the conflict log says of the time since `age`, by table and type, and its lines about the ledger.
    pub(super) async fn conflicts(
        &self,
        age: Duration,
    ) -> Result<(Vec<ConflictReport>, Value), Failure> {
        let age_us = age.as_micros();
        let counts = self
            .get(&format!("/api/conflicts/summary?age_us={age_us}"))
            .await?;
        let lines = self
            .get(&format!(
                "/api/conflicts?age_us={age_us}&table={TABLE}&limit={CONFLICTS_MAX}"
            ))
            .await?;
        let counts = counts.get("counts").and_then(Value::as_array);
        let conflict = |count: &Value| {
            Some(ConflictReport {
                table: count.get("relation")?.as_str()?.to_owned(),
                kind: count.get("type")?.as_str()?.to_owned(),
                lines: count.get("lines")?.as_u64()?,
            })
        };
        let counts = counts.into_iter().flatten().filter_map(conflict).collect();
        Ok((counts, lines))
    }

    async fn get(&self, path: &str) -> Result<Value, Failure> {
        let answer = self.port.ask(Method::GET, path, ADMIN_LIMIT).await?;
        let value = serde_json::from_slice(&answer.body).ok();
        value
            .filter(|_| answer.status == StatusCode::OK)
            .ok_or_else(|| self.port.unexpected(&answer).into())
    }

    /// What a hook learns of a node.
    pub(super) fn hook_environment(&self, place: usize) -> Vec<(&'static str, String)> {
        let node = self.nodes.get(place).map(|node| node.config());
        node.map_or_else(Vec::new, |node| {
            vec![
                ("TANDEM_NODE", node.name.clone()),
                ("TANDEM_NODE_HOST", node.host.clone()),
                ("TANDEM_NODE_PORT", node.port.to_string()),
            ]
        })
    }
}

/// A node that is on its way into service, or out of it, and its state.
fn unsettled(status: &Value) -> Option<(String, String)> {
    let nodes = status.get("nodes").and_then(Value::as_array);
    let text = |node: &Value, key| node.get(key).and_then(Value::as_str).map(str::to_owned);
    let state = |node: &Value| Some((text(node, "name")?, text(node, "health")?));
    let mut states = nodes.into_iter().flatten().filter_map(state);
    states.find(|(_, health)| !SETTLED.contains(&health.as_str()))
}

fn first_number(rows: &Rows) -> Option<i64> {
    rows.first()?.first()?.as_ref()?.parse().ok()
}

/// The role of a dev cluster, at the proxy's first address.
fn of_dev(config: &Config) -> Result<(ConnectOptions, Environment), String> {
    let (host, port) = match config.proxy.listen.first() {
        Some(Listen::Tcp(address)) => (address.ip().to_string(), address.port()),
        Some(Listen::Unix { dir, port }) => (dir.display().to_string(), *port),
        None => return Err("the proxy listens nowhere".to_owned()),
    };
    let database = &config.replication.database;
    client_options(&host, port, APP, APP, database, SslMode::Prefer)
}

fn from_url(url: &str) -> Result<(ConnectOptions, Environment), String> {
    use tokio_postgres::config::{Host, SslMode as Wanted};
    let parsed =
        tokio_postgres::Config::from_str(url).map_err(|error| format!("--url: {error}"))?;
    let host = match parsed.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        Some(Host::Unix(dir)) => dir.display().to_string(),
        None => return Err("--url: the host is missing".to_owned()),
    };
    let port = parsed.get_ports().first().copied().unwrap_or(5432);
    let user = parsed.get_user().ok_or("--url: the user is missing")?;
    let database = parsed.get_dbname().unwrap_or(user);
    let password = parsed.get_password().unwrap_or_default();
    let mode = match parsed.get_ssl_mode() {
        Wanted::Disable => SslMode::Disable,
        Wanted::Require => SslMode::Require,
        _ => SslMode::Prefer,
    };
    let password = String::from_utf8_lossy(password);
    client_options(&host, port, user, &password, database, mode)
}

fn client_options(
    host: &str,
    port: u16,
    user: &str,
    password: &str,
    database: &str,
    mode: SslMode,
) -> Result<(ConnectOptions, Environment), String> {
    let tls = ClientTls::new(mode, None).map_err(|error| error.to_string())?;
    let options = ConnectOptions {
        host: host.to_owned(),
        port,
        user: user.to_owned(),
        database: database.to_owned(),
        credentials: Credentials::Password(Secret::new(password)),
        tls,
        params: Vec::new(),
        connect_timeout: LOGIN_LIMIT,
    };
    let mode = match mode {
        SslMode::Disable => "disable",
        SslMode::Require => "require",
        _ => "prefer",
    };
    let environment = vec![
        ("PGHOST", host.to_owned()),
        ("PGPORT", port.to_string()),
        ("PGUSER", user.to_owned()),
        ("PGPASSWORD", password.to_owned()),
        ("PGDATABASE", database.to_owned()),
        ("PGSSLMODE", mode.to_owned()),
        ("PGAPPNAME", "pgbench".to_owned()),
    ];
    Ok((options, environment))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_comes_back_is_waited_for_and_one_that_is_drained_is_not() {
        let status = |health: [&str; 2]| {
            let [a, b] = health.map(|health| serde_json::json!({ "health": health }));
            let mut status = serde_json::json!({ "nodes": [a, b] });
            status["nodes"][0]["name"] = "paris".into();
            status["nodes"][1]["name"] = "delhi".into();
            unsettled(&status)
        };
        assert_eq!(status(["up", "drained"]), None);
        let waits = Some(("delhi".to_owned(), "catching_up".to_owned()));
        assert_eq!(status(["up", "catching_up"]), waits);
    }

    #[test]
    fn a_url_says_where_clients_connect_to() {
        let url = "postgres://app:s%20cret@10.0.0.9:7000/shop?sslmode=require";
        let (options, environment) = from_url(url).unwrap();
        assert_eq!(
            (options.host.as_str(), options.port, options.user.as_str()),
            ("10.0.0.9", 7000, "app")
        );
        assert_eq!(options.database, "shop");
        for pair in [
            ("PGPASSWORD", "s cret"),
            ("PGPORT", "7000"),
            ("PGSSLMODE", "require"),
        ] {
            assert!(
                environment.contains(&(pair.0, pair.1.to_owned())),
                "{pair:?}"
            );
        }
        let (options, _) = from_url("postgres://app@localhost").unwrap();
        assert_eq!((options.port, options.database.as_str()), (5432, "app"));
        assert!(
            from_url("postgres://localhost")
                .unwrap_err()
                .contains("user")
        );
        assert!(from_url("nonsense").is_err());
    }
}
