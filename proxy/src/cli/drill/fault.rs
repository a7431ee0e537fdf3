//! Owns what befalls the node of a drill, and how it is mended: on a dev cluster's own server, or by the user's commands.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep};

use super::timeline::now_us;
use crate::dev::process::run_bounded;
use crate::dev::relay::cut_off;
use crate::dev::server::{Server, ServerError, ServerSpec, StopMode};
use crate::dev::servers::DevNode;

/// How long a flapping node is away, and how long it is back.
const FLAP: Duration = Duration::from_secs(1);
/// Once would be a kill.
const FLAPS_MIN: u32 = 2;
/// How long a fast shutdown may take before it is told harder.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How long a command of the user's may take.
const HOOK_LIMIT: Duration = Duration::from_secs(300);

/// What befalls a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Scenario {
    /// SIGKILL to the server and all its processes, as a power cut; started again at the end
    Kill,
    /// SIGSTOP to all of them: connections stay open and nothing answers; SIGCONT at the end
    Stop,
    /// The links of proxy and replicator to the node are cut: nothing is answered, nothing is refused
    Partition,
    /// Shut down in the mode `fast`, and started again at once
    Restart,
    /// Killed and started again a second later, again and again, at least twice
    Flap,
    /// Taken out of service by `tandem drain`, and back into it by `tandem resume`
    Drain,
}

impl Scenario {
    /// Its word on the command line.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Partition => "partition",
            Self::Restart => "restart",
            Self::Flap => "flap",
            Self::Drain => "drain",
        }
    }
}

/// Why a node could not be broken, or mended.
#[derive(Debug, thiserror::Error)]
pub(super) enum FaultError {
    #[error("the server of node {0} does not run")]
    NotRunning(String),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Relay(#[from] crate::dev::LayoutError),
    #[error("`{command}` failed with {status}: {said}")]
    Hook {
        command: String,
        status: std::process::ExitStatus,
        said: String,
    },
    #[error("`{command}`: {source}")]
    HookIo {
        command: String,
        #[source]
        source: std::io::Error,
    },
    #[error("internal: {0}")]
    Task(#[from] JoinError),
}

/// What is done to a server of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blow {
    Kill,
    Pause,
    ShutDown,
}

/// Who breaks and mends.
#[derive(Debug, Clone)]
pub(super) enum Means {
    /// We do, a server on this machine.
    Server { spec: Box<ServerSpec>, blow: Blow },
    /// The relay in front of a node on this machine, which does what this file says.
    Relay { file: PathBuf },
    /// The daemon, told by our own program.
    Daemon { config: PathBuf },
    /// Commands of the user's, run by sh.
    Hooks {
        breaking: String,
        mending: String,
        /// What they learn of the node.
        environment: Vec<(&'static str, String)>,
    },
}

impl Means {
    /// How a scenario is done to a node of a dev cluster; a partition needs a relay.
    pub(super) fn of_dev(node: DevNode, scenario: Scenario) -> Option<Self> {
        let blow = match scenario {
            Scenario::Kill | Scenario::Flap => Blow::Kill,
            Scenario::Stop => Blow::Pause,
            Scenario::Restart => Blow::ShutDown,
            Scenario::Partition => return node.cut_file.map(|file| Self::Relay { file }),
            // The daemon does that, of whichever cluster.
            Scenario::Drain => return None,
        };
        let spec = Box::new(node.server);
        Some(Self::Server { spec, blow })
    }

    /// Blocks until the node is broken. `ours` is its server where we have started it: nobody else can reap that one.
    fn strike(&self, node: &str, ours: &mut Option<Server>) -> Result<(), FaultError> {
        let (spec, blow) = match self {
            Self::Server { spec, blow } => (spec, blow),
            Self::Relay { file } => return Ok(cut_off(file, &[node])?),
            Self::Daemon { config } => return tandem(&["drain", "--wait"], node, config),
            Self::Hooks {
                breaking,
                environment,
                ..
            } => return shell(breaking, environment),
        };
        let server = running(ours, spec).ok_or_else(|| FaultError::NotRunning(node.to_owned()))?;
        match blow {
            Blow::Kill => server.kill9()?,
            Blow::Pause => server.pause()?,
            Blow::ShutDown => drop(server.stop(StopMode::Fast, STOP_LIMIT)?),
        }
        Ok(())
    }

    /// Blocks until the node works again: whatever state a server is in, it accepts connections afterwards.
    fn mend(&self, node: &str, ours: &mut Option<Server>) -> Result<(), FaultError> {
        let spec = match self {
            Self::Server { spec, .. } => spec,
            Self::Relay { file } => return Ok(cut_off(file, &[])?),
            Self::Daemon { config } => return tandem(&["resume"], node, config),
            Self::Hooks {
                mending,
                environment,
                ..
            } => return shell(mending, environment),
        };
        match running(ours, spec) {
            Some(server) => {
                server.resume()?;
                server.wait_ready(spec.start_timeout)?;
            }
            None => *ours = Some(Server::start(spec)?),
        }
        Ok(())
    }
}

/// What was done, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) at_us: u64,
    pub(super) what: &'static str,
}

/// A fault that is about to happen, or has.
#[derive(Debug)]
pub(super) struct Fault {
    scenario: Scenario,
    node: String,
    means: Means,
    broken: AtomicBool,
    /// The node's server once we have seen to it; one change at a time: what an interrupted drill began goes on in its
    /// thread.
    server: Arc<Mutex<Option<Server>>>,
}

impl Fault {
    pub(super) fn new(scenario: Scenario, node: &str, means: Means) -> Self {
        Self {
            scenario,
            node: node.to_owned(),
            means,
            broken: AtomicBool::new(false),
            server: Arc::default(),
        }
    }

