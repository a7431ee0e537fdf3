//! `tandem run`: the daemon until a signal ends it.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::args::RunArguments;
use super::{Exit, Failure, find_config};
use crate::config::Config;
use crate::daemon::{Daemon, Shutdown};

/// `tandem run`
pub(super) async fn run(arguments: RunArguments) -> Result<Exit, Failure> {
    let config = Config::load(&find_config(&arguments.config.config))?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    // Before anything listens, so that no signal is missed.
    let mut signals = Signals::new().map_err(Failure::other)?;
    let daemon = Daemon::start(config).await.map_err(Failure::other)?;
    let proxy: Vec<String> = daemon
        .proxy_addresses()
        .iter()
        .map(ToString::to_string)
        .collect();
    tracing::info!(proxy = proxy.join(", "), admin = %daemon.admin_address(), "ready");

    let how = loop {
        let asked = tokio::select! {
            asked = signals.next() => asked,
            how = daemon.shutdown_asked() => Asked::Stop(how),
        };
        match asked {
            Asked::Reload => {
                if let Err(error) = daemon.reload().await {
                    tracing::error!("SIGHUP: nothing is reloaded: {error}");
                }
            }
            Asked::Stop(how) => break how,
        }
    };
    let at_once = async { while matches!(signals.next().await, Asked::Reload) {} };
    tokio::select! {
        () = daemon.shutdown(how) => {}
        () = at_once => tracing::warn!("a second signal: ending without waiting"),
    }
    Ok(Exit::Yes)
}

/// What a signal asks for.
enum Asked {
    Reload,
    Stop(Shutdown),
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop(Shutdown::Smart),
            _ = self.interrupt.recv() => Asked::Stop(Shutdown::Fast),
            _ = self.hang_up.recv() => Asked::Reload,
        }
    }
}
