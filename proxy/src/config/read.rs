//! From the text of `tandem.toml` to a [`Config`], or to everything that is wrong with it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tandem_routing_rules::document::{Document, Problems, Section, Value};
use tandem_routing_rules::{NodeInfo, Rules};
use tandem_wire::tls::ClientTlsMode;
use tracing::level_filters::LevelFilter;

use super::error::ConfigError;
use super::listen::{clashes, parse_listen};
use super::node::read_nodes;
use super::reader::{Environment, Reader};
use super::{
    AdminConfig, AtBound, Config, HandoffConfig, Listen, LogConfig, PoolMode, ProxyConfig, ProxyTls,
};

/// Longest cluster name; it goes into slot names, which PostgreSQL bounds at 63 bytes.
const CLUSTER_NAME_MAX: usize = 32;

/// Reads `path` and all it names.
pub(super) fn load(path: &Path, environment: Environment<'_>) -> Result<Config, ConfigError> {
    let source = text_of(path)?;
    let mut reader = Reader::new(path, &source, environment)?;
    let document = reader.document()?;
    let config = reader.config(document.root());

    let warnings = std::mem::take(&mut reader.warnings);
    let problems = reader.into_problems();
    match config {
        Some(config) if problems.is_empty() => Ok(Config { warnings, ..config }),
        _ => Err(ConfigError::Invalid {
            path: path.to_owned(),
            problems,
        }),
    }
}

/// Reads of `path` only where the admin port is.
pub(super) fn load_admin(path: &Path) -> Result<AdminConfig, ConfigError> {
    let source = text_of(path)?;
    let mut reader = Reader::new(path, &source, &|_| None)?;
    let document = reader.document()?;
    let mut root = document.root();
    let state_dir = reader.state_dir(&mut root);
    let section = root
        .require("admin", &mut reader.problems)
        .and_then(|value| value.table(&mut reader.problems));
    let admin = section.and_then(|section| reader.admin(section, &state_dir, None));
    let problems = reader.into_problems();
    match admin {
        Some(admin) if problems.is_empty() => Ok(admin),
        _ => Err(ConfigError::Invalid {
            path: path.to_owned(),
            problems,
        }),
    }
}

/// `path` and the rules file that it names. What is wrong in it does not matter.
pub(super) fn files(path: &Path) -> Vec<PathBuf> {
    let rules = || {
        let source = fs::read_to_string(path).ok()?;
        let mut nothing = Problems::default();
        let document = Document::parse(&source, &mut nothing);
        let mut proxy = document.root().take_table("proxy", &mut nothing)?;
        let named = proxy.take("rules")?;
        Some(path.with_file_name(named.as_str()?))
    };
    [path.to_owned()].into_iter().chain(rules()).collect()
}

/// Half of the processors: the other half is for what the clients wait for.
fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |count| (count.get() / 2).max(1))
}