    /// Breaks the node, waits and mends it; a flapping one again and again. Answers what was done when.
    pub(super) async fn carry_out(&self, hold: Duration) -> Result<Vec<Moment>, FaultError> {
        let mut moments = Vec::new();
        match self.scenario {
            Scenario::Flap => {
                let until = Instant::now() + hold;
                for round in 1.. {
                    self.blow(FLAP, &mut moments).await?;
                    sleep(FLAP).await;
                    if round >= FLAPS_MIN && Instant::now() >= until {
                        break;
                    }
                }
            }
            Scenario::Restart => self.blow(Duration::ZERO, &mut moments).await?,
            Scenario::Kill | Scenario::Stop | Scenario::Partition | Scenario::Drain => {
                self.blow(hold, &mut moments).await?;
            }
        }
        Ok(moments)
    }

    async fn blow(&self, hold: Duration, moments: &mut Vec<Moment>) -> Result<(), FaultError> {
        let at_us = now_us();
        moments.push(Moment {
            at_us,
            what: self.scenario.word(),
        });
        self.strike().await?;
        sleep(hold).await;
        self.mend().await?;
        moments.push(Moment {
            at_us: now_us(),
            what: "mended",
        });
        Ok(())
    }

    /// Whether it was broken, and not mended since.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    async fn strike(&self) -> Result<(), FaultError> {
        self.broken.store(true, Ordering::Relaxed);
        self.in_turn(Means::strike).await
    }

    /// Mends what [`Self::carry_out`] has broken.
    pub(super) async fn mend(&self) -> Result<(), FaultError> {
        self.in_turn(Means::mend).await?;
        self.broken.store(false, Ordering::Relaxed);
        Ok(())
    }

    async fn in_turn(
        &self,
        change: fn(&Means, &str, &mut Option<Server>) -> Result<(), FaultError>,
    ) -> Result<(), FaultError> {
        let (means, node) = (self.means.clone(), self.node.clone());
        let server = Arc::clone(&self.server);
        let changing = move || {
            let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
            change(&means, &node, &mut server)
        };
        spawn_blocking(changing).await?
    }
}

/// The server that runs, whoever has started it. One of ours that has ended is reaped by that.
fn running<'a>(ours: &'a mut Option<Server>, spec: &ServerSpec) -> Option<&'a mut Server> {
    if !ours.as_mut().is_some_and(Server::is_running) {
        *ours = Server::adopt(&spec.data_dir, &spec.log);
    }
    ours.as_mut()
}

/// Runs a command of the user's.
fn shell(command: &str, environment: &[(&'static str, String)]) -> Result<(), FaultError> {
    let mut shell = Command::new("/bin/sh");
    shell
        .arg("-c")
        .arg(command)
        .envs(environment.iter().map(|(name, value)| (name, value)));
    run(&mut shell, command)
}

/// Runs a command of Tandem's about a node.
fn tandem(words: &[&str], node: &str, config: &Path) -> Result<(), FaultError> {
    let shown = format!("tandem {} {node}", words.join(" "));
    let program = std::env::current_exe().map_err(|source| FaultError::HookIo {
        command: shown.clone(),
        source,
    })?;
    let mut tandem = Command::new(program);
    tandem.args(words).arg(node).arg("--config").arg(config);
    run(&mut tandem, &shown)
}

/// Runs a program to its end. What it leaves running in the background does not keep it.
fn run(program: &mut Command, shown: &str) -> Result<(), FaultError> {
    let ran = run_bounded(program, HOOK_LIMIT).map_err(|source| FaultError::HookIo {
        command: shown.to_owned(),
        source,
    })?;
    match ran.status.success() {
        true => Ok(()),
        false => Err(FaultError::Hook {
            command: shown.to_owned(),
            status: ran.status,
            said: ran.tail,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn hooks(dir: &Path, mending: &str) -> Fault {
        let means = Means::Hooks {
            breaking: format!("echo broke $TANDEM_NODE >> {}/log", dir.display()),
            mending: mending.replace("DIR", &dir.display().to_string()),
            environment: vec![("TANDEM_NODE", "paris".to_owned())],
        };
        Fault::new(Scenario::Partition, "paris", means)
    }

    #[tokio::test]
    async fn the_users_commands_break_and_mend_in_order_and_learn_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let fault = hooks(dir.path(), "echo mended $TANDEM_NODE >> DIR/log");
        let moments = fault.carry_out(Duration::from_millis(20)).await.unwrap();
        let log = fs::read_to_string(dir.path().join("log")).unwrap();
        assert_eq!(log, "broke paris\nmended paris\n");
        assert_eq!(
            moments.iter().map(|moment| moment.what).collect::<Vec<_>>(),
            ["partition", "mended"]
        );
        assert!(moments[1].at_us - moments[0].at_us >= 20_000);
        assert!(!fault.is_broken());
    }

    #[tokio::test]
    async fn a_command_that_fails_is_told_with_its_words_and_the_node_counts_as_broken() {
        let dir = tempfile::tempdir().unwrap();
        let fault = hooks(dir.path(), "echo no route; exit 3");
        let error = fault.carry_out(Duration::ZERO).await.unwrap_err();
        assert!(error.to_string().contains("no route"), "{error}");
        assert!(fault.is_broken());
    }
}
