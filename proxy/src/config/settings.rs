//! Owns the list of all settings: what is shown of them, and which of them count without a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::Path;

use super::{
    AdminConfig, AuthConfig, Config, HandoffConfig, LimitsConfig, LogConfig, NodeConfig, PoolConfig,
};
use super::{ProxyConfig, ProxyTls, ReplicationConfig};
use tandem_replicator::DdlClass;

/// A setting as it is shown. Secrets are none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    /// Its name with that of its section.
    pub key: String,
    /// Its value; empty where there is none.
    pub value: String,
    /// Whether a new value counts without a restart.
    pub changeable: bool,
}

/// What differs between two configurations, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// What counts at once.
    pub now: BTreeSet<String>,
    /// What counts after a restart.
    pub at_restart: BTreeSet<String>,
}

#[derive(Default)]
struct List(Vec<Setting>);

impl List {
    fn add(&mut self, changeable: bool, key: impl Display, value: impl Display) {
        self.0.push(Setting {
            key: key.to_string(),
            value: value.to_string(),
            changeable,
        });
    }

    fn fixed(&mut self, key: impl Display, value: impl Display) {
        self.add(false, key, value);
    }

    fn live(&mut self, key: impl Display, value: impl Display) {
        self.add(true, key, value);
    }
}

fn shown<T: Display>(value: Option<&T>) -> String {
    value.map_or_else(String::new, ToString::to_string)
}

fn file(path: Option<&Path>) -> String {
    path.map_or_else(String::new, |path| path.display().to_string())
}

fn listed(items: &[impl ToString]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}

impl Config {
    /// All settings by name, but for secrets, rules and the policies of tables.
    pub fn settings(&self) -> Vec<Setting> {
        // Without `..`, here and below: a setting that is forgotten does not compile.
        let Config {
            path,
            cluster,
            state_dir,
            proxy,
            auth,
            limits,
            admin,
            log: LogConfig {
                level,
                slow_statement,
            },
            replication,
            nodes,
            rules: _,
            rules_file: _,
            warnings: _,
        } = self;
        let mut list = List::default();
        list.fixed("config_file", path.display());
        list.fixed("cluster", cluster);
        list.fixed("state_dir", state_dir.display());
        list.live("log.level", level);
        list.live("log.slow_statement", format_args!("{slow_statement:?}"));
        list.proxy(proxy);
        let AuthConfig {
            rules: _,
            users_file,
            query,
        } = auth;
        list.fixed("auth.users_file", file(users_file.as_deref()));
        list.fixed("auth.query", shown(query.as_ref()));
        list.limits(limits);
        let AdminConfig {
            listen,
            token_file,
            users,
            readers,
        } = admin;
        list.fixed("admin.listen", listen);
        list.fixed("admin.token_file", token_file.display());
        list.live("admin.users", listed(users));
        list.live("admin.readers", listed(readers));
        list.replication(replication);
        for node in nodes {
            list.node(node);
        }
        list.0.sort_unstable();
        list.0
    }

    /// The same, but with everything that cannot change while a daemon runs as it is in `running`.
    pub(crate) fn keeping(self, running: &Config) -> Config {
        let (rules, rules_file) = match same_members(&self, running) {
            true => (self.rules, self.rules_file),
            // They name nodes that are not there.
            false => (running.rules.clone(), running.rules_file.clone()),
        };
        Config {
            path: running.path.clone(),
            cluster: running.cluster.clone(),
            state_dir: running.state_dir.clone(),
            proxy: ProxyConfig {
                listen: running.proxy.listen.clone(),
                so_reuseport: running.proxy.so_reuseport,
                workers: running.proxy.workers,
                pool: PoolConfig {
                    mode: running.proxy.pool.mode,
                    ..self.proxy.pool
                },
                ..self.proxy
            },
            auth: AuthConfig {
                rules: self.auth.rules,
                ..running.auth.clone()
            },
            limits: self.limits,
            admin: AdminConfig {
                users: self.admin.users,
                readers: self.admin.readers,
                ..running.admin.clone()
            },
            log: self.log,
            replication: ReplicationConfig {
                large_objects: self.replication.large_objects,
                ..running.replication.clone()
            },
            nodes: running.nodes.clone(),
            rules,
            rules_file,
            warnings: self.warnings,
        }
    }
}

/// Whether rules that fit one configuration fit the other.
fn same_members(one: &Config, other: &Config) -> bool {
    let members = |config: &Config| -> Vec<(String, u16)> {
        let nodes = config.nodes.iter();
        nodes.map(|node| (node.name.clone(), node.id)).collect()
    };
    members(one) == members(other)
}