fn text_of(path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

impl Reader<'_> {
    /// `None` only when there is a problem.
    fn config(&mut self, mut root: Section<'_>) -> Option<Config> {
        let cluster = root
            .require("cluster", &mut self.problems)
            .and_then(|value| self.cluster(&value));
        let state_dir = self.state_dir(&mut root);
        let proxy_section = root.take_table("proxy", &mut self.problems);
        let (proxy, rules_file) = self.proxy(proxy_section, &root);
        let auth_section = root.take_table("auth", &mut self.problems);
        let auth = self.auth(auth_section, proxy.as_ref());
        let limits_section = root.take_table("limits", &mut self.problems);
        let limits = self.limits(limits_section);
        let admin = match root
            .require("admin", &mut self.problems)
            .and_then(|value| value.table(&mut self.problems))
        {
            Some(section) => self.admin(section, &state_dir, proxy.as_ref()),
            None => None,
        };
        let log_section = root.take_table("log", &mut self.problems);
        let log = self.log(log_section);
        let (nodes, named) = match root.require("node", &mut self.problems) {
            Some(value) => read_nodes(self, &value),
            None => (Vec::new(), Vec::new()),
        };
        let replication = root
            .require("replication", &mut self.problems)
            .and_then(|value| value.table(&mut self.problems))
            .and_then(|section| self.replication(section, &named));
        root.finish(&mut self.problems);

        let by_session = proxy
            .as_ref()
            .is_some_and(|proxy| proxy.pool.mode == PoolMode::Session);
        let path = rules_file.as_ref().map(|named| named.path.clone());
        let rules = self.rules(rules_file, &named, by_session);
        Some(Config {
            path: self.absolute.clone(),
            cluster: cluster?,
            state_dir,
            proxy: proxy?,
            auth: auth?,
            limits,
            admin: admin?,
            log,
            replication: replication?,
            nodes,
            rules,
            rules_file: path,
            warnings: Vec::new(),
        })
    }

    fn state_dir(&mut self, root: &mut Section<'_>) -> PathBuf {
        let given = root.take("state_dir").and_then(|value| self.path(&value));
        given.unwrap_or_else(|| self.base.join("state"))
    }

    fn cluster(&mut self, value: &Value<'_>) -> Option<String> {
        let name = value.string(&mut self.problems)?;
        let fits = name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        if !fits || name.len() > CLUSTER_NAME_MAX {
            let hint = format!(
                "use up to {CLUSTER_NAME_MAX} of a-z, 0-9 and _; the name becomes part of replication slot names"
            );
            self.problems
                .add_with_hint(value.span(), "not a name for a cluster", hint);
            return None;
        }
        Some(name.to_owned())
    }

    fn proxy(
        &mut self,
        section: Option<Section<'_>>,
        root: &Section<'_>,
    ) -> (Option<ProxyConfig>, Option<Named>) {
        let Some(mut section) = section else {
            let hint = "add `[proxy]` with `listen = [\"127.0.0.1:6432\"]`";
            self.problems
                .add_with_hint(root.span(), "the file has no `[proxy]`", hint);
            return (None, None);
        };
        let listen = section
            .require("listen", &mut self.problems)
            .and_then(|value| self.listen(&value));
        let so_reuseport = section
            .take("so_reuseport")
            .and_then(|value| value.boolean(&mut self.problems))
            .unwrap_or(false);
        let zone = section
            .take("zone")
            .and_then(|value| value.string(&mut self.problems).map(str::to_owned));
        let pool = self.pool(&mut section);
        let workers = self.count(&mut section, "workers", default_workers(), 1);
        let max_client_connections = section
            .take("max_client_connections")
            .and_then(|value| value.integer(1..=1_000_000, &mut self.problems))
            .and_then(|number| usize::try_from(number).ok())
            .unwrap_or(10_000);
        let rules_file = section.take("rules").and_then(|value| {
            Some(Named {
                path: self.path(&value)?,
                span: value.span(),
            })
        });
        let second = Duration::from_secs(1);
        let millisecond = Duration::from_millis(1);
        let client_login_timeout = self.duration(
            &mut section,
            "client_login_timeout",
            60 * second,
            millisecond,
        );
        let server_connect_timeout = self.duration(
            &mut section,
            "server_connect_timeout",
            5 * second,
            millisecond,
        );
        let commit_outcome_wait = self.duration(
            &mut section,
            "commit_outcome_wait",
            30 * second,
            Duration::ZERO,
        );
        let shutdown_timeout = self.duration(
            &mut section,
            "shutdown_timeout",
            30 * second,
            Duration::ZERO,
        );
        let probe_interval =
            self.duration(&mut section, "probe_interval", second, 10 * millisecond);
        let probe_timeout =
            self.duration(&mut section, "probe_timeout", 2 * second, 10 * millisecond);
        let restart_wait = self.duration(&mut section, "restart_wait", 5 * second, Duration::ZERO);
        let read_lag_max = self.duration(&mut section, "read_lag_max", 10 * second, Duration::ZERO);
        let handoff = self.handoff(&mut section);
        let tls = section
            .take_table("tls", &mut self.problems)
            .map(|section| self.proxy_tls(section));
        section.finish(&mut self.problems);

        let tls = match tls {
            Some(None) => return (None, rules_file),
            Some(Some(tls)) => Some(tls),
            None => None,
        };
        let proxy = listen.map(|listen| ProxyConfig {
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
            handoff,
            tls,
        });
        (proxy, rules_file)
    }

    fn handoff(&mut self, section: &mut Section<'_>) -> HandoffConfig {
        let (second, millisecond) = (Duration::from_secs(1), Duration::from_millis(1));
        let choices = [
            ("stay", AtBound::Stay),
            ("abort", AtBound::Abort),
            ("go_on", AtBound::GoOn),
        ];
        let soft = self.duration(section, "handoff_soft", 100 * millisecond, millisecond);
        let hard = self.duration(section, "handoff_hard", 30 * second, millisecond);
        let at_bound = section
            .take("handoff_at_bound")
            .and_then(|value| value.choice(&choices, &mut self.problems));
        HandoffConfig {
            soft,
            hard,
            at_bound: at_bound.unwrap_or_default(),
        }
    }

    fn listen(&mut self, value: &Value<'_>) -> Option<Vec<Listen>> {
        let listed = value.strings(&mut self.problems)?;
        if listed.is_empty() {
            self.problems.add_with_hint(
                value.span(),
                "`proxy.listen` is empty",
                "list at least one address",
            );
            return None;
        }
        let default_port = listed
            .iter()
            .find_map(|(text, _)| text.parse::<SocketAddr>().ok())
            .map(|address| address.port())
            .filter(|port| *port != 0)
            .unwrap_or(6_432);
        let mut listen: Vec<Listen> = Vec::new();
        for (text, element) in &listed {
            match parse_listen(text, &self.base, default_port) {
                Ok(address) if listen.iter().any(|other| clashes(other, &address)) => {
                    let hint = "remove one of the two";
                    self.problems.add_with_hint(
                        element.span(),
                        "this address is listed twice",
                        hint,
                    );
                }
                Ok(address) => listen.push(address),
                Err((message, hint)) => self.problems.add_with_hint(element.span(), message, hint),
            }
        }
        Some(listen)
    }

    fn log(&mut self, section: Option<Section<'_>>) -> LogConfig {
        let levels = [
            ("error", LevelFilter::ERROR),
            ("warn", LevelFilter::WARN),
            ("info", LevelFilter::INFO),
            ("debug", LevelFilter::DEBUG),
        ];
        let mut log = LogConfig {
            level: LevelFilter::INFO,
            slow_statement: Duration::ZERO,
        };
        if let Some(mut section) = section {
            let given = section.take("level");
            let given = given.and_then(|value| value.choice(&levels, &mut self.problems));
            log.level = given.unwrap_or(log.level);
            log.slow_statement = self.duration(
                &mut section,
                "slow_statement",
                Duration::ZERO,
                Duration::ZERO,
            );
            section.finish(&mut self.problems);
        }
        log
    }

    fn proxy_tls(&mut self, mut section: Section<'_>) -> Option<ProxyTls> {
        let modes = [
            ("disable", ClientTlsMode::Disable),
            ("allow", ClientTlsMode::Allow),
            ("require", ClientTlsMode::Require),
        ];
        let mode = section
            .take("mode")
            .and_then(|value| value.choice(&modes, &mut self.problems));
        let cert = section
            .require("cert", &mut self.problems)
            .and_then(|value| self.file(&value));
        let key = section
            .require("key", &mut self.problems)
            .and_then(|value| self.secret_file(&value));
        let client_ca = section
            .take("client_ca")
            .and_then(|value| self.file(&value));
        section.finish(&mut self.problems);
        Some(ProxyTls {
            cert: cert?,
            key: key?,
            client_ca,
            mode: mode.unwrap_or(ClientTlsMode::Allow),
        })
    }

    fn rules(&mut self, file: Option<Named>, nodes: &[NodeInfo], by_session: bool) -> Rules {
        let Some(Named { path, span }) = file else {
            return Rules::default();
        };
        let Some(source) = self.text_of("rules file", &path, span) else {
            return Rules::default();
        };
        match Rules::parse(&source, nodes) {
            Ok(rules) => {
                if by_session && !rules.affinities.is_empty() {
                    let place = path.display();
                    let text = format!(
                        "{place}: affinity rules are checked, but with pool_mode = \"session\" a session stays on one node and they \
                         route nothing"
                    );
                    self.warnings.push(text);
                }
                rules
            }
            Err(errors) => {
                self.add_elsewhere(&path, &source, errors.problems);
                Rules::default()
            }
        }
    }
}

/// A file named in the configuration, and where.
struct Named {
    path: PathBuf,
    span: std::ops::Range<usize>,
}
