//! The command line: what is asked for, carried out, and answered with an exit code.

mod admin;
mod args;
mod check;
pub mod dev_options;
pub mod drill;
mod explain;
mod handoff;
mod import;
mod operator;
pub mod out;
mod run;
mod status;
mod table;
mod verify;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use miette::{Diagnostic, MietteHandlerOpts, Report};
use tokio::runtime::Builder;

use self::admin::AdminError;
use self::args::{Arguments, Command, LogFormat};
use crate::config::ConfigError;
use crate::log::{self, Format};

/// The configuration when none is named, in the order tried.
const CONFIG_PLACES: [&str; 2] = ["tandem.toml", ".tandem/tandem.toml"];

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let daemon = matches!(arguments.command, Command::Run(_) | Command::Dev(_));
    let format = match arguments.log_format {
        LogFormat::Text => Format::Text,
        LogFormat::Json => Format::Json,
    };
    log::init(if daemon { "info" } else { "warn" }, format);
    tandem_wire::tls::install_crypto_provider();
    // Long lines stay whole, so that they can be searched for; our messages name their causes themselves. The hook
    // is set once, so this cannot fail.
    let _ = miette::set_hook(Box::new(|_| {
        Box::new(
            MietteHandlerOpts::new()
                .wrap_lines(false)
                .without_cause_chain()
                .build(),
        )
    }));

    let mut builder = if daemon {
        Builder::new_multi_thread()
    } else {
        Builder::new_current_thread()
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            report(&Report::msg(format!("cannot start: {error}")));
            return Exit::No.into();
        }
    };
    let outcome = runtime.block_on(Box::pin(carry_out(arguments.command)));
    // What still runs on other threads must not keep the process.
    runtime.shutdown_background();
    match outcome {
        Ok(exit) => exit.into(),
        Err(failure) => {
            let exit = failure.exit();
            report(&failure.into());
            exit.into()
        }
    }
}

async fn carry_out(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Run(arguments) => Box::pin(run::run(arguments)).await,
        Command::Dev(arguments) => match Box::pin(crate::dev::run(arguments.into())).await {
            Ok(()) => Ok(Exit::Yes),
            Err(error) => Err(Failure::Dev(error)),
        },
        Command::Postgres(arguments) => {
            let install =
                crate::dev::install::Install::obtain(arguments.major).map_err(Failure::other)?;
            out::line(&install.bin_dir.display().to_string())?;
            Ok(Exit::Yes)
        }
        Command::ImportPgbouncer(arguments) => import::import_pgbouncer(&arguments),
        Command::Check(arguments) => Box::pin(check::check(arguments)).await,
        Command::Explain(arguments) => explain::explain(&arguments),
        Command::Status(arguments) => status::status(arguments).await,
        Command::WaitConverged(arguments) => status::wait_converged(arguments).await,
        Command::Drain(arguments) => handoff::drain(arguments).await,
        Command::Resume(arguments) => handoff::resume(arguments).await,
        Command::Diff(arguments) => Box::pin(verify::diff(arguments)).await,
        Command::Repair(arguments) => Box::pin(verify::repair(arguments)).await,
        Command::Conflicts(arguments) => operator::conflicts(arguments).await,
        Command::Reapply(arguments) => operator::reapply(arguments).await,
        Command::Quarantine(arguments) => operator::quarantine(arguments).await,
        Command::Drill(arguments) => Box::pin(drill::drill(arguments)).await,
    }
}

/// How a command ended, as the process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    /// 0: done, or the answer is yes.
    Yes,
    /// 1: failed, or the answer is no.
    No,
    /// 2: the command line is wrong; clap uses the same.
    Usage,
    /// 3: a drill could not be carried out, so it says neither yes nor no.
    NotRun,
    /// 64: the configuration is wrong (`EX_USAGE` of sysexits.h).
    BadConfig,
    /// 69: the daemon does not answer (`EX_UNAVAILABLE` of sysexits.h).
    Unavailable,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Yes => 0,
            Exit::No => 1,
            Exit::Usage => 2,
            Exit::NotRun => 3,
            Exit::BadConfig => 64,
            Exit::Unavailable => 69,
        })
    }
}

/// Why a command could not be carried out.
#[derive(Debug, thiserror::Error, Diagnostic)]
enum Failure {
    #[error(transparent)]
    #[diagnostic(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    #[diagnostic(transparent)]
    Admin(#[from] AdminError),
    #[error(transparent)]
    #[diagnostic(transparent)]
    Dev(crate::dev::DevError),
    #[error("{0}")]
    Usage(String),
    /// By the daemon, or by a node that it asked.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    #[diagnostic(transparent)]
    NotRun(Box<Failure>),
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl Failure {
    fn other(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Other(Box::new(error))
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Config(_)
            | Self::Admin(AdminError::Config(_))
            | Self::Dev(crate::dev::DevError::Config(_)) => Exit::BadConfig,
            Self::Admin(AdminError::Connect { .. } | AdminError::Timeout { .. }) => {
                Exit::Unavailable
            }
            // No daemon was ever started there.
            Self::Admin(AdminError::TokenFile { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                Exit::Unavailable
            }
            Self::Usage(_) => Exit::Usage,
            Self::NotRun(_) => Exit::NotRun,
            Self::Admin(_) | Self::Dev(_) | Self::Refused(_) | Self::Output(_) | Self::Other(_) => {
                Exit::No
            }
        }
    }
}

/// Shows an error on standard error, with snippets where it has any.
fn report(error: &Report) {
    eprintln!("{error:?}");
}

/// The configuration named, or the first that is there, or the one that should be.
fn find_config(named: &Option<PathBuf>) -> PathBuf {
    let found = || {
        CONFIG_PLACES
            .iter()
            .map(PathBuf::from)
            .find(|path| path.is_file())
    };
    named
        .clone()
        .or_else(found)
        .unwrap_or_else(|| PathBuf::from(CONFIG_PLACES[0]))
}
