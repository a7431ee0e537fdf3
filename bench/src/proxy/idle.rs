//! Owns the case of clients that do nothing: what memory each costs the proxy.

use std::error::Error;

use super::generator::Generator;
use super::samples::Samples;
use super::stage::{Stage, Way};
use crate::resident_memory;

/// Resident memory per client, which has asked one query. The kernel's socket buffers are not among it.
pub(super) async fn measure(
    stage: &Stage,
    samples: &mut Samples,
    scale: f64,
) -> Result<(), Box<dyn Error>> {
    for way in stage.ways.iter().filter(|way| way.crowds) {
        for (count, tls) in [(1_000.0, false), (10_000.0, false), (1_000.0, true)] {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let count = (count * scale) as usize;
            let kind = if tls { ", TLS" } else { "" };
            let row = format!("{count} clients{kind}");
            let bytes = per_client(stage, way, count, tls).await?;
            samples.add("idle", &row, "RSS bytes per client", way.name, bytes)?;
        }
    }
    Ok(())
}

async fn per_client(
    stage: &Stage,
    way: &Way,
    count: usize,
    tls: bool,
) -> Result<f64, Box<dyn Error>> {
    let pid = way.pid.ok_or("not a proxy")?;
    let generator = Generator::new(stage, way, tls)?;
    // What the first clients cost is not theirs.
    drop(generator.crowd(40).await?);
    let before = resident_memory(pid)?;
    let clients = generator.crowd(count).await?;
    let after = resident_memory(pid)?;
    drop(clients);
    #[allow(clippy::cast_precision_loss)]
    Ok(after.saturating_sub(before) as f64 / count as f64)
}
