//! Owns logging: where the lines go, in which form, and the count of panics.

use std::{
    io::IsTerminal,
    sync::atomic::{AtomicU64, Ordering},
};

use tracing_subscriber::EnvFilter;

static PANICS: AtomicU64 = AtomicU64::new(0);

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Sends log lines of this process to standard error.
///
/// Which lines: the environment variable `TANDEM_LOG` in `tracing`'s filter syntax, for example `debug` or
/// `info,tandem::session=debug`; without it `default`. May be called more than once; the first call counts.
pub fn init(default: &str, format: Format) {
    let filter = EnvFilter::try_from_env("TANDEM_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    // At debug it prints every parameter of every statement: users' data does not belong into a log.
    let filter = match "tokio_postgres=info".parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // Fails only when logging is set up already.
    let _ = match format {
        Format::Text => builder.with_target(false).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// Sessions that ended by a panic since the process began. Anything but 0 is a bug.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

pub(crate) fn count_panic() {
    PANICS.fetch_add(1, Ordering::Relaxed);
}
