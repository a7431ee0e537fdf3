//! Owns what is read again while the daemon runs: certificates, host rules and the console's users.
//!
//! What is wrong is refused as a whole, and everything stays as it was. Who is connected stays connected.

use tandem_wire::tls::TlsError;

use crate::{
    config::{Config, ConfigError},
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

/// What is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reloaded {
    /// The host rules are others.
    pub host_rules: bool,
    /// The console's users are others.
    pub console_users: bool,
}

impl Reloaded {
    /// The same in words.
    pub fn sentences(self) -> Vec<String> {
        let word = |changed| if changed { "changed" } else { "unchanged" };
        vec![
            "certificates were read again".to_owned(),
            format!("host rules: {}", word(self.host_rules)),
            format!("users of the console: {}", word(self.console_users)),
            "everything else in tandem.toml needs a restart".to_owned(),
        ]
    }
}

/// Reads the daemon's files again.
pub(crate) async fn reload(shared: &Shared) -> Result<Reloaded, ReloadError> {
    let path = shared.config.path.clone();
    let config = tokio::task::spawn_blocking(move || Config::load(&path))
        .await
        .map_err(|error| ReloadError::Reading(error.to_string()))??;
    if let Some(tls) = &shared.tls {
        tls.reload()?;
    }
    let reloaded = Reloaded {
        host_rules: shared.gate.set_rules(config.auth.rules),
        console_users: shared.console.set_permissions(&config.admin),
    };
    tracing::info!(
        ?reloaded,
        "certificates, host rules and the console's users were read again"
    );
    Ok(reloaded)
}
