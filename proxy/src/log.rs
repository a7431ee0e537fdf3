//! Owns logging: where the lines go, in which form, and the count of panics.

use std::{
    io::IsTerminal,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// Which lines are written, where this is not the environment's to say.
type SetFilter = Box<dyn Fn(EnvFilter) + Send + Sync>;

static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();
/// The variable that says which lines are written.
const VARIABLE: &str = "TANDEM_LOG";

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
    let from_environment = EnvFilter::try_from_env(VARIABLE).ok();
    let may_change = from_environment.is_none();
    let filter = from_environment.unwrap_or_else(|| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(without_parameters(filter))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // Both fail only when logging is set up already.
    let (begun, set): (_, SetFilter) = match format {
        Format::Text => {
            let builder = builder.with_target(false).with_filter_reloading();
            let handle = builder.reload_handle();
            (
                builder.try_init(),
                Box::new(move |filter| _ = handle.reload(filter)),
            )
        }
        Format::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            (
                builder.try_init(),
                Box::new(move |filter| _ = handle.reload(filter)),
            )
        }
    };
    if begun.is_ok() && may_change {
        let _ = SET_FILTER.set(set);
    }
}

/// At debug it prints every parameter of every statement: users' data does not belong into a log.
fn without_parameters(filter: EnvFilter) -> EnvFilter {
    match "tokio_postgres=info".parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    }
}

/// Writes lines of this level and of more severe ones from now on. Answers whether that is so: not where `TANDEM_LOG`
/// says what is written.
pub fn set_level(level: LevelFilter) -> bool {
    let set = SET_FILTER.get();
    if let Some(set) = set {
        set(without_parameters(EnvFilter::new(level.to_string())));
    }
    set.is_some()
}

/// Sessions that ended by a panic since the process began. Anything but 0 is a bug.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

pub(crate) fn count_panic() {
    PANICS.fetch_add(1, Ordering::Relaxed);
}
