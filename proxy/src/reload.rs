//! Owns what is read again while the daemon runs, and how it comes to count.
//!
//! **Invariant:** all files are read and all that may fail is done before anything changes, so what is wrong is refused as
//! a whole. Who is connected stays connected, and no server connection is closed that is not one too many.

mod files;

use std::sync::atomic::{AtomicU64, Ordering};

use tandem_routing_rules::{Mode, Policy};
use tandem_wire::tls::{ServerTls, TlsError};

use crate::{
    config::{Changes, Config, ConfigError},
    daemon::raise_descriptor_limit,
    log,
    routing::counts::RuleCounts,
    session::Shared,
};

/// Why nothing was read again.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration is wrong.
    #[error("{}", .0.lines().join("\n"))]
    Config(#[from] ConfigError),
    /// The certificates cannot be used.
    #[error("[proxy.tls]: {0}; the old certificates stay")]
    Tls(#[from] TlsError),
    /// The system did not let the files be read.
    #[error("the configuration was not read: {0}")]
    Reading(String),
}

/// What counts now.
#[derive(Debug)]
pub(crate) struct Settings {
    /// What cannot change is as it was at the start.
    pub(crate) config: Config,
    /// The certificates that it names.
    pub(crate) tls: Option<ServerTls>,
    /// Another number for each time that the rules were read.
    pub(crate) rules_id: u64,
    /// How often each of them has decided.
    pub(crate) rule_counts: RuleCounts,
    /// Whether there may be something to be found in writes: some table has a rule, or something is asked of all.
    pub(crate) examines: bool,
    /// Whether somebody may be told where units of work go: clients by a policy, or the log under `mode = "advise"`.
    pub(crate) tells: bool,
}

impl Settings {
    /// Reads the certificates that the configuration names.
    ///
    /// # Errors
    /// They cannot be used.
    pub(crate) fn new(config: Config) -> Result<Settings, TlsError> {
        let tls = config.proxy.tls.as_ref();
        let tls = tls.map(|tls| ServerTls::load(&tls.cert, &tls.key, tls.client_ca.as_deref()));
        let tls = tls.transpose()?;
        Ok(Settings::of(config, tls))
    }
}

impl Settings {
    /// Of a configuration, with the certificates that it names.
    pub(crate) fn of(config: Config, tls: Option<ServerTls>) -> Settings {
        static READ: AtomicU64 = AtomicU64::new(0);
        let rules = &config.rules;
        Settings {
            rules_id: READ.fetch_add(1, Ordering::Relaxed),
            rule_counts: RuleCounts::new(rules),
            examines: !rules.affinities.is_empty() || rules.policy != Policy::default(),
            tells: rules.is_strict() || rules.mode == Mode::Advise,
            config,
            tls,
        }
    }

    /// The same, where its rules follow others: what is the same goes on counting.
    fn following(mut self, before: &Settings) -> Settings {
        let (rules, known) = (&self.config.rules, &before.config.rules);
        self.rule_counts = before.rule_counts.following(known, rules);
        self
    }
}

/// What is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// Which settings are others.
    pub changes: Changes,
    /// The log's level is what `TANDEM_LOG` says.
    pub level_overridden: bool,
}

impl Reloaded {
    /// The same in words.
    pub fn sentences(&self) -> Vec<String> {
        let list = |names: &std::collections::BTreeSet<String>| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            names.join(", ")
        };
        let Changes { now, at_restart } = &self.changes;
        let mut sentences = vec![match now.is_empty() {
            true => "certificates were read again; no setting has changed".to_owned(),
            false => format!("certificates were read again; changed: {}", list(now)),
        }];
        if !at_restart.is_empty() {
            sentences.push(format!(
                "changed, but needs a restart: {}",
                list(at_restart)
            ));
        }
        if self.level_overridden && now.contains("log.level") {
            sentences.push("the environment variable TANDEM_LOG wins over log.level".to_owned());
        }
        sentences
    }
}

pub(crate) use files::{Files, watch};

/// Reads the daemon's files again.
pub(crate) async fn reload(shared: &Shared) -> Result<Reloaded, ReloadError> {
    // What is read last is what counts.
    let _alone = shared.files.alone().await;
    let running = shared.settings.load_full();
    let path = running.config.path.clone();
    let read = tokio::task::spawn_blocking(move || {
        // Before they are read: what changes meanwhile is another content.
        let content = files::content(&path);
        let settings = Config::load(&path).map_err(ReloadError::from);
        (
            content,
            settings.and_then(|config| Ok(Settings::new(config)?)),
        )
    });
    let (content, read) = read
        .await
        .map_err(|error| ReloadError::Reading(error.to_string()))?;
    shared.files.note(content, read.as_ref().err());
    let Settings { config, tls, .. } = read?;
    let changes = Changes::between(&running.config, &config);
    let config = config.keeping(&running.config);
    let reloaded = Reloaded {
        level_overridden: !log::set_level(config.log.level),
        changes,
    };
    apply(shared, Settings::of(config, tls).following(&running));
    tracing::info!("reloaded: {}", reloaded.sentences().join("; "));
    Ok(reloaded)
}

/// Makes it count. Nothing here can fail.
fn apply(shared: &Shared, settings: Settings) {
    let config = &settings.config;
    let proxy = &config.proxy;
    if proxy.max_client_connections > shared.clients.max() {
        raise_descriptor_limit(proxy.max_client_connections);
    }
    shared.clients.set_max(proxy.max_client_connections);
    shared.limits.set(config.limits.clone());
    shared.gate.set_rules(config.auth.rules.clone());
    shared.console.set_permissions(&config.admin);
    shared.connect_timeout.set(proxy.server_connect_timeout);
    shared.health.set_probes(
        proxy.probe_interval,
        proxy.probe_timeout,
        proxy.restart_wait,
    );
    shared.slow_statement.set(config.log.slow_statement);
    shared.pools.set_limits(&proxy.pool);
    shared.settings.store(std::sync::Arc::new(settings));
}