impl Changes {
    /// What is other in `wanted` than in the configuration of a running daemon.
    pub fn between(running: &Config, wanted: &Config) -> Changes {
        let by_key = |config: &Config| -> BTreeMap<String, (String, bool)> {
            let settings = config.settings().into_iter();
            settings
                .map(|setting| (setting.key, (setting.value, setting.changeable)))
                .collect()
        };
        let (before, after) = (by_key(running), by_key(wanted));
        let mut changes = Changes::default();
        for key in before.keys().chain(after.keys()) {
            let (old, new) = (before.get(key), after.get(key));
            if old != new {
                let changeable = old.or(new).is_some_and(|(_, changeable)| *changeable);
                changes.note(changeable, key);
            }
        }
        if running.auth.rules != wanted.auth.rules {
            changes.note(true, "auth.hba");
        }
        if running.rules != wanted.rules {
            changes.note(same_members(running, wanted), "rules");
        }
        if running.replication.policies != wanted.replication.policies {
            changes.note(false, "replication.table");
        }
        for (old, new) in running.nodes.iter().zip(&wanted.nodes) {
            if old.name == new.name && old.password != new.password {
                changes.note(false, &format!("node.{}.password", new.name));
            }
        }
        changes
    }

    fn note(&mut self, changeable: bool, key: &str) {
        let names = match changeable {
            true => &mut self.now,
            false => &mut self.at_restart,
        };
        names.insert(key.to_owned());
    }
}

impl List {
    fn proxy(&mut self, proxy: &ProxyConfig) {
        let ProxyConfig {
            listen,
            so_reuseport,
            zone,
            workers,
            pool,
            max_client_connections,
            client_login_timeout,
            server_connect_timeout,
            commit_outcome_wait,
            shutdown_timeout,
            probe_interval,
            probe_timeout,
            restart_wait,
            read_lag_max,
            handoff:
                HandoffConfig {
                    soft: handoff_soft,
                    hard: handoff_hard,
                    at_bound,
                },
            tls,
        } = proxy;
        self.live("proxy.handoff_at_bound", at_bound);
        self.fixed("proxy.listen", listed(listen));
        self.fixed("proxy.so_reuseport", so_reuseport);
        self.live("proxy.zone", shown(zone.as_ref()));
        self.fixed("proxy.workers", workers);
        self.live("proxy.max_client_connections", max_client_connections);
        let PoolConfig {
            mode,
            size,
            reserve,
            reserve_after,
            min,
            wait_max,
            notice_after,
            idle_max,
            lifetime_max,
            check_after,
            retry_after,
            prepared_max,
        } = pool;
        self.fixed("proxy.pool_mode", mode);
        for (key, count) in [
            ("pool_size", size),
            ("reserve_pool_size", reserve),
            ("min_pool_size", min),
            ("max_prepared_statements", prepared_max),
        ] {
            self.live(format_args!("proxy.{key}"), count);
        }
        for (key, time) in [
            ("client_login_timeout", client_login_timeout),
            ("query_wait_timeout", wait_max),
            ("query_wait_notify", notice_after),
            ("reserve_pool_timeout", reserve_after),
            ("server_idle_timeout", idle_max),
            ("server_lifetime", lifetime_max),
            ("server_check_delay", check_after),
            ("server_login_retry", retry_after),
            ("server_connect_timeout", server_connect_timeout),
            ("commit_outcome_wait", commit_outcome_wait),
            ("shutdown_timeout", shutdown_timeout),
            ("probe_interval", probe_interval),
            ("probe_timeout", probe_timeout),
            ("restart_wait", restart_wait),
            ("read_lag_max", read_lag_max),
            ("handoff_soft", handoff_soft),
            ("handoff_hard", handoff_hard),
        ] {
            self.live(format_args!("proxy.{key}"), format_args!("{time:?}"));
        }
        if let Some(ProxyTls {
            cert,
            key,
            client_ca,
            mode,
        }) = tls
        {
            let mode = format!("{mode:?}").to_lowercase();
            self.live("proxy.tls.mode", mode);
            self.live("proxy.tls.cert", cert.display());
            self.live("proxy.tls.key", key.display());
            self.live("proxy.tls.client_ca", file(client_ca.as_deref()));
        }
    }

    fn limits(&mut self, limits: &LimitsConfig) {
        let LimitsConfig {
            clients_per_user,
            clients_per_database,
            users,
            databases,
        } = limits;
        self.live("limits.clients_per_user", shown(clients_per_user.as_ref()));
        let of_database = shown(clients_per_database.as_ref());
        self.live("limits.clients_per_database", of_database);
        for (name, limit) in users {
            self.live(format_args!("limits.user.{name}"), limit);
        }
        for (name, limit) in databases {
            self.live(format_args!("limits.database.{name}"), limit);
        }
    }

