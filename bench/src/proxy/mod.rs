//! Tandem's proxy beside PgBouncer, HAProxy and no proxy at all.
//!
//! A case measures each way in turn and adds what it finds to [`Samples`]; [`CASES`] has them all by name.

mod crowd;
mod generator;
mod idle;
mod instructions;
mod load;
mod peers;
mod samples;
mod stage;
mod storm;

use std::error::Error;
use std::time::Duration;

pub(crate) use peers::Peer;
pub use samples::Samples;
pub use stage::{Stage, Way};

/// A measurement, by the name that the command line has for it.
pub const CASES: [&str; 13] = [
    "idle",
    "idle-tls",
    "select-1",
    "select-8",
    "select-32",
    "select-100",
    "tpcb",
    "rate",
    "churn",
    "logins",
    "crowd",
    "storm",
    "instructions",
];

/// Measures one case once. `scale` stretches or shortens how long each cell takes.
///
/// # Errors
/// Something that was started fails.
pub async fn measure(
    case: &str,
    stage: &Stage,
    samples: &mut Samples,
    scale: f64,
) -> Result<(), Box<dyn Error>> {
    let time = |seconds: f64| Duration::from_secs_f64(seconds * scale);
    match case {
        "select-1" => load::select(stage, samples, "1", time(1.0)).await,
        "select-8" => load::select(stage, samples, "8", time(1.0)).await,
        "select-32" => load::select(stage, samples, "32", time(1.0)).await,
        "select-100" => load::select(stage, samples, "100", time(1.0)).await,
        "tpcb" => load::tpcb(stage, samples, time(2.0)).await,
        "rate" => load::rate(stage, samples, time(2.0)).await,
        "churn" => load::churn(stage, samples, time(3.0)).await,
        "logins" => storm::logins(stage, samples, time(3.0)).await,
        "instructions" => instructions::measure(stage, samples, time(1.0)).await,
        "idle" => idle::measure(stage, samples, false).await,
        "idle-tls" => idle::measure(stage, samples, true).await,
        "crowd" => crowd::measure(stage, samples, time(8.0)).await,
        "storm" => storm::measure(stage, samples, time(4.0)).await,
        other => Err(format!("there is no case {other:?}; there are {}", CASES.join(", ")).into()),
    }
}