    fn replication(&mut self, replication: &ReplicationConfig) {
        let ReplicationConfig {
            database,
            include,
            exclude,
            policies: _,
            ddl,
            journal_dir,
            journal_max,
            journal_carry_bytes,
            journal_carry_after,
            group_apply,
            clock_offset_max,
            large_objects,
        } = replication;
        self.fixed("replication.database", database);
        self.fixed("replication.include", listed(include));
        self.fixed("replication.exclude", listed(exclude));
        for class in DdlClass::ALL {
            let key = format_args!("replication.ddl.{}", class.name());
            self.fixed(key, ddl.rule(class).name());
        }
        self.fixed("replication.journal_dir", journal_dir.display());
        self.fixed("replication.journal_max", journal_max);
        self.fixed("replication.journal_carry_bytes", journal_carry_bytes);
        let carry_after = format_args!("{journal_carry_after:?}");
        self.fixed("replication.journal_carry_after", carry_after);
        self.fixed("replication.group_apply", group_apply);
        let offset_max = format_args!("{clock_offset_max:?}");
        self.fixed("replication.clock_offset_max", offset_max);
        self.live("replication.large_objects", large_objects);
    }

    fn node(&mut self, node: &NodeConfig) {
        let NodeConfig {
            name,
            id,
            host,
            port,
            user,
            password: _,
            zone,
            sslmode,
            sslrootcert,
        } = node;
        let mut fixed =
            |key: &str, value: String| self.fixed(format_args!("node.{name}.{key}"), value);
        fixed("id", id.to_string());
        fixed("host", host.clone());
        fixed("port", port.to_string());
        fixed("user", user.clone());
        fixed("zone", shown(zone.as_ref()));
        fixed("sslmode", sslmode.to_string());
        fixed("sslrootcert", file(sslrootcert.as_deref()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
cluster = "test"
[proxy]
listen = ["127.0.0.1:6432"]
rules = "rules.toml"
[admin]
listen = "127.0.0.1:6433"
[replication]
database = "app"
[[node]]
name = "n1"
id = 1
host = "127.0.0.1"
port = 1
user = "tandem"
password = "secret-1"
"#;

    fn config(change: impl Fn(&str) -> String, rules: &str) -> Config {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("tandem.toml");
        std::fs::write(&path, change(TEXT)).expect("written");
        std::fs::write(dir.path().join("rules.toml"), rules).expect("written");
        let config = Config::load(&path).expect("valid");
        // The directory is another one each time.
        Config {
            path: "tandem.toml".into(),
            state_dir: "state".into(),
            admin: AdminConfig {
                token_file: "token".into(),
                ..config.admin
            },
            replication: ReplicationConfig {
                journal_dir: "journal".into(),
                ..config.replication
            },
            ..config
        }
    }

    fn names(names: &BTreeSet<String>) -> Vec<&str> {
        names.iter().map(String::as_str).collect()
    }

    #[test]
    fn what_changes_at_once_is_told_from_what_needs_a_restart() {
        let running = config(str::to_owned, "");
        assert_eq!(Changes::between(&running, &running), Changes::default());
        let change = |text: &str| {
            text.replace(
                "6432\"]",
                "6499\"]\npool_size = 3\nworkers = 9\nserver_lifetime = \"1min\"",
            )
            .replace("secret-1", "secret-2")
            .replace(
                "[admin]",
                "[limits.user]\nbatch = 1\n[log]\nlevel = \"debug\"\n[admin]",
            )
        };
        let wanted = config(change, "[default]\nwrite = \"nearest\"\n");
        let changes = Changes::between(&running, &wanted);
        assert_eq!(
            names(&changes.now),
            [
                "limits.user.batch",
                "log.level",
                "proxy.pool_size",
                "proxy.server_lifetime",
                "rules"
            ]
        );
        assert_eq!(
            names(&changes.at_restart),
            ["node.n1.password", "proxy.listen", "proxy.workers"]
        );
        let shown = format!("{:?}", wanted.settings());
        assert!(!shown.contains("secret"), "{shown}");

        // What is kept differs again the next time; what counts does not.
        let counts = wanted.clone().keeping(&running);
        assert_eq!(
            (counts.proxy.pool.size, counts.proxy.workers),
            (3, running.proxy.workers)
        );
        assert_eq!(counts.proxy.listen, running.proxy.listen);
        let again = Changes::between(&counts, &wanted);
        assert!(again.now.is_empty(), "{again:?}");
        assert_eq!(again.at_restart, changes.at_restart);
    }

    #[test]
    fn rules_for_other_nodes_wait_with_them() {
        let running = config(str::to_owned, "");
        let more = |text: &str| {
            text.to_owned()
                + "[[node]]\nname = \"n2\"\nid = 2\nhost = \"127.0.0.1\"\nport = 2\nuser = \"tandem\"\n"
        };
        let wanted = config(
            more,
            "[[session]]\nmatch = { user = \"batch\" }\nnode = \"n2\"\n",
        );
        let changes = Changes::between(&running, &wanted);
        assert!(changes.now.is_empty(), "{changes:?}");
        assert!(
            changes.at_restart.contains("rules") && changes.at_restart.contains("node.n2.host")
        );
        let counts = wanted.keeping(&running);
        assert_eq!((counts.rules, counts.nodes.len()), (running.rules, 1));
    }
}
